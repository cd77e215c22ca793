// The micro-kernels, written once over a Simd set (simd_*.h) and compiled once for each instruction set.
// `make_kernels<Simd>()` gives the table. Every loop over columns comes in tiles whose size is a template
// parameter; the tile size changes which loads are shared, never the order in which an output is summed.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "llm/kernel/kernel.h"
#include "llm/kernel/panel.h"
#include "llm/kernel/tiles.inc.h"
#include "llm/kernel/values.inc.h"

namespace frugal::llm {
namespace {

template <class S>
struct KernelSet {
  using Vf = typename S::Vf;
  using Vi = typename S::Vi;
  using Vb = typename S::Vb;
  using Acc = typename S::Acc;

  // ---- float panels ----

  static Vf load_as_float(const float* p) { return S::load(p); }
  static Vf load_as_float(const int8_t* p) { return S::load_s8(p); }
  struct Half {
    uint16_t bits;
  };
  struct Brain {
    uint16_t bits;
  };
  static Vf load_as_float(const Half* p) { return S::load_f16(&p->bits); }
  static Vf load_as_float(const Brain* p) { return S::load_bf16(&p->bits); }

  template <int kPanels, int kCols, typename T>
  FRUGAL_FLATTEN static void float_tile(const T* w, size_t k_stride, size_t panel_stride, size_t k,
                                        const std::byte* next, const float* x, size_t x_stride, float* y,
                                        size_t y_stride, bool accumulate) {
    constexpr size_t kStepBytes = kPanels * 16 * sizeof(T);
    Vf sum[kPanels * kCols];
    each<kCols>([&]<int c>() {
      each<kPanels>(
          [&]<int p>() { sum[p * kCols + c] = accumulate ? S::load(y + c * y_stride + p * 16) : S::zero(); });
    });
    for (size_t i = 0; i < k; ++i, w += k_stride, ++x, next += kStepBytes) {
      // Into the second-level cache where memory is what is waited for: the first level has few lines under
      // way.
      each<static_cast<int>((kStepBytes + 63) / 64)>(
          [&]<int kLine>() { __builtin_prefetch(next + kLine * 64, 0, kCols < 8 ? 2 : 3); });
      Vf weights[kPanels];
      each<kPanels>([&]<int p>() { weights[p] = load_as_float(w + p * panel_stride); });
      each<kCols>([&]<int c>() {  // one broadcast for all panels: loads are as dear as products
        const Vf value = S::splat(x[c * x_stride]);
        each<kPanels>([&]<int p>() { sum[p * kCols + c] = S::fma(weights[p], value, sum[p * kCols + c]); });
      });
    }
    each<kCols>([&]<int c>() {
      each<kPanels>([&]<int p>() { S::store(y + c * y_stride + p * 16, sum[p * kCols + c]); });
    });
  }

  // Few columns take several panels at once: enough sums must be under way to hide the latency of an
  // addition.
  template <typename T, typename Given>
  static void float_panels(const FloatPanels<Given>& panels, const float* x, size_t x_stride, size_t n_cols,
                           float* y, size_t y_stride, bool accumulate) {
    const T* w = reinterpret_cast<const T*>(panels.w);
    for_tiles<S::kFloatTile>(n_cols, [&]<int kCols>(size_t col) {
      constexpr int kFit = S::kFloatSums / kCols, kPanels = kFit >= 4 ? 4 : kFit >= 2 ? 2 : 1;
      auto run = [&]<int kCount>(size_t panel) {
        const T* at = w + panel * panels.panel_stride;
        // Without anything to ask for, or when the first columns did it: what is at hand anyway.
        const std::byte* next =
            panels.next == nullptr || col > 0
                ? reinterpret_cast<const std::byte*>(at)
                : static_cast<const std::byte*>(panels.next) + panel * panels.k * 16 * sizeof(T);
        float_tile<kCount, kCols>(at, panels.k_stride, panels.panel_stride, panels.k, next,
                                  x + col * x_stride, x_stride, y + col * y_stride + panel * 16, y_stride,
                                  accumulate);
      };
      size_t panel = 0;
      for (; panel + kPanels <= panels.n_panels; panel += kPanels) run.template operator()<kPanels>(panel);
      if constexpr (kPanels > 2) {
        for (; panel + 2 <= panels.n_panels; panel += 2) run.template operator()<2>(panel);
      }
      for (; panel < panels.n_panels; ++panel) run.template operator()<1>(panel);
    });
  }

