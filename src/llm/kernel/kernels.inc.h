// The micro-kernels, written once over a Simd set (simd_*.h) and compiled once for each instruction set.
// `make_kernels<Simd>()` gives the table. Every loop over columns comes in tiles whose size is a template
// parameter; the tile size changes which loads are shared, never the order in which an output is summed.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "llm/kernel/kernel.h"
#include "llm/kernel/panel.h"

namespace frugal::llm {
namespace {

template <class S>
struct KernelSet {
  using Vf = typename S::Vf;
  using Vi = typename S::Vi;
  using Vb = typename S::Vb;
  using Acc = typename S::Acc;

  // Calls body<n>() for tiles of at most kTile columns until all n_cols are done.
  template <int kTile, typename Body>
  static void for_column_tiles(size_t n_cols, Body body) {
    size_t col = 0;
    for (; col + kTile <= n_cols; col += kTile) body.template operator()<kTile>(col);
    tail_tile<kTile - 1>(col, n_cols, body);
  }
  template <int kTile, typename Body>
  static void tail_tile(size_t col, size_t n_cols, Body& body) {
    if constexpr (kTile > 0) {
      if (n_cols - col == kTile) return body.template operator()<kTile>(col);
      tail_tile<kTile - 1>(col, n_cols, body);
    }
  }

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

  template <typename T, typename Given>
  static void float_panel(const Given* given, size_t k_stride, size_t k, const float* x, size_t x_stride,
                          size_t n_cols, float* y, size_t y_stride, bool accumulate) {
    const T* w = reinterpret_cast<const T*>(given);
    for_column_tiles<S::kFloatTile>(n_cols, [&]<int kCols>(size_t col) {
      const float* xs = x + col * x_stride;
      float* ys = y + col * y_stride;
      Vf sum[kCols];
      for (int c = 0; c < kCols; ++c)
        sum[c] = accumulate ? S::load(ys + static_cast<size_t>(c) * y_stride) : S::zero();
      for (size_t i = 0; i < k; ++i) {
        const Vf weights = load_as_float(w + i * k_stride);
#pragma GCC unroll 8
        for (int c = 0; c < kCols; ++c)
          sum[c] = S::fma(weights, S::splat(xs[static_cast<size_t>(c) * x_stride + i]), sum[c]);
      }
      for (int c = 0; c < kCols; ++c) S::store(ys + static_cast<size_t>(c) * y_stride, sum[c]);
    });
  }

  // ---- quantised panels with 32-blocks ----

  static Vf load_halves(const std::byte* p) { return S::load_f16(reinterpret_cast<const uint16_t*>(p)); }

  static constexpr bool has_min(PanelType type) {
    return type == PanelType::kQ4_1 || type == PanelType::kQ5_1;
  }
  static constexpr bool five_bits(PanelType type) {
    return type == PanelType::kQ5_0 || type == PanelType::kQ5_1 || type == PanelType::kQ5_K;
  }

  // Integer products of the 32 values of a block of 4- or 5-bit weights with kCols columns: dots[c] gets the
  // sum. `high` holds the fifth bits, and is not read for 4 bits.
  template <int kCols, bool kFive>
  static void dot_block(const std::byte* nibbles, const std::byte* high, const int8_t* x, size_t x_stride,
                        Vi* dots) {
    Vb high_bits{};
    if constexpr (kFive) high_bits = S::load_bytes(high);
    Acc acc[kCols];
    for (int c = 0; c < kCols; ++c) acc[c] = S::acc_zero();
    auto step = [&]<int kVector>() {
      const Vb both = S::load_bytes(nibbles + kVector * 64);
      Vb low = S::low_nibbles(both), upper = S::high_nibbles(both);
      if constexpr (kFive) {
        low = S::template with_fifth_bit<kVector>(low, high_bits);
        upper = S::template with_fifth_bit<kVector + 4>(upper, high_bits);
      }
#pragma GCC unroll 8
      for (int c = 0; c < kCols; ++c)
        acc[c] = S::acc_dot(acc[c], low, x + static_cast<size_t>(c) * x_stride + 4 * kVector);
#pragma GCC unroll 8
      for (int c = 0; c < kCols; ++c)
        acc[c] = S::acc_dot(acc[c], upper, x + static_cast<size_t>(c) * x_stride + 4 * (kVector + 4));
    };
    step.template operator()<0>();
    step.template operator()<1>();
    if constexpr (kFive) {  // four additions of five-bit products fill an accumulator
      for (int c = 0; c < kCols; ++c) {
        dots[c] = S::widen(acc[c]);
        acc[c] = S::acc_zero();
      }
    }
    step.template operator()<2>();
    step.template operator()<3>();
    for (int c = 0; c < kCols; ++c)
      dots[c] = kFive ? S::add_int(dots[c], S::widen(acc[c])) : S::widen(acc[c]);
  }

