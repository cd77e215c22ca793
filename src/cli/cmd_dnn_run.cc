// frugal dnn run: a model over device, edge and cloud; all three in this process, behind emulated links.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>

#include "base/clock.h"
#include "base/file.h"
#include "base/text.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/dnn_setup.h"
#include "dnn/link/coordinator.h"

namespace frugal::cli {
namespace {

struct Options {
  DnnModelOptions model;
  DnnClusterOptions cluster;
  std::vector<std::string> inputs;
  std::string labels, out;
  int frames = 1;
  bool verify = false, json = false;
};

// The five largest values of an output and their names.
std::string top_five(const dnn::HostTensor& tensor, const std::vector<std::string>& labels) {
  if (tensor.type != "f32") return "";
  std::vector<float> values(tensor.bytes.size() / 4);
  std::memcpy(values.data(), tensor.bytes.data(), values.size() * 4);
  std::vector<size_t> order(values.size());
  std::iota(order.begin(), order.end(), size_t{0});
  const size_t n = std::min<size_t>(5, order.size());
  std::partial_sort(order.begin(), order.begin() + static_cast<long>(n), order.end(),
                    [&](size_t a, size_t b) { return values[a] > values[b]; });
  std::string text;
  for (size_t i = 0; i < n; ++i) {
    text += strf("  %10.5f  %s\n", static_cast<double>(values[order[i]]),
                 order[i] < labels.size() ? labels[order[i]].c_str() : strf("class %zu", order[i]).c_str());
  }
  return text;
}

int run(const Options& options) {
  const auto network = open_network(options.model);
  if (!network.ok()) return fail(network.error());
  const dnn::Graph& graph = (*network)->graph();
  std::vector<std::string> labels;
  if (!options.labels.empty()) {
    const auto text = read_file(options.labels, size_t{16} << 20);
    if (!text.ok()) return fail(text.error());
    labels = split(*text, '\n');
  }
  dnn::Values inputs;
  size_t n_inputs = 0;
  for (const dnn::Vertex& vertex : graph.vertices) {
    if (vertex.kind != "Input") continue;
    const std::string path = n_inputs < options.inputs.size() ? options.inputs[n_inputs] : "";
    ++n_inputs;
    for (const int t : vertex.outputs) {
      auto value = read_input(graph.tensors[static_cast<size_t>(t)], path);
      if (!value.ok()) return fail(value.error());
      inputs[t] = *std::move(value);
    }
  }
  if (options.inputs.size() > n_inputs) {
    return fail({ErrorCode::kInvalidArgument,
                 strf("%zu inputs given, the model has %zu", options.inputs.size(), n_inputs)});
  }
  const auto planning = open_planning(**network, options.model, options.cluster);
  if (!planning.ok()) return fail(planning.error());
  const auto plan = dnn::make_plan(graph, planning->cluster, planning->request, planning->algorithm);
  if (!plan.ok()) return fail(plan.error());
  const auto runner = [&](int k) {
    return std::make_shared<dnn::TierRunner>(*network, k, options.model.n_threads,
                                             options.cluster.slowdown[static_cast<size_t>(k)]);
  };
  const auto cloud = std::make_shared<dnn::LocalHop>(runner(2), nullptr, planning->cluster.links[1]);
  const auto edge = std::make_shared<dnn::LocalHop>(runner(1), cloud, planning->cluster.links[0]);
  dnn::CoordinatorOptions coordinator_options;
  coordinator_options.request = planning->request;
  dnn::Coordinator coordinator(runner(0), edge, planning->cluster, coordinator_options);
  if (const Status status = coordinator.set_plan(plan->tier); !status.ok()) return fail(status.error());
  dnn::Values outputs;
  std::vector<double> seconds;
  install_interrupt_handler();
  // The first frame also compiles; it is run but not timed.
  for (int frame = 0; frame <= options.frames; ++frame) {
    if (interrupted()) return kExitInterrupted;
    const double start = wall_seconds();
    auto result = coordinator.run_frame(inputs);
    if (!result.ok()) return fail(result.error());
    if (frame > 0) seconds.push_back(wall_seconds() - start);
    outputs = *std::move(result);
  }
  std::sort(seconds.begin(), seconds.end());
  bool equal = true;
  if (options.verify) {
    auto whole = (*network)->compile_whole(options.model.n_threads);
    if (!whole.ok()) return fail(whole.error());
    std::vector<const dnn::HostTensor*> pointers;
    for (const int t : (*whole)->inputs()) pointers.push_back(&inputs.at(t));
    std::vector<dnn::HostTensor> expected;
    if (const Status status = (*whole)->run(pointers, expected); !status.ok()) return fail(status.error());
    for (size_t i = 0; i < expected.size(); ++i)
      equal &= outputs.at((*whole)->outputs()[i]).bytes == expected[i].bytes;
  }
  if (!options.out.empty()) {
    std::string data;
    for (const auto& [t, tensor] : outputs) {
      data.append(reinterpret_cast<const char*>(tensor.bytes.data()), tensor.bytes.size());
    }
    if (const Status status = write_file_atomically(options.out, data); !status.ok())
      return fail(status.error());
  }
  const double median = seconds[seconds.size() / 2];
  std::string text;
  if (options.json) {
    nlohmann::ordered_json root = {{"model", graph.name},
                                   {"frames", options.frames},
                                   {"seconds_predicted", plan->seconds},
                                   {"seconds_median", median},
                                   {"up_bytes", coordinator.last_cost().up_bytes},
                                   {"tier_seconds", coordinator.last_cost().tier_seconds}};
    if (options.verify) root["equal_to_whole"] = equal;
    text = root.dump(1) + "\n";
  } else {
    for (const auto& [t, tensor] : outputs) {
      text += strf("%s\n%s", graph.tensors[static_cast<size_t>(t)].name.c_str(),
                   top_five(tensor, labels).c_str());
    }
    text += strf("%s a frame (median of %d; %s predicted)%s\n", human_seconds(median).c_str(), options.frames,
                 human_seconds(plan->seconds).c_str(),
                 !options.verify ? ""
                 : equal         ? ", every bit as the uncut model gives"
                                 : ", NOT equal to the uncut model");
  }
  if (!print(text)) return kExitNoResource;
  return equal ? kExitOk : kExitFailure;
}

}  // namespace

Action add_dnn_run(CLI::App& app) {
  auto options = std::make_shared<Options>();
  add_dnn_model_options(app, options->model);
  add_dnn_cluster_options(app, options->cluster);
  app.add_option("-i,--input", options->inputs,
                 "a .ppm image or raw values for each input; without it, a fixed pattern");
  app.add_option("--labels", options->labels, "names of the classes, one a line");
  app.add_option("-o,--out", options->out, "write the raw values of all outputs here");
  app.add_option("--frames", options->frames, "frames to run and time")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  app.add_flag("--verify", options->verify, "compare with the uncut model, bit for bit");
  app.add_flag("--json", options->json, "print figures as JSON");
  return [options] { return run(*options); };
}

}  // namespace frugal::cli
