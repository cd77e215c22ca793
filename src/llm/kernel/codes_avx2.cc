// Compiled with -mavx2. Two products of a level (at most 126) and a byte of at most 127, or of a level less
// its centre (at most 63) and a byte of at most 254, are at most 32004 in size and fit a 16-bit lane.
#include <immintrin.h>

#include <cstring>
#include <type_traits>

#include "llm/kernel/codes.inc.h"

namespace frugal::llm {

extern const CodeKernels kAvx2CodeKernels;

namespace {

#define FRUGAL_INLINE inline __attribute__((always_inline))

constexpr size_t kPanels = kCodeBlock / 16;
constexpr int kCentre = kLevelMax / 2;  // levels of values count from it, so that two products fit 16 bits

inline __m256i load32(const void* at) { return _mm256_loadu_si256(static_cast<const __m256i*>(at)); }
inline __m128i load16(const void* at) { return _mm_loadu_si128(static_cast<const __m128i*>(at)); }
inline void store32(void* at, __m256i x) { _mm256_storeu_si256(static_cast<__m256i*>(at), x); }
// Bytes of b where bit 7 of `where` is set, else of a. Written out, as GCC compares a mask used twice with 0
// first.
FRUGAL_INLINE __m256i blended(__m256i a, __m256i b, __m256i where) {
  __m256i out;
  asm("vpblendvb %3, %2, %1, %0" : "=x"(out) : "x"(a), "xm"(b), "x"(where));
  return out;
}
inline __m256i twice(const void* at) { return _mm256_broadcastsi128_si256(load16(at)); }

// The streams of n panels as rows of 32 bits, 64 bytes of 16 tokens each; the last may not be whole, and
// after it all bits are 0.
template <size_t kMost>
struct Rows {
  // A row of bits: those of panel p at at + p * pitch.
  struct Row {
    const std::byte* at;
    size_t pitch;
  };
  alignas(32) std::byte last[32 + kMost * 64 + 32];  // some that may be read before and after
  const std::byte* panels;
  size_t stride, n_whole;
  bool has_last;

  Rows(const std::byte* first, size_t panel_stride, int n_bits, size_t n)
      : panels(first),
        stride(panel_stride),
        n_whole(static_cast<size_t>(n_bits) / 32),
        has_last(n_bits % 32 != 0) {
    const auto bytes = [](const std::byte* at) {
      return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at)));
    };
    const int left = n_bits / 8 % 4;
    for (size_t half = 0; left > 0 && half < 2 * n; ++half) {
      const std::byte* at = panels + half / 2 * stride + 64 * n_whole;
      __m256i row = _mm256_setzero_si256();
      if (left >= 2) row = _mm256_cvtepu16_epi32(load16(at + half % 2 * 16));
      if (left == 3) row = _mm256_or_si256(row, _mm256_slli_epi32(bytes(at + 32 + half % 2 * 8), 16));
      if (left == 1) row = bytes(at + half % 2 * 8);
      store32(last + 32 + 32 * half, row);
    }
  }
  Row operator[](size_t word) const {
    alignas(32) static constexpr std::byte kZero[128] = {};
    return word < n_whole                ? Row{panels + 64 * word, stride}
           : word == n_whole && has_last ? Row{last + 32, 64}
                                         : Row{kZero + 32, 0};
  }
};

// In which order the levels of four tokens stand: those of a token side by side, as keys are multiplied with
// a query, or those of a coefficient, as values are with their tokens' weights.
enum class Order { kByToken, kByCoefficient };

// How windows come to be bytes: of 32 bits a token, the two bytes in which a window lies become 16 bits, and
// a product moves it down to the low byte, or up to the high one of its neighbour's. By bits of a code, and
// of what stands in the first byte before the first.
struct Spread {
  alignas(16) uint8_t from[2][16] = {};  // of even and odd bytes
  alignas(16) uint16_t times[2][8] = {};
};
struct Spreads {
  Spread of[2][kTableBits + 1][8];
  uint32_t next[4];  // bytes of a row's next one, when `off` are left out of the row
  constexpr Spreads() : of(), next() {
    for (unsigned off = 1; off < 4; ++off) next[off] = 0xffffffffu << (32 - 8 * off);
    for (unsigned order = 0; order < 2; ++order) {
      for (unsigned bits = 1; bits <= kTableBits; ++bits) {
        for (unsigned before = 0; before < 8; ++before) {
          for (unsigned i = 0; i < 16; ++i) {
            const unsigned token = order == 0 ? i / 4 : i % 4, code = order == 0 ? i % 4 : i / 4;
            const unsigned at = before + code * bits, byte = 4 * token + at / 8;
            Spread& spread = of[order][bits][before];
            uint8_t* from = spread.from[i % 2] + i / 2 * 2;
            // The high half of a product with 2^(16 - n) is a number over 2^n, 0 < n.
            const bool upper = i % 2 == 0 && at % 8 == 0;
            from[upper ? 1 : 0] = static_cast<uint8_t>(byte);
            from[upper ? 0 : 1] = static_cast<uint8_t>(upper || byte == 15 ? byte : byte + 1);
            spread.times[i % 2][i / 2] = static_cast<uint16_t>(i % 2 == 1 ? 1u << (8 - at % 8)
                                                               : upper    ? 1u << 8
                                                                          : 1u << (16 - at % 8));
          }
        }
      }
    }
  }
};
constexpr Spreads kSpreads;