  // Asks for the weights kAhead bytes on: with several columns there is arithmetic enough between two blocks
  // that the processor's own prefetching falls behind.
  static constexpr size_t kAhead = 6144;
  // Inlined from the start: GCC 12 drops calls of a function that only asks, as it computes nothing.
  template <size_t kBytes>
  [[gnu::always_inline]] static void fetch_ahead(const std::byte* at) {
    for (size_t i = 0; i < kBytes; i += 64) __builtin_prefetch(at + kAhead + i);
  }

  // What to ask for with each of a super-block's eight parts, in lines: all of the next one, in order.
  static constexpr size_t eighth(size_t bytes) { return (bytes / 8 + 63) / 64 * 64; }

  // ---- quantised panels with 32-blocks ----

  static Vf load_halves(const std::byte* p) { return S::load_f16(reinterpret_cast<const uint16_t*>(p)); }

  static constexpr bool has_min(PanelType type) {
    return type == PanelType::kQ4_1 || type == PanelType::kQ5_1;
  }
  static constexpr bool five_bits(PanelType type) {
    return type == PanelType::kQ5_0 || type == PanelType::kQ5_1 || type == PanelType::kQ5_K;
  }

  // Integer products of the 32 values of a block of 4- or 5-bit weights with kCols columns. `high` holds the
  // fifth bits, and is not read for 4 bits. `take<c>(acc)` receives the sums of column c: once for 4 bits,
  // twice (two halves of the block) for 5 where four additions fill an accumulator.
  template <int kCols, bool kFive, typename Take>
  static void dot_block(const std::byte* nibbles, const std::byte* high, const int8_t* x, size_t x_stride,
                        Take take) {
    Acc acc[kCols];
    each<kCols>([&]<int c>() { acc[c] = S::acc_zero(); });
    each<4>([&]<int kVector>() {
      const Vb both = S::load_bytes(nibbles + kVector * 64);
      Vb low = S::low_nibbles(both);
      if constexpr (kFive) low = S::template with_fifth_bit<kVector>(low, S::load_bytes(high));
      each<kCols>([&]<int c>() { acc[c] = S::acc_dot(acc[c], low, x + c * x_stride + 4 * kVector); });
      Vb upper = S::high_nibbles(both);
      if constexpr (kFive) upper = S::template with_fifth_bit<kVector + 4>(upper, S::load_bytes(high));
      each<kCols>([&]<int c>() { acc[c] = S::acc_dot(acc[c], upper, x + c * x_stride + 4 * (kVector + 4)); });
      if constexpr (kFive && kVector == 1 && !S::kWideAcc) {
        each<kCols>([&]<int c>() {
          take.template operator()<c>(acc[c]);
          acc[c] = S::acc_zero();
        });
      }
    });
    each<kCols>([&]<int c>() { take.template operator()<c>(acc[c]); });
  }

