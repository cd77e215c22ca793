// The 512-bit intrinsics that simd_avx512.h uses, lane by lane in plain C++ as Intel's guide describes them,
// under their own names: the AVX-512 set runs over them on any machine with AVX2. Included before
// simd_avx512.h.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

namespace twin {

struct F512 {
  float lane[16];
};
struct I512 {
  int32_t lane[16];
};

template <typename To, typename From>
To as(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}
template <typename T>
struct Lanes {
  T lane[64 / sizeof(T)];
};
template <typename T, typename F>
I512 each(F f) {
  Lanes<T> out;
  for (int i = 0; i < static_cast<int>(64 / sizeof(T)); ++i) out.lane[i] = static_cast<T>(f(i));
  return as<I512>(out);
}
template <typename F>
F512 floats(F f) {
  F512 out;
  for (int i = 0; i < 16; ++i) out.lane[i] = f(i);
  return out;
}

inline F512 set1(float x) {
  return floats([&](int) { return x; });
}
inline I512 set1(int32_t x) {
  return each<int32_t>([&](int) { return x; });
}
inline F512 load(const float* p) {
  return floats([&](int i) { return p[i]; });
}
inline I512 load(const void* p) {
  I512 out;
  std::memcpy(&out, p, 64);
  return out;
}
// Bit by bit: the bit of `kTable` whose number has the bits of x, y and z, x the highest.
template <int kTable>
I512 ternary(const I512& x, const I512& y, const I512& z) {
  return each<int32_t>([&](int i) {
    uint32_t out = 0;
    for (int bit = 0; bit < 32; ++bit) {
      const auto at = [&](const I512& v) { return static_cast<uint32_t>(v.lane[i]) >> bit & 1; };
      out |= static_cast<uint32_t>(kTable) >> (at(x) << 2 | at(y) << 1 | at(z)) << 31 >> 31 << bit;
    }
    return out;
  });
}
inline void store(float* p, const F512& x) { std::memcpy(p, &x, 64); }
inline __m256 half(const F512& x, int which) { return _mm256_loadu_ps(x.lane + 8 * which); }
inline __m256i half(const I512& x, int which) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x.lane + 8 * which));
}
inline F512 from_halves(__m128i low, __m128i high) {
  F512 out;
  _mm256_storeu_ps(out.lane, _mm256_cvtph_ps(low));
  _mm256_storeu_ps(out.lane + 8, _mm256_cvtph_ps(high));
  return out;
}
template <typename From, typename To, typename V>
I512 widen(V bytes) {
  From in[64 / sizeof(To)];
  static_assert(sizeof in == sizeof bytes);
  std::memcpy(in, &bytes, sizeof in);
  return each<To>([&](int i) { return in[i]; });
}
inline I512 to_int(const F512& x) {  // round to nearest even; beyond the range, 0x80000000
  return each<int32_t>([&](int i) {
    const float v = x.lane[i];
    return v >= -2147483648.0f && v < 2147483648.0f ? static_cast<int32_t>(std::nearbyint(v)) : INT32_MIN;
  });
}
inline __m128i saturated_bytes(const I512& x) {
  int8_t out[16];
  for (int i = 0; i < 16; ++i)
    out[i] = static_cast<int8_t>(x.lane[i] < -128 ? -128 : x.lane[i] > 127 ? 127 : x.lane[i]);
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(out));
}
inline I512 dot_bytes(const I512& sum, const I512& unsigned_bytes, const I512& signed_bytes) {
  const auto u = as<Lanes<uint8_t>>(unsigned_bytes);
  const auto s = as<Lanes<int8_t>>(signed_bytes);
  return each<int32_t>([&](int i) {
    int32_t total = sum.lane[i];
    for (int j = 4 * i; j < 4 * i + 4; ++j) total += u.lane[j] * s.lane[j];
    return total;
  });
}
inline I512 dot_words(const I512& sum, const I512& a, const I512& b) {
  const auto x = as<Lanes<int16_t>>(a), y = as<Lanes<int16_t>>(b);
  return each<int32_t>([&](int i) {
    return sum.lane[i] + x.lane[2 * i] * y.lane[2 * i] + x.lane[2 * i + 1] * y.lane[2 * i + 1];
  });
}
inline I512 shift_words(const I512& x, int left) {  // negative: right, logical
  const auto in = as<Lanes<uint16_t>>(x);
  return each<uint16_t>([&](int i) { return left >= 0 ? in.lane[i] << left : in.lane[i] >> -left; });
}

