// frugal dnn testbed: five networks over four kinds of link, ours beside the baselines, with real processes,
// real NATS and emulated hosts; then frames under faults.
#include <unistd.h>
#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/clock.h"
#include "base/rng.h"
#include "base/text.h"
#include "cli/bench_report.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/dnn_nats.h"
#include "cli/dnn_setup.h"
#include "cli/testbed_hosts.h"
#include "cli/testbed_report.h"
#include "dnn/link/coordinator.h"
#include "dnn/plan/profile.h"
#include "dnn/plan/regression.h"
#include "dnn/plan/synthetic.h"

namespace frugal::cli {
namespace {

struct Options {
  TestbedOptions hosts;
  std::string folder, near = "wifi", out, svg;
  std::vector<std::string> models = {"alexnet", "vgg16", "resnet18", "darknet53", "inception_v4"};
  std::vector<std::string> links = {"wifi", "4g", "5g", "fibre"};
  int frames = 3, chaos_frames = 500;
  bool json = false, loopback = false;
};

std::string cache_folder(const char* name) {
  if (const char* cache = std::getenv("FRUGAL_CACHE"); cache != nullptr && *cache != 0)
    return std::string(cache) + "/" + name;
  const char* home = std::getenv("HOME");
  return std::string(home != nullptr ? home : ".") + "/.cache/frugal/" + name;
}

dnn::Values random_input(const dnn::Graph& graph, uint64_t seed) {
  const dnn::Tensor& tensor = graph.tensors[static_cast<size_t>(graph.vertices[0].outputs[0])];
  dnn::HostTensor value{tensor.type, tensor.shape, std::vector<std::byte>(tensor.bytes)};
  Rng rng(seed);
  for (size_t i = 0; i < tensor.bytes / 4; ++i) {
    const auto x = static_cast<float>(rng.normal());
    std::memcpy(value.bytes.data() + 4 * i, &x, 4);
  }
  return {{graph.vertices[0].outputs[0], std::move(value)}};
}

Result<dnn::Values> run_whole(const dnn::Network& network, const dnn::Values& inputs) {
  FRUGAL_TRY(const std::unique_ptr<dnn::Part> whole, network.compile_whole(1));
  std::vector<const dnn::HostTensor*> pointers;
  for (const int t : whole->inputs()) pointers.push_back(&inputs.at(t));
  std::vector<dnn::HostTensor> outputs;
  FRUGAL_TRY_STATUS(whole->run(pointers, outputs));
  dnn::Values values;
  for (size_t i = 0; i < outputs.size(); ++i) values[whole->outputs()[i]] = std::move(outputs[i]);
  return values;
}

int n_different(const dnn::Values& a, const dnn::Values& b) {
  int n = a.size() != b.size();
  for (const auto& [t, tensor] : a) n += !b.count(t) || b.at(t).bytes != tensor.bytes;
  return n > 0;
}

// One model on the testbed: its way to the workers, and what it costs here.
class Bench {
 public:
  static Result<std::unique_ptr<Bench>> open(const Options& options, const std::string& path,
                                             TestbedHosts& hosts) {
    auto bench = std::make_unique<Bench>();
    FRUGAL_TRY(bench->network, dnn::Network::load(path));
    FRUGAL_TRY(const dnn::ModelSource source, dnn::model_source(path, *bench->network));
    // The workers find the weights in their cache: sending gigabytes over an emulated 4G line measures
    // nothing new.
    std::error_code ignored;
    std::filesystem::create_symlink(std::filesystem::absolute(path),
                                    hosts.weights_folder() + strf("/%016lx.onnx", source.hash), ignored);
    dnn::BusOptions bus_options;
    bus_options.url = hosts.url();
    bus_options.name = "frugal dnn testbed";
    FRUGAL_TRY(std::shared_ptr<dnn::Bus> bus, dnn::Bus::connect(bus_options));
    bench->mailbox = std::make_shared<dnn::Mailbox>(std::move(bus));
    FRUGAL_TRY_STATUS(bench->mailbox->open(nullptr));
    bench->edge = std::make_shared<dnn::RemoteHop>(bench->mailbox, source, 1,
                                                   std::vector<std::string>{"edge", "cloud"});
    FRUGAL_TRY_STATUS(bench->await(options));
    FRUGAL_TRY(bench->profile, dnn::measure_profile(*bench->network, 1, 9));
    bench->input = random_input(bench->network->graph(), 1);
    FRUGAL_TRY(bench->expected, run_whole(*bench->network, bench->input));
    bench->device = std::make_shared<dnn::TierRunner>(bench->network, 0, 1, options.hosts.slowdown[0]);
    return bench;
  }

