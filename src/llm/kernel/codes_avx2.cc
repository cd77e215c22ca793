// Compiled with -mavx2. Two products of a level (at most 126) and a byte of at most 127 are at most 32004 in
// size and fit a 16-bit lane.
#include <immintrin.h>

#include <cstring>

#include "llm/kernel/codes.inc.h"

namespace frugal::llm {

extern const CodeKernels kAvx2CodeKernels;

namespace {

struct Levels {
  __m256i a, b;  // codes 0 to 31, 32 to 63
};

inline Levels two_bits(const std::byte* at) {
  const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
  const __m256i both = _mm256_set_m128i(_mm_srli_epi16(low, 2), low);
  const __m256i mask = _mm256_set1_epi8(3);
  return {_mm256_and_si256(both, mask), _mm256_and_si256(_mm256_srli_epi16(both, 4), mask)};
}

inline Levels one_bit(const std::byte* at) {
  long long eight;
  std::memcpy(&eight, at, 8);
  const __m256i bits = _mm256_srlv_epi64(_mm256_set1_epi64x(eight), _mm256_set_epi64x(3, 2, 1, 0));
  const __m256i mask = _mm256_set1_epi8(1);
  return {_mm256_and_si256(bits, mask), _mm256_and_si256(_mm256_srli_epi16(bits, 4), mask)};
}

inline Levels four_bits(const std::byte* at) {
  const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(both, mask), _mm256_and_si256(_mm256_srli_epi16(both, 4), mask)};
}

template <int kBits>
inline Levels unpack(const std::byte* group, __m256i table) {
  if constexpr (kBits == 8) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(group)),
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(group + 32))};
  }
  if constexpr (kBits == 6) {
    const Levels low = four_bits(group), high = two_bits(group + 32);
    return {_mm256_slli_epi16(_mm256_or_si256(low.a, _mm256_slli_epi16(high.a, 4)), 1),
            _mm256_slli_epi16(_mm256_or_si256(low.b, _mm256_slli_epi16(high.b, 4)), 1)};
  }
  Levels codes;
  if constexpr (kBits == 4) codes = four_bits(group);
  if constexpr (kBits == 2 || kBits == 3) codes = two_bits(group);
  if constexpr (kBits == 1) codes = one_bit(group);
  if constexpr (kBits == 3) {
    const Levels high = one_bit(group + 16);
    codes.a = _mm256_or_si256(codes.a, _mm256_slli_epi16(high.a, 2));
    codes.b = _mm256_or_si256(codes.b, _mm256_slli_epi16(high.b, 2));
  }
  return {_mm256_shuffle_epi8(table, codes.a), _mm256_shuffle_epi8(table, codes.b)};
}

inline __m256i table_at(const uint8_t* table) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
}

template <int kCols>
inline void add_keys(const Levels& levels, const int8_t* x, size_t x_stride, __m256i* sums) {
  const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 4
  for (int c = 0; c < kCols; ++c) {
    int32_t four;
    std::memcpy(&four, x + static_cast<size_t>(c) * x_stride, 4);
    const __m256i xs = _mm256_set1_epi32(four);
    sums[2 * c] = _mm256_add_epi32(sums[2 * c], _mm256_madd_epi16(_mm256_maddubs_epi16(levels.a, xs), ones));
    sums[2 * c + 1] =
        _mm256_add_epi32(sums[2 * c + 1], _mm256_madd_epi16(_mm256_maddubs_epi16(levels.b, xs), ones));
  }
}

template <int kCols>
void dot_keys_tile(const std::byte* groups, const uint8_t* bits, size_t n_groups, const uint8_t* tables,
                   const int8_t* x, size_t x_stride, const int32_t* zeros, const float* scales, float* y,
                   size_t y_stride) {
  __m256i sums[2 * kCols];
  for (__m256i& sum : sums) sum = _mm256_setzero_si256();
  const __m256i table[5] = {_mm256_setzero_si256(), table_at(tables + 16), table_at(tables + 32),
                            table_at(tables + 48), table_at(tables + 64)};
  for (size_t g = 0; g < n_groups; ++g) {
    const int8_t* xs = x + 4 * g;
    switch (bits[g]) {
      case 1:
        add_keys<kCols>(unpack<1>(groups, table[1]), xs, x_stride, sums);
        break;
      case 2:
        add_keys<kCols>(unpack<2>(groups, table[2]), xs, x_stride, sums);
        break;
      case 3:
        add_keys<kCols>(unpack<3>(groups, table[3]), xs, x_stride, sums);
        break;
      case 4:
        add_keys<kCols>(unpack<4>(groups, table[4]), xs, x_stride, sums);
        break;
      case 6:
        add_keys<kCols>(unpack<6>(groups, table[0]), xs, x_stride, sums);
        break;
      case 8:
        add_keys<kCols>(unpack<8>(groups, table[0]), xs, x_stride, sums);
        break;
      default:
        break;
    }
    groups += 8 * bits[g];
  }
#pragma GCC unroll 8
  for (int c = 0; c < kCols; ++c) {
    const __m256i zero = _mm256_set1_epi32(zeros[c]);
    const __m256 scale = _mm256_set1_ps(scales[c]);
    for (int half = 0; half < 2; ++half) {
      float* to = y + static_cast<size_t>(c) * y_stride + 8 * half;
      const __m256 dot = _mm256_cvtepi32_ps(_mm256_sub_epi32(sums[2 * c + half], zero));
      _mm256_storeu_ps(to, _mm256_add_ps(_mm256_loadu_ps(to), _mm256_mul_ps(scale, dot)));
    }
  }
}

