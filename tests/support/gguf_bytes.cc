#include "support/gguf_bytes.h"

namespace frugal::llm::test {

GgufBuilder& GgufBuilder::text(std::string_view key, std::string_view value) {
  values.push_back(ByteWriter().text(key).put<uint32_t>(8).text(value).bytes());
  return *this;
}

GgufBuilder& GgufBuilder::texts(std::string_view key, const std::vector<std::string>& elements) {
  ByteWriter entry;
  entry.text(key).put<uint32_t>(9).put<uint32_t>(8).put<uint64_t>(elements.size());
  for (const std::string& element : elements) entry.text(element);
  values.push_back(entry.bytes());
  return *this;
}

GgufBuilder& GgufBuilder::tensor(const std::string& name, std::vector<uint64_t> shape, TensorType type,
                                 std::string_view bytes) {
  tensors.push_back({name, std::move(shape), static_cast<uint32_t>(type), data.size()});
  data += bytes;
  while (data.size() % alignment != 0) data += '\0';
  return *this;
}

std::string GgufBuilder::build() const {
  ByteWriter out;
  out.raw("GGUF").put<uint32_t>(version);
  out.put<uint64_t>(n_tensors.value_or(tensors.size())).put<uint64_t>(n_values.value_or(values.size()));
  for (const std::string& entry : values) out.raw(entry);
  for (const Tensor& tensor : tensors) {
    out.text(tensor.name).put<uint32_t>(static_cast<uint32_t>(tensor.shape.size()));
    for (const uint64_t size : tensor.shape) out.put<uint64_t>(size);
    out.put<uint32_t>(tensor.type).put<uint64_t>(tensor.offset);
  }
  out.pad_to(alignment).raw(data);
  return out.bytes();
}

GgufBuilder sample_gguf() {
  GgufBuilder file;
  file.text("general.architecture", "llama").u32("llama.block_count", 2).f32("llama.epsilon", 1e-5f);
  file.boolean("flag", true);
  file.value<uint8_t>("u8", GgufValueType::kU8, 200).value<int8_t>("i8", GgufValueType::kI8, -100);
  file.value<uint16_t>("u16", GgufValueType::kU16, 60000).value<int16_t>("i16", GgufValueType::kI16, -30000);
  file.value<int32_t>("i32", GgufValueType::kI32, -7).value<uint64_t>("u64", GgufValueType::kU64, 1ull << 40);
  file.value<int64_t>("i64", GgufValueType::kI64, -1).value<double>("f64", GgufValueType::kF64, 0.5);
  file.texts("words", {"a", "", "three"}).array<int32_t>("counts", GgufValueType::kI32, {1, 2, 3});
  file.array<float>("scores", GgufValueType::kF32, {0.5f, -1})
      .array<uint8_t>("flags", GgufValueType::kBool, {1, 0});
  file.array<uint64_t>("none", GgufValueType::kU64, {});
  file.tensor("weights", {32, 3}, TensorType::kQ8_0, std::string(3 * 34, '\x11'));
  file.tensor("norm", {5}, TensorType::kF32, std::string(20, '\x22'));
  return file;
}

}  // namespace frugal::llm::test
