#include "cli/cascade_judge.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <thread>

#include "base/text.h"
#include "cascade/pricing.h"

namespace frugal::cli {
namespace {

SavedWithBand saved_with_band(const JudgedCascade& judged, bool price_cpu,
                              double (*of)(const cascade::ReplayArm&)) {
  const auto& policies = (price_cpu ? judged.by_cpu : judged.by_flops).policies;
  const auto arms = judged.arms(price_cpu);
  const double fixed = of(judged.replayed.arms[0]);
  SavedWithBand saved;
  std::vector<double> draws;
  for (size_t s = 0; s < arms.size(); ++s) {
    const double served = of(arms[s]) / fixed;
    saved.value += (1 - served) / static_cast<double>(arms.size());
    const double modelled = 1 - policies[s].saving.cpu;
    for (const auto& draw : policies[s].draws) draws.push_back(1 - (1 - draw.cpu) * served / modelled);
  }
  std::sort(draws.begin(), draws.end());
  const auto at = [&](double q) {
    return draws[static_cast<size_t>(std::lround(q * static_cast<double>(draws.size() - 1)))];
  };
  saved.low = at(0.025);
  saved.high = at(0.975);
  saved.draws = std::move(draws);
  return saved;
}

// Where the batch is not given: of the powers of two the one that serves the static chain that earns most on
// the fitting requests in the least processor time there.
Status choose_batch(const std::string& folder, const cascade::Replayed& fit, meter::PowerMeter& meter,
                    JudgeOptions& options, JudgedCascade& judged) {
  const std::vector<double> earned = cascade::mean_rewards(fit);
  cascade::ReplayPolicy best;
  best.chain = static_cast<int>(std::max_element(earned.begin(), earned.end()) - earned.begin());
  double least = 0;
  for (const int batch : {8, 16, 32, 64, 128}) {
    cascade::ReplayOptions replay = options.replay;
    replay.max_batch = batch;
    replay.rate = 0;
    FRUGAL_TRY(const auto result,
               cascade::replay(folder, "fit", judged.spec, fit, {&best, 1}, meter, replay));
    const double cpu_s = result.arms[0].cpu_s;
    judged.batches += strf("%s%d: %.1f us", judged.batches.empty() ? "" : ", ", batch, 1e6 * cpu_s);
    if (options.replay.max_batch > 0 && cpu_s >= least) continue;
    options.replay.max_batch = batch;
    least = cpu_s;
  }
  return {};
}

}  // namespace

Result<JudgedCascade> judge_cascade(const std::string& folder, meter::PowerMeter& meter,
                                    const JudgeOptions& given) {
  JudgeOptions options = given;
  JudgedCascade judged;
  FRUGAL_TRY(judged.spec, cascade::load_cascade(folder));
  FRUGAL_TRY(const auto fit, cascade::load_replayed(folder, "fit", judged.spec));
  FRUGAL_TRY(const auto test, cascade::load_replayed(folder, "test", judged.spec));
  const auto saying = [&](const char* part) -> std::function<void(const std::string&)> {
    if (!options.progress) return {};
    return [&options, part](const std::string& what) { options.progress(part + what); };
  };
  if (options.replay.max_batch == 0) FRUGAL_TRY_STATUS(choose_batch(folder, fit, meter, options, judged));
  judged.max_batch = options.replay.max_batch;
  options.costs.progress = saying("");
  options.costs.batches.back() = options.replay.max_batch;
  FRUGAL_TRY(judged.costs, cascade::measure_costs(folder, "fit", judged.spec, meter, options.costs));
  judged.cpu_s = judged.costs.cpu_s(judged.spec, judged.costs.batches.size() - 1);
  for (int j = 0; j < judged.spec.n_chains(); ++j)
    judged.flops.push_back(cascade::chain_flops(judged.spec, j));
  options.evaluate.cpu_s = judged.cpu_s;
  options.evaluate.progress = saying("");
  options.evaluate.n_threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  FRUGAL_TRY(const auto models, cascade::train_seeds(judged.spec, fit, test, options.evaluate));
  options.evaluate.price_cpu = false;
  FRUGAL_TRY(judged.by_flops, cascade::evaluate(judged.spec, fit, test, models, options.evaluate));
  options.evaluate.price_cpu = true;
  FRUGAL_TRY(judged.by_cpu, cascade::evaluate(judged.spec, fit, test, models, options.evaluate));
  judged.policies = cascade::replay_policies(judged.by_flops, judged.flops, "price on FLOPs");
  const auto more = cascade::replay_policies(judged.by_cpu, judged.cpu_s, "price on time");
  judged.policies[1] = more[1];  // the cheapest static chain within 1 %, by processor time
  judged.policies.insert(judged.policies.end(), more.begin() + 2, more.end());
  options.replay.progress = saying("replay, ");
  judged.served = options.split == "fit" ? fit : test;
  if (options.requests > 0 && options.requests < judged.served.n) {
    std::vector<int> first(static_cast<size_t>(options.requests));
    std::iota(first.begin(), first.end(), 0);
    judged.served = cascade::rows_of(judged.served, first);
  }
  FRUGAL_TRY(judged.replayed, cascade::replay(folder, options.split, judged.spec, judged.served,
                                              judged.policies, meter, options.replay));
  return judged;
}

SavedWithBand joules_saved(const JudgedCascade& judged, bool price_cpu) {
  return saved_with_band(judged, price_cpu, [](const cascade::ReplayArm& arm) { return arm.joules.value; });
}

SavedWithBand cpu_saved(const JudgedCascade& judged, bool price_cpu) {
  return saved_with_band(judged, price_cpu, [](const cascade::ReplayArm& arm) { return arm.cpu_s; });
}

}  // namespace frugal::cli
