// Frames over real NATS: the same bits as the whole, whoever leaves, joins, lies or goes silent.
#include "dnn/link/remote.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "base/clock.h"
#include "base/rng.h"
#include "dnn/link/coordinator.h"
#include "dnn/link/relay.h"
#include "dnn/link/worker.h"
#include "dnn/plan/profile.h"
#include "dnn/plan/vsm.h"
#include "support/nats_server.h"
#include "support/steady_profile.h"

namespace frugal::dnn {
namespace {

using test::NatsServer;

std::string model_path(const std::string& name) {
  const char* folder = std::getenv("FRUGAL_DNN_MODELS");
  return std::string(folder == nullptr ? "." : folder) + "/" + name + ".onnx";
}

BusOptions bus_at(const std::string& url) {
  BusOptions options;
  options.url = url;
  return options;
}

class RemoteTest : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = testing::TempDir() + "frugal_remote_" + std::to_string(getpid());
    std::filesystem::remove_all(folder_);
    network_ = Network::load(model_path("resnet18")).value();
    source_ = model_source(model_path("resnet18"), *network_).value();
    const Tensor& tensor = network_->graph().tensors[0];
    HostTensor value{tensor.type, tensor.shape, std::vector<std::byte>(tensor.bytes)};
    Rng rng(3);
    for (size_t i = 0; i < tensor.bytes / 4; ++i) {
      const auto x = static_cast<float>(rng.normal());
      std::memcpy(value.bytes.data() + 4 * i, &x, 4);
    }
    input_[0] = value;
    auto whole = network_->compile_whole(1).value();
    std::vector<HostTensor> outputs;
    ASSERT_TRUE(whole->run(std::vector<const HostTensor*>{&input_[0]}, outputs).ok());
    expected_[whole->outputs()[0]] = outputs[0];
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  std::unique_ptr<Worker> worker(const std::string& tier, const std::string& name, const std::string& url) {
    WorkerOptions options;
    options.tier = tier;
    options.name = name;
    options.cache_folder = folder_ + "/" + name;
    return Worker::start(bus_at(url), options).value();
  }
  std::shared_ptr<Mailbox> mailbox(const std::string& url) {
    auto box = std::make_shared<Mailbox>(Bus::connect(bus_at(url)).value());
    EXPECT_TRUE(box->open(nullptr).ok());
    return box;
  }
  // Vertices before `a` on the device, before `b` on the edge, the rest in the cloud.
  std::vector<int> thirds(size_t a, size_t b) const {
    std::vector<int> tier(network_->graph().vertices.size(), 0);
    for (size_t v = 1; v < tier.size(); ++v) tier[v] = v < a ? 0 : v < b ? 1 : 2;
    return tier;
  }
  bool same(const Result<Values>& outputs) const {
    return outputs.ok() && outputs->size() == expected_.size() &&
           outputs->begin()->second.bytes == expected_.begin()->second.bytes;
  }
  Result<Values> run(Hop& hop, const Division& division) {
    TierRunner device(network_, 0, 1);
    FrameCost cost(3);
    return run_from(device, &hop, division, input_, cost);
  }
  Cluster cluster(double edge_slowdown = 2) const {
    const double slowdown[] = {8, edge_slowdown, 1};
    const Link lan = named_link("lan").value();
    return scaled_cluster(test::steady_profile(*network_), slowdown, lan, lan);
  }