  template <PanelType kType>
  static void block_panel(const std::byte* panel, size_t k, const ActColumns& x, size_t n_cols, float* y,
                          size_t y_stride) {
    const size_t n_blocks = k / 32, block_bytes = panel_block_bytes(kType);
    constexpr bool kFive = five_bits(kType), kMin = has_min(kType);
    constexpr int kOffset = kMin ? 0 : kFive ? 16 : 8;
    for_column_tiles<S::kQuantTile>(n_cols, [&]<int kCols>(size_t col) {
      const ActColumns xs = x.from(col);
      Vf sum[kCols];
      for (int c = 0; c < kCols; ++c) sum[c] = S::zero();
      for (size_t block = 0; block < n_blocks; ++block) {
        const std::byte* at = panel + block * block_bytes;
        const std::byte* nibbles = at + (kMin ? 64 : 32);
        Vi dots[kCols];
        dot_block<kCols, kFive>(nibbles, nibbles + 256, xs.q + block * 32, xs.q_stride, dots);
        const Vf d = load_halves(at);
        for (int c = 0; c < kCols; ++c) {
          const float scale = xs.scales[static_cast<size_t>(c) * xs.scale_stride + block];
          const int32_t x_sum = xs.sums[static_cast<size_t>(c) * xs.sum_stride + block];
          if constexpr (!kMin) dots[c] = S::sub_int(dots[c], S::splat_int(kOffset * x_sum));
          sum[c] = S::fma(S::to_float(dots[c]), S::mul(d, S::splat(scale)), sum[c]);
          if constexpr (kMin)
            sum[c] = S::fma(load_halves(at + 32), S::splat(scale * static_cast<float>(x_sum)), sum[c]);
        }
      }
      for (int c = 0; c < kCols; ++c) S::store(y + (col + static_cast<size_t>(c)) * y_stride, sum[c]);
    });
  }

  static void q8_0_panel(const std::byte* panel, size_t k, const ActColumns& x, size_t n_cols, float* y,
                         size_t y_stride) {
    const size_t n_blocks = k / 32;
    for_column_tiles<S::kQuantTile>(n_cols, [&]<int kCols>(size_t col) {
      const ActColumns xs = x.from(col);
      Vf sum[kCols];
      for (int c = 0; c < kCols; ++c) sum[c] = S::zero();
      for (size_t block = 0; block < n_blocks; ++block) {
        const std::byte* at = panel + block * 544;
        Vi dots[kCols];
        for (int c = 0; c < kCols; ++c) dots[c] = S::splat_int(0);
        for (int group = 0; group < 8; ++group) {
          const auto weights = S::prepare_signed(S::load_bytes(at + 32 + group * 64));
#pragma GCC unroll 8
          for (int c = 0; c < kCols; ++c) {
            dots[c] = S::dot_signed(
                dots[c], weights,
                xs.q + static_cast<size_t>(c) * xs.q_stride + block * 32 + static_cast<size_t>(4 * group));
          }
        }
        const Vf d = load_halves(at);
        for (int c = 0; c < kCols; ++c) {
          const float scale = xs.scales[static_cast<size_t>(c) * xs.scale_stride + block];
          sum[c] = S::fma(S::to_float(dots[c]), S::mul(d, S::splat(scale)), sum[c]);
        }
      }
      for (int c = 0; c < kCols; ++c) S::store(y + (col + static_cast<size_t>(c)) * y_stride, sum[c]);
    });
  }

  // ---- K-quant panels with 256-blocks: sub-block sums are scaled in integers, one float product a
  // super-block ----

