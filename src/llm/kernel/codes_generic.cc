#include <algorithm>

#include "llm/kernel/codes.h"
#include "llm/kernel/kernel.h"

namespace frugal::llm {

#ifdef FRUGAL_HAVE_AVX2
extern const CodeKernels kAvx2CodeKernels;
#endif

namespace {

void unpack(const std::byte* group, int bits, const uint8_t* table, uint8_t* levels) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(group);
  for (int idx = 0; idx < 64; ++idx) {
    int code = 0;
    if (bits == 4 || bits == 6) code = bytes[idx % 32] >> (idx / 32 * 4) & 15;
    if (bits == 6) code |= (bytes[32 + idx % 16] >> (idx / 16 * 2) & 3) << 4;
    if (bits == 2 || bits == 3) code = bytes[idx % 16] >> (idx / 16 * 2) & 3;
    if (bits == 1) code = bytes[idx % 8] >> (idx / 8) & 1;
    if (bits == 3) code |= (bytes[16 + idx % 8] >> (idx / 8) & 1) << 2;
    levels[idx] = bits == 8 ? bytes[idx] : bits == 6 ? static_cast<uint8_t>(2 * code) : table[code];
  }
}

void dot_keys(const std::byte* groups, const uint8_t* bits, size_t n_groups, const uint8_t* tables,
              const int8_t* x, size_t n_cols, int32_t* dots) {
  std::fill_n(dots, n_cols * 16, 0);
  uint8_t levels[64];
  for (size_t g = 0; g < n_groups; ++g) {
    if (bits[g] == 0) continue;
    unpack(groups, bits[g], tables + (bits[g] <= 4 ? 16 * bits[g] : 0), levels);
    groups += 8 * bits[g];
    for (size_t c = 0; c < n_cols; ++c) {
      const int8_t* xs = x + c * 4 * n_groups + 4 * g;
      for (size_t t = 0; t < 16; ++t) {
        for (size_t i = 0; i < 4; ++i) dots[c * 16 + t] += levels[t * 4 + i] * xs[i];
      }
    }
  }
}

void dot_values(const std::byte* group, size_t stride, size_t n_panels, int bits, const uint8_t* table,
                const int8_t* w, size_t low, size_t w_stride, size_t n_cols, int32_t* dots) {
  std::fill_n(dots, n_cols * 4, 0);
  uint8_t levels[64];
  for (size_t panel = 0; panel < n_panels; ++panel, group += stride) {
    unpack(group, bits, table, levels);
    for (size_t c = 0; c < n_cols; ++c) {
      const int8_t* ws = w + c * w_stride + 16 * panel;
      for (size_t i = 0; i < 4; ++i) {
        for (size_t t = 0; t < 16; ++t) dots[c * 4 + i] += levels[i * 16 + t] * (ws[t] * 128 + ws[low + t]);
      }
    }
  }
}

constexpr CodeKernels kGenericCodeKernels = {"generic", dot_keys, dot_values};

}  // namespace

const CodeKernels* find_code_kernels(const char* name) {
#ifdef FRUGAL_HAVE_AVX2
  if (name[0] == 'a' && find_kernels("avx2") != nullptr) return &kAvx2CodeKernels;
#endif
  return name[0] == 'g' ? &kGenericCodeKernels : nullptr;
}

const CodeKernels& code_kernels() {
  static const CodeKernels* const best =
      find_code_kernels("avx2") != nullptr ? find_code_kernels("avx2") : &kGenericCodeKernels;
  return *best;
}

}  // namespace frugal::llm