  // sum += d * scale * dots, with dots less the offset of the weights (8 or 16); + m * (scale * sum of q)
  // where a block has a minimum.
  template <PanelType kType, int kCols>
  FRUGAL_FLATTEN static void block_tile(const std::byte* at, size_t n_blocks, const ActColumns& xs, float* y,
                                        size_t y_stride) {
    constexpr bool kFive = five_bits(kType), kMin = has_min(kType), kTwice = kFive && !S::kWideAcc;
    constexpr size_t kHead = kMin ? 64 : 32, kBytes = kHead + 256 + (kFive ? 64 : 0);
    const int8_t* q = xs.q;
    const float* scales = xs.scales;
    const ActSum* x_sums = xs.sums;
    const size_t q_stride = xs.q_stride, scale_stride = xs.scale_stride, sum_stride = xs.sum_stride;
    Vf sum[kCols];
    each<kCols>([&]<int c>() { sum[c] = S::zero(); });
    for (size_t block = 0; block < n_blocks; ++block, at += kBytes, q += 32, ++scales, ++x_sums) {
      fetch_ahead<kBytes>(at);
      Vi dots[kCols];
      if constexpr (kTwice) each<kCols>([&]<int c>() { dots[c] = S::splat_int(0); });
      dot_block<kCols, kFive>(at + kHead, at + kHead + 256, q, q_stride, [&]<int c>(Acc acc) {
        dots[c] = kTwice ? S::add_int(dots[c], S::widen(acc)) : S::widen(acc);
      });
      const Vf d = load_halves(at);
      each<kCols>([&]<int c>() {
        if constexpr (!kMin) {
          const Vi offset = S::splat_int(x_sums[c * sum_stride].offset);
          dots[c] = S::add_int(dots[c], kFive ? S::template shift_left<1>(offset) : offset);
        }
        sum[c] = S::fma(S::to_float(dots[c]), S::mul(d, S::splat(scales[c * scale_stride])), sum[c]);
      });
      if constexpr (kMin) {
        const Vf m = load_halves(at + 32);
        each<kCols>([&]<int c>() { sum[c] = S::fma(m, S::splat(x_sums[c * sum_stride].scaled), sum[c]); });
      }
    }
    each<kCols>([&]<int c>() { S::store(y + c * y_stride, sum[c]); });
  }

  template <PanelType kType>
  static void block_panel(const std::byte* panel, size_t k, const ActColumns& x, size_t n_cols, float* y,
                          size_t y_stride) {
    for_tiles<S::kQuantTile>(n_cols, [&]<int kCols>(size_t col) {
      block_tile<kType, kCols>(panel, k / 32, x.from(col), y + col * y_stride, y_stride);
    });
  }

  template <int kCols>
  FRUGAL_FLATTEN static void q8_0_tile(const std::byte* at, size_t n_blocks, const ActColumns& xs, float* y,
                                       size_t y_stride) {
    const int8_t* q = xs.q;
    const float* scales = xs.scales;
    const ActSum* x_sums = xs.sums;
    const size_t q_stride = xs.q_stride, scale_stride = xs.scale_stride, sum_stride = xs.sum_stride;
    Vf sum[kCols];
    each<kCols>([&]<int c>() { sum[c] = S::zero(); });
    for (size_t block = 0; block < n_blocks; ++block, at += 544, q += 32, ++scales, ++x_sums) {
      // Nothing is asked for: so little is computed between two lines that asking makes it 8 % slower.
      Vi dots[kCols];
      each<kCols>([&]<int c>() { dots[c] = S::signed_start(x_sums[c * sum_stride].offset); });
      each<8>([&]<int kGroup>() {
        const auto weights = S::prepare_signed(S::load_bytes(at + 32 + kGroup * 64));
        each<kCols>(
            [&]<int c>() { dots[c] = S::dot_signed(dots[c], weights, q + c * q_stride + 4 * kGroup); });
      });
      const Vf d = load_halves(at);
      each<kCols>([&]<int c>() {
        sum[c] = S::fma(S::to_float(dots[c]), S::mul(d, S::splat(scales[c * scale_stride])), sum[c]);
      });
    }
    each<kCols>([&]<int c>() { S::store(y + c * y_stride, sum[c]); });
  }

  static void q8_0_panel(const std::byte* panel, size_t k, const ActColumns& x, size_t n_cols, float* y,
                         size_t y_stride) {
    for_tiles<S::kQuantTile>(n_cols, [&]<int kCols>(size_t col) {
      q8_0_tile<kCols>(panel, k / 32, x.from(col), y + col * y_stride, y_stride);
    });
  }

  // ---- K-quant panels with 256-blocks: sub-block sums are scaled in integers, one float product a
  // super-block ----

