// Vectors of 16 lanes in plain C++, for processors without a set of their own and as the twin of those with
// one. The operations are the contract of every simd_*.h; each is one rounding, so that sets differ only in
// fused sums.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "llm/kernel/kernel.h"

namespace frugal::llm::generic {

struct Simd {
  static constexpr const char* kName = "generic";
  static constexpr int kQuantTile = 4;  // columns for which unpacked weights are kept in registers
  static constexpr int kValueTile = 2;  // columns whose weights of 256 tokens are integers at once
  static constexpr int kFloatTile = 4;  // columns
  static constexpr int kFloatSums = 4;  // panels times columns whose sums are under way at once

  struct Vf {  // 16 floats
    float lane[16];
  };
  struct Vi {  // 16 int32
    int32_t lane[16];
  };
  struct Vb {  // 64 bytes: 4 for each of 16 rows
    uint8_t byte[64];
  };
  using Acc = Vi;                         // sums of four-way byte products, before widening
  static constexpr bool kWideAcc = true;  // takes all products of a block without overflow

  template <typename F>
  static Vf map(F f) {
    Vf out;
    for (int i = 0; i < 16; ++i) out.lane[i] = f(i);
    return out;
  }
  template <typename F>
  static Vi map_int(F f) {
    Vi out;
    for (int i = 0; i < 16; ++i) out.lane[i] = f(i);
    return out;
  }

