#include "llm/kv/quantisers.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "llm/kernel/codes.h"

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

CoefficientLevels quantisers_of(std::vector<float> values, const std::vector<CoefficientRow>& rows) {
  constexpr int kRounds = 8;
  const Sorted of(std::move(values));
  const double whole = of.variance() * static_cast<double>(of.y.size());
  CoefficientLevels out;
  // At first the window's other bits choose between sets of levels that lie between each other.
  for (size_t bits = 1; bits <= kMaxLevelBits; ++bits) {
    const size_t n_sets = kWindows >> bits;
    for (size_t window = 0; window < kWindows; ++window) {
      const size_t own = window % (size_t{1} << bits), set = window >> bits;
      const size_t place = own * n_sets + (n_sets / 2 + set * (n_sets / 2 - 3)) % n_sets;
      out.levels[bits - 1][window] = of.y[(2 * place + 1) * of.y.size() / (2 * kWindows)];
    }
  }
  struct Sums {
    double y = 0, n = 0;
  };
  std::vector<float> levels(kTableBytes);
  std::vector<uint8_t> codes;
  std::array<double, kMaxLevelBits + 1> error{}, energy{};
  for (int round = 0; round < kRounds; ++round) {
    for (size_t bits = 1; bits <= kMaxLevelBits; ++bits)
      std::copy(out.levels[bits - 1].begin(), out.levels[bits - 1].end(),
                levels.begin() + static_cast<ptrdiff_t>(kWindows * bits));
    std::vector<Sums> sums(kTableBytes);
    error.fill(0);
    energy.fill(0);
    for (const CoefficientRow& row : rows) {
      codes.resize(row.y.size());
      // A path begins at the end of a stream.
      const std::vector<float> y(row.y.rbegin(), row.y.rend()),
          weights(row.weights.rbegin(), row.weights.rend());
      const std::vector<uint8_t> bits(row.bits.rbegin(), row.bits.rend());
      code_kernels().code_path(y.data(), weights.data(), bits.data(), y.size(), 0, levels.data(),
                               codes.data());
      size_t window = 0;
      for (size_t i = 0; i < y.size(); ++i) {
        window = (window << bits[i] | codes[i]) % kWindows;
        const size_t place = kWindows * bits[i] + window;
        const double off = static_cast<double>(y[i] - levels[place]);
        sums[place].y += static_cast<double>(y[i]);
        sums[place].n += 1;
        error[bits[i]] += off * off;
        energy[bits[i]] += static_cast<double>(y[i]) * static_cast<double>(y[i]);
      }
    }
    for (size_t place = kWindows; place < kWindows * (kMaxLevelBits + 1) && round + 1 < kRounds; ++place) {
      if (sums[place].n > 0)
        out.levels[place / kWindows - 1][place % kWindows] =
            static_cast<float>(sums[place].y / sums[place].n);
    }
  }
  out.error[0] = 1;
  for (size_t bits = 1; bits <= kMaxLevelBits; ++bits) {
    const double found = energy[bits] > 0 ? error[bits] / energy[bits] : 1;
    out.error[bits] = std::min(out.error[bits - 1], static_cast<float>(found));
  }
  for (const int bits : {6, 8}) {
    const int n = bits == 6 ? 64 : 127;
    const double reach = std::max(
        {1e-6, std::fabs(static_cast<double>(of.y.front())), std::fabs(static_cast<double>(of.y.back()))});
    double best = 1e300, step = 0;
    for (double part = 1; part > 0.05; part *= 0.9) {  // of what the largest value asks for
      const double tried = 2 * reach * part / (n - 1), lost = even_error(of, n, tried);
      if (lost < best) best = lost, step = tried;
    }
    const auto b = static_cast<size_t>(bits);
    out.step[b == 6 ? 0 : 1] = static_cast<float>(step);
    out.error[b] = std::min(out.error[b == 6 ? kMaxLevelBits : 6], static_cast<float>(best / whole));
  }
  return out;
}

}  // namespace frugal::llm
