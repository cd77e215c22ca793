// Weighted sums of the values of a q8_0 cache in integers, over a Simd set as all kernels. See
// Kernels::values_q8_0.
#pragma once

#include <algorithm>
#include <cstring>

#include "llm/kernel/kernel.h"
#include "llm/kernel/panel.h"
#include "llm/kernel/tiles.inc.h"

namespace frugal::llm {
namespace {

template <class S>
struct ValueKernels {
  using Vf = typename S::Vf;
  using Vi = typename S::Vi;
  static constexpr size_t kPartBytes = 2 * kMaxValueTokens;  // of a column's weights
  static constexpr size_t kScaleBytes = 2 * kValueBlock;
  static constexpr size_t kAhead = 3;  // blocks of 2 KiB

  // w * scales as integers up to kValueWeightMax, in two parts of 7 bits; returns what one of them is worth.
  static float split(const float* w, size_t w_stride, const float* scales, size_t n_tokens, uint8_t* parts) {
    alignas(64) float rows[kMaxValueTokens];
    Vf most[2] = {S::zero(), S::zero()};
    for (size_t t = 0; t < n_tokens; t += kValueBlock, w += w_stride) {
      each<4>([&]<int i>() {
        const Vf row = S::mul(S::load(w + 16 * i), S::load(scales + t + 16 * i));
        S::store(rows + t + 16 * i, row);
        most[i % 2] = S::max(row, most[i % 2]);
      });
    }
    const float largest = S::max_lanes(S::max(most[0], most[1]));
    const Vf by = S::splat(largest > 1e-30f ? static_cast<float>(kValueWeightMax) / largest : 0.0f);
    for (size_t t = 0; t < n_tokens; t += kValueBlock) {
      Vf scaled[4];
      each<4>([&]<int i>() { scaled[i] = S::mul(S::load(rows + t + 16 * i), by); });
      S::split_weights(scaled, parts + t, parts + kMaxValueTokens + t);
    }
    return largest * (1.0f / static_cast<float>(kValueWeightMax));
  }

  // 32 channels of kCols columns. `ahead(i)`: what to ask for with block i.
  template <int kCols, typename Ahead>
  FRUGAL_FLATTEN static void tile(const std::byte* values, size_t n_tokens, Ahead ahead, const uint8_t* parts,
                                  const float* worth, float* y, size_t y_stride) {
    Vi low[2 * kCols], high[2 * kCols];
    each<2 * kCols>([&]<int i>() { low[i] = high[i] = S::splat_int(0); });
    for (size_t t = 0; t < n_tokens; t += kValueBlock, values += kValueBlockBytes, parts += kValueBlock) {
      const std::byte* at = values + kScaleBytes;
      const std::byte* next = ahead(t / kValueBlock);
      each<static_cast<int>(kValueBlock / 4)>([&]<int kQuad>() {
        __builtin_prefetch(next + kQuad * 136);
        __builtin_prefetch(next + kQuad * 136 + 68);
        const auto first = S::load_bytes(at + kQuad * 128), second = S::load_bytes(at + kQuad * 128 + 64);
        each<kCols>([&]<int c>() {
          const uint8_t* four = parts + c * kPartBytes + 4 * S::split_place(kQuad);
          low[2 * c] = S::dot_small(low[2 * c], first, four);
          low[2 * c + 1] = S::dot_small(low[2 * c + 1], second, four);
          high[2 * c] = S::dot_small(high[2 * c], first, four + kMaxValueTokens);
          high[2 * c + 1] = S::dot_small(high[2 * c + 1], second, four + kMaxValueTokens);
        });
      });
    }
    each<kCols>([&]<int c>() {
      each<2>([&]<int panel>() {
        float* to = y + c * y_stride + 16 * panel;
        const Vi sum = S::add_int(low[2 * c + panel], S::template shift_left<7>(high[2 * c + panel]));
        S::store(to, S::fma(S::to_float(sum), S::splat(worth[c]), S::load(to)));
      });
    });
  }

  static void add(const std::byte* block, size_t n_groups, size_t n_tokens, const float* w, size_t w_stride,
                  size_t n_cols, float* y, size_t y_stride, const std::byte* next) {
    const size_t n_blocks = (n_tokens + kValueBlock - 1) / kValueBlock;
    alignas(64) float scales[kMaxValueTokens];
    alignas(64) uint8_t parts[S::kValueTile * kPartBytes];
    float worth[S::kValueTile];
    for (size_t group = 0; group < n_groups; ++group, y += 32) {
      const std::byte* values = block + group * kValueGroupBytes;
      for (size_t t = 0; t < n_blocks * kValueBlock; t += 16) {
        const std::byte* halves = values + t / kValueBlock * kValueBlockBytes + t % kValueBlock * 2;
        S::store(scales + t, S::load_f16(reinterpret_cast<const uint16_t*>(halves)));
      }
      // What is not a token yet weighs 0, and may have any scale.
      std::fill(scales + n_tokens, scales + n_blocks * kValueBlock, 0.0f);
      for_tiles<S::kValueTile>(n_cols, [&]<int kCols>(size_t col) {
        // What is read kAhead blocks later, unless the first columns asked for it.
        const auto ahead = [&](size_t i) {
          const size_t later = group * n_blocks + i + kAhead, n = n_groups * n_blocks;
          if (col > 0) return values;
          if (later >= n) return next + (later - n) * kValueBlockBytes;
          return block + later / n_blocks * kValueGroupBytes + later % n_blocks * kValueBlockBytes;
        };
        each<kCols>([&]<int c>() {
          worth[c] = split(w + (col + c) * kValueBlock, w_stride, scales, n_tokens, parts + c * kPartBytes);
        });
        tile<kCols>(values, n_tokens, ahead, parts, worth, y + col * y_stride, y_stride);
      });
    }
  }
};

}  // namespace
}  // namespace frugal::llm
