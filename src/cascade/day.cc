#include "cascade/day.h"

#include <algorithm>
#include <cmath>

#include "base/text.h"

namespace frugal::cascade {

double day_load(const DayOptions& options, double at_s) {
  if (options.stationary) return options.mean_rps;
  const double day = at_s / options.seconds;
  const auto peak = [&](double centre, double width) {
    return std::exp(-0.5 * std::pow((day - centre) / width, 2));
  };
  // 0.45 + 1.5 * 0.07 * sqrt(2 pi) + 1.8 * 0.06 * sqrt(2 pi) = 0.98; the factor makes the mean one.
  double load = (0.45 + 1.5 * peak(0.52, 0.07) + 1.8 * peak(0.84, 0.06)) / 0.984;
  if (day >= options.spike_at && day < options.spike_at + options.spike_share) load *= options.spike_factor;
  return options.mean_rps * load;
}

namespace {

// One policy's day under way.
struct Run {
  std::shared_ptr<budget::Governor> governor;
  std::unique_ptr<budget::Decider> decider;
  DayResult day;
  WindowRow row;
  double log_price = 0;  // summed over the window's regular ticks
  int n_log_price = 0;
  double alarm = 0, ticked_s = 0;
};

class Simulation {
 public:
  Simulation(const SyntheticWorld& world, const RewardModel* model, const DayOptions& options,
             std::shared_ptr<const budget::ChainTable> table, std::vector<Run> runs)
      : world_(world),
        model_(model),
        options_(options),
        table_(std::move(table)),
        runs_(std::move(runs)),
        window_s_(options.governor.window_s) {
    budget_ = budget_rate(options, *table_) * window_s_;
  }

  static double budget_rate(const DayOptions& options, const budget::ChainTable& table) {
    return options.budget_share * options.mean_rps * table.costs(0)[static_cast<size_t>(table.dearest_in(0))];
  }

  std::vector<DayResult> run() {
    const auto n_chains = static_cast<size_t>(table_->size());
    truth_.resize(n_chains), predicted_.resize(n_chains);
    features_.resize(static_cast<size_t>(world_.spec().n_features()));
    for (Run& one : runs_) {
      one.day.chain_share.assign(n_chains, 0);
      one.governor->tick(0);
    }
    // Arrivals by thinning: exponential gaps at the highest rate, kept with probability load / highest.
    const double highest =
        options_.mean_rps * (options_.stationary ? 1 : 2.4 * std::max(1.0, options_.spike_factor));
    Rng rng(options_.seed, 31);
    double now = 0, next_tick = options_.tick_s, next_window = window_s_;
    while (true) {
      now += -std::log(1 - rng.uniform()) / highest;
      while (now >= next_tick && next_tick <= options_.seconds) {
        for (Run& one : runs_) tick(one, next_tick);
        if (next_tick >= next_window - 1e-6) {
          close_window(next_window - window_s_);
          next_window += window_s_;
        }
        next_tick += options_.tick_s;
      }
      if (now >= options_.seconds) break;
      if (rng.uniform() * highest < day_load(options_, now)) request(rng, now);
    }
    std::vector<DayResult> days;
    for (Run& one : runs_) days.push_back(judged(std::move(one.day)));
    return days;
  }

 private:
  void tick(Run& one, double now) {
    one.governor->tick(one.ticked_s = now);
    ++one.day.ticks;
    one.log_price += std::log(std::max(one.governor->state().prices[0], 1e-300));
    ++one.n_log_price;
  }

  void request(Rng& rng, double now) {
    const auto request = world_.draw(rng);
    world_.truth(request, truth_);
    if (model_ != nullptr) {
      world_.features(request, features_);
      model_->predict(features_, predicted_);
    } else {
      predicted_ = truth_;
    }
    if (options_.bound) window_rewards_.insert(window_rewards_.end(), predicted_.begin(), predicted_.end());
    for (Run& one : runs_) {
      const budget::Decision decision = one.decider->decide(predicted_);
      const auto j = static_cast<size_t>(decision.chain);
      one.row.requests += 1;
      one.row.spent += table_->costs(0)[j];
      one.row.predicted += static_cast<double>(predicted_[j]);
      one.row.truth += static_cast<double>(truth_[j]);
      one.row.exhausted += decision.kind == budget::DecisionKind::kExhausted;
      one.day.chain_share[j] += 1;
      // Early ticks come at most 50 times as often as regular ones, as the service's do; a policy without an
      // alarm has none.
      if (!std::isfinite(one.alarm) || now - one.ticked_s < options_.tick_s / 50 ||
          !one.governor->tick_wanted())
        continue;
      one.governor->tick(one.ticked_s = now);
      ++one.day.ticks;
    }
  }

  void close_window(double start_s) {
    budget::LpBound bound;
    if (options_.bound) {
      const auto n = static_cast<int>(window_rewards_.size() / static_cast<size_t>(table_->size()));
      bound = budget::lp_bound(window_rewards_, n, *table_, {budget_});
    }
    window_rewards_.clear();
    for (Run& one : runs_) {
      one.row.start_s = start_s;
      one.row.budget = budget_;
      one.row.price = one.n_log_price > 0 ? std::exp(one.log_price / one.n_log_price) : 0;
      one.row.bound = bound.reward;
      one.row.bound_price = bound.prices.empty() ? 0 : bound.prices[0];
      one.day.rows.push_back(one.row);
      one.row = WindowRow{};
      one.log_price = one.n_log_price = 0;
    }
  }

