// The LP bound against HiGHS, an independent solver: one resource and several, budgets that bind, that do
// not, and that cannot be met.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/rng.h"
#include "base/text.h"
#include "budget/lp_text.h"
#include "frugal/budget.h"

namespace frugal::budget {
namespace {

struct Case {
  std::string path;
  LpBound bound;
  int n_resources = 0;
};

// Rewards that saturate in the cost with noise on top: hulls of several segments, and dominated chains.
std::vector<float> rewards_of(Rng& rng, const ChainTable& table, int n) {
  std::vector<float> rewards;
  for (int i = 0; i < n; ++i) {
    const double value = 0.2 + rng.uniform(), speed = 0.02 + 0.2 * rng.uniform();
    for (int j = 0; j < table.size(); ++j) {
      const double cost = table.chain(j).cost[0];
      rewards.push_back(static_cast<float>(value * (1 - std::exp(-speed * cost)) + 0.1 * rng.uniform()));
    }
  }
  return rewards;
}

TEST(LpBoundAgainstHighs, IsTheOptimum) {
  const std::string folder = testing::TempDir() + "highs_test";
  std::filesystem::create_directories(folder);
  std::vector<Case> cases;
  std::string command = "python3 scripts/solve_lp.py";
  Rng rng(21);
  for (int round = 0; round < 24; ++round) {
    const int n_resources = 1 + round % 3, n_chains = 4 + static_cast<int>(rng.below(30));
    const int n = 20 + static_cast<int>(rng.below(100));
    std::vector<Chain> chains(static_cast<size_t>(n_chains));
    for (int j = 0; j < n_chains; ++j) {
      chains[static_cast<size_t>(j)].name = std::to_string(j);
      for (int k = 0; k < n_resources; ++k)
        chains[static_cast<size_t>(j)].cost[static_cast<size_t>(k)] = 1 + 30 * rng.uniform();
    }
    std::vector<std::string> names{"flops", "joules", "seconds"};
    names.resize(static_cast<size_t>(n_resources));
    const auto table = ChainTable::create(names, chains).value();
    auto rewards = rewards_of(rng, *table, n);
    if (round % 4 == 0) std::fill_n(rewards.begin(), n_chains, NAN);  // a request that nothing is known of
    Amounts budget;
    budget.fill(std::numeric_limits<double>::infinity());
    // From a tenth below what the cheapest chains take (there is no solution) to more than enough.
    for (int k = 0; k < n_resources; ++k) {
      const double least = table->costs(k)[static_cast<size_t>(table->cheapest_in(k))] * n;
      const double share[] = {3, 6, 1.5, 12, 2, 40, 4, 0.9};
      budget[static_cast<size_t>(k)] = least * share[static_cast<size_t>(round / 3)];
    }
    Case one{folder + strf("/%d.lp", round), lp_bound(rewards, n, *table, budget), n_resources};
    std::ofstream(one.path) << lp_text(rewards, n, *table, budget);
    command += " " + one.path;
    cases.push_back(one);
  }
  FILE* pipe = popen(command.c_str(), "r");
  ASSERT_NE(pipe, nullptr);
  int n_optimal = 0, n_infeasible = 0;
  for (const Case& one : cases) {
    char line[1024];
    ASSERT_NE(std::fgets(line, sizeof line, pipe), nullptr) << "HiGHS is not there: run scripts/bootstrap.py";
    const auto said = nlohmann::json::parse(line);
    SCOPED_TRACE(line);
    EXPECT_EQ(one.bound.feasible, said["optimal"].get<bool>());
    if (!said["optimal"]) {
      ++n_infeasible;
      continue;
    }
    ++n_optimal;
    // HiGHS solves to 1e-7 of each constraint; the ellipsoid of several resources to 1e-6 of the objective.
    const double optimum = said["objective"];
    EXPECT_NEAR(one.bound.reward, optimum, (one.n_resources == 1 ? 1e-6 : 1e-5) * optimum);
    if (one.n_resources > 1) {
      EXPECT_GE(one.bound.reward, optimum * (1 - 1e-6));  // never below: it is a bound
    }
  }
  EXPECT_EQ(0, pclose(pipe));
  EXPECT_GE(n_optimal, 12);
  EXPECT_GE(n_infeasible, 3);
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace frugal::budget
