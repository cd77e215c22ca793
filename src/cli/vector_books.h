// Vector quantisers for `frugal kv eval`: residual and product quantisers over books.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "llm/kv/book.h"

namespace frugal::cli {

using llm::Book;
using llm::k_means;
using llm::kBookEntries;
using llm::largest_of;

// Residual quantiser (Chen, Guan, Wang 2010): each book codes what those before it leave.
struct ResidualQuantiser {
  std::vector<Book> books;
  std::vector<double> error;  // [books + 1]: mean squared error, in all, with the first n books

  static ResidualQuantiser train(std::vector<float> rows, std::span<const float> shares, size_t dim,
                                 size_t n_books, int rounds, uint64_t seed);
  // Rows [n_rows, dim] become what decoding gives with the first n books. The codes are searched with a beam:
  // the kBeam best sums so far are kept after each book.
  static constexpr size_t kBeam = 4;
  void code(float* rows, size_t n_rows, size_t n_books) const;
};

// Product quantiser whose parts share the energy (the parametric solution of optimised product quantisation,
// Ge, He, Ke, Sun 2013): dimensions of independent rows are dealt out so that the products of the parts'
// variances are alike.
struct ProductQuantiser {
  std::vector<std::vector<size_t>> parts;  // dimensions of each
  std::vector<Book> books;

  static ProductQuantiser train(const std::vector<float>& rows, std::span<const float> shares, size_t dim,
                                size_t n_parts, int rounds, uint64_t seed);
  void code(float* rows, size_t n_rows, size_t dim) const;
};

}  // namespace frugal::cli
