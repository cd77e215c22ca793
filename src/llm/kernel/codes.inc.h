// What every set of code kernels compiles for itself from the same plain loops, 16 floats to a step: no
// product and sum is one instruction, and so all sets give the same bits.
#pragma once

#include <cstring>

#include "llm/kernel/codes.h"

namespace frugal::llm {
namespace {

// See CodeKernels::turn_factors.
inline void turn_factors(const float* factors, const float* middle, size_t n_pairs, size_t n_fast,
                         const float* powers, float* x) {
  const float *cos = factors, *sin = factors + n_pairs;
  const float *turned_cos = middle, *turned_sin = middle + n_pairs;
  alignas(64) float a[kMaxTurnedPairs], b[kMaxTurnedPairs];
  for (size_t i = 0; i < n_pairs; i += 16) {
    for (size_t lane = i; lane < i + 16; ++lane) {
      a[lane] = cos[lane] * turned_cos[lane] + sin[lane] * turned_sin[lane];
      b[lane] = sin[lane] * turned_cos[lane] - cos[lane] * turned_sin[lane];
    }
  }
  float* odd = x + n_fast + kEvenTerms;
  std::memcpy(x, a, n_fast * sizeof(float));
  std::memcpy(odd, b, n_fast * sizeof(float));
  for (size_t term = 0; term < kTurnTerms; ++term, powers += n_pairs) {
    const float* from = term % 2 == 0 ? a : b;
    alignas(64) float lanes[16] = {};
    for (size_t i = 0; i < n_pairs; i += 16) {
      for (size_t lane = 0; lane < 16; ++lane) lanes[lane] += from[i + lane] * powers[i + lane];
    }
    for (size_t lane = 0; lane < 8; ++lane) lanes[lane] += lanes[lane + 8];
    for (size_t lane = 0; lane < 4; ++lane) lanes[lane] += lanes[lane + 4];
    (term % 2 == 0 ? x : odd)[n_fast + term / 2] = (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
  }
}

// See CodeKernels::unfold.
inline void unfold(const float* even, const float* odd, size_t n_cols, float* y) {
  constexpr size_t kHalf = kCodeBlock / 2;
  for (size_t c = 0; c < n_cols; ++c, even += kHalf, odd += kHalf, y += kCodeBlock) {
    for (size_t i = 0; i < kHalf; ++i) y[kHalf + i] = even[i] + odd[i];
    for (size_t i = 0; i < kHalf; ++i) y[kHalf - 1 - i] = even[i] - odd[i];
  }
}

// See CodeKernels::expand_scales.
inline void expand_scales(const std::byte* codes, size_t stride, const float* table, float* scales) {
  for (size_t panel = 0; panel < kCodeBlock / 16; ++panel, codes += stride) {
    for (size_t i = 0; i < 8; ++i) {
      const auto both = static_cast<size_t>(codes[i]);
      *scales++ = table[both & 15];
      *scales++ = table[both >> 4];
    }
  }
}

}  // namespace
}  // namespace frugal::llm
