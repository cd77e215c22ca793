// frugal cascade report: the PFEC report of a trained cascade, as HTML and JSON.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <memory>

#include "base/file.h"
#include "cascade/report.h"
#include "cli/bench_report.h"
#include "cli/cascade_judge.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/meter_setup.h"

namespace frugal::cli {
namespace {

struct Options {
  std::string cascade_folder, out, json;
  double nj_per_flop = 0.5, intensity = 475;
  bool no_day = false;
  JudgeOptions judge;
};

// Where the models are there, chains are measured and the test requests served; a synthetic cascade has none.
Status judge(Options& options, cascade::ReportInput& input) {
  if (std::filesystem::exists(options.cascade_folder + "/history_fit.npy")) {
    auto meter = open_meter({});
    if (!meter.ok()) return meter.error();
    FRUGAL_TRY(auto judged, judge_cascade(options.cascade_folder, **meter, options.judge));
    input.spec = std::move(judged.spec);
    input.costs = std::move(judged.costs);
    input.by_cpu = std::move(judged.by_cpu);
    input.evaluation = std::move(judged.by_flops);
    input.served = std::move(judged.replayed.arms);
    return {};
  }
  FRUGAL_TRY(input.spec, cascade::load_cascade(options.cascade_folder));
  FRUGAL_TRY(const auto fit, cascade::load_replayed(options.cascade_folder, "fit", input.spec));
  FRUGAL_TRY(const auto test, cascade::load_replayed(options.cascade_folder, "test", input.spec));
  options.judge.evaluate.progress = options.judge.progress;
  FRUGAL_TRY(input.evaluation, cascade::evaluate(input.spec, fit, test, options.judge.evaluate));
  return {};
}

int report(Options options) {
  cascade::ReportInput input;
  options.judge.progress = [](const std::string& what) {
    std::fprintf(stderr, "frugal: %s\n", what.c_str());
  };
  if (const Status status = judge(options, input); !status.ok()) return fail(status.error());
  input.made = made_here();
  // A data-sheet figure: what a server core takes per FLOP of small dense layers differs tenfold between
  // machines.
  const double joules = 1e-9 * options.nj_per_flop;
  input.joules_per_flop = {joules, joules / 3, joules * 3, Provenance::kAssumed};
  input.gco2e_per_kwh = {options.intensity, options.intensity, options.intensity, Provenance::kAssumed};
  if (!options.no_day) {
    const auto world = cascade::SyntheticWorld::create({});
    if (!world.ok()) return fail(world.error());
    for (const char* name : {"mpc", "primal_dual", "bisection", "pid"}) {
      cascade::DayOptions day;
      day.governor.controller.kind = budget::parse_controller(name).value();
      day.governor.hard_cap =
          input.days.empty();  // the first is the product's own setting, the others price control alone
      auto result = cascade::simulate_day(*world, nullptr, day);
      if (!result.ok()) return fail(result.error());
      input.days.emplace_back(std::string(name) + (input.days.empty() ? " with cap" : ", no cap"),
                              *std::move(result));
    }
  }
  if (const Status written = write_file_atomically(options.out, cascade::report_html(input)); !written.ok())
    return fail(written.error());
  if (!options.json.empty()) {
    if (const Status written = write_file_atomically(options.json, cascade::report_json(input));
        !written.ok())
      return fail(written.error());
  }
  const cascade::Evaluation& shown = input.by_cpu ? *input.by_cpu : input.evaluation;
  std::printf("%s: %.1f %% fewer FLOPs at %.3f times the clicks of the best static chain%s\n",
              options.out.c_str(), 100 * shown.flops_saved, shown.reward_ratio,
              shown.reached ? "" : " (equal reward NOT reached)");
  return kExitOk;
}

}  // namespace

Action add_cascade_report(CLI::App& app) {
  auto options = std::make_shared<Options>();
  app.add_option("cascade", options->cascade_folder, "folder with cascade.json and replayed requests")
      ->required();
  app.add_option("--out,-o", options->out, "HTML file to write")->required();
  app.add_option("--json", options->json, "also write the figures to this JSON file");
  app.add_option("--seeds", options->judge.evaluate.seeds, "reward models trained, each on other logs")
      ->capture_default_str();
  app.add_option("--menu", options->judge.evaluate.menu,
                 "the allocator chooses among so many chains, picked on the fitting requests; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--max-batch", options->judge.replay.max_batch,
                 "requests that a model scores in one call; 0: what is fastest on the fitting requests")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_option("--nj-per-flop", options->nj_per_flop,
                 "assumed energy of a FLOP, nanojoules, where the cascade's models cannot be measured")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--intensity", options->intensity,
                 "carbon intensity of the grid, gCO2e/kWh; the default is a world average")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_flag("--no-day", options->no_day, "leave out the simulated day");
  return [options] { return report(*options); };
}

}  // namespace frugal::cli
