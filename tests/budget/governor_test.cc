// The closed loop: controllers keep budgets and come near the optimum; accounts add up; bad input is
// survived.
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <limits>
#include <thread>

#include "base/rng.h"
#include "frugal/budget.h"

namespace frugal::budget {
namespace {

constexpr int kChains = 16;

std::shared_ptr<const ChainTable> table_of(int n_resources) {
  std::vector<Chain> chains(kChains);
  for (int j = 0; j < kChains; ++j) {
    chains[static_cast<size_t>(j)].name = std::to_string(j);
    chains[static_cast<size_t>(j)].cost = {1.0 + j * j, 20.0 - j, 0, 0};
  }
  std::vector<std::string> names{"flops", "seconds"};
  names.resize(static_cast<size_t>(n_resources));
  return ChainTable::create(names, chains).value();
}

// Rewards that rise and saturate with the chain, at a rate of the request's own.
std::vector<float> rewards_of(Rng& rng) {
  const double value = rng.uniform() * 2, speed = 0.05 + 0.6 * rng.uniform();
  std::vector<float> rewards(kChains);
  for (int j = 0; j < kChains; ++j)
    rewards[static_cast<size_t>(j)] = static_cast<float>(value * (1 - std::exp(-speed * (j + 1))));
  return rewards;
}

struct Outcome {
  double reward = 0, spent = 0;
  double worst_window = 0;  // spent over budget
  LpBound bound;
};

// `load(t)` requests in second t, ticks a second apart; outcome over the last `measured_s` seconds.
template <typename Load>
Outcome run_loop(ControllerKind kind, double budget, int seconds, int measured_s, Load load,
                 bool hard_cap = false) {
  const auto table = table_of(1);
  GovernorOptions options;
  options.controller.kind = kind;
  options.window_s = 20;
  options.hard_cap = hard_cap;
  auto governor = Governor::create(table, {{.budget = Schedule::constant(budget)}}, options).value();
  auto decider = governor->open_decider();
  governor->tick(0);
  Rng rng(11);
  Outcome outcome;
  std::vector<float> all;
  int n = 0;
  double window = 0;
  for (int t = 0; t < seconds; ++t) {
    if (t % 20 == 0) window = 0;
    for (int i = 0; i < load(t); ++i) {
      const auto rewards = rewards_of(rng);
      const Decision d = decider->decide(rewards);
      window += table->chain(d.chain).cost[0];
      if (t >= seconds - measured_s) {
        outcome.reward += static_cast<double>(d.reward);
        outcome.spent += table->chain(d.chain).cost[0];
        all.insert(all.end(), rewards.begin(), rewards.end());
        ++n;
      }
    }
    if (t >= seconds - measured_s)
      outcome.worst_window = std::max(outcome.worst_window, window / (20 * budget));
    governor->tick(t + 1);
  }
  outcome.bound = lp_bound(all, n, *table, {budget * measured_s});
  return outcome;
}

class EveryController : public testing::TestWithParam<ControllerKind> {};

TEST_P(EveryController, SettlesNearTheOptimumOnStationaryLoad) {
  const Outcome outcome = run_loop(GetParam(), 100 * 30, 300, 100, [](int) { return 100; });
  EXPECT_NEAR(outcome.spent / (100 * 30 * 100), 1, 0.05);
  // Regret at the spending that was reached: a controller that overspends must not look better for it.
  EXPECT_GE(outcome.reward, 0.96 * outcome.bound.reward);
  EXPECT_LE(outcome.worst_window, 1.15);
}

TEST_P(EveryController, ServesTheBestWhenTheBudgetDoesNotBind) {
  const Outcome outcome = run_loop(GetParam(), 1e9, 60, 20, [](int) { return 20; });
  EXPECT_NEAR(outcome.reward, outcome.bound.reward, 1e-3);
}

TEST_P(EveryController, ComesBackAfterAStep) {
  const Outcome outcome = run_loop(GetParam(), 100 * 30, 400, 100, [](int t) { return t < 200 ? 60 : 150; });
  EXPECT_NEAR(outcome.spent / (100 * 30 * 100), 1, 0.06);
  EXPECT_GE(outcome.reward, 0.95 * outcome.bound.reward);
}

INSTANTIATE_TEST_SUITE_P(Kinds, EveryController,
                         testing::Values(ControllerKind::kPrimalDual, ControllerKind::kBisection,
                                         ControllerKind::kPid, ControllerKind::kMpc),
                         [](const auto& each) { return std::string(controller_name(each.param)); });

TEST(Governor, HardCapKeepsEveryWindowThroughASpike) {
  const Outcome outcome = run_loop(
      ControllerKind::kMpc, 100 * 30, 400, 400, [](int t) { return t > 150 && t < 250 ? 300 : 100; }, true);
  EXPECT_LE(outcome.worst_window, 1.001);  // the cheapest chains of a tick that trebled were not reserved for
  EXPECT_GE(outcome.spent / outcome.bound.spent[0], 0.97);
}

// A fifth of a window's budget is left over a second before its end: spent at once, at hardly any price, or
// not.
TEST(Mpc, CatchesUpOnNoMoreThanItIsTold) {
  const auto table = table_of(1);
  Rng rng(13);
  std::vector<float> rewards;
  for (int i = 0; i < 200; ++i) {
    const std::vector<float> own = rewards_of(rng);
    rewards.insert(rewards.end(), own.begin(), own.end());
  }
  const auto price_after = [&](double catch_up, double left_over) {
    ControllerOptions options;
    options.kind = ControllerKind::kMpc;
    options.catch_up = catch_up;
    const auto controller = make_controller(options, 1).value();
    TickReport report;
    report.dt_s = 1;
    report.requests = 100;
    report.budget[0] = report.next_budget[0] = report.spent[0] = 3000;
    report.cost_scale[0] = 1;
    report.sample = {rewards, 200};
    report.table = table.get();
    std::vector<double> prices{0.01};
    for (int left_s = 20; left_s > 0; --left_s) {
      report.window_left_s = left_s;
      report.window_left[0] = 3000 * left_s + (left_s == 1 ? left_over : 0);
      controller->update(report, prices);
    }
    return prices[0];
  };
  const double even = price_after(0.5, 0), at_once = price_after(0, 12000), limited = price_after(0.5, 12000);
  EXPECT_GT(even, 0);
  EXPECT_EQ(price_after(0, 0), even);
  EXPECT_LT(at_once, 0.25 * even);
  EXPECT_GT(limited, 0.5 * even);
  EXPECT_LT(limited, even);
  EXPECT_EQ(price_after(0, -2000), price_after(0.5, -2000));  // overspent: made good by the window's end
  ControllerOptions wrong;
  wrong.kind = ControllerKind::kMpc;
  wrong.catch_up = 1.5;
  EXPECT_FALSE(make_controller(wrong, 1).ok());
}

TEST(Governor, KeepsSeveralBudgetsAtOnce) {
  const auto table = table_of(2);
  GovernorOptions options;
  options.controller.kind = ControllerKind::kMpc;
  options.window_s = 20;
  options.hard_cap = false;
  // The second resource is dear where the first is cheap: a mean of 15 a request, whatever the load.
  auto governor = Governor::create(table,
                                   {{.budget = Schedule::constant(60 * 100)},
                                    {.budget = Schedule::constant(15), .per_request = true}},
                                   options)
                      .value();
  auto decider = governor->open_decider();
  governor->tick(0);
  Rng rng(12);
  Amounts spent{};
  for (int t = 0; t < 300; ++t) {
    for (int i = 0; i < 100; ++i) {
      const int j = decider->decide(rewards_of(rng)).chain;
      if (t < 200) continue;
      for (size_t k = 0; k < 2; ++k) spent[k] += table->chain(j).cost[k];
    }
    governor->tick(t + 1);
  }
  EXPECT_LE(spent[0] / (60 * 100 * 100), 1.03);
  EXPECT_LE(spent[1] / (15 * 100 * 100), 1.03);
}

TEST(Governor, UnmeetableBudgetServesTheCheapestAndSaysSo) {
  const auto table = table_of(1);
  GovernorOptions options;
  auto governor = Governor::create(table, {{.budget = Schedule::constant(10)}}, options).value();
  auto decider = governor->open_decider();
  governor->tick(0);
  Rng rng(13);
  for (int t = 0; t < 30; ++t) {
    for (int i = 0; i < 100; ++i) {
      const Decision d = decider->decide(rewards_of(rng));
      if (t > 20) {
        EXPECT_EQ(d.chain, 0);
      }
    }
    governor->tick(t + 1);
  }
  EXPECT_TRUE(governor->state().unmeetable);
}

TEST(Governor, BadRewardsGiveTheCheapestAndAreCounted) {
  auto governor = Governor::create(table_of(1), {{}}, {}).value();
  auto decider = governor->open_decider();
  std::vector<float> rewards(kChains, NAN);
  Decision d = decider->decide(rewards);
  EXPECT_EQ(d.chain, 0);
  EXPECT_EQ(d.kind, DecisionKind::kNoReward);
  rewards[3] = 0.5f;
  rewards[5] = INFINITY;
  d = decider->decide(rewards);
  EXPECT_EQ(d.chain, 3);
  EXPECT_EQ(d.kind, DecisionKind::kPriced);
  governor->tick(0);
  governor->tick(1);
  EXPECT_EQ(governor->state().no_reward, 1u);
  EXPECT_EQ(governor->state().requests, 2u);
}

TEST(Governor, RequestsMayBringTheirOwnCostsAndLimits) {
  auto governor =
      Governor::create(table_of(1), {{.initial_price = 1}}, {.controller = {.kind = ControllerKind::kStatic}})
          .value();
  auto decider = governor->open_decider();
  std::vector<float> rewards(kChains);
  std::vector<double> costs(kChains);
  Rng rng(14);
  for (int round = 0; round < 500; ++round) {
    for (size_t j = 0; j < kChains; ++j) {
      rewards[j] = static_cast<float>(rng.uniform());
      costs[j] = rng.uniform();
    }
    const double limit = rng.uniform();
    int best = -1;
    for (int j = 0; j < kChains; ++j) {
      const auto ji = static_cast<size_t>(j);
      if (costs[ji] > limit) continue;
      if (best < 0 ||
          static_cast<double>(rewards[ji]) - costs[ji] >
              static_cast<double>(rewards[static_cast<size_t>(best)]) - costs[static_cast<size_t>(best)]) {
        best = j;
      }
    }
    const Decision d = decider->decide(Request{rewards, costs, {limit}});
    if (best >= 0) {
      EXPECT_EQ(d.chain, best);
    } else {
      EXPECT_EQ(d.kind, DecisionKind::kNoChain);
    }
  }
}

TEST(Governor, ClockJumpsAreCountedAndSurvived) {
  auto governor = Governor::create(table_of(1), {{.budget = Schedule::constant(1000)}}, {}).value();
  auto decider = governor->open_decider();
  Rng rng(15);
  double now = 1000;
  governor->tick(now);
  for (int t = 0; t < 50; ++t) {
    for (int i = 0; i < 50; ++i) (void)decider->decide(rewards_of(rng));
    governor->tick(now += 1);
  }
  const double price = governor->state().prices[0];
  EXPECT_GT(price, 0);
  governor->tick(now -= 5000);
  governor->tick(now += 1e7);
  governor->tick(std::numeric_limits<double>::quiet_NaN());
  governor->tick(now);  // the same instant again: nothing happens
  EXPECT_EQ(governor->state().clock_jumps, 3u);
  EXPECT_EQ(governor->state().prices[0], price);  // prices outlive a jump
  governor->tick(now + 1);
  EXPECT_EQ(governor->state().clock_jumps, 3u);
}

TEST(Governor, AccountsOfManyThreadsAddUp) {
  const auto table = table_of(1);
  auto governor = Governor::create(table, {{.budget = Schedule::constant(1e5)}}, {}).value();
  constexpr int kThreads = 4, kDeciders = 100, kEach = 200;
  std::vector<double> spent(kThreads, 0.0);
  std::atomic<int> running{kThreads};
  std::vector<std::thread> threads;
  for (int i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] {
      Rng rng(16, static_cast<uint64_t>(i));
      const auto rewards = rewards_of(rng);
      for (int d = 0; d < kDeciders; ++d) {
        auto decider = governor->open_decider();
        for (int n = 0; n < kEach; ++n)
          spent[static_cast<size_t>(i)] += table->chain(decider->decide(rewards).chain).cost[0];
      }
      --running;
    });
  }
  int t = 0;  // deciders close while others decide and the governor adds up
  while (running > 0) governor->tick(t++);
  for (auto& thread : threads) thread.join();
  governor->tick(t++);
  double sum = 0;
  for (const double s : spent) sum += s;
  EXPECT_EQ(governor->state().requests, static_cast<uint64_t>(kThreads) * kDeciders * kEach);
  EXPECT_NEAR(governor->state().spent[0], sum, 1e-6 * sum);
  governor->tick(t);  // closed deciders are counted once
  EXPECT_NEAR(governor->state().spent[0], sum, 1e-6 * sum);
}

