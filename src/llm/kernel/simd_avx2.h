// 16 lanes as two AVX2 registers: lanes (rows) 0..7 and 8..15. Compiled with -mavx2 -mfma -mf16c.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "llm/kernel/kernel.h"

namespace frugal::llm::avx2 {

struct Simd {
  static constexpr const char* kName = "avx2";
  static constexpr int kQuantTile = 4;
  static constexpr int kValueTile = 1;  // 8 registers of sums, 4 of values
  static constexpr int kFloatTile = 6;  // columns
  static constexpr int kFloatSums = 6;  // 12 registers of 16, with 2 for weights and 1 for a broadcast

  struct Vf {
    __m256 a, b;
  };
  struct Vi {
    __m256i a, b;
  };
  struct Vb {
    __m256i a, b;
  };
  struct Acc {  // 16-bit sums of pairs, two for each row
    __m256i a, b;
  };
  static constexpr bool kWideAcc = false;

  static Vf zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
  static Vf splat(float x) {
    const __m256 v = _mm256_set1_ps(x);
    return {v, v};
  }
  static Vf load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
  static __m128i load128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
  static Vf load_f16(const uint16_t* p) {
    return {_mm256_cvtph_ps(load128(p)), _mm256_cvtph_ps(load128(p + 8))};
  }
  static Vf load_bf16(const uint16_t* p) {
    auto widen16 = [](__m128i x) {
      return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
    };
    return {widen16(load128(p)), widen16(load128(p + 8))};
  }
  static Vf load_s8(const int8_t* p) { return to_float(load_s8_int(reinterpret_cast<const std::byte*>(p))); }
  static void store(float* p, Vf v) {
    _mm256_storeu_ps(p, v.a);
    _mm256_storeu_ps(p + 8, v.b);
  }
  static void store_f16(uint16_t* p, Vf v) {  // saturates: 65504 is the largest finite half
    const Vf limit = splat(65504.0f), neg = splat(-65504.0f);
    v = max(min(v, limit), neg);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(v.a, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(v.b, _MM_FROUND_TO_NEAREST_INT));
  }
  static Vf fma(Vf x, Vf y, Vf z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
  static Vf mul(Vf x, Vf y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
  static Vf add(Vf x, Vf y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
  static Vf sub(Vf x, Vf y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
  static Vf div(Vf x, Vf y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
  static Vf max(Vf x, Vf y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
  static Vf min(Vf x, Vf y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
  static Vf abs(Vf x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
  }
  static Vf zero_where_less(Vf test, Vf limit, Vf x) {
    return {_mm256_andnot_ps(_mm256_cmp_ps(test.a, limit.a, _CMP_LT_OQ), x.a),
            _mm256_andnot_ps(_mm256_cmp_ps(test.b, limit.b, _CMP_LT_OQ), x.b)};
  }
  static Vf round(Vf x) {
    constexpr int kMode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(x.a, kMode), _mm256_round_ps(x.b, kMode)};
  }
  static Vf scale_by_power(Vf x, Vf n) {
    auto power = [](__m256 e) {
      return _mm256_castsi256_ps(
          _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(e), _mm256_set1_epi32(127)), 23));
    };
    return {_mm256_mul_ps(x.a, power(n.a)), _mm256_mul_ps(x.b, power(n.b))};
  }
  static float sum_lanes(Vf x) {
    const __m256 eight = _mm256_add_ps(x.a, x.b);
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_shuffle_ps(four, four, 1)));
  }
  static float max_lanes(Vf x) {
    const __m256 eight = _mm256_max_ps(x.a, x.b);
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_shuffle_ps(four, four, 1)));
  }

