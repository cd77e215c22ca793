#include "cascade/serve/budgets.h"

#include <algorithm>
#include <cmath>

#include "base/text.h"

namespace frugal::cascade {

Result<budget::Schedule> intensity_schedule(const meter::IntensitySeries& series, double unix_s) {
  if (series.points.empty()) return {ErrorCode::kInvalidArgument, "the carbon file has no points"};
  constexpr double kWeek = 7 * 86400, kYear = 366 * 86400.0;
  const auto& points = series.points;
  std::vector<budget::Schedule::Point> out;
  const auto add = [&](double at_s, double g_per_kwh) {
    if (at_s < unix_s && !out.empty()) out.pop_back();  // of those before the start only the last one holds
    if (out.empty() || at_s > out.back().at_s) out.push_back({at_s, g_per_kwh});
  };
  for (const auto& point : points) add(point.unix_s, point.g_per_kwh);
  // The last week, moved on by whole weeks; a shorter series repeats as a whole.
  const double end = points.back().unix_s + series.step_s;
  const double period = std::min(kWeek, end - points.front().unix_s);
  const auto first = std::find_if(points.begin(), points.end(),
                                  [&](const auto& point) { return point.unix_s >= end - period; });
  const double skipped = std::max(0.0, std::floor((unix_s - end) / period));
  for (double turn = skipped + 1; period > 0 && end + (turn - 1) * period < unix_s + kYear; ++turn) {
    for (auto point = first; point != points.end(); ++point)
      add(point->unix_s + turn * period, point->g_per_kwh);
  }
  return budget::Schedule::piecewise(std::move(out));
}

Result<Budgets> make_budgets(const CascadeSpec& spec, const BudgetOptions& options, double unix_s) {
  for (const double value :
       {options.flops_per_s, options.gco2e_per_h, options.carbon_price, options.latency_s}) {
    if (!std::isfinite(value) || value < 0)
      return {ErrorCode::kInvalidArgument,
              strf("a budget of %g: budgets are finite and not negative", value)};
  }
  const bool carbon = options.gco2e_per_h > 0 || options.carbon_price > 0;
  if (carbon && !options.intensity)
    return {ErrorCode::kInvalidArgument, "a carbon budget needs the grid's intensity"};
  if ((carbon || options.latency_s > 0) && !options.costs) {
    return {ErrorCode::kInvalidArgument,
            "budgets of carbon and latency need the measured costs of the chains (frugal cascade profile)"};
  }
  FRUGAL_TRY_STATUS(check_cascade(spec));
  Budgets budgets;
  std::vector<std::string> names{"flops"};
  std::vector<budget::Chain> chains;
  for (int j = 0; j < spec.n_chains(); ++j)
    chains.push_back({chain_name(spec, j), spec.chains[static_cast<size_t>(j)], {chain_flops(spec, j)}});
  budget::ResourceOptions flops;
  if (options.flops_per_s > 0) flops.budget = budget::Schedule::constant(options.flops_per_s);
  budgets.resources.push_back(std::move(flops));
  const auto add = [&](const char* name, const std::vector<double>& costs, double factor) {
    const size_t k = names.size();
    names.emplace_back(name);
    for (size_t j = 0; j < chains.size(); ++j) chains[j].cost[k] = factor * costs[j];
    budgets.resources.emplace_back();
    return static_cast<int>(k);
  };
  const size_t batch = options.costs ? options.costs->batches.size() - 1 : 0;  // as under load
  if (carbon) {
    // kWh of a chain, times the intensity of the hour: grams.
    budgets.carbon =
        add("gco2e", options.costs->cpu_s(spec, batch), options.costs->joules_per_cpu_s.value / 3.6e6);
    budget::ResourceOptions& grams = budgets.resources.back();
    FRUGAL_TRY(grams.cost_scale, intensity_schedule(*options.intensity, unix_s));
    if (options.gco2e_per_h > 0) grams.budget = budget::Schedule::constant(options.gco2e_per_h / 3600);
    grams.initial_price = options.carbon_price;
  }
  if (options.latency_s > 0) {
    budgets.latency = add("latency_s", options.costs->latency_s(spec, batch), 1);
    budgets.resources.back().budget = budget::Schedule::constant(options.latency_s);
    budgets.resources.back().per_request = true;
  }
  FRUGAL_TRY(budgets.table, budget::ChainTable::create(std::move(names), std::move(chains)));
  return budgets;
}

}  // namespace frugal::cascade
