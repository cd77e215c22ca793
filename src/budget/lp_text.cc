#include "budget/lp_text.h"

#include <cmath>

#include "base/check.h"
#include "base/text.h"

namespace frugal::budget {

std::string lp_text(std::span<const float> rewards, int n, const ChainTable& table, const Amounts& budget) {
  const auto n_chains = static_cast<size_t>(table.size());
  FRUGAL_CHECK(n >= 0 && rewards.size() == static_cast<size_t>(n) * n_chains);
  std::string objective = "Maximize\n obj: 0 unused\n", requests;
  std::vector<std::string> resources(static_cast<size_t>(table.n_resources()));
  for (int i = 0; i < n; ++i) {
    std::string one;
    const auto offer = [&](size_t j, double reward) {
      const std::string x = strf(" x%d_%zu\n", i, j);
      objective += strf(" + %.17g", reward) + x;
      one += " +" + x;
      for (size_t k = 0; k < resources.size(); ++k)
        resources[k] += strf(" + %.17g", table.costs(static_cast<int>(k))[j]) + x;
    };
    for (size_t j = 0; j < n_chains; ++j) {
      const float reward = rewards[static_cast<size_t>(i) * n_chains + j];
      if (std::isfinite(reward)) offer(j, static_cast<double>(reward));
    }
    if (one.empty()) offer(static_cast<size_t>(table.cheapest()), 0);
    requests += strf(" r%d:\n", i) + one + " = 1\n";
  }
  std::string out = objective + "Subject To\n" + requests;
  for (size_t k = 0; k < resources.size(); ++k) {
    if (std::isfinite(budget[k]) && n > 0)
      out += strf(" b%zu:\n", k) + resources[k] + strf(" <= %.17g\n", budget[k]);
  }
  return out + "Bounds\n unused = 0\nEnd\n";
}

}  // namespace frugal::budget
