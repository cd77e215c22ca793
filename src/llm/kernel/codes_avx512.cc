// 64 codes are one register, byte products are VNNI's: four of them straight into 32 bits. A block's four
// panels are multiplied side by side, so that a group is looked at once for 64 tokens.
#include <immintrin.h>

#include <cstring>
#include <type_traits>

#include "llm/kernel/codes.inc.h"

namespace frugal::llm {

extern const CodeKernels kAvx512CodeKernels;

namespace {

constexpr size_t kPanels = kCodeBlock / 16;

inline __m512i load64(const void* at) { return _mm512_loadu_si512(at); }

#define FRUGAL_INLINE inline __attribute__((always_inline))  // a call would spill every sum

// 32 bits of the streams of panels, `pitch` bytes apart.
struct Row {
  const std::byte* at;
  size_t pitch;
};
// The streams of n panels as rows; the last may not be whole, and after it all bits are 0.
template <size_t kMost>
struct Rows {
  alignas(64) std::byte last[kMost][64];
  const std::byte* panels;
  size_t stride, n_whole;
  bool has_last;

  FRUGAL_INLINE Rows(const std::byte* first, size_t panel_stride, int n_bits, size_t n)
      : panels(first),
        stride(panel_stride),
        n_whole(static_cast<size_t>(n_bits) / 32),
        has_last(n_bits % 32 != 0) {
    const auto bytes = [](const std::byte* at) {
      return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
    };
    const int left = n_bits / 8 % 4;
    for (size_t p = 0; left > 0 && p < n; ++p) {
      const std::byte* at = panels + p * stride + 64 * n_whole;
      __m512i row = _mm512_setzero_si512();
      if (left >= 2) row = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
      if (left == 3) row = _mm512_or_si512(row, _mm512_slli_epi32(bytes(at + 32), 16));
      if (left == 1) row = bytes(at);
      _mm512_store_si512(last[p], row);
    }
  }
  FRUGAL_INLINE Row operator[](size_t word) const {
    alignas(64) static constexpr std::byte kZero[64] = {};
    return word < n_whole                ? Row{panels + 64 * word, stride}
           : word == n_whole && has_last ? Row{last[0], 64}
                                         : Row{kZero, 0};
  }
};

// Where the four windows of a token begin in its 32 bits, by bits of a code and of what is before them; two
// tokens to 64 bits. Tables, since numbers from a register of integers take the ports of products.
struct Starts {
  uint64_t of[9][32];
  int32_t down[32], up[32];
  constexpr Starts() : of(), down(), up() {
    for (unsigned b = 0; b <= 8; ++b) {
      for (unsigned i = 0; i < 32; ++i)
        of[b][i] = 0x2020202000000000 + 0x0302010003020100 * b + 0x0101010101010101 * i;
    }
    for (int i = 0; i < 32; ++i) {
      down[i] = i;
      up[i] = 32 - i;
    }
  }
};
constexpr Starts kStarts;

// Of a group: its windows lie in one row, or reach into the next, or its codes are levels.
enum class Part { kWithin, kAcross, kDirect };

// How a group is unpacked: levels of the 16 tokens of a panel, [token, 4].
template <Part kPart>
struct Unpack {
  Row low, high;
  __m512i starts, down, up, table;
  bool whole;  // levels that are a row, as in books

