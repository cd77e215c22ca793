// Plans under memory limits. A limit on a tier's weights makes the problem a knapsack (NP-hard), so the cut
// alone does not do: branch and bound, each node bounded by a Lagrangian cut.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "dnn/plan/cut_problem.h"

namespace frugal::dnn {

struct LimitedPlan {
  std::optional<std::vector<int>> labels;  // the best found; none: there is none, or none was found in time
  double lower_bound = 0;                  // of all labellings that keep the limits
};

// weight[v] bytes are held at label(v); limit[label] is the most a label may hold, 0 for no limit. Solves at
// most `max_cuts` minimum cuts; when they suffice, the bound equals the cost.
LimitedPlan solve_with_limits(const CutProblem& problem, std::span<const uint64_t> weight,
                              std::span<const uint64_t> limit, int max_cuts);

// True when the labelling keeps all limits.
bool keeps_limits(std::span<const int> labels, std::span<const uint64_t> weight,
                  std::span<const uint64_t> limit);

}  // namespace frugal::dnn