  template <PanelType kType, int kCols>
  FRUGAL_FLATTEN static void super_tile(const std::byte* at, size_t n_blocks, const ActColumns& xs, float* y,
                                        size_t y_stride) {
    constexpr bool kFive = five_bits(kType);
    constexpr size_t kBytes = 320 + 8 * 256 + (kFive ? 8 * 64 : 0);
    const int8_t* q = xs.q;
    const float* scales = xs.scales;
    const int16_t* x_sums = xs.super_sums;
    const size_t q_stride = xs.q_stride, scale_stride = xs.scale_stride, sum_stride = xs.sum_stride;
    Vf sum[kCols];
    each<kCols>([&]<int c>() { sum[c] = S::zero(); });
    for (size_t block = 0; block < n_blocks; ++block, at += kBytes, ++scales, x_sums += kActSuperSums) {
      Vi total[kCols];
      each<kCols>([&]<int c>() { total[c] = S::splat_int(0); });
      const std::byte* nibbles = at + 320;
      const std::byte* high = at + 320 + 2048;
      for (int sub = 0; sub < 8; ++sub, q += 32, nibbles += 256, high += 64) {
        fetch_ahead<eighth(kBytes)>(at + sub * eighth(kBytes));
        const auto scale = S::load_scale_u8(at + 64 + sub * 32);
        dot_block<kCols, kFive>(nibbles, high, q, q_stride,
                                [&]<int c>(Acc acc) { total[c] = S::add_scaled_acc(total[c], acc, scale); });
      }
      const Vf d = load_halves(at), d_min = load_halves(at + 32);
      Vi mins[kCols];
      each<kCols>([&]<int c>() { mins[c] = S::splat_int(0); });
      each<4>([&]<int kPair>() {
        const std::byte* two = at + 64 + kPair * 64 + 16;
        const auto min = S::load_pairs_u8(two, two + 32);
        each<kCols>(
            [&]<int c>() { mins[c] = S::dot_pairs(mins[c], min, x_sums + c * sum_stride + 2 * kPair); });
      });
      each<kCols>([&]<int c>() {
        const Vf scale = S::splat(scales[c * scale_stride]);
        sum[c] = S::fma(S::to_float(total[c]), S::mul(d, scale), sum[c]);
        sum[c] = S::fma(S::to_float(S::sub_int(S::splat_int(0), mins[c])), S::mul(d_min, scale), sum[c]);
      });
    }
    each<kCols>([&]<int c>() { S::store(y + c * y_stride, sum[c]); });
  }

  template <PanelType kType>
  static void super_panel(const std::byte* panel, size_t k, const ActColumns& x, size_t n_cols, float* y,
                          size_t y_stride) {
    for_tiles<S::kQuantTile>(n_cols, [&]<int kCols>(size_t col) {
      super_tile<kType, kCols>(panel, k / 256, x.from(col), y + col * y_stride, y_stride);
    });
  }

  // Half of a sub-block: groups 4 kHalf .. 4 kHalf + 3, which share a scale; the low or the high nibbles.
  template <int kCols, int kHalf>
  static void q6_k_half(const std::byte* nibbles, const std::byte* high, const std::byte* scales,
                        const int8_t* q, size_t q_stride, Vi* total) {
    const auto scale = S::load_scale_s8(scales);
    const Vb high_bits = S::load_bytes(high);
    constexpr int kAdditions = S::kWideAcc ? 4 : 2;  // of six-bit products fill an accumulator
    each<4 / kAdditions>([&]<int kPart>() {
      Acc acc[kCols];
      each<kCols>([&]<int c>() { acc[c] = S::acc_zero(); });
      each<kAdditions>([&]<int kAddition>() {
        constexpr int kGroup = kAdditions * kPart + kAddition;
        const Vb both = S::load_bytes(nibbles + kGroup * 64);
        const Vb weights = S::template with_high_bits<kGroup>(
            kHalf == 0 ? S::low_nibbles(both) : S::high_nibbles(both), high_bits);
        each<kCols>([&]<int c>() {
          acc[c] = S::acc_dot(acc[c], weights, q + c * q_stride + 4 * (kGroup + 4 * kHalf));
        });
      });
      each<kCols>([&]<int c>() { total[c] = S::add_scaled_acc(total[c], acc[c], scale); });
    });
  }

