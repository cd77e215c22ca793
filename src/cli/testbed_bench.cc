#include "cli/testbed_bench.h"

#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/clock.h"
#include "base/rng.h"
#include "base/text.h"
#include "cli/console.h"
#include "dnn/plan/sample.h"

namespace frugal::cli {
namespace {

// A device alone takes seconds for a large network: fewer frames tell enough.
constexpr double kSlowSeconds = 2.5;
constexpr int kSlowFrames = 1;

}  // namespace

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

Result<std::unique_ptr<Bench>> Bench::open(const TestbedOptions& options, const std::string& path,
                                           TestbedHosts& hosts) {
  auto bench = std::make_unique<Bench>();
  bench->options_ = options;
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
  bench->edge =
      std::make_shared<dnn::RemoteHop>(bench->mailbox, source, 1, std::vector<std::string>{"edge", "cloud"});
  FRUGAL_TRY_STATUS(bench->await());
  FRUGAL_TRY(bench->profile, dnn::measure_profile(*bench->network, 1, 9));
  if (options.n_edge_workers > 1) FRUGAL_TRY_STATUS(dnn::measure_tiles(*bench->network, 5, bench->profile));
  bench->input = dnn::sample_frame(bench->network->graph(), 1);
  FRUGAL_TRY_STATUS(dnn::measure_packing(*bench->network, bench->input, 5, bench->profile));
  FRUGAL_TRY(bench->whole_, bench->network->compile_whole(1));
  FRUGAL_TRY(bench->expected, run_whole(*bench->network, bench->input));
  bench->device = std::make_shared<dnn::TierRunner>(bench->network, 0, 1, options.slowdown[0]);
  FRUGAL_TRY(const std::shared_ptr<dnn::Turns> turns, dnn::Turns::open(hosts.turns_file()));
  bench->device->set_turns(turns);
  return bench;
}

Result<dnn::Cluster> Bench::cluster(const dnn::Link& near, const dnn::Link& far) {
  FRUGAL_TRY(const double mood, this->mood());
  std::vector<double> slowdown = options_.slowdown;
  for (double& times : slowdown) times *= mood;
  dnn::Cluster cluster = dnn::scaled_cluster(profile, slowdown, near, far);
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

Result<double> Bench::mood() {
  std::vector<const dnn::HostTensor*> pointers;
  for (const int t : whole_->inputs()) pointers.push_back(&input.at(t));
  std::vector<dnn::HostTensor> outputs;
  std::vector<double> seconds;
  for (int i = 0; i < 5; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(60));  // as between frames: caches forget
    const double start = clock_seconds(CLOCK_THREAD_CPUTIME_ID);
    FRUGAL_TRY_STATUS(whole_->run(pointers, outputs));
    seconds.push_back(clock_seconds(CLOCK_THREAD_CPUTIME_ID) - start);
  }
  return median(seconds) / profile.measurement.whole_seconds;
}

// Processes start and leaf nodes join within some seconds.
Status Bench::await() {
  Status last;
  for (int i = 0; i < 60; ++i) {
    last = edge->connect();
    if (last.ok()) {
      const auto rows = edge->survey(0);
      if (rows.ok() && rows->size() == 2 &&
          (*rows)[0].value("worker_speeds", nlohmann::json::array()).size() ==
              static_cast<size_t>(options_.n_edge_workers))
        return {};
      last =
          rows.ok() ? Status(ErrorCode::kUnavailable, "not all workers have joined") : Status(rows.error());
    }
    if (interrupted()) return {ErrorCode::kCancelled, "interrupted"};
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
  }
  return last;
}

namespace {

PlanResult predicted(const dnn::Plan& plan) {
  PlanResult result;
  result.algorithm = plan.algorithm;
  result.predicted_seconds = plan.seconds;
  result.predicted_backbone_bytes = plan.backbone_bytes;
  for (const dnn::TierShare& share : plan.tiers) result.predicted_tiers.push_back(share.seconds);
  for (const dnn::LinkShare& share : plan.links) result.predicted_links.push_back(share.seconds);
  for (const dnn::TiledRun& run : plan.tiled_runs) {
    result.predicted_tiers[static_cast<size_t>(run.tier)] += run.seconds - run.work_seconds;
    result.n_tiles += static_cast<int>(run.tiles.size());
  }
  result.tiers.assign(plan.tiers.size(), 0);
  result.links.assign(plan.links.size(), 0);
  return result;
}

}  // namespace

Result<std::vector<PlanResult>> Bench::measure(const dnn::Cluster& cluster, std::span<const dnn::Plan> plans,
                                               int n_frames) {
  dnn::CoordinatorOptions options;
  options.retry_seconds = 3600;
  dnn::Cluster plain = cluster;
  plain.packed_bytes.clear();
  dnn::Coordinator packing(device, edge, cluster, options), sending(device, edge, plain, options);
  std::vector<PlanResult> results;
  for (const dnn::Plan& plan : plans) results.push_back(predicted(plan));
  for (int i = 0; i <= n_frames; ++i) {
    for (size_t p = 0; p < plans.size(); ++p) {
      if (interrupted()) return Error{ErrorCode::kCancelled, "interrupted"};
      PlanResult& result = results[p];
      if (i > kSlowFrames && plans[p].seconds > kSlowSeconds) continue;
      dnn::Coordinator& coordinator = plans[p].packed.empty() ? sending : packing;
      FRUGAL_TRY_STATUS(coordinator.set_plan(plans[p].tier, plans[p].tiled_runs));
      const double start = wall_seconds();
      dnn::FrameCost cost;
      FRUGAL_TRY(const dnn::Values outputs, coordinator.run_frame(input, &cost));
      const double seconds = wall_seconds() - start;
      result.n_frames++;
      result.n_different += n_different(outputs, expected);
      result.backbone_bytes = static_cast<double>(cost.up_bytes[1] + cost.down_bytes[1]);
      if (i == 0) continue;
      result.seconds.push_back(seconds);
      for (size_t k = 0; k < result.tiers.size(); ++k) result.tiers[k] += cost.tier_seconds[k];
      for (size_t k = 0; k < result.links.size(); ++k) result.links[k] += cost.link_seconds[k];
    }
  }
  for (PlanResult& result : results) {
    for (double& seconds : result.tiers) seconds /= static_cast<double>(result.seconds.size());
    for (double& seconds : result.links) seconds /= static_cast<double>(result.seconds.size());
  }
  if (packing.n_retries() + sending.n_retries() > 0)
    return Error{ErrorCode::kUnavailable, "a worker failed while it was measured"};
  return results;
}

}  // namespace frugal::cli
