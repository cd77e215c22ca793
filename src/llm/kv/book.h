// Books of entries by k-means: what the csr codec and the quantisers of `frugal kv eval` look vectors up in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "llm/kernel/codes.h"

namespace frugal::llm {

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

}  // namespace frugal::llm
