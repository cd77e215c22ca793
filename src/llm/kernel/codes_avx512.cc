// 64 codes are one register, byte products are VNNI's: four of them straight into 32 bits. A block's four
// panels are multiplied side by side, so that a group is looked at once for 64 tokens.
//
// Weights [kWeightWidth] are held as bytes: of each panel the low bytes, then the high ones, 4 tokens four
// times over as in the other sets.
#include <immintrin.h>

#include <cstring>

#include "llm/kernel/codes.inc.h"

namespace frugal::llm {

extern const CodeKernels kAvx512CodeKernels;

namespace {

constexpr size_t kPanels = kCodeBlock / 16;

inline __m512i load64(const void* at) { return _mm512_loadu_si512(at); }

#define FRUGAL_INLINE inline __attribute__((always_inline))  // a call would spill every sum

// The streams of panels in rows of 32 bits, whole or not.
struct Streams {
  const std::byte* panels;
  size_t stride, n_whole;                                      // rows that stand in the panels
  alignas(64) std::byte ends[kMaxValueBlocks * kPanels][128];  // of each panel: what is left, and a row of 0

  Streams(const std::byte* of, size_t panel_stride, size_t n_panels, int n_bits)
      : panels(of), stride(panel_stride), n_whole(static_cast<size_t>(n_bits) / 32) {
    const auto bytes = [](const std::byte* at) {
      return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
    };
    const int left = n_bits / 8 % 4;
    for (size_t p = 0; p < n_panels; ++p) {
      const std::byte* at = panels + p * stride + 64 * n_whole;
      __m512i end = _mm512_setzero_si512();
      if (left >= 2) end = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
      if (left == 3) end = _mm512_or_si512(end, _mm512_slli_epi32(bytes(at + 32), 16));
      if (left == 1) end = bytes(at);
      _mm512_store_si512(ends[p], end);
      _mm512_store_si512(ends[p] + 64, _mm512_setzero_si512());
    }
  }
};

// A group of the panels from `first` on: its first bit, bits of a coefficient, and levels to look up.
struct GroupAt {
  const Streams* streams;
  int at, bits;
  const uint8_t* tables;
};

// Levels of the tokens of four panels, [token, 4]; or coefficient after coefficient of four tokens.
template <bool kTransposed>
FRUGAL_INLINE void unpack_block(const GroupAt& group, size_t first, __m512i* levels) {
  const Streams& streams = *group.streams;
  const auto word = static_cast<size_t>(group.at / 32);
  const auto row = [&](size_t w, size_t * stride) __attribute__((always_inline)) {
    *stride = w < streams.n_whole ? streams.stride : sizeof streams.ends[0];
    return w < streams.n_whole ? streams.panels + first * streams.stride + 64 * w
                               : streams.ends[first] + 64 * (w - streams.n_whole);
  };
  size_t low_stride, high_stride;
  const std::byte* low = row(word, &low_stride);
  // Where the four windows of a token begin in its 32 bits; two tokens to 64 bits.
  const long long b = group.bits, four = 0x03020100LL * b;
  __m512i starts = _mm512_set1_epi64(four | (four + 0x20202020LL) << 32);
  const long long end = group.at % 32 + 3 * b + (b == 8 ? 8 : kWindowBits);
  if (end <= 32) {
    starts = _mm512_add_epi8(starts, _mm512_set1_epi8(static_cast<char>(group.at % 32)));
#pragma GCC unroll 4
    for (size_t p = 0; p < kPanels; ++p)
      levels[p] = _mm512_multishift_epi64_epi8(starts, load64(low + p * low_stride));
  } else {
    const std::byte* high = row(word + 1, &high_stride);
    const __m512i shift = _mm512_set1_epi32(group.at % 32);
#pragma GCC unroll 4
    for (size_t p = 0; p < kPanels; ++p) {
      const __m512i bits =
          _mm512_shrdv_epi32(load64(low + p * low_stride), load64(high + p * high_stride), shift);
      levels[p] = _mm512_multishift_epi64_epi8(starts, bits);
    }
  }
  if (b != 8) {
    const __m512i table = load64(group.tables + kWindows * b);
#pragma GCC unroll 4
    for (size_t p = 0; p < kPanels; ++p) levels[p] = _mm512_permutexvar_epi8(levels[p], table);
  }
  if constexpr (kTransposed) {
    const __m512i order =
        _mm512_broadcast_i32x4(_mm_set_epi8(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0));
#pragma GCC unroll 4
    for (size_t p = 0; p < kPanels; ++p) levels[p] = _mm512_shuffle_epi8(levels[p], order);
  }
}

// Levels of a block, for many columns to read: [group][panel][64].
using Levels = std::byte[kMaxGroups * kPanels * 64];

template <int kCols>
void dot_keys_tile(const Streams& streams, const uint8_t* bits, size_t n_groups, const uint8_t* tables,
                   const std::byte* unpacked, const int8_t* x, size_t x_stride, const int32_t* zeros,
                   const float* scales, float* y, size_t y_stride) {
  __m512i sums[kCols][kPanels];
#pragma GCC unroll 4
  for (auto& of : sums) {
#pragma GCC unroll 4
    for (__m512i& sum : of) sum = _mm512_setzero_si512();
  }
  int at = 0;
  for (size_t g = 0; g < n_groups; at += 4 * bits[g], ++g) {
    if (bits[g] == 0) continue;
    __m512i levels[kPanels];
    if (unpacked == nullptr) {
      unpack_block<false>({&streams, at, bits[g], tables}, 0, levels);
    } else {
#pragma GCC unroll 4
      for (size_t p = 0; p < kPanels; ++p) levels[p] = load64(unpacked + (g * kPanels + p) * 64);
    }
#pragma GCC unroll 4
    for (int c = 0; c < kCols; ++c) {
      int32_t four;
      std::memcpy(&four, x + static_cast<size_t>(c) * x_stride + 4 * g, 4);
      const __m512i xs = _mm512_set1_epi32(four);
#pragma GCC unroll 4
      for (size_t p = 0; p < kPanels; ++p) sums[c][p] = _mm512_dpbusd_epi32(sums[c][p], levels[p], xs);
    }
  }
#pragma GCC unroll 4
  for (int c = 0; c < kCols; ++c) {
    const __m512i zero = _mm512_set1_epi32(zeros[c]);
    const __m512 scale = _mm512_set1_ps(scales[c]);
#pragma GCC unroll 4
    for (size_t p = 0; p < kPanels; ++p) {
      float* to = y + static_cast<size_t>(c) * y_stride + 16 * p;
      const __m512 dot = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums[c][p], zero));
      _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), _mm512_mul_ps(scale, dot)));
    }
  }
}

