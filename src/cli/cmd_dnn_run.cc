// frugal dnn run: a model over device, edge and cloud: in this process behind emulated links, or over NATS.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <numeric>

#include "base/clock.h"
#include "base/file.h"
#include "base/text.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/dnn_nats.h"
#include "cli/dnn_setup.h"
#include "cli/llm_options.h"
#include "cli/meter_setup.h"
#include "dnn/link/coordinator.h"
#include "dnn/link/local.h"
#include "dnn/link/remote.h"
#include "dnn/plan/profile.h"
#include "dnn/plan/sample.h"

namespace frugal::cli {
namespace {

constexpr int kLongRun = 20;  // frames: then it pays to try a tiled plan against the best one without tiles

struct Options {
  DnnModelOptions model;
  DnnClusterOptions cluster;
  dnn::BusOptions bus;
  std::shared_ptr<MeterSetup> meter;
  std::shared_ptr<LedgerSetup> ledger;
  std::vector<std::string> tiers = {"edge", "cloud"};
  std::vector<std::string> inputs;
  std::string labels, out;
  int frames = 1, window = 0;
  bool verify = false, json = false, adapt = false, local = false;
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

// The cluster that frames run over: its way in, what planning needs, and what keeps both alive.
struct Way {
  std::shared_ptr<dnn::Mailbox> mailbox;  // NATS only
  std::shared_ptr<dnn::Hop> edge;
  DnnPlanning planning;
};

Result<Way> way_in_process(const Options& options, const std::shared_ptr<const dnn::Network>& network,
                           const dnn::Values& inputs) {
  Way way;
  FRUGAL_TRY(way.planning, open_planning(*network, options.model, options.cluster, inputs));
  const dnn::Cluster& cluster = way.planning.cluster;
  const auto runner = [&](int k) {
    return std::make_shared<dnn::TierRunner>(network, k, options.model.n_threads,
                                             options.cluster.slowdown[static_cast<size_t>(k)]);
  };
  const auto edge = runner(1);
  std::vector<std::shared_ptr<dnn::TierRunner>> peers;
  for (int i = 1; i < options.cluster.n_edge_workers; ++i) peers.push_back(runner(1));
  edge->set_peers(std::make_shared<dnn::LocalPeers>(peers, cluster.tiers[1].peer_latency_seconds,
                                                    cluster.tiers[1].peer_bytes_per_second));
  const auto cloud = std::make_shared<dnn::LocalHop>(runner(2), nullptr, cluster.links[1]);
  way.edge = std::make_shared<dnn::LocalHop>(edge, cloud, cluster.links[0]);
  return way;
}

Result<Way> way_over_nats(const Options& options, const dnn::Network& network, const dnn::Values& inputs) {
  Way way;
  dnn::BusOptions bus_options = options.bus;
  bus_options.name = "frugal dnn run";
  FRUGAL_TRY(std::shared_ptr<dnn::Bus> bus, dnn::Bus::connect(bus_options));
  way.mailbox = std::make_shared<dnn::Mailbox>(std::move(bus));
  FRUGAL_TRY_STATUS(way.mailbox->open(nullptr));
  std::vector<std::vector<int64_t>> shapes;
  if (!options.model.shapes.empty()) {
    for (const dnn::Vertex& vertex : network.graph().vertices) {
      if (vertex.kind == "Input")
        shapes.push_back(network.graph().tensors[static_cast<size_t>(vertex.outputs[0])].shape);
    }
  }
  FRUGAL_TRY(const dnn::ModelSource source, dnn::model_source(options.model.model, network, shapes));
  auto bar = std::make_shared<ProgressBar>("sending the model", "B", !options.json);
  const auto edge = std::make_shared<dnn::RemoteHop>(
      way.mailbox, source, 1, options.tiers, [bar](double done, double total) { bar->update(done, total); });
  FRUGAL_TRY(way.planning.cluster,
             survey_cluster(network, options.model.n_threads, options.cluster.slowdown[0], 3,
                            options.cluster.no_pack ? dnn::Values() : inputs, *edge));
  bar->finish();
  FRUGAL_TRY(way.planning.request.objective, dnn::parse_objective(options.cluster.objective));
  FRUGAL_TRY(way.planning.algorithm, dnn::parse_algorithm(options.cluster.algorithm));
  way.planning.request.keep_input_private = options.cluster.private_input;
  way.edge = edge;
  return way;
}

Result<dnn::Values> read_inputs(const Options& options, const dnn::Graph& graph) {
  dnn::Values inputs = dnn::sample_frame(graph, 1);
  size_t n_inputs = 0;
  for (const dnn::Vertex& vertex : graph.vertices) {
    if (vertex.kind != "Input") continue;
    const std::string path = n_inputs < options.inputs.size() ? options.inputs[n_inputs] : "";
    ++n_inputs;
    if (path.empty()) continue;
    for (const int t : vertex.outputs) {
      FRUGAL_TRY(inputs[t], read_input(graph.tensors[static_cast<size_t>(t)], path));
    }
  }
  if (options.inputs.size() > n_inputs) {
    return Error{ErrorCode::kInvalidArgument,
                 strf("%zu inputs given, the model has %zu", options.inputs.size(), n_inputs)};
  }
  return inputs;
}

Result<bool> equal_to_whole(const dnn::Network& network, int n_threads, const dnn::Values& inputs,
                            const dnn::Values& outputs) {
  FRUGAL_TRY(const std::unique_ptr<dnn::Part> whole, network.compile_whole(n_threads));
  std::vector<const dnn::HostTensor*> pointers;
  for (const int t : whole->inputs()) pointers.push_back(&inputs.at(t));
  std::vector<dnn::HostTensor> expected;
  FRUGAL_TRY_STATUS(whole->run(pointers, expected));
  bool equal = true;
  for (size_t i = 0; i < expected.size(); ++i)
    equal &= outputs.at(whole->outputs()[i]).bytes == expected[i].bytes;
  return equal;
}

// What all frames together gave.
struct Outcome {
  dnn::Values outputs;
  std::vector<double> seconds;  // of each, from input to output
  double wall_seconds = 0;
  int n_different = 0;
};

// The first frame also compiles; it is run but not timed.
Result<Outcome> run_frames(const Options& options, dnn::Coordinator& coordinator, const dnn::Values& inputs) {
  Outcome outcome;
  FRUGAL_TRY(outcome.outputs, coordinator.run_frame(inputs));
  Status fault;
  const auto take = [&](Result<dnn::Values> outputs, double seconds) {
    if (!outputs.ok()) {
      fault = outputs.error();
      return;
    }
    outcome.seconds.push_back(seconds);
    for (const auto& [t, tensor] : *outputs)
      outcome.n_different += tensor.bytes != outcome.outputs.at(t).bytes;
  };
  const double start = wall_seconds();
  if (options.window > 0) {
    dnn::FrameStream stream(
        coordinator, options.window,
        [&](size_t, Result<dnn::Values> outputs, double seconds) { take(std::move(outputs), seconds); });
    for (int frame = 0; frame < options.frames && !interrupted(); ++frame) stream.push(inputs);
    stream.finish();
  } else {
    for (int frame = 0; frame < options.frames && !interrupted() && fault.ok(); ++frame) {
      const double begin = wall_seconds();
      Result<dnn::Values> outputs = coordinator.run_frame(inputs);
      take(std::move(outputs), wall_seconds() - begin);
    }
  }
  outcome.wall_seconds = wall_seconds() - start;
  if (interrupted()) return Error{ErrorCode::kCancelled, "interrupted"};
  FRUGAL_TRY_STATUS(fault);
  return outcome;
}

// The frames' cost in this process: over NATS the tiers beyond the device meter themselves.
Usage write_usage(const Options& options, const dnn::Graph& graph, meter::PowerMeter& meter,
                  const meter::Snapshot& start, double cpu_start_s, const Outcome& outcome) {
  const double frames = static_cast<double>(outcome.seconds.size() + 1);  // the first is not timed
  Usage usage;
  for (const dnn::Vertex& vertex : graph.vertices) usage.flops += frames * vertex.flops;
  usage.cpu_seconds = process_cpu_seconds() - cpu_start_s;
  usage.wall_seconds = meter.snapshot().host.wall_s - start.host.wall_s;
  usage.bytes_held = peak_memory_bytes();
  const meter::Charge charge = meter.charge(start, usage);
  meter::LedgerEntry entry;
  entry.kind = "dnn";
  entry.name = options.bus.url.empty() ? "dnn run" : "dnn run, device of " + options.bus.url;
  entry.model = graph.name;
  entry.unit = "frame";
  entry.units = frames;
  entry.usage = usage;
  record(*options.ledger, meter, start, charge, entry);
  return usage;
}

int run(const Options& options) {
  const auto opened = open_meter(*options.meter);
  if (!opened.ok()) return fail(opened.error());
  const auto network = open_network(options.model);
  if (!network.ok()) return fail(network.error());
  const dnn::Graph& graph = (*network)->graph();
  std::vector<std::string> labels;
  if (!options.labels.empty()) {
    const auto text = read_file(options.labels, size_t{16} << 20);
    if (!text.ok()) return fail(text.error());
    labels = split(*text, '\n');
  }
  const auto inputs = read_inputs(options, graph);
  if (!inputs.ok()) return fail(inputs.error());
  auto way = options.bus.url.empty() ? way_in_process(options, *network, *inputs)
                                     : way_over_nats(options, **network, *inputs);
  if (!way.ok()) return fail(way.error());
  const DnnPlanning& planning = way->planning;
  const auto plan = dnn::make_plan(graph, planning.cluster, planning.request, planning.algorithm);
  if (!plan.ok()) return fail(plan.error());
  if (way->mailbox) {
    const std::string key = strf("plan.%016lx", graph.model_hash);
    (void)way->mailbox->bus().put(key,
                                  dnn::plan_to_json(graph, planning.cluster, *plan));  // for others to see
  }
  dnn::CoordinatorOptions coordinator_options;
  coordinator_options.request = planning.request;
  coordinator_options.algorithm = planning.algorithm;
  coordinator_options.adapt = options.adapt;
  const auto device =
      std::make_shared<dnn::TierRunner>(*network, 0, options.model.n_threads, options.cluster.slowdown[0]);
  dnn::Coordinator coordinator(device, way->edge, planning.cluster, coordinator_options);
  if (const Status status = coordinator.set_plan(plan->tier, plan->tiled_runs); !status.ok())
    return fail(status.error());
  keep_freed_memory();
  if (!plan->tiled_runs.empty() && options.frames >= kLongRun) {
    dnn::PlanRequest whole = planning.request;
    whole.least_tile_gain = 1;
    const auto without = dnn::make_plan(graph, planning.cluster, whole, planning.algorithm);
    if (!without.ok()) return fail(without.error());
    const auto best = coordinator.audition(std::array{*plan, *without}, *inputs);
    if (!best.ok()) return fail(best.error());
  }
  install_interrupt_handler();
  meter::PowerMeter& meter = **opened;
  const meter::Snapshot start = meter.snapshot();
  const double cpu_start_s = process_cpu_seconds();
  auto outcome = run_frames(options, coordinator, *inputs);
  if (!outcome.ok()) return fail(outcome.error());
  const Usage usage = write_usage(options, graph, meter, start, cpu_start_s, *outcome);
  bool equal = outcome->n_different == 0;
  if (options.verify) {
    const auto same = equal_to_whole(**network, options.model.n_threads, *inputs, outcome->outputs);
    if (!same.ok()) return fail(same.error());
    equal = equal && *same;
  }
  if (!options.out.empty()) {
    std::string data;
    for (const auto& [t, tensor] : outcome->outputs) {
      data.append(reinterpret_cast<const char*>(tensor.bytes.data()), tensor.bytes.size());
    }
    if (const Status status = write_file_atomically(options.out, data); !status.ok())
      return fail(status.error());
  }
  std::vector<double>& seconds = outcome->seconds;
  std::sort(seconds.begin(), seconds.end());
  const double median = seconds[seconds.size() / 2];
  std::string text;
  if (options.json) {
    nlohmann::ordered_json root = {
        {"model", graph.name},
        {"frames", options.frames},
        {"seconds_predicted", plan->seconds},
        {"seconds_median", median},
        {"frames_per_second", static_cast<double>(options.frames) / outcome->wall_seconds},
        {"tiers_answering", coordinator.n_live_tiers()},
        {"replans", coordinator.n_replans()},
        {"retries", coordinator.n_retries()},
        {"energy_j_per_frame", usage.energy_j.known()
                                   ? nlohmann::ordered_json(usage.energy_j.value / (options.frames + 1))
                                   : nullptr},
        {"energy_provenance", provenance_name(usage.energy_j.provenance)},
        {"up_bytes", coordinator.last_cost().up_bytes},
        {"tier_seconds", coordinator.last_cost().tier_seconds}};
    if (options.verify) root["equal_to_whole"] = equal;
    text = root.dump(1) + "\n";
  } else {
    for (const auto& [t, tensor] : outcome->outputs) {
      text += strf("%s\n%s", graph.tensors[static_cast<size_t>(t)].name.c_str(),
                   top_five(tensor, labels).c_str());
    }
    text += strf("%s a frame (median of %d; %s predicted)%s\n", human_seconds(median).c_str(), options.frames,
                 human_seconds(plan->seconds).c_str(),
                 !options.verify ? ""
                 : equal         ? ", every bit as the uncut model gives"
                                 : ", NOT equal to the uncut model");
    text += strf("%s a frame here\n",
                 estimate_text(usage.energy_j.scaled(1.0 / (options.frames + 1)), "J").c_str());
    if (options.window > 0) {
      text += strf("%.2f frames a second, up to %d on their way\n",
                   static_cast<double>(options.frames) / outcome->wall_seconds, options.window);
    }
    if (coordinator.n_live_tiers() < planning.cluster.tiers.size()) {
      text += strf("only %zu of %zu tiers answer now\n", coordinator.n_live_tiers(),
                   planning.cluster.tiers.size());
    }
  }
  if (!print(text)) return kExitNoResource;
  return equal ? kExitOk : kExitFailure;
}

}  // namespace

Action add_dnn_run(CLI::App& app) {
  auto options = std::make_shared<Options>();
  add_dnn_model_options(app, options->model);
  add_dnn_cluster_options(app, options->cluster);
  add_dnn_nats_options(app, options->bus, "run over workers that have joined this NATS server");
  auto* local =
      app.add_flag("--local", options->local, "all tiers in this process, links emulated (the default)");
  app.get_option("--nats")->excludes(local);
  app.add_option("--tiers", options->tiers, "tiers to use over NATS, nearest first")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("-i,--input", options->inputs,
                 "a JPEG, PNG or PPM picture, or raw values, for each input; without it, a drawn one");
  app.add_option("--labels", options->labels, "names of the classes, one a line");
  app.add_option("-o,--out", options->out, "write the raw values of all outputs here");
  app.add_option("--frames", options->frames, "frames to run and time")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  app.add_option("--window", options->window, "throughput mode: so many frames on their way at a time")
      ->check(CLI::Range(0, 64))
      ->capture_default_str();
  app.add_flag("--adapt", options->adapt, "learn bandwidth and load from the frames, and plan again by that");
  app.add_flag("--verify", options->verify, "compare with the uncut model, bit for bit");
  app.add_flag("--json", options->json, "print figures as JSON");
  options->meter = add_meter_options(app);
  options->ledger = add_ledger_options(app);
  app.footer(
      "Examples:\n  frugal dnn run resnet18.onnx --input photo.jpg --labels labels.txt\n"
      "  frugal dnn run vgg16.onnx --edge-workers 4 --near wifi --far 4g --verify\n"
      "  frugal dnn run resnet18.onnx --input photo.jpg --nats nats://10.0.0.2:4222 --frames 100 --window 4");
  return [options] { return run(*options); };
}

}  // namespace frugal::cli
