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

inline __m512i two_bits(const std::byte* at) {
  const __m512i all = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
  const __m512i shifts = _mm512_set_epi64(0x0006000600060006, 0x0006000600060006, 0x0004000400040004,
                                          0x0004000400040004, 0x0002000200020002, 0x0002000200020002, 0, 0);
  return _mm512_and_si512(_mm512_srlv_epi16(all, shifts), _mm512_set1_epi8(3));
}

inline __m512i one_bit(const std::byte* at) {
  long long eight;
  std::memcpy(&eight, at, 8);
  const __m512i bits = _mm512_srlv_epi64(_mm512_set1_epi64(eight), _mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0));
  return _mm512_and_si512(bits, _mm512_set1_epi8(1));
}

inline __m512i four_bits(const std::byte* at) {
  const __m512i all = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
  return _mm512_and_si512(_mm512_srlv_epi64(all, _mm512_set_epi64(4, 4, 4, 4, 0, 0, 0, 0)),
                          _mm512_set1_epi8(15));
}

template <int kBits>
inline __m512i unpack(const std::byte* group, __m512i table) {
  if constexpr (kBits == 8) return load64(group);
  if constexpr (kBits == 6) {
    const __m512i high = _mm512_slli_epi16(two_bits(group + 32), 4);
    return _mm512_slli_epi16(_mm512_or_si512(four_bits(group), high), 1);
  }
  __m512i codes = _mm512_setzero_si512();
  if constexpr (kBits == 4) codes = four_bits(group);
  if constexpr (kBits == 2 || kBits == 3) codes = two_bits(group);
  if constexpr (kBits == 1) codes = one_bit(group);
  if constexpr (kBits == 3) codes = _mm512_or_si512(codes, _mm512_slli_epi16(one_bit(group + 16), 2));
  return _mm512_shuffle_epi8(table, codes);
}

// Levels of a group for the tokens of four panels.
inline void unpack_block(const std::byte* group, size_t stride, int bits, const uint8_t* tables,
                         __m512i* levels) {
  const auto each = [&](auto of) {
#pragma GCC unroll 4
    for (size_t p = 0; p < kPanels; ++p) levels[p] = of(group + p * stride);
  };
  const auto table = [&] {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(tables + 16 * bits)));
  };
  switch (bits) {
    case 1:
      return each([t = table()](const std::byte* at) { return unpack<1>(at, t); });
    case 2:
      return each([t = table()](const std::byte* at) { return unpack<2>(at, t); });
    case 3:
      return each([t = table()](const std::byte* at) { return unpack<3>(at, t); });
    case 4:
      return each([t = table()](const std::byte* at) { return unpack<4>(at, t); });
    case 6:
      return each([](const std::byte* at) { return unpack<6>(at, _mm512_setzero_si512()); });
    case 8:
      return each([](const std::byte* at) { return unpack<8>(at, _mm512_setzero_si512()); });
    default:
      return each([](const std::byte*) { return _mm512_setzero_si512(); });
  }
}

constexpr size_t kMaxGroups = 64;
// Levels of a block, for many columns to read: [group][panel][64].
using Levels = std::byte[kMaxGroups * kPanels * 64];