  template <int kCols>
  FRUGAL_FLATTEN static void q6_k_tile(const std::byte* at, size_t n_blocks, const ActColumns& xs, float* y,
                                       size_t y_stride) {
    const int8_t* q = xs.q;
    const float* scales = xs.scales;
    const int16_t* x_sums = xs.super_sums;
    const size_t q_stride = xs.q_stride, scale_stride = xs.scale_stride, sum_stride = xs.sum_stride;
    Vf sum[kCols];
    each<kCols>([&]<int c>() { sum[c] = S::zero(); });
    constexpr size_t kBytes = 3360;
    for (size_t block = 0; block < n_blocks; ++block, at += kBytes, ++scales, x_sums += kActSuperSums) {
      Vi total[kCols], offset[kCols];
      each<kCols>([&]<int c>() { total[c] = offset[c] = S::splat_int(0); });
      const std::byte* nibbles = at + 288;
      const std::byte* high = at + 288 + 2048;
      const std::byte* sub_scales = at + 32;
      for (int sub = 0; sub < 8; ++sub, q += 32, nibbles += 256, high += 128, sub_scales += 32) {
        fetch_ahead<eighth(kBytes)>(at + sub * eighth(kBytes));
        q6_k_half<kCols, 0>(nibbles, high, sub_scales, q, q_stride, total);
        q6_k_half<kCols, 1>(nibbles, high + 64, sub_scales + 16, q, q_stride, total);
      }
      each<8>([&]<int kPair>() {
        const auto two = S::load_pairs_s8(at + 32 + kPair * 32, at + 32 + kPair * 32 + 16);
        each<kCols>([&]<int c>() {
          offset[c] = S::dot_pairs(offset[c], two, x_sums + c * sum_stride + 8 + 2 * kPair);
        });
      });
      const Vf d = load_halves(at);
      each<kCols>([&]<int c>() {
        const Vi value = S::sub_int(total[c], S::template shift_left<5>(offset[c]));  // weights are q - 32
        sum[c] = S::fma(S::to_float(value), S::mul(d, S::splat(scales[c * scale_stride])), sum[c]);
      });
    }
    each<kCols>([&]<int c>() { S::store(y + c * y_stride, sum[c]); });
  }

  static void q6_k_panel(const std::byte* panel, size_t k, const ActColumns& x, size_t n_cols, float* y,
                         size_t y_stride) {
    for_tiles<S::kQuantTile>(n_cols, [&]<int kCols>(size_t col) {
      q6_k_tile<kCols>(panel, k / 256, x.from(col), y + col * y_stride, y_stride);
    });
  }

  // ---- activations ----

  // Asks for the lines of what is about to be written, all at once: other processors still hold them from
  // reading them last, and stores, which leave in order, would wait for one after the other. Only where there
  // is an instruction for it: to ask for reading makes it worse.
  template <typename T>
  [[gnu::always_inline]] static void claim(T* to, size_t n) {
#if defined(__PRFCHW__) || defined(__ARM_NEON)
    for (size_t i = 0; i < n; i += 64 / sizeof(T)) __builtin_prefetch(to + i, 1);
#else
    (void)to, (void)n;
#endif
  }

  static void quantize_blocks(const float* x, size_t k, int8_t* q, float* scales, ActSum* sums) {
    claim(q, k);
    claim(scales, k / 32);
    claim(sums, k / 32);
    for (size_t block = 0; block < k / 32; ++block) {
      const Vf low = S::load(x + block * 32), high = S::load(x + block * 32 + 16);
      const float largest = S::max_lanes(S::max(S::abs(low), S::abs(high)));
      const Vf inverse = S::splat(largest != 0 ? 127.0f / largest : 0.0f);
      const Vi q_low = S::round_to_s8(q + block * 32, S::mul(low, inverse));
      const Vi q_high = S::round_to_s8(q + block * 32 + 16, S::mul(high, inverse));
      scales[block] = largest / 127.0f;
      const int32_t sum = S::sum_lanes_int(S::add_int(q_low, q_high));
      sums[block] = {scales[block] * static_cast<float>(sum), -8 * sum};
    }
  }

