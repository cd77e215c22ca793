// Tiled plans: what they cost by hand, that they only ever save time, and that unequal workers get unequal
// tiles.
#include "dnn/plan/vsm.h"

#include <gtest/gtest.h>

#include "dnn/plan/synthetic.h"

namespace frugal::dnn {
namespace {

Tier edge_of(const Graph& graph, std::vector<double> speeds, double bytes_per_second) {
  Tier tier;
  tier.name = "edge";
  for (const Vertex& vertex : graph.vertices)
    tier.vertex_seconds.push_back(vertex.kind == "Input" ? 0 : 0.056);
  tier.worker_speeds = std::move(speeds);
  tier.peer_bytes_per_second = bytes_per_second;
  tier.peer_latency_seconds = 0.001;
  return tier;
}

TEST(Vsm, ARunCostsWhatItsPartsCost) {
  const Graph graph = conv_chain(2);
  const Tier tier = edge_of(graph, {1, 1}, 1e6);
  TiledRun run{1, {1, 2}, {{0, 28, 0, 56}, {28, 56, 0, 56}}, 0, 0};
  ASSERT_TRUE(price_run(graph, tier, nullptr, run).ok());
  // A row costs a millisecond; the inner tile of the first convolution has one row of halo, its input two.
  const double work = 0.028 + 0.029, row_bytes = 16 * 56 * 4;
  EXPECT_NEAR(run.work_seconds, 2 * work, 1e-12);
  EXPECT_NEAR(run.seconds, 0.001 + 30 * row_bytes / 1e6 + work + 0.001 + 28 * row_bytes / 1e6, 1e-12);
}

TEST(Vsm, TilesThatStayCostTheRowsThatTheyShare) {
  const Graph graph = conv_chain(2);
  const Tier tier = edge_of(graph, {1, 1}, 1e6);
  const std::vector<TileBounds> halves = {{0, 28, 0, 56}, {28, 56, 0, 56}};
  TiledRun first{1, {1}, halves, 0, 0, true}, second{1, {2}, halves, 0, 0};
  ASSERT_TRUE(price_run(graph, tier, nullptr, first).ok());
  ASSERT_TRUE(price_run(graph, tier, &first, second).ok());
  const double row_bytes = 16 * 56 * 4, row = row_bytes / 1e6;
  EXPECT_NEAR(first.seconds, 0.001 + 29 * row + 0.028 + 0.001, 1e-12);
  // A row of worker 1's half goes to worker 0, one of its goes back, and the second half comes home.
  EXPECT_NEAR(second.seconds, 0.001 + 2 * row + 0.028 + 0.001 + 28 * row, 1e-12);
  EXPECT_NEAR(second.work_seconds, 2 * 0.028, 1e-12);
}

TEST(Vsm, ChainsThatCannotBeAreRefused) {
  const Graph graph = conv_chain(3);
  Cluster cluster;
  cluster.tiers = {edge_of(graph, {}, 1), edge_of(graph, {1, 1}, 1e9)};
  Link link;
  link.up_bytes_per_second = link.down_bytes_per_second = 1e8;
  cluster.links = {link};
  const std::vector<TileBounds> halves = {{0, 28, 0, 56}, {28, 56, 0, 56}};
  const std::vector<TileBounds> columns = {{0, 56, 0, 28}, {0, 56, 28, 56}};
  const std::vector<int> tier = {0, 1, 1, 1};
  const auto takes = [&](std::vector<TiledRun> runs) {
    return price_plan(graph, cluster, {}, tier, std::move(runs)).ok();
  };
  EXPECT_TRUE(takes({{1, {1}, halves, 0, 0, true}, {1, {2}, halves, 0, 0, false}}));
  EXPECT_FALSE(takes({{1, {1}, halves, 0, 0, true}}));                                 // with nobody to go on
  EXPECT_FALSE(takes({{1, {1}, halves, 0, 0, true}, {1, {3}, halves, 0, 0, false}}));  // one between them
  EXPECT_FALSE(takes({{1, {1}, columns, 0, 0, true}, {1, {2}, columns, 0, 0, false}}));  // not full rows
  EXPECT_FALSE(takes({{1, {1}, halves, 0, 0, true}, {1, {2}, {{0, 56, 0, 56}}, 0, 0, false}}));
}

TEST(Vsm, WhereLinksAreThinTilesStay) {
  const Graph graph = conv_chain(12);
  const Tier tier = edge_of(graph, {1, 1, 1, 1}, 1e7);
  const std::vector<TiledRun> runs = TilePlanner(graph, tier, 1).tile(std::vector<int>(13, 1));
  ASSERT_FALSE(runs.empty());
  int n_stay = 0;
  for (const TiledRun& run : runs) n_stay += run.stays;
  EXPECT_GT(n_stay, 0);
  EXPECT_FALSE(runs.back().stays);
}

TEST(Vsm, MeasuredFixedCostsOfTilesCount) {
  const Graph graph = conv_chain(1);
  Tier tier = edge_of(graph, {1, 1}, 1e6);
  tier.tile_fixed_seconds = {0, 0.010};
  TiledRun run{1, {1}, {{0, 28, 0, 56}, {28, 56, 0, 56}}, 0, 0};
  ASSERT_TRUE(price_run(graph, tier, nullptr, run).ok());
  EXPECT_NEAR(run.work_seconds, 2 * (0.028 + 0.5 * 0.010), 1e-12);
}

TEST(Vsm, TilesThatSaveLessThanIsKnownAreLeft) {
  const Graph graph = conv_chain(8);
  Cluster cluster;
  cluster.tiers = {edge_of(graph, {}, 1), edge_of(graph, {1, 1, 1, 1}, 1e9)};
  for (double& seconds : cluster.tiers[0].vertex_seconds) seconds *= 8;
  Link link;
  link.up_bytes_per_second = link.down_bytes_per_second = 1e8;
  cluster.links = {link};
  PlanRequest request;
  const Plan tiled = make_plan(graph, cluster, request).value();
  EXPECT_FALSE(tiled.tiled_runs.empty());
  request.least_tile_gain = 0.95;
  const Plan plain = make_plan(graph, cluster, request).value();
  EXPECT_TRUE(plain.tiled_runs.empty());
  EXPECT_LT(tiled.seconds, plain.seconds);
}

TEST(Vsm, TilesThatOverlapOrLeaveGapsAreRefused) {
  const Graph graph = conv_chain(1);
  const Tier tier = edge_of(graph, {1, 1}, 1e6);
  TiledRun gap{1, {1}, {{0, 28, 0, 56}, {29, 56, 0, 56}}, 0, 0};
  TiledRun overlap{1, {1}, {{0, 28, 0, 56}, {27, 55, 0, 56}}, 0, 0};
  TiledRun outside{1, {1}, {{0, 57, 0, 56}}, 0, 0};
  for (TiledRun* run : {&gap, &overlap, &outside}) EXPECT_FALSE(price_run(graph, tier, nullptr, *run).ok());
}

TEST(Vsm, FastPeersAreUsedAndSlowLinksAreNot) {
  const Graph graph = conv_chain(8);
  const std::vector<int> labels(graph.vertices.size(), 1);
  const double plain = 8 * 0.056;
  const Tier fast = edge_of(graph, {1, 1, 1, 1}, 1e9);
  double tiled = plain;
  const std::vector<TiledRun> runs = TilePlanner(graph, fast, 1).tile(labels);
  ASSERT_FALSE(runs.empty());
  for (const TiledRun& run : runs) tiled += run.seconds - 0.056 * static_cast<double>(run.vertices.size());
  EXPECT_LT(tiled, plain / 2.5);
  EXPECT_TRUE(TilePlanner(graph, edge_of(graph, {1, 1, 1, 1}, 1e4), 1).tile(labels).empty());
  EXPECT_TRUE(TilePlanner(graph, edge_of(graph, {1}, 1e9), 1).tile(labels).empty());
  // On another tier there is nothing to tile.
  EXPECT_TRUE(TilePlanner(graph, fast, 1).tile(std::vector<int>(graph.vertices.size(), 0)).empty());
}

TEST(Vsm, UnequalWorkersGetUnequalTiles) {
  const Graph graph = conv_chain(4);
  const std::vector<int> labels(graph.vertices.size(), 1);
  const auto runs = TilePlanner(graph, edge_of(graph, {1, 0.25}, 1e9), 1).tile(labels);
  ASSERT_FALSE(runs.empty());
  for (const TiledRun& run : runs) {
    ASSERT_EQ(run.tiles.size(), 2u);
    EXPECT_GT(run.tiles[0].row_end - run.tiles[0].row_begin,
              2 * (run.tiles[1].row_end - run.tiles[1].row_begin));
  }
}

TEST(Vsm, PlansWithTilesNeverCostMoreThanWithout) {
  const Graph graph = conv_chain(8);
  for (const double rate : {1e5, 1e6, 1e7, 1e8}) {
    Cluster cluster;
    cluster.tiers = {edge_of(graph, {}, 1), edge_of(graph, {}, 1), edge_of(graph, {}, 1)};
    for (double& seconds : cluster.tiers[0].vertex_seconds) seconds *= 4;
    for (double& seconds : cluster.tiers[2].vertex_seconds) seconds *= 0.25;
    Link link;
    link.up_bytes_per_second = link.down_bytes_per_second = rate;
    cluster.links = {link, link};
    const Plan without = make_plan(graph, cluster, {}).value();
    cluster.tiers[1].worker_speeds = {1, 1, 1, 1};
    cluster.tiers[1].peer_bytes_per_second = 1e8;
    const Plan with = make_plan(graph, cluster, {}).value();
    EXPECT_LE(with.seconds, without.seconds * (1 + 1e-12));
    // What the plan says is what pricing it again says.
    const Plan again = price_plan(graph, cluster, {}, with.tier, with.tiled_runs).value();
    EXPECT_NEAR(again.seconds, with.seconds, 1e-12);
  }
}

}  // namespace
}  // namespace frugal::dnn