void dot_keys(const std::byte* panels, size_t stride, const uint8_t* bits, size_t n_groups,
              const uint8_t* tables, const int8_t* x, size_t n_cols, const int32_t* zeros,
              const float* scales, float* y, size_t y_stride) {
  alignas(64) Levels buffer;
  const std::byte* unpacked = nullptr;
  const Streams streams(panels, stride, kPanels, stream_bits(bits, n_groups));
  if (n_cols > 4 && n_groups <= kMaxGroups) {
    int at = 0;
    for (size_t g = 0; g < n_groups; at += 4 * bits[g], ++g) {
      __m512i levels[kPanels];
      if (bits[g] == 0) continue;
      unpack_block<false>({&streams, at, bits[g], tables}, 0, levels);
#pragma GCC unroll 4
      for (size_t p = 0; p < kPanels; ++p) _mm512_storeu_si512(buffer + (g * kPanels + p) * 64, levels[p]);
    }
    unpacked = buffer;
  }
  const size_t x_stride = 4 * n_groups;
  const auto tile = [&](auto kernel, size_t c) {
    kernel(streams, bits, n_groups, tables, unpacked, x + c * x_stride, x_stride, zeros + c, scales + c,
           y + c * y_stride, y_stride);
  };
  size_t c = 0;
  for (; c + 4 <= n_cols; c += 4) tile(dot_keys_tile<4>, c);
  if (n_cols - c == 3) tile(dot_keys_tile<3>, c);
  if (n_cols - c == 2) tile(dot_keys_tile<2>, c);
  if (n_cols - c == 1) tile(dot_keys_tile<1>, c);
}

