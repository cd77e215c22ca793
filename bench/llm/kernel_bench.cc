// Micro-bench of the panel kernels on one core: multiply-adds a second, and bytes of weights read a second.
//
//   bench_llm_kernels [SET] [FILTER]     SET: avx2, generic, ... (the best one by default); FILTER: part of a
//   name
//
// Weights of the columns "L2" stay in the second-level cache; "stream" reads 64 MiB of them once for each
// product, as a decoding step does.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/rng.h"
#include "llm/kernel/kernel.h"
#include "llm/kernel/panel.h"

namespace frugal::llm {
namespace {

volatile float sink;

// Best of several runs of at least `least_s`, in seconds a call.
template <typename F>
double best_seconds(F f, double least_s = 0.02) {
  f();
  size_t calls = 1;
  double best = 1e9;
  for (int run = 0; run < 7; ++run) {
    const double begin = wall_seconds();
    for (size_t i = 0; i < calls; ++i) f();
    const double took = wall_seconds() - begin;
    if (took < least_s) {
      calls = std::max(calls + 1,
                       static_cast<size_t>(static_cast<double>(calls) * least_s / std::max(took, 1e-9)));
      --run;
      continue;
    }
    best = std::min(best, took / static_cast<double>(calls));
  }
  return best;
}

struct Shape {
  const char* name;
  PanelType type;
  QuantPanelFn Kernels::*quant;
};
const Shape kShapes[] = {
    {"Q4_1", PanelType::kQ4_1, &Kernels::panel_q4_1},
    {"Q4_0", PanelType::kQ4_0, &Kernels::panel_q4_0},
    {"Q8_0", PanelType::kQ8_0, &Kernels::panel_q8_0},
    {"Q4_K", PanelType::kQ4_K, &Kernels::panel_q4_k},
    {"Q5_K", PanelType::kQ5_K, &Kernels::panel_q5_k},
    {"Q6_K", PanelType::kQ6_K, &Kernels::panel_q6_k},
    {"Q5_0", PanelType::kQ5_0, &Kernels::panel_q5_0},
    {"F16", PanelType::kF16, nullptr},
    {"BF16", PanelType::kBF16, nullptr},
    {"F32", PanelType::kF32, nullptr},
};

struct Columns {
  std::vector<float> x, scales;
  std::vector<ActSum> sums;
  std::vector<int8_t> q;
  std::vector<int16_t> super_sums;
  ActColumns view;
};

Columns make_columns(const Kernels& set, bool super, size_t n, size_t k) {
  Columns c;
  Rng rng(3);
  c.x.resize(n * k);
  for (float& v : c.x) v = static_cast<float>(rng.normal());
  c.q.resize(n * k);
  c.scales.resize(n * k / 32);
  c.sums.resize(n * k / 32);
  c.super_sums.resize(n * k / 256 * kActSuperSums);
  for (size_t i = 0; i < n; ++i) {
    if (super) {
      set.quantize_super_blocks(&c.x[i * k], k, &c.q[i * k], &c.scales[i * k / 256],
                                &c.super_sums[i * k / 256 * kActSuperSums]);
    } else {
      set.quantize_blocks(&c.x[i * k], k, &c.q[i * k], &c.scales[i * k / 32], &c.sums[i * k / 32]);
    }
  }
  c.view = {c.q.data(),
            c.scales.data(),
            c.sums.data(),
            c.super_sums.data(),
            k,
            k / (super ? 256 : 32),
            super ? k / 256 * kActSuperSums : k / 32};
  return c;
}

void run_panel(const Kernels& set, const Shape& shape, const std::byte* panel, size_t k, const Columns& c,
               size_t n, float* y) {
  if (shape.quant != nullptr) return (set.*shape.quant)(panel, k, c.view, n, y, 16);
  if (shape.type == PanelType::kF32)
    return set.panel_f32({reinterpret_cast<const float*>(panel), 16, 0, 1, k}, c.x.data(), k, n, y, 16,
                         false);
  const auto* half = reinterpret_cast<const uint16_t*>(panel);
  (shape.type == PanelType::kF16 ? set.panel_f16 : set.panel_bf16)({half, 16, 0, 1, k}, c.x.data(), k, n, y,
                                                                   16, false);
}

// `reads`: bytes a second that one core reads.
void bench(const Kernels& set, const Shape& shape, double reads) {
  const size_t k = 768;  // a multiple of all block sizes
  const size_t bytes = panel_bytes(shape.type, k);
  const size_t small = std::max<size_t>(1, (160 << 10) / bytes), large = (size_t{64} << 20) / bytes;
  std::vector<std::byte> weights(large * bytes);
  // Any bytes do for integers; scales have to be finite, or every sum would be a NaN.
  Rng rng(5);
  for (size_t i = 0; i + 2 <= bytes; i += 2) {
    const auto half = static_cast<uint16_t>((rng.next() & 0x83ff) | 0x3000);
    std::memcpy(&weights[i], &half, 2);
  }
  for (size_t p = 1; p < large; ++p) std::memcpy(&weights[p * bytes], weights.data(), bytes);
  std::vector<float> y(16 * 64);
  std::printf("%-5s", shape.name);
  double of_reads = 0;
  for (const size_t n : {size_t{1}, size_t{4}, size_t{8}, size_t{16}}) {
    const Columns columns = make_columns(set, panel_block_size(shape.type) == 256, n, k);
    const double s = best_seconds([&] {
      for (size_t p = 0; p < small; ++p) run_panel(set, shape, &weights[p * bytes], k, columns, n, y.data());
    });
    std::printf("  %7.1f", 1e-9 * static_cast<double>(small * k * 16 * n) / s);
    sink = y[0];
  }
  for (const size_t n : {size_t{1}, size_t{4}, size_t{8}}) {
    const Columns columns = make_columns(set, panel_block_size(shape.type) == 256, n, k);
    const double s = best_seconds([&] {
      for (size_t p = 0; p < large; ++p) run_panel(set, shape, &weights[p * bytes], k, columns, n, y.data());
    });
    const double rate = static_cast<double>(large * bytes) / s;
    std::printf("  %7.1f", 1e-9 * rate);
    if (n == 1) of_reads = rate / reads;
    sink = y[0];
  }
  std::printf("  %5.0f %% of reads\n", 100 * of_reads);
}

// Bytes a second that one core reads.
double read_rate() {
  std::vector<uint64_t> data((size_t{64} << 20) / 8, 1);
  const double s = best_seconds([&] {
    uint64_t sums[8] = {};
    for (size_t i = 0; i < data.size(); i += 8) {
      for (size_t j = 0; j < 8; ++j) sums[j] += data[i + j];
    }
    sink = static_cast<float>(sums[0] + sums[1] + sums[2] + sums[3] + sums[4] + sums[5] + sums[6] + sums[7]);
  });
  return static_cast<double>(data.size() * 8) / s;
}

int run(int argc, char** argv) {
  const Kernels* set = argc > 1 && argv[1][0] != '\0' ? find_kernels(argv[1]) : &kernels();
  if (set == nullptr) {
    std::fprintf(stderr, "there is no kernel set '%s' in this build or for this processor\n", argv[1]);
    return 2;
  }
  const double reads = read_rate();
  std::printf("set %s, one core, reads %.1f GB/s\n", set->name, reads / 1e9);
  std::printf("      GMAC/s in L2: 1        4        8       16  GB/s stream: 1    4        8 columns\n");
  for (const Shape& shape : kShapes) {
    if (argc > 2 && std::string(shape.name).find(argv[2]) == std::string::npos) continue;
    bench(*set, shape, reads);
  }
  return 0;
}

}  // namespace
}  // namespace frugal::llm

int main(int argc, char** argv) { return frugal::llm::run(argc, argv); }
