// Kernels of codes: all integer, so every set has to give the bits of sums done one by one.
#include "llm/kernel/codes.h"

#include <gtest/gtest.h>

#include <vector>

#include "base/rng.h"

namespace frugal::llm {
namespace {

constexpr uint8_t kBits[] = {8, 6, 4, 3, 2, 1, 0};

uint32_t codes_of(int bits) { return bits == 8 ? kLevelMax + 1 : 1u << bits; }
int level_of(int bits, int code, const uint8_t* table) {
  return bits == 8 ? code : bits == 6 ? 2 * code : table[code];
}

struct Case {
  std::vector<uint8_t> bits;
  std::vector<std::vector<int>> codes;  // [group][64]
  std::vector<std::byte> panel;
  std::vector<uint8_t> tables = std::vector<uint8_t>(16 * 5);

  explicit Case(Rng& rng) {
    for (uint8_t& level : tables) level = static_cast<uint8_t>(rng.below(kLevelMax + 1));
    for (int g = 0; g < 11; ++g) {
      bits.push_back(kBits[g < 7 ? static_cast<size_t>(g) : rng.below(7)]);
      codes.emplace_back();
      const size_t at = panel.size();
      panel.resize(at + 8u * bits.back(), std::byte{0xff});
      for (int idx = 0; idx < 64; ++idx) {
        codes.back().push_back(static_cast<int>(rng.below(codes_of(bits.back()))));
        if (bits.back() > 0) put_code(panel.data() + at, bits.back(), idx, codes.back().back());
      }
    }
    panel.resize(panel.size() + 32);
  }
  int level(size_t group, int idx) const {
    return level_of(bits[group], codes[group][static_cast<size_t>(idx)],
                    tables.data() + (bits[group] <= 4 ? 16 * bits[group] : 0));
  }
};

TEST(Codes, EverySetGivesTheSumsOfLevels) {
  Rng rng(3);
  for (const char* name : {"generic", "avx2"}) {
    const CodeKernels* set = find_code_kernels(name);
    if (set == nullptr) continue;
    SCOPED_TRACE(name);
    for (int round = 0; round < 20; ++round) {
      const Case c(rng);
      const size_t n_groups = c.bits.size(), n_cols = 1 + rng.below(7);
      std::vector<int8_t> x(n_cols * 4 * n_groups);
      // The extremes, now and then: 16 bits must not overflow.
      for (int8_t& v : x)
        v = static_cast<int8_t>(rng.below(4) == 0 ? 127 : static_cast<int>(rng.below(255)) - 127);
      std::vector<int32_t> dots(n_cols * 16);
      set->dot_keys(c.panel.data(), c.bits.data(), n_groups, c.tables.data(), x.data(), n_cols, dots.data());
      for (size_t col = 0; col < n_cols; ++col) {
        for (int t = 0; t < 16; ++t) {
          int32_t sum = 0;
          for (size_t g = 0; g < n_groups; ++g) {
            for (int i = 0; i < 4 && c.bits[g] > 0; ++i)
              sum += c.level(g, t * 4 + i) * x[col * 4 * n_groups + 4 * g + static_cast<size_t>(i)];
          }
          ASSERT_EQ(dots[col * 16 + static_cast<size_t>(t)], sum);
        }
      }
    }
  }
}

TEST(Codes, EverySetGivesTheWeightedSumsOfValues) {
  Rng rng(4);
  for (const char* name : {"generic", "avx2"}) {
    const CodeKernels* set = find_code_kernels(name);
    if (set == nullptr) continue;
    SCOPED_TRACE(name);
    for (const int bits : {1, 2, 3, 4, 6, 8}) {
      constexpr size_t kPanels = 4, kCols = 5, kLow = 64, kStride = 128;
      const size_t stride = 8 * static_cast<size_t>(bits) + 24;
      std::vector<std::byte> panels(kPanels * stride + 32);
      std::vector<uint8_t> table(16);
      for (uint8_t& level : table) level = static_cast<uint8_t>(rng.below(kLevelMax + 1));
      std::vector<int> levels(kPanels * 64);
      for (size_t p = 0; p < kPanels; ++p) {
        for (int idx = 0; idx < 64; ++idx) {
          const uint32_t code = rng.below(codes_of(bits));
          put_code(panels.data() + p * stride, bits, idx, static_cast<int>(code));
          levels[p * 64 + static_cast<size_t>(idx)] = level_of(bits, static_cast<int>(code), table.data());
        }
      }
      std::vector<int8_t> w(kCols * kStride);
      for (int8_t& v : w) v = static_cast<int8_t>(rng.below(3) == 0 ? 127 : rng.below(128));
      std::vector<int32_t> dots(kCols * 4);
      set->dot_values(panels.data(), stride, kPanels, bits, table.data(), w.data(), kLow, kStride, kCols,
                      dots.data());
      for (size_t col = 0; col < kCols; ++col) {
        for (size_t i = 0; i < 4; ++i) {
          int32_t sum = 0;
          for (size_t t = 0; t < 64; ++t) {
            const int weight = w[col * kStride + t] * 128 + w[col * kStride + kLow + t];
            sum += levels[t / 16 * 64 + i * 16 + t % 16] * weight;
          }
          ASSERT_EQ(dots[col * 4 + i], sum) << bits;
        }
      }
    }
  }
}

}  // namespace
}  // namespace frugal::llm
