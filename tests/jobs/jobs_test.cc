#include "frugal/jobs.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "base/rng.h"
#include "jobs/replay.h"

namespace frugal::jobs {
namespace {

// Clean at noon, dirty at night, with noise.
HourlyIntensity synthetic(size_t n_hours, double noise, uint64_t seed) {
  Rng rng(seed);
  HourlyIntensity truth;
  for (size_t hour = 0; hour < n_hours; ++hour) {
    const double day = 200 + 100 * std::cos(2 * M_PI * static_cast<double>(hour % 24) / 24);
    truth.g_per_kwh.push_back(std::max(1.0, day + noise * rng.normal()));
  }
  return truth;
}

double mean_over(const std::vector<double>& hourly, const Plan& plan) {
  double sum = 0, length = 0;
  for (const auto& run : plan.runs) {
    for (double at = run.begin_unix_s; at < run.end_unix_s - 1e-9;) {
      const double next = std::min(run.end_unix_s, 3600 * (std::floor(at / 3600 + 1e-9) + 1));
      sum += (next - at) * hourly[std::min(static_cast<size_t>(at / 3600 + 1e-9), hourly.size() - 1)];
      length += next - at;
      at = next;
    }
  }
  return sum / length;
}

TEST(Plan, MeetsEveryDeadlineAndIsNoWorseThanBruteForce) {
  Rng rng(3);
  for (int trial = 0; trial < 300; ++trial) {
    const size_t n = 2 + rng.below(8);
    std::vector<double> hourly;
    for (size_t i = 0; i < n; ++i) hourly.push_back(1 + rng.below(20));
    const double now = 600.0 * rng.below(6),
                 deadline = 3600.0 * static_cast<double>(n) - 600.0 * rng.below(6);
    const double length = 600.0 * (1 + rng.below(static_cast<uint32_t>((deadline - now) / 600)));
    for (const bool interruptible : {false, true}) {
      const auto plan = plan_job({length, deadline, interruptible}, now, 0, hourly);
      ASSERT_TRUE(plan.ok());
      EXPECT_TRUE(plan->meets_deadline);
      double total = 0, last = now;
      for (const auto& run : plan->runs) {
        EXPECT_GE(run.begin_unix_s, last - 1e-6);
        EXPECT_LE(run.end_unix_s, deadline + 1e-6);
        total += run.end_unix_s - run.begin_unix_s;
        last = run.end_unix_s;
      }
      EXPECT_NEAR(total, length, 1e-6);
      EXPECT_NEAR(plan->expected_mean, mean_over(hourly, *plan), 1e-6);
      // All times are multiples of ten minutes, so brute force over ten-minute pieces is exact.
      double best = HUGE_VAL;
      if (interruptible) {
        std::vector<double> pieces;
        for (double at = now; at < deadline - 1; at += 600)
          pieces.push_back(hourly[static_cast<size_t>(at / 3600)]);
        std::sort(pieces.begin(), pieces.end());
        best = 0;
        const auto count = static_cast<size_t>(length / 600 + 0.5);
        for (size_t i = 0; i < count; ++i) best += pieces[i] / static_cast<double>(count);
      } else {
        EXPECT_EQ(plan->runs.size(), 1u);
        for (double start = now; start + length <= deadline + 1; start += 600) {
          Plan one;
          one.runs = {{start, start + length}};
          best = std::min(best, mean_over(hourly, one));
        }
      }
      EXPECT_NEAR(plan->expected_mean, best, 1e-6);
    }
  }
}

TEST(Plan, ALostDeadlineMeansAtOnce) {
  const std::vector<double> hourly = {5, 1, 1};
  const auto plan = plan_job({7200, 3600, true}, 0, 0, hourly);
  ASSERT_TRUE(plan.ok());
  EXPECT_FALSE(plan->meets_deadline);
  EXPECT_EQ(plan->runs.at(0).begin_unix_s, 0);
  EXPECT_FALSE(plan_job({0, 10, true}, 0, 0, hourly).ok());
  EXPECT_FALSE(plan_job({std::nan(""), 10, true}, 0, 0, hourly).ok());
  EXPECT_FALSE(plan_job({10, 100, true}, 0, 0, {}).ok());
}

TEST(Forecast, UsesThePastOnly) {
  HourlyIntensity truth = synthetic(24 * 20, 10, 1);
  HourlyIntensity other = truth;
  for (size_t i = 24 * 15 + 1; i < other.g_per_kwh.size(); ++i) other.g_per_kwh[i] = 1e6;
  for (const Forecaster forecaster :
       {Forecaster::kBlend, Forecaster::kPersistence, Forecaster::kYesterday, Forecaster::kWeekMean}) {
    EXPECT_EQ(forecast(forecaster, truth, 24 * 15, 48), forecast(forecaster, other, 24 * 15, 48));
  }
}

TEST(Forecast, BeatsTheSimpleOnesOnADailyPatternWithNoise) {
  const HourlyIntensity truth = synthetic(24 * 60, 15, 2);
  const auto error = [&](Forecaster forecaster) {
    double sum = 0;
    for (size_t now = 24 * 10; now + 48 < truth.g_per_kwh.size(); now += 7) {
      const auto ahead = forecast(forecaster, truth, now, 24);
      for (size_t i = 0; i < ahead.size(); ++i) sum += std::abs(ahead[i] - truth.g_per_kwh[now + 1 + i]);
    }
    return sum;
  };
  EXPECT_LT(error(Forecaster::kBlend), error(Forecaster::kYesterday));
  EXPECT_LT(error(Forecaster::kBlend), 0.5 * error(Forecaster::kPersistence));
  EXPECT_EQ(error(Forecaster::kPerfect), 0);
}

TEST(Forecast, ShortHistoryIsNoFault) {
  HourlyIntensity one;
  one.g_per_kwh = {300};
  EXPECT_NEAR(forecast(Forecaster::kBlend, one, 0, 30).back(), 300, 9);  // the fitted weights shrink by 2 %
}

TEST(Replay, SavesWithoutMissingAndStaysBelowPerfect) {
  const HourlyIntensity truth = synthetic(24 * 30, 20, 4);
  Rng rng(5);
  std::vector<TraceJob> jobs;
  for (int i = 0; i < 60; ++i) {
    jobs.push_back({3600.0 * 24 * 5 * rng.uniform(), 300 + 3600.0 * 6 * rng.uniform(), 1.0 + rng.below(4)});
  }
  const auto by = [&](Forecaster forecaster) {
    return [&truth, forecaster](size_t now, size_t n) { return forecast(forecaster, truth, now, n); };
  };
  for (const bool interruptible : {false, true}) {
    const ReplayResult ours = replay(jobs, truth, 24 * 10, 86400, interruptible, by(Forecaster::kBlend));
    const ReplayResult perfect = replay(jobs, truth, 24 * 10, 86400, interruptible, by(Forecaster::kPerfect));
    EXPECT_EQ(ours.n_missed, 0);
    EXPECT_EQ(ours.n_jobs, 60);
    EXPECT_LT(ours.grams_per_watt, 0.9 * ours.at_once_grams_per_watt);
    EXPECT_LE(perfect.grams_per_watt, ours.grams_per_watt * (1 + 1e-9));
    const ReplayResult none = replay(jobs, truth, 24 * 10, 0, interruptible, by(Forecaster::kBlend));
    EXPECT_NEAR(none.grams_per_watt, none.at_once_grams_per_watt, 1e-6 * none.grams_per_watt);
  }
}

// Wind that comes and goes over days on top of the sun's hours: what the fit is for.
HourlyIntensity windy(size_t n_hours, uint64_t seed) {
  Rng rng(seed);
  HourlyIntensity truth;
  truth.start_unix_s = 1609459200;  // 2021
  double wind = 0;
  for (size_t hour = 0; hour < n_hours; ++hour) {
    wind = 0.97 * wind + 8 * rng.normal();
    const double day = 200 + 60 * std::cos(2 * M_PI * static_cast<double>(hour % 24) / 24);
    truth.g_per_kwh.push_back(std::max(5.0, day + wind));
  }
  return truth;
}

TEST(Fitted, UsesThePastOnlyAndBeatsTheBlendOnOtherYears) {
  const HourlyIntensity all = windy(24 * 500, 8);
  HourlyIntensity first = all;
  first.g_per_kwh.resize(24 * 250);
  const auto fitted = FittedForecaster::fit(first, 48);
  ASSERT_TRUE(fitted.ok()) << fitted.error().message;
  HourlyIntensity other = all;
  const size_t then = 24 * 300;
  for (size_t i = then + 1; i < other.g_per_kwh.size(); ++i) other.g_per_kwh[i] = 1e6;
  EXPECT_EQ(fitted->ahead(all, then, 60), fitted->ahead(other, then, 60));
  double ours = 0, blend = 0;
  for (size_t now = 24 * 260; now + 48 < all.g_per_kwh.size(); now += 31) {
    const auto a = fitted->ahead(all, now, 24), b = forecast(Forecaster::kBlend, all, now, 24);
    for (size_t i = 0; i < a.size(); ++i) {
      ours += std::pow(a[i] - all.g_per_kwh[now + 1 + i], 2);
      blend += std::pow(b[i] - all.g_per_kwh[now + 1 + i], 2);
    }
  }
  EXPECT_LT(ours, 0.95 * blend);
}

TEST(Fitted, RefusesShortHistoryAndLeavesYoungOnesToTheBlend) {
  HourlyIntensity history = windy(24 * 30, 1);
  EXPECT_EQ(FittedForecaster::fit(history).error().code, ErrorCode::kInvalidArgument);
  history = windy(24 * 100, 1);
  EXPECT_FALSE(FittedForecaster::fit(history, 25).ok());
  const auto fitted = FittedForecaster::fit(history, 24);
  ASSERT_TRUE(fitted.ok());
  EXPECT_EQ(fitted->ahead(history, 10, 5), forecast(Forecaster::kBlend, history, 10, 5));
  // A constant history forecasts its constant.
  for (double& g : history.g_per_kwh) g = 250;
  const auto flat = FittedForecaster::fit(history, 24);
  ASSERT_TRUE(flat.ok());
  for (const double g : flat->ahead(history, 24 * 60, 30)) EXPECT_NEAR(g, 250, 1e-6);
}

TEST(Scale, TakesCleanHoursFirstAndRespectsDiminishingReturns) {
  const std::vector<double> rate = {1, 1.8, 2.2}, g = {100, 10, 400};
  const auto small = scale_workers(2.2, rate, g);
  ASSERT_TRUE(small.ok());
  EXPECT_EQ(*small, (std::vector<int>{0, 3, 0}));
  const auto more = scale_workers(3.5, rate, g);
  EXPECT_EQ(*more, (std::vector<int>{2, 3, 0}));
  EXPECT_FALSE(scale_workers(100, rate, g).ok());
  EXPECT_FALSE(scale_workers(-1, rate, g).ok());
}

}  // namespace
}  // namespace frugal::jobs
