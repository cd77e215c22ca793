#include "llm/kv/csr_mean.h"

#include <cmath>

#include "llm/kernel/codes.h"
#include "llm/kernel/kernel.h"

namespace frugal::llm {
namespace {

constexpr int kHalf = kKvBlock / 2;      // offsets are counted in it
constexpr double kMiddle = kHalf - 0.5;  // of positions 0 to 63

}  // namespace

TurnedMean::TurnedMean(const CsrPlan& plan, int n_blocks)
    : plan_(&plan), pairs_(static_cast<size_t>(plan.dim / 2)), n_blocks_(static_cast<size_t>(n_blocks)) {
  const size_t n_kinds = plan.turns.size() / pairs_;
  middles_.resize(n_kinds * n_blocks_ * 2 * pairs_);
  offsets_.resize(n_kinds * kKvBlock * 2 * pairs_);
  for (size_t kind = 0; kind < n_kinds; ++kind) {
    const float* turns = &plan.turns[kind * pairs_];
    size_t n_fast = 0;
    for (size_t pair = 0; pair < pairs_; ++pair) {
      const auto turn = static_cast<double>(turns[pair]);
      if (std::fabs(turn) * kHalf >= 0.5) n_fast = pair + 1;
      const auto put = [&](float* row, double angle) {
        row[pair] = static_cast<float>(std::cos(angle));
        row[pairs_ + pair] = static_cast<float>(std::sin(angle));
      };
      for (size_t b = 0; b < n_blocks_; ++b)
        put(&middles_[(kind * n_blocks_ + b) * 2 * pairs_],
            turn * (static_cast<double>(b * kKvBlock) + kMiddle));
      for (int t = 0; t < kKvBlock; ++t)
        put(&offsets_[(kind * kKvBlock + static_cast<size_t>(t)) * 2 * pairs_], turn * (t - kMiddle));
    }
    n_fast = (n_fast + 3) / 4 * 4;
    n_fast_.push_back(n_fast);
    const size_t n_even = n_fast + kEvenTerms, n_odd = n_fast + kOddTerms;
    std::vector<float> even(n_even * kHalf), odd(n_odd * kHalf), powers(kTurnTerms * pairs_);
    for (size_t i = 0; i < kHalf; ++i) {
      float* to_even = &even[i / 16 * 16 * n_even + i % 16];
      float* to_odd = &odd[i / 16 * 16 * n_odd + i % 16];
      const float* row = &offsets_[(kind * kKvBlock + kHalf + i) * 2 * pairs_];
      for (size_t pair = 0; pair < n_fast; ++pair) {
        to_even[pair * 16] = row[pair];
        to_odd[pair * 16] = row[pairs_ + pair];
      }
      const float u = (static_cast<float>(i) + 0.5f) / kHalf;
      float power = 1;
      for (size_t term = 0; term < kTurnTerms; ++term, power *= u)
        (term % 2 == 0 ? to_even : to_odd)[(n_fast + term / 2) * 16] = power;
    }
    // cos z u = 1 - (z u)^2 / 2 + (z u)^4 / 24, sin z u = z u - (z u)^3 / 6
    for (size_t pair = 0; pair < pairs_; ++pair) {
      const float z = turns[pair] * kHalf;
      const float terms[kTurnTerms] = {1, z, -z * z / 2, -z * z * z / 6, z * z * z * z / 24};
      for (size_t i = 0; pair >= n_fast && i < kTurnTerms; ++i) powers[i * pairs_ + pair] = terms[i];
    }
    even_.push_back(std::move(even));
    odd_.push_back(std::move(odd));
    powers_.push_back(std::move(powers));
  }
}

void TurnedMean::at(int layer, const float* mean, int position, float* x) const {
  const auto kind = static_cast<size_t>(plan_->kind[static_cast<size_t>(layer)]);
  const float* at = &middles_[(kind * n_blocks_ + static_cast<size_t>(position / kKvBlock)) * 2 * pairs_];
  const float* by = &offsets_[(kind * kKvBlock + static_cast<size_t>(position % kKvBlock)) * 2 * pairs_];
  for (size_t pair = 0; pair < pairs_; ++pair) {
    const float cos = at[pair] * by[pair] - at[pairs_ + pair] * by[pairs_ + pair];
    const float sin = at[pairs_ + pair] * by[pair] + at[pair] * by[pairs_ + pair];
    const int first = plan_->first_of(static_cast<int>(pair)),
              second = plan_->second_of(static_cast<int>(pair));
    x[first] = mean[first] * cos - mean[second] * sin;
    x[second] = mean[first] * sin + mean[second] * cos;
  }
}

void TurnedMean::factors(const float* q, const float* mean, float* factors) const {
  for (size_t pair = 0; pair < pairs_; ++pair) {
    const auto first = static_cast<size_t>(plan_->first_of(static_cast<int>(pair))),
               second = static_cast<size_t>(plan_->second_of(static_cast<int>(pair)));
    factors[pair] = q[first] * mean[first] + q[second] * mean[second];
    factors[pairs_ + pair] = q[second] * mean[first] - q[first] * mean[second];
  }
}

void TurnedMean::scores(int layer, int block, const float* factors, size_t n_cols, float* scores) const {
  const auto kind = static_cast<size_t>(plan_->kind[static_cast<size_t>(layer)]);
  const float* at = &middles_[(kind * n_blocks_ + static_cast<size_t>(block)) * 2 * pairs_];
  const size_t n_even = even_rows(kind), n_odd = odd_rows(kind), n_rows = n_even + n_odd;
  alignas(64) float x[kMaxCols * (kMaxCodedDim + kTurnTerms)];
  for (size_t c = 0; c < n_cols; ++c) {
    code_kernels().turn_factors(factors + c * 2 * pairs_, at, pairs_, n_fast_[kind], powers_[kind].data(),
                                x + c * n_rows);
  }
  code_kernels().turned_scores(x, n_cols, even_[kind].data(), n_even, odd_[kind].data(), n_odd, scores);
}

}  // namespace frugal::llm