  static Vi splat_int(int32_t x) {
    const __m256i v = _mm256_set1_epi32(x);
    return {v, v};
  }
  static Vi load_u8_int(const std::byte* p) {
    const __m128i bytes = load128(p);
    return {_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8))};
  }
  static Vi load_s8_int(const std::byte* p) {
    const __m128i bytes = load128(p);
    return {_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8))};
  }
  static Vi add_int(Vi x, Vi y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
  static Vi sub_int(Vi x, Vi y) { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
  static Vf to_float(Vi x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
  static Vi round_to_s8(int8_t* p, Vf x) {
    const Vi rounded{_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)};
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(rounded.a, rounded.b), 0xD8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
    return rounded;
  }
  static int32_t sum_lanes_int(Vi x) {
    const __m256i eight = _mm256_add_epi32(x.a, x.b);
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xB1)));
  }

  static Vb load_bytes(const std::byte* p) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
            _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
  }
  static Vb low_nibbles(Vb x) {
    const __m256i mask = _mm256_set1_epi8(15);
    return {_mm256_and_si256(x.a, mask), _mm256_and_si256(x.b, mask)};
  }
  static Vb high_nibbles(Vb x) { return low_nibbles({_mm256_srli_epi16(x.a, 4), _mm256_srli_epi16(x.b, 4)}); }

  // Bits kFrom.. of every byte moved to kTo.., masked. Bytes move inside 16-bit lanes: the mask drops strays.
  template <int kFrom, int kTo>
  static __m256i move_bits(__m256i x, int mask) {
    if constexpr (kFrom > kTo) x = _mm256_srli_epi16(x, kFrom - kTo);
    if constexpr (kFrom < kTo) x = _mm256_slli_epi16(x, kTo - kFrom);
    return _mm256_and_si256(x, _mm256_set1_epi8(static_cast<char>(mask)));
  }
  template <int kIndex>
  static Vb with_fifth_bit(Vb low, Vb bits) {
    return {_mm256_or_si256(low.a, move_bits<kIndex, 4>(bits.a, 0x10)),
            _mm256_or_si256(low.b, move_bits<kIndex, 4>(bits.b, 0x10))};
  }
  template <int kIndex>
  static Vb with_high_bits(Vb low, Vb bits) {
    return {_mm256_or_si256(low.a, move_bits<2 * kIndex, 4>(bits.a, 0x30)),
            _mm256_or_si256(low.b, move_bits<2 * kIndex, 4>(bits.b, 0x30))};
  }

  static __m256i splat4(const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, 4);
    return _mm256_set1_epi32(four);
  }
  // Keeps the compiler from gathering products first and adding them later, for which registers do not
  // suffice.
  template <typename V>
  static V in_order(V v) {
    asm volatile("" : "+x"(v.a), "+x"(v.b));
    return v;
  }
  static Acc acc_zero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
  // A pair of 4-bit weights gives at most 2 * 15 * 127 = 3810 in a 16-bit lane: eight fit in 32767. Five
  // bits: 7874, four; six bits: 16002, two.
  static Acc acc_dot(Acc acc, Vb weights, const int8_t* x) {
    const __m256i four = splat4(x);
    return in_order<Acc>({_mm256_add_epi16(acc.a, _mm256_maddubs_epi16(weights.a, four)),
                          _mm256_add_epi16(acc.b, _mm256_maddubs_epi16(weights.b, four))});
  }
  static Vi widen(Acc acc) {
    const __m256i ones = _mm256_set1_epi16(1);
    return {_mm256_madd_epi16(acc.a, ones), _mm256_madd_epi16(acc.b, ones)};
  }
  // The same times a factor for each row: widening multiplies by it instead of by one.
  struct Scale {
    __m256i a, b;  // 16 bits, twice for each row
  };
  static Scale twice(Vi x) {
    return {_mm256_or_si256(_mm256_slli_epi32(x.a, 16), _mm256_and_si256(x.a, _mm256_set1_epi32(0xffff))),
            _mm256_or_si256(_mm256_slli_epi32(x.b, 16), _mm256_and_si256(x.b, _mm256_set1_epi32(0xffff)))};
  }
  static Scale load_scale_u8(const std::byte* p) { return twice(load_u8_int(p)); }
  static Scale load_scale_s8(const std::byte* p) { return twice(load_s8_int(p)); }
  static Vi add_scaled_acc(Vi total, Acc acc, Scale scale) {
    return {_mm256_add_epi32(total.a, _mm256_madd_epi16(acc.a, scale.a)),
            _mm256_add_epi32(total.b, _mm256_madd_epi16(acc.b, scale.b))};
  }
  // Two factors for each row, and their product with two numbers.
  static Scale load_pairs_u8(const std::byte* p, const std::byte* q) {
    const __m128i x = load128(p), y = load128(q);
    return {_mm256_cvtepu8_epi16(_mm_unpacklo_epi8(x, y)), _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(x, y))};
  }
  static Scale load_pairs_s8(const std::byte* p, const std::byte* q) {
    const __m128i x = load128(p), y = load128(q);
    return {_mm256_cvtepi8_epi16(_mm_unpacklo_epi8(x, y)), _mm256_cvtepi8_epi16(_mm_unpackhi_epi8(x, y))};
  }
  static Vi dot_pairs(Vi total, Scale pairs, const int16_t* x) {
    int32_t both;
    std::memcpy(&both, x, 4);
    const __m256i two = _mm256_set1_epi32(both);
    return {_mm256_add_epi32(total.a, _mm256_madd_epi16(pairs.a, two)),
            _mm256_add_epi32(total.b, _mm256_madd_epi16(pairs.b, two))};
  }
  template <int kBits>
  static Vi shift_left(Vi x) {
    return {_mm256_slli_epi32(x.a, kBits), _mm256_slli_epi32(x.b, kBits)};
  }
  // |w| * (x with the sign of w): a pair gives at most 2 * 128 * 127 = 32512, which fits 16 bits.
  struct SignedWeights {
    Vb bytes, magnitude;
  };
  static SignedWeights prepare_signed(Vb w) { return {w, {_mm256_abs_epi8(w.a), _mm256_abs_epi8(w.b)}}; }
  static Vi signed_start(int32_t) { return splat_int(0); }
  static Vi dot_signed(Vi acc, const SignedWeights& w, const int8_t* x) {
    const __m256i four = splat4(x), ones = _mm256_set1_epi16(1);
    auto dot = [&](__m256i magnitude, __m256i sign) {
      return _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(four, sign)), ones);
    };
    return in_order<Vi>({_mm256_add_epi32(acc.a, dot(w.magnitude.a, w.bytes.a)),
                         _mm256_add_epi32(acc.b, dot(w.magnitude.b, w.bytes.b))});
  }

  // A pair gives at most 2 * 127 * 128 = 32512.
  static Vi dot_small(Vi acc, Vb values, const uint8_t* x) {
    const __m256i four = splat4(reinterpret_cast<const int8_t*>(x)), ones = _mm256_set1_epi16(1);
    return in_order<Vi>(
        {_mm256_add_epi32(acc.a, _mm256_madd_epi16(_mm256_maddubs_epi16(four, values.a), ones)),
         _mm256_add_epi32(acc.b, _mm256_madd_epi16(_mm256_maddubs_epi16(four, values.b), ones))});
  }
  static void split_weights(const Vf* x, uint8_t* low, uint8_t* high) {
    const __m256i mask = _mm256_set1_epi16(0x7f), order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const auto words = [](Vf v) {
      return _mm256_packs_epi32(_mm256_cvtps_epi32(v.a), _mm256_cvtps_epi32(v.b));
    };
    const auto store = [&](uint8_t* to, __m256i first, __m256i second) {
      const __m256i bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(first, second), order);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), bytes);
    };
    for (int i = 0; i < 4; i += 2) {
      const __m256i first = words(x[i]), second = words(x[i + 1]);
      store(low + 16 * i, _mm256_and_si256(first, mask), _mm256_and_si256(second, mask));
      store(high + 16 * i, _mm256_srli_epi16(first, 7), _mm256_srli_epi16(second, 7));
    }
  }
  static constexpr size_t split_place(size_t quad) { return quad; }
};

}  // namespace frugal::llm::avx2
