#include "llm/kv/book.h"

#include <algorithm>

#include "base/rng.h"
#include "llm/kernel/kernel.h"

namespace frugal::llm {
namespace {

constexpr size_t kRowsAtOnce = 64;

}  // namespace

void Book::square() {
  half_squares.assign(n, 0.0f);
  for (size_t d = 0; d < dim; ++d) {
    for (size_t e = 0; e < n; ++e) half_squares[e] += 0.5f * at(d, e) * at(d, e);
  }
}

void Book::products(const float* rows, size_t n_rows, size_t stride, float* out) const {
  kernels().panel_f32({entries.data(), n, 16, n / 16, dim}, rows, stride, n_rows, out, n, false);
}

void Book::nearest(const float* rows, size_t n_rows, size_t stride, uint32_t* found) const {
  std::vector<float> dots(std::min(n_rows, kRowsAtOnce) * n);
  for (size_t first = 0; first < n_rows; first += kRowsAtOnce) {
    const size_t some = std::min(kRowsAtOnce, n_rows - first);
    products(rows + first * stride, some, stride, dots.data());
    for (size_t r = 0; r < some; ++r) {
      float* row = &dots[r * n];
      for (size_t e = 0; e < n; ++e) row[e] -= half_squares[e];
      found[first + r] = static_cast<uint32_t>(largest_of(row, n));
    }
  }
}

size_t largest_of(const float* values, size_t n) {
  float best[16];
  int at[16] = {};
  std::copy_n(values, 16, best);
  for (size_t first = 16; first < n; first += 16) {
    for (size_t lane = 0; lane < 16; ++lane) {
      const bool better = values[first + lane] > best[lane];
      best[lane] = better ? values[first + lane] : best[lane];
      at[lane] = better ? static_cast<int>(first) : at[lane];
    }
  }
  size_t winner = 0;
  for (size_t lane = 1; lane < 16; ++lane) {
    if (best[lane] > best[winner] || (best[lane] == best[winner] && at[lane] < at[winner])) winner = lane;
  }
  return static_cast<size_t>(at[winner]) + winner;
}

Book k_means(const std::vector<float>& rows, std::span<const float> shares, size_t dim, size_t n_entries,
             int rounds, uint64_t seed) {
  const size_t n_rows = shares.size();
  Rng rng(seed);
  Book book;
  book.dim = dim;
  book.n = n_entries;
  book.entries.resize(dim * n_entries);
  const auto take = [&](size_t entry) {
    const size_t row = rng.below(static_cast<uint32_t>(n_rows));
    for (size_t d = 0; d < dim; ++d) book.at(d, entry) = rows[row * dim + d];
  };
  for (size_t e = 0; e < n_entries; ++e) take(e);
  std::vector<uint32_t> found(n_rows);
  std::vector<float> sums(n_entries * dim), count(n_entries);
  for (int round = 0; round < rounds; ++round) {
    book.square();
    book.nearest(rows.data(), n_rows, dim, found.data());
    std::fill(sums.begin(), sums.end(), 0.0f);
    std::fill(count.begin(), count.end(), 0.0f);
    for (size_t r = 0; r < n_rows; ++r) {
      count[found[r]] += shares[r];
      for (size_t d = 0; d < dim; ++d) sums[found[r] * dim + d] += shares[r] * rows[r * dim + d];
    }
    for (size_t e = 0; e < n_entries; ++e) {
      if (count[e] == 0) take(e);
      for (size_t d = 0; d < dim && count[e] > 0; ++d) book.at(d, e) = sums[e * dim + d] / count[e];
    }
  }
  book.square();
  return book;
}

}  // namespace frugal::llm
