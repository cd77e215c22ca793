#include "cli/vector_books.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/rng.h"
#include "llm/kernel/kernel.h"

namespace frugal::cli {
namespace {

constexpr size_t kRowsAtOnce = 64;

// Rows less their nearest entries; the squared error that is left, each row counting its share.
double subtract_nearest(const Book& book, float* rows, std::span<const float> shares) {
  std::vector<uint32_t> found(shares.size());
  book.nearest(rows, shares.size(), book.dim, found.data());
  double error = 0;
  for (size_t r = 0; r < shares.size(); ++r) {
    float square = 0;
    for (size_t d = 0; d < book.dim; ++d) {
      float& x = rows[r * book.dim + d];
      x -= book.at(d, found[r]);
      square += x * x;
    }
    error += static_cast<double>(shares[r] * square);
  }
  return error;
}

std::vector<float> columns(const float* rows, size_t n_rows, size_t stride, const std::vector<size_t>& of) {
  std::vector<float> out;
  out.reserve(n_rows * of.size());
  for (size_t r = 0; r < n_rows; ++r) {
    for (const size_t d : of) out.push_back(rows[r * stride + d]);
  }
  return out;
}

}  // namespace

void Book::square() {
  half_squares.assign(n, 0.0f);
  for (size_t d = 0; d < dim; ++d) {
    for (size_t e = 0; e < n; ++e) half_squares[e] += 0.5f * at(d, e) * at(d, e);
  }
}

void Book::products(const float* rows, size_t n_rows, size_t stride, float* out) const {
  llm::kernels().panel_f32({entries.data(), n, 16, n / 16, dim}, rows, stride, n_rows, out, n, false);
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

ResidualQuantiser ResidualQuantiser::train(std::vector<float> rows, std::span<const float> shares, size_t dim,
                                           size_t n_books, int rounds, uint64_t seed) {
  ResidualQuantiser out;
  const double total = std::accumulate(shares.begin(), shares.end(), 0.0);
  double whole = 0;
  for (size_t r = 0; r < shares.size(); ++r) {
    for (size_t d = 0; d < dim; ++d)
      whole += static_cast<double>(shares[r] * rows[r * dim + d] * rows[r * dim + d]);
  }
  out.error.push_back(whole / total);
  for (size_t i = 0; i < n_books; ++i) {
    out.books.push_back(k_means(rows, shares, dim, kBookEntries, rounds, seed + i));
    out.error.push_back(subtract_nearest(out.books.back(), rows.data(), shares) / total);
  }
  return out;
}

void ResidualQuantiser::code(float* rows, size_t n_rows, size_t n_books) const {
  const size_t dim = books.front().dim;
  struct Way {
    float gain;  // by how much the error is smaller than before the book
    size_t from, entry;
  };
  std::vector<float> left(kBeam * dim), next(kBeam * dim), dots(kBeam * kBookEntries);
  for (size_t r = 0; r < n_rows; ++r) {
    float* x = rows + r * dim;
    size_t n_ways = 1;
    std::copy_n(x, dim, left.begin());
    float gains[kBeam] = {};
    for (size_t i = 0; i < n_books; ++i) {
      const Book& book = books[i];
      book.products(left.data(), n_ways, dim, dots.data());
      Way best[kBeam];
      size_t n_best = 0;
      for (size_t w = 0; w < n_ways; ++w) {
        for (size_t e = 0; e < kBookEntries; ++e) {
          const float gain = gains[w] + 2 * (dots[w * kBookEntries + e] - book.half_squares[e]);
          if (n_best == kBeam && gain <= best[kBeam - 1].gain) continue;
          size_t at = n_best < kBeam ? n_best++ : kBeam - 1;
          for (; at > 0 && best[at - 1].gain < gain; --at) best[at] = best[at - 1];
          best[at] = {gain, w, e};
        }
      }
      for (size_t w = 0; w < n_best; ++w) {
        gains[w] = best[w].gain;
        for (size_t d = 0; d < dim; ++d)
          next[w * dim + d] = left[best[w].from * dim + d] - book.at(d, best[w].entry);
      }
      left.swap(next);
      n_ways = n_best;
    }
    for (size_t d = 0; d < dim; ++d) x[d] -= left[d];
  }
}

ProductQuantiser ProductQuantiser::train(const std::vector<float>& rows, std::span<const float> shares,
                                         size_t dim, size_t n_parts, int rounds, uint64_t seed) {
  std::vector<double> variance(dim, 1e-30);
  for (size_t r = 0; r < shares.size(); ++r) {
    for (size_t d = 0; d < dim; ++d)
      variance[d] += static_cast<double>(shares[r] * rows[r * dim + d] * rows[r * dim + d]);
  }
  std::vector<size_t> order(dim);
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return variance[a] > variance[b]; });
  ProductQuantiser out;
  out.parts.resize(n_parts);
  std::vector<double> logs(n_parts, 0.0);
  const double least = std::log(variance[order.back()]);  // so that each further one makes a part larger
  for (size_t i = 0; i < dim; ++i) {
    // Parts have dim / n_parts dimensions, some one more.
    const size_t room = dim / n_parts + (i >= dim / n_parts * n_parts ? 1 : 0);
    size_t to = n_parts;
    for (size_t p = 0; p < n_parts; ++p) {
      if (out.parts[p].size() < room && (to == n_parts || logs[p] < logs[to])) to = p;
    }
    out.parts[to].push_back(order[i]);
    logs[to] += std::log(variance[order[i]]) - least;
  }
  for (const auto& part : out.parts)
    out.books.push_back(k_means(columns(rows.data(), shares.size(), dim, part), shares, part.size(),
                                kBookEntries, rounds, seed));
  return out;
}

void ProductQuantiser::code(float* rows, size_t n_rows, size_t dim) const {
  std::vector<uint32_t> found(n_rows);
  for (size_t p = 0; p < parts.size(); ++p) {
    const std::vector<float> own = columns(rows, n_rows, dim, parts[p]);
    books[p].nearest(own.data(), n_rows, parts[p].size(), found.data());
    for (size_t r = 0; r < n_rows; ++r) {
      for (size_t i = 0; i < parts[p].size(); ++i) rows[r * dim + parts[p][i]] = books[p].at(i, found[r]);
    }
  }
}

}  // namespace frugal::cli