float quantize_weights(const float* w, size_t w_stride, const float* scales, size_t n_blocks, int16_t* q,
                       int32_t* sum) {
  __m512 row[kMaxValueBlocks * kPanels], most = _mm512_setzero_ps();
  __mmask16 wrong = 0;
  const size_t n_panels = n_blocks * kPanels;
  for (size_t p = 0; p < n_panels; ++p) {
    row[p] = _mm512_mul_ps(_mm512_loadu_ps(w + p / kPanels * w_stride + p % kPanels * 16),
                           _mm512_loadu_ps(scales + 16 * p));
    most = _mm512_max_ps(row[p], most);                                            // of a NaN: the second
    wrong = static_cast<__mmask16>(wrong | _mm512_fpclass_ps_mask(row[p], 0x99));  // NaN or infinite
  }
  const float largest = _mm512_reduce_max_ps(most), nothing = wrong != 0 ? __builtin_nanf("") : 0.0f;
  const float inverse = largest > 1e-30f && largest < 1e30f ? kWeightMax / largest : 0.0f;
  const __m512 by = _mm512_set1_ps(inverse), half = _mm512_set1_ps(0.5f);
  const __m512i fours = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
  __m512i total = _mm512_setzero_si512();
  auto* to = reinterpret_cast<std::byte*>(q);
  for (size_t p = 0; p < n_panels; ++p, to += 128) {
    const __m512i value = _mm512_cvttps_epi32(_mm512_add_ps(_mm512_mul_ps(row[p], by), half));
    total = _mm512_add_epi32(total, value);
    const __m128i low = _mm512_cvtepi32_epi8(value);
    const __m128i high = _mm512_cvtepi32_epi8(_mm512_srli_epi32(value, 8));
    _mm512_storeu_si512(to, _mm512_permutexvar_epi32(fours, _mm512_castsi128_si512(low)));
    _mm512_storeu_si512(to + 64, _mm512_permutexvar_epi32(fours, _mm512_castsi128_si512(high)));
  }
  *sum = _mm512_reduce_add_epi32(total);
  return inverse > 0 ? largest / kWeightMax + nothing : nothing;
}

// Of four registers of 4 x 4 lanes each: their sums over the first index, one after the other.
inline __m512i sums_of(__m512i a, __m512i b, __m512i c, __m512i d) {
  const __m512i ab = _mm512_add_epi32(_mm512_shuffle_i64x2(a, b, 0x44), _mm512_shuffle_i64x2(a, b, 0xee));
  const __m512i cd = _mm512_add_epi32(_mm512_shuffle_i64x2(c, d, 0x44), _mm512_shuffle_i64x2(c, d, 0xee));
  return _mm512_add_epi32(_mm512_shuffle_i64x2(ab, cd, 0x88), _mm512_shuffle_i64x2(ab, cd, 0xdd));
}

constexpr size_t kTogether = 2;  // groups that are summed together: 8 coefficients

struct ValueGroups {
  GroupAt of[kTogether];
  size_t n_blocks;

  FRUGAL_INLINE void unpack(size_t block, __m512i levels[kTogether][kPanels]) const {
#pragma GCC unroll 2
    for (size_t i = 0; i < kTogether; ++i) {
      if (of[i].bits > 0) {
        unpack_block<true>(of[i], block * kPanels, levels[i]);
      } else {
        for (size_t p = 0; p < kPanels; ++p) levels[i][p] = _mm512_setzero_si512();
      }
    }
  }
};

