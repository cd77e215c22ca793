// A year of a carbon budget, on the synthetic world.
#pragma once

#include "cascade/day.h"

namespace frugal::cascade {

// Hourly grid carbon intensity, gCO2e/kWh, from a CSV in the export format of Electricity Maps (life-cycle
// column). kNotFound, kCorrupt with the line.
Result<std::vector<double>> read_intensity(const std::string& path);

struct CarbonYear {
  double hours = 0;
  double reward_constant = 0, gco2e_constant = 0;  // the same energy every hour
  double gco2e_flat_carbon = 0;                    // the same grams every hour, at equal reward
  double gco2e_oracle = 0;  // one carbon price over the year, known beforehand, at equal reward
  double gco2e_causal = 0;  // the price re-planned weekly from last year's curve, at equal reward
  double reward_causal_equal_carbon = 0;  // what the causal plan earns with the constant plan's grams
};
// `year` is served, `last_year` is what the causal plan knows. Energy of a chain: FLOPs times
// `joules_per_flop` (assumed).
CarbonYear simulate_carbon_year(const SyntheticWorld& world, std::span<const double> year,
                                std::span<const double> last_year, double joules_per_flop,
                                double budget_share, uint64_t seed);

}  // namespace frugal::cascade
