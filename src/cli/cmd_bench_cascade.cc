// frugal bench cascade: the figures of the cascade plane, each with how it was obtained.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "cli/bench_cascade.h"
#include "cli/bench_tools.h"
#include "cli/commands.h"
#include "cli/console.h"

namespace frugal::cli {
namespace {

struct Options {
  CascadeBench bench;
  std::string only, out;
  bool json = false;
};

constexpr std::pair<const char*, Status (*)(CascadeBench&)> kParts[] = {
    {"control", bench_cascade_control}, {"service", bench_cascade_service},
    {"share", bench_cascade_share},     {"ablation", bench_cascade_ablation},
    {"scale", bench_cascade_scale},     {"quality", bench_cascade_quality}};

int bench(Options options) {
  options.bench.say = [](const std::string& what) { std::fprintf(stderr, "frugal: %s\n", what.c_str()); };
  for (const auto& [name, run] : kParts) {
    if (!options.only.empty() && options.only != name) continue;
    if (const Status status = run(options.bench); !status.ok()) return fail(status.error());
  }
  BenchContext context;
  context.bench = "cascade";
  context.command = this_command_line();
  return report_bench(context, options.bench.rows, options.out, options.json);
}

}  // namespace

Action add_bench_cascade(CLI::App& app) {
  auto options = std::make_shared<Options>();
  app.add_option("--data", options->bench.data,
                 "folder with carbon/*.csv for the carbon year; left out when it is not there")
      ->capture_default_str();
  app.add_option("--cascade", options->bench.cascade_folders,
                 "folders of trained cascades (scripts/train_cascade.py), for flops_saved and joules_saved");
  std::vector<std::string> names;
  for (const auto& [name, part] : kParts) names.emplace_back(name);
  app.add_option("--only", options->only, "one part: control, service, share, ablation, scale or quality")
      ->check(CLI::IsMember(names));
  app.add_flag("--quick", options->bench.quick, "a quarter of the day, fewer rounds");
  app.add_flag("--json", options->json, "print JSON");
  app.add_option("--out", options->out, "also write the rows to this file, for docs/benchmarks.md");
  return [options] { return bench(*options); };
}

}  // namespace frugal::cli
