// bench cascade: a day of 10^8 requests of 10^6 users, in the memory of one window.
#include "base/clock.h"
#include "base/text.h"
#include "cascade/day.h"
#include "cli/bench_cascade.h"
#include "cli/llm_options.h"

namespace frugal::cli {

Status bench_cascade_scale(CascadeBench& bench) {
  constexpr uint64_t kSeed = 11;  // not one that parameters were chosen on (bench_cascade_control.cc)
  const double wanted = bench.quick ? 1e7 : 1e8;
  FRUGAL_TRY(const auto world, cascade::SyntheticWorld::create({}));
  FRUGAL_TRY(const auto model, cascade::RewardModel::train(world.spec(), world.logs(20000, kSeed), {}));
  cascade::DayOptions options;
  options.seed = kSeed;
  options.mean_rps = wanted / options.seconds;
  options.governor.controller.kind = budget::ControllerKind::kMpc;
  bench.say(strf("a day of %.0g requests", wanted));
  const double begin = process_cpu_seconds();
  FRUGAL_TRY(const auto day, cascade::simulate_day(world, &model, options));
  const double cpu_s = process_cpu_seconds() - begin;
  const std::string how =
      strf("64 chains, 10^6 users, trained reward model, MPC, each window's LP in hindsight, seed %d",
           static_cast<int>(kSeed));
  bench.add("scale_requests", day.requests, "", how);
  bench.add("scale_cpu", 1e6 * cpu_s / day.requests, "us a request",
            "processor time: drawing the request, predicting, deciding, price control and the LP");
  bench.add("scale_peak_memory", peak_memory_bytes() / (1 << 20), "MiB",
            "of the process; the requests of a window are kept for the LP, no others");
  bench.add("scale_utilisation", 100 * day.utilisation, "%", "of the budget, mean of the windows");
  bench.add("scale_over_use", 100 * day.over_use, "%", "of the budget, mean of the windows");
  bench.add("scale_regret", 100 * day.regret, "%", "against the LP optimum of each window in hindsight");
  return {};
}

}  // namespace frugal::cli