  // The cluster with links as probed now. Times are this host's, by the emulated hosts' slowdowns: it is all
  // of them.
  Result<dnn::Cluster> cluster(const Options& options, const dnn::Link& near, const dnn::Link& far) {
    dnn::Cluster cluster = dnn::scaled_cluster(profile, options.hosts.slowdown, near, far);
    FRUGAL_TRY(const nlohmann::json rows, edge->survey(0));
    FRUGAL_TRY(const dnn::LinkProbe probe, edge->probe());
    const auto set = [](dnn::Link& link, double latency, double up, double down) {
      link.latency_seconds = latency;
      link.up_bytes_per_second = up;
      link.down_bytes_per_second = down;
    };
    set(cluster.links[0], probe.latency_seconds, probe.up_bytes_per_second, probe.down_bytes_per_second);
    try {
      const nlohmann::json& link = rows.at(0).at("link");
      set(cluster.links[1], link.at("latency_seconds").get<double>(),
          link.at("up_bytes_per_second").get<double>(), link.at("down_bytes_per_second").get<double>());
      if (rows.at(0).at("worker_speeds").size() > 1) {
        cluster.tiers[1].worker_speeds = rows.at(0).at("worker_speeds").get<std::vector<double>>();
        cluster.tiers[1].peer_latency_seconds = rows.at(0).at("peer_latency_seconds").get<double>();
        cluster.tiers[1].peer_bytes_per_second = rows.at(0).at("peer_bytes_per_second").get<double>();
      }
    } catch (const nlohmann::json::exception&) {
      return Error{ErrorCode::kUnavailable, "the edge does not see the cloud, or other workers"};
    }
    return cluster;
  }

  std::shared_ptr<const dnn::Network> network;
  std::shared_ptr<dnn::Mailbox> mailbox;
  std::shared_ptr<dnn::RemoteHop> edge;
  std::shared_ptr<dnn::TierRunner> device;
  dnn::Profile profile;
  dnn::Values input, expected;