template <int kCols>
void dot_keys_tile(const std::byte* panels, size_t stride, const uint8_t* bits, size_t n_groups,
                   const uint8_t* tables, const std::byte* unpacked, const int8_t* x, size_t x_stride,
                   const int32_t* zeros, const float* scales, float* y, size_t y_stride) {
  __m512i sums[kCols][kPanels];
#pragma GCC unroll 4
  for (auto& of : sums) {
#pragma GCC unroll 4
    for (__m512i& sum : of) sum = _mm512_setzero_si512();
  }
  for (size_t g = 0; g < n_groups; panels += 8 * bits[g], ++g) {
    if (bits[g] == 0) continue;
    __m512i levels[kPanels];
    if (unpacked == nullptr) {
      unpack_block(panels, stride, bits[g], tables, levels);
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
  if (n_cols > 4 && n_groups <= kMaxGroups) {
    const std::byte* group = panels;
    for (size_t g = 0; g < n_groups; group += 8 * bits[g], ++g) {
      __m512i levels[kPanels];
      if (bits[g] == 0) continue;
      unpack_block(group, stride, bits[g], tables, levels);
#pragma GCC unroll 4
      for (size_t p = 0; p < kPanels; ++p) _mm512_storeu_si512(buffer + (g * kPanels + p) * 64, levels[p]);
    }
    unpacked = buffer;
  }
  const size_t x_stride = 4 * n_groups;
  const auto tile = [&](auto kernel, size_t c) {
    kernel(panels, stride, bits, n_groups, tables, unpacked, x + c * x_stride, x_stride, zeros + c,
           scales + c, y + c * y_stride, y_stride);
  };
  size_t c = 0;
  for (; c + 4 <= n_cols; c += 4) tile(dot_keys_tile<4>, c);
  if (n_cols - c == 3) tile(dot_keys_tile<3>, c);
  if (n_cols - c == 2) tile(dot_keys_tile<2>, c);
  if (n_cols - c == 1) tile(dot_keys_tile<1>, c);
}

float quantize_weights(const float* w, const float* scales, int16_t* q, int32_t* sum) {
  __m512 row[kPanels], most = _mm512_setzero_ps();
  __mmask16 wrong = 0;
#pragma GCC unroll 4
  for (size_t p = 0; p < kPanels; ++p) {
    row[p] = _mm512_mul_ps(_mm512_loadu_ps(w + 16 * p), _mm512_loadu_ps(scales + 16 * p));
    most = _mm512_max_ps(row[p], most);                                            // of a NaN: the second
    wrong = static_cast<__mmask16>(wrong | _mm512_fpclass_ps_mask(row[p], 0x99));  // NaN or infinite
  }
  const float largest = _mm512_reduce_max_ps(most), nothing = wrong != 0 ? __builtin_nanf("") : 0.0f;
  const float inverse = largest > 1e-30f && largest < 1e30f ? kWeightMax / largest : 0.0f;
  const __m512 by = _mm512_set1_ps(inverse), half = _mm512_set1_ps(0.5f);
  const __m512i fours = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
  __m512i total = _mm512_setzero_si512();
  auto* to = reinterpret_cast<std::byte*>(q);
#pragma GCC unroll 4
  for (size_t p = 0; p < kPanels; ++p, to += 128) {
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

void dot_values(const std::byte* panels, size_t stride, const uint8_t* bits, size_t n_groups,
                const uint8_t* tables, const float* level_scales, const int16_t* w, size_t n_cols,
                const int32_t* zeros, const float* scales, float* y, size_t y_stride) {
  constexpr size_t kTogether = 4;  // groups: 16 coefficients, a register of sums
  const __m512 all_scales = _mm512_maskz_loadu_ps(0x1ff, level_scales);
  const __m128i each_four = _mm_set_epi8(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
  for (size_t first = 0; first < n_groups; first += kTogether, y += 16) {
    __m512i levels[kTogether][kPanels];
    uint8_t own[kTogether] = {};
    if (first + kTogether <= n_groups) {
      std::memcpy(own, bits + first, kTogether);
    } else {
      std::memcpy(own, bits + first, n_groups - first);
    }
#pragma GCC unroll 4
    for (size_t i = 0; i < kTogether; ++i) {
      unpack_block(panels, stride, own[i], tables, levels[i]);
      panels += 8 * own[i];
    }
    int32_t four;
    std::memcpy(&four, own, sizeof four);
    const __m512i bits_of = _mm512_cvtepu8_epi32(_mm_shuffle_epi8(_mm_cvtsi32_si128(four), each_four));
    const __mmask16 mask = _mm512_test_epi32_mask(bits_of, bits_of);
    if (mask == 0) continue;
    const __m512 level_scale = _mm512_permutexvar_ps(bits_of, all_scales);
    for (size_t c = 0; c < n_cols; ++c) {
      if (scales[c] == 0) continue;
      const auto* weights = reinterpret_cast<const std::byte*>(w + c * kWeightWidth);
      __m512i sums[kTogether];
#pragma GCC unroll 4
      for (__m512i& sum : sums) sum = _mm512_setzero_si512();
#pragma GCC unroll 4
      for (size_t p = 0; p < kPanels; ++p) {
        const __m512i high = load64(weights + 128 * p + 64);
#pragma GCC unroll 4
        for (size_t i = 0; i < kTogether; ++i) sums[i] = _mm512_dpbusd_epi32(sums[i], high, levels[i][p]);
      }
#pragma GCC unroll 4
      for (__m512i& sum : sums) sum = _mm512_slli_epi32(sum, 8);
#pragma GCC unroll 4
      for (size_t p = 0; p < kPanels; ++p) {
        const __m512i low = load64(weights + 128 * p);
#pragma GCC unroll 4
        for (size_t i = 0; i < kTogether; ++i) sums[i] = _mm512_dpbusd_epi32(sums[i], low, levels[i][p]);
      }
      const __m512i dot =
          _mm512_sub_epi32(sums_of(sums[0], sums[1], sums[2], sums[3]), _mm512_set1_epi32(zeros[c]));
      const __m512 scale = _mm512_mul_ps(_mm512_set1_ps(scales[c]), level_scale);
      float* to = y + c * y_stride;
      const __m512 sum =
          _mm512_add_ps(_mm512_maskz_loadu_ps(mask, to), _mm512_mul_ps(scale, _mm512_cvtepi32_ps(dot)));
      _mm512_mask_storeu_ps(to, mask, sum);
    }
  }
}

// In the order of the plain loops: lanes 8 apart, then 4, then 2, then the two.
inline __m128 four_lanes(__m512 x) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  return _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
}

void turn_factors_512(const float* factors, const float* middle, size_t n_pairs, size_t n_fast,
                      const float* powers, float* x) {
  __m512 sums[kTurnTerms];
  for (__m512& sum : sums) sum = _mm512_setzero_ps();
  for (size_t i = 0; i < n_pairs; i += 16, powers += 16) {
    const __m512 c = _mm512_loadu_ps(factors + i), s = _mm512_loadu_ps(factors + n_pairs + i);
    const __m512 at = _mm512_loadu_ps(middle + i), by = _mm512_loadu_ps(middle + n_pairs + i);
    const __m512 a = _mm512_add_ps(_mm512_mul_ps(c, at), _mm512_mul_ps(s, by));
    const __m512 b = _mm512_sub_ps(_mm512_mul_ps(s, at), _mm512_mul_ps(c, by));
    if (i < n_fast) {
      const auto mask = static_cast<__mmask16>(n_fast - i >= 16 ? 0xffff : (1u << (n_fast - i)) - 1);
      _mm512_mask_storeu_ps(x + i, mask, a);
      _mm512_mask_storeu_ps(x + n_fast + i, mask, b);
    }
#pragma GCC unroll 5
    for (size_t term = 0; term < kTurnTerms; ++term) {
      const __m512 power = _mm512_loadu_ps(powers + term * n_pairs);
      sums[term] = _mm512_add_ps(sums[term], _mm512_mul_ps(term % 2 == 0 ? a : b, power));
    }
  }
  const __m128 t0 = four_lanes(sums[0]), t1 = four_lanes(sums[1]), t2 = four_lanes(sums[2]),
               t3 = four_lanes(sums[3]), t4 = four_lanes(sums[4]);
  const __m128 first = _mm_add_ps(_mm_movelh_ps(t0, t1), _mm_movehl_ps(t1, t0));
  const __m128 second = _mm_add_ps(_mm_movelh_ps(t2, t3), _mm_movehl_ps(t3, t2));
  const __m128 last = _mm_add_ps(t4, _mm_movehl_ps(t4, t4));
  _mm_storeu_ps(x + 2 * n_fast,
                _mm_add_ps(_mm_shuffle_ps(first, second, 0x88), _mm_shuffle_ps(first, second, 0xdd)));
  _mm_store_ss(x + 2 * n_fast + 4, _mm_add_ss(last, _mm_shuffle_ps(last, last, 1)));
}

inline void expand_scales_512(const std::byte* codes, size_t stride, const float* table, float* scales) {
  const __m512 levels = _mm512_loadu_ps(table);
  for (size_t panel = 0; panel < kPanels; ++panel, codes += stride) {
    const __m128i pairs = _mm_cvtepu8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes)));
    const __m128i each = _mm_and_si128(_mm_or_si128(pairs, _mm_slli_epi16(pairs, 4)), _mm_set1_epi16(0x0f0f));
    _mm512_storeu_ps(scales + 16 * panel, _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(each), levels));
  }
}

}  // namespace

const CodeKernels kAvx512CodeKernels = {"avx512",   dot_keys,          quantize_weights,
                                        dot_values, expand_scales_512, turn_factors_512};

}  // namespace frugal::llm
