// Naive twins for the planner: plans tried one by one and priced straight from the definition, sharing no
// code with the planner's cost model.
#pragma once

#include <algorithm>
#include <array>
#include <functional>
#include <limits>
#include <tuple>
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
  // Working for so long, without what tier 0 draws at idle.
  const auto work = [&](size_t k, double time) {
    seconds += time;
    const double above_idle = cluster.tiers[k].active_watts - (k == 0 ? cluster.tiers[0].idle_watts : 0);
    if (k == 0) active_joules += time * above_idle;
    grams += kwh(time * above_idle) * cluster.tiers[k].gco2e_per_kwh;
  };
  for (size_t v = 0; v < graph.vertices.size(); ++v) {
    const auto k = static_cast<size_t>(tier[v]);
    work(k, cluster.tiers[k].vertex_seconds[v]);
    furthest = std::max(furthest, tier[v]);
  }
  const auto so_far = [&] {
    return objective.seconds * seconds +
           objective.device_joules * (active_joules + seconds * cluster.tiers[0].idle_watts) +
           objective.backbone_bytes * backbone +
           objective.gco2e *
               (grams + kwh(seconds * cluster.tiers[0].idle_watts) * cluster.tiers[0].gco2e_per_kwh);
  };
  for (size_t t = 0; t < graph.tensors.size(); ++t) {
    const Tensor& tensor = graph.tensors[t];
    const int from = tier[static_cast<size_t>(tensor.producer)];
    const auto bytes = static_cast<double>(tensor.bytes);
    for (int k = from; k + 1 < static_cast<int>(cluster.tiers.size()); ++k) {
      const bool wanted_beyond = std::any_of(tensor.consumers.begin(), tensor.consumers.end(),
                                             [&](int w) { return tier[static_cast<size_t>(w)] > k; });
      const auto link = static_cast<size_t>(k);
      if (!wanted_beyond) continue;
      // As it is and packed: what costs less stays.
      const auto before = std::array{seconds, active_joules, backbone, grams};
      cross(link, bytes, cluster.links[link].up_bytes_per_second);
      if (cluster.packed_bytes.empty() || cluster.packed_bytes[t] == 0) continue;
      const double plain = so_far();
      const auto after = std::array{seconds, active_joules, backbone, grams};
      std::tie(seconds, active_joules, backbone, grams) = std::tuple_cat(before);
      work(link, cluster.tiers[link].pack_seconds[t]);
      cross(link, cluster.packed_bytes[t], cluster.links[link].up_bytes_per_second);
      work(link + 1, cluster.tiers[link + 1].unpack_seconds[t]);
      if (so_far() >= plain) std::tie(seconds, active_joules, backbone, grams) = std::tuple_cat(after);
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
  return so_far();
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