// Codes as levels, 64 bytes a group, for many columns to read.
void unpack_groups(const std::byte* groups, const uint8_t* bits, size_t n_groups, const uint8_t* tables,
                   std::byte* levels, uint8_t* wide) {
  for (size_t g = 0; g < n_groups; groups += 8 * bits[g], ++g) {
    wide[g] = bits[g] == 0 ? 0 : 8;
    if (bits[g] == 0) continue;
    const Levels of = bits[g] == 1   ? unpack<1>(groups, table_at(tables + 16))
                      : bits[g] == 2 ? unpack<2>(groups, table_at(tables + 32))
                      : bits[g] == 3 ? unpack<3>(groups, table_at(tables + 48))
                      : bits[g] == 4 ? unpack<4>(groups, table_at(tables + 64))
                      : bits[g] == 6 ? unpack<6>(groups, _mm256_setzero_si256())
                                     : unpack<8>(groups, _mm256_setzero_si256());
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(levels), of.a);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(levels + 32), of.b);
    levels += 64;
  }
}

void dot_keys(const std::byte* panels, size_t stride, const uint8_t* bits, size_t n_groups,
              const uint8_t* tables, const int8_t* x, size_t n_cols, const int32_t* zeros,
              const float* scales, float* y, size_t y_stride) {
  constexpr size_t kMaxGroups = 64;
  const size_t x_stride = 4 * n_groups;
  alignas(32) std::byte levels[64 * kMaxGroups];
  uint8_t wide[kMaxGroups];
  const bool unpacks = n_cols > 4 && n_groups <= kMaxGroups;
  for (size_t panel = 0; panel < kCodeBlock / 16; ++panel, panels += stride, y += 16) {
    if (unpacks) unpack_groups(panels, bits, n_groups, tables, levels, wide);
    const std::byte* groups = unpacks ? levels : panels;
    const uint8_t* of = unpacks ? wide : bits;
    size_t c = 0;
    for (; c + 3 <= n_cols; c += 3)
      dot_keys_tile<3>(groups, of, n_groups, tables, x + c * x_stride, x_stride, zeros + c, scales + c,
                       y + c * y_stride, y_stride);
    for (; c < n_cols; ++c)
      dot_keys_tile<1>(groups, of, n_groups, tables, x + c * x_stride, x_stride, zeros + c, scales + c,
                       y + c * y_stride, y_stride);
  }
}

float quantize_weights(const float* w, size_t w_stride, const float* scales, size_t n_blocks, int16_t* q,
                       int32_t* sum) {
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
  const __m256 by = _mm256_set1_ps(inverse), half = _mm256_set1_ps(0.5f);
  __m256i total = _mm256_setzero_si256();
  for (size_t i = 0; i < 8 * n_blocks; i += 2) {
    const __m256i a = _mm256_cvttps_epi32(_mm256_add_ps(_mm256_mul_ps(row[i], by), half));
    const __m256i b = _mm256_cvttps_epi32(_mm256_add_ps(_mm256_mul_ps(row[i + 1], by), half));
    total = _mm256_add_epi32(total, _mm256_add_epi32(a, b));
    // 16 tokens in their order.
    alignas(32) int64_t fours[4];
    _mm256_store_si256(reinterpret_cast<__m256i*>(fours),
                       _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8));
    for (size_t k = 0; k < 4; ++k)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(q + 32 * i + 16 * k), _mm256_set1_epi64x(fours[k]));
  }
  alignas(32) int32_t totals[8];
  _mm256_store_si256(reinterpret_cast<__m256i*>(totals), total);
  uint32_t all_tokens = 0;  // of what is no number: anything
  for (const int32_t t : totals) all_tokens += static_cast<uint32_t>(t);
  *sum = static_cast<int32_t>(all_tokens);
  return inverse > 0 ? largest / kWeightMax + nothing : nothing;
}

inline __m256i widened(__m256i levels, int half) {
  return _mm256_cvtepu8_epi16(half == 0 ? _mm256_castsi256_si128(levels)
                                        : _mm256_extracti128_si256(levels, 1));
}

