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

void dot_keys(const std::byte* panels, size_t stride, const CodeLayout& layout, const uint8_t* tables,
              const int8_t* x, size_t n_cols, const int32_t* zeros, const float* scales, float* y,
              size_t y_stride) {
  uint8_t levels[64];
  for (size_t panel = 0; panel < kCodeBlock / 16; ++panel, panels += stride, y += 16) {
    std::vector<int32_t> dots(n_cols * 16, 0);
    for (size_t k = 0; k < layout.n_read; ++k) {
      const CodeGroup& group = layout.groups[k];
      unpack(panels, layout.n_bits, group.at, group.bits, tables, levels);
      for (size_t c = 0; c < n_cols; ++c) {
        const int8_t* four = x + (c * layout.n_groups + group.number) * 4;
        for (size_t t = 0; t < 16; ++t) {
          for (size_t i = 0; i < 4; ++i) dots[c * 16 + t] += levels[t * 4 + i] * four[i];
        }
      }
    }
    for (size_t c = 0; c < n_cols; ++c) {
      for (size_t t = 0; t < 16; ++t)
        y[c * y_stride + t] += scales[c] * static_cast<float>(dots[c * 16 + t] - zeros[c]);
    }
  }
}

float quantize_weights(const float* w, size_t w_stride, const float* scales, size_t n_blocks,
                       const float* dither, uint8_t* q, int32_t* sum) {
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
    const float scaled = row[t] * inverse + dither[t];
    q[t] = scaled >= 0 && scaled < kWeightMax + 1 ? static_cast<uint8_t>(scaled) : uint8_t{0};
    *sum += q[t];
  }
  return inverse > 0 ? largest / kWeightMax + wrong : wrong;
}

void dot_values(const std::byte* panels, size_t stride, size_t n_blocks, const CodeLayout& layout,
                const uint8_t* tables, const float* level_scales, const uint8_t* w, size_t n_cols,
                const int32_t* zeros, const float* scales, float* const* y) {
  uint8_t levels[kMaxValueBlocks * kCodeBlock * 4];
  const size_t n_tokens = n_blocks * kCodeBlock;
  for (size_t k = 0; k < layout.n_read; ++k) {
    const CodeGroup& group = layout.groups[k];
    for (size_t panel = 0; panel < n_tokens / 16; ++panel)
      unpack(panels + panel * stride, layout.n_bits, group.at, group.bits, tables, levels + 64 * panel);
    for (size_t c = 0; c < n_cols; ++c) {
      if (scales[c] == 0) continue;
      const float scale = scales[c] * level_scales[group.bits];
      for (size_t i = 0; i < 4; ++i) {
        int32_t dot = 0;
        for (size_t t = 0; t < n_tokens; ++t) dot += levels[4 * t + i] * w[c * n_tokens + t];
        y[c][4 * group.number + i] += scale * static_cast<float>(dot - zeros[c]);
      }
    }
  }
}

constexpr CodeKernels kGenericCodeKernels = {
    "generic",         dot_keys,     quantize_weights, dot_values,  code_path,    code_paths,   expand_scales,
    quantize_products, add_products, add_to_bins,      spread_bins, turn_factors, turned_scores};

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
