// bench cascade: two budgets at once, compute and carbon, on a synthetic day under the intensity of a real
// grid.
#include <algorithm>
#include <cmath>
#include <filesystem>

#include "base/text.h"
#include "cascade/day.h"
#include "cascade/simulate.h"
#include "cli/bench_cascade.h"

namespace frugal::cli {
namespace {

constexpr double kRps = 10, kWindow_s = 60, kTick_s = 5;
// Of a chain, for the sake of the bench: what looking up and sorting an item takes beside its FLOPs, so that
// the two resources rank chains differently.
constexpr double kJoulesFlop = 1e-9, kJoulesItem = 2e-6;

Result<std::shared_ptr<const budget::ChainTable>> two_costs(const cascade::CascadeSpec& spec) {
  std::vector<budget::Chain> chains;
  for (int j = 0; j < spec.n_chains(); ++j) {
    const auto& actions = spec.chains[static_cast<size_t>(j)];
    double items = 0;
    for (size_t k = 0; k < spec.stages.size(); ++k)
      items += spec.stages[k].counts[static_cast<size_t>(actions[2 * k + 1])];
    const double flops = cascade::chain_flops(spec, j);
    chains.push_back(
        {cascade::chain_name(spec, j), actions, {flops, kJoulesFlop * flops + kJoulesItem * items}});
  }
  return budget::ChainTable::create({"flops", "gco2e"}, std::move(chains));
}

struct Kept {
  double use[2] = {}, over[2] = {},
         binding[2] = {};  // means over windows; share of windows where the LP uses 99 % of it
  double reward = 0, bound = 0;
  int n = 0;
};

// Hours of even load; the second resource's cost follows `intensity` [hours], g a joule.
Result<Kept> serve_hours(const cascade::SyntheticWorld& world, const cascade::RewardModel& model,
                         std::span<const double> intensity, uint64_t seed) {
  FRUGAL_TRY(const auto table, two_costs(world.spec()));
  const auto dearest = [&](int k) { return table->costs(k)[static_cast<size_t>(table->dearest_in(k))]; };
  double mean_intensity = 0;
  std::vector<budget::Schedule::Point> points;
  for (size_t h = 0; h < intensity.size(); ++h) {
    points.push_back({3600.0 * static_cast<double>(h), intensity[h]});
    mean_intensity += intensity[h] / static_cast<double>(intensity.size());
  }
  std::vector<budget::ResourceOptions> resources(2);
  const budget::Amounts rate{0.3 * kRps * dearest(0), 0.3 * kRps * dearest(1) * mean_intensity};
  for (size_t k = 0; k < 2; ++k) resources[k].budget = budget::Schedule::constant(rate[k]);
  FRUGAL_TRY(resources[1].cost_scale, budget::Schedule::piecewise(points));
  FRUGAL_TRY(const auto governor, budget::Governor::create(table, resources, {}));
  const auto decider = governor->open_decider();
  const size_t m = static_cast<size_t>(table->size());
  std::vector<float> features(static_cast<size_t>(world.spec().n_features())), predicted(m), window;
  Rng rng(seed, 33);
  Kept kept;
  double now = 0, next_tick = kTick_s, next_window = kWindow_s, reward = 0;
  budget::Amounts before{};
  governor->tick(0);
  const double end = 3600.0 * static_cast<double>(intensity.size());
  while (true) {
    now += -std::log(1 - rng.uniform()) / kRps;
    while (now >= next_tick && next_tick <= end) {
      governor->tick(next_tick);
      if (next_tick >= next_window - 1e-6) {
        const budget::Amounts spent = governor->state().spent;
        // The LP in hindsight needs costs of one scale: windows that an hour cuts are of one hour here.
        const double scale = intensity[static_cast<size_t>((next_window - 0.5 * kWindow_s) / 3600)];
        const budget::Amounts budget{rate[0] * kWindow_s, rate[1] * kWindow_s / scale, INFINITY, INFINITY};
        const auto bound =
            budget::lp_bound(window, static_cast<int>(window.size() / m), *table, budget, 1e-4);
        for (size_t k = 0; k < 2; ++k) {
          const double use = (spent[k] - before[k]) / (rate[k] * kWindow_s);
          kept.use[k] += std::min(use, 1.0);
          kept.over[k] += std::max(use - 1, 0.0);
          kept.binding[k] += bound.spent[k] > 0.99 * budget[k];
        }
        kept.reward += reward;
        kept.bound += bound.reward;
        ++kept.n;
        before = spent;
        reward = 0;
        window.clear();
        next_window += kWindow_s;
      }
      next_tick += kTick_s;
    }
    if (now >= end) break;
    const auto request = world.draw(rng);
    world.features(request, features);
    model.predict(features, predicted);
    window.insert(window.end(), predicted.begin(), predicted.end());
    reward += static_cast<double>(predicted[static_cast<size_t>(decider->decide(predicted).chain)]);
    if (governor->tick_wanted()) governor->tick(now);
  }
  for (size_t k = 0; k < 2; ++k) {
    kept.use[k] /= kept.n;
    kept.over[k] /= kept.n;
    kept.binding[k] /= kept.n;
  }
  return kept;
}

}  // namespace

Status bench_cascade_budgets(CascadeBench& bench) {
  const std::string path = bench.data + "/carbon/ES_2022_hourly.csv";
  if (!std::filesystem::exists(path)) {
    bench.say("two budgets at once: left out, there is no " + path);
    return {};
  }
  FRUGAL_TRY(const auto year, cascade::read_intensity(path));
  const int n_seeds = bench.quick ? 1 : 3, hours = bench.quick ? 6 : 24;
  std::vector<double> regret, flops, carbon, over;
  double binding[2] = {};
  for (int seed = 1; seed <= n_seeds; ++seed) {
    bench.say(strf("two budgets at once, day %d of %d", seed, n_seeds));
    FRUGAL_TRY(const auto world, cascade::SyntheticWorld::create({.seed = static_cast<uint64_t>(seed)}));
    FRUGAL_TRY(const auto model,
               cascade::RewardModel::train(world.spec(), world.logs(20000, static_cast<uint64_t>(seed)), {}));
    const size_t day = static_cast<size_t>(100 * seed);  // spread over the year
    FRUGAL_TRY(const Kept kept,
               serve_hours(world, model, std::span(year).subspan(24 * day, static_cast<size_t>(hours)),
                           static_cast<uint64_t>(seed)));
    regret.push_back(100 * (1 - kept.reward / kept.bound));
    flops.push_back(100 * kept.use[0]);
    carbon.push_back(100 * kept.use[1]);
    over.push_back(100 * std::max(kept.over[0], kept.over[1]));
    for (size_t k = 0; k < 2; ++k) binding[k] += kept.binding[k] / n_seeds;
  }
  BenchRow row;
  row.name = "two_budgets_regret";
  row.unit = "%";
  row.ours = median(regret);
  row.n = n_seeds;
  row.spread = median_deviation(regret) / std::max(std::fabs(row.ours), 1e-9);
  row.more = {{"over_use_of_the_worse", *std::max_element(over.begin(), over.end())},
              {"use_of_flops", median(flops)},
              {"use_of_carbon", median(carbon)},
              {"windows_where_flops_bind", 100 * binding[0]},
              {"windows_where_carbon_binds", 100 * binding[1]}};
  row.how = strf(
      "budgets of FLOPs and of grams (ES 2022, %d days of %d hours) kept at once in windows of 60 s; reward "
      "lost against the LP of both budgets in hindsight, in predicted clicks; FLOPs bind in %.0f %% of the "
      "windows, grams in %.0f %%; worst over-use of either %.3f %%",
      n_seeds, hours, 100 * binding[0], 100 * binding[1], *std::max_element(over.begin(), over.end()));
  bench.rows.push_back(row);
  return {};
}

}  // namespace frugal::cli