  static void quantize_super_blocks(const float* x, size_t k, int8_t* q, float* scales, int16_t* sums) {
    claim(q, k);
    claim(sums, k / 256 * kActSuperSums);
    for (size_t block = 0; block < k / 256; ++block, sums += kActSuperSums) {
      const float* xs = x + block * 256;
      Vf largest = S::abs(S::load(xs));
      for (size_t i = 16; i < 256; i += 16) largest = S::max(largest, S::abs(S::load(xs + i)));
      const float range = S::max_lanes(largest);
      const Vf inverse = S::splat(range != 0 ? 127.0f / range : 0.0f);
      for (size_t i = 0; i < 16; ++i) {
        sums[8 + i] = static_cast<int16_t>(S::sum_lanes_int(
            S::round_to_s8(q + block * 256 + i * 16, S::mul(S::load(xs + i * 16), inverse))));
      }
      for (size_t i = 0; i < 8; ++i) sums[i] = static_cast<int16_t>(sums[8 + 2 * i] + sums[9 + 2 * i]);
      scales[block] = range / 127.0f;
    }
  }

  // ---- element-wise ----

  static void rms_norm(const float* x, const float* weight, size_t n, float eps, float* y) {
    Vf squares = S::zero();
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
      const Vf v = S::load(x + i);
      squares = S::fma(v, v, squares);
    }
    float sum = S::sum_lanes(squares);
    for (size_t j = i; j < n; ++j) sum += x[j] * x[j];
    const float inverse = 1.0f / std::sqrt(sum / static_cast<float>(n) + eps);
    const Vf factor = S::splat(inverse);
    for (i = 0; i + 16 <= n; i += 16)
      S::store(y + i, S::mul(S::mul(S::load(x + i), factor), S::load(weight + i)));
    for (; i < n; ++i) y[i] = x[i] * inverse * weight[i];
  }

  // e^x, relative error below 3e-7 on [-87, 88]; 0 below -87. x = n ln2 + r, |r| <= ln2 / 2; e^r by the
  // polynomial 1 + r + ... + c r^5 of least relative error there, 1.6e-7 (Remez).
  static Vf exp(Vf x) { return exp_below_88(S::min(x, S::splat(88.0f))); }
  static Vf exp_below_88(Vf x) {
    const Vf lowest = S::splat(-87.0f), clamped = S::max(x, lowest);
    const Vf n = S::round(S::mul(clamped, S::splat(1.44269504088896341f)));
    // ln 2 in two parts: the first has 9 bits, n * it is exact.
    Vf r = S::fma(n, S::splat(-0.693359375f), clamped);
    r = S::fma(n, S::splat(2.12194440054690583e-4f), r);
    Vf p = S::splat(0.00836915812f);
    for (const float c : {0.04191757951f, 0.16666523095f, 0.49998994621f, 1.0f, 1.0f})
      p = S::fma(p, r, S::splat(c));
    return S::zero_where_less(x, lowest, S::scale_by_power(p, n));
  }

  static Vf sigmoid_mul(Vf x, Vf at) {  // x / (1 + e^-at)
    return S::div(x, S::add(S::splat(1.0f), exp(S::sub(S::zero(), at))));
  }

  static void silu_mul(float* gate, const float* up, size_t n) {
    for (size_t i = 0; i < n; i += 16) {
      const Vf g = S::load(gate + i);
      S::store(gate + i, S::mul(sigmoid_mul(g, g), S::load(up + i)));
    }
  }

