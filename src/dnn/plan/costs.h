// From graph, cluster and objective to a cut problem, and from a labelling back to what it means.
#pragma once

#include <span>
#include <vector>

#include "dnn/plan/cut_problem.h"
#include "frugal/dnn.h"

namespace frugal::dnn {

// kInvalidArgument: sizes that do not fit, figures that are negative or not finite, an objective that weighs
// nothing, pins on vertices or tiers that are not there.
Status check_request(const Graph& graph, const Cluster& cluster, const PlanRequest& request);

// The tiers that each vertex may use: pins, private input, and inputs held on tier 0. [n_vertices] of
// {lowest, highest}.
struct TierRange {
  int lowest, highest;
};
Result<std::vector<TierRange>> allowed_tiers(const Graph& graph, const Cluster& cluster,
                                             const PlanRequest& request);

// All four quantities are sums over vertices, tensors and links, so any weighted sum is a cut problem.
// Waiting at idle power is counted as idle power over the whole latency plus what computing draws above it.
CutProblem make_problem(const Graph& graph, const Cluster& cluster, const Objective& objective,
                        std::span<const TierRange> allowed);

// Prices `tier` in full: quantities, shares, weighted sum. The labelling has to keep the order, and the runs
// are priced (vsm.h).
Plan describe(const Graph& graph, const Cluster& cluster, const Objective& objective, std::vector<int> tier,
              std::vector<TiledRun> tiled_runs = {});

}  // namespace frugal::dnn
