// 16 lanes as four NEON registers, byte products by the dot-product instructions of Armv8.2. Every processor
// that runs a language model today has them; others take the set in plain C++. A test runs this set under
// emulation and holds it bit for bit to the AVX2 set (tests/llm/kernel/neon_test.py).
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "llm/kernel/kernel.h"

namespace frugal::llm::neon {

struct Simd {
  static constexpr const char* kName = "neon";
  static constexpr int kQuantTile =
      4;  // 16 integer sums of 32 registers, 4 of weights; float sums come once a block
  static constexpr int kValueTile = 1;  // 16 registers of sums, 8 of values
  static constexpr int kFloatTile = 6;  // columns
  static constexpr int kFloatSums = 6;  // 24 registers, with 4 for weights and 1 for a broadcast

  struct Vf {
    float32x4_t v[4];
  };
  struct Vi {
    int32x4_t v[4];
  };
  struct Vb {
    uint8x16_t v[4];  // 4 rows of 4 bytes each
  };
  using Acc = Vi;  // four products at once straight into 32 bits
  static constexpr bool kWideAcc = true;

  // f(0), .. f(3): one operation for each register.
  template <typename F>
  static Vf map(F f) {
    return {{f(0), f(1), f(2), f(3)}};
  }
  template <typename F>
  static Vi map_int(F f) {
    return {{f(0), f(1), f(2), f(3)}};
  }
  template <typename F>
  static Vb map_bytes(F f) {
    return {{f(0), f(1), f(2), f(3)}};
  }

