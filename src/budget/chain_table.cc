// ChainTable: checks the chains once, so that nothing downstream has to.
#include <cmath>
#include <unordered_set>

#include "base/text.h"
#include "frugal/budget.h"

namespace frugal::budget {

Result<std::shared_ptr<const ChainTable>> ChainTable::create(std::vector<std::string> resources,
                                                             std::vector<Chain> chains) {
  if (resources.empty() || resources.size() > static_cast<size_t>(kMaxResources)) {
    return {ErrorCode::kInvalidArgument,
            strf("a chain table needs 1 to %d resources, not %zu", kMaxResources, resources.size())};
  }
  if (chains.empty()) return {ErrorCode::kInvalidArgument, "a chain table needs at least one chain"};
  std::unordered_set<std::string_view> names;
  for (const Chain& chain : chains) {
    if (!names.insert(chain.name).second) {
      return {ErrorCode::kInvalidArgument, strf("two chains are called '%s'", chain.name.c_str())};
    }
    for (size_t k = 0; k < resources.size(); ++k) {
      if (!std::isfinite(chain.cost[k]) || chain.cost[k] < 0) {
        return {ErrorCode::kInvalidArgument, strf("chain '%s' costs %g %s: costs are finite and not negative",
                                                  chain.name.c_str(), chain.cost[k], resources[k].c_str())};
      }
    }
  }
  auto table = std::shared_ptr<ChainTable>(new ChainTable());
  const size_t n = chains.size();
  std::vector<double> relative(n, 0.0);
  for (size_t k = 0; k < resources.size(); ++k) {
    double largest = 0;
    size_t least_idx = 0, most_idx = 0;
    for (size_t j = 0; j < n; ++j) {
      const double cost = chains[j].cost[k];
      table->costs_.push_back(cost);
      largest = std::max(largest, cost);
      if (cost < chains[least_idx].cost[k]) least_idx = j;
      if (cost > chains[most_idx].cost[k]) most_idx = j;
    }
    table->cheapest_in_[k] = static_cast<int>(least_idx);
    table->dearest_in_[k] = static_cast<int>(most_idx);
    for (size_t j = 0; j < n && largest > 0; ++j) relative[j] += chains[j].cost[k] / largest;
  }
  for (size_t j = 1; j < n; ++j) {
    if (relative[j] < relative[static_cast<size_t>(table->cheapest_)]) table->cheapest_ = static_cast<int>(j);
  }
  table->resources_ = std::move(resources);
  table->chains_ = std::move(chains);
  return std::shared_ptr<const ChainTable>(std::move(table));
}

int ChainTable::find(std::string_view name) const {
  for (size_t j = 0; j < chains_.size(); ++j) {
    if (chains_[j].name == name) return static_cast<int>(j);
  }
  return -1;
}

}  // namespace frugal::budget
