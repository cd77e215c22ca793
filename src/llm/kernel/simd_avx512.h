// 16 lanes as one AVX-512 register, byte products by VNNI. A test compiles it against 512-bit intrinsics
// written out in plain C++ too (tests/llm/kernel/avx512_twin.h), and so checks it on machines without
// AVX-512.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "llm/kernel/kernel.h"

namespace frugal::llm::avx512 {

struct Simd {
  static constexpr const char* kName = "avx512";
  static constexpr int kQuantTile = 8;   // 8 integer and 8 float sums of 32 registers
  static constexpr int kValueTile = 4;   // 16 sums of 32 registers
  static constexpr int kFloatTile = 12;  // columns
  static constexpr int kFloatSums = 24;  // of 32 registers, with 2 to 4 for weights and 1 for a broadcast

  struct Vf {
    __m512 v;
  };
  struct Vi {
    __m512i v;
  };
  struct Vb {
    __m512i v;
  };
  using Acc = Vi;  // VNNI sums four products straight into 32 bits
  static constexpr bool kWideAcc = true;

  static __m128i load128(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
  static __m256i load256(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }

  static Vf zero() { return {_mm512_setzero_ps()}; }
  static Vf splat(float x) { return {_mm512_set1_ps(x)}; }
  static Vf load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Vf load_f16(const uint16_t* p) { return {_mm512_cvtph_ps(load256(p))}; }
  static Vf load_bf16(const uint16_t* p) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(load256(p)), 16))};
  }
  static Vf load_s8(const int8_t* p) { return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load128(p)))}; }
  static void store(float* p, Vf x) { _mm512_storeu_ps(p, x.v); }
  static __m256 lower(__m512 x) { return _mm512_castps512_ps256(x); }
  static __m256 upper(__m512 x) { return _mm512_extractf32x8_ps(x, 1); }
  static void store_f16(uint16_t* p, Vf x) {  // saturates: 65504 is the largest finite half
    x = max(min(x, splat(65504.0f)), splat(-65504.0f));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(lower(x.v), _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8),
                     _mm256_cvtps_ph(upper(x.v), _MM_FROUND_TO_NEAREST_INT));
  }
  static Vf fma(Vf x, Vf y, Vf z) { return {_mm512_fmadd_ps(x.v, y.v, z.v)}; }
  static Vf mul(Vf x, Vf y) { return {_mm512_mul_ps(x.v, y.v)}; }
  static Vf add(Vf x, Vf y) { return {_mm512_add_ps(x.v, y.v)}; }
  static Vf sub(Vf x, Vf y) { return {_mm512_sub_ps(x.v, y.v)}; }
  static Vf div(Vf x, Vf y) { return {_mm512_div_ps(x.v, y.v)}; }
  static Vf max(Vf x, Vf y) { return {_mm512_max_ps(x.v, y.v)}; }
  static Vf min(Vf x, Vf y) { return {_mm512_min_ps(x.v, y.v)}; }
  static Vf abs(Vf x) {
    return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x.v), _mm512_set1_epi32(0x7fffffff)))};
  }
  static Vf zero_where_less(Vf test, Vf limit, Vf x) {
    const __mmask16 less = _mm512_cmp_ps_mask(test.v, limit.v, _CMP_LT_OQ);
    return {_mm512_mask_mov_ps(x.v, less, _mm512_setzero_ps())};
  }
  static Vf round(Vf x) { return {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
  static Vf scale_by_power(Vf x, Vf n) { return {_mm512_scalef_ps(x.v, n.v)}; }
  static float sum_lanes(Vf x) {
    const __m256 eight = _mm256_add_ps(lower(x.v), upper(x.v));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(four, _mm_shuffle_ps(four, four, 1)));
  }
  static float max_lanes(Vf x) {
    const __m256 eight = _mm256_max_ps(lower(x.v), upper(x.v));
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    four = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(four, _mm_shuffle_ps(four, four, 1)));
  }

  static Vi splat_int(int32_t x) { return {_mm512_set1_epi32(x)}; }
  static Vi load_u8_int(const std::byte* p) { return {_mm512_cvtepu8_epi32(load128(p))}; }
  static Vi load_s8_int(const std::byte* p) { return {_mm512_cvtepi8_epi32(load128(p))}; }
  static Vi add_int(Vi x, Vi y) { return {_mm512_add_epi32(x.v, y.v)}; }
  static Vi sub_int(Vi x, Vi y) { return {_mm512_sub_epi32(x.v, y.v)}; }
  template <int kBits>
  static Vi shift_left(Vi x) {
    return {_mm512_slli_epi32(x.v, kBits)};
  }
  static Vf to_float(Vi x) { return {_mm512_cvtepi32_ps(x.v)}; }
  static Vi round_to_s8(int8_t* p, Vf x) {
    const __m512i rounded = _mm512_cvtps_epi32(x.v);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(rounded));
    return {rounded};
  }
  static int32_t sum_lanes_int(Vi x) {
    const __m256i eight = _mm256_add_epi32(_mm512_castsi512_si256(x.v), _mm512_extracti64x4_epi64(x.v, 1));
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4E));
    return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xB1)));
  }

  static Vb load_bytes(const std::byte* p) { return {_mm512_loadu_si512(p)}; }
  static __m512i masked(__m512i x, int byte) {
    return _mm512_and_si512(x, _mm512_set1_epi32(byte * 0x01010101));
  }
  static Vb low_nibbles(Vb x) { return {masked(x.v, 15)}; }
  static Vb high_nibbles(Vb x) { return {masked(_mm512_srli_epi16(x.v, 4), 15)}; }
  // Bits kFrom.. of every byte moved to kTo... Bytes move inside 16-bit lanes: there may be strays.
  template <int kFrom, int kTo>
  static __m512i move_bits(__m512i x) {
    if constexpr (kFrom > kTo) return _mm512_srli_epi16(x, kFrom - kTo);
    if constexpr (kFrom < kTo) return _mm512_slli_epi16(x, kTo - kFrom);
    return x;
  }
  static __m512i or_bits(__m512i x, __m512i bits, int byte) {  // x | bits & mask
    return _mm512_ternarylogic_epi32(x, bits, _mm512_set1_epi32(byte * 0x01010101), 0xf8);
  }
  template <int kIndex>
  static Vb with_fifth_bit(Vb low, Vb bits) {
    return {or_bits(low.v, move_bits<kIndex, 4>(bits.v), 0x10)};
  }
  template <int kIndex>
  static Vb with_high_bits(Vb low, Vb bits) {
    return {or_bits(low.v, move_bits<2 * kIndex, 4>(bits.v), 0x30)};
  }

  static __m512i splat4(const void* x) {
    int32_t four;
    std::memcpy(&four, x, 4);
    return _mm512_set1_epi32(four);
  }
  static Acc acc_zero() { return {_mm512_setzero_si512()}; }
  static Acc acc_dot(Acc acc, Vb weights, const int8_t* x) {
    return {_mm512_dpbusd_epi32(acc.v, weights.v, splat4(x))};
  }
  static Vi widen(Acc acc) { return acc; }

  using Scale = Vi;
  static Scale load_scale_u8(const std::byte* p) { return load_u8_int(p); }
  static Scale load_scale_s8(const std::byte* p) { return load_s8_int(p); }
  static Vi add_scaled_acc(Vi total, Acc acc, Scale scale) {
    return {_mm512_add_epi32(total.v, _mm512_mullo_epi32(acc.v, scale.v))};
  }
  struct Pairs {
    __m512i v;  // 16 bits, two for each row
  };
  static __m256i interleaved(const std::byte* p, const std::byte* q) {
    const __m128i x = load128(p), y = load128(q);
    return _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_unpacklo_epi8(x, y)), _mm_unpackhi_epi8(x, y),
                                   1);
  }
  static Pairs load_pairs_u8(const std::byte* p, const std::byte* q) {
    return {_mm512_cvtepu8_epi16(interleaved(p, q))};
  }
  static Pairs load_pairs_s8(const std::byte* p, const std::byte* q) {
    return {_mm512_cvtepi8_epi16(interleaved(p, q))};
  }
  static Vi dot_pairs(Vi total, Pairs pairs, const int16_t* x) {
    return {_mm512_dpwssd_epi32(total.v, pairs.v, splat4(x))};
  }

  // VNNI multiplies unsigned with signed bytes: w + 128, and sums start from -128 times the sum of x, of
  // which `offset` is a sixteenth.
  using SignedWeights = Vb;
  static Vi signed_start(int32_t offset) { return shift_left<4>(splat_int(offset)); }
  static SignedWeights prepare_signed(Vb w) {
    return {_mm512_xor_si512(w.v, _mm512_set1_epi32(static_cast<int>(0x80808080)))};
  }
  static Vi dot_signed(Vi acc, const SignedWeights& w, const int8_t* x) { return acc_dot(acc, w, x); }

  static Vi dot_small(Vi acc, Vb values, const uint8_t* x) {
    return {_mm512_dpbusd_epi32(acc.v, splat4(x), values.v)};
  }
  // Packing goes by 128 bits: tokens 4q .. 4q + 3 stay together, at split_place(q).
  static void split_weights(const Vf* x, uint8_t* low, uint8_t* high) {
    const auto words = [&](int i) {
      return _mm512_packs_epi32(_mm512_cvtps_epi32(x[i].v), _mm512_cvtps_epi32(x[i + 1].v));
    };
    const __m512i first = words(0), second = words(2), mask = _mm512_set1_epi32(0x007f007f);
    _mm512_storeu_si512(low,
                        _mm512_packus_epi16(_mm512_and_si512(first, mask), _mm512_and_si512(second, mask)));
    _mm512_storeu_si512(high, _mm512_packus_epi16(_mm512_srli_epi16(first, 7), _mm512_srli_epi16(second, 7)));
  }
  static constexpr size_t split_place(size_t quad) { return quad % 4 * 4 + quad / 4; }
};

}  // namespace frugal::llm::avx512
