// Vector quantisers for `frugal kv eval`: books by k-means, residual and product quantisers over them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace frugal::cli {

inline constexpr size_t kBookEntries = 256;  // an index is a byte

// Entries side by side: [dim, n], with half of each one's square.
struct Book {
  size_t dim = 0, n = 0;
  std::vector<float> entries, half_squares;

  float& at(size_t d, size_t entry) { return entries[d * n + entry]; }
  float at(size_t d, size_t entry) const { return entries[d * n + entry]; }
  void square();
  // products[row, entry] of rows `stride` floats apart.
  void products(const float* rows, size_t n_rows, size_t stride, float* out) const;
  // The nearest entry of each row.
  void nearest(const float* rows, size_t n_rows, size_t stride, uint32_t* found) const;
};

// The first of the largest values; n is a multiple of 16.
size_t largest_of(const float* values, size_t n);

// Lloyd's iteration on rows [n_rows, dim] that count `shares` [n_rows] each; an entry that nothing is nearest
// to takes a row at random.
Book k_means(const std::vector<float>& rows, std::span<const float> shares, size_t dim, size_t n_entries,
             int rounds, uint64_t seed);

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
