#include "cascade/simulate.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/file.h"
#include "base/text.h"

namespace frugal::cascade {

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
