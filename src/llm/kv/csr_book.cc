#include "llm/kv/csr_book.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "llm/kernel/codes.h"

namespace frugal::llm {
namespace {

constexpr size_t kBlocks = kBookEntries / kCodeBlock;
static_assert(kBlocks <= kMaxValueBlocks);

}  // namespace

float quantize_column(const float* x, int n, int8_t* q, int32_t* sum) {
  float largest = 0;
  bool finite = true;
  for (int i = 0; i < n; ++i) {
    largest = std::max(largest, std::fabs(x[i]));
    finite = finite && std::isfinite(x[i]);
  }
  *sum = 0;
  if (!finite || largest == 0) {
    std::memset(q, 0, static_cast<size_t>(n));
    return finite ? 0.0f : std::nanf("");
  }
  const float inverse = 127.0f / largest;
  int32_t total = 0;
  for (int i = 0; i < n; ++i) {
    const float scaled = x[i] * inverse;
    const int value = static_cast<int>(scaled + (scaled >= 0 ? 0.5f : -0.5f));
    q[i] = static_cast<int8_t>(value);
    total += value;
  }
  *sum = total;
  return largest / 127.0f;
}

CodeBook::CodeBook(const std::vector<uint8_t>& levels, std::vector<float> scale,
                   const std::vector<float>& weights)
    : panels_(levels.size() + 64), scale_(std::move(scale)), half_squares_(kBookEntries, 0.0f) {
  const int n_bits = 8 * static_cast<int>(dim());
  for (size_t e = 0; e < kBookEntries; ++e) {
    uint32_t words[kMaxStreamWords] = {};
    for (size_t i = 0; i < dim(); ++i) {
      const uint8_t level = levels[e * dim() + i];
      words[i / 4] |= static_cast<uint32_t>(level) << (8 * (i % 4));
      const float x = scale_[i] * static_cast<float>(level - kLevelCentre);
      half_squares_[e] += 0.5f * weights[i] * x * x;
    }
    put_stream(&panels_[e / 16 * 16 * dim()], n_bits, static_cast<int>(e % 16), words);
  }
  layout_ = CodeLayout(std::vector<uint8_t>(dim() / 4, 8).data(), dim() / 4);
  for (size_t i = 0; i < dim(); ++i) weighted_scale_.push_back(weights[i] * scale_[i]);
}

void CodeBook::multiply(const float* x, size_t n_cols, float* products) const {
  int8_t q[kMaxCols * kMaxCodedDim];
  int32_t zeros[kMaxCols];
  float scales[kMaxCols];
  for (size_t c = 0; c < n_cols; ++c) {
    scales[c] = quantize_column(x + c * dim(), static_cast<int>(dim()), q + c * dim(), &zeros[c]);
    zeros[c] *= kLevelCentre;
  }
  for (size_t block = 0; block < kBlocks; ++block) {
    code_kernels().dot_keys(&panels_[block * kCodeBlock * dim()], 16 * dim(), layout_, nullptr, q, n_cols,
                            zeros, scales, products + block * kCodeBlock, kBookEntries);
  }
}

int CodeBook::nearest(const float* y) const {
  alignas(64) float x[kMaxCodedDim], gains[kBookEntries];
  for (size_t i = 0; i < dim(); ++i) x[i] = y[i] * weighted_scale_[i];
  for (size_t e = 0; e < kBookEntries; ++e) gains[e] = -half_squares_[e];
  multiply(x, 1, gains);
  return static_cast<int>(largest_of(gains, kBookEntries));
}

void CodeBook::subtract(int entry, float* y) const {
  const std::byte* panel = &panels_[static_cast<size_t>(entry) / 16 * 16 * dim()];
  const std::byte* at = panel + 4 * (entry % 16);
  for (size_t i = 0; i < dim(); ++i)
    y[i] -= scale_[i] * static_cast<float>(static_cast<int>(at[64 * (i / 4) + i % 4]) - kLevelCentre);
}

void CodeBook::products(const float* y, size_t n_cols, float* products) const {
  alignas(64) float x[kMaxCols * kMaxCodedDim];
  for (size_t i = 0; i < n_cols * dim(); ++i) x[i] = y[i] * scale_[i % dim()];
  std::fill_n(products, n_cols * kBookEntries, 0.0f);
  multiply(x, n_cols, products);
}

void CodeBook::add_sums(const float* sums, float* y) const {
  // 16 bits of each sum: the high bytes as one column, the low ones as another.
  constexpr float kMost = 65000;
  alignas(64) uint8_t bytes[2][kBookEntries];
  float largest = 0, wrong = 0;  // `wrong` is 0 or NaN
  for (size_t e = 0; e < kBookEntries; ++e) {
    largest = std::max(largest, sums[e]);
    wrong += sums[e] - sums[e];
  }
  const bool usable = wrong == 0 && largest > 1e-30f && largest < 1e30f;
  const float inverse = usable ? kMost / largest : 0.0f;
  int32_t zeros[2] = {};
  for (size_t e = 0; e < kBookEntries; ++e) {
    const auto value = usable ? static_cast<uint32_t>(sums[e] * inverse + 0.5f) : 0u;
    zeros[0] += static_cast<int32_t>(value >> 8);
    zeros[1] += static_cast<int32_t>(value & 255);
    bytes[0][e] = static_cast<uint8_t>(value >> 8);
    bytes[1][e] = static_cast<uint8_t>(value);
  }
  for (int32_t& zero : zeros) zero *= kLevelCentre;
  const float one = usable ? largest / kMost : wrong, scales[2] = {256 * one, one};
  alignas(64) float out[2][kMaxCodedDim] = {};
  float* const to[2] = {out[0], out[1]};
  float level_scales[kMaxAtomBits + 1] = {};
  level_scales[8] = 1;
  code_kernels().dot_values(panels_.data(), 16 * dim(), kBlocks, layout_, nullptr, level_scales, bytes[0], 2,
                            zeros, scales, to);
  for (size_t i = 0; i < dim(); ++i) y[i] += scale_[i] * (out[0][i] + out[1][i]);
}

}  // namespace frugal::llm
