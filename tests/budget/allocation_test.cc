// The argmax, the chain table, schedules: against naive twins, and with input that makes no sense.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "base/rng.h"
#include "budget/argmax.h"
#include "frugal/budget.h"

namespace frugal::budget {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

int naive_argmax(const std::vector<float>& rewards, const std::vector<float>& priced) {
  int best = -1;
  for (size_t j = 0; j < rewards.size(); ++j) {
    const float score = rewards[j] - priced[j];
    if (!std::isfinite(score)) continue;
    if (best < 0 || score > rewards[static_cast<size_t>(best)] - priced[static_cast<size_t>(best)])
      best = static_cast<int>(j);
  }
  return best;
}

TEST(Argmax, EqualsTheNaiveTwinAtEveryLengthWithTiesAndBadValues) {
  Rng rng(1);
  for (size_t n = 0; n <= 67; ++n) {
    for (int round = 0; round < 200; ++round) {
      std::vector<float> rewards(n), priced(n);
      for (size_t j = 0; j < n; ++j) {
        rewards[j] = static_cast<float>(rng.below(6));  // few values: many ties
        priced[j] = static_cast<float>(rng.below(3));
        const uint32_t odd = rng.below(12);
        if (odd == 0) rewards[j] = kNan;
        if (odd == 1) rewards[j] = kInf;
        if (odd == 2) rewards[j] = -kInf;
        if (odd == 3) priced[j] = kInf;
      }
      ASSERT_EQ(argmax_net_reward(rewards, priced), naive_argmax(rewards, priced)) << "n " << n;
      for (const char* set : {"generic", "avx2"}) {
        const ArgmaxKernel kernel = find_argmax_kernel(set);
        if (kernel == nullptr) continue;
        ASSERT_EQ(kernel(rewards.data(), priced.data(), n), naive_argmax(rewards, priced))
            << set << ", n " << n;
      }
    }
  }
}

Chain chain(const char* name, double cost, double second = 0) { return {name, {}, {cost, second}}; }

TEST(ChainTable, RefusesWhatMakesNoSenseAndSaysWhichChain) {
  EXPECT_FALSE(ChainTable::create({"flops"}, {}).ok());
  EXPECT_FALSE(ChainTable::create({}, {chain("a", 1)}).ok());
  EXPECT_FALSE(ChainTable::create({"1", "2", "3", "4", "5"}, {chain("a", 1)}).ok());
  EXPECT_FALSE(ChainTable::create({"flops"}, {chain("a", 1), chain("a", 2)}).ok());
  for (const double cost : {-1.0, static_cast<double>(kNan), static_cast<double>(kInf)}) {
    const auto table = ChainTable::create({"flops"}, {chain("good", 1), chain("bad", cost)});
    ASSERT_FALSE(table.ok());
    EXPECT_NE(table.error().message.find("'bad'"), std::string::npos) << table.error().message;
  }
}

TEST(ChainTable, KnowsCheapestAndDearest) {
  const auto table =
      ChainTable::create({"flops", "joules"}, {chain("a", 8, 1), chain("b", 0, 2), chain("c", 9, 9)});
  ASSERT_TRUE(table.ok());
  EXPECT_EQ((*table)->cheapest(), 1);  // 0/9 + 2/9 < 8/9 + 1/9
  EXPECT_EQ((*table)->cheapest_in(0), 1);
  EXPECT_EQ((*table)->cheapest_in(1), 0);
  EXPECT_EQ((*table)->dearest_in(0), 2);
  EXPECT_EQ((*table)->find("c"), 2);
  EXPECT_EQ((*table)->find("d"), -1);
}

TEST(Schedule, IntegralEqualsASumOfSmallSteps) {
  const auto day = Schedule::piecewise({{0, 2}, {10, 0}, {15, 5}}, 24);
  ASSERT_TRUE(day.ok());
  const auto once = Schedule::piecewise({{5, 1}, {10, 3}});
  ASSERT_TRUE(once.ok());
  Rng rng(2);
  for (const Schedule& schedule : {*day, *once, Schedule::constant(4)}) {
    for (int round = 0; round < 50; ++round) {
      const double from = -30 + 0.25 * rng.below(300), to = from + 0.25 * rng.below(300);
      double sum = 0;
      for (double t = from; t < to; t += 0.25) sum += 0.25 * schedule.rate(t);
      EXPECT_NEAR(schedule.amount(from, to), sum, 1e-9) << from << " .. " << to;
    }
  }
  EXPECT_TRUE(std::isinf(Schedule().amount(0, 1)));
  EXPECT_EQ(Schedule().amount(1, 0), 0);
}

TEST(Schedule, RefusesWhatMakesNoSense) {
  EXPECT_FALSE(Schedule::piecewise({}).ok());
  EXPECT_FALSE(Schedule::piecewise({{0, 1}, {0, 2}}).ok());
  EXPECT_FALSE(Schedule::piecewise({{0, -1}}).ok());
  EXPECT_FALSE(Schedule::piecewise({{0, static_cast<double>(kNan)}}).ok());
  EXPECT_FALSE(Schedule::piecewise({{1, 1}}, 10).ok());           // a period starts at 0
  EXPECT_FALSE(Schedule::piecewise({{0, 1}, {10, 1}}, 10).ok());  // and outlasts its points
}

TEST(Controller, NamesRoundTripAndOptionsAreChecked) {
  for (const char* name : {"static", "primal_dual", "bisection", "pid", "mpc"}) {
    const auto kind = parse_controller(name);
    ASSERT_TRUE(kind.ok());
    EXPECT_EQ(controller_name(*kind), name);
    const auto controller = make_controller({.kind = *kind}, 1);
    ASSERT_TRUE(controller.ok());
    EXPECT_EQ((*controller)->name(), name);
  }
  EXPECT_FALSE(parse_controller("magic").ok());
  EXPECT_FALSE(make_controller({.step = 0}, 1).ok());
  EXPECT_FALSE(make_controller({.kp = static_cast<double>(kNan)}, 1).ok());
  EXPECT_FALSE(make_controller({.alpha = 0}, 1).ok());
  EXPECT_FALSE(make_controller({}, kMaxResources + 1).ok());
}

}  // namespace
}  // namespace frugal::budget