 private:
  // Processes start and leaf nodes join within some seconds.
  Status await(const Options& options) {
    Status last;
    for (int i = 0; i < 60; ++i) {
      last = edge->connect();
      if (last.ok()) {
        const auto rows = edge->survey(0);
        if (rows.ok() && rows->size() == 2 &&
            (*rows)[0].value("worker_speeds", nlohmann::json::array()).size() ==
                static_cast<size_t>(options.hosts.n_edge_workers))
          return {};
        last =
            rows.ok() ? Status(ErrorCode::kUnavailable, "not all workers have joined") : Status(rows.error());
      }
      if (interrupted()) return {ErrorCode::kCancelled, "interrupted"};
      std::this_thread::sleep_for(std::chrono::milliseconds(500));
    }
    return last;
  }
};

// Frames by one plan: a frame to compile and warm up, then those that count.
Result<PlanResult> measure(Bench& bench, const dnn::Cluster& cluster, const dnn::Plan& plan, int n_frames) {
  dnn::CoordinatorOptions options;
  options.retry_seconds = 3600;
  dnn::Coordinator coordinator(bench.device, bench.edge, cluster, options);
  FRUGAL_TRY_STATUS(coordinator.set_plan(plan.tier, plan.tiled_runs));
  PlanResult result;
  result.algorithm = plan.algorithm;
  result.predicted_seconds = plan.seconds;
  result.predicted_backbone_bytes = plan.backbone_bytes;
  for (int i = 0; i <= n_frames; ++i) {
    if (interrupted()) return Error{ErrorCode::kCancelled, "interrupted"};
    const double start = wall_seconds();
    dnn::FrameCost cost;
    FRUGAL_TRY(const dnn::Values outputs, coordinator.run_frame(bench.input, &cost));
    if (i > 0) result.seconds.push_back(wall_seconds() - start);
    result.n_frames++;
    result.n_different += n_different(outputs, bench.expected);
    result.backbone_bytes = static_cast<double>(cost.up_bytes[1] + cost.down_bytes[1]);
  }
  if (coordinator.n_retries() > 0)
    return Error{ErrorCode::kUnavailable, "a worker failed while it was measured"};
  return result;
}

// All algorithms on one model and link. A plan that another algorithm made, too, is measured once; one that
// uses no link is measured once for all links.
Status measure_cell(const Options& options, Bench& bench, TestbedHosts& hosts, const std::string& link,
                    std::vector<std::pair<dnn::Plan, PlanResult>>& linkless, CellResult& cell) {
  FRUGAL_TRY(const dnn::Link near, dnn::named_link(options.near));
  FRUGAL_TRY(const dnn::Link far, dnn::named_link(link));
  FRUGAL_TRY_STATUS(hosts.set_links(near, far));
  FRUGAL_TRY(const dnn::Cluster cluster, bench.cluster(options, near, far));
  dnn::Cluster single = cluster;  // one edge worker, as the baselines have it
  single.tiers[1].worker_speeds.clear();
  std::vector<std::pair<dnn::Plan, PlanResult>> measured = linkless;
  const auto take = [&](const std::string& name, const dnn::Cluster& on, dnn::Algorithm algorithm) -> Status {
    FRUGAL_TRY(dnn::Plan plan, dnn::make_plan(bench.network->graph(), on, {}, algorithm));
    for (const auto& [known, result] : measured) {
      if (known.tier != plan.tier || known.tiled_runs.size() != plan.tiled_runs.size()) continue;
      if (!std::equal(
              known.tiled_runs.begin(), known.tiled_runs.end(), plan.tiled_runs.begin(),
              [](const auto& a, const auto& b) { return a.vertices == b.vertices && a.tiles == b.tiles; }))
        continue;
      cell.plans.push_back(result);
      cell.plans.back().algorithm = name;
      cell.plans.back().predicted_seconds = plan.seconds;
      cell.plans.back().is_copy = true;
      return {};
    }
    const int n = plan.seconds > 3 ? std::min(2, options.frames) : options.frames;
    FRUGAL_TRY(PlanResult result, measure(bench, on, plan, n));
    result.algorithm = name;
    cell.plans.push_back(result);
    measured.emplace_back(plan, result);
    if (std::all_of(plan.tier.begin(), plan.tier.end(), [](int k) { return k == 0; }))
      linkless.emplace_back(plan, result);
    return {};
  };
  FRUGAL_TRY_STATUS(take(kOurs, cluster, dnn::Algorithm::kExact));
  FRUGAL_TRY_STATUS(take("hpa with tiles", cluster, dnn::Algorithm::kHpa));
  FRUGAL_TRY_STATUS(take("exact, one edge worker", single, dnn::Algorithm::kExact));
  for (const dnn::Algorithm algorithm :
       {dnn::Algorithm::kNeurosurgeon, dnn::Algorithm::kDads, dnn::Algorithm::kCloudOnly,
        dnn::Algorithm::kEdgeOnly, dnn::Algorithm::kDeviceOnly}) {
    FRUGAL_TRY_STATUS(take(std::string(dnn::algorithm_name(algorithm)), single, algorithm));
  }
  return {};
}

// Frames in throughput mode while workers die, links are cut and rates step. Faults come from this thread:
// the processes that it starts end with it.
Result<ChaosResult> chaos(const Options& options, Bench& bench, TestbedHosts& hosts) {
  FRUGAL_TRY(const dnn::Link near, dnn::named_link(options.near));
  FRUGAL_TRY(const dnn::Link far, dnn::named_link("fibre"));
  FRUGAL_TRY_STATUS(hosts.set_links(near, far));
  FRUGAL_TRY(const dnn::Cluster cluster, bench.cluster(options, near, far));
  dnn::CoordinatorOptions coordinator_options;
  coordinator_options.adapt = true;
  coordinator_options.retry_seconds = 0.25;
  dnn::Coordinator coordinator(bench.device, bench.edge, cluster, coordinator_options);
  std::vector<dnn::Values> inputs, expected;
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    inputs.push_back(random_input(bench.network->graph(), seed));
    FRUGAL_TRY(dnn::Values outputs, run_whole(*bench.network, inputs.back()));
    expected.push_back(std::move(outputs));
  }
  ChaosResult result;
  result.n_frames = options.chaos_frames;
  std::vector<int> n_answers(static_cast<size_t>(options.chaos_frames), 0);
  std::atomic<bool> done{false};
  double last = wall_seconds();
  std::thread source([&] {
    dnn::FrameStream stream(coordinator, 3, [&](size_t index, Result<dnn::Values> outputs, double) {
      if (outputs.ok()) {
        ++n_answers[index];
        result.n_different += n_different(*outputs, expected[index % 3]);
      }
      result.longest_gap_seconds = std::max(result.longest_gap_seconds, wall_seconds() - last);
      last = wall_seconds();
    });
    for (int i = 0; i < options.chaos_frames && !interrupted(); ++i)
      stream.push(inputs[static_cast<size_t>(i) % 3]);
    stream.finish();
    done = true;
  });
  Rng rng(7);
  const auto pause = [&](double least, double most) {
    std::this_thread::sleep_for(std::chrono::duration<double>(least + (most - least) * rng.uniform()));
  };
  Status fault;
  while (!done && fault.ok()) {
    pause(0.2, 1.0);
    const uint32_t kind = rng.below(4);
    if (kind == 0) {
      const int i = static_cast<int>(rng.below(static_cast<uint32_t>(hosts.n_workers())));
      hosts.kill_worker(i);
      ++result.n_kills;
      pause(0.2, 1.0);
      fault = hosts.start_worker(i);
    } else if (kind < 3) {
      (kind == 1 ? hosts.cut_near(true) : hosts.cut_far(true));
      ++result.n_cuts;
      pause(0.2, 1.0);
      (kind == 1 ? hosts.cut_near(false) : hosts.cut_far(false));
    } else {
      dnn::Link slow = near, slow_far = far;
      const double factor = 0.1 + rng.uniform();
      slow.up_bytes_per_second *= factor;
      slow_far.up_bytes_per_second *= factor;
      fault = hosts.set_links(slow, slow_far);
      ++result.n_rate_steps;
    }
  }
  source.join();
  FRUGAL_TRY_STATUS(fault);
  for (const int n : n_answers) {
    result.n_lost += n == 0;
    result.n_twice += n > 1;
  }
  result.n_replans = coordinator.n_replans();
  result.n_retries = coordinator.n_retries();
  return result;
}

double plan_500_ms() {
  std::vector<double> times;
  for (uint64_t i = 0; i < 51; ++i) {
    Rng rng(i);
    const dnn::Graph graph = dnn::random_graph(rng, 500);
    const dnn::Cluster cluster = dnn::random_cluster(rng, graph, 3);
    const double start = wall_seconds();
    if (!dnn::make_plan(graph, cluster, {}).ok()) return NAN;
    times.push_back(1e3 * (wall_seconds() - start));
  }
  return median(times);
}

// Every model's time predicted by a regression over the others.
void leave_one_out(const std::vector<std::pair<std::string, std::vector<dnn::TimeSample>>>& profiles,
                   TestbedResult& result) {
  for (const auto& [left_out, own] : profiles) {
    std::vector<dnn::TimeSample> others;
    for (const auto& [name, samples] : profiles) {
      if (name != left_out) others.insert(others.end(), samples.begin(), samples.end());
    }
    const auto model = dnn::TimeModel::fit(others);
    if (!model.ok()) continue;
    double predicted = 0, measured = 0;
    std::vector<double> errors;
    for (const dnn::TimeSample& sample : own) {
      predicted += model->seconds(sample);
      measured += sample.seconds;
      if (sample.seconds > 0) errors.push_back(std::abs(model->seconds(sample) / sample.seconds - 1));
    }
    result.left_out.push_back({left_out, predicted, measured, median(errors)});
  }
}

Status run_all(const Options& options, TestbedHosts& hosts, TestbedResult& result) {
  ProgressBar bar("testbed", "cells", !options.json);
  const double total = static_cast<double>(options.models.size() * options.links.size());
  double done = 0;
  std::vector<std::pair<std::string, std::vector<dnn::TimeSample>>> profiles;
  for (const std::string& model : options.models) {
    const std::string path = model.ends_with(".onnx") ? model : options.folder + "/" + model + ".onnx";
    FRUGAL_TRY(const std::unique_ptr<Bench> bench, Bench::open(options, path, hosts));
    profiles.emplace_back(bench->network->graph().name, std::vector<dnn::TimeSample>());
    for (size_t v = 0; v < bench->network->graph().vertices.size(); ++v) {
      if (bench->network->graph().vertices[v].kind == "Input") continue;
      profiles.back().second.push_back(dnn::sample_of(bench->network->graph(), static_cast<int>(v),
                                                      bench->profile.measurement.vertex_seconds[v]));
    }
    std::vector<std::pair<dnn::Plan, PlanResult>> linkless;
    for (const std::string& link : options.links) {
      CellResult cell;
      cell.model = bench->network->graph().name;
      cell.link = options.near + " + " + link;
      FRUGAL_TRY_STATUS(measure_cell(options, *bench, hosts, link, linkless, cell));
      result.cells.push_back(std::move(cell));
      bar.update(++done, total);
    }
  }
  bar.finish();
  if (profiles.size() > 1) leave_one_out(profiles, result);
  result.plan_500_ms = plan_500_ms();
  if (options.chaos_frames == 0) return {};
  const std::string small = cache_folder(FRUGAL_DNN_MODELS_SMALL) + "/resnet18.onnx";
  FRUGAL_TRY(const std::unique_ptr<Bench> bench,
             Bench::open(options, std::filesystem::exists(small) ? small : options.folder + "/resnet18.onnx",
                         hosts));
  FRUGAL_TRY(result.chaos, chaos(options, *bench, hosts));
  return {};
}

int run(Options options) {
  if (options.folder.empty()) options.folder = cache_folder(FRUGAL_DNN_MODELS);
  if (!std::filesystem::exists(options.folder)) {
    return fail({ErrorCode::kNotFound,
                 options.folder + " is not there: run `python3 scripts/bootstrap.py --dnn-models`, or "
                                  "give a folder of networks with --folder"});
  }
  options.hosts.namespaces = !options.loopback && geteuid() == 0;
  install_interrupt_handler();
  auto hosts = TestbedHosts::make(options.hosts);
  if (!hosts.ok() && options.hosts.namespaces && hosts.error().code == ErrorCode::kPermission) {
    std::fprintf(stderr,
                 "frugal: warning: no network namespaces here (%s); hosts share the loopback interface\n",
                 hosts.error().message.c_str());
    options.hosts.namespaces = false;
    hosts = TestbedHosts::make(options.hosts);
  }
  if (!hosts.ok()) return fail(hosts.error());
  TestbedResult result;
  result.n_edge_workers = options.hosts.n_edge_workers;
  result.slowdown = options.hosts.slowdown;
  result.namespaces = options.hosts.namespaces;
  if (const Status status = run_all(options, **hosts, result); !status.ok()) return fail(status.error());
  const std::vector<BenchRow> rows = testbed_rows(result);
  BenchContext context;
  context.bench = "dnn-testbed";
  context.threads = 1;
  context.command = this_command_line();
  context.note = testbed_note(result);
  if (!options.svg.empty()) {
    if (const Status status = write_testbed_svg(options.svg, result); !status.ok())
      return fail(status.error());
  }
  if (!options.out.empty()) {
    if (const Status status = write_bench(options.out, context, rows); !status.ok())
      return fail(status.error());
  }
  if (!print(options.json ? bench_json(context, rows) : bench_table(rows) + context.note + "\n"))
    return kExitNoResource;
  const bool sound = result.n_different() == 0 && result.chaos.n_lost == 0 && result.chaos.n_twice == 0;
  return sound ? kExitOk : kExitFailure;
}

}  // namespace

