// Prints a digest of what every kernel of one set gives for the same inputs: `kernel_bits avx2`. Two sets
// that print the same agree bit for bit, on whatever processors they ran. Stands on the kernel room alone, so
// that a cross compiler builds it in one command (neon_test.py).
#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "llm/kernel/kernel.h"
#include "llm/kernel/panel.h"

namespace frugal::llm {
namespace {

uint64_t random_bits() {  // xorshift64*
  static uint64_t state = 0x9E3779B97F4A7C15;
  state ^= state >> 12;
  state ^= state << 25;
  state ^= state >> 27;
  return state * 0x2545F4914F6CDD1D;
}

// Sums of uniform numbers: near enough to normal, and without the math library, whose bits differ.
float random_float(float scale) {
  float sum = 0;
  for (int i = 0; i < 4; ++i) sum += static_cast<float>(random_bits() >> 40) * 0x1p-24f - 0.5f;
  return sum * scale;
}

template <typename T>
uint64_t digest(const std::vector<T>& values) {  // FNV-1a
  uint64_t hash = 0xcbf29ce484222325;
  const auto* bytes = reinterpret_cast<const unsigned char*>(values.data());
  for (size_t i = 0; i < values.size() * sizeof(T); ++i) hash = (hash ^ bytes[i]) * 0x100000001b3;
  return hash;
}

template <typename T>
void print(const std::string& what, const std::vector<T>& values) {
  std::printf("%s %016llx\n", what.c_str(), static_cast<unsigned long long>(digest(values)));
}

struct QuantCase {
  const char* name;
  PanelType type;
  QuantPanelFn Kernels::*run;
  std::vector<size_t> halves;  // where in a block a half stands, which must be finite
};

void quantised(const Kernels& set, const QuantCase& c) {
  const size_t k = 768, n_cols = 13;
  const size_t block = static_cast<size_t>(panel_block_size(c.type)), bytes = gguf_block_bytes(c.type);
  const size_t row_bytes = k / block * bytes;
  std::vector<std::byte> rows(16 * row_bytes), panel(panel_bytes(c.type, k));
  for (std::byte& b : rows) b = static_cast<std::byte>(random_bits());
  for (size_t at = 0; at < rows.size(); at += bytes) {
    for (const size_t half : c.halves) {
      const uint16_t value = f32_to_f16(random_float(0.2f));
      std::memcpy(&rows[at + half], &value, 2);
    }
  }
  pack_panel(c.type, rows.data(), row_bytes, 16, k, panel.data());

  std::vector<float> x(n_cols * k);
  for (float& v : x) v = random_float(3);
  const bool super = block == 256;
  const size_t n_scales = k / block, n_sums = super ? n_scales * kActSuperSums : n_scales;
  std::vector<int8_t> q(n_cols * k);
  std::vector<float> scales(n_cols * n_scales);
  std::vector<ActSum> sums(super ? 0 : n_cols * n_sums);
  std::vector<int16_t> super_sums(super ? n_cols * n_sums : 0);
  for (size_t col = 0; col < n_cols; ++col) {
    int8_t* to = &q[col * k];
    if (super) {
      set.quantize_super_blocks(&x[col * k], k, to, &scales[col * n_scales], &super_sums[col * n_sums]);
    } else {
      set.quantize_blocks(&x[col * k], k, to, &scales[col * n_scales], &sums[col * n_sums]);
    }
  }
  print(std::string(c.name) + " activations", q);
  print(std::string(c.name) + " scales", scales);
  super ? print(std::string(c.name) + " sums", super_sums) : print(std::string(c.name) + " sums", sums);
  const ActColumns view{
      q.data(), scales.data(), super ? nullptr : sums.data(), super ? super_sums.data() : nullptr, k,
      n_scales, n_sums};
  std::vector<float> y(n_cols * 16);
  (set.*c.run)(panel.data(), k, view, n_cols, y.data(), 16);
  print(std::string(c.name) + " product", y);
}

template <typename T>
void floats(const char* name, FloatPanelFn<T> run, std::vector<T> w, size_t k) {
  for (const size_t n_cols : {1, 2, 5, 13}) {
    std::vector<float> x(n_cols * k), y(n_cols * 48, 0.25f);
    for (float& v : x) v = random_float(1);
    run({w.data(), 16, k * 16, 3, k}, x.data(), k, n_cols, y.data(), 48, n_cols == 5);
    print(std::string(name) + " product of " + std::to_string(n_cols), y);
  }
}

void elementwise(const Kernels& set) {
  std::vector<float> x(1024), up(1024), y(1024);
  for (float& v : x) v = random_float(8);
  for (float& v : up) v = random_float(2);
  x[0] = -200;
  x[1] = 200;
  x[2] = -88;
  set.rms_norm(x.data(), up.data(), 77, 1e-5f, y.data());
  print("rms_norm", y);
  y = x;
  set.silu_mul(y.data(), up.data(), y.size());
  print("silu_mul", y);
  y = x;
  set.gelu_mul(y.data(), up.data(), y.size());
  print("gelu_mul", y);
  y = x;
  y[5] = -INFINITY;
  y[6] = -200;
  set.exp(y.data(), 512);
  print("exp", y);
  y = x;
  y[5] = -INFINITY;
  float largest, sum;
  set.softmax(y.data(), 256, 4, &largest, &sum);
  print("softmax", y);
  print("softmax sums", std::vector<float>{largest, sum});
  set.blend(y.data(), up.data(), y.size(), 1.7f, 0.3f);
  print("blend", y);
  for (size_t i = 0; i < x.size(); ++i) x[i] *= i % 3 == 0 ? 1e-7f : i % 3 == 1 ? 1.0f : 1e4f;
  std::vector<uint16_t> halves(x.size());
  set.to_f16(x.data(), x.size(), halves.data());
  print("to_f16", halves);
  set.to_bf16(x.data(), x.size(), halves.data());
  print("to_bf16", halves);
}

void values(const Kernels& set) {
  const size_t n_groups = 2;
  std::vector<std::byte> chunk(n_groups * kValueGroupBytes);
  for (size_t t = 0; t < kMaxValueTokens; ++t) {
    for (size_t channel = 0; channel < 32 * n_groups; ++channel)
      chunk[value_at(channel, t)] = static_cast<std::byte>(random_bits());
    for (size_t group = 0; group < n_groups; ++group) {
      const uint16_t half = f32_to_f16(std::fabs(random_float(0.2f)));
      std::memcpy(&chunk[value_scale_at(group, t)], &half, 2);
    }
  }
  for (const size_t n_cols : {1, 3, 4, 13}) {
    std::vector<float> w(4 * n_cols * kValueBlock), y(n_cols * 64, 0.25f);
    for (float& v : w) v = std::fabs(random_float(1));
    set.values_q8_0(chunk.data(), n_groups, 256, w.data(), n_cols * kValueBlock, n_cols, y.data(), 64,
                    chunk.data());
    print("values of " + std::to_string(n_cols), y);
  }
}

int run(const char* name) {
  const Kernels* set = find_kernels(name);
  if (set == nullptr) {
    std::printf("this processor has no set %s\n", name);
    return 77;
  }
  const QuantCase cases[] = {{"q8_0", PanelType::kQ8_0, &Kernels::panel_q8_0, {0}},
                             {"q4_0", PanelType::kQ4_0, &Kernels::panel_q4_0, {0}},
                             {"q4_1", PanelType::kQ4_1, &Kernels::panel_q4_1, {0, 2}},
                             {"q5_0", PanelType::kQ5_0, &Kernels::panel_q5_0, {0}},
                             {"q5_1", PanelType::kQ5_1, &Kernels::panel_q5_1, {0, 2}},
                             {"q4_k", PanelType::kQ4_K, &Kernels::panel_q4_k, {0, 2}},
                             {"q5_k", PanelType::kQ5_K, &Kernels::panel_q5_k, {0, 2}},
                             {"q6_k", PanelType::kQ6_K, &Kernels::panel_q6_k, {208}}};
  for (const QuantCase& c : cases) quantised(*set, c);
  const size_t k = 192, n = 3 * k * 16;
  std::vector<float> w(n);
  std::vector<uint16_t> half(n), brain(n);
  std::vector<int8_t> bytes(n);
  for (size_t i = 0; i < n; ++i) {
    w[i] = random_float(1);
    half[i] = f32_to_f16(w[i]);
    uint32_t bits;
    std::memcpy(&bits, &w[i], 4);
    brain[i] = static_cast<uint16_t>(bits >> 16);
    bytes[i] = static_cast<int8_t>(random_bits());
  }
  floats<float>("f32", set->panel_f32, w, k);
  floats<uint16_t>("f16", set->panel_f16, half, k);
  floats<uint16_t>("bf16", set->panel_bf16, brain, k);
  floats<int8_t>("s8", set->panel_s8, bytes, k);
  values(*set);
  elementwise(*set);
  return 0;
}

}  // namespace
}  // namespace frugal::llm

int main(int argc, char** argv) { return frugal::llm::run(argc > 1 ? argv[1] : "generic"); }