// y[c * y_stride + i] of the 8 coefficients for those of `mask`. `unpacked` [block][group][panel][64]: levels
// looked up before, or null.
template <int kCols>
void dot_values_tile(const ValueGroups& groups, const std::byte* unpacked, const std::byte* w,
                     size_t w_stride, const int32_t* zeros, const float* scales, __m256 level_scale,
                     __mmask8 mask, float* const* y, size_t y_at) {
  __m512i low[kCols][kTogether], high[kCols][kTogether];
#pragma GCC unroll 4
  for (int c = 0; c < kCols; ++c) {
#pragma GCC unroll 2
    for (size_t i = 0; i < kTogether; ++i) low[c][i] = high[c][i] = _mm512_setzero_si512();
  }
  for (size_t block = 0; block < groups.n_blocks; ++block, w += kPanels * 128) {
    __m512i levels[kTogether][kPanels];
    if (unpacked == nullptr) {
      groups.unpack(block, levels);
    } else {
#pragma GCC unroll 8
      for (size_t k = 0; k < kTogether * kPanels; ++k)
        levels[k / kPanels][k % kPanels] = load64(unpacked + (block * kTogether * kPanels + k) * 64);
    }
#pragma GCC unroll 4
    for (size_t p = 0; p < kPanels; ++p) {
#pragma GCC unroll 4
      for (int c = 0; c < kCols; ++c) {
        const std::byte* own = w + static_cast<size_t>(c) * w_stride + 128 * p;
        const __m512i lows = load64(own), highs = load64(own + 64);
#pragma GCC unroll 2
        for (size_t i = 0; i < kTogether; ++i) {
          low[c][i] = _mm512_dpbusd_epi32(low[c][i], lows, levels[i][p]);
          high[c][i] = _mm512_dpbusd_epi32(high[c][i], highs, levels[i][p]);
        }
      }
    }
  }
#pragma GCC unroll 4
  for (int c = 0; c < kCols; c += 2) {
    const int d = c + 1 < kCols ? c + 1 : c;
    __m512i sums[2 * kTogether];
#pragma GCC unroll 4
    for (size_t i = 0; i < 2 * kTogether; ++i) {
      const int of = i < kTogether ? c : d;
      sums[i] = _mm512_add_epi32(low[of][i % kTogether], _mm512_slli_epi32(high[of][i % kTogether], 8));
    }
    const __m512i both = sums_of(sums[0], sums[1], sums[2], sums[3]);
#pragma GCC unroll 2
    for (int of = c; of <= d; ++of) {
      if (scales[of] == 0) continue;
      const __m256i dot = of == c ? _mm512_castsi512_si256(both) : _mm512_extracti64x4_epi64(both, 1);
      const __m256 value = _mm256_cvtepi32_ps(_mm256_sub_epi32(dot, _mm256_set1_epi32(zeros[of])));
      const __m256 scale = _mm256_mul_ps(_mm256_set1_ps(scales[of]), level_scale);
      float* to = y[of] + y_at;
      const __m256 sum = _mm256_add_ps(_mm256_maskz_loadu_ps(mask, to), _mm256_mul_ps(scale, value));
      _mm256_mask_storeu_ps(to, mask, sum);
    }
  }
}

void dot_values(const std::byte* panels, size_t stride, size_t n_blocks, const uint8_t* bits, size_t n_groups,
                const uint8_t* tables, const float* level_scales, const int16_t* w, size_t n_cols,
                const int32_t* zeros, const float* scales, float* const* y) {
  alignas(64) std::byte buffer[kMaxValueBlocks * kTogether * kPanels * 64];
  const auto* weights = reinterpret_cast<const std::byte*>(w);
  const Streams streams(panels, stride, n_blocks * kPanels, stream_bits(bits, n_groups));
  int at = 0;
  const size_t w_stride = n_blocks * kWeightWidth * sizeof(int16_t);
  for (size_t g = 0; g < n_groups; g += kTogether) {
    ValueGroups groups = {{{&streams, at, bits[g], tables}, {}}, n_blocks};
    at += 4 * bits[g];
    groups.of[1] = {&streams, at, g + 1 < n_groups ? bits[g + 1] : 0, tables};
    at += 4 * groups.of[1].bits;
    const auto mask =
        static_cast<__mmask8>((groups.of[0].bits != 0 ? 0x0f : 0) | (groups.of[1].bits != 0 ? 0xf0 : 0));
    if (mask == 0) continue;
    const __m256 level_scale = _mm256_set_m128(_mm_set1_ps(level_scales[groups.of[1].bits]),
                                               _mm_set1_ps(level_scales[groups.of[0].bits]));
    const std::byte* unpacked = nullptr;
    if (n_cols > 4) {
      for (size_t block = 0; block < n_blocks; ++block) {
        __m512i levels[kTogether][kPanels];
        groups.unpack(block, levels);
#pragma GCC unroll 8
        for (size_t k = 0; k < kTogether * kPanels; ++k)
          _mm512_storeu_si512(buffer + (block * kTogether * kPanels + k) * 64,
                              levels[k / kPanels][k % kPanels]);
      }
      unpacked = buffer;
    }
    const auto tile = [&](auto kernel, size_t c) {
      kernel(groups, unpacked, weights + c * w_stride, w_stride, zeros + c, scales + c, level_scale, mask,
             y + c, 4 * g);
    };
    size_t c = 0;
    for (; c + 3 <= n_cols && n_cols - c != 4; c += 3) tile(dot_values_tile<3>, c);
    if (n_cols - c == 4) tile(dot_values_tile<4>, c);
    if (n_cols - c == 2) tile(dot_values_tile<2>, c);
    if (n_cols - c == 1) tile(dot_values_tile<1>, c);
  }
}

