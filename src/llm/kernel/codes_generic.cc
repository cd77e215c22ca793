#include <algorithm>
#include <cstring>
#include <vector>

#include "llm/kernel/codes.inc.h"
#include "llm/kernel/kernel.h"

namespace frugal::llm {

#ifdef FRUGAL_HAVE_AVX2
extern const CodeKernels kAvx2CodeKernels;
extern const CodeKernels kAvx512CodeKernels;
#endif

namespace {

// Levels of a group that begins at bit `at` of its panel's streams: [16 tokens, 4].
void unpack(const std::byte* panel, int n_bits, int at, int bits, const uint8_t* tables, uint8_t* levels) {
  for (int token = 0; token < 16; ++token) {
    const auto word = static_cast<size_t>(at / 32);
    uint64_t both = stream_word(panel, n_bits, token, word);
    both |= static_cast<uint64_t>(stream_word(panel, n_bits, token, word + 1)) << 32;
    both >>= at % 32;
    for (int i = 0; i < 4; ++i, both >>= bits)
      *levels++ = bits == 8 ? static_cast<uint8_t>(both)
                            : tables[kWindows * bits + static_cast<int>(both & (kWindows - 1))];
  }
}

void dot_keys(const std::byte* panels, size_t stride, const uint8_t* bits, size_t n_groups,
              const uint8_t* tables, const int8_t* x, size_t n_cols, const int32_t* zeros,
              const float* scales, float* y, size_t y_stride) {
  uint8_t levels[64];
  const int n_bits = stream_bits(bits, n_groups);
  for (size_t panel = 0; panel < kCodeBlock / 16; ++panel, panels += stride, y += 16) {
    int at = 0;
    std::vector<int32_t> dots(n_cols * 16, 0);
    for (size_t g = 0; g < n_groups; at += 4 * bits[g], ++g) {
      if (bits[g] == 0) continue;
      unpack(panels, n_bits, at, bits[g], tables, levels);
      for (size_t c = 0; c < n_cols; ++c) {
        for (size_t t = 0; t < 16; ++t) {
          for (size_t i = 0; i < 4; ++i)
            dots[c * 16 + t] += levels[t * 4 + i] * x[(c * n_groups + g) * 4 + i];
        }
      }
    }
    for (size_t c = 0; c < n_cols; ++c) {
      for (size_t t = 0; t < 16; ++t)
        y[c * y_stride + t] += scales[c] * static_cast<float>(dots[c * 16 + t] - zeros[c]);
    }
  }
}

float quantize_weights(const float* w, size_t w_stride, const float* scales, size_t n_blocks, int16_t* q,
                       int32_t* sum) {
  float row[kMaxValueBlocks * kCodeBlock], largest = 0, wrong = 0;  // `wrong` is 0 or NaN
  const size_t n = n_blocks * kCodeBlock;
  for (size_t t = 0; t < n; ++t) {
    row[t] = w[t / kCodeBlock * w_stride + t % kCodeBlock] * scales[t];
    largest = std::max(largest, row[t]);
    wrong += row[t] - row[t];
  }
  const float inverse = largest > 1e-30f && largest < 1e30f ? kWeightMax / largest : 0.0f;
  *sum = 0;
  for (size_t t = 0; t < n; ++t) {
    const float scaled = row[t] * inverse + 0.5f;
    const int value = scaled >= 0 && scaled < kWeightMax + 1 ? static_cast<int>(scaled) : 0;
    *sum += value;
    for (size_t i = 0; i < 4; ++i) q[t / 4 * 16 + i * 4 + t % 4] = static_cast<int16_t>(value);
  }
  return inverse > 0 ? largest / kWeightMax + wrong : wrong;
}

void dot_values(const std::byte* panels, size_t stride, size_t n_blocks, const uint8_t* bits, size_t n_groups,
                const uint8_t* tables, const float* level_scales, const int16_t* w, size_t n_cols,
                const int32_t* zeros, const float* scales, float* const* y) {
  uint8_t levels[kMaxValueBlocks * kCodeBlock * 4];
  const size_t n_tokens = n_blocks * kCodeBlock;
  const int n_bits = stream_bits(bits, n_groups);
  int at = 0;
  for (size_t g = 0; g < n_groups; at += 4 * bits[g], ++g) {
    if (bits[g] == 0) continue;
    for (size_t panel = 0; panel < n_tokens / 16; ++panel)
      unpack(panels + panel * stride, n_bits, at, bits[g], tables, levels + 64 * panel);
    for (size_t c = 0; c < n_cols; ++c) {
      if (scales[c] == 0) continue;
      const float scale = scales[c] * level_scales[bits[g]];
      for (size_t i = 0; i < 4; ++i) {
        int32_t dot = 0;
        for (size_t t = 0; t < n_tokens; ++t)
          dot += levels[4 * t + i] * w[c * n_blocks * kWeightWidth + t / 4 * 16 + t % 4];
        y[c][4 * g + i] += scale * static_cast<float>(dot - zeros[c]);
      }
    }
  }
}

constexpr CodeKernels kGenericCodeKernels = {"generic",   dot_keys,      quantize_weights,  dot_values,
                                             code_path,   expand_scales, quantize_products, add_products,
                                             add_to_bins, turn_factors,  turned_scores};

}  // namespace

const CodeKernels* find_code_kernels(const char* name) {
  if (std::strcmp(name, "generic") == 0) return &kGenericCodeKernels;
#ifdef FRUGAL_HAVE_AVX2
  if (std::strcmp(name, "avx2") == 0 && find_kernels(name) != nullptr) return &kAvx2CodeKernels;
  if (std::strcmp(name, "avx512") == 0 && find_kernels(name) != nullptr &&
      __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vbmi2"))
    return &kAvx512CodeKernels;
#endif
  return nullptr;
}

const CodeKernels& code_kernels() {
  static const CodeKernels* const best = [] {
    for (const char* name : {"avx512", "avx2"}) {
      if (const CodeKernels* set = find_code_kernels(name)) return set;
    }
    return &kGenericCodeKernels;
  }();
  return *best;
}

}  // namespace frugal::llm