  template <size_t kMost>
  FRUGAL_INLINE Unpack(const Rows<kMost>& rows, const CodeGroup& group, const uint8_t* tables) {
    const size_t word = group.at / 32, before = group.at % 32, bits = group.bits;
    low = rows[word];
    starts = _mm512_set1_epi64(static_cast<long long>(kStarts.of[bits][kPart == Part::kWithin ? before : 0]));
    if constexpr (kPart != Part::kWithin) {
      high = rows[word + 1];
      down = _mm512_set1_epi32(kStarts.down[before]);
      up = _mm512_set1_epi32(kStarts.up[before]);
    }
    if constexpr (kPart != Part::kDirect) table = load64(tables + kWindows * bits);
    whole = kPart == Part::kDirect && before == 0;
  }
  FRUGAL_INLINE __m512i next() {
    __m512i row = load64(low.at);
    low.at += low.pitch;
    if (kPart == Part::kDirect && whole) return row;
    if constexpr (kPart != Part::kWithin) {
      // In two shifts: vpshrdvd would wait for the ports of products.
      row = _mm512_or_si512(_mm512_srlv_epi32(row, down), _mm512_sllv_epi32(load64(high.at), up));
      high.at += high.pitch;
    }
    row = _mm512_multishift_epi64_epi8(starts, row);
    return kPart == Part::kDirect ? row : _mm512_permutexvar_epi8(row, table);
  }
};
// Calls f with the part as a constant, and the first and the end of its groups.
template <typename F>
FRUGAL_INLINE void for_each_part(const CodeLayout& layout, F f) {
  f(std::integral_constant<Part, Part::kWithin>(), size_t{0}, layout.n_within);
  f(std::integral_constant<Part, Part::kAcross>(), layout.n_within, layout.n_windows);
  f(std::integral_constant<Part, Part::kDirect>(), layout.n_windows, layout.n_read);
}

// Levels of 16 tokens coefficient after coefficient of four tokens.
FRUGAL_INLINE __m512i transposed(__m512i levels) {
  const __m128i order = _mm_set_epi8(15, 11, 7, 3, 14, 10, 6, 2, 13, 9, 5, 1, 12, 8, 4, 0);
  return _mm512_shuffle_epi8(levels, _mm512_broadcast_i32x4(order));
}

// Levels of a block, for many columns to read: [group][panel][64].
using Levels = std::byte[kMaxGroups * kPanels * 64];

template <int kCols>
void dot_keys_tile(const Rows<kPanels>& rows, const CodeLayout& layout, const uint8_t* tables,
                   const std::byte* unpacked, const int8_t* x, const int32_t* zeros, const float* scales,
                   float* y, size_t y_stride) {
  __m512i sums[kCols][kPanels];
#pragma GCC unroll 4
  for (auto& of : sums) {
#pragma GCC unroll 4
    for (__m512i& sum : of) sum = _mm512_setzero_si512();
  }
  const size_t x_stride = 4 * layout.n_groups;
  const auto add = [&](const __m512i* levels, const CodeGroup& group) __attribute__((always_inline)) {
    const int8_t* own = x + 4 * static_cast<size_t>(group.number);
#pragma GCC unroll 4
    for (int c = 0; c < kCols; ++c, own += x_stride) {
      int32_t four;
      std::memcpy(&four, own, 4);
      const __m512i xs = _mm512_set1_epi32(four);
#pragma GCC unroll 4
      for (size_t p = 0; p < kPanels; ++p) sums[c][p] = _mm512_dpbusd_epi32(sums[c][p], levels[p], xs);
    }
  };
  if (unpacked != nullptr) {
    for (size_t k = 0; k < layout.n_read; ++k) {
      __m512i levels[kPanels];
#pragma GCC unroll 4
      for (size_t p = 0; p < kPanels; ++p) levels[p] = load64(unpacked + (k * kPanels + p) * 64);
      add(levels, layout.groups[k]);
    }
  } else {
    for_each_part(
        layout, [&](auto part, size_t first, size_t end) __attribute__((always_inline)) {
          for (size_t k = first; k < end; ++k) {
            Unpack<decltype(part)::value> unpack(rows, layout.groups[k], tables);
            __m512i levels[kPanels];
#pragma GCC unroll 4
            for (size_t p = 0; p < kPanels; ++p) levels[p] = unpack.next();
            add(levels, layout.groups[k]);
          }
        });
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

void dot_keys(const std::byte* panels, size_t stride, const CodeLayout& layout, const uint8_t* tables,
              const int8_t* x, size_t n_cols, const int32_t* zeros, const float* scales, float* y,
              size_t y_stride) {
  alignas(64) Levels buffer;
  const std::byte* unpacked = nullptr;
  const Rows<kPanels> rows(panels, stride, layout.n_bits, kPanels);
  if (n_cols > 4) {
    for_each_part(layout, [&](auto part, size_t first, size_t end) {
      for (size_t k = first; k < end; ++k) {
        Unpack<decltype(part)::value> unpack(rows, layout.groups[k], tables);
#pragma GCC unroll 4
        for (size_t p = 0; p < kPanels; ++p)
          _mm512_storeu_si512(buffer + (k * kPanels + p) * 64, unpack.next());
      }
    });
    unpacked = buffer;
  }
  size_t c = 0;
  const auto tile = [&](auto kernel, size_t n) {
    kernel(rows, layout, tables, unpacked, x + c * 4 * layout.n_groups, zeros + c, scales + c,
           y + c * y_stride, y_stride);
    c += n;
  };
  while (c + 4 <= n_cols) tile(dot_keys_tile<4>, 4);
  if (n_cols - c == 3) tile(dot_keys_tile<3>, 3);
  if (n_cols - c == 2) tile(dot_keys_tile<2>, 2);
  if (n_cols - c == 1) tile(dot_keys_tile<1>, 1);
}

float quantize_weights(const float* w, size_t w_stride, const float* scales, size_t n_blocks,
                       const float* dither, uint8_t* q, int32_t* sum) {
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
  const __m512 by = _mm512_set1_ps(inverse);
  __m512i total = _mm512_setzero_si512();
  for (size_t p = 0; p < n_panels; ++p, q += 16) {
    const __m512 own = _mm512_load_ps(dither + 16 * p);
    const __m512i value = _mm512_cvttps_epi32(_mm512_add_ps(_mm512_mul_ps(row[p], by), own));
    total = _mm512_add_epi32(total, value);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q), _mm512_cvtepi32_epi8(value));
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

constexpr size_t kMaxTogether = 4;  // groups that are summed together

// Weights of 16 tokens, 4 tokens four times over.
constexpr size_t kWideWeights = 64;

constexpr size_t kChunkPanels = kMaxValueBlocks * kPanels;

// What a call of dot_values() reads: a chunk's panels, and of each group's coefficients the level's worth.
struct ValueCodes {
  const Rows<kChunkPanels>* rows;
  size_t n_panels;
  const CodeGroup* groups;
  const uint8_t* tables;
  const float* level_scales;  // [read group, 4]
};

// y[c] of the coefficients of the n <= kGroups groups from k on. `unpacked` [panel][group][64]: their
// levels, looked up before, or null.
template <Part kPart, size_t kGroups, int kCols>
void dot_values_tile(const ValueCodes& codes, size_t k, size_t n, const std::byte* unpacked,
                     const std::byte* w, size_t w_stride, const int32_t* zeros, const float* scales,
                     float* const* y) {
  __m512i dots[kCols][kGroups];
#pragma GCC unroll 4
  for (auto& of : dots) {
#pragma GCC unroll 4
    for (__m512i& dot : of) dot = _mm512_setzero_si512();
  }
  const auto add = [&](const __m512i* levels) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int c = 0; c < kCols; ++c) {
      const __m512i weights = load64(w + static_cast<size_t>(c) * w_stride);
#pragma GCC unroll 4
      for (size_t i = 0; i < kGroups; ++i) dots[c][i] = _mm512_dpbusd_epi32(dots[c][i], weights, levels[i]);
    }
  };
  if (unpacked != nullptr) {
    for (size_t p = 0; p < codes.n_panels; ++p, unpacked += kGroups * 64, w += kWideWeights) {
      __m512i levels[kGroups];
#pragma GCC unroll 4
      for (size_t i = 0; i < kGroups; ++i) levels[i] = load64(unpacked + i * 64);
      add(levels);
    }
  } else {
    const auto all = [&](auto... unpack) __attribute__((always_inline)) {
#pragma GCC unroll 2
      for (size_t p = 0; p < codes.n_panels; ++p, w += kWideWeights) {
        const __m512i levels[kGroups] = {transposed(unpack.next())...};
        add(levels);
      }
    };
    const auto group = [&](size_t i) __attribute__((always_inline)) {
      return Unpack<kPart>(*codes.rows, codes.groups[k + (i < n ? i : 0)], codes.tables);
    };
    if constexpr (kGroups == 2) {
      all(group(0), group(1));
    } else {
      all(group(0), group(1), group(2), group(3));
    }
  }
  const __m512 worth = _mm512_loadu_ps(codes.level_scales + 4 * k);
#pragma GCC unroll 4
  for (int c = 0; c < kCols; ++c) {
    if (scales[c] == 0) continue;
    const __m512i sums = sums_of(dots[c][0], dots[c][1], dots[c][kGroups - 2], dots[c][kGroups - 1]);
    const __m512 values = _mm512_cvtepi32_ps(_mm512_sub_epi32(sums, _mm512_set1_epi32(zeros[c])));
    alignas(64) float added[16];
    _mm512_store_ps(added, _mm512_mul_ps(_mm512_mul_ps(_mm512_set1_ps(scales[c]), worth), values));
    for (size_t i = 0; i < n; ++i) {
      float* to = y[c] + 4 * static_cast<size_t>(codes.groups[k + i].number);
      _mm_storeu_ps(to, _mm_add_ps(_mm_loadu_ps(to), _mm_load_ps(added + 4 * i)));
    }
  }
}

void dot_values(const std::byte* panels, size_t stride, size_t n_blocks, const CodeLayout& layout,
                const uint8_t* tables, const float* level_scales, const uint8_t* w, size_t n_cols,
                const int32_t* zeros, const float* scales, float* const* y) {
  alignas(64) std::byte buffer[kMaxValueBlocks * kMaxTogether * kPanels * 64];
  alignas(64) std::byte weights[kMaxValueCols * kMaxValueBlocks * kPanels * kWideWeights];
  alignas(64) float worth[4 * (kMaxGroups + kMaxTogether)];  // what lies beyond the last is not used
  const size_t w_stride = n_blocks * kPanels * kWideWeights;
  const __m512i fours = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
  for (size_t i = 0; i < n_cols * n_blocks * kPanels; ++i, w += 16) {
    const __m128i tokens = _mm_loadu_si128(reinterpret_cast<const __m128i*>(w));
    _mm512_store_si512(weights + i * kWideWeights,
                       _mm512_permutexvar_epi32(fours, _mm512_castsi128_si512(tokens)));
  }
  const size_t n_panels = n_blocks * kPanels;
  const Rows<kChunkPanels> rows(panels, stride, layout.n_bits, n_panels);
  for (size_t k = 0; k < layout.n_read; ++k)
    _mm_store_ps(worth + 4 * k, _mm_set1_ps(level_scales[layout.groups[k].bits]));
  for (size_t k = layout.n_read; k < layout.n_read + kMaxTogether; ++k)
    _mm_store_ps(worth + 4 * k, _mm_setzero_ps());
  const ValueCodes codes = {&rows, n_panels, layout.groups, tables, worth};
  // kGroups groups of a part from k on, or fewer.
  const auto sum = [&](auto part, auto n_together, size_t k, size_t n) {
    constexpr Part kPart = decltype(part)::value;
    constexpr size_t kGroups = decltype(n_together)::value;
    const std::byte* unpacked = nullptr;
    if (n_cols > 4) {
      for (size_t i = 0; i < n; ++i) {
        Unpack<kPart> unpack(rows, layout.groups[k + i], tables);
        for (size_t p = 0; p < n_panels; ++p)
          _mm512_store_si512(buffer + (p * kGroups + i) * 64, transposed(unpack.next()));
      }
      unpacked = buffer;
    }
    size_t c = 0;
    const auto tile = [&](auto kernel, size_t columns) {
      kernel(codes, k, n, unpacked, weights + c * w_stride, w_stride, zeros + c, scales + c, y + c);
      c += columns;
    };
    while (c + 3 <= n_cols && n_cols - c != 4) tile(dot_values_tile<kPart, kGroups, 3>, 3);
    if (n_cols - c == 4) tile(dot_values_tile<kPart, kGroups, 4>, 4);
    if (n_cols - c == 2) tile(dot_values_tile<kPart, kGroups, 2>, 2);
    if (n_cols - c == 1) tile(dot_values_tile<kPart, kGroups, 1>, 1);
  };
  for_each_part(layout, [&](auto part, size_t k, size_t end) {
    if constexpr (decltype(part)::value == Part::kWithin) {  // of others four want too many registers
      for (; k + kMaxTogether <= end; k += kMaxTogether)
        sum(part, std::integral_constant<size_t, kMaxTogether>(), k, kMaxTogether);
    }
    for (; k < end; k += 2) sum(part, std::integral_constant<size_t, 2>(), k, end - k < 2 ? 1 : 2);
  });
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
float quantize_products_512(const float* products, int16_t* tables, size_t col) {
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
  auto* to = reinterpret_cast<std::byte*>(tables + col * kBookEntries);
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

void add_products_512(const std::byte* indices, size_t stride, const int16_t* tables, size_t first,
                      size_t n_cols, const float* scales, float* y, size_t y_stride) {
  tables += first * kBookEntries;
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
                     const float* const* w, size_t w_stride, size_t n_cols, float* bins) {
  for (size_t c = 0; c < n_cols; c += kBinCols, bins += kBookEntries * kBinCols) {
    const size_t n = n_cols - c < kBinCols ? n_cols - c : kBinCols;
    alignas(64) float rows[16 * kBinCols];
    for (size_t at = first / 16 * 16; at < n_blocks * kCodeBlock; at += 16) {
      __m512 of[kBinCols];
#pragma GCC unroll 4
      for (size_t i = 0; i < kBinCols; ++i)
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
        float* sum = bins + kBinCols * static_cast<size_t>(panel[t]);
        _mm_store_ps(sum, _mm_add_ps(_mm_load_ps(sum), _mm_load_ps(rows + t % 4 * 16 + t / 4 * 4)));
      }
    }
  }
}

void spread_bins_512(const float* bins, size_t n_cols, float* const* to) {
  const __m512i column = _mm512_set_epi32(28, 24, 20, 16, 12, 8, 4, 0, 28, 24, 20, 16, 12, 8, 4, 0);
  for (size_t c = 0; c < n_cols; ++c) {
    const __m512i own = _mm512_add_epi32(column, _mm512_set1_epi32(static_cast<int>(c % kBinCols)));
    const float* from = bins + c / kBinCols * kBookEntries * kBinCols;
    for (size_t e = 0; e < kBookEntries; e += 16, from += 16 * kBinCols) {
      const __m512 low = _mm512_permutex2var_ps(_mm512_load_ps(from), own, _mm512_load_ps(from + 16));
      const __m512 high = _mm512_permutex2var_ps(_mm512_load_ps(from + 32), own, _mm512_load_ps(from + 48));
      _mm512_storeu_ps(to[c] + e, _mm512_shuffle_f32x4(low, high, 0x44));
    }
  }
}

// As the plain loops: states are four registers, and the halves that they are folded to come with masks. One
// token waits for itself at every step, so several take turns.
template <size_t kTokens>
FRUGAL_INLINE void code_paths_of(const float* y, const float* weights, const uint8_t* bits, size_t n,
                                 const int* after, const float* levels, uint8_t* codes) {
  uint32_t picks[kTokens][4 * kMaxGroups];
  uint16_t more[kTokens][4 * kMaxGroups][3];
  alignas(64) float states[kWindows];
  __m512 cost[kTokens][4];
  for (size_t t = 0; t < kTokens; ++t) {
    for (float& c : states) c = 1e30f;
    states[after[t]] = 0;
    for (size_t j = 0; j < 4; ++j) cost[t][j] = _mm512_load_ps(states + 16 * j);
  }
  const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  const auto fold = [](__m512 & low, __m512 high) __attribute__((always_inline)) {
    const __mmask16 upper = _mm512_cmp_ps_mask(high, low, _CMP_LT_OQ);
    low = _mm512_mask_blend_ps(upper, low, high);
    return static_cast<uint16_t>(upper);
  };
  for (size_t i = 0; i < n; ++i) {
    const int b = bits[i];
    const float* table = levels + kWindows * b;
    const __m512 weight = _mm512_set1_ps(weights[i]);
#pragma GCC unroll 4
    for (size_t t = 0; t < kTokens; ++t) {
      picks[t][i] = fold(cost[t][0], cost[t][2]);
      picks[t][i] |= static_cast<uint32_t>(fold(cost[t][1], cost[t][3])) << 16;
    }
    if (b > 1) {
#pragma GCC unroll 4
      for (size_t t = 0; t < kTokens; ++t) {
        more[t][i][0] = fold(cost[t][0], cost[t][1]);
        cost[t][1] = cost[t][0];
      }
    }
    if (b > 2) {
#pragma GCC unroll 4
      for (size_t t = 0; t < kTokens; ++t) {
        more[t][i][1] = fold(cost[t][0], _mm512_shuffle_f32x4(cost[t][0], cost[t][0], 0xee));
        cost[t][1] = cost[t][0];
      }
    }
    if (b > 3) {
#pragma GCC unroll 4
      for (size_t t = 0; t < kTokens; ++t) {
        more[t][i][2] = fold(cost[t][0], _mm512_shuffle_f32x4(cost[t][0], cost[t][0], 0x55));
        cost[t][1] = cost[t][0];
      }
    }
    const __m128i by = _mm_cvtsi32_si128(b);
#pragma GCC unroll 4
    for (size_t t = 0; t < kTokens; ++t) {
      const __m512 at = _mm512_set1_ps(y[i * kTokens + t]), from[2] = {cost[t][0], cost[t][1]};
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j) {
        const __m512i earlier = _mm512_srl_epi32(_mm512_add_epi32(lanes, _mm512_set1_epi32(16 * j)), by);
        const __m512 off = _mm512_sub_ps(at, _mm512_loadu_ps(table + 16 * j));
        cost[t][j] = _mm512_add_ps(_mm512_permutexvar_ps(earlier, from[j / 2]),
                                   _mm512_mul_ps(weight, _mm512_mul_ps(off, off)));
      }
    }
  }
  size_t state[kTokens];
  for (size_t t = 0; t < kTokens; ++t) {  // the first of the least
    const __m512 low = _mm512_min_ps(cost[t][0], cost[t][1]), high = _mm512_min_ps(cost[t][2], cost[t][3]);
    const __m512 least = _mm512_set1_ps(_mm512_reduce_min_ps(_mm512_min_ps(low, high)));
    uint64_t at = 0;
    for (size_t j = 0; j < 4; ++j)
      at |= static_cast<uint64_t>(_mm512_cmp_ps_mask(cost[t][j], least, _CMP_EQ_OQ)) << 16 * j;
    state[t] = at == 0 ? 0 : static_cast<size_t>(__builtin_ctzll(at));
  }
  for (size_t i = n; i-- > 0;) {
    const int b = bits[i];
#pragma GCC unroll 4
    for (size_t t = 0; t < kTokens; ++t) {
      codes[i * kTokens + t] = static_cast<uint8_t>(state[t] & ((1u << b) - 1));
      state[t] >>= b;
      for (int k = b; k-- > 1;) state[t] += (more[t][i][k - 1] >> state[t] & 1u) << (5 - k);
      state[t] += (picks[t][i] >> state[t] & 1u) << 5;
    }
  }
}
void code_path_512(const float* y, const float* weights, const uint8_t* bits, size_t n, int after,
                   const float* levels, uint8_t* codes) {
  code_paths_of<1>(y, weights, bits, n, &after, levels, codes);
}
void code_paths_512(const float* y, const float* weights, const uint8_t* bits, size_t n, const int* after,
                    const float* levels, uint8_t* codes) {
  code_paths_of<kPathTokens>(y, weights, bits, n, after, levels, codes);
}

}  // namespace

const CodeKernels kAvx512CodeKernels = {
    "avx512",        dot_keys,          quantize_weights,      dot_values,       code_path_512,
    code_paths_512,  expand_scales_512, quantize_products_512, add_products_512, add_to_bins_512,
    spread_bins_512, turn_factors_512,  turned_scores_512};

}  // namespace frugal::llm
