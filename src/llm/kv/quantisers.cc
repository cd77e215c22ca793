#include "llm/kv/quantisers.h"

#include <algorithm>
#include <cmath>

namespace frugal::llm {
namespace {

// Sorted values with running sums: the error of one level for a stretch of them in constant time.
struct Sorted {
  std::vector<float> y;
  std::vector<double> sums, squares;

  explicit Sorted(std::vector<float> values)
      : y(std::move(values)), sums(y.size() + 1), squares(y.size() + 1) {
    std::sort(y.begin(), y.end());
    for (size_t i = 0; i < y.size(); ++i) {
      sums[i + 1] = sums[i] + static_cast<double>(y[i]);
      squares[i + 1] = squares[i] + static_cast<double>(y[i]) * static_cast<double>(y[i]);
    }
  }
  double variance() const { return std::max(1e-12, squares.back() / static_cast<double>(y.size())); }
  size_t first_above(double bound) const {
    return static_cast<size_t>(std::upper_bound(y.begin(), y.end(), static_cast<float>(bound)) - y.begin());
  }
};

// Lloyd's iteration on `levels` in ascending order; the squared error in all.
double improve(const Sorted& of, std::vector<double>& levels) {
  double error = 0;
  for (int round = 0; round < 100; ++round) {
    size_t begin = 0;
    error = 0;
    for (size_t i = 0; i < levels.size(); ++i) {
      const size_t end = i + 1 == levels.size()
                             ? of.y.size()
                             : std::max(begin, of.first_above((levels[i] + levels[i + 1]) / 2));
      if (end > begin) {
        const double sum = of.sums[end] - of.sums[begin];
        levels[i] = sum / static_cast<double>(end - begin);
        error += of.squares[end] - of.squares[begin] - sum * levels[i];
      }
      begin = end;
    }
  }
  return error;
}

// Error of even steps between n levels around 0.
double even_error(const Sorted& of, int n, double step) {
  double error = 0;
  size_t begin = 0;
  for (int i = 0; i < n && begin < of.y.size(); ++i) {
    const double level = step * (i - 0.5 * (n - 1));
    const size_t end = i + 1 == n ? of.y.size() : std::max(begin, of.first_above(level + 0.5 * step));
    error += of.squares[end] - of.squares[begin] - 2 * level * (of.sums[end] - of.sums[begin]) +
             level * level * static_cast<double>(end - begin);
    begin = end;
  }
  return error;
}

}  // namespace

CoefficientLevels quantisers_of(std::vector<float> values) {
  const Sorted of(std::move(values));
  const double whole = of.variance() * static_cast<double>(of.y.size());
  CoefficientLevels out;
  out.error[0] = 1;
  for (size_t bits = 1; bits <= kMaxLevelBits; ++bits) {
    const size_t n = size_t{1} << bits;
    std::vector<double> levels(n);
    for (size_t i = 0; i < n; ++i) {
      levels[i] =
          static_cast<double>(of.y[(2 * i + 1) * of.y.size() / (2 * n)]) + 1e-6 * static_cast<double>(i);
    }
    const double error = improve(of, levels);
    auto& to = out.levels[bits - 1];
    for (size_t i = 0; i < n; ++i) {
      to[i] = static_cast<float>(levels[i]);
      if (i > 0) to[i] = std::max(to[i], std::nextafter(to[i - 1], 1e9f));
    }
    out.error[bits] = std::min(out.error[bits - 1], static_cast<float>(error / whole));
  }
  for (const int bits : {6, 8}) {
    const int n = bits == 6 ? 64 : 127;
    const double reach = std::max(
        {1e-6, std::fabs(static_cast<double>(of.y.front())), std::fabs(static_cast<double>(of.y.back()))});
    double best = 1e300, step = 0;
    for (double part = 1; part > 0.05; part *= 0.9) {  // of what the largest value asks for
      const double tried = 2 * reach * part / (n - 1), error = even_error(of, n, tried);
      if (error < best) best = error, step = tried;
    }
    const auto b = static_cast<size_t>(bits);
    out.step[b == 6 ? 0 : 1] = static_cast<float>(step);
    out.error[b] = std::min(out.error[b == 6 ? kMaxLevelBits : 6], static_cast<float>(best / whole));
  }
  return out;
}

}  // namespace frugal::llm
