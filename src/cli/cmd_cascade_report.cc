// frugal cascade report: the PFEC report of a trained cascade, as HTML and JSON.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <memory>

#include "base/file.h"
#include "cascade/report.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/meter_setup.h"

namespace frugal::cli {
namespace {

struct Options {
  std::string cascade_folder, out, json;
  double nj_per_flop = 0.5, intensity = 475;
  bool no_day = false;
  cascade::EvaluateOptions evaluate;
};

int report(Options options) {
  cascade::ReportInput input;
  auto spec = cascade::load_cascade(options.cascade_folder);
  if (!spec.ok()) return fail(spec.error());
  input.spec = *std::move(spec);
  const auto fit = cascade::load_replayed(options.cascade_folder, "fit", input.spec);
  if (!fit.ok()) return fail(fit.error());
  const auto test = cascade::load_replayed(options.cascade_folder, "test", input.spec);
  if (!test.ok()) return fail(test.error());
  options.evaluate.progress = [](const std::string& what) {
    std::fprintf(stderr, "frugal: training and pricing, %s\n", what.c_str());
  };
  // Where the models are there, chains are measured; a synthetic cascade has none.
  if (std::filesystem::exists(options.cascade_folder + "/history_fit.npy")) {
    auto meter = open_meter({});
    if (!meter.ok()) return fail(meter.error());
    auto costs = cascade::measure_costs(options.cascade_folder, "fit", input.spec, **meter, {});
    if (!costs.ok()) return fail(costs.error());
    input.costs = *std::move(costs);
    options.evaluate.cpu_s = input.costs->cpu_s(input.spec, input.costs->batches.size() - 1);
    options.evaluate.price_cpu = true;
    auto by_cpu = cascade::evaluate(input.spec, *fit, *test, options.evaluate);
    if (!by_cpu.ok()) return fail(by_cpu.error());
    input.by_cpu = *std::move(by_cpu);
    options.evaluate.price_cpu = false;
  }
  auto evaluation = cascade::evaluate(input.spec, *fit, *test, options.evaluate);
  if (!evaluation.ok()) return fail(evaluation.error());
  input.evaluation = *std::move(evaluation);
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
  std::printf("%s: %.1f %% fewer FLOPs at %.3f times the clicks of the best static chain%s\n",
              options.out.c_str(), 100 * input.evaluation.flops_saved, input.evaluation.reward_ratio,
              input.evaluation.reached ? "" : " (equal reward NOT reached)");
  return kExitOk;
}

}  // namespace

Action add_cascade_report(CLI::App& app) {
  auto options = std::make_shared<Options>();
  app.add_option("cascade", options->cascade_folder, "folder with cascade.json and replayed requests")
      ->required();
  app.add_option("--out,-o", options->out, "HTML file to write")->required();
  app.add_option("--json", options->json, "also write the figures to this JSON file");
  app.add_option("--seeds", options->evaluate.seeds, "reward models trained, each on other logs")
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
