// Micro-kernels: the few loops in which nearly all time goes, chosen once for the processor at hand.
//
// Everything is built on the panel: 16 rows of a matrix side by side, so that a vector lane is a row and no
// sum ever crosses lanes. A panel is multiplied with any number of columns; each output has one accumulation
// order, along k, whatever the number of columns, which is what makes results bit-identical at any batch
// size:
//
//   y[c][r] = sum over k of  W[k][r] * x[c][k],   r in [0, 16)
//
// Weights, keys (16 tokens are 16 rows) and values (16 channels are 16 rows) are all read this way.
#pragma once

#include <cstddef>
#include <cstdint>

namespace frugal::llm {

inline constexpr int kPanelRows = 16;

// A block of quantised activations shares one scale.
inline constexpr int kActBlock = 32;  // for Q4_0, Q4_1, Q5_0, Q5_1, Q8_0 weights, as ggml's q8_0 and q8_1
inline constexpr int kActSuperBlock = 256;  // for K-quant weights, as ggml's q8_K
// Sums of a super-block: of its eight 32-blocks, then of its sixteen 16-blocks.
inline constexpr int kActSuperSums = 24;

// Of the q of a 32-block: what weights with an offset or a minimum are multiplied by.
struct ActSum {
  float scaled;    // scale * sum of q
  int32_t offset;  // -8 * sum of q
  bool operator==(const ActSum&) const = default;
};

// Attention weights as integers: 7 bits in each of two bytes, so that two products with int8 fit 16 bits.
inline constexpr int kValueWeightMax = (1 << 14) - 1;
inline constexpr size_t kMaxValueTokens = 256;  // whose sums fit 32 bits

// How the weights of a panel are held. Layouts: panel.h.
enum class PanelType { kF32, kF16, kBF16, kQ8_0, kQ4_0, kQ4_1, kQ5_0, kQ5_1, kQ4_K, kQ5_K, kQ6_K };

// Columns of activations, one after the other.
struct ActColumns {
  const int8_t* q = nullptr;            // [n_cols, k], in [-127, 127]
  const float* scales = nullptr;        // [n_cols, k / block]
  const ActSum* sums = nullptr;         // [n_cols, k / 32], for 32-blocks
  const int16_t* super_sums = nullptr;  // [n_cols, k / 256, kActSuperSums]: sums of q, for super-blocks
  size_t q_stride = 0, scale_stride = 0, sum_stride = 0;  // from column to column, in elements

  ActColumns from(size_t col) const {
    ActColumns x = *this;
    x.q += col * q_stride;
    x.scales += col * scale_stride;
    if (sums != nullptr) x.sums += col * sum_stride;
    if (super_sums != nullptr) x.super_sums += col * sum_stride;
    return x;
  }
};

// One panel times n_cols quantised columns: y[c * y_stride + r]. `k` is a multiple of the activation block.
using QuantPanelFn = void (*)(const std::byte* panel, size_t k, const ActColumns& x, size_t n_cols, float* y,
                              size_t y_stride);

// Float panels: element (k, r) of panel p stands at w[p * panel_stride + k * k_stride + r], so that a panel
// may be a 16-wide slice of a wider matrix.
template <typename T>
struct FloatPanels {
  const T* w = nullptr;
  size_t k_stride = kPanelRows;
  size_t panel_stride = 0;
  size_t n_panels = 1;
  size_t k = 0;
  const void* next =
      nullptr;  // as many bytes as the panels have, which are wanted soon and asked for on the way
};

// Panels times n_cols float columns: y[c * y_stride + p * 16 + r]. `accumulate`: starts from what y holds
// instead of from zero.
template <typename T>
using FloatPanelFn = void (*)(const FloatPanels<T>& panels, const float* x, size_t x_stride, size_t n_cols,
                              float* y, size_t y_stride, bool accumulate);

inline constexpr size_t kPiecesSummed = 4;  // of a softmax

struct Kernels {
  const char* name;  // "avx2"
  FloatPanelFn<float> panel_f32;
  FloatPanelFn<uint16_t> panel_f16;
  FloatPanelFn<uint16_t> panel_bf16;
  FloatPanelFn<int8_t> panel_s8;  // bare int8, no scale, which is folded into x
  // y[c * y_stride + d] += sum over t < n_tokens of w(c, t) * value(t, d), for 32 * n_groups channels d and
  // up to kMaxValueTokens tokens from the start of a block on; w(c, t) = w[t / 64 * w_stride + c * 64 + t %
  // 64]
  // >= 0, and 0 from n_tokens to the end of its block. Values as in panel.h, `block` the first one of the
  // first 32 channels. For each column and 32 channels the weights times the tokens' scales become integers
  // up to kValueWeightMax, and sums of products are integers: exact, whatever their order. Asks for what
  // stands at `next` towards the end.
  void (*values_q8_0)(const std::byte* block, size_t n_groups, size_t n_tokens, const float* w,
                      size_t w_stride, size_t n_cols, float* y, size_t y_stride, const std::byte* next);
  QuantPanelFn panel_q8_0, panel_q4_0, panel_q4_1, panel_q5_0, panel_q5_1, panel_q4_k, panel_q5_k, panel_q6_k;

  // Quantises one row of k floats. NaN and infinities give unspecified values, never undefined behaviour.
  void (*quantize_blocks)(const float* x, size_t k, int8_t* q, float* scales, ActSum* sums);
  void (*quantize_super_blocks)(const float* x, size_t k, int8_t* q, float* scales, int16_t* sums);

  // y[i] = x[i] * weight[i] / sqrt(mean(x^2) + eps); y may be x.
  void (*rms_norm)(const float* x, const float* weight, size_t n, float eps, float* y);
  // gate[i] = act(gate[i]) * up[i]; n is a multiple of 16 or the arrays are readable and writable up to one.
  void (*silu_mul)(float* gate, const float* up, size_t n);
  void (*gelu_mul)(float* gate, const float* up, size_t n);  // tanh form
  // x[i] = exp(x[i]) for n a multiple of 16; exactly 1 at 0, exactly 0 below -87.
  void (*exp)(float* x, size_t n);
  // The numerators of a softmax over n_pieces pieces of 64 scores, which begin `stride` apart: writes
  // exp(score - *max) in place, and sets *max and, for each kPiecesSummed of them, the sum of what it wrote.
  // Scores of -inf give exactly 0; one at least is finite.
  void (*softmax)(float* scores, size_t stride, size_t n_pieces, float* max, float* sums);
  // y[i] = y[i] * keep + x[i] * take; n a multiple of 16.
  void (*blend)(float* y, const float* x, size_t n, float keep, float take);
  // Narrowing with round to nearest even; finite values beyond the range saturate instead of becoming
  // infinite.
  void (*to_f16)(const float* x, size_t n, uint16_t* y);
  void (*to_bf16)(const float* x, size_t n, uint16_t* y);
};

// The best set for this processor; decided at first use. Thread-safe.
const Kernels& kernels();

// Replaces the set that kernels() gives, or restores the best one (null): for tests that show what a wrong
// kernel does, and for benches. Not while an engine is computing.
void use_kernels(const Kernels* set);

// The set named ("generic", "avx2", "avx512", "neon"), or null when this build or processor lacks it: for
// tests and benches.
const Kernels* find_kernels(const char* name);

// Conversions of single values, exact.
float f16_to_f32(uint16_t value);
uint16_t f32_to_f16(float value);  // round to nearest even, saturating
inline float bf16_to_f32(uint16_t value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float result;
  __builtin_memcpy(&result, &bits, 4);
  return result;
}

}  // namespace frugal::llm