  static Vf zero() { return splat(0); }
  static Vf splat(float x) {
    return map([&](int) { return vdupq_n_f32(x); });
  }
  static Vf load(const float* p) {
    return map([&](int i) { return vld1q_f32(p + 4 * i); });
  }
  static Vf load_f16(const uint16_t* p) {
    return map([&](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))); });
  }
  static Vf load_bf16(const uint16_t* p) {
    return map([&](int i) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16)); });
  }
  static Vf load_s8(const int8_t* p) { return to_float(load_s8_int(reinterpret_cast<const std::byte*>(p))); }
  static void store(float* p, Vf x) {
    for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, x.v[i]);
  }
  static void store_f16(uint16_t* p, Vf x) {  // saturates: 65504 is the largest finite half
    x = max(min(x, splat(65504.0f)), splat(-65504.0f));
    for (int i = 0; i < 4; ++i) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(x.v[i])));
  }
  static Vf fma(Vf x, Vf y, Vf z) {
    return map([&](int i) { return vfmaq_f32(z.v[i], x.v[i], y.v[i]); });
  }
  static Vf mul(Vf x, Vf y) {
    return map([&](int i) { return vmulq_f32(x.v[i], y.v[i]); });
  }
  static Vf add(Vf x, Vf y) {
    return map([&](int i) { return vaddq_f32(x.v[i], y.v[i]); });
  }
  static Vf sub(Vf x, Vf y) {
    return map([&](int i) { return vsubq_f32(x.v[i], y.v[i]); });
  }
  static Vf div(Vf x, Vf y) {
    return map([&](int i) { return vdivq_f32(x.v[i], y.v[i]); });
  }
  // A comparison and a choice, so that a NaN gives the second operand as in the other sets.
  static Vf max(Vf x, Vf y) {
    return map([&](int i) { return vbslq_f32(vcgtq_f32(x.v[i], y.v[i]), x.v[i], y.v[i]); });
  }
  static Vf min(Vf x, Vf y) {
    return map([&](int i) { return vbslq_f32(vcltq_f32(x.v[i], y.v[i]), x.v[i], y.v[i]); });
  }
  static Vf abs(Vf x) {
    return map([&](int i) { return vabsq_f32(x.v[i]); });
  }
  static Vf zero_where_less(Vf test, Vf limit, Vf x) {
    return map([&](int i) {
      return vreinterpretq_f32_u32(
          vbicq_u32(vreinterpretq_u32_f32(x.v[i]), vcltq_f32(test.v[i], limit.v[i])));
    });
  }
  static Vf round(Vf x) {
    return map([&](int i) { return vrndnq_f32(x.v[i]); });
  }
  static Vf scale_by_power(Vf x, Vf n) {
    return map([&](int i) {
      const int32x4_t exponent = vaddq_s32(vcvtq_s32_f32(n.v[i]), vdupq_n_s32(127));
      return vmulq_f32(x.v[i], vreinterpretq_f32_s32(vshlq_n_s32(exponent, 23)));
    });
  }
  static float sum_lanes(Vf x) {
    const float32x4_t four = vaddq_f32(vaddq_f32(x.v[0], x.v[2]), vaddq_f32(x.v[1], x.v[3]));
    const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
    return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
  }
  static float max_lanes(Vf x) {
    const float32x4_t four = vmaxq_f32(vmaxq_f32(x.v[0], x.v[2]), vmaxq_f32(x.v[1], x.v[3]));
    return vmaxvq_f32(four);
  }

  static Vi splat_int(int32_t x) {
    return map_int([&](int) { return vdupq_n_s32(x); });
  }
  static Vi load_u8_int(const std::byte* p) {
    const uint8x16_t bytes = vld1q_u8(reinterpret_cast<const uint8_t*>(p));
    const uint16x8_t low = vmovl_u8(vget_low_u8(bytes)), high = vmovl_u8(vget_high_u8(bytes));
    return {{vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(low))),
             vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(low))),
             vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(high))),
             vreinterpretq_s32_u32(vmovl_u16(vget_high_u16(high)))}};
  }
  static Vi load_s8_int(const std::byte* p) {
    const int8x16_t bytes = vld1q_s8(reinterpret_cast<const int8_t*>(p));
    const int16x8_t low = vmovl_s8(vget_low_s8(bytes)), high = vmovl_s8(vget_high_s8(bytes));
    return {{vmovl_s16(vget_low_s16(low)), vmovl_s16(vget_high_s16(low)), vmovl_s16(vget_low_s16(high)),
             vmovl_s16(vget_high_s16(high))}};
  }
  static Vi add_int(Vi x, Vi y) {
    return map_int([&](int i) { return vaddq_s32(x.v[i], y.v[i]); });
  }
  static Vi sub_int(Vi x, Vi y) {
    return map_int([&](int i) { return vsubq_s32(x.v[i], y.v[i]); });
  }
  template <int kBits>
  static Vi shift_left(Vi x) {
    return map_int([&](int i) { return vshlq_n_s32(x.v[i], kBits); });
  }
  static Vf to_float(Vi x) {
    return map([&](int i) { return vcvtq_f32_s32(x.v[i]); });
  }
  static Vi round_to_s8(int8_t* p, Vf x) {
    const Vi rounded = map_int([&](int i) { return vcvtnq_s32_f32(x.v[i]); });
    const int16x8_t low = vcombine_s16(vqmovn_s32(rounded.v[0]), vqmovn_s32(rounded.v[1]));
    const int16x8_t high = vcombine_s16(vqmovn_s32(rounded.v[2]), vqmovn_s32(rounded.v[3]));
    vst1q_s8(p, vcombine_s8(vqmovn_s16(low), vqmovn_s16(high)));
    return rounded;
  }
  static int32_t sum_lanes_int(Vi x) {
    return vaddvq_s32(vaddq_s32(vaddq_s32(x.v[0], x.v[1]), vaddq_s32(x.v[2], x.v[3])));
  }

  static Vb load_bytes(const std::byte* p) {
    return map_bytes([&](int i) { return vld1q_u8(reinterpret_cast<const uint8_t*>(p) + 16 * i); });
  }
  static Vb low_nibbles(Vb x) {
    return map_bytes([&](int i) { return vandq_u8(x.v[i], vdupq_n_u8(15)); });
  }
  static Vb high_nibbles(Vb x) {
    return map_bytes([&](int i) { return vshrq_n_u8(x.v[i], 4); });
  }
  // Bits kFrom.. of every byte moved to kTo.., masked.
  template <int kFrom, int kTo>
  static uint8x16_t move_bits(uint8x16_t x, uint8_t mask) {
    if constexpr (kFrom > kTo) x = vshrq_n_u8(x, kFrom - kTo);
    if constexpr (kFrom < kTo) x = vshlq_n_u8(x, kTo - kFrom);
    return vandq_u8(x, vdupq_n_u8(mask));
  }
  template <int kIndex>
  static Vb with_fifth_bit(Vb low, Vb bits) {
    return map_bytes([&](int i) { return vorrq_u8(low.v[i], move_bits<kIndex, 4>(bits.v[i], 0x10)); });
  }
  template <int kIndex>
  static Vb with_high_bits(Vb low, Vb bits) {
    return map_bytes([&](int i) { return vorrq_u8(low.v[i], move_bits<2 * kIndex, 4>(bits.v[i], 0x30)); });
  }

  static int8x16_t splat4(const int8_t* x) {
    int32_t four;
    std::memcpy(&four, x, 4);
    return vreinterpretq_s8_s32(vdupq_n_s32(four));
  }
  static Acc acc_zero() { return splat_int(0); }
  static Acc acc_dot(Acc acc, Vb weights, const int8_t* x) {
    return dot_signed(acc, weights, x);
  }  // below 64
  static Vi widen(Acc acc) { return acc; }

  using Scale = Vi;
  static Scale load_scale_u8(const std::byte* p) { return load_u8_int(p); }
  static Scale load_scale_s8(const std::byte* p) { return load_s8_int(p); }
  static Vi add_scaled_acc(Vi total, Acc acc, Scale scale) {
    return map_int([&](int i) { return vmlaq_s32(total.v[i], acc.v[i], scale.v[i]); });
  }
  struct Pairs {
    Vi first, second;
  };
  static Pairs load_pairs_u8(const std::byte* p, const std::byte* q) {
    return {load_u8_int(p), load_u8_int(q)};
  }
  static Pairs load_pairs_s8(const std::byte* p, const std::byte* q) {
    return {load_s8_int(p), load_s8_int(q)};
  }
  static Vi dot_pairs(Vi total, const Pairs& pairs, const int16_t* x) {
    return map_int([&](int i) {
      return vmlaq_n_s32(vmlaq_n_s32(total.v[i], pairs.first.v[i], x[0]), pairs.second.v[i], x[1]);
    });
  }

  using SignedWeights = Vb;
  static SignedWeights prepare_signed(Vb w) { return w; }
  static Vi signed_start(int32_t) { return splat_int(0); }
  static Vi dot_signed(Vi acc, const SignedWeights& w, const int8_t* x) {
    const int8x16_t four = splat4(x);
    return map_int([&](int i) { return vdotq_s32(acc.v[i], vreinterpretq_s8_u8(w.v[i]), four); });
  }

  static Vi dot_small(Vi acc, const Vb& values, const uint8_t* x) {
    return dot_signed(acc, values, reinterpret_cast<const int8_t*>(x));
  }
  static void split_weights(const Vf* x, uint8_t* low, uint8_t* high) {
    const auto words = [](Vf v, int i) {
      return vcombine_u16(vqmovun_s32(vcvtnq_s32_f32(v.v[i])), vqmovun_s32(vcvtnq_s32_f32(v.v[i + 1])));
    };
    for (int i = 0; i < 4; ++i) {
      const uint16x8_t first = words(x[i], 0), second = words(x[i], 2);
      const uint8x16_t lows = vcombine_u8(vmovn_u16(first), vmovn_u16(second));
      vst1q_u8(low + 16 * i, vandq_u8(lows, vdupq_n_u8(127)));
      vst1q_u8(high + 16 * i, vcombine_u8(vshrn_n_u16(first, 7), vshrn_n_u16(second, 7)));
    }
  }
  static constexpr size_t split_place(size_t quad) { return quad; }
};

}  // namespace frugal::llm::neon