// Half away from 0; of NaN and what fits no 32 bits the lowest.
FRUGAL_INLINE __m512i nearest_s32(__m512 x) {
  const __m512i half = _mm512_castps_si512(_mm512_set1_ps(0.5f));
  const __m512i sign = _mm512_set1_epi32(static_cast<int>(0x80000000u));
  const __m512i away = _mm512_ternarylogic_epi32(sign, _mm512_castps_si512(x), half, 0xea);
  return _mm512_cvttps_epi32(_mm512_add_ps(x, _mm512_castsi512_ps(away)));
}

void turn_factors_512(const float* factors, const float* inverse, const float* middles, size_t n_pairs,
                      size_t n_fast, size_t n_full, const float* powers, int16_t* x) {
  const auto columns = [](const float* at) { return _mm512_broadcast_f32x4(_mm_loadu_ps(at)); };
  const __m512i each = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
  const auto blocks = [&](const float* at) {
    return _mm512_permutexvar_ps(each, _mm512_castps128_ps512(_mm_loadu_ps(at)));
  };
  const __m512 by = columns(inverse);
  const auto put = [&](size_t row, __m512 first, __m512 second) __attribute__((always_inline)) {
    const __m512i low = nearest_s32(_mm512_mul_ps(first, by)), high = nearest_s32(_mm512_mul_ps(second, by));
    _mm512_storeu_si512(x + row * kTurnLanes,
                        _mm512_mask_blend_epi16(0xaaaaaaaa, low, _mm512_slli_epi32(high, 16)));
  };
  const auto turn = [&](size_t pair, __m512 * a, __m512 * b) __attribute__((always_inline)) {
    const float *own = factors + pair * kTurnCols, *of = middles + pair * kTurnCols;
    const __m512 c = columns(own), s = columns(own + n_pairs * kTurnCols);
    const __m512 at = blocks(of), across = blocks(of + n_pairs * kTurnCols);
    *a = _mm512_add_ps(_mm512_mul_ps(c, at), _mm512_mul_ps(s, across));
    *b = _mm512_sub_ps(_mm512_mul_ps(s, at), _mm512_mul_ps(c, across));
  };
  const size_t odd = n_fast + kEvenRows;
  for (size_t pair = 0; pair < n_fast; pair += 2) {
    __m512 a[2], b[2];
    turn(pair, &a[0], &b[0]);
    turn(pair + 1, &a[1], &b[1]);
    put(pair, a[0], a[1]);
    put(odd + pair, b[0], b[1]);
  }
  __m512 terms[kTurnTerms];
  for (__m512& term : terms) term = _mm512_setzero_ps();
  for (size_t pair = n_fast; pair < n_pairs; ++pair) {
    __m512 of[2];
    turn(pair, &of[0], &of[1]);
    const float* power = powers + pair * kTurnTerms;
    const auto add = [&](size_t term) __attribute__((always_inline)) {
      terms[term] = _mm512_add_ps(terms[term], _mm512_mul_ps(of[term % 2], _mm512_set1_ps(power[term])));
    };
    add(0);
    add(1);
    if (pair >= n_full) continue;
    add(2);
    add(3);
    add(4);
  }
  put(n_fast, terms[0], terms[2]);
  put(n_fast + 2, terms[4], _mm512_setzero_ps());
  put(odd + n_fast, terms[1], terms[3]);
}

// Adds the sums of kCols columns over the rows of a table, for both halves of its offsets.
template <int kCols>
FRUGAL_INLINE void sum_rows(const int16_t* x, const int16_t* table, size_t n_rows, __m512i sums[kCols][2]) {
#pragma GCC unroll 4
  for (int c = 0; c < kCols; ++c) sums[c][0] = sums[c][1] = _mm512_setzero_si512();
  for (size_t row = 0; row < n_rows; row += 2) {
    const __m512i near = load64(table + 16 * row), far = load64(table + 16 * (n_rows + row));
#pragma GCC unroll 4
    for (int c = 0; c < kCols; ++c) {
      int32_t two;
      std::memcpy(&two, x + row * kTurnLanes + 2 * c, 4);
      const __m512i factors = _mm512_set1_epi32(two);
      sums[c][0] = _mm512_dpwssd_epi32(sums[c][0], factors, near);
      sums[c][1] = _mm512_dpwssd_epi32(sums[c][1], factors, far);
    }
  }
}

