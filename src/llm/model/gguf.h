// A reader of GGUF model files (versions 2 and 3, little-endian) that trusts nothing in them: every count,
// length, offset and product is checked against the bytes that are there before it is used, and whatever does
// not fit is an error with the key or tensor, the byte offset and what to do. docs/design/gguf-reader.md says
// why it is our own.
//
//   header    "GGUF", version u32, n_tensors u64, n_metadata u64
//   metadata  n_metadata times: key (u64 length, bytes), type u32, value
//   tensors   n_tensors times: name, n_dims u32, dims u64 each (row length first), type u32, offset u64
//   padding up to a multiple of general.alignment (32 unless the metadata says otherwise), then the tensors'
//   data; the offsets count from there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "frugal/result.h"
#include "llm/tensor/type.h"

namespace frugal::llm {

struct GgufTensor {
  std::string name;
  TensorType type = TensorType::kF32;
  std::vector<uint64_t> shape;  // 1 to 4 dimensions, none of them 0; shape[0] is the row length
  uint64_t offset = 0;          // of the data, from the start of the file
  // Size of the data. For a type whose layout is unknown (type_layout() has nothing): the room up to the next
  // tensor or the end of the file, an upper bound.
  uint64_t bytes = 0;

  uint64_t n_elements() const;  // fits: checked when the file was read
  // "[576 x 1536]", as ggml prints it: the row length first.
  std::string shape_label() const;
};

// Types of metadata values, numbered as in the file.
enum class GgufValueType : uint32_t {
  kU8 = 0,
  kI8 = 1,
  kU16 = 2,
  kI16 = 3,
  kU32 = 4,
  kI32 = 5,
  kF32 = 6,
  kBool = 7,
  kString = 8,
  kArray = 9,
  kU64 = 10,
  kI64 = 11,
  kF64 = 12,
};

// A metadata value, checked but not copied: `payload` lies in the file. Its own members never fail; the typed
// getters of GgufFile turn a mismatch into an error.
struct GgufValue {
  std::string_view key;
  GgufValueType type = GgufValueType::kU8;
  GgufValueType element_type = GgufValueType::kU8;  // of an array's elements; never kArray
  uint64_t count = 1;                               // elements of an array
  std::span<const std::byte>
      payload;  // of a string: its characters; of a string array: lengths and characters

  // "u32", "array of string".
  std::string type_label() const;
  // The value for people: strings quoted, sanitised and cut at `max_chars` characters; the first elements of
  // an array.
  std::string display(size_t max_chars = 120) const;

  // The value when the type fits: any integer that is in range counts as an integer, f32 and f64 as a float.
  std::optional<int64_t> integer(uint64_t index = 0) const;      // nothing for a u64 above the range of i64
  std::optional<double> number(uint64_t index = 0) const;        // floats, and integers
  std::optional<bool> boolean(uint64_t index = 0) const;         // bool only
  std::optional<std::string_view> string() const;                // of a string, not of an array
  std::optional<std::vector<std::string_view>> strings() const;  // of a string array
};

// An open file. Movable; owns the mapping, and views of metadata stay valid through a move. Read-only, so
// safe to share between threads.
class GgufFile {
 public:
  // Maps and checks `path`. kNotFound, kPermission, kIo; kCorrupt (truncated, hostile, not a GGUF file),
  // kUnsupported (version 1, big-endian), kNoMemory. The data of tensors is not touched. Linear in the size
  // of the metadata.
  static Result<GgufFile> open(const std::string& path);
  // The same over bytes that the caller keeps alive and unchanged; `label` stands for the path in messages.
  static Result<GgufFile> parse(std::span<const std::byte> bytes, const std::string& label = "GGUF data");

  uint32_t version() const { return version_; }
  uint64_t alignment() const { return alignment_; }
  uint64_t data_offset() const { return data_offset_; }  // where the data of tensors begins
  const std::string& label() const { return label_; }    // the path, or parse()'s label
  const MappedFile& file() const { return file_; }       // empty after parse()
  std::span<const std::byte> bytes() const { return bytes_; }

  // In the order of the file.
  std::span<const GgufTensor> tensors() const { return tensors_; }
  const GgufTensor* find_tensor(std::string_view name) const;
  // `tensor` is one of tensors().
  std::span<const std::byte> data(const GgufTensor& tensor) const;

  // In the order of the file.
  std::span<const GgufValue> metadata() const { return values_; }
  const GgufValue* find_value(std::string_view key) const;

  // The value of `key`; kCorrupt when it is missing, of another type, or out of range, in a message that
  // names the key, the expected and the found type. Integers of any width and sign are taken when the value
  // fits.
  Result<uint32_t> require_u32(std::string_view key) const;
  Result<uint64_t> require_u64(std::string_view key) const;
  Result<float> require_f32(std::string_view key) const;
  Result<bool> require_bool(std::string_view key) const;
  Result<std::string_view> require_string(std::string_view key) const;
  // T: uint32_t, int32_t, float, uint8_t (for bools: 0 or 1) or std::string_view.
  template <typename T>
  Result<std::vector<T>> require_array(std::string_view key) const;
  // A value that stands for all of `n` things, or an array with one for each: `n` values.
  Result<std::vector<uint32_t>> require_u32_each(std::string_view key, size_t n) const;

  // The same, with a default for a missing key; a wrong type is still an error.
  Result<uint32_t> find_u32_or(std::string_view key, uint32_t missing) const;
  Result<uint64_t> find_u64_or(std::string_view key, uint64_t missing) const;
  Result<float> find_f32_or(std::string_view key, float missing) const;
  Result<bool> find_bool_or(std::string_view key, bool missing) const;
  Result<std::string_view> find_string_or(std::string_view key, std::string_view missing) const;
  template <typename T>
  Result<std::vector<T>> find_array_or_empty(std::string_view key) const;

 private:
  friend class GgufParser;
  GgufFile() = default;

  MappedFile file_;
  std::span<const std::byte> bytes_;
  std::string label_;
  uint32_t version_ = 0;
  uint64_t alignment_ = 32;
  uint64_t data_offset_ = 0;
  std::vector<GgufValue> values_;
  std::vector<GgufTensor> tensors_;
  // Indices in the order of key and name: look-up by bisection, with no hash table that a hostile file could
  // fill with collisions.
  std::vector<uint32_t> values_by_key_, tensors_by_name_;
};

// A key or name from a file, made fit for a one-line message: sanitised, without control characters, cut at
// 80 bytes.
std::string printable_name(std::string_view name);

}  // namespace frugal::llm
