// bench cascade: what a trained cascade saves, and a year of a carbon budget.
#include <filesystem>

#include "base/text.h"
#include "cascade/evaluate.h"
#include "cascade/replay.h"
#include "cascade/simulate.h"
#include "cli/bench_cascade.h"
#include "cli/meter_setup.h"

namespace frugal::cli {

Status bench_cascade_quality(CascadeBench& bench) {
  const auto world = cascade::SyntheticWorld::create({}).value();
  if (bench.cascade_folder.empty()) {
    bench.say("flops_saved: give --cascade DIR (made by scripts/train_cascade.py)");
  } else {
    const auto spec = cascade::load_cascade(bench.cascade_folder);
    if (!spec.ok()) {
      return spec.error();
    }
    const auto fit = cascade::load_replayed(bench.cascade_folder, "fit", *spec);
    const auto test = cascade::load_replayed(bench.cascade_folder, "test", *spec);
    if (!fit.ok() || !test.ok()) {
      return fit.ok() ? test.error() : fit.error();
    }
    cascade::EvaluateOptions judging;
    judging.progress = bench.say;
    const auto judged = cascade::evaluate(*spec, *fit, *test, judging);
    if (!judged.ok()) {
      return judged.error();
    }
    bench.add("flops_saved", judged->flops_saved, "",
              strf("%s; at the best static chain's reward (%s); 95 %% [%.3f, %.3f], %d seeds",
                   spec->source.c_str(), cascade::chain_name(*spec, judged->static_chain).c_str(),
                   judged->saved_low, judged->saved_high, judged->seeds));
    if (!judged->reached)
      bench.add("equal_reward_not_reached", 1, "",
                "no price earns the static chain's reward on the fitting requests");
    bench.add("flops_saved_static_within_1_percent", 1 - judged->near_flops / judged->static_flops, "",
              strf("the cheapest static chain within 1 %% of the best (%s), at %.4f times its clicks",
                   cascade::chain_name(*spec, judged->near_chain).c_str(),
                   judged->near_reward / judged->static_reward));
    auto meter = open_meter({});
    if (!meter.ok()) return meter.error();
    cascade::ReplayOptions replaying;
    replaying.rounds = bench.quick ? 3 : 5;
    const auto replayed =
        cascade::replay(bench.cascade_folder, "test", *spec, *test, *judged, **meter, replaying);
    if (!replayed.ok()) return replayed.error();
    const std::string real =
        strf("%d test requests by the real models, batched, %d rounds in turns; clicks %.4f against %.4f",
             replayed->n, replayed->rounds, replayed->priced.clicks, replayed->fixed.clicks);
    bench.add("joules_saved", replayed->joules_saved, "",
              real + "; joules " + std::string(provenance_name(replayed->fixed.joules.provenance)) + ", " +
                  estimate_text(replayed->priced.joules.scaled(1000), "mJ") + " against " +
                  estimate_text(replayed->fixed.joules.scaled(1000), "mJ") + " a request");
    bench.add("cpu_saved", replayed->cpu_saved, "",
              strf("processor time of the same, rounds %.3f to %.3f", replayed->cpu_saved_low,
                   replayed->cpu_saved_high));
    bench.add("reward_ratio", judged->reward_ratio, "",
              strf("clicks of greenflow over the best static chain's at that point; 95 %% [%.3f, %.3f]",
                   judged->ratio_low, judged->ratio_high));
    for (const auto& peer : judged->at_equal_compute) {
      bench.add(
          strf("reward_gain_over_%s", std::string(cascade::policy_name(peer.kind)).c_str()).c_str(),
          peer.gain, "",
          strf("at half the best static chain's FLOPs; 95 %% [%.3f, %.3f]", peer.gain_low, peer.gain_high));
    }
  }
  for (const char* zone : {"US-CAL-CISO", "ES"}) {
    const std::string stem = bench.data + "/carbon/" + zone;
    if (!std::filesystem::exists(stem + "_2022_hourly.csv")) continue;
    const auto before = cascade::read_intensity(stem + "_2021_hourly.csv"),
               now = cascade::read_intensity(stem + "_2022_hourly.csv");
    if (!before.ok() || !now.ok()) {
      return before.ok() ? now.error() : before.error();
    }
    const auto carbon = cascade::simulate_carbon_year(world, *now, *before, 1e-9, 0.1, 1);
    const std::string how = strf(
        "%s 2022, carbon price re-planned weekly from 2021, at the reward of a constant energy budget; "
        "joules modelled as 1 nJ a FLOP (assumed)",
        zone);
    bench.add(strf("carbon_saved_%s", zone).c_str(), 1 - carbon.gco2e_causal / carbon.gco2e_constant, "",
              how);
    bench.add(strf("carbon_saved_%s_oracle", zone).c_str(), 1 - carbon.gco2e_oracle / carbon.gco2e_constant,
              "", "one price, the year known beforehand");
    bench.add(strf("carbon_saved_%s_vs_flat_carbon", zone).c_str(),
              1 - carbon.gco2e_causal / carbon.gco2e_flat_carbon, "", "against the same grams every hour");
  }
  return {};
}

}  // namespace frugal::cli
