#include "cascade/simulate.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/file.h"
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

Result<DayResult> simulate_day(const SyntheticWorld& world, const RewardModel* model,
                               const DayOptions& options) {
  if (!(options.seconds > 0) || !(options.tick_s > 0) || !(options.mean_rps > 0) ||
      !(options.budget_share > 0) || !(options.spike_factor > 0)) {
    return {ErrorCode::kInvalidArgument, "seconds, tick, rate, budget share and spike factor are positive"};
  }
  if (options.mean_rps * options.seconds > 2e9) return {ErrorCode::kOutOfRange, "more than 2e9 requests"};
  const CascadeSpec& spec = world.spec();
  FRUGAL_TRY(const auto table, chain_table(spec, {}));
  const double dearest = table->costs(0)[static_cast<size_t>(table->dearest_in(0))];
  const double rate = options.budget_share * options.mean_rps * dearest;
  budget::ResourceOptions flops;
  flops.budget = budget::Schedule::constant(rate);
  FRUGAL_TRY(auto governor, budget::Governor::create(table, {flops}, options.governor));
  auto decider = governor->open_decider();

  const auto n_chains = static_cast<size_t>(spec.n_chains());
  std::vector<float> features(static_cast<size_t>(spec.n_features())), truth(n_chains), predicted(n_chains),
      window_rewards;
  DayResult day;
  day.chain_share.assign(n_chains, 0);
  Rng rng(options.seed, 31);
  WindowRow row;
  const double window_s = options.governor.window_s;
  double next_tick = options.tick_s, next_window = window_s;
  governor->tick(0);
  const auto close_window = [&] {
    row.budget = rate * window_s;
    row.price = governor->state().prices[0];
    if (options.bound) {
      row.bound =
          budget::lp_bound(window_rewards, static_cast<int>(row.requests), *table, {row.budget}).reward;
    }
    window_rewards.clear();
    day.rows.push_back(row);
    row = WindowRow{};
    row.start_s = next_window;
    next_window += window_s;
  };
  // Arrivals by thinning: exponential gaps at the highest rate, kept with probability load / highest.
  const double highest =
      options.mean_rps * (options.stationary ? 1 : 2.4 * std::max(1.0, options.spike_factor));
  double now = 0;
  while (true) {
    now += -std::log(1 - rng.uniform()) / highest;
    while (now >= next_tick && next_tick <= options.seconds) {
      governor->tick(next_tick);
      ++day.ticks;
      if (next_tick >= next_window - 1e-6) close_window();
      next_tick += options.tick_s;
    }
    if (now >= options.seconds) break;
    if (rng.uniform() * highest >= day_load(options, now)) continue;
    const auto request = world.draw(rng);
    world.truth(request, truth);
    if (model != nullptr) {
      world.features(request, features);
      model->predict(features, predicted);
    } else {
      predicted = truth;
    }
    const budget::Decision decision = decider->decide(predicted);
    const auto j = static_cast<size_t>(decision.chain);
    row.requests += 1;
    row.spent += table->costs(0)[j];
    row.predicted += static_cast<double>(predicted[j]);
    row.truth += static_cast<double>(truth[j]);
    row.exhausted += decision.kind == budget::DecisionKind::kExhausted;
    day.chain_share[j] += 1;
    if (options.bound) window_rewards.insert(window_rewards.end(), predicted.begin(), predicted.end());
    if (governor->tick_wanted()) {
      governor->tick(now);
      ++day.ticks;
    }
  }
  double bound = 0, swings = 0, last_log = 0;
  int n_swings = 0, spike_windows = 0;
  for (const WindowRow& one : day.rows) {
    day.requests += one.requests;
    day.spent += one.spent;
    day.predicted += one.predicted;
    day.truth += one.truth;
    bound += one.bound;
    const double use = one.spent / one.budget;
    day.utilisation += std::min(use, 1.0);
    day.over_use += std::max(use - 1, 0.0);
    day.worst_over = std::max(day.worst_over, use - 1);
    const double share = one.start_s / options.seconds;
    const double log_price = one.price > 0 ? std::log(one.price) : 0;
    if (share >= options.spike_at && share < options.spike_at + options.spike_share && ++spike_windows > 3) {
      swings += std::fabs(log_price - last_log);
      ++n_swings;
    }
    last_log = log_price;
  }
  if (!day.rows.empty()) {
    day.utilisation /= static_cast<double>(day.rows.size());
    day.over_use /= static_cast<double>(day.rows.size());
  }
  if (bound > 0) day.regret = 1 - day.predicted / bound;
  if (n_swings > 0) day.swing = swings / n_swings;
  for (double& share : day.chain_share) share /= std::max(day.requests, 1.0);
  return day;
}

