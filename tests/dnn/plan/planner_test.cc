#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>

#include "dnn/plan/reference.h"
#include "dnn/plan/synthetic.h"
#include "frugal/dnn.h"

namespace frugal::dnn {
namespace {

using reference::each_plan;
using reference::price;

struct NamedObjective {
  const char* name;
  Objective objective;
};
const NamedObjective kObjectives[] = {
    {"latency", {1, 0, 0, 0}}, {"device energy", {0, 1, 0, 0}},      {"backbone bytes", {0, 0, 1, 0}},
    {"carbon", {0, 0, 0, 1}},  {"weighted sum", {1, 0.1, 1e-7, 30}},
};

// A plan cheaper than another by less than this is not cheaper: costs are rounded to 2^-46 of their sum.
double tolerance(double cost) { return 1e-9 * std::fabs(cost) + 1e-12; }

TEST(Planner, ExactEqualsBruteForceForEveryObjective) {
  Rng rng(20240601);
  int n_checked = 0;
  for (int trial = 0; trial < 1200; ++trial) {
    const int n = 2 + static_cast<int>(rng.below(9)), n_tiers = 1 + static_cast<int>(rng.below(4));
    const Graph graph = random_graph(rng, n);
    ASSERT_TRUE(validate(graph).ok());
    const Cluster cluster = random_cluster(rng, graph, n_tiers);
    PlanRequest request;
    request.keep_input_private = rng.below(4) == 0;
    if (rng.below(3) == 0) {
      const int v = 1 + static_cast<int>(rng.below(static_cast<uint32_t>(n - 1)));
      const int low = static_cast<int>(rng.below(static_cast<uint32_t>(n_tiers)));
      request.pins.push_back(rng.below(2) == 0 ? Pin{v, low} : Pin{v, 0, low});
    }
    const auto allowed = [&](int v, int k) {
      if (graph.vertices[static_cast<size_t>(v)].kind == "Input") return k == 0;
      bool reads_input = false;
      for (const int t : graph.vertices[static_cast<size_t>(v)].inputs) {
        reads_input |= graph.tensors[static_cast<size_t>(t)].producer == 0;
      }
      if (request.keep_input_private && reads_input && k > 0) return false;
      for (const Pin& pin : request.pins) {
        if (pin.vertex == v && (k < pin.lowest || k > pin.highest)) return false;
      }
      return true;
    };
    std::vector<double> best(std::size(kObjectives), std::numeric_limits<double>::infinity());
    each_plan(graph, n_tiers, allowed, [&](const std::vector<int>& tier) {
      for (size_t i = 0; i < best.size(); ++i) {
        best[i] = std::min(best[i], price(graph, cluster, kObjectives[i].objective, tier));
      }
    });
    for (size_t i = 0; i < best.size(); ++i) {
      request.objective = kObjectives[i].objective;
      const Result<Plan> plan = make_plan(graph, cluster, request);
      if (std::isinf(best[i])) {
        ASSERT_FALSE(plan.ok()) << "trial " << trial;
        continue;
      }
      ASSERT_TRUE(plan.ok()) << "trial " << trial << ": " << plan.error().message;
      const double true_cost = price(graph, cluster, request.objective, plan->tier);
      ASSERT_NEAR(plan->objective, true_cost, tolerance(true_cost))
          << kObjectives[i].name << ", trial " << trial;
      ASSERT_NEAR(true_cost, best[i], tolerance(best[i])) << kObjectives[i].name << ", trial " << trial;
      ASSERT_NEAR(plan->lower_bound, best[i], tolerance(best[i]));
      for (size_t v = 0; v < plan->tier.size(); ++v) ASSERT_TRUE(allowed(static_cast<int>(v), plan->tier[v]));
      ++n_checked;
    }
  }
  EXPECT_GE(n_checked, 5000);
}

TEST(Planner, EveryOtherAlgorithmIsSoundAndNeverBeatsTheExactOne) {
  Rng rng(7);
  for (int trial = 0; trial < 300; ++trial) {
    const Graph graph = random_graph(rng, 20 + static_cast<int>(rng.below(60)));
    const Cluster cluster = random_cluster(rng, graph, 3);
    for (const NamedObjective& named : kObjectives) {
      PlanRequest request;
      request.objective = named.objective;
      const Result<Plan> exact = make_plan(graph, cluster, request);
      ASSERT_TRUE(exact.ok());
      for (const Algorithm algorithm : all_algorithms()) {
        const Result<Plan> plan = make_plan(graph, cluster, request, algorithm);
        ASSERT_TRUE(plan.ok()) << algorithm_name(algorithm) << ": " << plan.error().message;
        ASSERT_GE(plan->objective, exact->objective - tolerance(exact->objective))
            << algorithm_name(algorithm);
        ASSERT_TRUE(price_plan(graph, cluster, request, plan->tier).ok()) << algorithm_name(algorithm);
      }
    }
  }
}

TEST(Planner, BaselinesUseTheTiersTheyAreNamedFor) {
  Rng rng(11);
  const Graph graph = random_graph(rng, 30);
  const Cluster cluster = random_cluster(rng, graph, 3);
  const auto tiers_of = [&](Algorithm algorithm) {
    std::vector<int> used(3, 0);
    const Plan plan = make_plan(graph, cluster, {}, algorithm).value();
    for (size_t v = 1; v < plan.tier.size(); ++v) ++used[static_cast<size_t>(plan.tier[v])];
    return used;
  };
  EXPECT_EQ(tiers_of(Algorithm::kDeviceOnly), (std::vector<int>{29, 0, 0}));
  EXPECT_EQ(tiers_of(Algorithm::kEdgeOnly), (std::vector<int>{0, 29, 0}));
  EXPECT_EQ(tiers_of(Algorithm::kCloudOnly), (std::vector<int>{0, 0, 29}));
  EXPECT_EQ(tiers_of(Algorithm::kNeurosurgeon)[1], 0);
  EXPECT_EQ(tiers_of(Algorithm::kDads)[0], 0);
}

// All single-cut plans, priced by the twin.
TEST(Planner, NeurosurgeonFindsTheBestSingleCut) {
  Rng rng(12);
  for (int trial = 0; trial < 100; ++trial) {
    const Graph graph = random_graph(rng, 15);
    const Cluster cluster = random_cluster(rng, graph, 3);
    double best = std::numeric_limits<double>::infinity();
    for (size_t cut = 1; cut <= 15; ++cut) {
      std::vector<int> tier(15, 2);
      std::fill_n(tier.begin(), cut, 0);
      best = std::min(best, price(graph, cluster, Objective{}, tier));
    }
    const Plan plan = make_plan(graph, cluster, {}, Algorithm::kNeurosurgeon).value();
    EXPECT_NEAR(plan.objective, best, tolerance(best));
  }
}

TEST(Planner, LocalAdjustmentNeverCostsMoreThanKeepingThePlanAndTouchesLittle) {
  Rng rng(13);
  int n_better = 0;
  for (int trial = 0; trial < 200; ++trial) {
    const Graph graph = random_graph(rng, 60);
    Cluster cluster = random_cluster(rng, graph, 3);
    const Plan before = make_plan(graph, cluster, {}, Algorithm::kHpa).value();
    // One vertex becomes slow where it is.
    const auto v = 1 + static_cast<size_t>(rng.below(59));
    cluster.tiers[static_cast<size_t>(before.tier[v])].vertex_seconds[v] *= 50;
    const Plan kept = price_plan(graph, cluster, {}, before.tier).value();
    const int affected[] = {static_cast<int>(v)};
    const Plan after = adjust_plan(graph, cluster, {}, before, affected).value();
    EXPECT_LE(after.objective, kept.objective);
    n_better += after.objective < kept.objective;
  }
  EXPECT_GT(n_better, 20);
  // Nothing affected: nothing moves.
  const Graph graph = random_graph(rng, 30);
  const Cluster cluster = random_cluster(rng, graph, 3);
  const Plan plan = make_plan(graph, cluster, {}, Algorithm::kCloudOnly).value();
  EXPECT_EQ(adjust_plan(graph, cluster, {}, plan, {})->tier, plan.tier);
}

TEST(Planner, PlansUnderMemoryLimitsEqualBruteForce) {
  Rng rng(14);
  int n_bind = 0;
  for (int trial = 0; trial < 300; ++trial) {
    const Graph graph = random_graph(rng, 9);
    Cluster cluster = random_cluster(rng, graph, 3);
    uint64_t total = 0;
    for (const Vertex& vertex : graph.vertices) total += vertex.weight_bytes;
    for (Tier& tier : cluster.tiers) tier.memory_bytes = 1 + total * (3 + rng.below(7)) / 10;
    double best = std::numeric_limits<double>::infinity();
    each_plan(
        graph, 3, [](int v, int k) { return v > 0 || k == 0; },
        [&](const std::vector<int>& tier) {
          std::vector<uint64_t> held(3, 0);
          for (size_t v = 0; v < tier.size(); ++v)
            held[static_cast<size_t>(tier[v])] += graph.vertices[v].weight_bytes;
          for (size_t k = 0; k < 3; ++k) {
            if (held[k] > cluster.tiers[k].memory_bytes) return;
          }
          best = std::min(best, price(graph, cluster, Objective{}, tier));
        });
    if (std::isinf(best)) {
      EXPECT_FALSE(make_plan(graph, cluster, {}).ok());
      continue;
    }
    const Result<Plan> plan = make_plan(graph, cluster, {});
    ASSERT_TRUE(plan.ok()) << trial << ": " << plan.error().message;
    EXPECT_NEAR(plan->objective, best, tolerance(best)) << trial;
    EXPECT_LE(plan->lower_bound, best + tolerance(best));
    std::vector<uint64_t> held(3, 0);
    for (size_t v = 0; v < 9; ++v) held[static_cast<size_t>(plan->tier[v])] += graph.vertices[v].weight_bytes;
    for (size_t k = 0; k < 3; ++k) EXPECT_LE(held[k], cluster.tiers[k].memory_bytes);
    const PlanRequest free;
    Cluster unlimited = cluster;
    for (Tier& tier : unlimited.tiers) tier.memory_bytes = 0;
    n_bind += make_plan(graph, unlimited, free)->objective < best - tolerance(best);
  }
  EXPECT_GT(n_bind, 100);  // the limits did something
}

TEST(Planner, SharesSumToTheWhole) {
  Rng rng(15);
  for (int trial = 0; trial < 50; ++trial) {
    const Graph graph = random_graph(rng, 40);
    const Cluster cluster = random_cluster(rng, graph, 3);
    const Plan plan = make_plan(graph, cluster, {}, trial % 2 ? Algorithm::kExact : Algorithm::kDads).value();
    double seconds = 0, gco2e = 0;
    int n_vertices = 0;
    for (const TierShare& share : plan.tiers) {
      seconds += share.seconds;
      gco2e += share.gco2e;
      n_vertices += share.n_vertices;
    }
    for (const LinkShare& share : plan.links) {
      seconds += share.seconds;
      gco2e += share.gco2e;
    }
    EXPECT_NEAR(seconds, plan.seconds, 1e-12 * plan.seconds + 1e-15);
    EXPECT_NEAR(gco2e, plan.gco2e, 1e-9 * plan.gco2e + 1e-18);
    EXPECT_EQ(n_vertices, 39);
    const std::string text = explain_plan(graph, cluster, {}, plan);
    EXPECT_NE(text.find("tier0"), std::string::npos);
  }
}

TEST(Planner, HpaGapToTheOptimum) {
  Rng rng(16);
  std::vector<double> gaps;
  for (int trial = 0; trial < 400; ++trial) {
    const Graph graph = random_graph(rng, 20 + static_cast<int>(rng.below(40)));
    const Cluster cluster = random_cluster(rng, graph, 3);
    gaps.push_back(make_plan(graph, cluster, {}, Algorithm::kHpa)->objective /
                   make_plan(graph, cluster, {})->objective);
  }
  std::sort(gaps.begin(), gaps.end());
  EXPECT_GE(gaps.front(), 1 - 1e-9);
  std::printf("HPA cost over the optimum, 400 random graphs: median %.3f, p90 %.3f, worst %.3f\n", gaps[200],
              gaps[360], gaps[399]);
}

TEST(Planner, BadInputIsRefusedWithAReason) {
  Rng rng(17);
  const Graph graph = random_graph(rng, 10);
  const Cluster good = random_cluster(rng, graph, 3);
  const auto message = [&](const Cluster& cluster, const PlanRequest& request) {
    const Result<Plan> plan = make_plan(graph, cluster, request);
    return plan.ok() ? std::string("no error") : plan.error().message;
  };
  Cluster cluster = good;
  cluster.links.pop_back();
  EXPECT_NE(message(cluster, {}).find("3 tiers need 2 links"), std::string::npos);
  cluster = good;
  cluster.tiers[1].vertex_seconds.pop_back();
  EXPECT_NE(message(cluster, {}).find("profile this model"), std::string::npos);
  cluster = good;
  cluster.tiers[1].vertex_seconds[3] = std::nan("");
  EXPECT_NE(message(cluster, {}).find("vertex 3"), std::string::npos);
  cluster = good;
  cluster.links[0].up_bytes_per_second = 0;
  EXPECT_NE(message(cluster, {}).find("no bandwidth"), std::string::npos);
  EXPECT_NE(message({}, {}).find("at least one tier"), std::string::npos);
  PlanRequest request;
  request.objective = {0, 0, 0, 0};
  EXPECT_NE(message(good, request).find("weighs"), std::string::npos);
  request = {};
  request.pins = {{10, 0, 0}};
  EXPECT_NE(message(good, request).find("no vertex 10"), std::string::npos);
  request.pins = {{5, 2, 2}, {5, 0, 1}};
  EXPECT_NE(message(good, request).find("no tier for vertex 5"), std::string::npos);
  EXPECT_FALSE(parse_algorithm("best").ok());
  EXPECT_EQ(parse_algorithm("dads").value(), Algorithm::kDads);
  EXPECT_FALSE(price_plan(graph, good, {}, std::vector<int>(3, 0)).ok());
  EXPECT_FALSE(price_plan(graph, good, {}, std::vector<int>(10, 3)).ok());
}

TEST(Graph, ValidateFindsBrokenLists) {
  Rng rng(18);
  const Graph good = random_graph(rng, 12);
  ASSERT_TRUE(validate(good).ok());
  const auto broken = [&](const std::function<void(Graph&)>& damage) {
    Graph graph = good;
    damage(graph);
    return !validate(graph).ok();
  };
  EXPECT_TRUE(broken([](Graph& g) { g.vertices[3].inputs.push_back(99); }));
  EXPECT_TRUE(broken([](Graph& g) { g.vertices[3].inputs.push_back(-1); }));
  EXPECT_TRUE(broken([](Graph& g) { g.tensors[2].producer = 0; }));
  EXPECT_TRUE(broken([](Graph& g) { g.tensors[0].consumers.push_back(0); }));
  EXPECT_TRUE(broken([](Graph& g) { g.tensors[0].consumers.clear(); }));
  EXPECT_TRUE(broken([](Graph& g) { std::swap(g.vertices[1], g.vertices[2]); }));
}

}  // namespace
}  // namespace frugal::dnn
