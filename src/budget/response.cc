#include "budget/response.h"

#include <algorithm>
#include <cmath>

namespace frugal::budget {

void price_chains(const ChainTable& table, std::span<const double> prices, const Amounts& scale,
                  std::span<float> priced) {
  for (size_t j = 0; j < priced.size(); ++j) {
    double sum = 0;
    for (int k = 0; k < table.n_resources(); ++k) {
      sum += prices[static_cast<size_t>(k)] * scale[static_cast<size_t>(k)] * table.costs(k)[j];
    }
    priced[j] = static_cast<float>(sum);
  }
}

Response::Response(const TickReport& report)
    : table_(*report.table),
      sample_(report.sample),
      scale_(report.cost_scale),
      priced_(static_cast<size_t>(table_.size())) {
  const size_t n_chains = priced_.size();
  double spread = 0;
  for (int i = 0; i < sample_.n; ++i) {
    const auto row = sample_.rewards.subspan(static_cast<size_t>(i) * n_chains, n_chains);
    float least = INFINITY, most = -INFINITY;
    for (const float r : row) {
      if (!std::isfinite(r)) continue;
      least = std::min(least, r);
      most = std::max(most, r);
    }
    if (most > least) spread += static_cast<double>(most) - static_cast<double>(least);
  }
  if (sample_.n > 0) spread /= sample_.n;
  for (int k = 0; k < table_.n_resources(); ++k) {
    const auto ki = static_cast<size_t>(k);
    const auto costs = table_.costs(k);
    const double range = (costs[static_cast<size_t>(table_.dearest_in(k))] -
                          costs[static_cast<size_t>(table_.cheapest_in(k))]) *
                         scale_[ki];
    if (range > 0 && spread > 0) reference_[ki] = spread / range;
  }
}

Response::Mean Response::at(std::span<const double> prices) {
  Mean mean;
  if (sample_.n == 0) return mean;
  price_chains(table_, prices, scale_, priced_);
  const size_t n_chains = priced_.size();
  for (int i = 0; i < sample_.n; ++i) {
    const auto row = sample_.rewards.subspan(static_cast<size_t>(i) * n_chains, n_chains);
    int j = argmax_net_reward(row, priced_);
    if (j < 0) {
      j = table_.cheapest();
    } else {
      mean.reward += static_cast<double>(row[static_cast<size_t>(j)]);
    }
    for (int k = 0; k < table_.n_resources(); ++k) {
      mean.cost[static_cast<size_t>(k)] += table_.costs(k)[static_cast<size_t>(j)];
    }
  }
  for (int k = 0; k < table_.n_resources(); ++k) {
    mean.cost[static_cast<size_t>(k)] *= scale_[static_cast<size_t>(k)] / sample_.n;
  }
  mean.reward /= sample_.n;
  return mean;
}

double Response::price_for(int k, double cost, std::span<double> prices) {
  const auto ki = static_cast<size_t>(k);
  double& price = prices[ki];
  const double start = price;
  price = 0;
  if (reference_[ki] == 0 || at(prices).cost[ki] <= cost) return price;
  // A bracket around where the price stood, wider by and by, then halvings: 2e-6 of a price is below what a
  // sample can tell apart.
  const double floor = std::log(reference_[ki] / kPriceSpan), ceiling = std::log(reference_[ki] * kPriceSpan);
  const auto too_dear = [&](double log_price) {
    price = std::exp(log_price);
    return at(prices).cost[ki] > cost;
  };
  double low = start > 0 ? std::clamp(std::log(start), floor, ceiling) : floor, high = low;
  double reach = start > 0 ? 0.05 : ceiling - floor;
  if (too_dear(low)) {
    while (high < ceiling) {
      low = high;
      high = std::min(high + reach, ceiling);
      if (!too_dear(high)) break;
      reach *= 3;
    }
  } else {
    while (low > floor) {
      high = low;
      low = std::max(low - reach, floor);
      if (too_dear(low)) break;
      reach *= 3;
    }
  }
  while (high - low > 2e-6) {
    const double middle = 0.5 * (low + high);
    (too_dear(middle) ? low : high) = middle;
  }
  price = std::exp(high);
  return price;
}

}  // namespace frugal::budget