Result<std::vector<double>> read_intensity(const std::string& path) {
  FRUGAL_TRY(const std::string text, read_file(path, size_t{256} << 20));
  std::vector<double> hours;
  int column = -1, number = 0;
  for (const std::string& line : split(text, '\n')) {
    ++number;
    if (trim(line).empty()) continue;
    const std::vector<std::string> cells = split(line, ',');
    if (number == 1) {
      for (size_t i = 0; i < cells.size(); ++i) {
        if (cells[i].find("Carbon Intensity") != std::string::npos &&
            cells[i].find("LCA") != std::string::npos)
          column = static_cast<int>(i);
      }
      if (column < 0)
        return {ErrorCode::kCorrupt, path + ": line 1 names no life-cycle (LCA) carbon intensity column"};
      continue;
    }
    char* end = nullptr;
    const bool there = static_cast<size_t>(column) < cells.size();
    const double value = there ? std::strtod(cells[static_cast<size_t>(column)].c_str(), &end) : 0;
    if (!there || end == cells[static_cast<size_t>(column)].c_str() || !std::isfinite(value) || value < 0) {
      if (hours.empty())
        return {ErrorCode::kCorrupt, strf("%s: line %d has no carbon intensity", path.c_str(), number)};
      hours.push_back(hours.back());  // a gap in the record: the last hour goes on
      continue;
    }
    hours.push_back(value);
  }
  if (hours.size() < 24) return {ErrorCode::kCorrupt, path + ": less than a day of hours"};
  return hours;
}

namespace {

// Mean energy and reward of a request against the price of a joule, on a logarithmic grid of prices.
class Curve {
 public:
  Curve(std::span<const float> rewards, int n, const budget::ChainTable& table, double joules_per_flop) {
    const auto n_chains = static_cast<size_t>(table.size());
    std::vector<float> priced(n_chains);
    for (int g = 0; g < kGrid; ++g) {
      double energy = 0, reward = 0;
      const double price = std::exp(log_price(g));
      for (size_t j = 0; j < n_chains; ++j)
        priced[j] = static_cast<float>(price * table.costs(0)[j] * joules_per_flop);
      for (int i = 0; i < n; ++i) {
        const auto row = rewards.subspan(static_cast<size_t>(i) * n_chains, n_chains);
        const auto j = static_cast<size_t>(budget::argmax_net_reward(row, priced));
        energy += table.costs(0)[j] * joules_per_flop;
        reward += static_cast<double>(row[j]);
      }
      energy_[static_cast<size_t>(g)] = energy / n;
      reward_[static_cast<size_t>(g)] = reward / n;
    }
  }
  double energy(double price) const { return at(energy_, price); }
  double reward(double price) const { return at(reward_, price); }
  double highest_price() const { return std::exp(log_price(kGrid - 1)); }
  // The price at which a request takes `joules` in the mean.
  double price_for(double joules) const {
    double low = log_price(0), high = log_price(kGrid - 1);
    for (int step = 0; step < 40; ++step) {
      const double middle = 0.5 * (low + high);
      (energy(std::exp(middle)) > joules ? low : high) = middle;
    }
    return std::exp(high);
  }

 private:
  static constexpr int kGrid = 400;
  static double log_price(int g) {
    return std::log(1e-3) + g * (std::log(1e5) - std::log(1e-3)) / (kGrid - 1);
  }
  static double at(const std::array<double, kGrid>& values, double price) {
    if (!(price > 0)) return values[0];
    const double where = (std::log(price) - log_price(0)) / (log_price(1) - log_price(0));
    if (where <= 0) return values[0];
    if (where >= kGrid - 1) return values[kGrid - 1];
    const auto g = static_cast<size_t>(where);
    const double share = where - static_cast<double>(g);
    return (1 - share) * values[g] + share * values[g + 1];
  }
  std::array<double, kGrid> energy_{}, reward_{};
};

template <typename Function>  // the log-midpoint x in [low, high] where falling f crosses `target`
double bisect_falling(Function f, double target, double low, double high) {
  low = std::log(low), high = std::log(high);
  for (int step = 0; step < 50; ++step) {
    const double middle = 0.5 * (low + high);
    (f(std::exp(middle)) > target ? low : high) = middle;
  }
  return std::exp(0.5 * (low + high));
}

}  // namespace

