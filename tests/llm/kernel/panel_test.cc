// Panels against ggml's own dequantisation (exact), and every kernel set against a naive product in double
// precision.
#include "llm/kernel/panel.h"

#include <ggml.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "base/rng.h"

namespace frugal::llm {
extern const Kernels kTwinAvx512Kernels;
namespace {

struct Case {
  PanelType type;
  ggml_type ggml;
  QuantPanelFn Kernels::*quant;  // null for float types
};
const Case kCases[] = {
    {PanelType::kF32, GGML_TYPE_F32, nullptr},
    {PanelType::kF16, GGML_TYPE_F16, nullptr},
    {PanelType::kBF16, GGML_TYPE_BF16, nullptr},
    {PanelType::kQ8_0, GGML_TYPE_Q8_0, &Kernels::panel_q8_0},
    {PanelType::kQ4_0, GGML_TYPE_Q4_0, &Kernels::panel_q4_0},
    {PanelType::kQ4_1, GGML_TYPE_Q4_1, &Kernels::panel_q4_1},
    {PanelType::kQ5_0, GGML_TYPE_Q5_0, &Kernels::panel_q5_0},
    {PanelType::kQ5_1, GGML_TYPE_Q5_1, &Kernels::panel_q5_1},
    {PanelType::kQ4_K, GGML_TYPE_Q4_K, &Kernels::panel_q4_k},
    {PanelType::kQ5_K, GGML_TYPE_Q5_K, &Kernels::panel_q5_k},
    {PanelType::kQ6_K, GGML_TYPE_Q6_K, &Kernels::panel_q6_k},
};
// "avx512 in C++" is the AVX-512 set over intrinsics written out in C++, for machines without the
// instructions.
const char* const kSets[] = {"generic", "avx2", "avx512", "avx512 in C++"};

const Kernels* find_set(const std::string& name) {
#ifdef FRUGAL_AVX512_TWIN
  if (name == "avx512 in C++") return find_kernels("avx2") != nullptr ? &kTwinAvx512Kernels : nullptr;
#endif
  return find_kernels(name.c_str());
}

// `n_rows` rows of k values as ggml quantises them, packed into one panel.
struct Packed {
  std::vector<std::byte> rows, panel;
  size_t row_bytes;
};
Packed make_panel(const Case& c, int n_rows, size_t k, uint64_t seed) {
  Rng rng(seed);
  std::vector<float> values(static_cast<size_t>(n_rows) * k);
  for (float& v : values) v = static_cast<float>(rng.normal());
  Packed packed;
  packed.row_bytes = ggml_row_size(c.ggml, static_cast<int64_t>(k));
  packed.rows.resize(packed.row_bytes * static_cast<size_t>(n_rows));
  ggml_quantize_chunk(c.ggml, values.data(), packed.rows.data(), 0, n_rows, static_cast<int64_t>(k), nullptr);
  packed.panel.resize(panel_bytes(c.type, k));
  pack_panel(c.type, packed.rows.data(), packed.row_bytes, n_rows, k, packed.panel.data());
  return packed;
}

TEST(Panel, UnpacksToWhatGgmlDequantises) {
  for (const Case& c : kCases) {
    for (const int n_rows : {16, 5}) {
      const size_t k = 512;
      const Packed packed = make_panel(c, n_rows, k, 1);
      for (int row = 0; row < kPanelRows; ++row) {
        std::vector<float> ours(k), theirs(k, 0.0f);
        unpack_row(c.type, packed.panel.data(), row, k, ours.data());
        if (row < n_rows) {
          const std::byte* at = packed.rows.data() + static_cast<size_t>(row) * packed.row_bytes;
          if (c.ggml == GGML_TYPE_F32)
            std::memcpy(theirs.data(), at, k * 4);
          else
            ggml_get_type_traits(c.ggml)->to_float(at, theirs.data(), static_cast<int64_t>(k));
        }
        // The same real numbers; products of three factors may be rounded in another order: 2 ulp.
        for (size_t i = 0; i < k; ++i) {
          ASSERT_NEAR(ours[i], theirs[i], 4e-7 * std::fabs(theirs[i]) + (row < n_rows ? 1e-6 : 0))
              << ggml_type_name(c.ggml) << " row " << row << " k " << i;
        }
      }
    }
  }
}

// Activations [n_cols, k], quantised by `set` as the weight type wants them.
struct Columns {
  std::vector<float> x;
  std::vector<int8_t> q;
  std::vector<float> scales;
  std::vector<ActSum> sums;
  std::vector<int16_t> super_sums;
  ActColumns view;
};
Columns make_columns(const Kernels& set, PanelType type, size_t n_cols, size_t k) {
  Columns columns;
  Rng rng(7);
  columns.x.resize(n_cols * k);
  for (float& v : columns.x) v = static_cast<float>(rng.normal() * 3);
  const bool super = panel_block_size(type) == 256;
  const size_t n_scales = k / (super ? 256 : 32), n_sums = super ? k / 256 * kActSuperSums : k / 32;
  columns.q.resize(n_cols * k);
  columns.scales.resize(n_cols * n_scales);
  (super ? columns.super_sums.resize(n_cols * n_sums) : columns.sums.resize(n_cols * n_sums));
  for (size_t c = 0; c < n_cols; ++c) {
    if (super) {
      set.quantize_super_blocks(&columns.x[c * k], k, &columns.q[c * k], &columns.scales[c * n_scales],
                                &columns.super_sums[c * n_sums]);
    } else {
      set.quantize_blocks(&columns.x[c * k], k, &columns.q[c * k], &columns.scales[c * n_scales],
                          &columns.sums[c * n_sums]);
    }
  }
  columns.view = {columns.q.data(),
                  columns.scales.data(),
                  super ? nullptr : columns.sums.data(),
                  super ? columns.super_sums.data() : nullptr,
                  k,
                  n_scales,
                  n_sums};
  return columns;
}

void run_panel(const Kernels& set, const Case& c, const std::byte* panel, size_t k, const Columns& columns,
               size_t first, size_t n_cols, float* y) {
  switch (c.type) {
    case PanelType::kF32:
      set.panel_f32({reinterpret_cast<const float*>(panel), 16, 0, 1, k}, &columns.x[first * k], k, n_cols, y,
                    16, false);
      break;
    case PanelType::kF16:
      set.panel_f16({reinterpret_cast<const uint16_t*>(panel), 16, 0, 1, k}, &columns.x[first * k], k, n_cols,
                    y, 16, false);
      break;
    case PanelType::kBF16:
      set.panel_bf16({reinterpret_cast<const uint16_t*>(panel), 16, 0, 1, k}, &columns.x[first * k], k,
                     n_cols, y, 16, false);
      break;
    default:
      (set.*c.quant)(panel, k, columns.view.from(first), n_cols, y, 16);
  }
}

TEST(Panel, KernelsMatchTheNaiveProduct) {
  const size_t k = 768, n_cols = 17;
  for (const char* name : kSets) {
    const Kernels* set = find_set(name);
    if (set == nullptr) continue;  // this processor lacks it; generic always runs
    for (const Case& c : kCases) {
      const Packed packed = make_panel(c, 16, k, 3);
      const Columns columns = make_columns(*set, c.type, n_cols, k);
      std::vector<float> y(n_cols * 16);
      run_panel(*set, c, packed.panel.data(), k, columns, 0, n_cols, y.data());
      const size_t act_block = panel_block_size(c.type) == 256 ? 256 : 32;
      for (int row = 0; row < 16; ++row) {
        std::vector<float> w(k);
        unpack_row(c.type, packed.panel.data(), row, k, w.data());
        for (size_t col = 0; col < n_cols; ++col) {
          double sum = 0, norm = 0;
          for (size_t i = 0; i < k; ++i) {
            const double x = c.quant == nullptr ? columns.x[col * k + i]
                                                : static_cast<double>(columns.q[col * k + i]) *
                                                      columns.scales[(col * k + i) / act_block];
            sum += w[i] * x;
            norm += std::fabs(w[i] * x);
          }
          // Every product and sum is rounded once: k roundings of at most eps * norm, and far fewer in
          // practice (errors of random sign): 2 sqrt(k) of them. Types with a minimum subtract two sums four
          // times as large.
          const double tolerance = 4 * 2 * std::sqrt(static_cast<double>(k)) * 6e-8 * norm + 1e-6;
          ASSERT_NEAR(y[col * 16 + static_cast<size_t>(row)], sum, tolerance)
              << name << ' ' << ggml_type_name(c.ggml) << " row " << row << " col " << col;
        }
      }
    }
  }
}

// The heart of exactness: a column's result does not depend on which columns are computed with it.
TEST(Panel, ColumnsAreBitIdenticalAtAnyWidth) {
  const size_t k = 512, n_cols = 19;
  for (const char* name : kSets) {
    const Kernels* set = find_set(name);
    if (set == nullptr) continue;
    for (const Case& c : kCases) {
      const Packed packed = make_panel(c, 16, k, 5);
      const Columns columns = make_columns(*set, c.type, n_cols, k);
      std::vector<float> whole(n_cols * 16);
      run_panel(*set, c, packed.panel.data(), k, columns, 0, n_cols, whole.data());
      for (size_t width = 1; width <= 16; ++width) {
        for (size_t first = 0; first + width <= n_cols; first += width) {
          std::vector<float> part(width * 16);
          run_panel(*set, c, packed.panel.data(), k, columns, first, width, part.data());
          ASSERT_EQ(std::memcmp(part.data(), &whole[first * 16], part.size() * 4), 0)
              << name << ' ' << ggml_type_name(c.ggml) << " width " << width;
        }
      }
    }
  }
}

// AVX2 and AVX-512 differ in how many lanes an instruction has and in how integers are summed, which is
// exact: their floats meet in the same order. So the set that this processor may lack is held to the other
// bit for bit.
TEST(Panel, Avx512AgreesWithAvx2BitForBit) {
  const Kernels* avx2 = find_set("avx2");
  if (avx2 == nullptr) GTEST_SKIP() << "no AVX2";
  const size_t k = 768, n_cols = 13;
  for (const char* name : {"avx512", "avx512 in C++"}) {
    const Kernels* set = find_set(name);
    if (set == nullptr) continue;
    for (const Case& c : kCases) {
      const Packed packed = make_panel(c, 16, k, 9);
      const Columns theirs = make_columns(*avx2, c.type, n_cols, k),
                    ours = make_columns(*set, c.type, n_cols, k);
      ASSERT_EQ(ours.q, theirs.q);
      ASSERT_EQ(ours.scales, theirs.scales);
      ASSERT_EQ(ours.sums, theirs.sums);
      ASSERT_EQ(ours.super_sums, theirs.super_sums);
      std::vector<float> expected(n_cols * 16), y(n_cols * 16);
      run_panel(*avx2, c, packed.panel.data(), k, theirs, 0, n_cols, expected.data());
      run_panel(*set, c, packed.panel.data(), k, ours, 0, n_cols, y.data());
      ASSERT_EQ(y, expected) << name << ' ' << ggml_type_name(c.ggml);
    }
  }
}

// The largest weights against the largest activations: no 16-bit accumulator may overflow.
TEST(Panel, ExtremeIntegersDoNotOverflow) {
  const size_t k = 256;
  for (const char* name : kSets) {
    const Kernels* set = find_set(name);
    if (set == nullptr) continue;
    for (const Case& c : kCases) {
      if (c.quant == nullptr) continue;
      std::vector<std::byte> row(gguf_block_bytes(c.type) *
                                 (k / static_cast<size_t>(panel_block_size(c.type))));
      for (const int fill : {0xff, 0x00, 0x80, 0x7f}) {
        std::memset(row.data(), fill, row.size());
        // Halves that would be NaN become 1.0: the first four bytes of a block, or its end for Q6_K.
        const uint16_t one = 0x3c00;
        const size_t bytes = gguf_block_bytes(c.type);
        for (size_t at = 0; at < row.size(); at += bytes) {
          std::memcpy(&row[at + (c.type == PanelType::kQ6_K ? 208 : 0)], &one, 2);
          const bool two = c.type == PanelType::kQ4_1 || c.type == PanelType::kQ5_1 ||
                           c.type == PanelType::kQ4_K || c.type == PanelType::kQ5_K;
          if (two) std::memcpy(&row[at + 2], &one, 2);
        }
        std::vector<std::byte> panel(panel_bytes(c.type, k));
        pack_panel(c.type, row.data(), 0, 16, k, panel.data());
        for (const int sign : {1, -1}) {
          Columns columns = make_columns(*set, c.type, 1, k);
          for (int8_t& q : columns.q) q = static_cast<int8_t>(127 * sign);
          for (float& s : columns.scales) s = 1;
          for (ActSum& s : columns.sums) s = {static_cast<float>(127 * sign * 32), -8 * 127 * sign * 32};
          for (size_t i = 0; i < columns.super_sums.size(); ++i)
            columns.super_sums[i] = static_cast<int16_t>(127 * sign * (i % kActSuperSums < 8 ? 32 : 16));
          float y[16];
          (set->*c.quant)(panel.data(), k, columns.view, 1, y, 16);
          std::vector<float> w(k);
          unpack_row(c.type, panel.data(), 3, k, w.data());
          double sum = 0, norm = 0;
          for (const float v : w) {
            sum += v * 127.0 * sign;
            norm += std::fabs(v) * 127;
          }
          ASSERT_NEAR(y[3], sum, 1e-5 * norm + 1e-3)
              << name << ' ' << ggml_type_name(c.ggml) << " fill " << fill << " sign " << sign;
        }
      }
    }
  }
}

// A chunk of a q8_0 cache's values, and weights of its tokens; beyond n_tokens weights are 0, values are left
// over and scales not numbers.
struct ValueChunk {
  size_t n_groups, n_tokens, n_cols;
  std::vector<std::byte> bytes;
  std::vector<int8_t> q;      // [n_tokens, 32 * n_groups]
  std::vector<float> scales;  // [n_tokens, n_groups]
  std::vector<float> w;       // [4, n_cols, 64]