// Levels of a group of windows, 64 bytes a panel.
template <Order kOrder, bool kAcross, size_t kMost>
FRUGAL_INLINE void unpack_windows(const Rows<kMost>& rows, size_t n_panels, const CodeGroup& group,
                                  const uint8_t* tables, int centre, std::byte* levels,
                                  size_t levels_stride) {
  const size_t before = group.at % 32, off = before / 8;
  auto low = rows[group.at / 32], high = rows[group.at / 32 + 1];
  low.at += off;
  high.at -= 4 - off;
  const __m256i next = _mm256_set1_epi32(static_cast<int>(kSpreads.next[off]));
  const Spread& spread = kSpreads.of[static_cast<size_t>(kOrder)][group.bits][before % 8];
  const __m256i from[2] = {twice(spread.from[0]), twice(spread.from[1])};
  const __m256i times[2] = {twice(spread.times[0]), twice(spread.times[1])};
  const __m256i less = _mm256_set1_epi8(static_cast<char>(centre));
  const __m256i even = _mm256_set1_epi16(kWindows - 1), odd = _mm256_set1_epi16((kWindows - 1) << 8);
  __m256i table[4];  // bits 4 and 5 choose among four tables of 16
  for (size_t i = 0; i < 4; ++i)
    table[i] = _mm256_sub_epi8(twice(tables + kWindows * group.bits + 16 * i), less);
  for (size_t p = 0; p < n_panels; ++p, levels += levels_stride, low.at += low.pitch, high.at += high.pitch) {
#pragma GCC unroll 2
    for (size_t half = 0; half < 2; ++half) {
      __m256i row = load32(low.at + 32 * half);
      if constexpr (kAcross) row = blended(row, load32(high.at + 32 * half), next);
      const __m256i down = _mm256_mulhi_epu16(_mm256_shuffle_epi8(row, from[0]), times[0]);
      const __m256i up = _mm256_mullo_epi16(_mm256_shuffle_epi8(row, from[1]), times[1]);
      const __m256i w = _mm256_or_si256(_mm256_and_si256(down, even), _mm256_and_si256(up, odd));
      // Sums instead of shifts, which would wait for the ports that shuffle.
      const __m256i second = _mm256_add_epi8(w, w), fifth = _mm256_add_epi8(second, second),
                    fourth = _mm256_add_epi8(fifth, fifth);
      const __m256i lower =
          blended(_mm256_shuffle_epi8(table[0], w), _mm256_shuffle_epi8(table[1], w), fourth);
      const __m256i upper =
          blended(_mm256_shuffle_epi8(table[2], w), _mm256_shuffle_epi8(table[3], w), fourth);
      store32(levels + 32 * half, blended(lower, upper, fifth));
    }
  }
}

