// The book of a head's coefficients in the form that the CSR cache reads: its entries stand as four blocks of
// tokens with codes of 8 bits (llm/kernel/codes.h), so that the kernels of keys multiply a query with all of
// them, and those of values sum them by weight.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "llm/kernel/codes.h"
#include "llm/kv/dictionary.h"

namespace frugal::llm {

// x as integers of at most 127 in size times the returned scale; not finite: zeros, and a scale that is NaN.
float quantize_column(const float* x, int n, int8_t* q, int32_t* sum);

class CodeBook {
 public:
  CodeBook() = default;  // none
  // `scale` [dim]: what each coefficient of an entry's level is worth; weights [dim]: what a unit
  // of squared error in a coefficient costs.
  CodeBook(const std::vector<uint8_t>& levels, std::vector<float> scale, const std::vector<float>& weights);

  bool empty() const { return scale_.empty(); }
  // Its bytes, to be asked for ahead.
  const std::byte* data() const { return panels_.data(); }
  size_t size() const { return panels_.size(); }
  static constexpr size_t kMaxCols = 4;
  // The entries of least weighted squared error to a vector, as far as integers tell, the best first; others
  // only when theirs is larger by kAsGood of it or less.
  static constexpr size_t kMaxNearest = 3;
  static constexpr float kAsGood = 0.1f;
  struct Nearest {
    int entries[kMaxNearest];
    size_t n;
  };
  // Of each of y [n, dim], n <= kMaxCols.
  void nearest(const float* y, size_t n, Nearest* found) const;
  // y [dim] less an entry.
  void subtract(int entry, float* y) const;
  // products [n_cols, kBookEntries] of y [n_cols, dim] with all entries, n_cols <= kMaxCols.
  void products(const float* y, size_t n_cols, float* products) const;
  static constexpr size_t kMaxSums = kMaxValueCols / 2;
  // y [n, dim] += sum over entries of sums [kBookEntries] times them, n <= kMaxSums; the sums are >= 0, and
  // those of a row begin `stride` after those of the row before.
  void add_sums(const float* sums, size_t stride, size_t n, float* y) const;

 private:
  size_t dim() const { return scale_.size(); }
  // Of each column: products[e] += (x times entry e's levels, x whole), in units of x's scale.
  void multiply(const float* x, size_t n_cols, float* products) const;

  CodeLayout layout_;                          // all groups of 8 bits
  std::vector<std::byte> panels_;              // kBookEntries / 16 of them, and 64 bytes
  std::vector<float> scale_, weighted_scale_;  // [dim]
  std::vector<float> weights_;                 // [dim]
  std::vector<float> half_squares_;            // [kBookEntries], in the metric of the weights
};

}  // namespace frugal::llm
