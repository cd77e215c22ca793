// The budgets that a served cascade keeps: FLOPs, grams of CO2 equivalent by the grid's intensity, latency.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "cascade/cost.h"
#include "frugal/budget.h"
#include "meter/carbon.h"

namespace frugal::cascade {

struct BudgetOptions {
  double flops_per_s = 0;  // 0: no limit
  // Grams an hour of what chains take by `costs` and the grid's intensity at the time; 0: no limit.
  double gco2e_per_h = 0;
  // Reward that a gram has to earn, where grams have no limit: one price all year spends a given amount of
  // carbon best.
  double carbon_price = 0;
  double latency_s = 0;  // of a request's stages, mean over requests; 0: no limit
  std::optional<meter::IntensitySeries> intensity = {};
  std::optional<CascadeCosts> costs = {};  // what carbon and latency are reckoned by
};

struct Budgets {
  std::shared_ptr<const budget::ChainTable> table;
  std::vector<budget::ResourceOptions>
      resources;                  // [n_resources], as the table's: "flops", "gco2e", "latency_s"
  int carbon = -1, latency = -1;  // their numbers; -1: not kept
};
// kInvalidArgument: a budget that is negative or not finite, carbon without intensity, carbon or latency
// without costs, a series without points. `unix_s`: the schedule of intensity begins there.
Result<Budgets> make_budgets(const CascadeSpec& spec, const BudgetOptions& options, double unix_s);

// Intensity over Unix time from the series: what it says from `unix_s` on, and then its last week again and
// again for a year, so that a file that ends does not end the budget.
Result<budget::Schedule> intensity_schedule(const meter::IntensitySeries& series, double unix_s);

}  // namespace frugal::cascade