// Of a group whose codes are levels.
template <Order kOrder, size_t kMost>
FRUGAL_INLINE void unpack_levels(const Rows<kMost>& rows, size_t n_panels, const CodeGroup& group, int centre,
                                 std::byte* levels, size_t levels_stride) {
  const __m256i turn = _mm256_set_epi8(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0, 15, 11, 7, 3, 14,
                                       10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
  auto low = rows[group.at / 32], high = rows[group.at / 32 + 1];
  const __m128i down = _mm_cvtsi32_si128(group.at % 32), up = _mm_cvtsi32_si128(32 - group.at % 32);
  const __m256i less = _mm256_set1_epi8(static_cast<char>(centre));
  for (size_t p = 0; p < n_panels; ++p, levels += levels_stride, low.at += low.pitch, high.at += high.pitch) {
    for (size_t half = 0; half < 2; ++half) {
      __m256i row = _mm256_or_si256(_mm256_srl_epi32(load32(low.at + 32 * half), down),
                                    _mm256_sll_epi32(load32(high.at + 32 * half), up));
      if (kOrder == Order::kByCoefficient) row = _mm256_shuffle_epi8(row, turn);
      store32(levels + 32 * half, _mm256_sub_epi8(row, less));
    }
  }
}

// Of group k of a layout.
template <Order kOrder, size_t kMost>
FRUGAL_INLINE void unpack(const Rows<kMost>& rows, size_t n_panels, const CodeLayout& layout, size_t k,
                          const uint8_t* tables, int centre, std::byte* levels, size_t levels_stride) {
  const CodeGroup& group = layout.groups[k];
  if (k < layout.n_within) {
    unpack_windows<kOrder, false>(rows, n_panels, group, tables, centre, levels, levels_stride);
  } else if (k < layout.n_windows) {
    unpack_windows<kOrder, true>(rows, n_panels, group, tables, centre, levels, levels_stride);
  } else {
    unpack_levels<kOrder>(rows, n_panels, group, centre, levels, levels_stride);
  }
}

// Of one panel; levels [read group][kPanels][64].
template <int kCols>
void dot_keys_tile(const std::byte* levels, const CodeLayout& layout, const int8_t* x, const int32_t* zeros,
                   const float* scales, float* y, size_t y_stride) {
  __m256i sums[kCols][2];
#pragma GCC unroll 4
  for (auto& of : sums) of[0] = of[1] = _mm256_setzero_si256();
  const __m256i ones = _mm256_set1_epi16(1);
  const size_t x_stride = 4 * layout.n_groups;
  for (size_t k = 0; k < layout.n_read; ++k, levels += kPanels * 64) {
    const __m256i of[2] = {load32(levels), load32(levels + 32)};
    const int8_t* own = x + 4 * static_cast<size_t>(layout.groups[k].number);
#pragma GCC unroll 4
    for (int c = 0; c < kCols; ++c, own += x_stride) {
      int32_t four;
      std::memcpy(&four, own, 4);
      const __m256i xs = _mm256_set1_epi32(four);
#pragma GCC unroll 2
      for (size_t half = 0; half < 2; ++half) {
        const __m256i pairs = _mm256_maddubs_epi16(of[half], xs);
        sums[c][half] = _mm256_add_epi32(sums[c][half], _mm256_madd_epi16(pairs, ones));
      }
    }
  }
#pragma GCC unroll 4
  for (int c = 0; c < kCols; ++c) {
    const __m256i zero = _mm256_set1_epi32(zeros[c]);
    const __m256 scale = _mm256_set1_ps(scales[c]);
#pragma GCC unroll 2
    for (size_t half = 0; half < 2; ++half) {
      float* to = y + static_cast<size_t>(c) * y_stride + 8 * half;
      const __m256 dot = _mm256_cvtepi32_ps(_mm256_sub_epi32(sums[c][half], zero));
      _mm256_storeu_ps(to, _mm256_add_ps(_mm256_loadu_ps(to), _mm256_mul_ps(scale, dot)));
    }
  }
}

void dot_keys(const std::byte* panels, size_t stride, const CodeLayout& layout, const uint8_t* tables,
              const int8_t* x, size_t n_cols, const int32_t* zeros, const float* scales, float* y,
              size_t y_stride) {
  alignas(32) std::byte levels[kMaxGroups * kPanels * 64];
  const Rows<kPanels> rows(panels, stride, layout.n_bits, kPanels);
  for (size_t k = 0; k < layout.n_read; ++k)
    unpack<Order::kByToken>(rows, kPanels, layout, k, tables, 0, levels + k * kPanels * 64, 64);
  for (size_t c = 0; c < n_cols;) {
    const auto tile = [&](auto kernel, size_t n) {
      for (size_t p = 0; p < kPanels; ++p) {
        kernel(levels + 64 * p, layout, x + c * 4 * layout.n_groups, zeros + c, scales + c,
               y + c * y_stride + 16 * p, y_stride);
      }
      c += n;
    };
    if (n_cols - c >= 3) {
      tile(dot_keys_tile<3>, 3);
    } else if (n_cols - c == 2) {
      tile(dot_keys_tile<2>, 2);
    } else {
      tile(dot_keys_tile<1>, 1);
    }
  }
}

float quantize_weights(const float* w, size_t w_stride, const float* scales, size_t n_blocks,
                       const float* dither, uint8_t* q, int32_t* sum) {
  __m256 row[8 * kMaxValueBlocks], most = _mm256_setzero_ps(), wrong = _mm256_setzero_ps();
  for (size_t i = 0; i < 8 * n_blocks; ++i) {
    row[i] =
        _mm256_mul_ps(_mm256_loadu_ps(w + i / 8 * w_stride + i % 8 * 8), _mm256_loadu_ps(scales + 8 * i));
    most = _mm256_max_ps(row[i], most);  // of a NaN: the second
    wrong = _mm256_add_ps(wrong, _mm256_sub_ps(row[i], row[i]));
  }
  float all[8], bad[8], largest = 0, nothing = 0;
  _mm256_storeu_ps(all, most);
  _mm256_storeu_ps(bad, wrong);
  for (int i = 0; i < 8; ++i) {
    largest = largest > all[i] ? largest : all[i];
    nothing += bad[i];
  }
  const float inverse = largest > 1e-30f && largest < 1e30f ? kWeightMax / largest : 0.0f;
  const __m256 by = _mm256_set1_ps(inverse);
  __m256i total = _mm256_setzero_si256();
  for (size_t i = 0; i < 8 * n_blocks; i += 4) {
    __m256i of[4];
    for (size_t k = 0; k < 4; ++k) {
      const __m256 scaled = _mm256_mul_ps(row[i + k], by), own = _mm256_load_ps(dither + 8 * (i + k));
      of[k] = _mm256_and_si256(_mm256_cvttps_epi32(_mm256_add_ps(scaled, own)), _mm256_set1_epi32(255));
      total = _mm256_add_epi32(total, of[k]);
    }
    const __m256i bytes =
        _mm256_packus_epi16(_mm256_packs_epi32(of[0], of[1]), _mm256_packs_epi32(of[2], of[3]));
    const __m256i order = _mm256_set_epi32(7, 3, 6, 2, 5, 1, 4, 0);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(q + 8 * i), _mm256_permutevar8x32_epi32(bytes, order));
  }
  alignas(32) int32_t totals[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(totals), total);
  uint32_t all_tokens = 0;  // of what is no number: anything
  for (const int32_t t : totals) all_tokens += static_cast<uint32_t>(t);
  *sum = static_cast<int32_t>(all_tokens);
  return inverse > 0 ? largest / kWeightMax + nothing : nothing;
}

