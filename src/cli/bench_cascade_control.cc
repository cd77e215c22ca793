// bench cascade: price control on a simulated day.
#include "base/text.h"
#include "cascade/simulate.h"
#include "cli/bench_cascade.h"

namespace frugal::cli {

Status bench_cascade_control(CascadeBench& bench) {
  const auto world = cascade::SyntheticWorld::create({}).value();
  const auto model = cascade::RewardModel::train(world.spec(), world.logs(30000, 1), {});
  if (!model.ok()) {
    return model.error();
  }
  cascade::DayOptions day;
  day.seconds = bench.quick ? 21600 : 86400;
  day.stationary = true;
  const auto still = cascade::simulate_day(world, &*model, day);
  day.stationary = false;
  const auto busy = cascade::simulate_day(world, &*model, day);
  if (!still.ok()) return still.error();
  if (!busy.ok()) return busy.error();
  const std::string loop =
      strf("simulated, %.0f requests, windows of 60 s, ticks of 5 s, mpc with cap", busy->requests);
  bench.add("regret", still->regret, "",
            "stationary load, against the LP optimum of each window in hindsight, predicted rewards");
  bench.add("utilisation", busy->utilisation, "", "two-peak day with a 3x spike; " + loop);
  bench.add("over_use", busy->over_use, "", "the same day");
  bench.add("over_use_worst_window", busy->worst_over, "", "the same day");
  bench.add("price_swing", busy->swing, "", "mean |log price step| between windows within the spike");
  for (const char* name : {"primal_dual", "bisection", "pid", "mpc"}) {
    cascade::DayOptions plain = day;
    plain.bound = false;
    plain.governor.hard_cap = false;
    plain.governor.controller.kind = budget::parse_controller(name).value();
    const auto peer = cascade::simulate_day(world, &*model, plain);
    if (!peer.ok()) return peer.error();
    bench.add(strf("utilisation_%s", name).c_str(), peer->utilisation, "",
              "the same day, price control alone, no cap");
    bench.add(strf("over_use_%s", name).c_str(), peer->over_use, "",
              "the same day, price control alone, no cap");
  }
  return {};
}

}  // namespace frugal::cli
