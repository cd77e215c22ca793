// The element types of tensors, numbered as ggml and GGUF files number them, and how their blocks lie in
// memory.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace frugal::llm {

// The types that frugal computes with. A file may hold others: they keep their number, have a name and a
// layout below when this table knows them, and are refused by name where a model is loaded.
enum class TensorType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ5_0 = 6,
  kQ5_1 = 7,
  kQ8_0 = 8,
  kQ2_K = 10,
  kQ3_K = 11,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kQ8_K = 15,
  kBF16 = 30,
};

// A row is a run of blocks: `block_size` elements in `block_bytes` bytes.
struct TypeLayout {
  int block_size;
  int block_bytes;
};

// "Q4_K", "BF16"; "unknown" for a number without a name.
std::string_view tensor_type_name(TensorType type);

// The name, or "type number 77" for one without: for messages.
std::string tensor_type_label(TensorType type);

// Nothing for numbers that this table does not know, or that the format has withdrawn.
std::optional<TypeLayout> type_layout(TensorType type);

}  // namespace frugal::llm
