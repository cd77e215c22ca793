// A day of a recommender under a budget, on the synthetic world: two peaks, a spike, Poisson arrivals, real
// price control.
#pragma once

#include "cascade/synthetic.h"

namespace frugal::cascade {

struct DayOptions {
  budget::GovernorOptions governor = {};  // controller, window, hard cap
  double initial_price = 0;
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
  double start_s = 0, requests = 0, spent = 0, budget = 0;
  double price = 0;                   // geometric mean over the window's ticks
  double predicted = 0, truth = 0;    // sums of rewards of the chosen chains
  double bound = 0, bound_price = 0;  // LP optimum of the window in predicted rewards, and its price
  double exhausted = 0;               // decisions that the cap made
};

// Of some windows.
struct BudgetUse {
  double utilisation = 0;  // mean of min(spent, budget) / budget (MaRCA)
  double over_use = 0;     // mean of max(spent - budget, 0) / budget
  double worst_over = 0;   // its largest window
};

struct DayResult : BudgetUse {  // of the whole day
  std::vector<WindowRow> rows;
  std::vector<double> chain_share;  // [n_chains]
  double requests = 0, spent = 0, predicted = 0, truth = 0;
  BudgetUse spike;
  double regret = 0;  // 1 - predicted / bound
  // How far the price moves from window to window (root mean square of the logarithm's steps) in the spike,
  // its first two windows left out, and how far the LP's own price does there: requests differ.
  double swing = 0, bound_swing = 0;
  // Windows after the load has trebled until use is within 5 % of the budget for good (but for one window in
  // ten).
  int settle_windows = 0;
  uint64_t ticks = 0;
};

// Rewards are `model`'s, or the truth when it is null. The governor sees FLOPs alone.
Result<DayResult> simulate_day(const SyntheticWorld& world, const RewardModel* model,
                               const DayOptions& options);

// The same requests under several policies side by side, which is quicker and pairs them.
struct DayPolicy {
  std::string name;
  budget::GovernorOptions governor;
  double initial_price = 0;
};
Result<std::vector<DayResult>> simulate_policies(const SyntheticWorld& world, const RewardModel* model,
                                                 const DayOptions& options,
                                                 std::span<const DayPolicy> policies);

}  // namespace frugal::cascade
