// What every set of code kernels compiles for itself from the same plain loops, 16 floats to a step: no
// product and sum is one instruction, and so all sets give the same bits.
#pragma once

#include <cstring>

#include "llm/kernel/codes.h"

namespace frugal::llm {
namespace {

// Half away from 0; nothing that fits no 16 bits.
inline int16_t nearest_s16(float x) {
  return x >= -32700.0f && x <= 32700.0f ? static_cast<int16_t>(x + (x >= 0 ? 0.5f : -0.5f)) : int16_t{0};
}

// See CodeKernels::turn_factors.
inline void turn_factors(const float* factors, const float* inverse, const float* middles, size_t n_pairs,
                         size_t n_fast, size_t n_full, const float* powers, int16_t* x) {
  constexpr size_t kEach = kTurnCols;
  const float *sines = factors + n_pairs * kEach, *turned_sines = middles + n_pairs * kEach;
  const auto put = [&](size_t row, size_t lane, float value) {
    x[row / 2 * 2 * kTurnLanes + lane * 2 + row % 2] = nearest_s16(value * inverse[lane % kEach]);
  };
  for (size_t lane = 0; lane < kTurnLanes; ++lane) {
    float terms[kTurnTerms] = {};
    for (size_t pair = 0; pair < n_pairs; ++pair) {
      const size_t own = pair * kEach + lane % kEach, of = pair * kEach + lane / kEach;
      const float a = factors[own] * middles[of] + sines[own] * turned_sines[of];
      const float b = sines[own] * middles[of] - factors[own] * turned_sines[of];
      if (pair < n_fast) {
        put(pair, lane, a);
        put(n_fast + kEvenRows + pair, lane, b);
        continue;
      }
      for (size_t term = 0; term < (pair < n_full ? kTurnTerms : 2); ++term)
        terms[term] += (term % 2 == 0 ? a : b) * powers[pair * kTurnTerms + term];
    }
    for (size_t term = 0; term < kTurnTerms; ++term)
      put((term % 2 == 0 ? n_fast : 2 * n_fast + kEvenRows) + term / 2, lane, terms[term]);
    put(n_fast + kEvenTerms, lane, 0);
  }
}

// See CodeKernels::turned_scores.
inline void turned_scores(const int16_t* x, size_t n_cols, const float* scales, const int16_t* even,
                          size_t n_even, const int16_t* odd, size_t n_odd, float* y) {
  constexpr size_t kHalf = kCodeBlock / 2;
  const auto sums = [](const int16_t* factors, const int16_t* table, size_t n_rows, uint32_t* out) {
    for (size_t i = 0; i < kHalf; i += 16, out += 16) {
      for (size_t lane = 0; lane < 16; ++lane) out[lane] = 0;
      for (size_t row = 0; row < n_rows; row += 2, table += 32) {
        const int16_t* two = factors + row * kTurnLanes;
        for (size_t lane = 0; lane < 16; ++lane)
          out[lane] += static_cast<uint32_t>(two[0] * table[2 * lane] + two[1] * table[2 * lane + 1]);
      }
    }
  };
  const auto score = [](float scale, uint32_t sum) {
    return scale * static_cast<float>(static_cast<int32_t>(sum));
  };
  alignas(64) uint32_t evens[kHalf], odds[kHalf];
  for (size_t c = 0; c < n_cols; ++c, x += 2, y += kCodeBlock) {
    sums(x, even, n_even, evens);
    sums(x + n_even * kTurnLanes, odd, n_odd, odds);
    for (size_t i = 0; i < kHalf; ++i) y[kHalf + i] = score(scales[c], evens[i] + odds[i]);
    for (size_t i = 0; i < kHalf; ++i) y[kHalf - 1 - i] = score(scales[c], evens[i] - odds[i]);
  }
}

// See CodeKernels::quantize_products. The integers lie in the order of the entries.
inline float quantize_products(const float* products, int16_t* tables, size_t col) {
  int16_t* table = tables + col * kBookEntries;
  float largest = 0, wrong = 0;  // `wrong` is 0 or NaN
  for (size_t e = 0; e < kBookEntries; ++e) {
    const float size = products[e] < 0 ? -products[e] : products[e];
    largest = size > largest ? size : largest;
    wrong += products[e] - products[e];
  }
  const float inverse = largest > 1e-30f && largest < 1e30f ? kProductMax / largest : 0.0f;
  for (size_t e = 0; e < kBookEntries; ++e) table[e] = nearest_s16(products[e] * inverse);
  return inverse > 0 ? largest / kProductMax + wrong : wrong;
}

// See CodeKernels::add_products.
inline void add_products(const std::byte* indices, size_t stride, const int16_t* tables, size_t first,
                         size_t n_cols, const float* scales, float* y, size_t y_stride) {
  tables += first * kBookEntries;
  for (size_t c = 0; c < n_cols; ++c, tables += kBookEntries, y += y_stride) {
    for (size_t t = 0; t < kCodeBlock; ++t)
      y[t] += scales[c] * static_cast<float>(tables[static_cast<size_t>(indices[t / 16 * stride + t % 16])]);
  }
}

// See CodeKernels::add_to_bins.
inline void add_to_bins(const std::byte* indices, size_t stride, size_t first, size_t n_blocks,
                        const float* const* w, size_t w_stride, size_t n_cols, float* bins) {
  for (; first < n_blocks * kCodeBlock; ++first) {
    const auto entry = static_cast<size_t>(indices[first / 16 * stride + first % 16]);
    const size_t at = first / kCodeBlock * w_stride + first % kCodeBlock;
    for (size_t c = 0; c < n_cols; ++c)
      bins[(c / kBinCols * kBookEntries + entry) * kBinCols + c % kBinCols] += w[c][at];
  }
}

// See CodeKernels::spread_bins.
inline void spread_bins(const float* bins, size_t n_cols, float* const* to) {
  for (size_t c = 0; c < n_cols; ++c) {
    const float* from = bins + c / kBinCols * kBookEntries * kBinCols + c % kBinCols;
    for (size_t e = 0; e < kBookEntries; ++e) to[c][e] = from[e * kBinCols];
  }
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

// See CodeKernels::code_paths.
inline void code_paths(const float* y, const float* weights, const uint8_t* bits, size_t n, const int* after,
                       const float* levels, uint8_t* codes) {
  for (size_t t = 0; t < kPathTokens; ++t) {
    float own[4 * kMaxGroups] = {};
    uint8_t found[4 * kMaxGroups];
    for (size_t i = 0; i < n; ++i) own[i] = y[i * kPathTokens + t];
    code_path(own, weights, bits, n, after[t], levels, found);
    for (size_t i = 0; i < n; ++i) codes[i * kPathTokens + t] = found[i];
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