template <int kCols>
void turned_tile(const int16_t* x, const float* scales, const int16_t* even, size_t n_even,
                 const int16_t* odd, size_t n_odd, float* y) {
  const __m512i mirror = _mm512_set_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  __m512i e[kCols][2], o[kCols][2];
  sum_rows<kCols>(x, even, n_even, e);
  sum_rows<kCols>(x + n_even * kTurnLanes, odd, n_odd, o);
#pragma GCC unroll 4
  for (int c = 0; c < kCols; ++c, y += kCodeBlock) {
    const __m512 scale = _mm512_set1_ps(scales[c]);
    const auto put = [&](size_t at, __m512i sum) __attribute__((always_inline)) {
      _mm512_storeu_ps(y + at, _mm512_mul_ps(scale, _mm512_cvtepi32_ps(sum)));
    };
    put(0, _mm512_permutexvar_epi32(mirror, _mm512_sub_epi32(e[c][1], o[c][1])));
    put(16, _mm512_permutexvar_epi32(mirror, _mm512_sub_epi32(e[c][0], o[c][0])));
    put(32, _mm512_add_epi32(e[c][0], o[c][0]));
    put(48, _mm512_add_epi32(e[c][1], o[c][1]));
  }
}

void turned_scores_512(const int16_t* x, size_t n_cols, const float* scales, const int16_t* even,
                       size_t n_even, const int16_t* odd, size_t n_odd, float* y) {
  const auto tile = [&](auto kernel, size_t c) {
    kernel(x + 2 * c, scales + c, even, n_even, odd, n_odd, y + c * kCodeBlock);
  };
  size_t c = 0;
  for (; c + 4 <= n_cols; c += 4) tile(turned_tile<4>, c);
  if (n_cols - c == 3) tile(turned_tile<3>, c);
  if (n_cols - c == 2) tile(turned_tile<2>, c);
  if (n_cols - c == 1) tile(turned_tile<1>, c);
}

inline void expand_scales_512(const std::byte* codes, size_t stride, const float* table, float* scales) {
  const __m512 levels = _mm512_loadu_ps(table);
  for (size_t panel = 0; panel < kPanels; ++panel, codes += stride) {
    const __m128i pairs = _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes)));
    const __m128i each = _mm_and_si128(_mm_or_si128(pairs, _mm_slli_epi16(pairs, 4)), _mm_set1_epi16(0x0f0f));
    _mm512_storeu_ps(scales + 16 * panel, _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(each), levels));
  }
}

// Low bytes of the integers, then the high ones.
float quantize_products_512(const float* products, int16_t* table) {
  constexpr size_t kRows = kBookEntries / 16;
  __m512 most = _mm512_setzero_ps();
  __mmask16 wrong = 0;
  for (size_t i = 0; i < kRows; ++i) {
    const __m512 x = _mm512_loadu_ps(products + 16 * i);
    most = _mm512_max_ps(_mm512_abs_ps(x), most);                             // of a NaN: the second
    wrong = static_cast<__mmask16>(wrong | _mm512_fpclass_ps_mask(x, 0x99));  // NaN or infinite
  }
  const float largest = _mm512_reduce_max_ps(most), nothing = wrong != 0 ? __builtin_nanf("") : 0.0f;
  const float inverse = largest > 1e-30f && largest < 1e30f ? kProductMax / largest : 0.0f;
  const __m512 by = _mm512_set1_ps(inverse);
  auto* to = reinterpret_cast<std::byte*>(table);
  for (size_t i = 0; i < kRows; ++i, to += 16) {
    const __m512i value = nearest_s32(_mm512_mul_ps(_mm512_loadu_ps(products + 16 * i), by));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(value));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + kBookEntries),
                     _mm512_cvtepi32_epi8(_mm512_srli_epi32(value, 8)));
  }
  return inverse > 0 ? largest / kProductMax + nothing : nothing;
}

