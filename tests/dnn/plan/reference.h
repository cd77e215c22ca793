// Naive twins for the planner: plans tried one by one and priced straight from the definition, sharing no
// code with the planner's cost model; and random problems to try them on.
#pragma once

#include <algorithm>
#include <functional>
#include <limits>
#include <vector>

#include "base/rng.h"
#include "base/text.h"
#include "frugal/dnn.h"

namespace frugal::dnn::reference {

// The weighted cost of a plan, from the words of frugal/dnn.h.
inline double price(const Graph& graph, const Cluster& cluster, const Objective& objective,
                    const std::vector<int>& tier) {
  double seconds = 0, active_joules = 0, backbone = 0, grams = 0;
  int furthest = 0;
  const auto kwh = [](double joules) { return joules / 3.6e6; };
  const auto cross = [&](size_t k, double bytes, double rate) {
    const Link& link = cluster.links[k];
    const double time = link.tensor_seconds + bytes / rate;
    seconds += time;
    if (k == 0) active_joules += time * link.send_watts;
    grams += kwh(time * link.send_watts) * cluster.tiers[k].gco2e_per_kwh;
    grams += kwh(bytes * link.joules_per_byte) *
             (cluster.tiers[k].gco2e_per_kwh + cluster.tiers[k + 1].gco2e_per_kwh) / 2;
    if (link.backbone) backbone += bytes;
  };
  for (size_t v = 0; v < graph.vertices.size(); ++v) {
    const auto k = static_cast<size_t>(tier[v]);
    const double time = cluster.tiers[k].vertex_seconds[v];
    seconds += time;
    const double above_idle = cluster.tiers[k].active_watts - (k == 0 ? cluster.tiers[0].idle_watts : 0);
    if (k == 0) active_joules += time * above_idle;
    grams += kwh(time * above_idle) * cluster.tiers[k].gco2e_per_kwh;
    furthest = std::max(furthest, tier[v]);
  }
  for (const Tensor& tensor : graph.tensors) {
    const int from = tier[static_cast<size_t>(tensor.producer)];
    const auto bytes = static_cast<double>(tensor.bytes);
    for (int k = from; k + 1 < static_cast<int>(cluster.tiers.size()); ++k) {
      const bool wanted_beyond = std::any_of(tensor.consumers.begin(), tensor.consumers.end(),
                                             [&](int w) { return tier[static_cast<size_t>(w)] > k; });
      const auto link = static_cast<size_t>(k);
      if (wanted_beyond) cross(link, bytes, cluster.links[link].up_bytes_per_second);
    }
    if (!tensor.is_output) continue;
    for (int k = 0; k < from; ++k) {
      const auto link = static_cast<size_t>(k);
      cross(link, bytes, cluster.links[link].down_bytes_per_second);
    }
  }
  for (int k = 0; k < furthest; ++k) {
    const auto link = static_cast<size_t>(k);
    seconds += 2 * cluster.links[link].latency_seconds + cluster.tiers[link + 1].call_seconds;
  }
  const double idle_joules = seconds * cluster.tiers[0].idle_watts;
  grams += kwh(idle_joules) * cluster.tiers[0].gco2e_per_kwh;
  return objective.seconds * seconds + objective.device_joules * (active_joules + idle_joules) +
         objective.backbone_bytes * backbone + objective.gco2e * grams;
}

// Calls `visit` with every labelling that keeps the order and `allowed(vertex, tier)`.
inline void each_plan(const Graph& graph, int n_tiers, const std::function<bool(int, int)>& allowed,
                      const std::function<void(const std::vector<int>&)>& visit) {
  std::vector<int> tier(graph.vertices.size(), 0);
  const std::function<void(size_t)> extend = [&](size_t v) {
    if (v == tier.size()) return visit(tier);
    int lowest = 0;
    for (const int t : graph.vertices[v].inputs) {
      lowest = std::max(lowest, tier[static_cast<size_t>(graph.tensors[static_cast<size_t>(t)].producer)]);
    }
    for (int k = lowest; k < n_tiers; ++k) {
      if (!allowed(static_cast<int>(v), k)) continue;
      tier[v] = k;
      extend(v + 1);
    }
  };
  extend(0);
}

// A random graph of `n` vertices, the first an input: every other vertex reads one to three earlier tensors;
// some vertices have two outputs; tensors that nobody reads are results, and a few others too.
inline Graph random_graph(Rng& rng, int n) {
  Graph graph;
  graph.name = "random";
  for (int v = 0; v < n; ++v) {
    Vertex vertex;
    vertex.name = strf("v%d", v);
    vertex.kind = v == 0 ? "Input" : "Convolution";
    vertex.flops = v == 0 ? 0 : 1e6 * rng.uniform();
    vertex.weight_bytes = v == 0 ? 0 : rng.below(1000);
    if (v > 0) {
      const uint32_t n_inputs = 1 + rng.below(3);
      for (uint32_t i = 0; i < n_inputs; ++i) {
        // Mostly near ones, as in real networks.
        const auto n_tensors = static_cast<uint32_t>(graph.tensors.size());
        const uint32_t back = rng.below(rng.below(3) == 0 ? n_tensors : std::min(n_tensors, 3u));
        const int t = static_cast<int>(n_tensors - 1 - back);
        if (std::find(vertex.inputs.begin(), vertex.inputs.end(), t) != vertex.inputs.end()) continue;
        vertex.inputs.push_back(t);
        graph.tensors[static_cast<size_t>(t)].consumers.push_back(v);
      }
    }
    const uint32_t n_outputs = v > 0 && rng.below(6) == 0 ? 2 : 1;
    for (uint32_t i = 0; i < n_outputs; ++i) {
      vertex.outputs.push_back(static_cast<int>(graph.tensors.size()));
      Tensor tensor;
      tensor.name = strf("t%zu", graph.tensors.size());
      tensor.bytes = rng.below(1000000);
      tensor.producer = v;
      tensor.is_output = v > 0 && rng.below(12) == 0;
      graph.tensors.push_back(tensor);
    }
    graph.vertices.push_back(vertex);
  }
  for (Tensor& tensor : graph.tensors) tensor.is_output |= tensor.consumers.empty();
  return graph;
}

// Tiers that get faster and links that differ, so that no single tier wins always.
inline Cluster random_cluster(Rng& rng, const Graph& graph, int n_tiers) {
  Cluster cluster;
  double speed = 1;
  for (int k = 0; k < n_tiers; ++k) {
    Tier tier;
    tier.name = strf("tier%d", k);
    for (const Vertex& vertex : graph.vertices) {
      tier.vertex_seconds.push_back(vertex.kind == "Input" ? 0 : (0.002 + 0.02 * rng.uniform()) / speed);
    }
    tier.call_seconds = 0.002 * rng.uniform();
    tier.idle_watts = 1 + rng.uniform();
    tier.active_watts = tier.idle_watts + 10 * rng.uniform() * (k + 1);
    tier.gco2e_per_kwh = 20 + 500 * rng.uniform();
    cluster.tiers.push_back(tier);
    speed *= 1 + 4 * rng.uniform();
  }
  for (int k = 0; k + 1 < n_tiers; ++k) {
    Link link;
    link.name = strf("link%d", k);
    link.latency_seconds = 0.01 * rng.uniform();
    link.tensor_seconds = 0.001 * rng.uniform();
    link.up_bytes_per_second = 1e6 * (1 + 60 * rng.uniform() * rng.uniform());
    link.down_bytes_per_second = 1e6 * (1 + 60 * rng.uniform());
    link.joules_per_byte = 1e-7 * rng.uniform();
    link.send_watts = 2 * rng.uniform();
    link.backbone = k + 2 == n_tiers;
    cluster.links.push_back(link);
  }
  return cluster;
}

}  // namespace frugal::dnn::reference
