// Naive twins for the planner: plans tried one by one and priced straight from the definition, sharing no
// code with the planner's cost model.
#pragma once

#include <algorithm>
#include <functional>
#include <limits>
#include <vector>

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

}  // namespace frugal::dnn::reference
