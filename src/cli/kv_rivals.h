// Cache codecs that `frugal kv eval` compares with and that no run uses: they store what decoding would give,
// in floats, and see whole and coded tokens at the same places as a csr cache.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "frugal/llm.h"

namespace frugal::cli {

struct KvRival {
  std::string name;
  double bits = 0;  // a channel, scales included, whole tokens not
  std::shared_ptr<const llm::KvSource> source;
  uint64_t book_bytes = 0;  // shared by all sequences
};

// A block of 64 tokens of one head.
struct CodedBlock {
  int layer, head, first_position;
  bool values;
};
// Changes a block [64, head_dim] into what decoding gives.
using BlockCodec = std::function<void(float* block, const CodedBlock& at)>;
std::shared_ptr<const llm::KvSource> rival_source(std::string name, BlockCodec codec);

// q8_0, q4_0, rotated q4_0, rotated 3- and 2-bit (Lloyd-Max), KIVI-like 2-bit.
std::vector<KvRival> kv_rivals(int head_dim);

}  // namespace frugal::cli
