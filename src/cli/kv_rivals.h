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
  uint64_t book_bytes = 0;      // shared by all sequences
  uint64_t sequence_bytes = 0;  // of each sequence's own, beside its codes
};

// A block of 64 tokens of one head.
struct CodedBlock {
  int layer, head, first_position;
  bool values;
};
// Changes a block [64, head_dim] into what decoding gives.
using BlockCodec = std::function<void(float* block, const CodedBlock& at)>;
std::shared_ptr<const llm::KvSource> rival_source(std::string name, BlockCodec codec);

// The codec of a layer's keys or values, made from those of the prompt: rows [n_tokens, heads * head_dim].
using PromptCodec = std::function<BlockCodec(int layer, bool values, const std::vector<float>& rows)>;
// A source whose sequences begin with a prompt of `n_tokens`, which is seen whole while it is read and coded
// when its last token is there.
std::shared_ptr<const llm::KvSource> prompt_rival_source(std::string name, int n_tokens, PromptCodec make);

// q8_0, q4_0, rotated q4_0, rotated 3- and 2-bit (Lloyd-Max), KIVI-like 2-bit.
std::vector<KvRival> kv_rivals(int head_dim);

}  // namespace frugal::cli