  // 0.5 x (1 + tanh(u)) = x / (1 + e^(-2u)), u = sqrt(2 / pi) (x + 0.044715 x^3).
  static void gelu_mul(float* gate, const float* up, size_t n) {
    for (size_t i = 0; i < n; i += 16) {
      const Vf g = S::load(gate + i);
      const Vf cubic = S::fma(S::mul(S::mul(g, g), g), S::splat(0.044715f), g);
      S::store(gate + i,
               S::mul(sigmoid_mul(g, S::mul(cubic, S::splat(2 * 0.79788456080286535588f))), S::load(up + i)));
    }
  }

  static void exp_all(float* x, size_t n) {
    for (size_t i = 0; i < n; i += 16) S::store(x + i, exp(S::load(x + i)));
  }

  // Four running sums, so that additions do not wait for each other.
  static void softmax(float* scores, size_t stride, size_t n_pieces, float* max, float* sums) {
    Vf largest[4];
    each<4>([&]<int i>() { largest[i] = S::load(scores + 16 * i); });
    for (size_t piece = 1; piece < n_pieces; ++piece) {
      each<4>([&]<int i>() { largest[i] = S::max(largest[i], S::load(scores + piece * stride + 16 * i)); });
    }
    *max = S::max_lanes(S::max(S::max(largest[0], largest[1]), S::max(largest[2], largest[3])));
    const Vf shift = S::splat(*max);
    for (size_t piece = 0; piece < n_pieces; ++sums) {
      Vf sum[4];
      each<4>([&]<int i>() { sum[i] = S::zero(); });
      for (const size_t end = std::min(n_pieces, piece + kPiecesSummed); piece < end; ++piece) {
        each<4>([&]<int i>() {
          float* at = scores + piece * stride + 16 * i;
          const Vf e = exp_below_88(S::sub(S::load(at), shift));
          S::store(at, e);
          sum[i] = S::add(sum[i], e);
        });
      }
      *sums = S::sum_lanes(S::add(S::add(sum[0], sum[1]), S::add(sum[2], sum[3])));
    }
  }

  static void blend(float* y, const float* x, size_t n, float keep, float take) {
    const Vf k = S::splat(keep), t = S::splat(take);
    for (size_t i = 0; i < n; i += 16) S::store(y + i, S::fma(S::load(x + i), t, S::mul(S::load(y + i), k)));
  }

  static void to_f16(const float* x, size_t n, uint16_t* y) {
    size_t i = 0;
    for (; i + 16 <= n; i += 16) S::store_f16(y + i, S::load(x + i));
    for (; i < n; ++i) y[i] = f32_to_f16(x[i]);
  }

  static void to_bf16(const float* x, size_t n, uint16_t* y) {
    for (size_t i = 0; i < n; ++i) {
      uint32_t bits;
      std::memcpy(&bits, x + i, 4);
      // Round to nearest even; a NaN keeps a set mantissa bit, a finite value does not round up to infinity.
      uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
      const uint32_t exponent = bits & 0x7f800000;
      if (exponent == 0x7f800000)
        rounded = (bits >> 16) | ((bits & 0x007fffff) != 0 ? 0x40 : 0);
      else if ((rounded & 0x7f80) == 0x7f80)
        rounded -= 1;
      y[i] = static_cast<uint16_t>(rounded);
    }
  }

  static constexpr Kernels table() {
    return {S::kName,
            float_panels<float, float>,
            float_panels<Half, uint16_t>,
            float_panels<Brain, uint16_t>,
            float_panels<int8_t, int8_t>,
            ValueKernels<S>::add,
            q8_0_panel,
            block_panel<PanelType::kQ4_0>,
            block_panel<PanelType::kQ4_1>,
            block_panel<PanelType::kQ5_0>,
            block_panel<PanelType::kQ5_1>,
            super_panel<PanelType::kQ4_K>,
            super_panel<PanelType::kQ5_K>,
            q6_k_panel,
            quantize_blocks,
            quantize_super_blocks,
            rms_norm,
            silu_mul,
            gelu_mul,
            exp_all,
            softmax,
            blend,
            to_f16,
            to_bf16};
  }
};

}  // namespace
}  // namespace frugal::llm
