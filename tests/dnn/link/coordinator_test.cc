// Frames through three tiers in process, with faults: none is lost, none differs.
#include "dnn/link/coordinator.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "base/rng.h"
#include "dnn/link/local.h"
#include "dnn/plan/profile.h"
#include "dnn/plan/sample.h"
#include "dnn/plan/vsm.h"
#include "support/steady_profile.h"

namespace frugal::dnn {
namespace {

struct Bench {
  std::shared_ptr<const Network> network;
  std::shared_ptr<LocalHop> edge, cloud;
  std::shared_ptr<TierRunner> device;
  Cluster cluster;

  explicit Bench(const char* name) {
    const char* folder = std::getenv("FRUGAL_DNN_MODELS");
    network = Network::load(std::string(folder == nullptr ? "." : folder) + "/" + name + ".onnx").value();
    Link fast = named_link("lan").value();
    fast.latency_seconds = 0;
    const double slowdown[] = {8, 2, 1};
    cluster = scaled_cluster(test::steady_profile(*network), slowdown, fast, fast);
    device = std::make_shared<TierRunner>(network, 0, 1);
    cloud = std::make_shared<LocalHop>(std::make_shared<TierRunner>(network, 2, 1), nullptr, fast);
    edge = std::make_shared<LocalHop>(std::make_shared<TierRunner>(network, 1, 1), cloud, fast);
  }
  Values input(uint64_t seed) const {
    const Tensor& tensor = network->graph().tensors[0];
    HostTensor value{tensor.type, tensor.shape, std::vector<std::byte>(tensor.bytes)};
    Rng rng(seed);
    for (size_t i = 0; i < tensor.bytes / 4; ++i) {
      const auto x = static_cast<float>(rng.uniform() - 0.5);
      std::memcpy(value.bytes.data() + 4 * i, &x, 4);
    }
    return {{0, value}};
  }
  Values expected(const Values& in) const {
    auto whole = network->compile_whole(1).value();
    std::vector<const HostTensor*> pointers;
    for (const int t : whole->inputs()) pointers.push_back(&in.at(t));
    std::vector<HostTensor> outputs;
    EXPECT_TRUE(whole->run(pointers, outputs).ok());
    return {{whole->outputs()[0], outputs[0]}};
  }
};

bool same(const Values& a, const Values& b) {
  return a.size() == b.size() && std::equal(a.begin(), a.end(), b.begin(), [](const auto& x, const auto& y) {
           return x.first == y.first && x.second.bytes == y.second.bytes;
         });
}

TEST(Coordinator, ThreeTiersGiveWhatTheWholeGives) {
  Bench bench("resnet18");
  Coordinator coordinator(bench.device, bench.edge, bench.cluster, {});
  const Values input = bench.input(1), expected = bench.expected(input);
  std::vector<int> tier(bench.network->graph().vertices.size(), 0);
  for (size_t v = 1; v < tier.size(); ++v) tier[v] = v < 8 ? 0 : v < 16 ? 1 : 2;
  ASSERT_TRUE(coordinator.set_plan(tier).ok());
  const auto outputs = coordinator.run_frame(input);
  ASSERT_TRUE(outputs.ok()) << outputs.error().message;
  EXPECT_TRUE(same(*outputs, expected));
  // The bytes that crossed are those of the plan.
  EXPECT_EQ(coordinator.last_cost().up_bytes[0], coordinator.plan().links[0].up_bytes);
  EXPECT_EQ(coordinator.last_cost().up_bytes[1], coordinator.plan().links[1].up_bytes);
  EXPECT_EQ(coordinator.last_cost().down_bytes[0], coordinator.plan().links[0].down_bytes);
}

TEST(Coordinator, PackedTensorsGiveTheSameBitsInFewerBytes) {
  Bench bench("resnet18");
  const Values input = sample_frame(bench.network->graph(), 1), expected = bench.expected(input);
  Profile profile = test::steady_profile(*bench.network);
  ASSERT_TRUE(measure_packing(*bench.network, input, 1, profile).ok());
  const Link slow = named_link("4g").value();
  const double slowdown[] = {1, 1, 1};
  Cluster cluster = scaled_cluster(profile, slowdown, slow, slow);
  for (Tier& tier : cluster.tiers) {  // worth it whatever this machine takes for it
    tier.pack_seconds.assign(tier.pack_seconds.size(), 1e-6);
    tier.unpack_seconds = tier.pack_seconds;
  }
  Cluster plain = cluster;
  plain.packed_bytes.clear();
  // Cuts over the whole network: also where several tensors cross, some of them both links.
  for (size_t cut = 1; cut + 4 < bench.network->graph().vertices.size(); cut += 5) {
    std::vector<int> tier(bench.network->graph().vertices.size(), 0);
    for (size_t v = 1; v < tier.size(); ++v) tier[v] = v < cut ? 0 : v < cut + 4 ? 1 : 2;
    Coordinator packing(bench.device, bench.edge, cluster, {}), sending(bench.device, bench.edge, plain, {});
    ASSERT_TRUE(packing.set_plan(tier).ok());
    ASSERT_TRUE(sending.set_plan(tier).ok());
    for (Coordinator* coordinator : {&packing, &sending}) {
      const auto outputs = coordinator->run_frame(input);
      ASSERT_TRUE(outputs.ok()) << outputs.error().message;
      EXPECT_TRUE(same(*outputs, expected)) << cut;
      for (size_t link = 0; link < 2; ++link)
        EXPECT_EQ(coordinator->last_cost().up_bytes[link], coordinator->plan().links[link].up_bytes);
    }
    EXPECT_LT(packing.last_cost().up_bytes[0], sending.last_cost().up_bytes[0]) << cut;
  }
}

TEST(Coordinator, ChaosLosesNothingAndChangesNothing) {
  Bench bench("resnet18");
  CoordinatorOptions options;
  options.retry_seconds = 0.01;
  options.move_seconds = 0;
  Coordinator coordinator(bench.device, bench.edge, bench.cluster, options);
  const Values inputs[] = {bench.input(1), bench.input(2), bench.input(3)};
  std::vector<Values> expected;
  for (const Values& input : inputs) expected.push_back(bench.expected(input));
  std::atomic<bool> stop{false};
  std::thread chaos([&] {
    Rng rng(5);
    while (!stop) {
      (rng.below(2) == 0 ? bench.edge : bench.cloud)->set_up(rng.below(3) > 0);
      std::this_thread::sleep_for(std::chrono::milliseconds(2 + rng.below(10)));
    }
    bench.edge->set_up(true);
    bench.cloud->set_up(true);
  });
  Rng rng(6);
  int n_failed = 0, n_different = 0;
  for (int frame = 0; frame < 300; ++frame) {
    if (frame % 20 == 10) {  // a rate step
      Cluster cluster = bench.cluster;
      for (Link& link : cluster.links) link.up_bytes_per_second *= 0.01 + rng.uniform();
      ASSERT_TRUE(coordinator.update_cluster(cluster).ok());
    }
    const size_t which = static_cast<size_t>(frame) % 3;
    const auto outputs = coordinator.run_frame(inputs[which]);
    n_failed += !outputs.ok();
    n_different += outputs.ok() && !same(*outputs, expected[which]);
  }
  stop = true;
  chaos.join();
  EXPECT_EQ(n_failed, 0);
  EXPECT_EQ(n_different, 0);
  EXPECT_GT(coordinator.n_retries(), 0);  // the faults did hit
}

TEST(Coordinator, DegradesToTheDeviceAloneAndRecovers) {
  Bench bench("alexnet");
  CoordinatorOptions options;
  options.retry_seconds = 0;
  Coordinator coordinator(bench.device, bench.edge, bench.cluster, options);
  const Values input = bench.input(1), expected = bench.expected(input);
  bench.edge->set_up(false);
  auto outputs = coordinator.run_frame(input);
  ASSERT_TRUE(outputs.ok()) << outputs.error().message;
  EXPECT_TRUE(same(*outputs, expected));
  EXPECT_EQ(coordinator.last_cost().up_bytes[0], 0u);
  bench.edge->set_up(true);
  for (int i = 0; i < 1000 && coordinator.n_live_tiers() < 3; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  outputs = coordinator.run_frame(input);
  ASSERT_TRUE(outputs.ok());
  EXPECT_TRUE(same(*outputs, expected));
  EXPECT_GT(coordinator.last_cost().up_bytes[0], 0u);
}

TEST(Coordinator, TilesOverSeveralWorkersGiveWhatTheWholeGives) {
  for (const char* name : {"vgg16", "inception_v4"}) {
    Bench bench(name);
    Cluster cluster = bench.cluster;
    cluster.tiers[1].worker_speeds = {1, 1, 0.5};
    cluster.tiers[1].peer_latency_seconds = 0;
    cluster.tiers[1].peer_bytes_per_second = 1e12;
    // Perfect links within the edge, and no better tier: nearly all of it is worth tiling there.
    for (double& seconds : cluster.tiers[2].vertex_seconds) seconds *= 10;
    const Plan plan = make_plan(bench.network->graph(), cluster, {}).value();
    ASSERT_FALSE(plan.tiled_runs.empty());
    auto edge = std::make_shared<TierRunner>(bench.network, 1, 1);
    std::vector<std::shared_ptr<TierRunner>> peers = {std::make_shared<TierRunner>(bench.network, 1, 1)};
    edge->set_peers(std::make_shared<LocalPeers>(peers, 0, 1e9));  // the third worker is missing
    Coordinator coordinator(
        bench.device, std::make_shared<LocalHop>(edge, bench.cloud, named_link("lan").value()), cluster, {});
    ASSERT_TRUE(coordinator.set_plan(plan.tier, plan.tiled_runs).ok());
    const Values input = bench.input(1);
    const auto outputs = coordinator.run_frame(input);
    ASSERT_TRUE(outputs.ok()) << outputs.error().message;
    EXPECT_TRUE(same(*outputs, bench.expected(input)));
  }
}

// Peers of which one does not answer the job number `faulty`.
class FaultyPeers final : public TilePeers {
 public:
  FaultyPeers(std::vector<std::shared_ptr<TierRunner>> peers, int faulty)
      : peers_(std::move(peers), 0, 1e12), faulty_(faulty) {}
  Result<std::vector<HostTensor>> run_tile(size_t worker, const TileJob& job) override {
    if (n_jobs++ == faulty_) return Error{ErrorCode::kUnavailable, "gone"};
    auto tiles = peers_.run_tile(worker, job);
    if (tiles.ok()) {
      n_ok++;
      for (const HostTensor& tile : *tiles) n_bytes += tile.bytes.size();
    }
    return tiles;
  }
  std::atomic<int> n_jobs{0}, n_ok{0};
  std::atomic<size_t> n_bytes{0};

 private:
  LocalPeers peers_;
  int faulty_;
};

TEST(Coordinator, TilesThatStayGiveWhatTheWholeGives) {
  for (const char* name : {"vgg16", "resnet18"}) {
    const Bench bench(name);
    const Graph& graph = bench.network->graph();
    Tier tier = bench.cluster.tiers[1];
    tier.worker_speeds = {1, 1, 1};
    tier.peer_latency_seconds = 0;
    tier.peer_bytes_per_second = 1e7;  // so thin that only rows which tiles share may travel
    for (double& seconds : tier.vertex_seconds) seconds *= 100;
    tier.call_seconds = 0;
    std::vector<int> labels(graph.vertices.size(), 1);
    labels[0] = 0;
    Division division{labels, TilePlanner(graph, tier, 1).tile(labels)};
    int n_stay = 0;
    for (TiledRun& run : division.runs) n_stay += run.stays;
    ASSERT_GT(n_stay, 1) << name;
    const Values input = bench.input(1), expected = bench.expected(input);
    const auto bytes_with = [&](const Division& divided, int faulty) {
      TierRunner edge(bench.network, 1, 1);
      std::vector<std::shared_ptr<TierRunner>> others;
      for (int i = 0; i < 2; ++i) others.push_back(std::make_shared<TierRunner>(bench.network, 1, 1));
      const auto peers = std::make_shared<FaultyPeers>(others, faulty);
      edge.set_peers(peers);
      Values values = input;
      FrameCost cost(3);
      EXPECT_TRUE(edge.run(divided, values, cost).ok());
      const int output = expected.begin()->first;
      EXPECT_EQ(values.at(output).bytes, expected.at(output).bytes) << name << " without job " << faulty;
      EXPECT_EQ(peers->n_ok.load() + (faulty >= 0 && faulty < peers->n_jobs.load()), peers->n_jobs.load());
      return peers->n_bytes.load();
    };
    const size_t stayed = bytes_with(division, -1);
    for (const int faulty : {0, 1, 2, 5}) bytes_with(division, faulty);
    for (TiledRun& run : division.runs) run.stays = false;
    EXPECT_LT(2 * stayed, bytes_with(division, -1)) << name;
  }
}

// A network whose executor adds in another order for tiles: the last bit of each tile's first value is
// another.
class OtherBits final : public Network {
 public:
  explicit OtherBits(std::shared_ptr<const Network> network) : network_(std::move(network)) {}
  const Graph& graph() const override { return network_->graph(); }
  Result<std::shared_ptr<const Network>> reshaped(
      const std::vector<std::vector<int64_t>>& input_shapes) const override {
    return network_->reshaped(input_shapes);
  }
  Result<std::unique_ptr<Part>> compile(std::span<const int> vertices, int n_threads,
                                        std::span<const int> outputs) const override {
    return network_->compile(vertices, n_threads, outputs);
  }
  Result<std::unique_ptr<Part>> compile_whole(int n_threads) const override {
    return network_->compile_whole(n_threads);
  }
  Result<Measurement> measure(int n_threads, int repetitions) const override {
    return network_->measure(n_threads, repetitions);
  }
  Result<std::unique_ptr<Part>> compile_tile(const Segment& segment, const Tile& tile,
                                             int n_threads) const override {
    auto part = network_->compile_tile(segment, tile, n_threads);
    if (!part.ok()) return part.error();
    return std::unique_ptr<Part>(std::make_unique<Tile1>(*std::move(part)));
  }

 private:
  class Tile1 final : public Part {
   public:
    explicit Tile1(std::unique_ptr<Part> part) : part_(std::move(part)) {}
    const std::vector<int>& inputs() const override { return part_->inputs(); }
    const std::vector<int>& outputs() const override { return part_->outputs(); }
    std::string precision() const override { return part_->precision(); }
    Status run(std::span<const HostTensor* const> inputs, std::vector<HostTensor>& outputs) override {
      const Status status = part_->run(inputs, outputs);
      if (status.ok()) outputs[0].bytes[0] ^= std::byte{1};
      return status;
    }

   private:
    std::unique_ptr<Part> part_;
  };
  std::shared_ptr<const Network> network_;
};

TEST(TierRunner, TilesOfOtherBitsAreNotUsed) {
  const Bench bench("resnet18");
  const Graph& graph = bench.network->graph();
  Tier tier = bench.cluster.tiers[1];
  tier.worker_speeds = {1, 1};
  tier.peer_latency_seconds = 0;
  tier.peer_bytes_per_second = 1e12;
  std::vector<int> labels(graph.vertices.size(), 1);
  labels[0] = 0;
  const Division division{labels, TilePlanner(graph, tier, 1).tile(labels)};
  ASSERT_FALSE(division.runs.empty());
  const Values input = bench.input(1), expected = bench.expected(input);
  // Here, and with the other worker alone.
  for (const bool here : {true, false}) {
    const auto other = std::make_shared<OtherBits>(bench.network);
    TierRunner edge(here ? other : bench.network, 1, 1);
    edge.set_peers(std::make_shared<LocalPeers>(
        std::vector<std::shared_ptr<TierRunner>>{std::make_shared<TierRunner>(other, 1, 1)}, 0, 1e12));
    EXPECT_TRUE(edge.prepare(division).ok());
    for (int frame = 0; frame < 2; ++frame) {
      Values values = input;
      FrameCost cost(3);
      const Status status = edge.run(division, values, cost);
      ASSERT_TRUE(status.ok()) << status.error().message;
      EXPECT_EQ(values.at(expected.begin()->first).bytes, expected.begin()->second.bytes);
    }
    TileJob job;
    job.vertices = division.runs[0].vertices;
    job.tile = division.runs[0].tiles[0];
    if (here) {
      EXPECT_EQ(edge.run_tile(job).error().code, ErrorCode::kUnsupported);
    }
  }
}

TEST(TierRunner, RefusesTileJobsThatDoNotFit) {
  const Bench bench("resnet18");
  const Graph& graph = bench.network->graph();
  std::vector<int> all;
  for (size_t v = 1; v < graph.vertices.size(); ++v) all.push_back(static_cast<int>(v));
  const Segment segment = smallest_segments(graph, all)[0];
  const Tensor &in = graph.tensors[static_cast<size_t>(segment.inputs[0])],
               &out = graph.tensors[static_cast<size_t>(segment.output)];
  const Region top{{Range{0, out.shape[2] / 2}, Range{0, out.shape[3]}}};
  const Range reads = make_tile(graph, segment, top).value().held.at(segment.inputs[0]).axes[0];
  const Values input = bench.input(1);
  TierRunner runner(bench.network, 1, 1);
  TileJob job;
  job.vertices = segment.vertices;
  job.tile = {0, out.shape[2] / 2, 0, out.shape[3]};
  const auto rows = [&](Range range) {
    return TileJob::Piece{range, slice(input.at(0), whole_region(in), {{range, Range{0, in.shape[3]}}})};
  };
  job.pieces = {rows({0, 5}), rows({5, reads.end})};
  const auto in_pieces = runner.run_tile(job);
  ASSERT_TRUE(in_pieces.ok()) << in_pieces.error().message;
  job.pieces = {rows(reads)};
  EXPECT_EQ(runner.run_tile(job).value()[0].bytes, in_pieces.value()[0].bytes);
  job.pieces = {rows({0, 5}), rows({6, reads.end})};  // a row is missing
  EXPECT_EQ(runner.run_tile(job).error().code, ErrorCode::kInvalidArgument);
  job.pieces = {rows({0, 5}), rows({5, reads.end + 1})};  // one too many
  EXPECT_EQ(runner.run_tile(job).error().code, ErrorCode::kInvalidArgument);
  job.pieces = {rows({0, 5}), rows({4, reads.end})};
  job.pieces[1].rows.begin = 5;  // that say they are others
  EXPECT_EQ(runner.run_tile(job).error().code, ErrorCode::kInvalidArgument);
  job.pieces = {};
  job.goes_on = true;
  EXPECT_EQ(runner.run_tile(job).error().code, ErrorCode::kNotFound);
  job.goes_on = false;
  job.pieces = {rows(reads)};
  job.stays = true;
  job.gives = {{0, out.shape[2]}};  // rows of another's tile
  EXPECT_EQ(runner.run_tile(job).error().code, ErrorCode::kInvalidArgument);
}

TEST(Coordinator, AnAuditionKeepsWhatIsFasterWhateverWasPredicted) {
  Bench bench("resnet18");
  Coordinator coordinator(bench.device, bench.edge, bench.cluster, {});
  const Values input = bench.input(1), expected = bench.expected(input);
  const Graph& graph = bench.network->graph();
  std::vector<Plan> plans;
  for (const Algorithm algorithm : {Algorithm::kCloudOnly, Algorithm::kDeviceOnly})
    plans.push_back(make_plan(graph, bench.cluster, {}, algorithm).value());
  EXPECT_LT(plans[0].seconds, plans[1].seconds);
  Link slow = named_link("lan").value();
  slow.latency_seconds = 0.5;  // which nobody told the planner
  bench.cloud->set_link(slow);
  const auto best = coordinator.audition(plans, input, 1);
  ASSERT_TRUE(best.ok()) << best.error().message;
  EXPECT_EQ(*best, 1u);
  EXPECT_EQ(coordinator.plan().tier, plans[1].tier);
  const auto outputs = coordinator.run_frame(input);
  ASSERT_TRUE(outputs.ok()) << outputs.error().message;
  EXPECT_TRUE(same(*outputs, expected));
  EXPECT_FALSE(coordinator.audition({}, input).ok());
}

TEST(FrameStream, AnswersEachFrameOnceAndInOrder) {
  Bench bench("alexnet");
  Coordinator coordinator(bench.device, bench.edge, bench.cluster, {});
  const Values inputs[] = {bench.input(1), bench.input(2)};
  const Values expected[] = {bench.expected(inputs[0]), bench.expected(inputs[1])};
  std::vector<size_t> order;
  int n_wrong = 0;
  {
    FrameStream stream(coordinator, 3, [&](size_t index, Result<Values> outputs, double) {
      order.push_back(index);
      n_wrong += !outputs.ok() || !same(*outputs, expected[index % 2]);
    });
    for (size_t i = 0; i < 40; ++i) stream.push(inputs[i % 2]);
  }
  ASSERT_EQ(order.size(), 40u);
  for (size_t i = 0; i < order.size(); ++i) EXPECT_EQ(order[i], i);
  EXPECT_EQ(n_wrong, 0);
}

TEST(Coordinator, LearnsThatALinkIsSlowerThanItWasTold) {
  Bench bench("resnet18");
  CoordinatorOptions options;
  options.adapt = true;
  options.retry_seconds = 0.01;
  options.move_seconds = 0;
  Coordinator coordinator(bench.device, bench.edge, bench.cluster, options);
  const Values input = bench.input(1);
  ASSERT_TRUE(coordinator.run_frame(input).ok());
  ASSERT_GT(coordinator.last_cost().up_bytes[0], 0u);
  Link slow = named_link("lan").value();
  slow.up_bytes_per_second = 1e6;
  bench.edge->set_link(slow);
  bool moved = false;
  for (int i = 0; i < 200 && !moved; ++i) {
    ASSERT_TRUE(coordinator.run_frame(input).ok());
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    moved = coordinator.n_replans() > 1;
  }
  EXPECT_TRUE(moved);
}

TEST(Coordinator, HysteresisKeepsAPlanThatIsNearlyAsGood) {
  Bench bench("resnet18");
  CoordinatorOptions options;
  options.least_gain = 0.2;
  Coordinator coordinator(bench.device, bench.edge, bench.cluster, options);
  ASSERT_TRUE(coordinator.run_frame(bench.input(1)).ok());
  const std::vector<int> before = coordinator.plan().tier;
  Cluster cluster = bench.cluster;
  cluster.links[0].up_bytes_per_second *= 1.01;
  EXPECT_FALSE(coordinator.update_cluster(cluster).value());
  EXPECT_EQ(coordinator.plan().tier, before);
  cluster.links[0].up_bytes_per_second = 1;  // a link that is as good as gone
  EXPECT_TRUE(coordinator.update_cluster(cluster).value());
  for (const int k : coordinator.plan().tier) EXPECT_EQ(k, 0);
}

}  // namespace
}  // namespace frugal::dnn