// Saturates to To, 128 bits of x and of y by turns.
template <typename From, typename To>
I512 pack(const I512& x, const I512& y) {
  const auto a = as<Lanes<From>>(x), b = as<Lanes<From>>(y);
  constexpr int kHalf = 16 / sizeof(From);
  return each<To>([&](int i) {
    const int at = i / (2 * kHalf) * kHalf + i % kHalf;
    const int value = i / kHalf % 2 == 0 ? a.lane[at] : b.lane[at];
    constexpr int kLow = std::numeric_limits<To>::min(), kHigh = std::numeric_limits<To>::max();
    return value < kLow ? kLow : value > kHigh ? kHigh : value;
  });
}

}  // namespace twin

// The extremes return their second operand when one is a NaN, as the processor does.
#define TWIN_FLOATS(expression) twin::floats([&](int i) -> float { return expression; })
#define TWIN_INTS(expression) twin::each<int32_t>([&](int i) { return expression; })

#define __m512 twin::F512
#define __m512i twin::I512
#define _mm512_setzero_ps() twin::set1(0.0f)
#define _mm512_set1_ps(x) twin::set1(static_cast<float>(x))
#define _mm512_setzero_si512() twin::set1(int32_t{0})
#define _mm512_set1_epi32(x) twin::set1(static_cast<int32_t>(x))
#define _mm512_loadu_ps(p) twin::load(static_cast<const float*>(p))
#define _mm512_loadu_si512(p) twin::load(static_cast<const void*>(p))
#define _mm512_storeu_ps(p, x) twin::store(p, x)
#define _mm512_storeu_si512(p, x) std::memcpy(p, &static_cast<const twin::I512&>(x), 64)
#define _mm512_cvtph_ps(x) twin::from_halves(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1))
#define _mm512_castps512_ps256(x) twin::half(x, 0)
#define _mm512_extractf32x8_ps(x, which) twin::half(x, which)
#define _mm512_castsi512_si256(x) twin::half(x, 0)
#define _mm512_extracti64x4_epi64(x, which) twin::half(x, which)
#define _mm512_castsi512_ps(x) twin::as<twin::F512>(x)
#define _mm512_castps_si512(x) twin::as<twin::I512>(x)
#define _mm512_cvtepu16_epi32(x) (twin::widen<uint16_t, int32_t>(x))
#define _mm512_cvtepi8_epi32(x) (twin::widen<int8_t, int32_t>(x))
#define _mm512_cvtepu8_epi32(x) (twin::widen<uint8_t, int32_t>(x))
#define _mm512_cvtepu8_epi16(x) (twin::widen<uint8_t, int16_t>(x))
#define _mm512_cvtepi8_epi16(x) (twin::widen<int8_t, int16_t>(x))
#define _mm512_cvtepi32_ps(x) twin_cvtepi32_ps(x)
#define _mm512_cvtps_epi32(x) twin::to_int(x)
#define _mm512_cvtsepi32_epi8(x) twin::saturated_bytes(x)
#define _mm512_fmadd_ps(x, y, z) twin_fmadd(x, y, z)
#define _mm512_mul_ps(x, y) twin_mul(x, y)
#define _mm512_add_ps(x, y) twin_add(x, y)
#define _mm512_sub_ps(x, y) twin_sub(x, y)
#define _mm512_div_ps(x, y) twin_div(x, y)
#define _mm512_max_ps(x, y) twin_max(x, y)
#define _mm512_min_ps(x, y) twin_min(x, y)
#define _mm512_cmp_ps_mask(x, y, predicate) twin_less(x, y)
#define _mm512_mask_mov_ps(x, mask, y) twin_select(x, mask, y)
#define _mm512_roundscale_ps(x, mode) twin_round(x)
#define _mm512_scalef_ps(x, y) TWIN_FLOATS(std::ldexp((x).lane[i], static_cast<int>((y).lane[i])))
#define _mm512_add_epi32(x, y) twin_add(x, y)
#define _mm512_sub_epi32(x, y) twin_sub(x, y)
#define _mm512_mullo_epi32(x, y) twin_mul(x, y)
#define _mm512_and_si512(x, y) twin_and(x, y)
#define _mm512_xor_si512(x, y) twin_xor(x, y)
#define _mm512_ternarylogic_epi32(x, y, z, table) twin::ternary<table>(x, y, z)
#define _mm512_slli_epi32(x, bits) twin_shift(x, bits)
#define _mm512_slli_epi16(x, bits) twin::shift_words(x, bits)
#define _mm512_srli_epi16(x, bits) twin::shift_words(x, -(bits))
#define _mm512_packs_epi32(x, y) (twin::pack<int32_t, int16_t>(x, y))
#define _mm512_packus_epi16(x, y) (twin::pack<int16_t, uint8_t>(x, y))
#define _mm512_dpbusd_epi32(sum, x, y) twin::dot_bytes(sum, x, y)
#define _mm512_dpwssd_epi32(sum, x, y) twin::dot_words(sum, x, y)

