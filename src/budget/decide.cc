// The argmax over chains: the one thing that runs for every request.
#define FRUGAL_ARGMAX argmax_generic
#include "budget/argmax.inc.h"
#include "frugal/budget.h"

namespace frugal::budget {

#ifdef FRUGAL_HAVE_AVX2
int argmax_avx2(const float* rewards, const float* priced_costs, size_t n);
#endif

ArgmaxKernel find_argmax_kernel(const char* name) {
  if (std::strcmp(name, "generic") == 0) return argmax_generic;
#ifdef FRUGAL_HAVE_AVX2
  __builtin_cpu_init();
  if (std::strcmp(name, "avx2") == 0 && __builtin_cpu_supports("avx2")) return argmax_avx2;
#endif
  return nullptr;
}

int argmax_net_reward(std::span<const float> rewards, std::span<const float> priced_costs) {
  static const ArgmaxKernel kernel = [] {
    const ArgmaxKernel avx2 = find_argmax_kernel("avx2");
    return avx2 != nullptr ? avx2 : argmax_generic;
  }();
  return kernel(rewards.data(), priced_costs.data(), rewards.size());
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