CarbonYear simulate_carbon_year(const SyntheticWorld& world, std::span<const double> year,
                                std::span<const double> last_year, double joules_per_flop,
                                double budget_share, uint64_t seed) {
  FRUGAL_CHECK(!year.empty() && !last_year.empty());
  constexpr int kSample = 4000;
  const auto n_chains = static_cast<size_t>(world.spec().n_chains());
  std::vector<float> rewards(kSample * n_chains);
  Rng rng(seed, 41);
  for (int i = 0; i < kSample; ++i)
    world.truth(world.draw(rng), std::span(rewards).subspan(static_cast<size_t>(i) * n_chains, n_chains));
  const auto table = chain_table(world.spec(), {}).value();
  const Curve curve(rewards, kSample, *table, joules_per_flop);
  const DayOptions shape{.mean_rps = 1, .spike_factor = 1};
  const auto load = [&](size_t h) {
    return 3600 * day_load(shape, 3600 * (static_cast<double>(h % 24) + 0.5));
  };
  const auto grams = [](double joules, double intensity) { return joules / 3.6e6 * intensity; };
  const auto last = [&](size_t h) { return last_year[h % last_year.size()]; };
  const size_t hours = year.size();

  CarbonYear result;
  result.hours = static_cast<double>(hours);
  const double hourly_energy =
      budget_share * 3600 * table->costs(0)[static_cast<size_t>(table->dearest_in(0))] * joules_per_flop;
  for (size_t h = 0; h < hours; ++h) {
    const double price = curve.price_for(hourly_energy / load(h));
    result.reward_constant += load(h) * curve.reward(price);
    result.gco2e_constant += grams(load(h) * curve.energy(price), year[h]);
  }
  struct Total {
    double reward = 0, gco2e = 0;
  };
  // The same grams every hour.
  const auto flat = [&](double hourly_grams) {
    Total total;
    for (size_t h = 0; h < hours; ++h) {
      const double price = curve.price_for(hourly_grams * 3.6e6 / std::max(year[h], 1e-9) / load(h));
      total.reward += load(h) * curve.reward(price);
      total.gco2e += grams(load(h) * curve.energy(price), year[h]);
    }
    return total;
  };
  const double mean_grams = result.gco2e_constant / result.hours;
  double low = 0.2 * mean_grams, high = 5 * mean_grams;
  for (int step = 0; step < 18; ++step)
    (flat(0.5 * (low + high)).reward < result.reward_constant ? low : high) = 0.5 * (low + high);
  result.gco2e_flat_carbon = flat(high).gco2e;
  // One price of carbon: the LP optimum of a yearly carbon budget.
  const auto oracle = [&](double carbon_price) {
    Total total;
    for (size_t h = 0; h < hours; ++h) {
      const double price = carbon_price * year[h];
      total.reward += load(h) * curve.reward(price);
      total.gco2e += grams(load(h) * curve.energy(price), year[h]);
    }
    return total;
  };
  const double ceiling = curve.highest_price();
  const double oracle_price =
      bisect_falling([&](double p) { return oracle(p).reward; }, result.reward_constant, 1e-9, ceiling);
  result.gco2e_oracle = oracle(oracle_price).gco2e;
  // Causal: each week, the price that would use up what is left of the grams, were the rest of the year as
  // last year's.
  const auto causal = [&](double yearly_grams) {
    Total total;
    double carbon_price = 0;
    for (size_t h = 0; h < hours; ++h) {
      if (h % 168 == 0) {
        const double left = yearly_grams - total.gco2e;
        carbon_price = bisect_falling(
            [&](double p) {
              double rest = 0;
              for (size_t t = h; t < hours; t += 5)
                rest += 5 * grams(load(t) * curve.energy(p * last(t)),
                                  last(t));  // every fifth hour: 5 and 24 share no factor
              return rest;
            },
            left, 1e-9, ceiling);
      }
      const double price = carbon_price * year[h];
      total.reward += load(h) * curve.reward(price);
      total.gco2e += grams(load(h) * curve.energy(price), year[h]);
    }
    return total;
  };
  result.reward_causal_equal_carbon = causal(result.gco2e_constant).reward;
  low = 0.3 * result.gco2e_constant, high = 1.5 * result.gco2e_constant;
  for (int step = 0; step < 9; ++step)
    (causal(0.5 * (low + high)).reward < result.reward_constant ? low : high) = 0.5 * (low + high);
  result.gco2e_causal = causal(high).gco2e;
  return result;
}

}  // namespace frugal::cascade
