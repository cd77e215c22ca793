#include "cascade/rank.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

namespace frugal::cascade {

double spearman(std::span<const double> a, std::span<const double> b) {
  const auto ranks = [](std::span<const double> values) {
    std::vector<size_t> order(values.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::sort(order.begin(), order.end(), [&](size_t x, size_t y) { return values[x] < values[y]; });
    std::vector<double> rank(values.size());
    for (size_t i = 0; i < order.size();) {
      size_t j = i;
      while (j < order.size() && values[order[j]] == values[order[i]]) ++j;
      for (size_t k = i; k < j; ++k) rank[order[k]] = 0.5 * static_cast<double>(i + j - 1);
      i = j;
    }
    return rank;
  };
  const auto ra = ranks(a), rb = ranks(b);
  const double mean = 0.5 * (static_cast<double>(a.size()) - 1);
  double xy = 0, xx = 0, yy = 0;
  for (size_t i = 0; i < ra.size(); ++i) {
    xy += (ra[i] - mean) * (rb[i] - mean);
    xx += (ra[i] - mean) * (ra[i] - mean);
    yy += (rb[i] - mean) * (rb[i] - mean);
  }
  return xx > 0 && yy > 0 ? xy / std::sqrt(xx * yy) : 0;
}

void make_rising(std::span<double> values) {
  struct Block {
    double sum;
    size_t n;
    double mean() const { return sum / static_cast<double>(n); }
  };
  std::vector<Block> blocks;
  for (const double value : values) {
    blocks.push_back({value, 1});
    while (blocks.size() > 1 && blocks.back().mean() < blocks[blocks.size() - 2].mean()) {
      const Block last = blocks.back();
      blocks.pop_back();
      blocks.back().sum += last.sum;
      blocks.back().n += last.n;
    }
  }
  auto to = values.begin();
  for (const Block& block : blocks) to = std::fill_n(to, block.n, block.mean());
}

size_t make_unimodal(std::span<double> values) {
  std::vector<double> best(values.begin(), values.end()), fitted(values.size());
  double least = INFINITY;
  for (size_t mode = 0; mode < values.size(); ++mode) {  // the rise ends there
    std::copy(values.begin(), values.end(), fitted.begin());
    const auto fall = std::span(fitted).subspan(mode + 1);
    make_rising(std::span(fitted).first(mode + 1));
    std::reverse(fall.begin(), fall.end());
    make_rising(fall);
    std::reverse(fall.begin(), fall.end());
    double error = 0;
    for (size_t i = 0; i < values.size(); ++i) error += (fitted[i] - values[i]) * (fitted[i] - values[i]);
    if (error >= least) continue;
    least = error;
    best = fitted;
  }
  std::copy(best.begin(), best.end(), values.begin());
  const auto last = std::max_element(best.rbegin(), best.rend());
  return best.empty() ? 0 : static_cast<size_t>(best.rend() - last) - 1;
}

}  // namespace frugal::cascade
