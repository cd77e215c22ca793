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
  const std::byte* at[kTogether];  // in the first panel
  size_t stride, n_blocks;
  uint8_t bits[kTogether];
  const uint8_t* tables;

  void unpack(size_t block, __m512i levels[kTogether][kPanels]) const {
#pragma GCC unroll 2
    for (size_t i = 0; i < kTogether; ++i)
      unpack_block(at[i] + block * kPanels * stride, stride, bits[i], tables, levels[i]);
  }
};

// y[c * y_stride + i] of the 8 coefficients for those of `mask`. `unpacked` [block][group][panel][64]: levels
// looked up before, or null.
template <int kCols>
void dot_values_tile(const ValueGroups& groups, const std::byte* unpacked, const std::byte* w,
                     size_t w_stride, const int32_t* zeros, const float* scales, __m256 level_scale,
                     __mmask8 mask, float* y, size_t y_stride) {
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
      float* to = y + static_cast<size_t>(of) * y_stride;
      const __m256 sum = _mm256_add_ps(_mm256_maskz_loadu_ps(mask, to), _mm256_mul_ps(scale, value));
      _mm256_mask_storeu_ps(to, mask, sum);
    }
  }
}

void dot_values(const std::byte* panels, size_t stride, size_t n_blocks, const uint8_t* bits, size_t n_groups,
                const uint8_t* tables, const float* level_scales, const int16_t* w, size_t n_cols,
                const int32_t* zeros, const float* scales, float* y, size_t y_stride) {
  alignas(64) std::byte buffer[kMaxValueBlocks * kTogether * kPanels * 64];
  const auto* weights = reinterpret_cast<const std::byte*>(w);
  const size_t w_stride = n_blocks * kWeightWidth * sizeof(int16_t);
  for (size_t g = 0; g < n_groups; g += kTogether, y += 4 * kTogether) {
    ValueGroups groups = {{panels, panels}, stride, n_blocks, {bits[g], 0}, tables};
    panels += 8 * bits[g];
    if (g + 1 < n_groups) {
      groups.at[1] = panels;
      groups.bits[1] = bits[g + 1];
      panels += 8 * bits[g + 1];
    }
    const auto mask =
        static_cast<__mmask8>((groups.bits[0] != 0 ? 0x0f : 0) | (groups.bits[1] != 0 ? 0xf0 : 0));
    if (mask == 0) continue;
    const __m256 level_scale =
        _mm256_set_m128(_mm_set1_ps(level_scales[groups.bits[1]]), _mm_set1_ps(level_scales[groups.bits[0]]));
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
             y + c * y_stride, y_stride);
    };
    size_t c = 0;
    for (; c + 3 <= n_cols && n_cols - c != 4; c += 3) tile(dot_values_tile<3>, c);
    if (n_cols - c == 4) tile(dot_values_tile<4>, c);
    if (n_cols - c == 2) tile(dot_values_tile<2>, c);
    if (n_cols - c == 1) tile(dot_values_tile<1>, c);
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
  float* odd = x + n_fast + kEvenTerms;
  for (size_t i = 0; i < n_pairs; i += 16, powers += 16) {
    const __m512 c = _mm512_loadu_ps(factors + i), s = _mm512_loadu_ps(factors + n_pairs + i);
    const __m512 at = _mm512_loadu_ps(middle + i), by = _mm512_loadu_ps(middle + n_pairs + i);
    const __m512 a = _mm512_add_ps(_mm512_mul_ps(c, at), _mm512_mul_ps(s, by));
    const __m512 b = _mm512_sub_ps(_mm512_mul_ps(s, at), _mm512_mul_ps(c, by));
    if (i < n_fast) {
      const auto mask = static_cast<__mmask16>(n_fast - i >= 16 ? 0xffff : (1u << (n_fast - i)) - 1);
      _mm512_mask_storeu_ps(x + i, mask, a);
      _mm512_mask_storeu_ps(odd + i, mask, b);
    }
#pragma GCC unroll 5
    for (size_t term = 0; term < kTurnTerms; ++term) {
      const __m512 power = _mm512_loadu_ps(powers + term * n_pairs);
      sums[term] = _mm512_add_ps(sums[term], _mm512_mul_ps(term % 2 == 0 ? a : b, power));
    }
  }
  const __m128 t0 = four_lanes(sums[0]), t1 = four_lanes(sums[1]), t2 = four_lanes(sums[2]),
               t3 = four_lanes(sums[3]), t4 = four_lanes(sums[4]);
  const __m128 evens = _mm_add_ps(_mm_movelh_ps(t0, t2), _mm_movehl_ps(t2, t0));
  const __m128 odds = _mm_add_ps(_mm_movelh_ps(t1, t3), _mm_movehl_ps(t3, t1));
  const __m128 last = _mm_add_ps(t4, _mm_movehl_ps(t4, t4));
  const __m128 four = _mm_add_ps(_mm_shuffle_ps(evens, odds, 0x88), _mm_shuffle_ps(evens, odds, 0xdd));
  _mm_storel_pi(reinterpret_cast<__m64*>(x + n_fast), four);
  _mm_store_ss(x + n_fast + 2, _mm_add_ss(last, _mm_shuffle_ps(last, last, 1)));
  _mm_storeh_pi(reinterpret_cast<__m64*>(odd + n_fast), four);
}

void unfold_512(const float* even, const float* odd, size_t n_cols, float* y) {
  const __m512i mirror = _mm512_set_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (size_t c = 0; c < n_cols; ++c, even += 32, odd += 32, y += kCodeBlock) {
    const __m512 e0 = _mm512_loadu_ps(even), e1 = _mm512_loadu_ps(even + 16);
    const __m512 o0 = _mm512_loadu_ps(odd), o1 = _mm512_loadu_ps(odd + 16);
    _mm512_storeu_ps(y, _mm512_permutexvar_ps(mirror, _mm512_sub_ps(e1, o1)));
    _mm512_storeu_ps(y + 16, _mm512_permutexvar_ps(mirror, _mm512_sub_ps(e0, o0)));
    _mm512_storeu_ps(y + 32, _mm512_add_ps(e0, o0));
    _mm512_storeu_ps(y + 48, _mm512_add_ps(e1, o1));
  }
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

const CodeKernels kAvx512CodeKernels = {"avx512",          dot_keys,         quantize_weights, dot_values,
                                        expand_scales_512, turn_factors_512, unfold_512};

}  // namespace frugal::llm
