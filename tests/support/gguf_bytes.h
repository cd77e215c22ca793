// Writes GGUF bytes by hand, sound or broken on purpose: tests of the reader must be able to say every wrong
// thing.
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "llm/model/gguf.h"

namespace frugal::llm::test {

// Little-endian bytes, appended one value after the other.
class ByteWriter {
 public:
  template <typename T>
  ByteWriter& put(T value) {
    static_assert(std::is_arithmetic_v<T>);
    char raw[sizeof(T)];
    std::memcpy(raw, &value, sizeof raw);
    out_.append(raw, sizeof raw);
    return *this;
  }
  // A string as GGUF writes it: the length as u64, then the bytes.
  ByteWriter& text(std::string_view value) {
    put<uint64_t>(value.size());
    out_ += value;
    return *this;
  }
  ByteWriter& raw(std::string_view value) {
    out_ += value;
    return *this;
  }
  ByteWriter& pad_to(size_t alignment) {
    while (out_.size() % alignment != 0) out_ += '\0';
    return *this;
  }
  size_t size() const { return out_.size(); }
  const std::string& bytes() const { return out_; }

 private:
  std::string out_;
};

// A whole file from parts. What is announced in the header can be overridden, to lie.
struct GgufBuilder {
  struct Tensor {
    std::string name;
    std::vector<uint64_t> shape;
    uint32_t type = 0;
    uint64_t offset = 0;
  };

  uint32_t version = 3;
  uint64_t alignment = 32;          // of the padding; the metadata has to say so when it is not 32
  std::vector<std::string> values;  // metadata entries, encoded
  std::vector<Tensor> tensors;
  std::string data;
  std::optional<uint64_t> n_values, n_tensors;  // what the header claims; nothing: the truth

  // Encoded metadata entries.
  template <typename T>
  GgufBuilder& value(std::string_view key, GgufValueType type, T payload) {
    values.push_back(
        ByteWriter().text(key).put<uint32_t>(static_cast<uint32_t>(type)).template put<T>(payload).bytes());
    return *this;
  }
  GgufBuilder& u32(std::string_view key, uint32_t number) { return value(key, GgufValueType::kU32, number); }
  GgufBuilder& f32(std::string_view key, float number) { return value(key, GgufValueType::kF32, number); }
  GgufBuilder& boolean(std::string_view key, bool flag) {
    return value(key, GgufValueType::kBool, static_cast<uint8_t>(flag));
  }
  GgufBuilder& text(std::string_view key, std::string_view value);
  GgufBuilder& texts(std::string_view key, const std::vector<std::string>& values);
  template <typename T>
  GgufBuilder& array(std::string_view key, GgufValueType element, const std::vector<T>& elements) {
    ByteWriter entry;
    entry.text(key)
        .put<uint32_t>(9)
        .put<uint32_t>(static_cast<uint32_t>(element))
        .put<uint64_t>(elements.size());
    for (const T element_value : elements) entry.put<T>(element_value);
    values.push_back(entry.bytes());
    return *this;
  }
  // Appends a tensor and its data, padded to the alignment.
  GgufBuilder& tensor(const std::string& name, std::vector<uint64_t> shape, TensorType type,
                      std::string_view bytes);

  std::string build() const;
};

// A small sound file with every type of metadata value and two tensors.
GgufBuilder sample_gguf();

inline std::span<const std::byte> as_byte_span(std::string_view text) {
  return std::as_bytes(std::span(text));
}

}  // namespace frugal::llm::test
