#include "llm/kv/csr_book.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "llm/kernel/codes.h"

namespace frugal::llm {
namespace {

constexpr size_t kBlocks = kBookEntries / kCodeBlock;
static_assert(kBlocks <= kMaxValueBlocks);

void scale_row(const float* y, const std::vector<float>& by, float* x) {
  for (size_t i = 0; i < by.size(); ++i) x[i] = y[i] * by[i];
}

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
    : panels_(levels.size() + 64),
      scale_(std::move(scale)),
      weights_(weights),
      half_squares_(kBookEntries, 0.0f) {
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

void CodeBook::nearest(const float* y, size_t n, Nearest* found) const {
  alignas(64) float x[kMaxCols * kMaxCodedDim] = {}, gains[kMaxCols * kBookEntries];
  for (size_t c = 0; c < n; ++c) {
    scale_row(y + c * dim(), weighted_scale_, x + c * dim());
    for (size_t e = 0; e < kBookEntries; ++e) gains[c * kBookEntries + e] = -half_squares_[e];
  }
  multiply(x, n, gains);
  for (size_t c = 0; c < n; ++c) {
    const float* own = gains + c * kBookEntries;
    float half_square = 0;
    for (size_t i = 0; i < dim(); ++i)
      half_square += 0.5f * weights_[i] * y[c * dim() + i] * y[c * dim() + i];
    Nearest& best = found[c];
    best = {{static_cast<int>(largest_of(own, kBookEntries))}, 1};
    const float most = own[best.entries[0]], least = most - kAsGood * std::max(0.0f, half_square - most);
    for (int e = 0; e < static_cast<int>(kBookEntries); ++e) {
      if (!(own[e] >= least) || e == best.entries[0]) continue;
      size_t at = best.n < kMaxNearest ? best.n++ : kMaxNearest;  // those of equal gain in their order
      for (; at > 1 && own[best.entries[at - 1]] < own[e]; --at) {
        if (at < kMaxNearest) best.entries[at] = best.entries[at - 1];
      }
      if (at < kMaxNearest) best.entries[at] = e;
    }
  }
}

void CodeBook::subtract(int entry, float* y) const {
  const std::byte* panel = &panels_[static_cast<size_t>(entry) / 16 * 16 * dim()];
  const std::byte* at = panel + 4 * (entry % 16);
  for (size_t four = 0; four < dim(); four += 4, at += 64) {
    for (size_t i = 0; i < 4; ++i)
      y[four + i] -= scale_[four + i] * static_cast<float>(static_cast<int>(at[i]) - kLevelCentre);
  }
}

void CodeBook::products(const float* y, size_t n_cols, float* products) const {
  alignas(64) float x[kMaxCols * kMaxCodedDim] = {};
  for (size_t c = 0; c < n_cols; ++c) scale_row(y + c * dim(), scale_, x + c * dim());
  std::fill_n(products, n_cols * kBookEntries, 0.0f);
  multiply(x, n_cols, products);
}

void CodeBook::add_sums(const float* sums, size_t stride, size_t n, float* y) const {
  // 16 bits of each sum: the high bytes as one column, the low ones as another.
  constexpr float kMost = 65000;
  alignas(64) uint8_t bytes[2 * kMaxSums][kBookEntries];
  alignas(64) float out[2 * kMaxSums][kMaxCodedDim] = {};
  int32_t zeros[2 * kMaxSums];
  float scales[2 * kMaxSums], level_scales[kMaxAtomBits + 1] = {}, *to[2 * kMaxSums];
  level_scales[8] = 1;
  for (size_t c = 0; c < n; ++c, sums += stride) {
    float largest = 0, wrong = 0;  // `wrong` is 0 or NaN
    for (size_t e = 0; e < kBookEntries; ++e) {
      largest = sums[e] > largest ? sums[e] : largest;
      wrong += sums[e] - sums[e];
    }
    const bool usable = wrong == 0 && largest > 1e-30f && largest < 1e30f;
    const float inverse = usable ? kMost / largest : 0.0f;
    int32_t high = 0, low = 0;
    for (size_t e = 0; e < kBookEntries; ++e) {
      const int32_t value = usable ? static_cast<int32_t>(sums[e] * inverse + 0.5f) : 0;
      high += value >> 8;
      low += value & 255;
      bytes[2 * c][e] = static_cast<uint8_t>(value >> 8);
      bytes[2 * c + 1][e] = static_cast<uint8_t>(value & 255);
    }
    const float one = usable ? largest / kMost : wrong;
    scales[2 * c] = 256 * one;
    scales[2 * c + 1] = one;
    zeros[2 * c] = high * kLevelCentre;
    zeros[2 * c + 1] = low * kLevelCentre;
    to[2 * c] = out[2 * c];
    to[2 * c + 1] = out[2 * c + 1];
  }
  code_kernels().dot_values(panels_.data(), 16 * dim(), kBlocks, layout_, nullptr, level_scales, bytes[0],
                            2 * n, zeros, scales, to);
  for (size_t c = 0; c < n; ++c, y += dim()) {
    for (size_t i = 0; i < dim(); ++i) y[i] += scale_[i] * (out[2 * c][i] + out[2 * c + 1][i]);
  }
}

}  // namespace frugal::llm
