// How long planning takes: a graph of N vertices, three tiers, planned from scratch and again after the
// bandwidth has changed; with tiles, of a chain of so many convolutions over four edge workers; and how far
// the heuristics fall short of the optimum. Prints one JSON object.
//
//   bench_dnn_plan [n_vertices=500] [repetitions=51]
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "base/clock.h"
#include "dnn/plan/synthetic.h"
#include "frugal/dnn.h"

int main(int argc, char** argv) {
  using namespace frugal;
  using namespace frugal::dnn;
  const int n = argc > 1 ? std::atoi(argv[1]) : 500, repetitions = argc > 2 ? std::atoi(argv[2]) : 51;
  if (n < 2 || repetitions < 1) {
    std::fprintf(stderr, "usage: bench_dnn_plan [n_vertices >= 2] [repetitions >= 1]\n");
    return 2;
  }
  std::vector<double> plan_ms, replan_ms, adjust_ms;
  std::vector<double> gap_hpa, gap_neurosurgeon, gap_dads;
  for (int i = 0; i < repetitions; ++i) {
    Rng rng(static_cast<uint64_t>(i));
    const Graph graph = random_graph(rng, n);
    Cluster cluster = random_cluster(rng, graph, 3);
    double start = wall_seconds();
    const Plan plan = make_plan(graph, cluster, {}).value();
    plan_ms.push_back(1e3 * (wall_seconds() - start));
    for (Link& link : cluster.links) link.up_bytes_per_second *= 0.3;
    start = wall_seconds();
    const Plan replanned = make_plan(graph, cluster, {}).value();
    replan_ms.push_back(1e3 * (wall_seconds() - start));
    // What HPA does instead: only the vertices at the cuts are affected by a change of a link.
    std::vector<int> affected;
    for (const Tensor& tensor : graph.tensors) {
      for (const int consumer : tensor.consumers) {
        if (plan.tier[static_cast<size_t>(consumer)] != plan.tier[static_cast<size_t>(tensor.producer)]) {
          affected.push_back(consumer);
          affected.push_back(tensor.producer);
        }
      }
    }
    std::sort(affected.begin(), affected.end());
    affected.erase(std::unique(affected.begin(), affected.end()), affected.end());
    start = wall_seconds();
    const Plan adjusted = adjust_plan(graph, cluster, {}, plan, affected).value();
    adjust_ms.push_back(1e3 * (wall_seconds() - start));
    const auto gap = [&](Algorithm algorithm) {
      return make_plan(graph, cluster, {}, algorithm)->objective / replanned.objective;
    };
    gap_hpa.push_back(gap(Algorithm::kHpa));
    gap_neurosurgeon.push_back(gap(Algorithm::kNeurosurgeon));
    gap_dads.push_back(gap(Algorithm::kDads));
  }
  const Graph chain = conv_chain(n - 1);
  Cluster cluster;
  for (const double seconds : {0.016, 0.004, 0.001}) {
    Tier tier;
    tier.vertex_seconds.assign(chain.vertices.size(), seconds);
    tier.vertex_seconds[0] = 0;
    cluster.tiers.push_back(tier);
  }
  cluster.tiers[1].worker_speeds = {1, 1, 1, 1};
  cluster.tiers[1].peer_latency_seconds = 3e-4;
  cluster.tiers[1].peer_bytes_per_second = 1e8;
  cluster.links.resize(2);
  std::vector<double> tiled_ms;
  for (int i = 0; i < std::min(repetitions, 5); ++i) {
    for (size_t k = 0; k < 2; ++k)  // a far link so thin that the edge is the place to be
      cluster.links[k].up_bytes_per_second = cluster.links[k].down_bytes_per_second =
          (k == 0 ? 1e7 : 1e4) * (1 + i);
    const double start = wall_seconds();
    if (make_plan(chain, cluster, {}).value().tiled_runs.empty()) return 1;
    tiled_ms.push_back(1e3 * (wall_seconds() - start));
  }
  const auto row = [](const char* name, std::vector<double> values, const char* end) {
    std::sort(values.begin(), values.end());
    const size_t last = values.size() - 1;
    std::printf("  \"%s\": {\"min\": %.4f, \"median\": %.4f, \"p90\": %.4f, \"max\": %.4f}%s\n", name,
                values[0], values[last / 2], values[last * 9 / 10], values[last], end);
  };
  std::printf("{\n  \"n_vertices\": %d, \"repetitions\": %d,\n", n, repetitions);
  row("plan_ms", plan_ms, ",");
  row("replan_ms", replan_ms, ",");
  row("adjust_ms", adjust_ms, ",");
  row("tiled_plan_ms", tiled_ms, ",");
  row("hpa_over_exact", gap_hpa, ",");
  row("neurosurgeon_over_exact", gap_neurosurgeon, ",");
  row("dads_over_exact", gap_dads, "");
  std::printf("}\n");
  return 0;
}