TEST(Governor, FollowsPricesFromElsewhereAndRefusesBadOnes) {
  auto governor =
      Governor::create(table_of(1), {{.budget = Schedule::constant(1)}}, {.hard_cap = false}).value();
  auto decider = governor->open_decider();
  governor->follow(true);
  ASSERT_TRUE(governor->set_prices(std::vector<double>{1e6}).ok());
  Rng rng(17);
  EXPECT_EQ(decider->decide(rewards_of(rng)).chain, 0);
  governor->tick(0);
  governor->tick(1);
  EXPECT_EQ(governor->state().prices[0], 1e6);
  EXPECT_FALSE(governor->set_prices(std::vector<double>{-1.0}).ok());
  EXPECT_FALSE(governor->set_prices(std::vector<double>{NAN}).ok());
  EXPECT_FALSE(governor->set_prices(std::vector<double>{1.0, 2.0}).ok());
}

TEST(Governor, MeasuredCostsScaleLaterOnes) {
  auto governor = Governor::create(table_of(1), {{.budget = Schedule::constant(1e9)}}, {}).value();
  auto decider = governor->open_decider();
  for (int i = 0; i < 100; ++i) governor->report_measured(0, 2, 2);  // as predicted: no change
  governor->tick(0);
  Rng rng(18);
  const auto rewards = rewards_of(rng);
  (void)decider->decide(rewards);
  const double before = governor->state().spent[0];
  governor->report_measured(0, 1, 2);  // ten per cent of the way to twice
  governor->report_measured(0, NAN, 2);
  governor->tick(1);
  (void)decider->decide(rewards);
  EXPECT_NEAR(governor->state().spent[0] - before, 1.1 * before, 1e-9 * before);
}

}  // namespace
}  // namespace frugal::budget
