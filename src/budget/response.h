// How recent requests would have responded to other prices: mean cost and reward over a sample.
#pragma once

#include <vector>

#include "frugal/budget.h"

namespace frugal::budget {

// Not thread-safe: holds scratch space. Valid while the report it was made from is.
class Response {
 public:
  explicit Response(const TickReport& report);

  struct Mean {
    Amounts cost{};     // of a request, scaled to now
    double reward = 0;  // of a request
  };
  Mean at(std::span<const double> prices);

  // A price of natural size for resource k: mean spread of rewards over the spread of costs. 0 when either is
  // 0: no price can then change anything.
  double reference_price(int k) const { return reference_[static_cast<size_t>(k)]; }

  // The price of resource k in {0} and [1e-4, 1e4] reference prices at which a request costs `cost` of it in
  // the mean, the others' prices kept. 0 when even unpriced requests cost less; the largest when even that is
  // not enough. `prices[k]` is where the search starts, and holds the answer. The mean cost falls with the
  // price.
  double price_for(int k, double cost, std::span<double> prices);

 private:
  const ChainTable& table_;
  Sample sample_;
  Amounts scale_;
  Amounts reference_{};
  std::vector<float> priced_;  // [n_chains]
};

// The largest price worth setting, in reference prices: there the cheapest chain wins for every request.
inline constexpr double kPriceSpan = 1e4;

// priced[j] = sum_k prices[k] * scale[k] * cost_jk, [n_chains].
void price_chains(const ChainTable& table, std::span<const double> prices, const Amounts& scale,
                  std::span<float> priced);

}  // namespace frugal::budget
