// frugal dnn profile: what each vertex of a model costs on this host, measured or predicted from other
// models.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <memory>

#include "base/file.h"
#include "base/text.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/dnn_setup.h"
#include "dnn/plan/profile.h"
#include "dnn/plan/regression.h"
#include "dnn/plan/sample.h"

namespace frugal::cli {
namespace {

// From profiles of other models on this host, without running this one.
Result<dnn::Profile> predict(const dnn::Graph& graph, const std::vector<std::string>& paths, int n_threads) {
  std::vector<dnn::TimeSample> samples;
  for (const std::string& path : paths) {
    FRUGAL_TRY(const std::string text, read_file(path, size_t{64} << 20));
    auto more = dnn::samples_from_profile(text);
    if (!more.ok()) return std::move(more).error().in(path);
    samples.insert(samples.end(), more->begin(), more->end());
  }
  FRUGAL_TRY(const dnn::TimeModel model, dnn::TimeModel::fit(samples));
  return dnn::Profile{graph.model_hash, graph.name, n_threads, true, model.predict(graph), {}};
}

}  // namespace

Action add_dnn_profile(CLI::App& app) {
  struct Options {
    DnnModelOptions model;
    int repetitions = 20;
    std::vector<std::string> predict_from;
    std::string out;
  };
  auto options = std::make_shared<Options>();
  add_dnn_model_options(app, options->model);
  app.add_option("--repetitions", options->repetitions, "runs; medians are kept")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  app.add_option("--predict-from", options->predict_from,
                 "profiles of other models on this host: times are predicted from them, nothing is run");
  app.add_option("-o,--out", options->out, "write the profile here; without it, it is printed");
  return [options]() -> int {
    const auto network = open_network(options->model);
    if (!network.ok()) return fail(network.error());
    auto profile = options->predict_from.empty()
                       ? dnn::measure_profile(**network, options->model.n_threads, options->repetitions)
                       : predict((*network)->graph(), options->predict_from, options->model.n_threads);
    if (profile.ok() && !profile->predicted) {
      const Status tiles = dnn::measure_tiles(**network, std::min(5, options->repetitions), *profile);
      if (!tiles.ok()) return fail(tiles.error());
      const Status packing =
          dnn::measure_packing(**network, dnn::sample_frame((*network)->graph(), 1), 3, *profile);
      if (!packing.ok()) return fail(packing.error());
    }
    if (!profile.ok()) return fail(profile.error());
    const std::string json = dnn::profile_to_json((*network)->graph(), *profile);
    if (options->out.empty()) return print(json) ? kExitOk : kExitNoResource;
    if (const Status status = write_file_atomically(options->out, json); !status.ok())
      return fail(status.error());
    return print(strf("%s: %s a run%s, %zu vertices; written to %s\n", profile->model.c_str(),
                      human_seconds(profile->measurement.whole_seconds).c_str(),
                      profile->predicted ? " predicted" : "", profile->measurement.vertex_seconds.size(),
                      options->out.c_str()))
               ? kExitOk
               : kExitNoResource;
  };
}

}  // namespace frugal::cli
