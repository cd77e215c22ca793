// Compiled with -mavx2. Two products of a level (at most 126) and a byte of at most 127 are at most 32004 in
// size and fit a 16-bit lane.
#include <immintrin.h>

#include <cstring>
#include <type_traits>

#include "llm/kernel/codes.inc.h"

namespace frugal::llm {

extern const CodeKernels kAvx2CodeKernels;

namespace {

struct Levels {
  __m256i a, b;  // of tokens 0 to 7, 8 to 15
};

// Row `word` of a panel for 8 of its tokens: 32 bits each of their streams.
inline __m256i row(const std::byte* panel, int n_bits, size_t word, size_t half) {
  const size_t left = static_cast<size_t>(n_bits) / 8;
  panel += 64 * word;
  if (4 * word + 4 <= left) return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(panel + 32 * half));
  if (4 * word >= left) return _mm256_setzero_si256();
  const auto bytes = [&](const std::byte* at) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(at + 8 * half)));
  };
  if (left % 4 == 1) return bytes(panel);
  const __m256i low =
      _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(panel + 16 * half)));
  return left % 4 == 2 ? low : _mm256_or_si256(low, _mm256_slli_epi32(bytes(panel + 32), 16));
}

inline __m256i table_at(const uint8_t* table) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
}

// Windows from the 32 bits of each token on, looked up.
template <int kBits>
inline __m256i looked_up(__m256i x, const uint8_t* table) {
  if constexpr (kBits == 8) return x;
  const __m256i mask = _mm256_set1_epi32(kWindows - 1);
  const auto window = [&](auto i) {
    constexpr int kShift = decltype(i)::value;
    return _mm256_and_si256(_mm256_slli_epi32(x, kShift * (8 - kBits)), _mm256_slli_epi32(mask, 8 * kShift));
  };
  const __m256i w = _mm256_or_si256(
      _mm256_or_si256(window(std::integral_constant<int, 0>()), window(std::integral_constant<int, 1>())),
      _mm256_or_si256(window(std::integral_constant<int, 2>()), window(std::integral_constant<int, 3>())));
  // Bits 4 and 5 choose among four tables of 16.
  const __m256i fourth = _mm256_slli_epi16(w, 3), fifth = _mm256_slli_epi16(w, 2);
  const __m256i low = _mm256_blendv_epi8(_mm256_shuffle_epi8(table_at(table), w),
                                         _mm256_shuffle_epi8(table_at(table + 16), w), fourth);
  const __m256i high = _mm256_blendv_epi8(_mm256_shuffle_epi8(table_at(table + 32), w),
                                          _mm256_shuffle_epi8(table_at(table + 48), w), fourth);
  return _mm256_blendv_epi8(low, high, fifth);
}

// Levels of the group that begins at bit `at`, [16 tokens, 4].
template <int kBits>
inline Levels unpack(const std::byte* panel, int n_bits, int at, const uint8_t* tables) {
  const auto word = static_cast<size_t>(at / 32);
  const __m128i down = _mm_cvtsi32_si128(at % 32), up = _mm_cvtsi32_si128(32 - at % 32);
  const auto half = [&](size_t i) {
    const __m256i x = _mm256_or_si256(_mm256_srl_epi32(row(panel, n_bits, word, i), down),
                                      _mm256_sll_epi32(row(panel, n_bits, word + 1, i), up));
    return looked_up<kBits>(x, tables + (kBits == 8 ? 0 : kWindows * kBits));
  };
  return {half(0), half(1)};
}