  static Vf zero() { return splat(0); }
  static Vf splat(float x) {
    return map([&](int) { return x; });
  }
  static Vf load(const float* p) {
    return map([&](int i) { return p[i]; });
  }
  static Vf load_f16(const uint16_t* p) {
    return map([&](int i) { return f16_to_f32(p[i]); });
  }
  static Vf load_bf16(const uint16_t* p) {
    return map([&](int i) { return bf16_to_f32(p[i]); });
  }
  static Vf load_s8(const int8_t* p) {
    return map([&](int i) { return static_cast<float>(p[i]); });
  }
  static void store(float* p, Vf a) { std::memcpy(p, a.lane, sizeof a.lane); }
  static void store_f16(uint16_t* p, Vf a) {
    for (int i = 0; i < 16; ++i) p[i] = f32_to_f16(a.lane[i]);
  }
  static Vf fma(Vf a, Vf b, Vf c) {  // unfused here: a software fma would be a hundred times slower
    return map([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
  }
  static Vf mul(Vf a, Vf b) {
    return map([&](int i) { return a.lane[i] * b.lane[i]; });
  }
  static Vf add(Vf a, Vf b) {
    return map([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static Vf sub(Vf a, Vf b) {
    return map([&](int i) { return a.lane[i] - b.lane[i]; });
  }
  static Vf div(Vf a, Vf b) {
    return map([&](int i) { return a.lane[i] / b.lane[i]; });
  }
  static Vf max(Vf a, Vf b) {
    return map([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static Vf min(Vf a, Vf b) {
    return map([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
  }
  static Vf abs(Vf a) {
    return map([&](int i) { return std::fabs(a.lane[i]); });
  }
  // a where test < limit, else 0.
  static Vf zero_where_less(Vf test, Vf limit, Vf a) {
    return map([&](int i) { return test.lane[i] < limit.lane[i] ? 0.0f : a.lane[i]; });
  }
  static Vf round(Vf a) {
    return map([&](int i) { return std::nearbyint(a.lane[i]); });
  }
  // a * 2^n for integral n in [-126, 127].
  static Vf scale_by_power(Vf a, Vf n) {
    return map([&](int i) {
      const uint32_t bits = static_cast<uint32_t>(static_cast<int32_t>(n.lane[i]) + 127) << 23;
      float power;
      std::memcpy(&power, &bits, 4);
      return a.lane[i] * power;
    });
  }
  // Sum of lanes as ((l0+l8)+(l4+l12)) + ... by halves: the same tree in every set.
  static float sum_lanes(Vf a) {
    for (int half = 8; half >= 1; half /= 2) {
      for (int i = 0; i < half; ++i) a.lane[i] += a.lane[i + half];
    }
    return a.lane[0];
  }
  static float max_lanes(Vf a) {
    float result = a.lane[0];
    for (int i = 1; i < 16; ++i) result = a.lane[i] > result ? a.lane[i] : result;
    return result;
  }

  static Vi splat_int(int32_t x) {
    return map_int([&](int) { return x; });
  }
  static Vi load_u8_int(const std::byte* p) {
    return map_int([&](int i) { return static_cast<int32_t>(static_cast<uint8_t>(p[i])); });
  }
  static Vi load_s8_int(const std::byte* p) {
    return map_int([&](int i) { return static_cast<int32_t>(static_cast<int8_t>(p[i])); });
  }
  static Vi add_int(Vi a, Vi b) {
    return map_int([&](int i) { return a.lane[i] + b.lane[i]; });
  }
  static Vi sub_int(Vi a, Vi b) {
    return map_int([&](int i) { return a.lane[i] - b.lane[i]; });
  }
  static Vf to_float(Vi a) {
    return map([&](int i) { return static_cast<float>(a.lane[i]); });
  }
  // Rounds to nearest even and stores 16 int8; returns the int32 values. Out of range gives unspecified
  // bytes.
  static Vi round_to_s8(int8_t* p, Vf a) {
    const Vi rounded = map_int([&](int i) {
      const float value = a.lane[i];
      return value >= -128 && value <= 127 ? static_cast<int32_t>(std::nearbyint(value)) : 0;
    });
    for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(rounded.lane[i]);
    return rounded;
  }
  static int32_t sum_lanes_int(Vi a) {
    int32_t sum = 0;
    for (int i = 0; i < 16; ++i) sum += a.lane[i];
    return sum;
  }

  static Vb load_bytes(const std::byte* p) {
    Vb out;
    std::memcpy(out.byte, p, 64);
    return out;
  }
  static Vb low_nibbles(Vb a) {
    for (uint8_t& b : a.byte) b &= 15;
    return a;
  }
  static Vb high_nibbles(Vb a) {
    for (uint8_t& b : a.byte) b >>= 4;
    return a;
  }
  // low | (bit `index` of each byte of bits) << 4
  template <int kIndex>
  static Vb with_fifth_bit(Vb low, Vb bits) {
    for (int i = 0; i < 64; ++i)
      low.byte[i] = static_cast<uint8_t>(low.byte[i] | ((bits.byte[i] >> kIndex) & 1) << 4);
    return low;
  }
  // low | (bits 2 * index, 2 * index + 1 of each byte of bits) << 4
  template <int kIndex>
  static Vb with_high_bits(Vb low, Vb bits) {
    for (int i = 0; i < 64; ++i) {
      low.byte[i] = static_cast<uint8_t>(low.byte[i] | ((bits.byte[i] >> (2 * kIndex)) & 3) << 4);
    }
    return low;
  }
  static Acc acc_zero() { return splat_int(0); }
  // Adds, for each row, the product of its four unsigned weights (below 64) with the four signed bytes at x.
  // Sets may hold Acc in 16 bits: at most 8 additions of 4-bit, 4 of 5-bit, 2 of 6-bit weights before
  // widening.
  static Acc acc_dot(Acc acc, Vb weights, const int8_t* x) {
    for (int row = 0; row < 16; ++row) {
      for (int i = 0; i < 4; ++i) acc.lane[row] += weights.byte[4 * row + i] * x[i];
    }
    return acc;
  }
  static Vi widen(Acc acc) { return acc; }
  // total + acc * scale, row by row. Products of eight 4-bit, four 5-bit or two 6-bit additions fit.
  using Scale = Vi;
  static Scale load_scale_u8(const std::byte* p) { return load_u8_int(p); }
  static Scale load_scale_s8(const std::byte* p) { return load_s8_int(p); }
  static Vi add_scaled_acc(Vi total, Acc acc, Scale scale) {
    return map_int([&](int i) { return total.lane[i] + acc.lane[i] * scale.lane[i]; });
  }
  // total + first * x[0] + second * x[1], row by row.
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
    return map_int(
        [&](int i) { return total.lane[i] + pairs.first.lane[i] * x[0] + pairs.second.lane[i] * x[1]; });
  }
  template <int kBits>
  static Vi shift_left(Vi a) {
    return map_int([&](int i) { return a.lane[i] * (1 << kBits); });
  }
  // The same with signed weights, straight into 32 bits. `weights` as prepared by prepare_signed.
  struct SignedWeights {
    Vb bytes;
  };
  static SignedWeights prepare_signed(Vb weights) { return {weights}; }
  // What the sums of products start from; `offset` is -8 times the sum of all x that will come.
  static Vi signed_start(int32_t) { return splat_int(0); }
  static Vi dot_signed(Vi acc, const SignedWeights& weights, const int8_t* x) {
    for (int row = 0; row < 16; ++row) {
      for (int i = 0; i < 4; ++i)
        acc.lane[row] += static_cast<int8_t>(weights.bytes.byte[4 * row + i]) * x[i];
    }
    return acc;
  }

  // Adds, for each row, the product of its four signed bytes with the four unsigned ones, below 128, at x.
  static Vi dot_small(Vi acc, const Vb& values, const uint8_t* x) {
    for (int row = 0; row < 16; ++row) {
      for (int i = 0; i < 4; ++i) acc.lane[row] += static_cast<int8_t>(values.byte[4 * row + i]) * x[i];
    }
    return acc;
  }
  // Rounds 64 numbers of [0, 2^14 - 1] to nearest even: bits 0 to 6 to `low`, 7 to 13 to `high`. Numbers 4q
  // to 4q + 3 stand at 4 * split_place(q). Out of range gives unspecified bytes.
  static void split_weights(const Vf* x, uint8_t* low, uint8_t* high) {
    for (int i = 0; i < 64; ++i) {
      const float value = x[i / 16].lane[i % 16];
      const int rounded = value >= 0 && value < (1 << 14) ? static_cast<int>(std::nearbyint(value)) : 0;
      low[i] = static_cast<uint8_t>(rounded & 127);
      high[i] = static_cast<uint8_t>(rounded >> 7 & 127);
    }
  }
  static constexpr size_t split_place(size_t quad) { return quad; }
};

}  // namespace frugal::llm::generic