inline twin::F512 twin_cvtepi32_ps(const twin::I512& x) { return TWIN_FLOATS(static_cast<float>(x.lane[i])); }
inline twin::F512 twin_fmadd(const twin::F512& x, const twin::F512& y, const twin::F512& z) {
  return TWIN_FLOATS(__builtin_fmaf(x.lane[i], y.lane[i], z.lane[i]));
}
inline twin::F512 twin_mul(const twin::F512& x, const twin::F512& y) {
  return TWIN_FLOATS(x.lane[i] * y.lane[i]);
}
inline twin::F512 twin_add(const twin::F512& x, const twin::F512& y) {
  return TWIN_FLOATS(x.lane[i] + y.lane[i]);
}
inline twin::F512 twin_sub(const twin::F512& x, const twin::F512& y) {
  return TWIN_FLOATS(x.lane[i] - y.lane[i]);
}
inline twin::F512 twin_div(const twin::F512& x, const twin::F512& y) {
  return TWIN_FLOATS(x.lane[i] / y.lane[i]);
}
inline twin::F512 twin_max(const twin::F512& x, const twin::F512& y) {
  return TWIN_FLOATS(x.lane[i] > y.lane[i] ? x.lane[i] : y.lane[i]);
}
inline twin::F512 twin_min(const twin::F512& x, const twin::F512& y) {
  return TWIN_FLOATS(x.lane[i] < y.lane[i] ? x.lane[i] : y.lane[i]);
}
inline __mmask16 twin_less(const twin::F512& x, const twin::F512& y) {
  unsigned mask = 0;
  for (int i = 0; i < 16; ++i) mask |= static_cast<unsigned>(x.lane[i] < y.lane[i]) << i;
  return static_cast<__mmask16>(mask);
}
inline twin::F512 twin_select(const twin::F512& x, __mmask16 mask, const twin::F512& y) {
  return TWIN_FLOATS(mask >> i & 1 ? y.lane[i] : x.lane[i]);
}
inline twin::F512 twin_round(const twin::F512& x) { return TWIN_FLOATS(std::nearbyint(x.lane[i])); }
inline twin::I512 twin_add(const twin::I512& x, const twin::I512& y) {
  return TWIN_INTS(x.lane[i] + y.lane[i]);
}
inline twin::I512 twin_sub(const twin::I512& x, const twin::I512& y) {
  return TWIN_INTS(x.lane[i] - y.lane[i]);
}
inline twin::I512 twin_mul(const twin::I512& x, const twin::I512& y) {
  return TWIN_INTS(x.lane[i] * y.lane[i]);
}
inline twin::I512 twin_and(const twin::I512& x, const twin::I512& y) {
  return TWIN_INTS(x.lane[i] & y.lane[i]);
}
inline twin::I512 twin_xor(const twin::I512& x, const twin::I512& y) {
  return TWIN_INTS(x.lane[i] ^ y.lane[i]);
}
inline twin::I512 twin_shift(const twin::I512& x, int bits) {
  return TWIN_INTS(static_cast<int32_t>(static_cast<uint32_t>(x.lane[i]) << bits));
}