constexpr size_t kTogether = 2;  // groups that are summed together

// y[c] of the coefficients of n <= kTogether groups from k on. levels [panel][kTogether][64], less kCentre;
// w [panel][64] of each column; `zeros` what is to be added to a sum.
template <int kCols>
void dot_values_tile(const CodeLayout& layout, size_t k, size_t n, size_t n_panels, const std::byte* levels,
                     const float* level_scales, const std::byte* w, const int32_t* zeros, const float* scales,
                     float* const* y) {
  __m256i sums[kCols][kTogether];
#pragma GCC unroll 4
  for (auto& of : sums) of[0] = of[1] = _mm256_setzero_si256();
  const __m256i ones = _mm256_set1_epi16(1);
  const size_t w_stride = 64 * n_panels;
  for (size_t p = 0; p < n_panels; ++p, w += 64, levels += 64 * kTogether) {
#pragma GCC unroll 2
    for (size_t half = 0; half < 64; half += 32) {
#pragma GCC unroll 4
      for (int c = 0; c < kCols; ++c) {
        const __m256i weights = load32(w + static_cast<size_t>(c) * w_stride + half);
#pragma GCC unroll 2
        for (size_t i = 0; i < kTogether; ++i) {
          const __m256i pairs = _mm256_maddubs_epi16(weights, load32(levels + 64 * i + half));
          sums[c][i] = _mm256_add_epi32(sums[c][i], _mm256_madd_epi16(pairs, ones));
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int c = 0; c < kCols; ++c) {
    if (scales[c] == 0) continue;
#pragma GCC unroll 2
    for (size_t i = 0; i < kTogether; ++i) {
      if (i >= n) break;
      const CodeGroup& group = layout.groups[k + i];
      const __m128i dots =
          _mm_add_epi32(_mm256_castsi256_si128(sums[c][i]), _mm256_extracti128_si256(sums[c][i], 1));
      const __m128 value = _mm_cvtepi32_ps(_mm_add_epi32(dots, _mm_set1_epi32(zeros[c])));
      float* to = y[c] + 4 * static_cast<size_t>(group.number);
      const __m128 scale = _mm_set1_ps(scales[c] * level_scales[group.bits]);
      _mm_storeu_ps(to, _mm_add_ps(_mm_loadu_ps(to), _mm_mul_ps(scale, value)));
    }
  }
}

void dot_values(const std::byte* panels, size_t stride, size_t n_blocks, const CodeLayout& layout,
                const uint8_t* tables, const float* level_scales, const uint8_t* w, size_t n_cols,
                const int32_t* zeros, const float* scales, float* const* y) {
  constexpr size_t kMost = kMaxValueBlocks * kPanels;
  alignas(32) std::byte levels[kMost * kTogether * 64], weights[kMaxValueCols * kMost * 64];
  const size_t n_panels = n_blocks * kPanels, n_tokens = n_blocks * kCodeBlock;
  const __m256i fours[2] = {_mm256_set_epi32(1, 1, 1, 1, 0, 0, 0, 0),
                            _mm256_set_epi32(3, 3, 3, 3, 2, 2, 2, 2)};
  int32_t centred[kMaxValueCols];  // what makes a sum of centred levels that of levels less `zeros`
  for (size_t c = 0; c < n_cols; ++c) {
    __m256i total = _mm256_setzero_si256();
    for (size_t i = c * n_panels; i < (c + 1) * n_panels; ++i) {
      const __m256i tokens = twice(w + 16 * i);
      store32(weights + 64 * i, _mm256_permutevar8x32_epi32(tokens, fours[0]));
      store32(weights + 64 * i + 32, _mm256_permutevar8x32_epi32(tokens, fours[1]));
      total = _mm256_add_epi32(total, _mm256_sad_epu8(tokens, _mm256_setzero_si256()));
    }
    const uint32_t sum = static_cast<uint32_t>(_mm256_extract_epi32(total, 0)) +
                         static_cast<uint32_t>(_mm256_extract_epi32(total, 2));
    centred[c] = static_cast<int32_t>(sum * kCentre - static_cast<uint32_t>(zeros[c]));
  }
  const Rows<kMost> rows(panels, stride, layout.n_bits, n_panels);
  for (size_t k = 0; k < layout.n_read; k += kTogether) {
    const size_t n = layout.n_read - k < kTogether ? layout.n_read - k : kTogether;
    for (size_t i = 0; i < kTogether; ++i) {
      unpack<Order::kByCoefficient>(rows, n_panels, layout, k + (i < n ? i : 0), tables, kCentre,
                                    levels + 64 * i, 64 * kTogether);
    }
    for (size_t c = 0; c < n_cols;) {
      const auto tile = [&](auto kernel, size_t columns) {
        kernel(layout, k, n, n_panels, levels, level_scales, weights + c * 4 * n_tokens, centred + c,
               scales + c, y + c);
        c += columns;
      };
      if (n_cols - c >= 3) {
        tile(dot_values_tile<3>, 3);
      } else if (n_cols - c == 2) {
        tile(dot_values_tile<2>, 2);
      } else {
        tile(dot_values_tile<1>, 1);
      }
    }
  }
}

// Half away from 0; of NaN and what fits no 32 bits the lowest.
FRUGAL_INLINE __m256i nearest_s32(__m256 x) {
  const __m256 sign = _mm256_and_ps(x, _mm256_set1_ps(-0.0f));
  return _mm256_cvttps_epi32(_mm256_add_ps(x, _mm256_or_ps(sign, _mm256_set1_ps(0.5f))));
}

// Two blocks of a chunk at a time, four columns each.
void turn_factors_256(const float* factors, const float* inverse, const float* middles, size_t n_pairs,
                      size_t n_fast, size_t n_full, const float* powers, int16_t* x) {
  const auto columns = [](const float* at) __attribute__((always_inline)) {
    return _mm256_broadcast_ps(reinterpret_cast<const __m128*>(at));
  };
  const __m256 by = columns(inverse);
  for (size_t two = 0; two < 2; ++two) {
    const auto blocks = [&](const float* at) __attribute__((always_inline)) {
      return _mm256_set_m128(_mm_set1_ps(at[2 * two + 1]), _mm_set1_ps(at[2 * two]));
    };
    const auto put = [&](size_t row, __m256 first, __m256 second) __attribute__((always_inline)) {
      const __m256i low = nearest_s32(_mm256_mul_ps(first, by)),
                    high = nearest_s32(_mm256_mul_ps(second, by));
      store32(x + row * kTurnLanes + 16 * two, _mm256_blend_epi16(low, _mm256_slli_epi32(high, 16), 0xaa));
    };
    const auto turn = [&](size_t pair, __m256 * a, __m256 * b) __attribute__((always_inline)) {
      const float *own = factors + pair * kTurnCols, *of = middles + pair * kTurnCols;
      const __m256 c = columns(own), s = columns(own + n_pairs * kTurnCols);
      const __m256 at = blocks(of), across = blocks(of + n_pairs * kTurnCols);
      *a = _mm256_add_ps(_mm256_mul_ps(c, at), _mm256_mul_ps(s, across));
      *b = _mm256_sub_ps(_mm256_mul_ps(s, at), _mm256_mul_ps(c, across));
    };
    const size_t odd = n_fast + kEvenRows;
    for (size_t pair = 0; pair < n_fast; pair += 2) {
      __m256 a[2], b[2];
      turn(pair, &a[0], &b[0]);
      turn(pair + 1, &a[1], &b[1]);
      put(pair, a[0], a[1]);
      put(odd + pair, b[0], b[1]);
    }
    __m256 terms[kTurnTerms];
    for (__m256& term : terms) term = _mm256_setzero_ps();
    for (size_t pair = n_fast; pair < n_pairs; ++pair) {
      __m256 of[2];
      turn(pair, &of[0], &of[1]);
      const float* power = powers + pair * kTurnTerms;
      const auto add = [&](size_t term) __attribute__((always_inline)) {
        terms[term] = _mm256_add_ps(terms[term], _mm256_mul_ps(of[term % 2], _mm256_set1_ps(power[term])));
      };
      add(0);
      add(1);
      if (pair >= n_full) continue;
      add(2);
      add(3);
      add(4);
    }
    put(n_fast, terms[0], terms[2]);
    put(n_fast + 2, terms[4], _mm256_setzero_ps());
    put(odd + n_fast, terms[1], terms[3]);
  }
}

// Adds the sums of kCols columns over the rows of a table, for 16 of its offsets.
template <int kCols>
FRUGAL_INLINE void sum_rows(const int16_t* x, const int16_t* table, size_t n_rows, __m256i sums[kCols][2]) {
#pragma GCC unroll 4
  for (int c = 0; c < kCols; ++c) sums[c][0] = sums[c][1] = _mm256_setzero_si256();
  for (size_t row = 0; row < n_rows; row += 2) {
    const __m256i near = load32(table + 16 * row), far = load32(table + 16 * row + 16);
#pragma GCC unroll 4
    for (int c = 0; c < kCols; ++c) {
      int32_t two;
      std::memcpy(&two, x + row * kTurnLanes + 2 * c, 4);
      const __m256i factors = _mm256_set1_epi32(two);
      sums[c][0] = _mm256_add_epi32(sums[c][0], _mm256_madd_epi16(factors, near));
      sums[c][1] = _mm256_add_epi32(sums[c][1], _mm256_madd_epi16(factors, far));
    }
  }
}

template <int kCols>
void turned_tile(const int16_t* x, const float* scales, const int16_t* even, size_t n_even,
                 const int16_t* odd, size_t n_odd, float* y) {
  const __m256i mirror = _mm256_set_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  for (size_t half = 0; half < 2; ++half) {
    __m256i e[kCols][2], o[kCols][2];
    sum_rows<kCols>(x, even + 16 * half * n_even, n_even, e);
    sum_rows<kCols>(x + n_even * kTurnLanes, odd + 16 * half * n_odd, n_odd, o);
#pragma GCC unroll 4
    for (int c = 0; c < kCols; ++c) {
      const __m256 scale = _mm256_set1_ps(scales[c]);
      float* after = y + static_cast<size_t>(c) * kCodeBlock + kCodeBlock / 2 + 16 * half;
      float* before = y + static_cast<size_t>(c) * kCodeBlock + kCodeBlock / 2 - 16 * half - 8;
      const auto put = [&](float* at, __m256i sum) __attribute__((always_inline)) {
        _mm256_storeu_ps(at, _mm256_mul_ps(scale, _mm256_cvtepi32_ps(sum)));
      };
#pragma GCC unroll 2
      for (size_t i = 0; i < 2; ++i) {
        put(after + 8 * i, _mm256_add_epi32(e[c][i], o[c][i]));
        put(before - 8 * i, _mm256_permutevar8x32_epi32(_mm256_sub_epi32(e[c][i], o[c][i]), mirror));
      }
    }
  }
}

void turned_scores_256(const int16_t* x, size_t n_cols, const float* scales, const int16_t* even,
                       size_t n_even, const int16_t* odd, size_t n_odd, float* y) {
  size_t c = 0;
  const auto tile = [&](auto kernel, size_t n) {
    kernel(x + 2 * c, scales + c, even, n_even, odd, n_odd, y + c * kCodeBlock);
    c += n;
  };
  while (n_cols - c >= 3) tile(turned_tile<3>, 3);
  if (n_cols - c == 2) tile(turned_tile<2>, 2);
  if (n_cols - c == 1) tile(turned_tile<1>, 1);
}

// Those of four queries lie side by side, entry after entry.
float quantize_products_256(const float* products, int16_t* tables, size_t col) {
  int16_t* table = tables + col / kBinCols * kBinCols * kBookEntries + col % kBinCols;
  __m256 most = _mm256_setzero_ps(), wrong = _mm256_setzero_ps();
  for (size_t i = 0; i < kBookEntries; i += 8) {
    const __m256 x = _mm256_loadu_ps(products + i);
    most = _mm256_max_ps(_mm256_andnot_ps(_mm256_set1_ps(-0.0f), x), most);  // of a NaN: the second
    wrong = _mm256_add_ps(wrong, _mm256_sub_ps(x, x));
  }
  float all[8], bad[8], largest = 0, nothing = 0;
  _mm256_storeu_ps(all, most);
  _mm256_storeu_ps(bad, wrong);
  for (int i = 0; i < 8; ++i) {
    largest = largest > all[i] ? largest : all[i];
    nothing += bad[i];
  }
  const float inverse = largest > 1e-30f && largest < 1e30f ? kProductMax / largest : 0.0f;
  const __m256 by = _mm256_set1_ps(inverse);
  for (size_t i = 0; i < kBookEntries; i += 16) {
    const __m256i low = nearest_s32(_mm256_mul_ps(_mm256_loadu_ps(products + i), by)),
                  high = nearest_s32(_mm256_mul_ps(_mm256_loadu_ps(products + i + 8), by));
    alignas(32) int16_t next[16];
    store32(next, _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8));
    for (size_t e = 0; e < 16; ++e) table[(i + e) * kBinCols] = next[e];
  }
  return inverse > 0 ? largest / kProductMax + nothing : nothing;
}

void add_products_256(const std::byte* indices, size_t stride, const int16_t* tables, size_t first,
                      size_t n_cols, const float* scales, float* y, size_t y_stride) {
  for (size_t end = first + n_cols; first < end;) {
    const size_t n = end - first < kBinCols - first % kBinCols ? end - first : kBinCols - first % kBinCols;
    const int16_t* four = tables + first / kBinCols * kBinCols * kBookEntries;
    for (size_t t = 0; t < kCodeBlock; t += 8) {
      const std::byte* own = indices + t / 16 * stride + t % 16;
      const auto two = [&](size_t i) __attribute__((always_inline)) {
        const auto entry = [&](size_t at) __attribute__((always_inline)) {
          return _mm_loadl_epi64(
              reinterpret_cast<const __m128i*>(four + kBinCols * static_cast<size_t>(own[at])));
        };
        return _mm_unpacklo_epi16(entry(i), entry(i + 1));
      };
      const __m128i a = two(0), b = two(2), c = two(4), d = two(6);
      const __m128i low[2] = {_mm_unpacklo_epi32(a, b), _mm_unpackhi_epi32(a, b)};
      const __m128i high[2] = {_mm_unpacklo_epi32(c, d), _mm_unpackhi_epi32(c, d)};
      const __m128i of[kBinCols] = {_mm_unpacklo_epi64(low[0], high[0]), _mm_unpackhi_epi64(low[0], high[0]),
                                    _mm_unpacklo_epi64(low[1], high[1]), _mm_unpackhi_epi64(low[1], high[1])};
#pragma GCC unroll 4
      for (size_t i = 0; i < kBinCols; ++i) {
        if (i < first % kBinCols || i >= first % kBinCols + n) continue;
        const size_t col = i - first % kBinCols;
        const __m256 value = _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(of[i]));
        float* to = y + col * y_stride + t;
        _mm256_storeu_ps(
            to, _mm256_add_ps(_mm256_loadu_ps(to), _mm256_mul_ps(_mm256_set1_ps(scales[col]), value)));
      }
    }
    first += n;
    scales += n;
    y += n * y_stride;
  }
}

// Four columns side by side: one addition a token, whatever the number of columns.
void add_to_bins_256(const std::byte* indices, size_t stride, size_t first, size_t n_blocks,
                     const float* const* w, size_t w_stride, size_t n_cols, float* bins) {
  for (size_t c = 0; c < n_cols; c += kBinCols, bins += kBookEntries * kBinCols) {
    const size_t n = n_cols - c < kBinCols ? n_cols - c : kBinCols;
    for (size_t at = first / 4 * 4; at < n_blocks * kCodeBlock; at += 4) {
      const auto row = [&](size_t i) __attribute__((always_inline)) {
        return _mm_loadu_ps(w[c + (i < n ? i : 0)] + at / kCodeBlock * w_stride + at % kCodeBlock);
      };
      __m128 of[4] = {row(0), row(1), row(2), row(3)};
      _MM_TRANSPOSE4_PS(of[0], of[1], of[2], of[3]);
      const std::byte* own = indices + at / 16 * stride + at % 16;
#pragma GCC unroll 4
      for (size_t t = 0; t < 4; ++t) {
        if (at + t < first) continue;
        float* sum = bins + kBinCols * static_cast<size_t>(own[t]);
        _mm_storeu_ps(sum, _mm_add_ps(_mm_loadu_ps(sum), of[t]));
      }
    }
  }
}

void spread_bins_256(const float* bins, size_t n_cols, float* const* to) {
  for (size_t c = 0; c < n_cols; c += kBinCols, bins += kBookEntries * kBinCols) {
    const size_t n = n_cols - c < kBinCols ? n_cols - c : kBinCols;
    for (size_t e = 0; e < kBookEntries; e += 4) {
      const float* from = bins + e * kBinCols;
      __m128 of[4] = {_mm_loadu_ps(from), _mm_loadu_ps(from + 4), _mm_loadu_ps(from + 8),
                      _mm_loadu_ps(from + 12)};
      _MM_TRANSPOSE4_PS(of[0], of[1], of[2], of[3]);
      for (size_t i = 0; i < n; ++i) _mm_storeu_ps(to[c + i] + e, of[i]);
    }
  }
}

// As the plain loops, with the costs of all states in eight registers.
void code_path_256(const float* y, size_t y_stride, const float* weights, const uint8_t* bits, size_t n,
                   int after, const float* levels, uint8_t* codes) {
  uint32_t picks[4 * kMaxGroups];  // of the halves of 64 states the upper one was better; of 32, 16 and 8
  uint16_t more[4 * kMaxGroups][3];
  alignas(32) float states[kWindows];
  __m256 cost[8];
  for (float& c : states) c = 1e30f;
  states[after] = 0;
  for (size_t j = 0; j < 8; ++j) cost[j] = _mm256_load_ps(states + 8 * j);
  const __m256i lanes = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
  const auto fold = [](__m256 & low, __m256 high) __attribute__((always_inline)) {
    const auto upper = static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(high, low, _CMP_LT_OQ)));
    low = _mm256_min_ps(high, low);  // of a NaN: the second
    return upper;
  };
  for (size_t i = 0; i < n; ++i) {
    const int b = bits[i];
    uint32_t upper = fold(cost[0], cost[4]);
    upper |= fold(cost[1], cost[5]) << 8;
    upper |= fold(cost[2], cost[6]) << 16;
    upper |= fold(cost[3], cost[7]) << 24;
    picks[i] = upper;
    if (b > 1) {
      upper = fold(cost[0], cost[2]);
      more[i][0] = static_cast<uint16_t>(upper | fold(cost[1], cost[3]) << 8);
    }
    if (b > 2) more[i][1] = static_cast<uint16_t>(fold(cost[0], cost[1]));
    if (b > 3)
      more[i][2] = static_cast<uint16_t>(fold(cost[0], _mm256_permute2f128_ps(cost[0], cost[0], 0x11)));
    const __m256 weight = _mm256_set1_ps(weights[i]), at = _mm256_set1_ps(y[i * y_stride]);
    const float* table = levels + kWindows * b;
    const auto step = [&](auto code_bits) __attribute__((always_inline)) {
      constexpr int kBits = decltype(code_bits)::value;
      const __m256 from[4] = {cost[0], cost[1], cost[2], cost[3]};
#pragma GCC unroll 8
      for (int j = 0; j < 8; ++j) {
        const __m256i earlier =
            _mm256_and_si256(_mm256_srli_epi32(_mm256_add_epi32(lanes, _mm256_set1_epi32(8 * j)), kBits),
                             _mm256_set1_epi32(7));
        const __m256 off = _mm256_sub_ps(at, _mm256_loadu_ps(table + 8 * j));
        cost[j] = _mm256_add_ps(_mm256_permutevar8x32_ps(from[(8 * j >> kBits) / 8], earlier),
                                _mm256_mul_ps(weight, _mm256_mul_ps(off, off)));
      }
    };
    if (b == 1) {
      step(std::integral_constant<int, 1>());
    } else if (b == 2) {
      step(std::integral_constant<int, 2>());
    } else if (b == 3) {
      step(std::integral_constant<int, 3>());
    } else {
      step(std::integral_constant<int, 4>());
    }
  }
  for (size_t j = 0; j < 8; ++j) _mm256_store_ps(states + 8 * j, cost[j]);
  size_t state = 0;
  for (size_t s = 1; s < kWindows; ++s) state = states[s] < states[state] ? s : state;
  for (size_t i = n; i-- > 0;) {
    const int b = bits[i];
    codes[i * y_stride] = static_cast<uint8_t>(state & ((1u << b) - 1));
    state >>= b;
    for (int k = b; k-- > 1;) state += (more[i][k - 1] >> state & 1u) << (5 - k);
    state += (picks[i] >> state & 1u) << 5;
  }
}
void code_path_256_of_one(const float* y, const float* weights, const uint8_t* bits, size_t n, int after,
                          const float* levels, uint8_t* codes) {
  code_path_256(y, 1, weights, bits, n, after, levels, codes);
}
void code_paths_256(const float* y, const float* weights, const uint8_t* bits, size_t n, const int* after,
                    const float* levels, uint8_t* codes) {
  for (size_t t = 0; t < kPathTokens; ++t)
    code_path_256(y + t, kPathTokens, weights, bits, n, after[t], levels, codes + t);
}

}  // namespace

const CodeKernels kAvx2CodeKernels = {
    "avx2",          dot_keys,         quantize_weights,      dot_values,       code_path_256_of_one,
    code_paths_256,  expand_scales,    quantize_products_256, add_products_256, add_to_bins_256,
    spread_bins_256, turn_factors_256, turned_scores_256};

}  // namespace frugal::llm
