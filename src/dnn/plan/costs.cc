#include "dnn/plan/costs.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/text.h"

namespace frugal::dnn {
namespace {

constexpr double kJoulesPerKwh = 3.6e6;

bool sound(double value) { return std::isfinite(value) && value >= 0; }

// Grams for joules spent on tier k, or on link k (whose network is taken to run on the mean of its ends'
// mixes).
double tier_grams(const Cluster& cluster, size_t k, double joules) {
  return joules / kJoulesPerKwh * cluster.tiers[k].gco2e_per_kwh;
}
double link_grams(const Cluster& cluster, size_t k, double joules) {
  return joules / kJoulesPerKwh * 0.5 * (cluster.tiers[k].gco2e_per_kwh + cluster.tiers[k + 1].gco2e_per_kwh);
}

// The quantities of an objective, for one small piece of a plan.
struct Quantities {
  double seconds = 0, device_joules = 0, backbone_bytes = 0, gco2e = 0;

  double weighted(const Objective& objective) const {
    return objective.seconds * seconds + objective.device_joules * device_joules +
           objective.backbone_bytes * backbone_bytes + objective.gco2e * gco2e;
  }
  Quantities& operator+=(const Quantities& other) {
    seconds += other.seconds;
    device_joules += other.device_joules;
    backbone_bytes += other.backbone_bytes;
    gco2e += other.gco2e;
    return *this;
  }
};

// Any time that passes costs tier 0 its idle power; the device's own work and radio add what they draw above
// it.
Quantities elapsed(const Cluster& cluster, double seconds) {
  Quantities q;
  q.seconds = seconds;
  q.device_joules = seconds * cluster.tiers[0].idle_watts;
  q.gco2e = tier_grams(cluster, 0, q.device_joules);
  return q;
}

Quantities compute(const Cluster& cluster, size_t tier, double seconds) {
  Quantities q = elapsed(cluster, seconds);
  const double watts = cluster.tiers[tier].active_watts - (tier == 0 ? cluster.tiers[0].idle_watts : 0);
  const double joules = seconds * std::max(0.0, watts);
  if (tier == 0) q.device_joules += joules;
  q.gco2e += tier_grams(cluster, tier, joules);
  return q;
}

Quantities transfer(const Cluster& cluster, size_t link, double bytes, double seconds) {
  const Link& l = cluster.links[link];
  Quantities q = elapsed(cluster, seconds);
  const double radio = seconds * l.send_watts;
  if (link == 0) q.device_joules += radio;
  q.gco2e += tier_grams(cluster, link, radio) + link_grams(cluster, link, bytes * l.joules_per_byte);
  if (l.backbone) q.backbone_bytes += bytes;
  return q;
}

// A tensor's way up over one link: as it is or packed, whichever is cheaper by the objective.
struct Crossing {
  Quantities cost;
  double bytes = 0, wire_seconds = 0, pack_seconds = 0, unpack_seconds = 0;
  bool packed = false;
};
Crossing move_up(const Graph& graph, const Cluster& cluster, const Objective& objective, size_t link,
                 size_t t) {
  const Link& l = cluster.links[link];
  const Tier &from = cluster.tiers[link], &to = cluster.tiers[link + 1];
  const auto cross = [&](double bytes, double pack_seconds, double unpack_seconds) {
    Crossing crossing{
        {}, bytes, l.tensor_seconds + bytes / l.up_bytes_per_second, pack_seconds, unpack_seconds};
    crossing.cost = transfer(cluster, link, bytes, crossing.wire_seconds);
    crossing.cost += compute(cluster, link, pack_seconds);
    crossing.cost += compute(cluster, link + 1, unpack_seconds);
    return crossing;
  };
  const Crossing plain = cross(static_cast<double>(graph.tensors[t].bytes), 0, 0);
  if (cluster.packed_bytes.empty() || cluster.packed_bytes[t] <= 0 || from.pack_seconds.empty() ||
      to.unpack_seconds.empty())
    return plain;
  Crossing packed = cross(cluster.packed_bytes[t], from.pack_seconds[t], to.unpack_seconds[t]);
  packed.packed = true;
  return packed.cost.weighted(objective) < plain.cost.weighted(objective) ? packed : plain;
}

// A result's way back over one link. Its latency is counted with the opening of the link.
double down_seconds(const Link& link, const Tensor& tensor) {
  return link.tensor_seconds + static_cast<double>(tensor.bytes) / link.down_bytes_per_second;
}
Quantities move_down(const Cluster& cluster, size_t link, const Tensor& tensor) {
  return transfer(cluster, link, static_cast<double>(tensor.bytes),
                  down_seconds(cluster.links[link], tensor));
}

// Using anything beyond link k at all: the way there, the way back, and the call of the tier.
Quantities open(const Cluster& cluster, size_t link) {
  Quantities q = elapsed(cluster, 2 * cluster.links[link].latency_seconds);
  q += elapsed(cluster, cluster.tiers[link + 1].call_seconds);
  return q;
}

}  // namespace

Status check_request(const Graph& graph, const Cluster& cluster, const PlanRequest& request) {
  const auto invalid = [](std::string message) {
    return Status(ErrorCode::kInvalidArgument, std::move(message));
  };
  if (cluster.tiers.empty()) return invalid("a cluster needs at least one tier");
  if (cluster.links.size() + 1 != cluster.tiers.size()) {
    return invalid(strf("%zu tiers need %zu links, not %zu", cluster.tiers.size(), cluster.tiers.size() - 1,
                        cluster.links.size()));
  }
  for (const Tier& tier : cluster.tiers) {
    const char* name = tier.name.c_str();
    if (tier.vertex_seconds.size() != graph.vertices.size()) {
      return invalid(strf("tier '%s' has times for %zu vertices, the graph has %zu; profile this model on it",
                          name, tier.vertex_seconds.size(), graph.vertices.size()));
    }
    for (size_t v = 0; v < tier.vertex_seconds.size(); ++v) {
      if (!sound(tier.vertex_seconds[v]))
        return invalid(strf("tier '%s' has no sound time for vertex %zu", name, v));
    }
    if (!tier.tile_fixed_seconds.empty() &&
        (tier.tile_fixed_seconds.size() != graph.vertices.size() ||
         !std::all_of(tier.tile_fixed_seconds.begin(), tier.tile_fixed_seconds.end(), sound)))
      return invalid(strf("tier '%s' has no sound cost of tiles for every vertex", name));
    for (const auto* seconds : {&tier.pack_seconds, &tier.unpack_seconds}) {
      if (!seconds->empty() &&
          (seconds->size() != graph.tensors.size() || !std::all_of(seconds->begin(), seconds->end(), sound)))
        return invalid(strf("tier '%s' has no sound cost of packing for every tensor", name));
    }
    if (!sound(tier.call_seconds) || !sound(tier.active_watts) || !sound(tier.idle_watts) ||
        !sound(tier.gco2e_per_kwh)) {
      return invalid(strf("tier '%s' has a negative or unsound figure", name));
    }
    for (const double speed : tier.worker_speeds) {
      if (!sound(speed) || speed <= 0)
        return invalid(strf("tier '%s' has a worker without a sound speed", name));
    }
    if (!tier.worker_speeds.empty() &&
        (!sound(tier.peer_bytes_per_second) || tier.peer_bytes_per_second <= 0 ||
         !sound(tier.peer_latency_seconds))) {
      return invalid(strf("tier '%s' has no sound link between its workers", name));
    }
  }
  for (const Link& link : cluster.links) {
    if (!sound(link.latency_seconds) || !sound(link.tensor_seconds) || !sound(link.joules_per_byte) ||
        !sound(link.send_watts)) {
      return invalid(strf("link '%s' has a negative or unsound figure", link.name.c_str()));
    }
    if (!sound(link.up_bytes_per_second) || !sound(link.down_bytes_per_second) ||
        link.up_bytes_per_second <= 0 || link.down_bytes_per_second <= 0) {
      return invalid(
          strf("link '%s' has no bandwidth; leave out the tiers beyond a dead link", link.name.c_str()));
    }
  }
  if (!cluster.packed_bytes.empty() &&
      (cluster.packed_bytes.size() != graph.tensors.size() || cluster.tiers.size() > 64 ||
       !std::all_of(cluster.packed_bytes.begin(), cluster.packed_bytes.end(), sound)))
    return invalid("the cluster has no sound packed size for every tensor");
  const Objective& o = request.objective;
  if (!sound(o.seconds) || !sound(o.device_joules) || !sound(o.backbone_bytes) || !sound(o.gco2e)) {
    return invalid("the weights of an objective are finite and not negative");
  }
  if (o.seconds + o.device_joules + o.backbone_bytes + o.gco2e <= 0) {
    return invalid("an objective weighs at least one quantity");
  }
  return {};
}

Result<std::vector<TierRange>> allowed_tiers(const Graph& graph, const Cluster& cluster,
                                             const PlanRequest& request) {
  const int last = static_cast<int>(cluster.tiers.size()) - 1;
  std::vector<TierRange> allowed(graph.vertices.size(), TierRange{0, last});
  for (size_t v = 0; v < graph.vertices.size(); ++v) {
    if (graph.vertices[v].kind != "Input") continue;
    allowed[v] = {0, 0};  // the input is where the user is
    if (!request.keep_input_private) continue;
    for (const int t : graph.vertices[v].outputs) {
      for (const int consumer : graph.tensors[static_cast<size_t>(t)].consumers) {
        allowed[static_cast<size_t>(consumer)].highest = 0;
      }
    }
  }
  for (const Pin& pin : request.pins) {
    if (pin.vertex < 0 || static_cast<size_t>(pin.vertex) >= graph.vertices.size()) {
      return Error{ErrorCode::kInvalidArgument, strf("there is no vertex %d to pin; the graph has %zu",
                                                     pin.vertex, graph.vertices.size())};
    }
    TierRange& range = allowed[static_cast<size_t>(pin.vertex)];
    range.lowest = std::max(range.lowest, pin.lowest);
    range.highest = std::min(range.highest, pin.highest);
    if (range.lowest > range.highest) {
      return Error{ErrorCode::kOutOfRange,
                   strf("the pins leave no tier for vertex %d ('%s')", pin.vertex,
                        graph.vertices[static_cast<size_t>(pin.vertex)].name.c_str())};
    }
  }
  return allowed;
}

CutProblem make_problem(const Graph& graph, const Cluster& cluster, const Objective& objective,
                        std::span<const TierRange> allowed) {
  CutProblem p;
  p.n_labels = static_cast<int>(cluster.tiers.size());
  p.n_vertices = static_cast<int>(graph.vertices.size());
  const size_t n_labels = cluster.tiers.size(), n_links = cluster.links.size();
  p.unary.resize(graph.vertices.size() * n_labels);
  for (size_t v = 0; v < graph.vertices.size(); ++v) {
    for (size_t k = 0; k < n_labels; ++k) {
      double& cost = p.unary[v * n_labels + k];
      const int label = static_cast<int>(k);
      if (label < allowed[v].lowest || label > allowed[v].highest) {
        cost = kNotAllowed;
        continue;
      }
      Quantities q = compute(cluster, k, cluster.tiers[k].vertex_seconds[v]);
      for (const int t : graph.vertices[v].outputs) {
        if (!graph.tensors[static_cast<size_t>(t)].is_output) continue;
        for (size_t link = 0; link < k; ++link)
          q += move_down(cluster, link, graph.tensors[static_cast<size_t>(t)]);
      }
      cost = q.weighted(objective);
    }
  }
  p.consumer_begin.push_back(0);
  for (size_t t = 0; t < graph.tensors.size(); ++t) {
    const Tensor& tensor = graph.tensors[t];
    p.producer.push_back(tensor.producer);
    p.consumers.insert(p.consumers.end(), tensor.consumers.begin(), tensor.consumers.end());
    p.consumer_begin.push_back(static_cast<int>(p.consumers.size()));
    for (size_t k = 0; k < n_links; ++k)
      p.move.push_back(move_up(graph, cluster, objective, k, t).cost.weighted(objective));
  }
  for (size_t k = 0; k < n_links; ++k) p.open.push_back(open(cluster, k).weighted(objective));
  return p;
}

Plan describe(const Graph& graph, const Cluster& cluster, const Objective& objective, std::vector<int> tier,
              std::vector<TiledRun> tiled_runs) {
  Plan plan;
  plan.tiers.resize(cluster.tiers.size());
  plan.links.resize(cluster.links.size());
  Quantities total;
  int furthest = 0;
  const auto add_transfer = [&](size_t k, const Quantities& q, double bytes, double wire_seconds) {
    LinkShare& share = plan.links[k];
    const double network = bytes * cluster.links[k].joules_per_byte;
    const double radio = wire_seconds * cluster.links[k].send_watts;
    share.seconds += q.seconds;  // with packing and unpacking
    share.joules += network + radio;
    share.gco2e += link_grams(cluster, k, network) + tier_grams(cluster, k, radio);
    total += q;
  };
  for (size_t v = 0; v < graph.vertices.size(); ++v) {
    const auto k = static_cast<size_t>(tier[v]);
    const Vertex& vertex = graph.vertices[v];
    const double seconds = cluster.tiers[k].vertex_seconds[v];
    TierShare& share = plan.tiers[k];
    share.n_vertices += vertex.kind != "Input";
    share.seconds += seconds;
    share.joules += seconds * cluster.tiers[k].active_watts;
    share.weight_bytes += vertex.weight_bytes;
    total += compute(cluster, k, seconds);
    furthest = std::max(furthest, tier[v]);
    for (const int t : vertex.outputs) {
      const Tensor& tensor = graph.tensors[static_cast<size_t>(t)];
      size_t reach = k;
      for (const int consumer : tensor.consumers)
        reach = std::max(reach, static_cast<size_t>(tier[static_cast<size_t>(consumer)]));
      for (size_t link = k; link < reach; ++link) {
        const Crossing crossing = move_up(graph, cluster, objective, link, static_cast<size_t>(t));
        add_transfer(link, crossing.cost, crossing.bytes, crossing.wire_seconds);
        plan.links[link].up_bytes += static_cast<uint64_t>(crossing.bytes);
        ++plan.links[link].n_tensors;
        if (!crossing.packed) continue;
        const auto watts = [&](size_t at) {  // above idle on tier 0, whose idle power is counted below
          return std::max(0.0, cluster.tiers[at].active_watts - (at == 0 ? cluster.tiers[0].idle_watts : 0));
        };
        plan.tiers[link].joules += crossing.pack_seconds * watts(link);
        plan.tiers[link + 1].joules += crossing.unpack_seconds * watts(link + 1);
        ++plan.links[link].n_packed;
        plan.packed.resize(graph.tensors.size());
        plan.packed[static_cast<size_t>(t)] |= uint64_t{1} << link;
      }
      if (!tensor.is_output) continue;
      for (size_t link = 0; link < k; ++link) {
        add_transfer(link, move_down(cluster, link, tensor), static_cast<double>(tensor.bytes),
                     down_seconds(cluster.links[link], tensor));
        plan.links[link].down_bytes += tensor.bytes;
      }
    }
  }
  for (int k = 0; k < furthest; ++k) {
    const auto link = static_cast<size_t>(k);
    total += open(cluster, link);
    plan.links[link].seconds += 2 * cluster.links[link].latency_seconds;
    plan.tiers[link + 1].seconds += cluster.tiers[link + 1].call_seconds;
  }
  // A tiled run takes its own time instead of its vertices' sum, and the work of all its workers.
  for (const TiledRun& run : tiled_runs) {
    const auto k = static_cast<size_t>(run.tier);
    double plain = 0;
    for (const int v : run.vertices) plain += cluster.tiers[k].vertex_seconds[static_cast<size_t>(v)];
    const double work = run.work_seconds - plain, wait = run.seconds - run.work_seconds;
    plan.tiers[k].seconds += work;
    plan.tiers[k].joules += work * cluster.tiers[k].active_watts;
    total += compute(cluster, k, work);
    total += elapsed(cluster, wait);
  }
  plan.tiled_runs = std::move(tiled_runs);
  // What tier 0 draws while it waits belongs to it.
  plan.tiers[0].joules += std::max(0.0, total.seconds - plan.tiers[0].seconds) * cluster.tiers[0].idle_watts;
  for (size_t k = 0; k < plan.tiers.size(); ++k)
    plan.tiers[k].gco2e = tier_grams(cluster, k, plan.tiers[k].joules);
  plan.tier = std::move(tier);
  plan.seconds = total.seconds;
  plan.device_joules = total.device_joules;
  plan.backbone_bytes = total.backbone_bytes;
  plan.gco2e = total.gco2e;
  plan.objective = total.weighted(objective);
  return plan;
}

}  // namespace frugal::dnn
