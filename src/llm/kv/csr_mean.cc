#include "llm/kv/csr_mean.h"

#include <algorithm>
#include <cmath>

#include "llm/kernel/codes.h"
#include "llm/kernel/kernel.h"

namespace frugal::llm {
namespace {

constexpr int kHalf = kKvBlock / 2;      // offsets are counted in it
constexpr double kMiddle = kHalf - 0.5;  // of positions 0 to 63

}  // namespace

TurnedMean::TurnedMean(const CsrPlan& plan, int n_blocks)
    : plan_(&plan),
      pairs_(static_cast<size_t>(plan.dim / 2)),
      n_chunks_((static_cast<size_t>(n_blocks) + kBlocks - 1) / kBlocks) {
  const size_t n_kinds = plan.turns.size() / pairs_;
  middles_.resize(n_kinds * n_chunks_ * kBlocks * 2 * pairs_);
  offsets_.resize(n_kinds * kKvBlock * 2 * pairs_);
  for (size_t kind = 0; kind < n_kinds; ++kind) {
    const float* turns = &plan.turns[kind * pairs_];
    size_t n_fast = 0, n_full = 0;
    for (size_t pair = 0; pair < pairs_; ++pair) {
      const double turn = static_cast<double>(turns[pair]), most = std::fabs(turn) * kHalf;
      if (most >= 0.5) n_fast = pair + 1;
      if (most * most / 2 >= 1e-4) n_full = pair + 1;
      const auto put = [&](float* cosine, float* sine, double angle) {
        *cosine = static_cast<float>(std::cos(angle));
        *sine = static_cast<float>(std::sin(angle));
      };
      for (size_t b = 0; b < n_chunks_ * kBlocks; ++b) {
        float* at =
            &middles_[(kind * n_chunks_ + b / kBlocks) * 2 * pairs_ * kBlocks + pair * kBlocks + b % kBlocks];
        put(at, at + pairs_ * kBlocks, turn * (static_cast<double>(b * kKvBlock) + kMiddle));
      }
      for (int t = 0; t < kKvBlock; ++t) {
        float* at = &offsets_[(kind * kKvBlock + static_cast<size_t>(t)) * 2 * pairs_ + pair];
        put(at, at + pairs_, turn * (t - kMiddle));
      }
    }
    n_fast = (n_fast + 1) / 2 * 2;
    n_fast_.push_back(n_fast);
    n_full_.push_back(std::max(n_full, n_fast));
    std::vector<int16_t> even(even_rows(kind) * kHalf), odd(odd_rows(kind) * kHalf);
    const auto put = [](std::vector<int16_t>& table, size_t row, size_t offset, float x) {
      const size_t panel = offset / 16 * (table.size() / 2);
      table[panel + row / 2 * 32 + offset % 16 * 2 + row % 2] =
          static_cast<int16_t>(std::lround(x * kTurnOne));
    };
    for (size_t i = 0; i < kHalf; ++i) {
      const float* row = &offsets_[(kind * kKvBlock + kHalf + i) * 2 * pairs_];
      for (size_t pair = 0; pair < n_fast; ++pair) {
        put(even, pair, i, row[pair]);
        put(odd, pair, i, row[pairs_ + pair]);
      }
      const float u = (static_cast<float>(i) + 0.5f) / kHalf;
      float power = 1;
      for (size_t term = 0; term < kTurnTerms; ++term, power *= u)
        put(term % 2 == 0 ? even : odd, n_fast + term / 2, i, power);
    }
    // cos z u = 1 - (z u)^2 / 2 + (z u)^4 / 24, sin z u = z u - (z u)^3 / 6
    std::vector<float>& powers = powers_.emplace_back();
    for (size_t pair = 0; pair < pairs_; ++pair) {
      const float z = turns[pair] * kHalf;
      for (const float term : {1.0f, z, -z * z / 2, -z * z * z / 6, z * z * z * z / 24})
        powers.push_back(term);
    }
    even_.push_back(std::move(even));
    odd_.push_back(std::move(odd));
  }
}

void TurnedMean::at(int layer, const float* mean, int position, float* x) const {
  const size_t kind = kind_of(layer);
  const auto block = static_cast<size_t>(position / kKvBlock);
  const float *cosines = middles_of(kind, block / kBlocks) + block % kBlocks,
              *sines = cosines + pairs_ * kBlocks;
  const float* by = &offsets_[(kind * kKvBlock + static_cast<size_t>(position % kKvBlock)) * 2 * pairs_];
  for (size_t pair = 0; pair < pairs_; ++pair) {
    const float at = cosines[pair * kBlocks], across = sines[pair * kBlocks];
    const float cos = at * by[pair] - across * by[pairs_ + pair];
    const float sin = across * by[pair] + at * by[pairs_ + pair];
    const int first = plan_->first_of(static_cast<int>(pair)),
              second = plan_->second_of(static_cast<int>(pair));
    x[first] = mean[first] * cos - mean[second] * sin;
    x[second] = mean[first] * sin + mean[second] * cos;
  }
}

// factors: of cosines [pairs, kTurnCols], of sines, then the step of each column's integers.
void TurnedMean::factors(int layer, const float* q, const float* mean, size_t col, float* factors) const {
  const size_t n_fast = n_fast_[kind_of(layer)];
  float most = 0, slow = 0, sum = 0;  // of fast pairs; of terms; of scores
  for (size_t pair = 0; pair < pairs_; ++pair) {
    const auto first = static_cast<size_t>(plan_->first_of(static_cast<int>(pair))),
               second = static_cast<size_t>(plan_->second_of(static_cast<int>(pair)));
    const float a = q[first] * mean[first] + q[second] * mean[second];
    const float b = q[second] * mean[first] - q[first] * mean[second];
    factors[pair * kTurnCols + col] = a;
    factors[(pairs_ + pair) * kTurnCols + col] = b;
    const float size = std::sqrt(a * a + b * b);
    most = pair < n_fast ? std::max(most, size) : most;
    slow += pair < n_fast ? 0 : size;
    sum += size;
  }
  // Of a NaN it is one.
  factors[2 * pairs_ * kTurnCols + col] = std::max(sum / kTurnSum, std::max(most, slow) / kTurnMax);
}

void TurnedMean::turn(int layer, int chunk, const float* factors, Turned* turned) const {
  const size_t kind = kind_of(layer);
  const float* steps = factors + 2 * pairs_ * kTurnCols;
  float inverse[kTurnCols];
  for (size_t c = 0; c < kTurnCols; ++c) {
    inverse[c] = steps[c] > 1e-30f && steps[c] < 1e30f ? 1 / steps[c] : 0;
    turned->scales[c] = steps[c] / kTurnOne;
  }
  code_kernels().turn_factors(factors, inverse, middles_of(kind, static_cast<size_t>(chunk)), pairs_,
                              n_fast_[kind], n_full_[kind], powers_[kind].data(), turned->x);
}

void TurnedMean::scores(int layer, int block, const Turned& turned, size_t n_cols, float* scores) const {
  const size_t kind = kind_of(layer), lane = static_cast<size_t>(block) % kBlocks * kTurnCols;
  code_kernels().turned_scores(turned.x + 2 * lane, n_cols, turned.scales, even_[kind].data(),
                               even_rows(kind), odd_[kind].data(), odd_rows(kind), scores);
}

}  // namespace frugal::llm