Action add_dnn_testbed(CLI::App& app) {
  auto options = std::make_shared<Options>();
  app.add_option("--folder", options->folder,
                 "folder of the networks (default: those of bootstrap.py --dnn-models)");
  app.add_option("--models", options->models, "networks, by name or path")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--near", options->near, "link from device to edge")->capture_default_str();
  app.add_option("--links", options->links, "links from edge to cloud: wifi, 4g, 5g, fibre, lan")
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--edge-workers", options->hosts.n_edge_workers, "edge workers")
      ->check(CLI::Range(1, 16))
      ->capture_default_str();
  app.add_option("--slowdown", options->hosts.slowdown,
                 "how many times slower than a core of this host device, edge workers and cloud are")
      ->expected(3)
      ->delimiter(',')
      ->check(CLI::Range(1.0, 1e4))
      ->capture_default_str();
  app.add_option("--frames", options->frames, "frames timed for each plan")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--chaos", options->chaos_frames, "frames under faults; 0 leaves them out")
      ->check(CLI::Range(0, 100000))
      ->capture_default_str();
  app.add_flag("--loopback", options->loopback, "no network namespaces; also what happens without root");
  app.add_option("--out", options->out, "write the rows as JSON here");
  app.add_option("--svg", options->svg, "draw the latencies here");
  app.add_flag("--json", options->json, "print rows as JSON");
  app.footer(
      "Examples:\n  frugal dnn testbed --models resnet18 --links 4g --frames 5\n"
      "  frugal dnn testbed --json --svg latency.svg");
  return [options] { return run(*options); };
}

}  // namespace frugal::cli
