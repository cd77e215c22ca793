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
    for (size_t i = n_fast / 16 * 16; i < n_pairs; i += 16) {  // powers of the pairs before are 0
      for (size_t lane = 0; lane < 16; ++lane) lanes[lane] += from[i + lane] * powers[i + lane];
    }
    for (size_t lane = 0; lane < 8; ++lane) lanes[lane] += lanes[lane + 8];
    for (size_t lane = 0; lane < 4; ++lane) lanes[lane] += lanes[lane + 4];
    (term % 2 == 0 ? x : odd)[n_fast + term / 2] = (lanes[0] + lanes[2]) + (lanes[1] + lanes[3]);
  }
}

// See CodeKernels::turned_scores.
inline void turned_scores(const float* x, size_t n_cols, const float* even, size_t n_even, const float* odd,
                          size_t n_odd, float* y) {
  constexpr size_t kHalf = kCodeBlock / 2;
  const auto sums = [](const float* factors, const float* table, size_t n_rows, float* out) {
    for (size_t i = 0; i < kHalf; i += 16, out += 16) {
      for (size_t lane = 0; lane < 16; ++lane) out[lane] = 0;
      for (size_t row = 0; row < n_rows; ++row, table += 16) {
        for (size_t lane = 0; lane < 16; ++lane) out[lane] += factors[row] * table[lane];
      }
    }
  };
  alignas(64) float evens[kHalf], odds[kHalf];
  for (size_t c = 0; c < n_cols; ++c, x += n_even + n_odd, y += kCodeBlock) {
    sums(x, even, n_even, evens);
    sums(x + n_even, odd, n_odd, odds);
    for (size_t i = 0; i < kHalf; ++i) y[kHalf + i] = evens[i] + odds[i];
    for (size_t i = 0; i < kHalf; ++i) y[kHalf - 1 - i] = evens[i] - odds[i];
  }
}

// See CodeKernels::quantize_products. The integers lie in the order of the entries.
inline float quantize_products(const float* products, int16_t* table) {
  float largest = 0, wrong = 0;  // `wrong` is 0 or NaN
  for (size_t e = 0; e < kBookEntries; ++e) {
    const float size = products[e] < 0 ? -products[e] : products[e];
    largest = size > largest ? size : largest;
    wrong += products[e] - products[e];
  }
  const float inverse = largest > 1e-30f && largest < 1e30f ? kProductMax / largest : 0.0f;
  for (size_t e = 0; e < kBookEntries; ++e) {
    const float scaled = products[e] * inverse;
    const bool fits = scaled >= -kProductMax - 1 && scaled <= kProductMax + 1;
    table[e] = static_cast<int16_t>(fits ? scaled + (scaled >= 0 ? 0.5f : -0.5f) : 0.0f);
  }
  return inverse > 0 ? largest / kProductMax + wrong : wrong;
}

// See CodeKernels::add_products.
inline void add_products(const std::byte* indices, size_t stride, const int16_t* tables, size_t n_cols,
                         const float* scales, float* y, size_t y_stride) {
  for (size_t c = 0; c < n_cols; ++c, tables += kBookEntries, y += y_stride) {
    for (size_t t = 0; t < kCodeBlock; ++t)
      y[t] += scales[c] * static_cast<float>(tables[static_cast<size_t>(indices[t / 16 * stride + t % 16])]);
  }
}

template <size_t kCols>
inline void add_to_bins_of(const std::byte* indices, size_t stride, size_t first, size_t n_tokens,
                           const float* w, size_t w_stride, float* bins, size_t bin_stride) {
  while (first < n_tokens) {
    const std::byte* panel = indices + first / 16 * stride;
    const float* own = w + first / kCodeBlock * w_stride + first % kCodeBlock / 16 * 16;
    for (size_t t = first % 16; t < 16; ++t, ++first) {
      float* bin = bins + static_cast<size_t>(panel[t]);
#pragma GCC unroll 3
      for (size_t c = 0; c < kCols; ++c) bin[c * bin_stride] += own[c * kCodeBlock + t];
    }
  }
}

// See CodeKernels::add_to_bins.
inline void add_to_bins(const std::byte* indices, size_t stride, size_t first, size_t n_blocks,
                        const float* w, size_t w_stride, size_t n_cols, float* bins, size_t bin_stride) {
  const size_t n_tokens = n_blocks * kCodeBlock;
  size_t c = 0;
  for (; c + 3 <= n_cols; c += 3)
    add_to_bins_of<3>(indices, stride, first, n_tokens, w + c * kCodeBlock, w_stride, bins + c * bin_stride,
                      bin_stride);
  for (; c < n_cols; ++c)
    add_to_bins_of<1>(indices, stride, first, n_tokens, w + c * kCodeBlock, w_stride, bins + c * bin_stride,
                      bin_stride);
}

// See CodeKernels::code_path. Viterbi's search: the state is the window, and a state's last 64 >> bits values
// are where it can come from.
inline void code_path(const float* y, const float* weights, const uint8_t* bits, size_t n, int after,
                      const float* levels, uint8_t* codes) {
  alignas(64) float cost[kWindows], next[kWindows];
  uint8_t picks[4 * kMaxGroups][kWindows];  // [size + state]: the upper half of 2 * size states was better
  for (float& c : cost) c = 1e30f;
  cost[after] = 0;
  for (size_t i = 0; i < n; ++i) {
    size_t size = kWindows;
    for (int fold = 0; fold < bits[i]; ++fold) {
      size /= 2;
      for (size_t s = 0; s < size; ++s) {
        const bool upper = cost[s + size] < cost[s];
        picks[i][size + s] = upper ? 1 : 0;
        cost[s] = upper ? cost[s + size] : cost[s];
      }
    }
    const float* table = levels + kWindows * bits[i];
    for (size_t s = 0; s < kWindows; ++s) {
      const float off = y[i] - table[s];
      next[s] = cost[s >> bits[i]] + weights[i] * (off * off);
    }
    std::memcpy(cost, next, sizeof cost);
  }
  size_t state = 0;
  for (size_t s = 1; s < kWindows; ++s) state = cost[s] < cost[state] ? s : state;
  for (size_t i = n; i-- > 0;) {
    codes[i] = static_cast<uint8_t>(state & ((1u << bits[i]) - 1));
    state >>= bits[i];
    for (size_t size = kWindows >> bits[i]; size < kWindows; size *= 2)
      state += picks[i][size + state] * size;
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
