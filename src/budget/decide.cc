// The argmax over chains: the one thing that runs for every request.
#include <cfloat>
#include <cstring>
#include <limits>

#include "frugal/budget.h"

namespace frugal::budget {

namespace {
constexpr size_t kLanes = 8;
using Floats = float __attribute__((vector_size(kLanes * sizeof(float))));
using Ints = int __attribute__((vector_size(kLanes * sizeof(int))));
}  // namespace

int argmax_net_reward(std::span<const float> rewards, std::span<const float> priced_costs) {
  const size_t n = rewards.size();
  float best_score = -std::numeric_limits<float>::infinity();
  int best = -1;
  size_t j = 0;
  if (n >= kLanes) {
    // Each lane keeps the best of its own column. A NaN fails both comparisons, an infinity the second or the
    // first.
    Floats lane_score = best_score - Floats{};
    Ints lane_best = Ints{} - 1;
    Ints index = {0, 1, 2, 3, 4, 5, 6, 7};
    for (; j + kLanes <= n; j += kLanes) {
      Floats reward, cost;
      std::memcpy(&reward, rewards.data() + j, sizeof reward);
      std::memcpy(&cost, priced_costs.data() + j, sizeof cost);
      const Floats score = reward - cost;
      const Ints better = (score > lane_score) & (score <= FLT_MAX);
      lane_score = better ? score : lane_score;
      lane_best = better ? index : lane_best;
      index += static_cast<int>(kLanes);
    }
    for (size_t lane = 0; lane < kLanes; ++lane) {
      const bool tie = lane_score[lane] == best_score && lane_best[lane] >= 0 && lane_best[lane] < best;
      if (lane_best[lane] >= 0 && (lane_score[lane] > best_score || tie)) {
        best_score = lane_score[lane];
        best = lane_best[lane];
      }
    }
  }
  for (; j < n; ++j) {
    const float score = rewards[j] - priced_costs[j];
    if (score > best_score && score <= FLT_MAX) {
      best_score = score;
      best = static_cast<int>(j);
    }
  }
  return best;
}

std::string_view decision_kind_name(DecisionKind kind) {
  switch (kind) {
    case DecisionKind::kPriced:
      return "priced";
    case DecisionKind::kNoReward:
      return "no_reward";
    case DecisionKind::kExhausted:
      return "exhausted";
    case DecisionKind::kNoChain:
      return "no_chain";
  }
  return "";
}

}  // namespace frugal::budget