  std::string folder_;
  std::shared_ptr<const Network> network_;
  ModelSource source_;
  Values input_, expected_;
};

TEST_F(RemoteTest, ThreeTiersAndTilesGiveWhatTheWholeGives) {
  NatsServer server({"-js", "-sd", folder_ + "/js"});
  const auto edge_a = worker("edge", "a", server.url()), edge_b = worker("edge", "b", server.url()),
             cloud = worker("cloud", "c", server.url());
  RemoteHop hop(mailbox(server.url()), source_, 1, {"edge", "cloud"});
  Division division{thirds(8, 16), {}};
  EXPECT_TRUE(same(run(hop, division)));
  EXPECT_TRUE(same(run(hop, division)));
  // Weights came once to each who needed them.
  const uint64_t bytes = std::filesystem::file_size(model_path("resnet18"));
  EXPECT_EQ(cloud->counts().model_bytes_received, bytes);
  EXPECT_EQ(hop.reach(), 2);
  // Everything on the edge, in two tiles where that can be.
  Cluster tiled = cluster(/*edge_slowdown=*/2000);  // so slow that tiles pay
  tiled.tiers[1].worker_speeds = {1, 1};
  const std::vector<int> on_edge = thirds(1, 1000);
  division = {on_edge, TilePlanner(network_->graph(), tiled.tiers[1], 1).tile(on_edge)};
  ASSERT_FALSE(division.runs.empty());
  EXPECT_TRUE(division.runs.front().stays);
  ASSERT_TRUE(hop.survey(0).ok());  // the workers of the edge find each other
  EXPECT_TRUE(same(run(hop, division)));
  EXPECT_GT(edge_a->counts().n_tiles + edge_b->counts().n_tiles, 0u);
  EXPECT_EQ(edge_a->counts().model_bytes_received + edge_b->counts().model_bytes_received, 2 * bytes);
  // Health is in the bucket.
  const auto health = Bus::connect(bus_at(server.url())).value()->list();
  ASSERT_TRUE(health.ok()) << health.error().message;
  EXPECT_EQ(health->size(), 3u);
}

TEST_F(RemoteTest, SurveyTellsTimesAndLinks) {
  NatsServer server;
  const auto edge = worker("edge", "a", server.url()), cloud = worker("cloud", "c", server.url());
  RemoteHop hop(mailbox(server.url()), source_, 1, {"edge", "cloud"});
  const auto rows = hop.survey(1);
  ASSERT_TRUE(rows.ok()) << rows.error().message;
  ASSERT_EQ(rows->size(), 2u);
  EXPECT_EQ((*rows)[1].at("vertex_seconds").size(), network_->graph().vertices.size());
  EXPECT_GT((*rows)[0].at("link").at("up_bytes_per_second").get<double>(), 0);
}

TEST_F(RemoteTest, NobodyThereIsSaidAtOnce) {
  NatsServer server;
  RemoteHop hop(mailbox(server.url()), source_, 1, {"edge"});
  const Status status = hop.connect();
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code, ErrorCode::kUnavailable);
  EXPECT_NE(status.error().message.find("frugal dnn worker --tier edge"), std::string::npos);
  const auto nowhere = Bus::connect(bus_at("nats://127.0.0.1:1"));
  ASSERT_FALSE(nowhere.ok());
  EXPECT_EQ(nowhere.error().code, ErrorCode::kUnavailable);
}

TEST_F(RemoteTest, ServerAndWorkersMayGoAndComeBackHalfWay) {
  NatsServer server;
  auto edge = worker("edge", "a", server.url());
  const auto cloud = worker("cloud", "c", server.url());
  const auto hop = std::make_shared<RemoteHop>(mailbox(server.url()), source_, 1,
                                               std::vector<std::string>{"edge", "cloud"});
  CoordinatorOptions options;
  options.retry_seconds = 0.05;
  Coordinator coordinator(std::make_shared<TierRunner>(network_, 0, 1), hop, cluster(), options);
  ASSERT_TRUE(coordinator.set_plan(thirds(8, 16)).ok());
  EXPECT_TRUE(same(coordinator.run_frame(input_)));
  const auto comes_back = [&] {
    for (int i = 0; i < 2000 && coordinator.n_live_tiers() < 3; ++i)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    return coordinator.n_live_tiers() == 3;
  };
  server.stop();
  EXPECT_TRUE(same(coordinator.run_frame(input_)));  // on the device alone
  EXPECT_EQ(coordinator.n_live_tiers(), 1u);
  server.start();
  EXPECT_TRUE(comes_back());
  ASSERT_TRUE(coordinator.set_plan(thirds(8, 16)).ok());
  EXPECT_TRUE(same(coordinator.run_frame(input_)));
  edge.reset();
  EXPECT_TRUE(same(coordinator.run_frame(input_)));
  edge = worker("edge", "a", server.url());
  EXPECT_TRUE(comes_back());
}

