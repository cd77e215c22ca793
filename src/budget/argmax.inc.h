// The body of argmax_<set>(); FRUGAL_ARGMAX names the function. See argmax.h.
#include <cfloat>
#include <cstring>

#include "budget/argmax.h"

namespace frugal::budget {
namespace {
constexpr size_t kLanes = 8;
using Floats = float __attribute__((vector_size(kLanes * sizeof(float))));
using Ints = int __attribute__((vector_size(kLanes * sizeof(int))));
}  // namespace

int FRUGAL_ARGMAX(const float* rewards, const float* priced_costs, size_t n) {
  float best_score = -__builtin_inff();
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
      std::memcpy(&reward, rewards + j, sizeof reward);
      std::memcpy(&cost, priced_costs + j, sizeof cost);
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

}  // namespace frugal::budget
