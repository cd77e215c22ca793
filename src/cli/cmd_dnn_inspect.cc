// frugal dnn inspect: the vertices of a model, and a drawing of them.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/text.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/dnn_setup.h"
#include "dnn/graph/svg.h"

namespace frugal::cli {
namespace {

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text;
  for (const int64_t size : shape) text += (text.empty() ? "" : "x") + std::to_string(size);
  return text.empty() ? "scalar" : text;
}

struct Options {
  DnnModelOptions model;
  std::string svg;
  bool json = false;
};

int inspect(const Options& options) {
  const auto network = open_network(options.model);
  if (!network.ok()) return fail(network.error());
  const dnn::Graph& graph = (*network)->graph();
  if (!options.svg.empty()) {
    if (const Status status = write_file_atomically(options.svg, dnn::graph_svg(graph)); !status.ok()) {
      return fail(status.error());
    }
  }
  double flops = 0;
  uint64_t weights = 0;
  nlohmann::ordered_json rows = nlohmann::ordered_json::array();
  std::string text;
  for (const dnn::Vertex& vertex : graph.vertices) {
    flops += vertex.flops;
    weights += vertex.weight_bytes;
    std::string out, ops;
    for (const int t : vertex.outputs) {
      out += (out.empty() ? "" : " ") + shape_text(graph.tensors[static_cast<size_t>(t)].shape);
    }
    for (const std::string& op : vertex.ops) ops += (ops.empty() ? "" : "+") + op;
    rows.push_back({{"name", vertex.name},
                    {"kind", vertex.kind},
                    {"ops", vertex.ops},
                    {"flops", vertex.flops},
                    {"weight_bytes", vertex.weight_bytes},
                    {"tileable", !vertex.windows.empty()}});
    text += strf("%-28.28s %9s %10s  %-18s %s%s\n", vertex.name.c_str(), human_count(vertex.flops).c_str(),
                 human_bytes(static_cast<double>(vertex.weight_bytes)).c_str(), out.c_str(), ops.c_str(),
                 vertex.windows.empty() ? "" : "  [tiles]");
  }
  if (options.json) {
    const nlohmann::ordered_json root = {{"model", graph.name},
                                         {"model_hash", strf("%016lx", graph.model_hash)},
                                         {"flops", flops},
                                         {"weight_bytes", weights},
                                         {"vertices", rows}};
    return print(root.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n") ? kExitOk
                                                                                            : kExitNoResource;
  }
  text += strf("%s: %zu vertices, %s FLOP, %s of weights\n", graph.name.c_str(), graph.vertices.size(),
               human_count(flops).c_str(), human_bytes(static_cast<double>(weights)).c_str());
  return print(text) ? kExitOk : kExitNoResource;
}

}  // namespace

Action add_dnn_inspect(CLI::App& app) {
  auto options = std::make_shared<Options>();
  add_dnn_model_options(app, options->model);
  app.add_option("--svg", options->svg, "draw the graph into this file");
  app.add_flag("--json", options->json, "print the vertices as JSON");
  return [options] { return inspect(*options); };
}

}  // namespace frugal::cli