  ValueChunk(size_t groups, size_t tokens, size_t cols)
      : n_groups(groups),
        n_tokens(tokens),
        n_cols(cols),
        bytes(groups * kValueGroupBytes, static_cast<std::byte>(0xff)),
        q(tokens * 32 * groups),
        scales(tokens * groups),
        w(4 * cols * 64, 0.0f) {
    Rng rng(21);
    for (int8_t& v : q) v = static_cast<int8_t>(static_cast<int>(rng.below(255)) - 127);
    for (float& s : scales) s = f16_to_f32(f32_to_f16(static_cast<float>(0.01 + rng.uniform())));
    for (size_t t = 0; t < n_tokens; ++t) {
      for (size_t c = 0; c < n_cols; ++c) weight(c, t) = static_cast<float>(std::exp(-8 * rng.uniform()));
    }
    write();
  }
  float& weight(size_t col, size_t t) { return w[(t / 64 * n_cols + col) * 64 + t % 64]; }
  void write() {
    for (size_t t = 0; t < n_tokens; ++t) {
      for (size_t i = 0; i < 32 * n_groups; ++i)
        bytes[value_at(i, t)] = static_cast<std::byte>(q[t * 32 * n_groups + i]);
      for (size_t group = 0; group < n_groups; ++group) {
        const uint16_t half = f32_to_f16(scales[t * n_groups + group]);
        std::memcpy(&bytes[value_scale_at(group, t)], &half, 2);
      }
    }
  }
  std::vector<float> run(const Kernels& set, size_t first, size_t cols) const {
    std::vector<float> y(cols * 32 * n_groups, 0.0f);
    set.values_q8_0(bytes.data(), n_groups, n_tokens, &w[first * 64], n_cols * 64, cols, y.data(),
                    32 * n_groups, bytes.data());
    return y;
  }
};

TEST(Values, MatchTheNaiveSum) {
  for (const char* name : kSets) {
    const Kernels* set = find_set(name);
    if (set == nullptr) continue;
    for (const size_t n_tokens : {1, 63, 64, 70, 256}) {
      ValueChunk chunk(2, n_tokens, 7);
      const std::vector<float> y = chunk.run(*set, 0, 7);
      for (size_t col = 0; col < 7; ++col) {
        for (size_t i = 0; i < 64; ++i) {
          double sum = 0, largest = 0, size = 0;
          for (size_t t = 0; t < n_tokens; ++t) {
            const double weight = static_cast<double>(chunk.weight(col, t)) * chunk.scales[t * 2 + i / 32];
            largest = std::max(largest, weight);
            sum += weight * chunk.q[t * 64 + i];
            size += std::abs(chunk.q[t * 64 + i]);
          }
          // Each weight is rounded by half of what one of its 16383 steps is worth; floats add a few ulp.
          ASSERT_NEAR(y[col * 64 + i], sum, largest / 16383 * size / 2 + 1e-5 * std::fabs(sum) + 1e-6)
              << name << " tokens " << n_tokens << " col " << col << " channel " << i;
        }
      }
    }
  }
}

// From a sum of zero on, nothing is rounded twice: all sets agree, and a column does not depend on its
// company.
TEST(Values, AreBitIdenticalInEverySetAndAtAnyWidth) {
  const size_t n_cols = 13;
  const ValueChunk chunk(2, 203, n_cols);
  const std::vector<float> whole = chunk.run(*find_set("generic"), 0, n_cols);
  for (const char* name : kSets) {
    const Kernels* set = find_set(name);
    if (set == nullptr) continue;
    for (size_t width = 1; width <= n_cols; ++width) {
      for (size_t first = 0; first + width <= n_cols; first += width) {
        const std::vector<float> part = chunk.run(*set, first, width);
        ASSERT_EQ(std::memcmp(part.data(), &whole[first * 64], part.size() * 4), 0)
            << name << " width " << width << " from " << first;
      }
    }
  }
}

TEST(Values, ExtremeIntegersDoNotOverflow) {
  for (const char* name : kSets) {
    const Kernels* set = find_set(name);
    if (set == nullptr) continue;
    for (const int extreme : {127, -127, -128}) {
      ValueChunk chunk(1, 256, 1);
      std::fill(chunk.q.begin(), chunk.q.end(), static_cast<int8_t>(extreme));
      std::fill(chunk.scales.begin(), chunk.scales.end(), 0.5f);
      std::fill(chunk.w.begin(), chunk.w.end(), 1.0f);
      chunk.write();
      for (const float y : chunk.run(*set, 0, 1))
        ASSERT_NEAR(y, 128.0 * extreme, 0.01) << name << ' ' << extreme;
    }
  }
}

TEST(Kernel, HalvesRoundTripAndSaturate) {
  for (uint32_t h = 0; h < 0x10000; ++h) {
    const float value = f16_to_f32(static_cast<uint16_t>(h));
    if (!std::isfinite(value)) continue;
    ASSERT_EQ(f32_to_f16(value), h) << value;
  }
  EXPECT_EQ(f32_to_f16(1e9f), 0x7bff);
  EXPECT_EQ(f32_to_f16(-1e9f), 0xfbff);
  for (const char* name : kSets) {
    const Kernels* set = find_set(name);
    if (set == nullptr) continue;
    Rng rng(11);
    std::vector<float> x(4099);
    for (float& v : x) v = static_cast<float>(rng.normal() * std::exp(rng.normal() * 6));
    std::vector<uint16_t> y(x.size()), b(x.size());
    set->to_f16(x.data(), x.size(), y.data());
    for (size_t i = 0; i < x.size(); ++i) ASSERT_EQ(y[i], f32_to_f16(x[i])) << name << ' ' << x[i];
    set->to_bf16(x.data(), x.size(), b.data());
    for (size_t i = 0; i < x.size(); ++i) ASSERT_NEAR(bf16_to_f32(b[i]), x[i], std::fabs(x[i]) / 256) << name;
  }
}

TEST(Kernel, ElementwiseMatchesTheMathLibrary) {
  for (const char* name : kSets) {
    const Kernels* set = find_set(name);
    if (set == nullptr) continue;
    Rng rng(13);
    const size_t n = 1024;
    std::vector<float> x(n), up(n, 1.5f), y;
    for (float& v : x) v = static_cast<float>(rng.normal() * 4);
    x[0] = -200;
    x[1] = 200;
    x[2] = 0;
    y = x;
    set->silu_mul(y.data(), up.data(), n);
    for (size_t i = 0; i < n; ++i)
      ASSERT_NEAR(y[i], 1.5 * x[i] / (1 + std::exp(-static_cast<double>(x[i]))),
                  1e-6 * std::fabs(x[i]) + 1e-30)
          << name;
    y = x;
    set->gelu_mul(y.data(), up.data(), n);
    for (size_t i = 0; i < n; ++i) {
      const double v = x[i],
                   gelu = 0.5 * v * (1 + std::tanh(std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v)));
      ASSERT_NEAR(y[i], 1.5 * gelu, 1e-6 * std::fabs(v)) << name << ' ' << v;
    }
    y = x;
    y[3] = -INFINITY;
    y[4] = -87.5f;
    for (float& v : y) v = std::min(v, 80.0f);
    const std::vector<float> exponents = y;
    set->exp(y.data(), n);
    EXPECT_EQ(y[3], 0);
    EXPECT_EQ(y[4], 0);
    EXPECT_EQ(y[2], 1);
    for (size_t i = 5; i < n; ++i) {
      const double e = std::exp(static_cast<double>(exponents[i]));
      ASSERT_NEAR(y[i], e, 3e-7 * e) << name << ' ' << exponents[i];
    }
    // Pieces 0, 1 and 2 of four: the last is left alone.
    y = x;
    y[5] = -INFINITY;
    float largest = 0, total = 0;
    set->softmax(y.data(), n / 4, 3, &largest, &total);
    EXPECT_EQ(largest, 200);
    EXPECT_EQ(y[5], 0);
    EXPECT_EQ(y[1], 1);
    double expected = 0;
    for (size_t i = 0; i < n; ++i) {
      if (i % (n / 4) >= 64 || i >= 3 * n / 4) {
        ASSERT_EQ(y[i], x[i]) << name << ' ' << i;
      } else if (i != 5) {
        expected += std::exp(static_cast<double>(x[i]) - 200);
      }
    }
    EXPECT_NEAR(total, expected, 1e-6 * expected) << name;
    y = x;
    set->blend(y.data(), up.data(), n, 0.5f, 2.0f);
    for (size_t i = 0; i < n; ++i) ASSERT_EQ(y[i], 0.5f * x[i] + 3.0f) << name;
    // Odd lengths take the scalar tail.
    std::vector<float> weight(77, 2.0f), out(77);
    set->rms_norm(x.data() + 3, weight.data(), 77, 1e-5f, out.data());
    double squares = 0;
    for (size_t i = 3; i < 80; ++i) squares += static_cast<double>(x[i]) * x[i];
    for (size_t i = 0; i < 77; ++i)
      ASSERT_NEAR(out[i], 2 * x[i + 3] / std::sqrt(squares / 77 + 1e-5), 1e-5) << name;
  }
}

}  // namespace
}  // namespace frugal::llm