template <int kBits, int kCols>
inline __attribute__((always_inline)) void dot_values_tile(const std::byte* group, size_t stride,
                                                           size_t n_blocks, __m256i table, const int16_t* w,
                                                           const int32_t* zeros, const float* scales,
                                                           float* y, size_t y_stride) {
  __m256i sums[kCols];
  for (__m256i& sum : sums) sum = _mm256_setzero_si256();
  const size_t w_stride = n_blocks * kWeightWidth;
  for (size_t panel = 0; panel < n_blocks * (kCodeBlock / 16); ++panel, group += stride, w += 64) {
    const Levels levels = unpack<kBits>(group, table);
    const __m256i wide[4] = {widened(levels.a, 0), widened(levels.a, 1), widened(levels.b, 0),
                             widened(levels.b, 1)};
#pragma GCC unroll 8
    for (int c = 0; c < kCols; ++c) {
#pragma GCC unroll 4
      for (size_t k = 0; k < 4; ++k) {
        const __m256i ws = _mm256_loadu_si256(
            reinterpret_cast<const __m256i*>(w + static_cast<size_t>(c) * w_stride + 16 * k));
        sums[c] = _mm256_add_epi32(sums[c], _mm256_madd_epi16(wide[k], ws));
      }
    }
  }
#pragma GCC unroll 8
  for (int c = 0; c < kCols; ++c) {  // a a b b | c c d d
    if (scales[c] == 0) continue;
    const __m256i pairs = _mm256_hadd_epi32(sums[c], sums[c]);
    const __m128i dots =
        _mm_unpacklo_epi64(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
    const __m128 value = _mm_cvtepi32_ps(_mm_sub_epi32(dots, _mm_set1_epi32(zeros[c])));
    float* to = y + static_cast<size_t>(c) * y_stride;
    _mm_storeu_ps(to, _mm_add_ps(_mm_loadu_ps(to), _mm_mul_ps(_mm_set1_ps(scales[c]), value)));
  }
}

template <int kCols>
void dot_values_cols(const std::byte* panels, size_t stride, size_t n_blocks, const uint8_t* bits,
                     size_t n_groups, const uint8_t* tables, const float* level_scales, const int16_t* w,
                     const int32_t* zeros, const float* scales, float* y, size_t y_stride) {
  const __m256i none = _mm256_setzero_si256();
  const __m256i table[5] = {none, table_at(tables + 16), table_at(tables + 32), table_at(tables + 48),
                            table_at(tables + 64)};
  for (size_t g = 0; g < n_groups; panels += 8 * bits[g], ++g, y += 4) {
    float scaled[kCols];
    for (int c = 0; c < kCols; ++c) scaled[c] = scales[c] * level_scales[bits[g]];
    switch (bits[g]) {
      case 1:
        dot_values_tile<1, kCols>(panels, stride, n_blocks, table[1], w, zeros, scaled, y, y_stride);
        break;
      case 2:
        dot_values_tile<2, kCols>(panels, stride, n_blocks, table[2], w, zeros, scaled, y, y_stride);
        break;
      case 3:
        dot_values_tile<3, kCols>(panels, stride, n_blocks, table[3], w, zeros, scaled, y, y_stride);
        break;
      case 4:
        dot_values_tile<4, kCols>(panels, stride, n_blocks, table[4], w, zeros, scaled, y, y_stride);
        break;
      case 6:
        dot_values_tile<6, kCols>(panels, stride, n_blocks, none, w, zeros, scaled, y, y_stride);
        break;
      case 8:
        dot_values_tile<8, kCols>(panels, stride, n_blocks, none, w, zeros, scaled, y, y_stride);
        break;
      default:
        break;
    }
  }
}

void dot_values(const std::byte* panels, size_t stride, size_t n_blocks, const uint8_t* bits, size_t n_groups,
                const uint8_t* tables, const float* level_scales, const int16_t* w, size_t n_cols,
                const int32_t* zeros, const float* scales, float* y, size_t y_stride) {
  size_t c = 0;
  for (; c + 3 <= n_cols; c += 3)
    dot_values_cols<3>(panels, stride, n_blocks, bits, n_groups, tables, level_scales,
                       w + c * n_blocks * kWeightWidth, zeros + c, scales + c, y + c * y_stride, y_stride);
  for (; c < n_cols; ++c)
    dot_values_cols<1>(panels, stride, n_blocks, bits, n_groups, tables, level_scales,
                       w + c * n_blocks * kWeightWidth, zeros + c, scales + c, y + c * y_stride, y_stride);
}

}  // namespace

const CodeKernels kAvx2CodeKernels = {"avx2",       dot_keys, quantize_weights, dot_values, expand_scales,
                                      turn_factors, unfold};

}  // namespace frugal::llm
