// The LP bound: against the dual function evaluated at every breakpoint, against enumeration, and as a bound.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/rng.h"
#include "frugal/budget.h"

namespace frugal::budget {
namespace {

struct Instance {
  std::shared_ptr<const ChainTable> table;
  std::vector<float> rewards;
  int n;
};

Instance random_instance(Rng& rng, int n, int n_chains, int n_resources) {
  std::vector<Chain> chains(static_cast<size_t>(n_chains));
  for (int j = 0; j < n_chains; ++j) {
    chains[static_cast<size_t>(j)].name = std::to_string(j);
    for (int k = 0; k < n_resources; ++k)
      chains[static_cast<size_t>(j)].cost[static_cast<size_t>(k)] = 1 + rng.below(20);
  }
  std::vector<std::string> resources{"a", "b", "c"};
  resources.resize(static_cast<size_t>(n_resources));
  Instance instance{ChainTable::create(resources, chains).value(), {}, n};
  for (int i = 0; i < n * n_chains; ++i) instance.rewards.push_back(static_cast<float>(rng.uniform()));
  return instance;
}

double dual_at(const Instance& in, const std::vector<double>& prices, const Amounts& budget) {
  double sum = 0;
  for (size_t k = 0; k < prices.size(); ++k) sum += prices[k] * budget[k];
  const int m = in.table->size();
  for (int i = 0; i < in.n; ++i) {
    double best = -1e300;
    for (int j = 0; j < m; ++j) {
      double score = static_cast<double>(in.rewards[static_cast<size_t>(i * m + j)]);
      for (size_t k = 0; k < prices.size(); ++k) score -= prices[k] * in.table->chain(j).cost[k];
      best = std::max(best, score);
    }
    sum += best;
  }
  return sum;
}

// The best integral allocation, by enumeration; -1 if none fits.
double enumerate(const Instance& in, const Amounts& budget) {
  const int m = in.table->size();
  std::vector<int> choice(static_cast<size_t>(in.n), 0);
  double best = -1;
  while (true) {
    Amounts spent{};
    double reward = 0;
    for (int i = 0; i < in.n; ++i) {
      const int j = choice[static_cast<size_t>(i)];
      reward += static_cast<double>(in.rewards[static_cast<size_t>(i * m + j)]);
      for (size_t k = 0; k < spent.size(); ++k) spent[k] += in.table->chain(j).cost[k];
    }
    bool fits = true;
    for (int k = 0; k < in.table->n_resources(); ++k)
      fits &= spent[static_cast<size_t>(k)] <= budget[static_cast<size_t>(k)];
    if (fits) best = std::max(best, reward);
    int i = 0;
    while (i < in.n && ++choice[static_cast<size_t>(i)] == m) choice[static_cast<size_t>(i++)] = 0;
    if (i == in.n) return best;
  }
}

TEST(LpBound, OneResourceEqualsTheLeastOfTheDualOverAllItsBreakpoints) {
  Rng rng(3);
  for (int round = 0; round < 100; ++round) {
    const Instance in = random_instance(rng, 8, 6, 1);
    const double budget = 30 + rng.below(120);
    const LpBound bound = lp_bound(in.rewards, in.n, *in.table, {budget});
    // D is convex and piecewise linear; its breakpoints are slopes between two chains of one request, and 0.
    double least = dual_at(in, {0}, {budget});
    double cheapest = 0;
    for (int i = 0; i < in.n; ++i) {
      cheapest += in.table->costs(0)[static_cast<size_t>(in.table->cheapest_in(0))];
      for (int a = 0; a < 6; ++a) {
        for (int b = 0; b < 6; ++b) {
          const double dc = in.table->chain(b).cost[0] - in.table->chain(a).cost[0];
          const double dr = static_cast<double>(in.rewards[static_cast<size_t>(i * 6 + b)]) -
                            in.rewards[static_cast<size_t>(i * 6 + a)];
          if (dc > 0 && dr > 0) least = std::min(least, dual_at(in, {dr / dc}, {budget}));
        }
      }
    }
    ASSERT_EQ(bound.feasible, cheapest <= budget);
    if (!bound.feasible) continue;
    EXPECT_NEAR(bound.reward, least, 1e-6);
    EXPECT_LE(bound.spent[0], budget + 1e-9);
    EXPECT_NEAR(dual_at(in, bound.prices, {budget}), bound.reward, 1e-6);  // the price is a dual optimum
  }
}

TEST(LpBound, BoundsEveryIntegralAllocationAndIsNear) {
  Rng rng(4);
  int feasible = 0;
  for (int round = 0; round < 60; ++round) {
    const int n_resources = 1 + static_cast<int>(rng.below(3));
    const Instance in = random_instance(rng, 6, 4, n_resources);
    Amounts budget{};
    for (int k = 0; k < n_resources; ++k) budget[static_cast<size_t>(k)] = 40 + rng.below(60);
    const double best = enumerate(in, budget);
    const LpBound bound = lp_bound(in.rewards, in.n, *in.table, budget);
    if (best < 0) continue;
    ++feasible;
    EXPECT_GE(bound.reward, best - 1e-6);
    EXPECT_LE(bound.lower, bound.reward + 1e-6);
    // An LP vertex splits at most one request for each resource, and a reward is below 1.
    EXPECT_LE(bound.reward, best + n_resources + 1e-3);
  }
  EXPECT_GT(feasible, 20);
}

TEST(LpBound, SeveralResourcesReachTheLeastOfTheDualOnAGrid) {
  Rng rng(5);
  for (int round = 0; round < 10; ++round) {
    const Instance in = random_instance(rng, 20, 5, 2);
    const Amounts budget{150.0 + rng.below(50), 150.0 + rng.below(50)};
    const LpBound bound = lp_bound(in.rewards, in.n, *in.table, budget);
    if (!bound.feasible) continue;
    double least = 1e300;
    for (int a = 0; a <= 200; ++a) {
      for (int b = 0; b <= 200; ++b) least = std::min(least, dual_at(in, {0.001 * a, 0.001 * b}, budget));
    }
    EXPECT_LE(bound.reward, least + 1e-3);
    EXPECT_NEAR(dual_at(in, bound.prices, budget), bound.reward, 1e-4 * bound.reward);
    EXPECT_GE(bound.lower, 0.8 * bound.reward);
  }
}

TEST(LpBound, RewardGrowsWithTheBudgetAndStopsAtTheFreeOptimum) {
  Rng rng(6);
  const Instance in = random_instance(rng, 50, 8, 1);
  double last = -1;
  for (double budget = 0; budget < 1200; budget += 25) {
    const LpBound bound = lp_bound(in.rewards, in.n, *in.table, {budget});
    EXPECT_GE(bound.reward, last);
    last = bound.reward;
  }
  const LpBound free = lp_bound(in.rewards, in.n, *in.table, {std::numeric_limits<double>::infinity()});
  EXPECT_NEAR(last, free.reward, 1e-9);
  EXPECT_EQ(free.prices[0], 0);
}

TEST(LpBound, SurvivesRowsWithoutRewardsAndAnEmptyProblem) {
  Rng rng(7);
  Instance in = random_instance(rng, 4, 3, 2);
  for (int j = 0; j < 3; ++j) in.rewards[static_cast<size_t>(j)] = NAN;
  const LpBound bound = lp_bound(in.rewards, in.n, *in.table, {100, 100});
  EXPECT_TRUE(std::isfinite(bound.reward));
  EXPECT_EQ(lp_bound({}, 0, *in.table, {1, 1}).reward, 0);
  EXPECT_FALSE(lp_bound(in.rewards, in.n, *in.table, {1, 1}).feasible);
}

}  // namespace
}  // namespace frugal::budget
