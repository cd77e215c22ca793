// make_plan and its kin: checks, the choice of algorithm, memory limits, and the plan in words.
#include <algorithm>
#include <array>
#include <cmath>
#include <optional>

#include "base/check.h"
#include "base/text.h"
#include "dnn/plan/costs.h"
#include "dnn/plan/heuristics.h"
#include "dnn/plan/memory_limit.h"
#include "dnn/plan/vsm.h"

namespace frugal::dnn {
namespace {

constexpr std::array kAlgorithms = {Algorithm::kExact,    Algorithm::kHpa,        Algorithm::kNeurosurgeon,
                                    Algorithm::kDads,     Algorithm::kDeviceOnly, Algorithm::kEdgeOnly,
                                    Algorithm::kCloudOnly};

// Weights of the vertices and limits of the tiers, as the cut problem's labels see them.
struct Memory {
  std::vector<uint64_t> weight, limit;

  Memory(const Graph& graph, const Cluster& cluster) {
    for (const Vertex& vertex : graph.vertices) weight.push_back(vertex.weight_bytes);
    for (const Tier& tier : cluster.tiers) limit.push_back(tier.memory_bytes);
  }
  bool fits(std::span<const int> tier) const { return keeps_limits(tier, weight, limit); }
};

// Cuts that branch and bound may solve: some seconds of work at 500 vertices, far more than small graphs
// need.
constexpr int kMaxLimitCuts = 3000;

Error no_plan(const Cluster& cluster) {
  const bool limited = std::any_of(cluster.tiers.begin(), cluster.tiers.end(),
                                   [](const Tier& tier) { return tier.memory_bytes > 0; });
  return {ErrorCode::kOutOfRange,
          limited ? "no plan found that keeps all pins and memory limits; loosen one of them"
                  : "no plan keeps all pins: along an edge tiers never decrease"};
}

// The first tier with workers to tile over; -1 when there is none.
int tiling_tier(const Cluster& cluster) {
  for (size_t k = 1; k < cluster.tiers.size(); ++k) {
    if (cluster.tiers[k].worker_speeds.size() > 1) return static_cast<int>(k);
  }
  return -1;
}

// Cut and tiles together. Tiling makes a vertex's time depend on its neighbours, which no cut can express, so
// several cuts are tiled and priced: the given one, one that reckons with times as if all were tiled, and
// every pair of cuts right after segments (before the first tier 0, between the two the tiling one, then the
// last).
Plan with_tiles(const Graph& graph, const Cluster& cluster, const PlanRequest& request,
                const CutProblem& problem, std::span<const TierRange> allowed, const Memory& memory,
                Plan plan) {
  const int k = tiling_tier(cluster), last = problem.n_labels - 1;
  const TilePlanner tiles(graph, cluster.tiers[static_cast<size_t>(k)], k);
  const Plan plain = plan;
  const auto consider = [&](const std::vector<int>& labels) {
    if (evaluate(problem, labels) == kNotAllowed || !memory.fits(labels)) return;
    Plan tiled = describe(graph, cluster, request.objective, labels, tiles.tile(labels));
    if (tiled.objective < plan.objective) plan = std::move(tiled);
  };
  consider(plan.tier);
  Cluster faster = cluster;
  faster.tiers[static_cast<size_t>(k)].vertex_seconds = tiles.tiled_vertex_seconds();
  if (const auto labels = solve_min_cut(make_problem(graph, faster, request.objective, allowed)))
    consider(*labels);
  std::vector<int> ends = {0};  // vertices before a cut: its last one
  for (const Segment& segment : tiles.segments()) ends.push_back(segment.vertices.back());
  ends.push_back(static_cast<int>(graph.vertices.size()) - 1);
  // A quick price first: vertices' sums by the tiled times and the tensor at each cut; the best are then
  // priced in full.
  const CutProblem quick = make_problem(graph, faster, request.objective, allowed);
  const auto labels_of = [&](size_t a, size_t b) {
    std::vector<int> labels(graph.vertices.size(), last);
    for (int v = 0; v <= ends[b]; ++v) labels[static_cast<size_t>(v)] = v <= ends[a] ? 0 : k;
    for (size_t v = 0; v < labels.size(); ++v) {
      if (graph.vertices[v].kind == "Input") labels[v] = 0;
    }
    return labels;
  };
  // [end][tier 0, k, last]: what the vertices up to that end cost there, and how many may not be there.
  struct Sum {
    double cost = 0;
    int n_barred = 0;
  };
  const std::array<int, 3> tiers = {0, k, last};
  std::vector<std::array<Sum, 3>> sums;
  std::array<Sum, 3> sum{};
  for (size_t v = 0, e = 0; v < graph.vertices.size(); ++v) {
    for (size_t i = 0; i < 3 && graph.vertices[v].kind != "Input"; ++i) {
      const double cost =
          quick.unary[v * static_cast<size_t>(quick.n_labels) + static_cast<size_t>(tiers[i])];
      if (cost == kNotAllowed)
        ++sum[i].n_barred;
      else
        sum[i].cost += cost;
    }
    for (; e < ends.size() && ends[e] == static_cast<int>(v); ++e) sums.push_back(sum);
  }
  const auto crossing = [&](size_t end, int from, int to) {
    double cost = 0;
    if (end + 1 == ends.size()) return cost;  // nothing lies beyond the last
    const auto t = static_cast<size_t>(graph.vertices[static_cast<size_t>(ends[end])].outputs[0]);
    const auto n_links = static_cast<size_t>(quick.n_labels - 1);
    for (int link = from; link < to; ++link)
      cost += quick.move[t * n_links + static_cast<size_t>(link)] + quick.open[static_cast<size_t>(link)];
    return cost;
  };
  std::vector<std::pair<double, std::pair<size_t, size_t>>> candidates;
  for (size_t a = 0; a < ends.size(); ++a) {
    if (sums[a][0].n_barred > 0) continue;
    const double before = sums[a][0].cost + crossing(a, 0, k);
    for (size_t b = a + 1; b < ends.size(); ++b) {
      if (sums[b][1].n_barred > sums[a][1].n_barred) break;
      if (sums.back()[2].n_barred > sums[b][2].n_barred) continue;
      candidates.push_back({before + sums[b][1].cost - sums[a][1].cost + crossing(b, k, last) +
                                sums.back()[2].cost - sums[b][2].cost,
                            {a, b}});
    }
  }
  constexpr size_t kTried = 24;
  const size_t n = std::min(kTried, candidates.size());
  std::partial_sort(candidates.begin(), candidates.begin() + static_cast<long>(n), candidates.end());
  for (size_t i = 0; i < n; ++i) consider(labels_of(candidates[i].second.first, candidates[i].second.second));
  return plan.objective < (1 - request.least_tile_gain) * plain.objective ? plan : plain;
}

}  // namespace

std::string_view algorithm_name(Algorithm algorithm) {
  switch (algorithm) {
    case Algorithm::kExact:
      return "exact";
    case Algorithm::kHpa:
      return "hpa";
    case Algorithm::kNeurosurgeon:
      return "neurosurgeon";
    case Algorithm::kDads:
      return "dads";
    case Algorithm::kDeviceOnly:
      return "device-only";
    case Algorithm::kEdgeOnly:
      return "edge-only";
    case Algorithm::kCloudOnly:
      return "cloud-only";
  }
  return "unknown";
}

std::span<const Algorithm> all_algorithms() { return kAlgorithms; }

Result<Algorithm> parse_algorithm(std::string_view name) {
  std::string names;
  for (const Algorithm algorithm : kAlgorithms) {
    if (algorithm_name(algorithm) == name) return algorithm;
    names += (names.empty() ? "" : ", ") + std::string(algorithm_name(algorithm));
  }
  return Error{ErrorCode::kInvalidArgument,
               strf("there is no algorithm '%s'; there are %s", std::string(name).c_str(), names.c_str())};
}

Result<Plan> make_plan(const Graph& graph, const Cluster& cluster, const PlanRequest& request,
                       Algorithm algorithm) {
  FRUGAL_TRY_STATUS(check_request(graph, cluster, request));
  FRUGAL_TRY(const std::vector<TierRange> allowed, allowed_tiers(graph, cluster, request));
  const CutProblem problem = make_problem(graph, cluster, request.objective, allowed);
  const Memory memory(graph, cluster);
  const int last = problem.n_labels - 1;
  std::optional<std::vector<int>> labels;
  double lower_bound = -kNotAllowed;
  switch (algorithm) {
    case Algorithm::kExact:
      labels = solve_min_cut(problem);
      if (labels) {
        lower_bound = evaluate(problem, *labels);
        if (!memory.fits(*labels)) {
          LimitedPlan limited = solve_with_limits(problem, memory.weight, memory.limit, kMaxLimitCuts);
          labels = std::move(limited.labels);
          lower_bound = std::max(lower_bound, limited.lower_bound);
        }
      }
      break;
    case Algorithm::kHpa:
      labels = hpa(problem, layers_of(graph));
      break;
    case Algorithm::kNeurosurgeon:
      labels = neurosurgeon(problem);
      break;
    case Algorithm::kDads:
      labels = dads(problem);
      break;
    case Algorithm::kDeviceOnly:
      labels = all_on(problem, 0);
      break;
    case Algorithm::kEdgeOnly:
      if (last < 1) return Error{ErrorCode::kUnsupported, "edge-only needs at least two tiers"};
      labels = all_on(problem, 1);
      break;
    case Algorithm::kCloudOnly:
      labels = all_on(problem, last);
      break;
  }
  if (!labels || !memory.fits(*labels)) return no_plan(cluster);
  Plan plan = describe(graph, cluster, request.objective, std::move(*labels));
  const bool tiles = algorithm == Algorithm::kExact || algorithm == Algorithm::kHpa;
  if (tiles && tiling_tier(cluster) >= 0) {
    plan = with_tiles(graph, cluster, request, problem, allowed, memory, std::move(plan));
    lower_bound = -kNotAllowed;
  }
  plan.algorithm = algorithm_name(algorithm);
  plan.lower_bound = std::min(lower_bound, plan.objective);
  return plan;
}

Result<Plan> price_plan(const Graph& graph, const Cluster& cluster, const PlanRequest& request,
                        std::vector<int> tier, std::vector<TiledRun> tiled_runs) {
  FRUGAL_TRY_STATUS(check_request(graph, cluster, request));
  FRUGAL_TRY(const std::vector<TierRange> allowed, allowed_tiers(graph, cluster, request));
  if (tier.size() != graph.vertices.size()) {
    return Error{ErrorCode::kInvalidArgument, strf("a plan for %zu vertices does not fit a graph of %zu",
                                                   tier.size(), graph.vertices.size())};
  }
  const CutProblem problem = make_problem(graph, cluster, request.objective, allowed);
  if (evaluate(problem, tier) == kNotAllowed) {
    return Error{ErrorCode::kInvalidArgument, "the plan breaks a pin, or a tier decreases along an edge"};
  }
  if (!Memory(graph, cluster).fits(tier)) {
    return Error{ErrorCode::kInvalidArgument, "the plan puts more weights on a tier than its memory limit"};
  }
  std::vector<char> tiled(tier.size(), 0);
  for (size_t r = 0; r < tiled_runs.size(); ++r) {
    TiledRun& run = tiled_runs[r];
    const TiledRun* before = r > 0 && tiled_runs[r - 1].stays ? &tiled_runs[r - 1] : nullptr;
    if (run.stays && (r + 1 == tiled_runs.size() || tiled_runs[r + 1].tier != run.tier))
      return Error{ErrorCode::kInvalidArgument, "tiles stay with workers that have nothing more to do"};
    if (run.tier < 0 || static_cast<size_t>(run.tier) >= cluster.tiers.size()) {
      return Error{ErrorCode::kInvalidArgument, strf("there is no tier %d to tile on", run.tier)};
    }
    FRUGAL_TRY_STATUS(price_run(graph, cluster.tiers[static_cast<size_t>(run.tier)], before, run));
    for (const int v : run.vertices) {
      if (tier[static_cast<size_t>(v)] != run.tier || tiled[static_cast<size_t>(v)]++) {
        return Error{ErrorCode::kInvalidArgument, "a tiled run has a vertex of another tier or run"};
      }
    }
  }
  Plan plan = describe(graph, cluster, request.objective, std::move(tier), std::move(tiled_runs));
  plan.algorithm = "given";
  plan.lower_bound = -kNotAllowed;
  return plan;
}

Result<Plan> adjust_plan(const Graph& graph, const Cluster& cluster, const PlanRequest& request,
                         const Plan& current, std::span<const int> affected) {
  for (const int v : affected) {
    if (v < 0 || static_cast<size_t>(v) >= graph.vertices.size()) {
      return Error{ErrorCode::kInvalidArgument, strf("there is no vertex %d to adjust", v)};
    }
  }
  FRUGAL_TRY(Plan kept, price_plan(graph, cluster, request, current.tier, current.tiled_runs));
  FRUGAL_TRY(const std::vector<TierRange> allowed, allowed_tiers(graph, cluster, request));
  const CutProblem problem = make_problem(graph, cluster, request.objective, allowed);
  std::vector<int> labels = current.tier;
  adjust_locally(problem, affected, labels);
  kept.algorithm = "hpa";
  if (!Memory(graph, cluster).fits(labels)) return kept;
  std::vector<TiledRun> runs;
  if (const int k = tiling_tier(cluster); k >= 0)
    runs = TilePlanner(graph, cluster.tiers[static_cast<size_t>(k)], k).tile(labels);
  Plan plan = describe(graph, cluster, request.objective, std::move(labels), std::move(runs));
  plan.algorithm = "hpa";
  plan.lower_bound = -kNotAllowed;
  return plan.objective <= kept.objective ? plan : kept;
}

std::string explain_plan(const Graph& graph, const Cluster& cluster, const PlanRequest& request,
                         const Plan& plan) {
  std::string text =
      strf("%s plan: %s from input to output, %.3g J on %s, %s over backbone links, %.3g gCO2e\n",
           plan.algorithm.c_str(), human_seconds(plan.seconds).c_str(), plan.device_joules,
           cluster.tiers[0].name.c_str(), human_bytes(plan.backbone_bytes).c_str(), plan.gco2e);
  for (size_t k = 0; k < cluster.tiers.size(); ++k) {
    const TierShare& share = plan.tiers[k];
    text += strf("  %-8s %3d vertices, %s computing, %s of weights, %.3g J\n", cluster.tiers[k].name.c_str(),
                 share.n_vertices, human_seconds(share.seconds).c_str(),
                 human_bytes(static_cast<double>(share.weight_bytes)).c_str(), share.joules);
    for (const TiledRun& run : plan.tiled_runs) {
      if (static_cast<size_t>(run.tier) != k) continue;
      text += strf("    tiled   '%s' to '%s' in %zu tiles%s, %s instead of one worker's\n",
                   graph.vertices[static_cast<size_t>(run.vertices.front())].name.c_str(),
                   graph.vertices[static_cast<size_t>(run.vertices.back())].name.c_str(), run.tiles.size(),
                   run.stays ? " that stay with their workers" : "", human_seconds(run.seconds).c_str());
    }
    if (k >= cluster.links.size() || (plan.links[k].n_tensors == 0 && plan.links[k].down_bytes == 0))
      continue;
    const LinkShare& link = plan.links[k];
    text += strf(
        "    %-6s %d tensor%s up, %s%s; %s down; %s\n", cluster.links[k].name.c_str(), link.n_tensors,
        link.n_tensors == 1 ? "" : "s", link.n_packed > 0 ? strf("%d packed, ", link.n_packed).c_str() : "",
        human_bytes(static_cast<double>(link.up_bytes)).c_str(),
        human_bytes(static_cast<double>(link.down_bytes)).c_str(), human_seconds(link.seconds).c_str());
  }
  // Why here: what each one-tier plan, and a cut one vertex earlier or later at each boundary, would cost.
  const auto compare = [&](const std::string& what, const Result<Plan>& other) {
    if (!other.ok()) return;
    text += strf("  %s: %+.1f %% (%s)\n", what.c_str(),
                 plan.objective > 0 ? 100 * (other->objective / plan.objective - 1) : 0.0,
                 human_seconds(other->seconds).c_str());
  };
  for (size_t k = 0; k < cluster.tiers.size(); ++k) {
    std::vector<int> all(graph.vertices.size(), static_cast<int>(k));
    for (size_t v = 0; v < all.size(); ++v) {
      if (graph.vertices[v].kind == "Input") all[v] = 0;
    }
    if (all != plan.tier)
      compare("all on " + cluster.tiers[k].name, price_plan(graph, cluster, request, all));
  }
  for (size_t k = 0; k + 1 < cluster.tiers.size(); ++k) {
    const int below = static_cast<int>(k);
    std::vector<int> later = plan.tier, earlier = plan.tier;
    const auto first = std::find_if(later.begin(), later.end(), [&](int tier) { return tier > below; });
    if (first != later.end()) {
      const auto v = static_cast<size_t>(first - later.begin());
      *first = below;
      compare(strf("'%s' on %s instead", graph.vertices[v].name.c_str(), cluster.tiers[k].name.c_str()),
              price_plan(graph, cluster, request, later));
    }
    for (size_t v = earlier.size(); v-- > 0;) {
      if (earlier[v] != below || graph.vertices[v].kind == "Input") continue;
      earlier[v] = below + 1;
      compare(strf("'%s' on %s instead", graph.vertices[v].name.c_str(), cluster.tiers[k + 1].name.c_str()),
              price_plan(graph, cluster, request, earlier));
      break;
    }
  }
  return text;
}

}  // namespace frugal::dnn