TEST_F(RemoteTest, OtherWeightsAreFoundOutAndThrownAway) {
  NatsServer server;
  const auto edge = worker("edge", "a", server.url());
  // A file by the right name with other weights in it.
  char name[32];
  std::snprintf(name, sizeof name, "%016lx.onnx", source_.hash);
  std::filesystem::copy_file(model_path("alexnet"), folder_ + "/a/" + name);
  RemoteHop hop(mailbox(server.url()), source_, 1, {"edge"});
  const Status refused = hop.connect();
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().message.find("other weights"), std::string::npos);
  EXPECT_TRUE(hop.connect().ok());  // sent anew
}

TEST_F(RemoteTest, AnotherGroupingIsRefused) {
  NatsServer server;
  const auto edge = worker("edge", "a", server.url());
  ModelSource other = source_;
  other.fingerprint ^= 1;
  RemoteHop hop(mailbox(server.url()), other, 1, {"edge"});
  const Status refused = hop.connect();
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, ErrorCode::kUnsupported);
}

// Bytes that no mailbox sends.
TEST_F(RemoteTest, HostileMessagesAreRefusedAndWedgeNothing) {
  NatsServer server;
  const auto edge = worker("edge", "a", server.url());
  const auto bus = Bus::connect(bus_at(server.url())).value();
  const auto box = mailbox(server.url());
  Rng rng(9);
  std::vector<std::byte> noise(5000);
  for (int i = 0; i < 200; ++i) {
    for (std::byte& b : noise) b = static_cast<std::byte>(rng.below(256));
    EXPECT_TRUE(bus->publish(tier_subject("edge"), "nobody.1", std::span(noise).first(rng.below(5000))).ok());
    ChunkHead head;  // sound heads around noise
    head.id = static_cast<uint64_t>(i);
    head.sequence = rng.below(3);
    head.n_chunks = 1 + rng.below(3);
    head.total_bytes = rng.below(10000);
    EXPECT_TRUE(
        bus->publish(tier_subject("edge"), "nobody.1", encode_chunk(head, std::span(noise).first(100))).ok());
  }
  for (const char* op :
       {"", "open", "put", "load", "frame", "tile", "prepare", "survey", "reach", "probe", "none"}) {
    Content content;
    content.meta = {{"op", op}, {"key", 3}, {"bytes", -1}};
    EXPECT_FALSE(box->request(tier_subject("edge"), content).ok()) << op;
  }
  RemoteHop hop(box, source_, 1, {"edge"});
  EXPECT_TRUE(same(run(hop, {thirds(8, 1000), {}})));
}

TEST_F(RemoteTest, ASlowLinkSlowsTheSenderAndLosesNothing) {
  NatsServer server;
  const auto edge = worker("edge", "a", server.url());
  const auto relay = Relay::start(0, "127.0.0.1", server.port(), {0.005, 4e6, 4e6}).value();
  RemoteHop hop(mailbox("nats://127.0.0.1:" + std::to_string(relay->port())), source_, 1, {"edge"});
  EXPECT_TRUE(same(run(hop, {thirds(8, 1000), {}})));
  // Cut in the middle: an error, and well again afterwards.
  relay->set_cut(true);
  EXPECT_FALSE(run(hop, {thirds(8, 1000), {}}).ok());
  relay->set_cut(false);
  bool well = false;
  for (int i = 0; i < 50 && !well; ++i) {
    well = same(run(hop, {thirds(8, 1000), {}}));
    if (!well) std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  EXPECT_TRUE(well);
}

}  // namespace
}  // namespace frugal::dnn
