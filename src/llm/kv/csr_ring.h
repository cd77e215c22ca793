// The whole tokens of a CSR cache: for each layer and head a ring of the newest keys and values, and the
// first tokens. They are held with 8 bits and a scale for 32 channels: keys less their mean, and scored with
// queries in floats (with queries and the mean of 8 bits the newest 64 cost a KL of 0.001, a fifth of all
// that csr:2.6 costs); values as the coefficients of their atoms. Keys of the first tokens, unlike all
// others, are floats.
#pragma once

#include <atomic>
#include <vector>

#include "llm/kv/kv_cache.h"
#include "llm/tensor/buffer.h"

namespace frugal::llm {

class CsrRing {
 public:
  static constexpr int kSinks = 4;       // first tokens
  static constexpr int kBlocks = 3;      // that stand in the ring
  static constexpr int kMaxScored = 12;  // columns at once

  Status reserve(const KvShape& shape);

  // Says that a layer's tokens of a block are stored from now on, in place of those of kBlocks before. A pass
  // may store several blocks of one layer before it comes to the next.
  void enter(int layer, int block) { slot(layer, block).store(block, std::memory_order_relaxed); }
  bool holds(int layer, int block) const {
    return slot(layer, block).load(std::memory_order_relaxed) == block;
  }

  // k and less_mean [dim]: the key, and it less the mean; y [dim]: the value's coefficients.
  void store_key(int layer, int head, int position, const float* k, const float* less_mean);
  void store_value(int layer, int head, int position, const float* y);
  // Rows [n, dim] of what was stored of a block's tokens from `first` on: keys less the mean, coefficients.
  void keys(int layer, int head, int block, int first, int n, float* rows) const;
  void values(int layer, int head, int block, int first, int n, float* rows) const;

  // scores[c * kKvBlock + t] += q[c] . (key t less the mean), for the first n_tokens of a block, at most
  // kMaxScored columns q [n_cols, dim].
  void add_scores(int layer, int head, int block, int n_tokens, const float* q, int n_cols,
                  float* scores) const;
  // scores[t] = q . key t, t < kSinks.
  void score_sinks(int layer, int head, const float* q, float* scores) const;
  // out [n_cols, out_width] += the values' coefficients times weights [n_cols, kKvBlock], of the first
  // n_tokens of a block; of the first kSinks tokens. scratch [n_cols, kKvBlock].
  void add_values(int layer, int head, int block, int n_tokens, const float* weights, int n_cols, float* out,
                  size_t out_width, float* scratch) const;
  void add_sinks(int layer, int head, const float* weights, int n_cols, float* out, size_t out_width,
                 float* scratch) const;

  uint64_t bytes_used(int n_tokens) const;
  // An image: which blocks stand in the ring, of all layers the same, and the tokens.
  uint64_t save_bytes() const { return 4 * sizeof(int32_t) + tokens_.size(); }
  void save(std::byte* image) const;
  void load(const std::byte* image);

 private:
  static constexpr int kTokens = kBlocks * kKvBlock;
  struct Head {
    float* sink_keys;        // [kSinks, dim]
    int8_t* keys;            // [kBlocks, dim, kKvBlock]
    int8_t* values;          // [kTokens, dim]
    int8_t* sink_values;     // [kSinks, dim]
    uint16_t* key_scales;    // [kBlocks, dim / 32, kKvBlock]
    uint16_t* value_scales;  // [kTokens, dim / 32]
    uint16_t* sink_scales;   // [kSinks, dim / 32]
  };
  size_t token_bytes() const { return 2 * (dim_ + dim_ / 16); }
  size_t sink_bytes() const { return kSinks * (dim_ * sizeof(float) + dim_ + dim_ / 16); }
  size_t head_bytes() const { return kTokens * token_bytes() + sink_bytes(); }
  static size_t first_of(int block) { return static_cast<size_t>(block % kBlocks) * kKvBlock; }
  Head at(int layer, int head) const;
  void add_rows(const int8_t* rows, const uint16_t* row_scales, int n_tokens, const float* weights,
                int n_cols, float* out, size_t out_width, float* scratch) const;

  size_t n_heads_ = 0, n_layers_ = 0, dim_ = 0;
  Buffer tokens_;
  std::atomic<int>& slot(int layer, int block) const {
    return slots_[static_cast<size_t>(layer * kBlocks + block % kBlocks)];
  }
  mutable std::vector<std::atomic<int>> slots_;  // [n_layers, kBlocks]: the block that stands in each part
};

}  // namespace frugal::llm
