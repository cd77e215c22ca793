// bench cascade: the reward model and parts of it left out, and the policies, on a world whose true rewards
// are known.
#include <algorithm>
#include <thread>

#include "base/text.h"
#include "cascade/evaluate.h"
#include "cascade/synthetic.h"
#include "cli/bench_cascade.h"
#include "cli/bench_report.h"

namespace frugal::cli {
namespace {

constexpr int kLogged = 20000, kFresh = 1000;

// Every chain of fresh requests: expected rewards, or clicks drawn from them.
cascade::Replayed requests_of(const cascade::SyntheticWorld& world, int n, uint64_t seed, bool clicks) {
  cascade::Replayed set;
  set.n = n;
  const auto d = static_cast<size_t>(world.spec().n_features()),
             m = static_cast<size_t>(world.spec().n_chains());
  set.features.resize(static_cast<size_t>(n) * d);
  set.rewards.resize(static_cast<size_t>(n) * m);
  Rng rng(seed, 3);
  for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
    const auto request = world.draw(rng);
    const auto rewards = std::span(set.rewards).subspan(i * m, m);
    world.features(request, std::span(set.features).subspan(i * d, d));
    world.truth(request, rewards);
    for (float& reward : rewards) {
      if (clicks) reward = static_cast<float>(world.clicks(static_cast<double>(reward), rng));
    }
    set.user.push_back(static_cast<int>(i));
  }
  return set;
}

}  // namespace

Status bench_cascade_ablation(CascadeBench& bench) {
  FRUGAL_TRY(const auto world, cascade::SyntheticWorld::create({}));
  struct Variant {
    const char* name;
    cascade::RewardOptions options;
  };
  cascade::RewardOptions none, no_recursion, one_basis, not_monotone, linear;
  no_recursion.recursive = false;
  one_basis.multi_basis = false;
  not_monotone.monotone = false;
  linear.hidden = 0;
  const int seeds = bench.quick ? 1 : 3;
  for (const auto& [name, options] :
       {Variant{"model", none}, Variant{"no_recursion", no_recursion}, Variant{"one_basis", one_basis},
        Variant{"not_monotone", not_monotone}, Variant{"no_hidden_units", linear}}) {
    std::vector<double> spearman, within, rmse, calibration;
    for (int seed = 1; seed <= seeds; ++seed) {
      bench.say(strf("%s, seed %d of %d", name, seed, seeds));
      cascade::TrainOptions train;
      train.model = options;
      train.epochs = 10;
      train.seed = static_cast<uint64_t>(seed);
      FRUGAL_TRY(const auto model,
                 cascade::RewardModel::train(world.spec(), world.logs(kLogged, train.seed), train));
      const auto fresh = requests_of(world, kFresh, 100 + train.seed, false);
      const cascade::Quality quality = cascade::judge(model, fresh.features, fresh.rewards, fresh.n);
      spearman.push_back(quality.spearman);
      within.push_back(quality.within_spearman);
      rmse.push_back(quality.rmse);
      calibration.push_back(quality.calibration);
    }
    const std::string how = strf(
        "%d logged rows of an uneven policy, 10 epochs, against the true rewards of %d "
        "fresh requests; %d seeds",
        kLogged, kFresh, seeds);
    const auto add = [&](const char* what, const std::vector<double>& values, const char* unit,
                         double factor) {
      BenchRow row;
      row.name = strf("reward_%s_%s", what, name);
      row.unit = unit;
      row.ours = factor * median(values);
      row.n = seeds;
      row.spread = row.ours > 0 ? factor * median_deviation(values) / row.ours : 0;
      row.how = how;
      bench.rows.push_back(row);
    };
    add("rank_correlation", spearman, "", 1);
    add("rank_correlation_within", within, "", 1);
    add("rmse", rmse, "", 1);
    add("calibration", calibration, "%", 100);
  }
  bench.say("policies on the synthetic world");
  cascade::EvaluateOptions options;
  options.seeds = bench.quick ? 2 : 5;
  options.train = {.epochs = 10};
  options.n_threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  const auto fit = requests_of(world, 5000, 1, true), test = requests_of(world, 5000, 2, true);
  FRUGAL_TRY(const auto models, cascade::train_seeds(world.spec(), fit, test, options));
  // The truth rises with every count, so the best of all static chains is the dearest and leaves next to
  // nothing to save at its reward; a static chain under a budget does.
  for (const double share : {1.0, 0.5, 0.25}) {
    options.static_share = share;
    FRUGAL_TRY(const auto judged, cascade::evaluate(world.spec(), fit, test, models, options));
    const std::string suffix = share < 1 ? strf("_below_%.0f_percent", 100 * share) : "";
    bench.add(
        "synthetic_flops_saved" + suffix, judged.flops_saved, "",
        strf("at the clicks of the best static chain of at most %.0f %% of the dearest's FLOPs (%s)%s; 95 "
             "%% [%.3f, %.3f], %d seeds; FLOPs by formula",
             100 * share, cascade::chain_name(world.spec(), judged.static_chain).c_str(),
             judged.reached ? "" : " (NOT reached on the fitting requests)", judged.saved_low,
             judged.saved_high, judged.seeds));
    bench.add("synthetic_reward_ratio" + suffix, judged.reward_ratio, "",
              strf("95 %% [%.3f, %.3f]", judged.ratio_low, judged.ratio_high));
  }
  return {};
}

}  // namespace frugal::cli
