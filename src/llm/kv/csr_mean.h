// The mean of keys, which turns with the position: what of a score comes from it, block by block.
//
// With q the query and m the mean before RoPE, q . R(t) m = sum over pairs of a cos(theta t) + b sin(theta
// t). With t from the middle of a block on, cosines are even and sines odd: a pair is a row of each of two
// panel products over the 32 offsets of the block's second half, whose sum is that half and whose difference,
// mirrored, the first. Pairs that turn by less than half a radian in half a block are summed first, as a
// polynomial of degree 4 in the offset: what is left out is below 0.5^5 / 120 = 3e-4 of a pair's share of the
// score.
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
  // factors [dim]: a of every pair, then b.
  void factors(const float* q, const float* mean, float* factors) const;
  // scores[c * kKvBlock + t] = the mean's part for n_cols <= kMaxCols columns of factors [n_cols, dim].
  static constexpr size_t kMaxCols = 12;
  void scores(int layer, int block, const float* factors, size_t n_cols, float* scores) const;

 private:
  size_t even_rows(size_t kind) const { return n_fast_[kind] + kEvenTerms; }
  size_t odd_rows(size_t kind) const { return n_fast_[kind] + kOddTerms; }

  const CsrPlan* plan_ = nullptr;
  size_t pairs_ = 0, n_blocks_ = 0;
  std::vector<size_t> n_fast_;                  // [kind], a multiple of 4
  std::vector<float> middles_, offsets_;        // [kind, block or offset, cosines and sines, pair]
  std::vector<std::vector<float>> even_, odd_;  // [kind]: two panels of 16 offsets
  std::vector<std::vector<float>> powers_;  // [kind]: [kTurnTerms, pairs], what a slow pair adds to each term
};

}  // namespace frugal::llm