// Bytes of 256 looked up: bit 7 chooses between two halves.
FRUGAL_INLINE __m512i looked_up(const std::byte* table, __m512i indices, __mmask64 upper) {
  const __m512i low = _mm512_permutex2var_epi8(load64(table), indices, load64(table + 64));
  const __m512i high = _mm512_permutex2var_epi8(load64(table + 128), indices, load64(table + 192));
  return _mm512_mask_blend_epi8(upper, low, high);
}

void add_products_512(const std::byte* indices, size_t stride, const int16_t* tables, size_t n_cols,
                      const float* scales, float* y, size_t y_stride) {
  const auto row = [&](size_t p) {
    return _mm_loadu_si128(reinterpret_cast<const __m128i*>(indices + p * stride));
  };
  const __m256i low = _mm256_set_m128i(row(1), row(0)), high = _mm256_set_m128i(row(3), row(2));
  // So that low and high bytes come to stand side by side in the order of the tokens.
  const __m512i order = _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0);
  const __m512i at =
      _mm512_permutexvar_epi64(order, _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1));
  const __mmask64 upper = _mm512_movepi8_mask(at);
  for (size_t c = 0; c < n_cols; ++c, tables += kBookEntries, y += y_stride) {
    const auto* table = reinterpret_cast<const std::byte*>(tables);
    const __m512i lows = looked_up(table, at, upper), highs = looked_up(table + kBookEntries, at, upper);
    const __m512i of[2] = {_mm512_unpacklo_epi8(lows, highs), _mm512_unpackhi_epi8(lows, highs)};
    const __m512 scale = _mm512_set1_ps(scales[c]);
#pragma GCC unroll 4
    for (size_t p = 0; p < kPanels; ++p) {
      const __m256i half =
          p % 2 == 0 ? _mm512_castsi512_si256(of[p / 2]) : _mm512_extracti64x4_epi64(of[p / 2], 1);
      const __m512 value = _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(half));
      _mm512_storeu_ps(y + 16 * p, _mm512_add_ps(_mm512_loadu_ps(y + 16 * p), _mm512_mul_ps(scale, value)));
    }
  }
}

// Four columns side by side: one addition a token, whatever the number of columns.
void add_to_bins_512(const std::byte* indices, size_t stride, size_t first, size_t n_blocks,
                     const float* const* w, size_t w_stride, size_t n_cols, float* const* bins) {
  constexpr size_t kTile = 4;
  for (size_t c = 0; c < n_cols; c += kTile) {
    const size_t n = n_cols - c < kTile ? n_cols - c : kTile;
    alignas(64) float sums[kBookEntries * kTile], rows[16 * kTile];
    for (size_t i = 0; i < kBookEntries * kTile; i += 16) _mm512_store_ps(sums + i, _mm512_setzero_ps());
    for (size_t at = first / 16 * 16; at < n_blocks * kCodeBlock; at += 16) {
      __m512 of[kTile];
#pragma GCC unroll 4
      for (size_t i = 0; i < kTile; ++i)
        of[i] = _mm512_loadu_ps(w[c + (i < n ? i : 0)] + at / kCodeBlock * w_stride + at % kCodeBlock);
      const __m512d low01 = _mm512_castps_pd(_mm512_unpacklo_ps(of[0], of[1])),
                    high01 = _mm512_castps_pd(_mm512_unpackhi_ps(of[0], of[1])),
                    low23 = _mm512_castps_pd(_mm512_unpacklo_ps(of[2], of[3])),
                    high23 = _mm512_castps_pd(_mm512_unpackhi_ps(of[2], of[3]));
      // Tokens i, i + 4, i + 8 and i + 12 at 16 * i.
      _mm512_store_pd(rows, _mm512_unpacklo_pd(low01, low23));
      _mm512_store_pd(rows + 16, _mm512_unpackhi_pd(low01, low23));
      _mm512_store_pd(rows + 32, _mm512_unpacklo_pd(high01, high23));
      _mm512_store_pd(rows + 48, _mm512_unpackhi_pd(high01, high23));
      const std::byte* panel = indices + at / 16 * stride;
#pragma GCC unroll 16
      for (size_t t = 0; t < 16; ++t) {
        if (at + t < first) continue;
        float* sum = sums + kTile * static_cast<size_t>(panel[t]);
        _mm_store_ps(sum, _mm_add_ps(_mm_load_ps(sum), _mm_load_ps(rows + t % 4 * 16 + t / 4 * 4)));
      }
    }
    const __m512i column = _mm512_set_epi32(28, 24, 20, 16, 12, 8, 4, 0, 28, 24, 20, 16, 12, 8, 4, 0);
    for (size_t i = 0; i < n; ++i) {
      const __m512i own = _mm512_add_epi32(column, _mm512_set1_epi32(static_cast<int>(i)));
      for (size_t e = 0; e < kBookEntries; e += 16) {
        const float* from = sums + kTile * e;
        const __m512 low = _mm512_permutex2var_ps(_mm512_load_ps(from), own, _mm512_load_ps(from + 16));
        const __m512 high = _mm512_permutex2var_ps(_mm512_load_ps(from + 32), own, _mm512_load_ps(from + 48));
        _mm512_storeu_ps(bins[c + i] + e, _mm512_shuffle_f32x4(low, high, 0x44));
      }
    }
  }
}

