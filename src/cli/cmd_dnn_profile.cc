// frugal dnn profile: what each vertex of a model costs on this host.
#include <CLI/CLI.hpp>
#include <memory>

#include "base/file.h"
#include "base/text.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/dnn_setup.h"
#include "dnn/plan/profile.h"

namespace frugal::cli {

Action add_dnn_profile(CLI::App& app) {
  struct Options {
    DnnModelOptions model;
    int repetitions = 20;
    std::string out;
  };
  auto options = std::make_shared<Options>();
  add_dnn_model_options(app, options->model);
  app.add_option("--repetitions", options->repetitions, "runs; medians are kept")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  app.add_option("-o,--out", options->out, "write the profile here; without it, it is printed");
  return [options]() -> int {
    const auto network = open_network(options->model);
    if (!network.ok()) return fail(network.error());
    const auto profile = dnn::measure_profile(**network, options->model.n_threads, options->repetitions);
    if (!profile.ok()) return fail(profile.error());
    const std::string json = dnn::profile_to_json((*network)->graph(), *profile);
    if (options->out.empty()) return print(json) ? kExitOk : kExitNoResource;
    if (const Status status = write_file_atomically(options->out, json); !status.ok())
      return fail(status.error());
    return print(strf("%s: %s a run, %zu vertices; written to %s\n", profile->model.c_str(),
                      human_seconds(profile->measurement.whole_seconds).c_str(),
                      profile->measurement.vertex_seconds.size(), options->out.c_str()))
               ? kExitOk
               : kExitNoResource;
  };
}

}  // namespace frugal::cli
