// The mean of keys, which turns with the position: what of a score comes from it, block by block.
//
// With q the query and m the mean before RoPE, q . R(t) m = sum over pairs of a cos(theta t) + b sin(theta
// t). With t from the middle of a block on, cosines are even and sines odd: a pair is a row of each of two
// panel products over the 32 offsets of the block's second half, whose sum is that half and whose difference,
// mirrored, the first. Pairs that turn by less than half a radian in half a block are summed first, as a
// polynomial of degree 4 in the offset, the slowest of degree 1: what is left out is below 0.5^5 / 120 = 3e-4
// of a pair's share of the score. Cosines are integers of 15 bits, factors such that their largest has 16,
// and no score more than 32.
#pragma once

#include <vector>

#include "llm/kernel/codes.h"
#include "llm/kv/csr_plan.h"
#include "llm/kv/kv_cache.h"

namespace frugal::llm {

class TurnedMean {
 public:
  TurnedMean() = default;
  TurnedMean(const CsrPlan& plan, int n_blocks);

  // x [dim] = the mean turned to a position.
  void at(int layer, const float* mean, int position, float* x) const;
  // Floats of the factors of kTurnCols queries.
  static size_t query_floats(size_t dim) { return kTurnCols * (dim + 1); }
  // Puts a query's factors into column `col` of `factors` [query_floats()], which is zeros where no query is.
  void factors(int layer, const float* q, const float* mean, size_t col, float* factors) const;

  // Queries turned to the blocks of a chunk.
  struct Turned {
    float scales[kTurnCols];
    alignas(64) int16_t x[(kMaxCodedDim + kEvenRows + kOddRows) * kTurnLanes];
  };
  void turn(int layer, int chunk, const float* factors, Turned* turned) const;
  // scores[c * kKvBlock + t] = the mean's part for the first n_cols columns.
  void scores(int layer, int block, const Turned& turned, size_t n_cols, float* scores) const;

 private:
  static constexpr size_t kBlocks = kKvChunk / kKvBlock;  // of a chunk
  static_assert(kBlocks * kTurnCols == kTurnLanes);
  size_t kind_of(int layer) const { return static_cast<size_t>(plan_->kind[static_cast<size_t>(layer)]); }
  const float* middles_of(size_t kind, size_t chunk) const {
    return &middles_[(kind * n_chunks_ + chunk) * 2 * pairs_ * kBlocks];
  }
  size_t even_rows(size_t kind) const { return n_fast_[kind] + kEvenRows; }
  size_t odd_rows(size_t kind) const { return n_fast_[kind] + kOddRows; }

  const CsrPlan* plan_ = nullptr;
  size_t pairs_ = 0, n_chunks_ = 0;
  std::vector<size_t> n_fast_, n_full_;           // [kind]; n_fast is even
  std::vector<float> middles_;                    // [kind, chunk, cosines and sines, pair, block]
  std::vector<float> offsets_;                    // [kind, offset, cosines and sines, pair]
  std::vector<std::vector<int16_t>> even_, odd_;  // [kind]: two panels [rows / 2, 16 offsets, 2]
  std::vector<std::vector<float>> powers_;  // [kind]: [pairs, kTurnTerms], what a slow pair adds to each term
};

}  // namespace frugal::llm