  template <PanelType kType>
  static void super_panel(const std::byte* panel, size_t k, const ActColumns& x, size_t n_cols, float* y,
                          size_t y_stride) {
    const size_t n_blocks = k / 256, block_bytes = panel_block_bytes(kType);
    constexpr bool kFive = five_bits(kType);
    for_column_tiles<S::kQuantTile>(n_cols, [&]<int kCols>(size_t col) {
      const ActColumns xs = x.from(col);
      Vf sum[kCols];
      for (int c = 0; c < kCols; ++c) sum[c] = S::zero();
      for (size_t block = 0; block < n_blocks; ++block) {
        const std::byte* at = panel + block * block_bytes;
        const std::byte* nibbles = at + 320;
        Vi total[kCols], mins[kCols];
        for (int c = 0; c < kCols; ++c) total[c] = mins[c] = S::splat_int(0);
        for (size_t sub = 0; sub < 8; ++sub) {
          Vi dots[kCols];
          dot_block<kCols, kFive>(nibbles + sub * 256, nibbles + 2048 + sub * 64,
                                  xs.q + block * 256 + sub * 32, xs.q_stride, dots);
          const Vi scale = S::load_u8_int(at + 64 + sub * 32), min = S::load_u8_int(at + 64 + sub * 32 + 16);
          for (int c = 0; c < kCols; ++c) {
            const int32_t* x_sums = xs.sums + static_cast<size_t>(c) * xs.sum_stride + block * 16 + sub * 2;
            total[c] = S::add_int(total[c], S::mul_int(scale, dots[c]));
            mins[c] = S::add_int(mins[c], S::mul_int(min, S::splat_int(x_sums[0] + x_sums[1])));
          }
        }
        const Vf d = load_halves(at), d_min = load_halves(at + 32);
        for (int c = 0; c < kCols; ++c) {
          const Vf scale = S::splat(xs.scales[static_cast<size_t>(c) * xs.scale_stride + block]);
          sum[c] = S::fma(S::to_float(total[c]), S::mul(d, scale), sum[c]);
          sum[c] = S::fma(S::to_float(S::sub_int(S::splat_int(0), mins[c])), S::mul(d_min, scale), sum[c]);
        }
      }
      for (int c = 0; c < kCols; ++c) S::store(y + (col + static_cast<size_t>(c)) * y_stride, sum[c]);
    });
  }

  static void q6_k_panel(const std::byte* panel, size_t k, const ActColumns& x, size_t n_cols, float* y,
                         size_t y_stride) {
    const size_t n_blocks = k / 256;
    // Two columns a tile: both halves of a 32-block have an accumulator of their own.
    for_column_tiles<std::max(1, S::kQuantTile / 2)>(n_cols, [&]<int kCols>(size_t col) {
      const ActColumns xs = x.from(col);
      Vf sum[kCols];
      for (int c = 0; c < kCols; ++c) sum[c] = S::zero();
      for (size_t block = 0; block < n_blocks; ++block) {
        const std::byte* at = panel + block * panel_block_bytes(PanelType::kQ6_K);
        const std::byte* nibbles = at + 288;
        const std::byte* highs = nibbles + 2048;
        Vi total[kCols];
        for (int c = 0; c < kCols; ++c) total[c] = S::splat_int(0);
        for (size_t sub = 0; sub < 8; ++sub) {
          const int8_t* xq = xs.q + block * 256 + sub * 32;
          const Vb high_low = S::load_bytes(highs + sub * 128),
                   high_up = S::load_bytes(highs + sub * 128 + 64);
          Vi dots_low[kCols], dots_up[kCols];
          for (int c = 0; c < kCols; ++c) dots_low[c] = dots_up[c] = S::splat_int(0);
          auto pair = [&]<int kFirst>() {  // groups kFirst, kFirst + 1 and those four further: two additions
                                           // fill an Acc
            Acc low_acc[kCols], up_acc[kCols];
            for (int c = 0; c < kCols; ++c) low_acc[c] = up_acc[c] = S::acc_zero();
            auto step = [&]<int kGroup>() {
              const Vb both = S::load_bytes(nibbles + sub * 256 + kGroup * 64);
              const Vb low = S::template with_high_bits<kGroup>(S::low_nibbles(both), high_low);
              const Vb up = S::template with_high_bits<kGroup>(S::high_nibbles(both), high_up);
              for (int c = 0; c < kCols; ++c) {
                const int8_t* xc = xq + static_cast<size_t>(c) * xs.q_stride;
                low_acc[c] = S::acc_dot(low_acc[c], low, xc + 4 * kGroup);
                up_acc[c] = S::acc_dot(up_acc[c], up, xc + 4 * (kGroup + 4));
              }
            };
            step.template operator()<kFirst>();
            step.template operator()<kFirst + 1>();
            for (int c = 0; c < kCols; ++c) {
              dots_low[c] = S::add_int(dots_low[c], S::widen(low_acc[c]));
              dots_up[c] = S::add_int(dots_up[c], S::widen(up_acc[c]));
            }
          };
          pair.template operator()<0>();
          pair.template operator()<2>();
          const Vi scale_low = S::load_s8_int(at + 32 + sub * 32),
                   scale_up = S::load_s8_int(at + 32 + sub * 32 + 16);
          for (int c = 0; c < kCols; ++c) {
            const int32_t* x_sums = xs.sums + static_cast<size_t>(c) * xs.sum_stride + block * 16 + sub * 2;
            const Vi low = S::sub_int(dots_low[c], S::splat_int(32 * x_sums[0]));
            const Vi up = S::sub_int(dots_up[c], S::splat_int(32 * x_sums[1]));
            total[c] = S::add_int(total[c], S::add_int(S::mul_int(scale_low, low), S::mul_int(scale_up, up)));
          }
        }
        const Vf d = load_halves(at);
        for (int c = 0; c < kCols; ++c) {
          const Vf scale = S::splat(xs.scales[static_cast<size_t>(c) * xs.scale_stride + block]);
          sum[c] = S::fma(S::to_float(total[c]), S::mul(d, scale), sum[c]);
        }
      }
      for (int c = 0; c < kCols; ++c) S::store(y + (col + static_cast<size_t>(c)) * y_stride, sum[c]);
    });
  }