  // Place of a window's middle in the spike, in windows from its start; negative outside it.
  int spike_window(const WindowRow& row) const {
    if (options_.stationary) return -1;
    const double middle = row.start_s + 0.5 * window_s_;
    const double from = options_.spike_at * options_.seconds;
    if (middle < from || middle >= from + options_.spike_share * options_.seconds) return -1;
    return static_cast<int>((middle - from) / window_s_);
  }

  DayResult judged(DayResult day) const {
    double bound = 0, steps = 0, bound_steps = 0;
    int n_steps = 0;
    std::vector<bool> off;  // by window of the spike: use more than 5 % from the budget
    double n_all = 0, n_spike = 0;
    const auto count = [](BudgetUse& use, double share, double& n) {
      use.utilisation += std::min(share, 1.0);
      use.over_use += std::max(share - 1, 0.0);
      use.worst_over = std::max(use.worst_over, share - 1);
      n += 1;
    };
    const auto log_of = [](double price) { return std::log(std::max(price, 1e-300)); };
    for (size_t i = 0; i < day.rows.size(); ++i) {
      const WindowRow& row = day.rows[i];
      day.requests += row.requests;
      day.spent += row.spent;
      day.predicted += row.predicted;
      day.truth += row.truth;
      bound += row.bound;
      const double share = row.spent / row.budget;
      count(day, share, n_all);
      const int at = spike_window(row);
      if (at < 0) continue;
      count(day.spike, share, n_spike);
      off.push_back(std::fabs(share - 1) > 0.05);
      if (at < 3) continue;  // the step itself and what follows at once
      steps += std::pow(log_of(row.price) - log_of(day.rows[i - 1].price), 2);
      bound_steps += std::pow(log_of(row.bound_price) - log_of(day.rows[i - 1].bound_price), 2);
      ++n_steps;
    }
    for (auto& [use, n] : {std::pair(static_cast<BudgetUse*>(&day), n_all), std::pair(&day.spike, n_spike)}) {
      use->utilisation /= std::max(n, 1.0);
      use->over_use /= std::max(n, 1.0);
    }
    if (bound > 0) day.regret = 1 - day.predicted / bound;
    if (n_steps > 0)
      day.swing = std::sqrt(steps / n_steps), day.bound_swing = std::sqrt(bound_steps / n_steps);
    size_t n_off = 0, settled = off.size();
    for (size_t left = off.size(); left-- > 0;) {
      n_off += off[left];
      if (10 * n_off > off.size() - left) continue;
      settled = left;
    }
    day.settle_windows = static_cast<int>(settled);
    for (double& share : day.chain_share) share /= std::max(day.requests, 1.0);
    return day;
  }

  const SyntheticWorld& world_;
  const RewardModel* model_;
  const DayOptions& options_;
  std::shared_ptr<const budget::ChainTable> table_;
  std::vector<Run> runs_;
  double window_s_, budget_ = 0;
  std::vector<float> truth_, predicted_, features_, window_rewards_;
};

}  // namespace

Result<std::vector<DayResult>> simulate_policies(const SyntheticWorld& world, const RewardModel* model,
                                                 const DayOptions& options,
                                                 std::span<const DayPolicy> policies) {
  if (!(options.seconds > 0) || !(options.tick_s > 0) || !(options.mean_rps > 0) ||
      !(options.budget_share > 0) || !(options.spike_factor > 0)) {
    return {ErrorCode::kInvalidArgument, "seconds, tick, rate, budget share and spike factor are positive"};
  }
  if (options.mean_rps * options.seconds > 2e9) return {ErrorCode::kOutOfRange, "more than 2e9 requests"};
  FRUGAL_TRY(const auto table, chain_table(world.spec(), {}));
  budget::ResourceOptions flops;
  flops.budget = budget::Schedule::constant(Simulation::budget_rate(options, *table));
  std::vector<Run> runs;
  for (const DayPolicy& policy : policies) {
    if (policy.governor.window_s != options.governor.window_s)
      return {ErrorCode::kInvalidArgument, "policies side by side have windows of one length"};
    Run run;
    flops.initial_price = policy.initial_price;
    FRUGAL_TRY(run.governor, budget::Governor::create(table, {flops}, policy.governor));
    run.decider = run.governor->open_decider();
    run.alarm = policy.governor.alarm;
    runs.push_back(std::move(run));
  }
  return Simulation(world, model, options, table, std::move(runs)).run();
}

Result<DayResult> simulate_day(const SyntheticWorld& world, const RewardModel* model,
                               const DayOptions& options) {
  const DayPolicy policy{"", options.governor, options.initial_price};
  FRUGAL_TRY(auto days, simulate_policies(world, model, options, {&policy, 1}));
  return std::move(days[0]);
}

}  // namespace frugal::cascade
