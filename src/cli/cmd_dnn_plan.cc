// frugal dnn plan: where each part of a model should run, and why.
#include <CLI/CLI.hpp>
#include <memory>

#include "base/file.h"
#include "base/text.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/dnn_setup.h"
#include "dnn/graph/svg.h"
#include "dnn/plan/profile.h"

namespace frugal::cli {
namespace {

struct Options {
  DnnModelOptions model;
  DnnClusterOptions cluster;
  std::string svg;
  bool json = false, compare = false;
};

int plan(const Options& options) {
  const auto network = open_network(options.model);
  if (!network.ok()) return fail(network.error());
  const dnn::Graph& graph = (*network)->graph();
  const auto planning = open_planning(**network, options.model, options.cluster);
  if (!planning.ok()) return fail(planning.error());
  const auto plan = dnn::make_plan(graph, planning->cluster, planning->request, planning->algorithm);
  if (!plan.ok()) return fail(plan.error());
  if (!options.svg.empty()) {
    if (const Status status = write_file_atomically(options.svg, dnn::graph_svg(graph, plan->tier));
        !status.ok()) {
      return fail(status.error());
    }
  }
  if (options.json)
    return print(dnn::plan_to_json(graph, planning->cluster, *plan)) ? kExitOk : kExitNoResource;
  std::string text = dnn::explain_plan(graph, planning->cluster, planning->request, *plan);
  if (options.compare) {
    for (const dnn::Algorithm algorithm : dnn::all_algorithms()) {
      const auto other = dnn::make_plan(graph, planning->cluster, planning->request, algorithm);
      if (!other.ok()) continue;
      text += strf("%-13s %10s %10s backbone, objective %.6g\n", other->algorithm.c_str(),
                   human_seconds(other->seconds).c_str(), human_bytes(other->backbone_bytes).c_str(),
                   other->objective);
    }
  }
  return print(text) ? kExitOk : kExitNoResource;
}

}  // namespace

Action add_dnn_plan(CLI::App& app) {
  auto options = std::make_shared<Options>();
  add_dnn_model_options(app, options->model);
  add_dnn_cluster_options(app, options->cluster);
  app.add_option("--svg", options->svg, "draw the plan into this file");
  app.add_flag("--compare", options->compare, "also list what every other algorithm would do");
  app.add_flag("--json", options->json, "print the plan as JSON");
  return [options] { return plan(*options); };
}

}  // namespace frugal::cli