// Calls f with the number of bits as a constant.
template <typename F>
inline void with_bits(int bits, F f) {
  switch (bits) {
    case 1:
      return f(std::integral_constant<int, 1>());
    case 2:
      return f(std::integral_constant<int, 2>());
    case 3:
      return f(std::integral_constant<int, 3>());
    case 4:
      return f(std::integral_constant<int, 4>());
    case 6:
      return f(std::integral_constant<int, 6>());
    case 8:
      return f(std::integral_constant<int, 8>());
    default:
      return;
  }
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

// `levels`: those of a panel looked up before, 64 bytes a group as the layout reads them, or null.
template <int kCols>
void dot_keys_tile(const std::byte* panel, const CodeLayout& layout, const uint8_t* tables,
                   const std::byte* levels, const int8_t* x, const int32_t* zeros, const float* scales,
                   float* y, size_t y_stride) {
  __m256i sums[2 * kCols];
  for (__m256i& sum : sums) sum = _mm256_setzero_si256();
  const size_t x_stride = 4 * layout.n_groups;
  for (size_t k = 0; k < layout.n_read; ++k) {
    const CodeGroup& group = layout.groups[k];
    const int8_t* own = x + 4 * static_cast<size_t>(group.number);
    if (levels != nullptr) {
      add_keys<kCols>({_mm256_load_si256(reinterpret_cast<const __m256i*>(levels + 64 * k)),
                       _mm256_load_si256(reinterpret_cast<const __m256i*>(levels + 64 * k + 32))},
                      own, x_stride, sums);
    } else {
      with_bits(group.bits, [&](auto n) {
        add_keys<kCols>(unpack<decltype(n)::value>(panel, layout.n_bits, group.at, tables), own, x_stride,
                        sums);
      });
    }
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

void dot_keys(const std::byte* panels, size_t stride, const CodeLayout& layout, const uint8_t* tables,
              const int8_t* x, size_t n_cols, const int32_t* zeros, const float* scales, float* y,
              size_t y_stride) {
  alignas(32) std::byte levels[64 * kMaxGroups];
  for (size_t panel = 0; panel < kCodeBlock / 16; ++panel, panels += stride, y += 16) {
    for (size_t k = 0; n_cols > 4 && k < layout.n_read; ++k) {
      with_bits(layout.groups[k].bits, [&](auto n) {
        const Levels of = unpack<decltype(n)::value>(panels, layout.n_bits, layout.groups[k].at, tables);
        _mm256_store_si256(reinterpret_cast<__m256i*>(levels + 64 * k), of.a);
        _mm256_store_si256(reinterpret_cast<__m256i*>(levels + 64 * k + 32), of.b);
      });
    }
    size_t c = 0;
    const auto tile = [&](auto kernel, size_t n) {
      kernel(panels, layout, tables, n_cols > 4 ? levels : nullptr, x + c * 4 * layout.n_groups, zeros + c,
             scales + c, y + c * y_stride, y_stride);
      c += n;
    };
    while (c + 3 <= n_cols) tile(dot_keys_tile<3>, 3);
    while (c < n_cols) tile(dot_keys_tile<1>, 1);
  }
}

float quantize_weights(const float* w, size_t w_stride, const float* scales, size_t n_blocks, uint8_t* q,
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
  const __m256 by = _mm256_set1_ps(inverse);
  __m256i total = _mm256_setzero_si256();
  for (size_t i = 0; i < 8 * n_blocks; i += 4) {
    __m256i of[4];
    for (size_t k = 0; k < 4; ++k) {
      const __m256 scaled = _mm256_mul_ps(row[i + k], by), dither = _mm256_load_ps(kDither.of + 8 * (i + k));
      of[k] = _mm256_and_si256(_mm256_cvttps_epi32(_mm256_add_ps(scaled, dither)), _mm256_set1_epi32(255));
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

// Weights of a block as products want them: 16 bits each, 4 tokens four times over.
constexpr size_t kWideWeights = 4 * kCodeBlock;
void widen_weights(const uint8_t* w, size_t n, int16_t* wide) {
  for (size_t t = 0; t < n; t += 4, w += 4, wide += 16) {
    int32_t four;
    std::memcpy(&four, w, 4);
    const __m128i each = _mm_cvtepu8_epi16(_mm_cvtsi32_si128(four));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(wide), _mm256_broadcastq_epi64(each));
  }
}

inline __m256i widened(__m256i levels, int half) {
  return _mm256_cvtepu8_epi16(half == 0 ? _mm256_castsi256_si128(levels)
                                        : _mm256_extracti128_si256(levels, 1));
}

// A panel's levels, coefficient after coefficient of four tokens.
inline __m256i transposed(__m256i levels) {
  const __m256i order = _mm256_set_epi8(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0, 15, 11, 7, 3,
                                        14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
  return _mm256_shuffle_epi8(levels, order);
}

template <int kBits, int kCols>
inline __attribute__((always_inline)) void dot_values_tile(const std::byte* panel, size_t stride,
                                                           size_t n_blocks, int n_bits, int at,
                                                           const uint8_t* tables, const int16_t* w,
                                                           const int32_t* zeros, const float* scales,
                                                           float* const* y, size_t y_at) {
  __m256i sums[kCols];
  for (__m256i& sum : sums) sum = _mm256_setzero_si256();
  const size_t w_stride = n_blocks * kWideWeights;
  for (size_t p = 0; p < n_blocks * (kCodeBlock / 16); ++p, panel += stride, w += 64) {
    const Levels plain = unpack<kBits>(panel, n_bits, at, tables);
    const Levels levels = {transposed(plain.a), transposed(plain.b)};
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
    float* to = y[c] + y_at;
    _mm_storeu_ps(to, _mm_add_ps(_mm_loadu_ps(to), _mm_mul_ps(_mm_set1_ps(scales[c]), value)));
  }
}

template <int kCols>
void dot_values_cols(const std::byte* panels, size_t stride, size_t n_blocks, const CodeLayout& layout,
                     const uint8_t* tables, const float* level_scales, const int16_t* w, const int32_t* zeros,
                     const float* scales, float* const* y) {
  for (size_t k = 0; k < layout.n_read; ++k) {
    const CodeGroup& group = layout.groups[k];
    float scaled[kCols];
    for (int c = 0; c < kCols; ++c) scaled[c] = scales[c] * level_scales[group.bits];
    with_bits(group.bits, [&](auto n) {
      dot_values_tile<decltype(n)::value, kCols>(panels, stride, n_blocks, layout.n_bits, group.at, tables, w,
                                                 zeros, scaled, y, 4 * static_cast<size_t>(group.number));
    });
  }
}

void dot_values(const std::byte* panels, size_t stride, size_t n_blocks, const CodeLayout& layout,
                const uint8_t* tables, const float* level_scales, const uint8_t* w, size_t n_cols,
                const int32_t* zeros, const float* scales, float* const* y) {
  alignas(32) int16_t wide[3 * kMaxValueBlocks * kWideWeights];
  const size_t n_tokens = n_blocks * kCodeBlock;
  size_t c = 0;
  const auto tile = [&](auto kernel, size_t n) {
    widen_weights(w + c * n_tokens, n * n_tokens, wide);
    kernel(panels, stride, n_blocks, layout, tables, level_scales, wide, zeros + c, scales + c, y + c);
    c += n;
  };
  while (c + 3 <= n_cols) tile(dot_values_cols<3>, 3);
  while (c < n_cols) tile(dot_values_cols<1>, 1);
}

}  // namespace

const CodeKernels kAvx2CodeKernels = {"avx2",       dot_keys,    quantize_weights, dot_values,
                                      code_path,    code_paths,  expand_scales,    quantize_products,
                                      add_products, add_to_bins, spread_bins,      turn_factors,
                                      turned_scores};

}  // namespace frugal::llm
