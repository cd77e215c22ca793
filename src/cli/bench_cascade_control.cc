// bench cascade: price control on a simulated day, each policy on the same requests, several seeds; and the
// LP optimum against HiGHS.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/clock.h"
#include "base/file.h"
#include "base/text.h"
#include "budget/lp_text.h"
#include "cascade/day.h"
#include "cli/bench_cascade.h"
#include "cli/child_process.h"

namespace frugal::cli {
namespace {

using budget::ControllerKind;
using cascade::DayOptions;
using cascade::DayPolicy;
using cascade::DayResult;

constexpr uint64_t kFitSeed =
    1000;  // of the day that parameters are chosen on; no day that is reported has it

constexpr uint64_t kFirstSeed = 11;   // of the days that are reported; our own options were chosen on 1 and 2
constexpr double kSpikeShare = 0.06;  // of the day

struct Peer {
  const char* name;   // of its rows
  const char* shown;  // beside them
  ControllerKind kind;
};
constexpr Peer kPeers[] = {{"static", "static price", ControllerKind::kStatic},
                           {"dcaf", "DCAF, bisection", ControllerKind::kBisection},
                           {"greenflow", "GreenFlow-style primal-dual", ControllerKind::kPrimalDual},
                           {"cras", "CRAS, PID", ControllerKind::kPid},
                           {"marca", "MaRCA, MPC", ControllerKind::kMpc}};

DayPolicy published(const Peer& peer) {
  DayPolicy policy;
  policy.name = peer.name;
  policy.governor.controller.kind = peer.kind;
  policy.governor.controller.catch_up = 0;
  policy.governor.hard_cap = false;
  policy.governor.alarm = INFINITY;  // prices at regular ticks alone
  return policy;
}

// What each peer is given to choose from: a grid around published or customary values.
std::vector<DayPolicy> candidates(const Peer& peer, double static_price) {
  std::vector<DayPolicy> all;
  const auto with = [&](auto change) {
    DayPolicy policy = published(peer);
    change(policy);
    all.push_back(policy);
  };
  switch (peer.kind) {
    case ControllerKind::kStatic:
      for (const double factor : {0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0})
        with([&](DayPolicy& p) { p.initial_price = factor * static_price; });
      break;
    case ControllerKind::kBisection:
      with([](DayPolicy&) {});
      break;
    case ControllerKind::kPrimalDual:
      for (const double step : {0.1, 0.5, 1.5})
        for (const int inner : {5, 20})
          with([&](DayPolicy& p) {
            p.governor.controller.step = step, p.governor.controller.inner_steps = inner;
          });
      break;
    case ControllerKind::kPid:
      for (const double kp : {0.1, 0.4, 1.0})
        for (const double ki : {0.08, 0.25, 0.7})
          with([&](DayPolicy& p) { p.governor.controller.kp = kp, p.governor.controller.ki = ki; });
      break;
    case ControllerKind::kMpc:
      for (const double beta : {0.0, 8.0, 50.0})
        with([&](DayPolicy& p) { p.governor.controller.beta = beta; });
      break;
  }
  return all;
}

// How far use is from the budget in the mean: slack and over-use count alike.
double distance(const DayResult& day) { return 1 - day.utilisation + day.over_use; }

// Each peer with the parameters that kept its use nearest to the budget on a day of its own.
Result<std::vector<DayPolicy>> fitted(const cascade::SyntheticWorld& world, const cascade::RewardModel& model,
                                      const CascadeBench& bench) {
  DayOptions day;
  day.seconds = bench.quick ? 7200 : 14400;
  day.spike_share = kSpikeShare;
  day.seed = kFitSeed;
  DayPolicy first = published(kPeers[1]);
  FRUGAL_TRY(const auto priced, cascade::simulate_policies(world, &model, day, {&first, 1}));
  std::vector<double> prices;
  for (const auto& row : priced[0].rows) prices.push_back(row.bound_price);
  std::vector<DayPolicy> all;
  std::vector<size_t> owner;
  for (size_t p = 0; p < std::size(kPeers); ++p) {
    for (DayPolicy& candidate : candidates(kPeers[p], median(prices))) {
      all.push_back(std::move(candidate));
      owner.push_back(p);
    }
  }
  day.bound = false;
  FRUGAL_TRY(const auto days, cascade::simulate_policies(world, &model, day, all));
  std::vector<DayPolicy> best(std::size(kPeers));
  std::vector<double> least(std::size(kPeers), INFINITY);
  for (size_t i = 0; i < all.size(); ++i) {
    if (distance(days[i]) >= least[owner[i]]) continue;
    least[owner[i]] = distance(days[i]);
    best[owner[i]] = all[i];
  }
  return best;
}

// Of one seed: ours, each peer as published, and each peer under our cap (so that none gains by
// overspending).
struct Outcome {
  std::vector<DayResult> still, busy;
  Status status;
};

Outcome simulate(uint64_t seed, const std::vector<DayPolicy>& policies, bool quick) {
  Outcome outcome;
  cascade::SyntheticOptions options;
  options.seed = seed;
  const auto world = cascade::SyntheticWorld::create(options);
  if (!world.ok()) return {{}, {}, world.error()};
  const auto model = cascade::RewardModel::train(world->spec(), world->logs(20000, seed), {});
  if (!model.ok()) return {{}, {}, model.error()};
  DayOptions day;
  day.seed = seed;
  day.seconds = quick ? 14400 : 28800;  // the two peaks in a third of the time
  day.spike_share = kSpikeShare;
  auto busy = cascade::simulate_policies(*world, &*model, day, policies);
  day.stationary = true;
  day.seconds = quick ? 3600 : 7200;
  auto still = cascade::simulate_policies(*world, &*model, day, policies);
  if (!busy.ok()) return {{}, {}, busy.error()};
  if (!still.ok()) return {{}, {}, still.error()};
  return {*std::move(still), *std::move(busy), {}};
}

std::vector<Outcome> simulate_seeds(int n_seeds, const std::vector<DayPolicy>& policies, bool quick) {
  std::vector<Outcome> outcomes(static_cast<size_t>(n_seeds));
  std::atomic<int> next{0};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < std::max(1u, std::thread::hardware_concurrency()); ++t) {
    threads.emplace_back([&] {
      for (int s = next++; s < n_seeds; s = next++)
        outcomes[static_cast<size_t>(s)] = simulate(kFirstSeed + static_cast<uint64_t>(s), policies, quick);
    });
  }
  for (auto& thread : threads) thread.join();
  return outcomes;
}

struct Figure {
  const char* name;
  const char* unit;
  Better better;
  bool capped_peers;  // compare with peers under our cap
  bool stationary;
  double (*of)(const DayResult&);
  const char* how;
};
constexpr Figure kFigures[] = {
    {"regret", "%", Better::kLower, false, true, [](const DayResult& d) { return 100 * d.regret; },
     "stationary load; reward lost against each window's LP optimum in hindsight, in predicted clicks; peers "
     "may "
     "overspend"},
    {"regret_under_cap", "%", Better::kLower, true, true, [](const DayResult& d) { return 100 * d.regret; },
     "the same, peers under our cap"},
    {"utilisation", "%", Better::kHigher, false, false,
     [](const DayResult& d) { return 100 * d.utilisation; },
     "two-peak day of 8 hours with a 3x spike of 29 minutes, windows of 60 s"},
    {"over_use", "%", Better::kLower, false, false, [](const DayResult& d) { return 100 * d.over_use; },
     "the same day"},
    {"spike_utilisation", "%", Better::kHigher, false, false,
     [](const DayResult& d) { return 100 * d.spike.utilisation; }, "the windows of the spike"},
    {"spike_over_use", "%", Better::kLower, false, false,
     [](const DayResult& d) { return 100 * d.spike.over_use; }, "the windows of the spike"},
    {"oscillation", "of the LP's", Better::kLower, false, false,
     [](const DayResult& d) { return d.bound_swing > 0 ? d.swing / d.bound_swing : 0; },
     "price steps from window to window after the step, root mean square of logarithms, over those of the "
     "LP's "
     "own prices"},
    {"settle", "windows", Better::kLower, false, false,
     [](const DayResult& d) { return static_cast<double>(d.settle_windows); },
     "from the step until use stays within 5 % of the budget"}};

void add_rows(CascadeBench& bench, const std::vector<Outcome>& outcomes) {
  constexpr size_t n_peers = std::size(kPeers);
  for (const Figure& figure : kFigures) {
    const auto values = [&](size_t policy) {
      std::vector<double> all;
      for (const Outcome& outcome : outcomes)
        all.push_back(figure.of((figure.stationary ? outcome.still : outcome.busy)[policy]));
      return all;
    };
    const std::vector<double> ours = values(0);
    for (size_t p = 0; p < n_peers; ++p) {
      BenchRow row = bench_row(figure.name, figure.unit, figure.better, ours,
                               values(figure.capped_peers ? 1 + n_peers + p : 1 + p), kPeers[p].shown);
      row.more.push_back({"ours_worst", figure.better == Better::kLower
                                            ? *std::max_element(ours.begin(), ours.end())
                                            : *std::min_element(ours.begin(), ours.end())});
      if (p == 0) row.how = figure.how;
      bench.rows.push_back(std::move(row));
    }
  }
}

// lp_bound() and HiGHS on the same windows.
Status bench_lp(CascadeBench& bench) {
  const auto world = cascade::SyntheticWorld::create({}).value();
  const auto table = cascade::chain_table(world.spec(), {}).value();
  const auto n_chains = static_cast<size_t>(table->size());
  const std::string stem =
      (std::filesystem::temp_directory_path() / strf("frugal_bench_lp_%d_", getpid())).string();
  const int n_requests = bench.quick ? 200 : 600, n_windows = 3;
  std::vector<std::string> words{"python3", "scripts/solve_lp.py"};
  std::vector<double> ours, seconds;
  for (int w = 0; w < n_windows; ++w) {
    Rng rng(static_cast<uint64_t>(w) + 1, 71);
    std::vector<float> rewards(static_cast<size_t>(n_requests) * n_chains);
    for (int i = 0; i < n_requests; ++i)
      world.truth(world.draw(rng), std::span(rewards).subspan(static_cast<size_t>(i) * n_chains, n_chains));
    const double dearest = table->costs(0)[static_cast<size_t>(table->dearest_in(0))];
    const budget::Amounts budget{(0.1 + 0.2 * w) * dearest * n_requests, INFINITY, INFINITY, INFINITY};
    const double start = process_cpu_seconds();
    ours.push_back(budget::lp_bound(rewards, n_requests, *table, budget).reward);
    seconds.push_back(process_cpu_seconds() - start);
    words.push_back(stem + strf("%d.lp", w));
    FRUGAL_TRY_STATUS(
        write_file_atomically(words.back(), budget::lp_text(rewards, n_requests, *table, budget)));
  }
  const auto said = run_command(words, /*with_stderr=*/false);
  for (size_t i = 2; i < words.size(); ++i) std::filesystem::remove(words[i]);
  std::vector<double> gaps, theirs;
  const auto lines = split(said.ok() ? said->text : "", '\n');
  for (size_t w = 0; w < ours.size() && w < lines.size(); ++w) {
    const auto json = nlohmann::json::parse(lines[w], nullptr, false);
    if (!json.is_object() || !json.value("optimal", false)) continue;
    const double optimum = json["objective"];
    gaps.push_back(std::fabs(ours[w] / optimum - 1));
    theirs.push_back(1e3 * json["seconds"].get<double>());
  }
  if (gaps.size() != ours.size()) {
    bench.say(
        "lp_gap is left out: scripts/solve_lp.py did not solve (run it from the clone's root, after "
        "scripts/bootstrap.py)");
    return {};
  }
  for (double& s : seconds) s *= 1e3;
  bench.add(
      "lp_gap", 100 * *std::max_element(gaps.begin(), gaps.end()), "%",
      strf("largest difference of our LP optimum from HiGHS 1.11, %d windows of %d requests x %zu chains",
           n_windows, n_requests, n_chains));
  bench.rows.push_back(bench_row("lp_time", "ms", Better::kLower, seconds, theirs, "HiGHS 1.11, one thread"));
  return {};
}

}  // namespace

Status bench_cascade_control(CascadeBench& bench) {
  FRUGAL_TRY_STATUS(bench_lp(bench));
  const auto world = cascade::SyntheticWorld::create({.seed = kFitSeed}).value();
  FRUGAL_TRY(const auto model, cascade::RewardModel::train(world.spec(), world.logs(20000, kFitSeed), {}));
  bench.say("choosing the peers' parameters on a day of their own");
  FRUGAL_TRY(const auto peers, fitted(world, model, bench));
  std::vector<DayPolicy> policies{{"frugal", {}, 0}};
  policies.insert(policies.end(), peers.begin(), peers.end());
  for (DayPolicy peer : peers) {
    peer.governor.hard_cap = true;
    policies.push_back(peer);
  }
  const int n_seeds = bench.quick ? 2 : 5;
  bench.say(strf("simulating %d days under %zu policies", n_seeds, policies.size()));
  const auto outcomes = simulate_seeds(n_seeds, policies, bench.quick);
  for (const Outcome& outcome : outcomes) FRUGAL_TRY_STATUS(outcome.status);
  add_rows(bench, outcomes);
  return bench_cascade_budgets(bench);
}

}  // namespace frugal::cli
