// Compiled with -mavx2. Two products of a level (at most 126) and a byte of at most 127 are at most 32004 in
// size and fit a 16-bit lane.
#include <immintrin.h>

#include <cstring>

#include "llm/kernel/codes.h"

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
                   const int8_t* x, size_t x_stride, int32_t* dots) {
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
  for (int c = 0; c < 2 * kCols; ++c) _mm256_storeu_si256(reinterpret_cast<__m256i*>(dots + 8 * c), sums[c]);
}

void dot_keys(const std::byte* groups, const uint8_t* bits, size_t n_groups, const uint8_t* tables,
              const int8_t* x, size_t n_cols, int32_t* dots) {
  const size_t x_stride = 4 * n_groups;
  size_t c = 0;
  for (; c + 3 <= n_cols; c += 3)
    dot_keys_tile<3>(groups, bits, n_groups, tables, x + c * x_stride, x_stride, dots + c * 16);
  if (n_cols - c == 2)
    dot_keys_tile<2>(groups, bits, n_groups, tables, x + c * x_stride, x_stride, dots + c * 16);
  if (n_cols - c == 1)
    dot_keys_tile<1>(groups, bits, n_groups, tables, x + c * x_stride, x_stride, dots + c * 16);
}

// Adds the pairs of 32-bit lanes of [i0 i0 i0 i0 | i1 i1 i1 i1] and [i2 .. | i3 ..] to four sums.
inline __m128i fold(__m256i a, __m256i b) {
  const __m256i pairs = _mm256_hadd_epi32(a, b);          // i0 i0 i2 i2 | i1 i1 i3 i3
  const __m256i fours = _mm256_hadd_epi32(pairs, pairs);  // i0 i2 i0 i2 | i1 i3 i1 i3
  return _mm_unpacklo_epi32(_mm256_castsi256_si128(fours), _mm256_extracti128_si256(fours, 1));
}

template <int kBits, int kCols>
void dot_values_tile(const std::byte* group, size_t stride, size_t n_panels, __m256i table, const int8_t* w,
                     size_t low, size_t w_stride, int32_t* dots) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i high_a[kCols], high_b[kCols], low_a[kCols], low_b[kCols];
  for (int c = 0; c < kCols; ++c) high_a[c] = high_b[c] = low_a[c] = low_b[c] = _mm256_setzero_si256();
  for (size_t panel = 0; panel < n_panels; ++panel, group += stride) {
    const Levels levels = unpack<kBits>(group, table);
#pragma GCC unroll 4
    for (int c = 0; c < kCols; ++c) {
      const int8_t* ws = w + static_cast<size_t>(c) * w_stride + 16 * panel;
      const __m256i h = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(ws)));
      const __m256i l =
          _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(ws + low)));
      high_a[c] = _mm256_add_epi32(high_a[c], _mm256_madd_epi16(_mm256_maddubs_epi16(levels.a, h), ones));
      high_b[c] = _mm256_add_epi32(high_b[c], _mm256_madd_epi16(_mm256_maddubs_epi16(levels.b, h), ones));
      low_a[c] = _mm256_add_epi32(low_a[c], _mm256_madd_epi16(_mm256_maddubs_epi16(levels.a, l), ones));
      low_b[c] = _mm256_add_epi32(low_b[c], _mm256_madd_epi16(_mm256_maddubs_epi16(levels.b, l), ones));
    }
  }
  for (int c = 0; c < kCols; ++c) {
    const __m128i high = fold(high_a[c], high_b[c]), low_sum = fold(low_a[c], low_b[c]);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(dots + 4 * c),
                     _mm_add_epi32(_mm_slli_epi32(high, 7), low_sum));
  }
}

template <int kBits>
void dot_values_of(const std::byte* group, size_t stride, size_t n_panels, const uint8_t* table,
                   const int8_t* w, size_t low, size_t w_stride, size_t n_cols, int32_t* dots) {
  const __m256i levels = table_at(table);
  size_t c = 0;
  for (; c + 3 <= n_cols; c += 3)
    dot_values_tile<kBits, 3>(group, stride, n_panels, levels, w + c * w_stride, low, w_stride, dots + c * 4);
  for (; c < n_cols; ++c)
    dot_values_tile<kBits, 1>(group, stride, n_panels, levels, w + c * w_stride, low, w_stride, dots + c * 4);
}

void dot_values(const std::byte* group, size_t stride, size_t n_panels, int bits, const uint8_t* table,
                const int8_t* w, size_t low, size_t w_stride, size_t n_cols, int32_t* dots) {
  const auto f = bits == 1   ? dot_values_of<1>
                 : bits == 2 ? dot_values_of<2>
                 : bits == 3 ? dot_values_of<3>
                 : bits == 4 ? dot_values_of<4>
                 : bits == 6 ? dot_values_of<6>
                             : dot_values_of<8>;
  f(group, stride, n_panels, table, w, low, w_stride, n_cols, dots);
}

}  // namespace

const CodeKernels kAvx2CodeKernels = {"avx2", dot_keys, dot_values};

}  // namespace frugal::llm
