// A day of a recommender under a budget, on the synthetic world: two peaks, a spike, Poisson arrivals, real
// price control.
#pragma once

#include "cascade/synthetic.h"

namespace frugal::cascade {

struct DayOptions {
  budget::GovernorOptions governor = {};  // controller, window, hard cap
  double seconds = 86400;
  double tick_s = 5;
  double mean_rps = 10;       // requests a second, mean of the day without the spike
  bool stationary = false;    // the mean all day, no spike
  double spike_at = 0.62;     // as a share of the day
  double spike_share = 0.02;  // of the day's length
  double spike_factor = 3;
  double budget_share = 0.3;  // of what the dearest chain for everyone would cost at the mean load
  bool bound = true;          // also solve each window's LP, in hindsight
  uint64_t seed = 1;
};

// Requests a second at time `at_s`: a night valley at 0.45 of the mean, peaks at noon and in the evening.
double day_load(const DayOptions& options, double at_s);

struct WindowRow {
  double start_s = 0, requests = 0, spent = 0, budget = 0, price = 0;
  double predicted = 0, truth = 0;  // sums of rewards of the chosen chains
  double bound = 0;                 // LP optimum of the window in predicted rewards
  double exhausted = 0;             // decisions that the cap made
};

struct DayResult {
  std::vector<WindowRow> rows;
  std::vector<double> chain_share;  // [n_chains]
  double requests = 0, spent = 0, predicted = 0, truth = 0;
  double utilisation = 0;  // mean over windows of min(spent, budget) / budget (MaRCA)
  double over_use = 0;     // mean over windows of max(spent - budget, 0) / budget
  double worst_over = 0;   // its largest window
  double regret = 0;       // 1 - predicted / bound
  double swing =
      0;  // mean |log price step| from window to window in the spike, its first two windows left out
  uint64_t ticks = 0;
};

// Rewards are `model`'s, or the truth when it is null. The governor sees FLOPs alone.
Result<DayResult> simulate_day(const SyntheticWorld& world, const RewardModel* model,
                               const DayOptions& options);

// --- A year of a carbon budget
// --------------------------------------------------------------------------------

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