  // ---- activations ----

  static void quantize_blocks(const float* x, size_t k, int8_t* q, float* scales, int32_t* sums) {
    for (size_t block = 0; block < k / 32; ++block) {
      const Vf low = S::load(x + block * 32), high = S::load(x + block * 32 + 16);
      const float largest = S::max_lanes(S::max(S::abs(low), S::abs(high)));
      const Vf inverse = S::splat(largest != 0 ? 127.0f / largest : 0.0f);
      const Vi q_low = S::round_to_s8(q + block * 32, S::mul(low, inverse));
      const Vi q_high = S::round_to_s8(q + block * 32 + 16, S::mul(high, inverse));
      scales[block] = largest / 127.0f;
      sums[block] = S::sum_lanes_int(S::add_int(q_low, q_high));
    }
  }

  static void quantize_super_blocks(const float* x, size_t k, int8_t* q, float* scales, int32_t* sums) {
    for (size_t block = 0; block < k / 256; ++block) {
      const float* xs = x + block * 256;
      Vf largest = S::abs(S::load(xs));
      for (size_t i = 16; i < 256; i += 16) largest = S::max(largest, S::abs(S::load(xs + i)));
      const float range = S::max_lanes(largest);
      const Vf inverse = S::splat(range != 0 ? 127.0f / range : 0.0f);
      for (size_t i = 0; i < 256; i += 16) {
        sums[block * 16 + i / 16] =
            S::sum_lanes_int(S::round_to_s8(q + block * 256 + i, S::mul(S::load(xs + i), inverse)));
      }
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

  // e^x, relative error below 2e-7 on [-87, 88]; 0 below -87. x = n ln2 + r, |r| <= ln2 / 2; e^r by its
  // Taylor series to r^7 (the next term is below 2e-9 of e^r).
  static Vf exp(Vf x) {
    const Vf lowest = S::splat(-87.0f);
    const Vf clamped = S::min(S::max(x, lowest), S::splat(88.0f));
    const Vf n = S::round(S::mul(clamped, S::splat(1.44269504088896341f)));
    Vf r = S::fma(n, S::splat(-0.693359375f),
                  clamped);  // ln 2 in two parts: the first has 9 bits, n * it is exact
    r = S::fma(n, S::splat(2.12194440054690583e-4f), r);
    Vf p = S::splat(1.0f / 5040);
    for (const float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f})
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

  static float max(const float* x, size_t n) {
    Vf largest = S::load(x);
    for (size_t i = 16; i < n; i += 16) largest = S::max(largest, S::load(x + i));
    return S::max_lanes(largest);
  }

  static void exp_sum(float* p, size_t n, float max_value, float* sums) {
    const Vf shift = S::splat(max_value);
    Vf sum = S::load(sums);
    for (size_t i = 0; i < n; i += 16) {
      const Vf e = exp(S::sub(S::load(p + i), shift));
      S::store(p + i, e);
      sum = S::add(sum, e);
    }
    S::store(sums, sum);
  }

  static void scale(float* y, size_t n, float factor) {
    const Vf f = S::splat(factor);
    for (size_t i = 0; i < n; i += 16) S::store(y + i, S::mul(S::load(y + i), f));
  }

  static void add_scaled(float* y, const float* x, size_t n, float factor) {
    const Vf f = S::splat(factor);
    for (size_t i = 0; i < n; i += 16) S::store(y + i, S::fma(S::load(x + i), f, S::load(y + i)));
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
            float_panel<float, float>,
            float_panel<Half, uint16_t>,
            float_panel<Brain, uint16_t>,
            float_panel<int8_t, int8_t>,
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
            max,
            exp_sum,
            scale,
            add_scaled,
            to_f16,
            to_bf16};
  }
};

}  // namespace
}  // namespace frugal::llm
