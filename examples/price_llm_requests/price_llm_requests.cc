// Prices language model requests with the allocator that serves recommenders: the chains are ways to answer
// (model size, cache format, how long it may think), the costs depend on the prompt's length, and the budget
// is joules a second.
//
//   price_llm_requests      prints what easy and hard questions get while the budget is cut by four
//
// The energies and success curves are made up for the example; a server would take them from its meter and
// its logs.
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "frugal/budget.h"

namespace {

struct Way {
  const char* name;
  double joules_per_prompt_token, joules_per_token, thinking_tokens;
  double skill;  // hardness at which it is right half of the time
};

constexpr Way kWays[] = {
    {"small model, no rationale", 0.01, 0.04, 0, -1.0},
    {"small model, 128 tokens", 0.01, 0.04, 128, 0.0},
    {"small model, 512 tokens", 0.01, 0.04, 512, 0.5},
    {"large model, 4-bit cache, 128", 0.08, 0.30, 128, 1.0},
    {"large model, 4-bit cache, 512", 0.08, 0.30, 512, 1.9},
    {"large model, f16 cache, 512", 0.08, 0.36, 512, 2.0},
};

}  // namespace

int main() {
  using namespace frugal::budget;
  std::vector<Chain> chains;
  for (const Way& way : kWays) {
    chains.push_back(
        {way.name, {}, {300 * way.joules_per_prompt_token + way.thinking_tokens * way.joules_per_token}});
  }
  const auto table = ChainTable::create({"joules"}, chains);
  if (!table.ok()) return std::fprintf(stderr, "%s\n", table.error().message.c_str()), 1;
  // A watt is a joule a second: 100 W for two minutes, then 25 W.
  const auto watts = Schedule::piecewise({{0, 100}, {120, 25}});
  if (!watts.ok()) return std::fprintf(stderr, "%s\n", watts.error().message.c_str()), 1;
  ResourceOptions joules;
  joules.budget = *watts;
  GovernorOptions options;
  options.window_s = 30;
  options.sample_every = 1;
  const auto governor = Governor::create(*table, {joules}, options);
  if (!governor.ok()) return std::fprintf(stderr, "%s\n", governor.error().message.c_str()), 1;
  auto decider = (*governor)->open_decider();
  (*governor)->tick(0);
  std::vector<float> rewards(std::size(kWays));
  std::vector<double> costs(std::size(kWays));
  for (int second = 0; second < 240; ++second) {
    double spent = 0;
    std::string picks;
    for (const double hardness : {-1.0, 0.8, 2.0}) {  // an easy, a middling and a hard question each second
      const double prompt_tokens = 200 + 150 * (hardness + 1);
      for (size_t j = 0; j < std::size(kWays); ++j) {
        rewards[j] = static_cast<float>(1 / (1 + std::exp(2 * (hardness - kWays[j].skill))));
        costs[j] = prompt_tokens * kWays[j].joules_per_prompt_token +
                   kWays[j].thinking_tokens * kWays[j].joules_per_token;
      }
      const Decision decision = decider->decide(Request{rewards, costs});
      spent += costs[static_cast<size_t>(decision.chain)];
      picks += std::string(picks.empty() ? "" : " | ") + kWays[decision.chain].name;
    }
    (*governor)->tick(second + 1);
    if (second % 40 == 39)
      std::printf("%3d s  %6.1f J, price %.5f a joule: %s\n", second + 1, spent,
                  (*governor)->state().prices[0], picks.c_str());
  }
  return 0;
}
