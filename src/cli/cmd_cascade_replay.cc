// frugal cascade replay: requests of a trained cascade served by its real models, with and without the
// allocator.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/text.h"
#include "cascade/replay.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/meter_setup.h"

namespace frugal::cli {
namespace {

struct Options {
  std::string cascade_folder;
  bool json = false;
  cascade::EvaluateOptions evaluate;
  cascade::ReplayOptions replay;
  std::shared_ptr<MeterSetup> meter;
  std::shared_ptr<LedgerSetup> ledger;
};

// What the requests of one policy cost, all rounds together.
void write_usage(const Options& options, const meter::PowerMeter& meter, const char* policy,
                 const cascade::ReplayArm& arm, double requests) {
  meter::LedgerEntry entry;
  entry.kind = "cascade";
  entry.name = std::string("cascade replay, ") + policy;
  entry.model = options.cascade_folder;
  entry.unit = "request";
  entry.units = requests;
  entry.usage.flops = requests * arm.flops;
  entry.usage.cpu_seconds = requests * arm.cpu_s;
  entry.usage.energy_j = arm.joules.scaled(requests);
  const Estimate& grams = meter.options().intensity.g_per_kwh;
  if (grams.known()) {
    entry.usage.carbon_gco2e = entry.usage.energy_j.scaled(grams.value / 3.6e6);
    entry.usage.carbon_gco2e.provenance = std::max(arm.joules.provenance, grams.provenance);
  }
  const Status written = write_to_ledger(*options.ledger, meter, entry);
  if (!written.ok()) std::fprintf(stderr, "frugal: warning: %s\n", written.error().message.c_str());
}

nlohmann::json arm_json(const cascade::ReplayArm& arm) {
  nlohmann::json json = {{"clicks", arm.clicks}, {"flops", arm.flops}, {"cpu_s", arm.cpu_s}};
  json["joules"] = {{"value", arm.joules.value},
                    {"low", arm.joules.low},
                    {"high", arm.joules.high},
                    {"provenance", provenance_name(arm.joules.provenance)}};
  json["round_cpu_s"] = arm.round_cpu_s;
  return json;
}

int run(Options options) {
  const auto spec = cascade::load_cascade(options.cascade_folder);
  if (!spec.ok()) return fail(spec.error());
  const auto fit = cascade::load_replayed(options.cascade_folder, "fit", *spec);
  if (!fit.ok()) return fail(fit.error());
  const auto test = cascade::load_replayed(options.cascade_folder, "test", *spec);
  if (!test.ok()) return fail(test.error());
  const auto say = [](const std::string& what) { std::fprintf(stderr, "frugal: %s\n", what.c_str()); };
  options.evaluate.seeds = 1;
  options.evaluate.progress = [&](const std::string& what) { say("pricing, " + what); };
  options.replay.progress = [&](const std::string& what) { say("replay, " + what); };
  const auto evaluation = cascade::evaluate(*spec, *fit, *test, options.evaluate);
  if (!evaluation.ok()) return fail(evaluation.error());
  auto meter = open_meter(*options.meter);
  if (!meter.ok()) return fail(meter.error());
  const auto result =
      cascade::replay(options.cascade_folder, "test", *spec, *test, *evaluation, **meter, options.replay);
  if (!result.ok()) return fail(result.error());
  const double served = static_cast<double>(result->n) * result->rounds;
  write_usage(options, **meter, "static", result->fixed, served);
  write_usage(options, **meter, "greenflow", result->priced, served);
  if (options.json) {
    std::printf("%s\n", nlohmann::json{{"requests", result->n},
                                       {"rounds", result->rounds},
                                       {"static_chain", cascade::chain_name(*spec, evaluation->static_chain)},
                                       {"static", arm_json(result->fixed)},
                                       {"greenflow", arm_json(result->priced)},
                                       {"equal_reward_reached", evaluation->reached},
                                       {"flops_saved", result->flops_saved},
                                       {"cpu_saved", result->cpu_saved},
                                       {"joules_saved", result->joules_saved},
                                       {"disagreeing", result->disagreeing}}
                            .dump(1)
                            .c_str());
    return kExitOk;
  }
  std::printf("%d requests, %d rounds, real models; the best static chain is %s\n", result->n, result->rounds,
              cascade::chain_name(*spec, evaluation->static_chain).c_str());
  if (!evaluation->reached)
    std::printf(
        "equal reward is NOT reached on the fitting requests: no price lets GreenFlow earn as much\n");
  std::printf("%-10s %10s %12s %12s  %s\n", "", "clicks", "MFLOPs", "CPU ms", "energy");
  for (const auto* arm : {&result->fixed, &result->priced}) {
    std::printf("%-10s %10.4f %12.4f %12.4f  %s\n", arm == &result->fixed ? "static" : "greenflow",
                arm->clicks, 1e-6 * arm->flops, 1e3 * arm->cpu_s,
                estimate_text(arm->joules.scaled(1000), "mJ").c_str());
  }
  std::printf("saved: FLOPs %.1f %%, CPU time %.1f %% (%.1f to %.1f over rounds), joules %.1f %%\n",
              100 * result->flops_saved, 100 * result->cpu_saved, 100 * result->cpu_saved_low,
              100 * result->cpu_saved_high, 100 * result->joules_saved);
  std::printf("clicks differ from rewards_test.npy for %.2f %% of the requests\n", 100 * result->disagreeing);
  return kExitOk;
}

}  // namespace

Action add_cascade_replay(CLI::App& app) {
  auto options = std::make_shared<Options>();
  app.add_option("cascade", options->cascade_folder,
                 "folder that scripts/train_cascade.py wrote: models, requests, clicks")
      ->required();
  app.add_option("--rounds", options->replay.rounds, "rounds, in which both policies take turns")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--requests", options->replay.requests, "serve the first so many test requests; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--batch", options->replay.batch, "requests handed to the cascade at once")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  app.add_option("--threads,-t", options->replay.n_threads, "threads of a stage's model")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  app.add_flag("--json", options->json, "print JSON");
  options->meter = add_meter_options(app);
  options->ledger = add_ledger_options(app);
  return [options] { return run(*options); };
}

}  // namespace frugal::cli
