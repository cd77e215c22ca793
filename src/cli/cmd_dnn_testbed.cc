// frugal dnn testbed: five networks over four kinds of link, ours beside the baselines, with real processes,
// real NATS and emulated hosts; then frames under faults.
#include <unistd.h>
#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <memory>

#include "base/clock.h"
#include "base/file.h"
#include "base/rng.h"
#include "base/text.h"
#include "cli/bench_report.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/dnn_setup.h"
#include "cli/testbed_bench.h"
#include "cli/testbed_chaos.h"
#include "cli/testbed_state.h"
#include "dnn/plan/synthetic.h"
#include "dnn/plan/vsm.h"

namespace frugal::cli {
namespace {

struct Options {
  TestbedOptions hosts;
  std::string folder, near = "wifi", out, svg, state, chaos_log;
  std::vector<std::string> models = {"alexnet", "vgg16", "resnet18", "darknet53", "inception_v4"};
  std::vector<std::string> links = {"wifi", "4g", "5g", "fibre"};
  int frames = 3, chaos_frames = 500;
  double stop_after = 0;
  bool json = false, loopback = false;
};

bool same_plan(const dnn::Plan& a, const dnn::Plan& b) {
  const auto same_run = [](const auto& x, const auto& y) {
    return x.vertices == y.vertices && x.tiles == y.tiles && x.stays == y.stays;
  };
  return a.tier == b.tier && a.packed == b.packed &&
         std::equal(a.tiled_runs.begin(), a.tiled_runs.end(), b.tiled_runs.begin(), b.tiled_runs.end(),
                    same_run);
}

// All algorithms on one model and link. A plan that another algorithm made, too, is measured once; the device
// alone is measured once for all links.
Status measure_cell(const Options& options, Bench& bench, TestbedHosts& hosts, const std::string& link,
                    std::vector<std::pair<dnn::Plan, PlanResult>>& known, CellResult& cell) {
  FRUGAL_TRY(const dnn::Link near, dnn::named_link(options.near));
  FRUGAL_TRY(const dnn::Link far, dnn::named_link(link));
  FRUGAL_TRY_STATUS(hosts.set_links(near, far));
  FRUGAL_TRY(const dnn::Cluster cluster, bench.cluster(near, far));
  dnn::Cluster single = cluster;  // one edge worker
  single.tiers[1].worker_speeds.clear();
  dnn::Cluster plain = single;  // tensors go as they are, too: as the baselines have it
  plain.packed_bytes.clear();
  const dnn::Graph& graph = bench.network->graph();
  FRUGAL_TRY(dnn::Plan tiled, dnn::make_plan(graph, cluster, {}, dnn::Algorithm::kExact));
  FRUGAL_TRY(dnn::Plan whole, dnn::make_plan(graph, single, {}, dnn::Algorithm::kExact));
  // Ours is what a long run settles on: a tiled plan is tried against the best one without tiles, on frames
  // that are not among those reported.
  bool use_tiles = false;
  if (!tiled.tiled_runs.empty()) {
    dnn::Coordinator coordinator(bench.device, bench.edge, cluster, {});
    FRUGAL_TRY(const size_t best, coordinator.audition(std::array{tiled, whole}, bench.input));
    use_tiles = best == 0;
  }
  std::vector<std::pair<std::string, dnn::Plan>> wanted = {{kOurs, use_tiles ? tiled : whole},
                                                           {"exact, one edge worker", whole}};
  if (!use_tiles && !tiled.tiled_runs.empty()) wanted.emplace_back("tiles, tried and left", tiled);
  for (const dnn::Algorithm algorithm :
       {dnn::Algorithm::kNeurosurgeon, dnn::Algorithm::kDads, dnn::Algorithm::kCloudOnly,
        dnn::Algorithm::kEdgeOnly, dnn::Algorithm::kDeviceOnly}) {
    FRUGAL_TRY(dnn::Plan plan, dnn::make_plan(graph, plain, {}, algorithm));
    wanted.emplace_back(std::string(dnn::algorithm_name(algorithm)), std::move(plan));
  }
  for (const dnn::Algorithm algorithm : {dnn::Algorithm::kNeurosurgeon, dnn::Algorithm::kDads}) {
    FRUGAL_TRY(dnn::Plan plan, dnn::make_plan(graph, single, {}, algorithm));
    wanted.emplace_back(std::string(dnn::algorithm_name(algorithm)) + kPacked, std::move(plan));
  }
  FRUGAL_TRY(dnn::Plan on_edge, dnn::make_plan(graph, cluster, {}, dnn::Algorithm::kEdgeOnly));
  FRUGAL_TRY(on_edge, dnn::price_plan(graph, cluster, {}, on_edge.tier,
                                      dnn::TilePlanner(graph, cluster.tiers[1], 1).tile(on_edge.tier)));
  wanted.emplace_back(kEdgeTiled, std::move(on_edge));
  std::vector<dnn::Plan> fresh;
  const auto in = [](const auto& plans, const dnn::Plan& plan, const auto& plan_of) {
    return std::find_if(plans.begin(), plans.end(),
                        [&](const auto& other) { return same_plan(plan_of(other), plan); });
  };
  const auto itself = [](const dnn::Plan& plan) -> const dnn::Plan& { return plan; };
  const auto first = [](const auto& pair) -> const dnn::Plan& { return pair.first; };
  for (const auto& [name, plan] : wanted) {
    if (in(known, plan, first) == known.end() && in(fresh, plan, itself) == fresh.end())
      fresh.push_back(plan);
  }
  FRUGAL_TRY(const std::vector<PlanResult> results, bench.measure(cluster, fresh, options.frames));
  std::vector<char> told(fresh.size(), 0);
  for (const auto& [name, plan] : wanted) {
    const auto at = in(fresh, plan, itself);
    const auto i = static_cast<size_t>(at - fresh.begin());
    cell.plans.push_back(at == fresh.end() ? in(known, plan, first)->second : results[i]);
    cell.plans.back().algorithm = name;
    cell.plans.back().is_copy = at == fresh.end() || told[i];
    if (at != fresh.end()) told[i] = 1;
  }
  for (size_t i = 0; i < fresh.size(); ++i) {
    if (std::all_of(fresh[i].tier.begin(), fresh[i].tier.end(), [](int k) { return k == 0; }))
      known.emplace_back(fresh[i], results[i]);
  }
  return {};
}

std::string cache_folder(const char* name) {
  if (const char* cache = std::getenv("FRUGAL_CACHE"); cache != nullptr && *cache != 0)
    return std::string(cache) + "/" + name;
  const char* home = std::getenv("HOME");
  return std::string(home != nullptr ? home : ".") + "/.cache/frugal/" + name;
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
void leave_one_out(TestbedResult& result) {
  for (const auto& [left_out, own] : result.profiles) {
    std::vector<dnn::TimeSample> others;
    for (const auto& [name, samples] : result.profiles) {
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

// Cells of one model that are not measured yet. False: time is up.
Result<bool> run_model(const Options& options, const std::string& model, TestbedHosts& hosts, double stop,
                       const std::function<Status()>& save, TestbedResult& result) {
  const std::string path = model.ends_with(".onnx") ? model : options.folder + "/" + model + ".onnx";
  const std::string name = std::filesystem::path(path).stem();
  const auto known = [&](const std::string& link) {
    return std::any_of(result.cells.begin(), result.cells.end(),
                       [&](const CellResult& cell) { return cell.model == name && cell.link == link; });
  };
  std::vector<std::string> links;
  for (const std::string& link : options.links) {
    if (!known(options.near + " + " + link)) links.push_back(link);
  }
  if (links.empty()) return true;
  if (wall_seconds() > stop) return false;
  FRUGAL_TRY(const std::unique_ptr<Bench> bench, Bench::open(options.hosts, path, hosts));
  const dnn::Graph& graph = bench->network->graph();
  if (links.size() == options.links.size()) {
    result.profiles.emplace_back(name, std::vector<dnn::TimeSample>());
    for (size_t v = 0; v < graph.vertices.size(); ++v) {
      if (graph.vertices[v].kind != "Input")
        result.profiles.back().second.push_back(
            dnn::sample_of(graph, static_cast<int>(v), bench->profile.measurement.vertex_seconds[v]));
    }
  }
  std::vector<std::pair<dnn::Plan, PlanResult>> linkless;
  for (const std::string& link : links) {
    if (wall_seconds() > stop) return false;
    CellResult cell;
    cell.model = name;
    cell.link = options.near + " + " + link;
    FRUGAL_TRY_STATUS(measure_cell(options, *bench, hosts, link, linkless, cell));
    result.cells.push_back(std::move(cell));
    FRUGAL_TRY_STATUS(save());
  }
  return true;
}

// False: stopped before all was measured.
Result<bool> run_all(const Options& options, TestbedHosts& hosts, TestbedResult& result) {
  std::string key = options.near + strf(" %d frames %d edge", options.frames, options.hosts.n_edge_workers);
  for (const double slowdown : options.hosts.slowdown) key += strf(" %g", slowdown);
  key += strf(" %d chaos", options.chaos_frames);
  if (!options.state.empty()) {
    auto before = read_testbed_state(options.state, key);
    if (!before.ok() && before.error().code != ErrorCode::kNotFound) return before.error();
    if (before.ok()) {
      result.cells = std::move(before->cells);
      result.profiles = std::move(before->profiles);
      result.chaos = before->chaos;
    }
  }
  ProgressBar bar("testbed", "cells", !options.json);
  const auto save = [&]() -> Status {
    bar.update(static_cast<double>(result.cells.size()),
               static_cast<double>(options.models.size() * options.links.size()));
    return options.state.empty() ? Status() : write_testbed_state(options.state, key, result);
  };
  const double stop = options.stop_after > 0 ? wall_seconds() + options.stop_after : INFINITY;
  for (const std::string& model : options.models) {
    FRUGAL_TRY(const bool whole, run_model(options, model, hosts, stop, save, result));
    if (!whole) return false;
  }
  bar.finish();
  if (options.chaos_frames > 0 && result.chaos.n_frames == 0) {
    if (wall_seconds() > stop) return false;
    const std::string small = cache_folder(FRUGAL_DNN_MODELS_SMALL) + "/resnet18.onnx";
    FRUGAL_TRY(
        const std::unique_ptr<Bench> bench,
        Bench::open(options.hosts, std::filesystem::exists(small) ? small : options.folder + "/resnet18.onnx",
                    hosts));
    std::string log;
    FRUGAL_TRY(result.chaos, run_chaos(*bench, hosts, options.near, options.chaos_frames, log));
    if (!options.chaos_log.empty()) FRUGAL_TRY_STATUS(write_file_atomically(options.chaos_log, log));
    FRUGAL_TRY_STATUS(save());
  }
  if (result.profiles.size() > 1) leave_one_out(result);
  result.plan_500_ms = plan_500_ms();
  return true;
}

int run(Options options) {
  if (options.folder.empty()) options.folder = cache_folder(FRUGAL_DNN_MODELS);
  if (!std::filesystem::exists(options.folder)) {
    return fail({ErrorCode::kNotFound,
                 options.folder + " is not there: run `python3 scripts/bootstrap.py --dnn-models`, or "
                                  "give a folder of networks with --folder"});
  }
  options.hosts.namespaces = !options.loopback && geteuid() == 0;
  keep_freed_memory();
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
  const auto whole = run_all(options, **hosts, result);
  if (!whole.ok()) return fail(whole.error());
  if (!*whole) {
    std::fprintf(stderr, "%zu cells measured so far and kept in %s; the same command goes on from there\n",
                 result.cells.size(), options.state.c_str());
    return kExitNoResource;
  }
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
  app.add_option("--chaos-log", options->chaos_log,
                 "write faults and long gaps here, one JSON object a line");
  auto* state = app.add_option("--state", options->state,
                               "keep what is measured in this file, and go on from what is in it");
  app.add_option("--stop-after", options->stop_after,
                 "begin no further cell after so many seconds; the same command goes on later")
      ->needs(state)
      ->check(CLI::PositiveNumber);
  app.add_flag("--json", options->json, "print rows as JSON");
  app.footer(
      "Examples:\n  frugal dnn testbed --models resnet18 --links 4g --frames 5\n"
      "  frugal dnn testbed --json --svg latency.svg");
  return [options] { return run(*options); };
}

}  // namespace frugal::cli
