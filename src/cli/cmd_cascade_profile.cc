// frugal cascade profile: what every chain takes on this machine, and where FLOPs say something else.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/text.h"
#include "cascade/cost.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/meter_setup.h"

namespace frugal::cli {
namespace {

struct Options {
  std::string cascade_folder, out, split = "fit";
  bool json = false;
  cascade::CostMeasureOptions measure;
  std::shared_ptr<MeterSetup> meter;
};

nlohmann::json ranks_json(const cascade::CascadeSpec& spec, const cascade::RankComparison& ranks) {
  nlohmann::json json = {
      {"spearman", ranks.spearman}, {"swapped_pairs", ranks.swapped}, {"pairs", ranks.pairs}};
  for (const auto& pair : ranks.worst) {
    json["furthest"].push_back({{"fewer_flops", cascade::chain_name(spec, pair.cheap)},
                                {"more_flops", cascade::chain_name(spec, pair.dear)},
                                {"flops_ratio", pair.flops_ratio},
                                {"cpu_ratio", pair.cpu_ratio}});
  }
  return json;
}

int profile(Options options) {
  const auto spec = cascade::load_cascade(options.cascade_folder);
  if (!spec.ok()) return fail(spec.error());
  auto meter = open_meter(*options.meter);
  if (!meter.ok()) return fail(meter.error());
  options.measure.progress = [](const std::string& what) {
    std::fprintf(stderr, "frugal: %s\n", what.c_str());
  };
  const auto costs =
      cascade::measure_costs(options.cascade_folder, options.split, *spec, **meter, options.measure);
  if (!costs.ok()) return fail(costs.error());
  const std::string out = options.out.empty() ? options.cascade_folder + "/costs.json" : options.out;
  if (const Status saved = cascade::save_costs(out, *costs); !saved.ok()) return fail(saved.error());
  std::vector<double> flops;
  for (int j = 0; j < spec->n_chains(); ++j) flops.push_back(cascade::chain_flops(*spec, j));
  nlohmann::json json;
  std::string table;
  for (size_t b = 0; b < costs->batches.size(); ++b) {
    const auto cpu_s = costs->cpu_s(*spec, b), latency_s = costs->latency_s(*spec, b);
    const auto ranks = cascade::compare_ranks(flops, cpu_s, 5);
    const auto [least, most] = std::minmax_element(cpu_s.begin(), cpu_s.end());
    json["batches"].push_back({{"requests", costs->batches[b]},
                               {"cpu_s", cpu_s},
                               {"latency_s", latency_s},
                               {"ranks", ranks_json(*spec, ranks)}});
    table += strf("%8d %12.1f %12.1f %12.1f %10.4f %8d of %d\n", costs->batches[b], 1e6 * *least, 1e6 * *most,
                  1e6 * *std::max_element(latency_s.begin(), latency_s.end()), ranks.spearman, ranks.swapped,
                  ranks.pairs);
    if (b + 1 < costs->batches.size()) continue;
    table += "\nFewer FLOPs, and yet slower (requests batched):\n";
    for (const auto& pair : ranks.worst) {
      table += strf("  %-46s %.2f times the FLOPs and %.2f times the time of\n    %s\n",
                    cascade::chain_name(*spec, pair.cheap).c_str(), pair.flops_ratio, pair.cpu_ratio,
                    cascade::chain_name(*spec, pair.dear).c_str());
    }
  }
  if (options.json) {
    json["error"] = costs->error;
    json["flops"] = flops;
    std::printf("%s\n", json.dump(1).c_str());
    return kExitOk;
  }
  std::printf("%d chains, written to %s; a chain as a whole differs from the sum of its stages by %.1f %%\n",
              spec->n_chains(), out.c_str(), 100 * costs->error);
  std::printf("joules of a processor second: %s\n\n", estimate_text(costs->joules_per_cpu_s, "J").c_str());
  std::printf("%8s %12s %12s %12s %10s %s\n%s", "requests", "least us", "most us", "latency us", "rank corr.",
              "pairs that FLOPs rank otherwise", table.c_str());
  return kExitOk;
}

}  // namespace

Action add_cascade_profile(CLI::App& app) {
  auto options = std::make_shared<Options>();
  app.add_option("cascade", options->cascade_folder, "folder that scripts/train_cascade.py wrote")
      ->required();
  app.add_option("--out,-o", options->out, "file to write (default: costs.json in the cascade's folder)");
  app.add_option("--batches", options->measure.batches, "requests that wait together, ascending")
      ->capture_default_str();
  app.add_option("--rounds", options->measure.rounds, "rounds; medians are kept")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--threads,-t", options->measure.n_threads, "threads of a stage's model")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  app.add_flag("--json", options->json, "print JSON");
  options->meter = add_meter_options(app);
  return [options] { return profile(*options); };
}

}  // namespace frugal::cli
