// frugal cascade replay: requests of a trained cascade served by its real models, with and without the
// allocator.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/text.h"
#include "cli/cascade_judge.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/meter_setup.h"

namespace frugal::cli {
namespace {

struct Options {
  std::string cascade_folder;
  bool json = false;
  JudgeOptions judge;
  std::shared_ptr<MeterSetup> meter;
  std::shared_ptr<LedgerSetup> ledger;
};

// What the requests of one policy cost, all rounds together.
void write_usage(const Options& options, const meter::PowerMeter& meter, const cascade::ReplayArm& arm,
                 double requests) {
  meter::LedgerEntry entry;
  entry.kind = "cascade";
  entry.name = "cascade replay, " + arm.name;
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

nlohmann::json arm_json(const cascade::ReplayArm& arm, const cascade::ReplayArm& fixed) {
  const cascade::Saved saved = cascade::cpu_saved(arm, fixed);
  nlohmann::json json = {
      {"policy", arm.name},
      {"clicks", arm.clicks},
      {"flops", arm.flops},
      {"cpu_s", arm.cpu_s},
      {"flops_saved", 1 - arm.flops / fixed.flops},
      {"cpu_saved", {{"median", saved.median}, {"least", saved.least}, {"most", saved.most}}},
      {"joules_saved", 1 - arm.joules.value / fixed.joules.value},
      {"requests_at_once", arm.batch}};
  if (arm.latency_s > 0) json["latency_s"] = {{"mean", arm.latency_s}, {"p99", arm.latency_p99_s}};
  json["joules"] = {{"value", arm.joules.value},
                    {"low", arm.joules.low},
                    {"high", arm.joules.high},
                    {"provenance", provenance_name(arm.joules.provenance)}};
  json["round_cpu_s"] = arm.round_cpu_s;
  return json;
}

int run(Options options) {
  const auto say = [](const std::string& what) { std::fprintf(stderr, "frugal: %s\n", what.c_str()); };
  auto meter = open_meter(*options.meter);
  if (!meter.ok()) return fail(meter.error());
  options.judge.progress = say;
  const auto judged = judge_cascade(options.cascade_folder, **meter, options.judge);
  if (!judged.ok()) return fail(judged.error());
  const cascade::ReplayResult& result = judged->replayed;
  const double served = static_cast<double>(result.n) * result.rounds;
  for (const cascade::ReplayArm& arm : result.arms) write_usage(options, **meter, arm, served);
  const cascade::ReplayArm& fixed = result.arms[0];
  if (options.json) {
    nlohmann::json json = {{"requests", result.n},
                           {"rounds", result.rounds},
                           {"static_chain", cascade::chain_name(judged->spec, judged->by_cpu.static_chain)},
                           {"equal_reward_reached", judged->by_flops.reached && judged->by_cpu.reached},
                           {"disagreeing", result.disagreeing}};
    for (const cascade::ReplayArm& arm : result.arms) json["arms"].push_back(arm_json(arm, fixed));
    std::printf("%s\n", json.dump(1).c_str());
    return kExitOk;
  }
  std::printf("%d requests, %d rounds, real models; the best static chain is %s\n", result.n, result.rounds,
              cascade::chain_name(judged->spec, judged->by_cpu.static_chain).c_str());
  for (const auto* evaluation : {&judged->by_flops, &judged->by_cpu}) {
    if (!evaluation->reached)
      std::printf("equal reward is NOT reached on the fitting requests with a price on %s\n",
                  evaluation == &judged->by_flops ? "FLOPs" : "processor time");
  }
  const bool timed = options.judge.replay.rate > 0;
  std::printf("%-26s %8s %8s %8s %8s %8s  %s\n", "", "clicks", "MFLOPs", "saved", "CPU us", "saved",
              "energy");
  for (const cascade::ReplayArm& arm : result.arms) {
    std::printf("%-26s %8.4f %8.4f %6.1f %% %8.2f %6.1f %%  %s\n", arm.name.c_str(), arm.clicks,
                1e-6 * arm.flops, 100 * (1 - arm.flops / fixed.flops), 1e6 * arm.cpu_s,
                100 * cascade::cpu_saved(arm, fixed).median,
                estimate_text(arm.joules.scaled(1000), "mJ").c_str());
    if (timed)
      std::printf("%-26s latency %.2f ms, p99 %.2f ms; %.1f requests served at once\n", "",
                  1e3 * arm.latency_s, 1e3 * arm.latency_p99_s, arm.batch);
  }
  std::printf("clicks differ from rewards_%s.npy for %.2f %% of the requests\n", options.judge.split.c_str(),
              100 * result.disagreeing);
  return kExitOk;
}

}  // namespace

Action add_cascade_replay(CLI::App& app) {
  auto options = std::make_shared<Options>();
  options->judge.evaluate.seeds = 1;
  app.add_option("cascade", options->cascade_folder,
                 "folder that scripts/train_cascade.py wrote: models, requests, clicks")
      ->required();
  app.add_option("--rounds", options->judge.replay.rounds, "rounds, in which both policies take turns")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--requests", options->judge.requests, "serve the first so many test requests; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option(
         "--rate", options->judge.replay.rate,
         "requests a second that arrive by chance, whatever is done by then; 0: all wait at the start")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--batch", options->judge.replay.batch, "requests handed to the cascade at once")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  app.add_option("--threads,-t", options->judge.replay.n_threads, "threads of a stage's model")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  app.add_option("--seeds", options->judge.evaluate.seeds,
                 "reward models, each on other logs; all are served")
      ->check(CLI::Range(1, 100))
      ->capture_default_str();
  app.add_option("--split", options->judge.split,
                 "requests that are served: test, or fit for choosing parameters")
      ->check(CLI::IsMember({"fit", "test"}))
      ->capture_default_str();
  app.add_option("--menu", options->judge.evaluate.menu,
                 "the allocator chooses among so many chains, picked on the fitting requests; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--max-batch", options->judge.replay.max_batch,
                 "requests that a model scores in one call; 0: what is fastest on the fitting requests")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_flag("--json", options->json, "print JSON");
  options->meter = add_meter_options(app);
  options->ledger = add_ledger_options(app);
  return [options] { return run(*options); };
}

}  // namespace frugal::cli
