#include "cli/vector_books.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace frugal::cli {
namespace {

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
    float gain = 0;  // by how much the error is smaller than before the first book
    size_t from = 0, entry = 0;
  };
  // kBeam ways a row, as many of them in use as there are choices so far.
  std::vector<float> left(n_rows * kBeam * dim), next(left.size()), dots(n_rows * kBeam * kBookEntries);
  std::vector<Way> ways(n_rows * kBeam);
  for (size_t r = 0; r < n_rows; ++r) std::copy_n(rows + r * dim, dim, &left[r * kBeam * dim]);
  size_t n_ways = 1;
  for (size_t i = 0; i < n_books; ++i) {
    const Book& book = books[i];
    book.products(left.data(), n_rows * kBeam, dim, dots.data());
    for (size_t r = 0; r < n_rows; ++r) {
      Way best[kBeam];
      size_t n_best = 0;
      for (size_t w = 0; w < n_ways; ++w) {
        const float before = ways[r * kBeam + w].gain;
        const float* dot = &dots[(r * kBeam + w) * kBookEntries];
        for (size_t e = 0; e < kBookEntries; ++e) {
          const float gain = before + 2 * (dot[e] - book.half_squares[e]);
          if (n_best == kBeam && gain <= best[kBeam - 1].gain) continue;
          size_t at = n_best < kBeam ? n_best++ : kBeam - 1;
          for (; at > 0 && best[at - 1].gain < gain; --at) best[at] = best[at - 1];
          best[at] = {gain, w, e};
        }
      }
      for (size_t w = 0; w < kBeam; ++w) {
        ways[r * kBeam + w] = best[w];
        for (size_t d = 0; d < dim; ++d)
          next[(r * kBeam + w) * dim + d] =
              left[(r * kBeam + best[w].from) * dim + d] - book.at(d, best[w].entry);
      }
    }
    left.swap(next);
    n_ways = kBeam;
  }
  for (size_t r = 0; r < n_rows; ++r) {
    for (size_t d = 0; d < dim; ++d) rows[r * dim + d] -= left[r * kBeam * dim + d];
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