// As the plain loops: states are four registers, and the halves that they are folded to come with masks.
void code_path_512(const float* y, const float* weights, const uint8_t* bits, size_t n, int after,
                   const float* levels, uint8_t* codes) {
  uint32_t picks[4 * kMaxGroups];
  uint16_t more[4 * kMaxGroups][3];
  alignas(64) float start[kWindows];
  for (float& c : start) c = 1e30f;
  start[after] = 0;
  __m512 cost[4];
  for (size_t j = 0; j < 4; ++j) cost[j] = _mm512_load_ps(start + 16 * j);
  const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const auto fold = [](__m512& low, __m512 high) {
    const __mmask16 upper = _mm512_cmp_ps_mask(high, low, _CMP_LT_OQ);
    low = _mm512_mask_blend_ps(upper, low, high);
    return static_cast<uint16_t>(upper);
  };
  for (size_t i = 0; i < n; ++i) {
    const int b = bits[i];
    picks[i] = fold(cost[0], cost[2]);
    picks[i] |= static_cast<uint32_t>(fold(cost[1], cost[3])) << 16;
    if (b > 1) more[i][0] = fold(cost[0], cost[1]);
    if (b > 2) more[i][1] = fold(cost[0], _mm512_shuffle_f32x4(cost[0], cost[0], 0xee));
    if (b > 3) more[i][2] = fold(cost[0], _mm512_shuffle_f32x4(cost[0], cost[0], 0x55));
    const float* table = levels + kWindows * b;
    const __m512 at = _mm512_set1_ps(y[i]), weight = _mm512_set1_ps(weights[i]);
    const __m512 from[4] = {cost[0], cost[0], b > 1 ? cost[0] : cost[1], b > 1 ? cost[0] : cost[1]};
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const __m512i states = _mm512_add_epi32(lanes, _mm512_set1_epi32(16 * j));
      const __m512i earlier = _mm512_srl_epi32(states, _mm_cvtsi32_si128(b));
      const __m512 off = _mm512_sub_ps(at, _mm512_loadu_ps(table + 16 * j));
      cost[j] = _mm512_add_ps(_mm512_permutexvar_ps(earlier, from[j]),
                              _mm512_mul_ps(weight, _mm512_mul_ps(off, off)));
    }
  }
  alignas(64) float end[kWindows];
  for (size_t j = 0; j < 4; ++j) _mm512_store_ps(end + 16 * j, cost[j]);
  size_t state = 0;
  for (size_t s = 1; s < kWindows; ++s) state = end[s] < end[state] ? s : state;
  for (size_t i = n; i-- > 0;) {
    codes[i] = static_cast<uint8_t>(state & ((1u << bits[i]) - 1));
    state >>= bits[i];
    for (int k = bits[i]; k-- > 1;) state += (more[i][k - 1] >> state & 1u) << (5 - k);
    state += (picks[i] >> state & 1u) << 5;
  }
}

}  // namespace

const CodeKernels kAvx512CodeKernels = {
    "avx512",        dot_keys,          quantize_weights,      dot_values,
    code_path_512,   expand_scales_512, quantize_products_512, add_products_512,
    add_to_bins_512, turn_factors_512,  turned_scores_512};

}  // namespace frugal::llm
