// Plans of a whole queue, and the outlook that they stand on.
#include "jobs/schedule.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "base/rng.h"

namespace frugal::jobs {
namespace {

constexpr double kHour = 3600;

HourlyIntensity outlook_of(std::vector<double> g) { return {0, std::move(g)}; }

Job job_of(double takes_h, double deadline_h, bool interruptible) {
  Job job;
  job.command = {"true"};
  job.takes_s = takes_h * kHour;
  job.deadline_unix_s = deadline_h * kHour;
  job.interruptible = interruptible;
  return job;
}

double length_of(const Plan& plan) {
  double sum = 0;
  for (const jobs::Run& run : plan.runs) sum += run.end_unix_s - run.begin_unix_s;
  return sum;
}

TEST(Schedule, EachJobRunsItsLengthBeforeItsDeadline) {
  Rng rng(11);
  std::vector<double> g;
  for (int i = 0; i < 100; ++i) g.push_back(100 + 300 * rng.uniform());
  const HourlyIntensity outlook = outlook_of(g);
  std::vector<Job> jobs;
  for (int i = 0; i < 200; ++i) {
    const double takes = 0.1 + 5 * rng.uniform();
    jobs.push_back(job_of(takes, takes * 1.1 + 0.1 + 60 * rng.uniform(), i % 2 == 0));
  }
  const auto plans = schedule(jobs, &outlook, 600, {2});
  for (size_t i = 0; i < jobs.size(); ++i) {
    const Plan& plan = plans[i].plan;
    EXPECT_NEAR(length_of(plan), jobs[i].takes_s, 1e-3);
    EXPECT_GE(plan.runs.front().begin_unix_s, 600);
    if (jobs[i].deadline_unix_s >= 600 + jobs[i].takes_s) {
      EXPECT_LE(plan.runs.back().end_unix_s, jobs[i].deadline_unix_s + 1e-3) << i;
      EXPECT_TRUE(plan.meets_deadline);
    }
  }
}

TEST(Schedule, JobsShareTheThreadsOfCleanHours) {
  const HourlyIntensity outlook = outlook_of({300, 100, 200, 300, 300, 300, 300, 300});
  const std::vector<Job> jobs(3, job_of(0.9, 7, false));
  const auto plans = schedule(jobs, &outlook, 0, {1});
  std::vector<double> begins;
  for (const Planned& planned : plans)
    begins.push_back(std::floor(planned.plan.runs[0].begin_unix_s / kHour));
  std::sort(begins.begin(), begins.end());
  EXPECT_EQ(begins[0] == begins[1] || begins[1] == begins[2], false);  // an hour each
  EXPECT_TRUE(std::count(begins.begin(), begins.end(), 1.0) == 1);
}

TEST(Schedule, ADeadlineGoesBeforeTheNumberOfThreads) {
  const HourlyIntensity outlook = outlook_of({100, 100, 100, 100});
  const std::vector<Job> jobs(5, job_of(1, 1.5, false));
  for (const Planned& planned : schedule(jobs, &outlook, 0, {1})) {
    EXPECT_TRUE(planned.plan.meets_deadline);
    EXPECT_LE(planned.plan.runs.back().end_unix_s, 1.5 * kHour);
  }
}

TEST(Schedule, LostAndOverdueJobsAndThoseWithoutAnOutlookRunAtOnce) {
  const HourlyIntensity outlook = outlook_of({300, 1, 1, 1, 1, 1, 1, 1, 1, 1});
  Job lost = job_of(3, 1, true), overdue = job_of(1, 9, true);
  overdue.ran_s = overdue.takes_s + 1;
  overdue.state = JobState::kRunning;
  for (const Job& job : {lost, overdue}) {
    const auto plans = schedule({&job, 1}, &outlook, 0, {1});
    EXPECT_TRUE(plans[0].run_now);
  }
  EXPECT_FALSE(schedule({&lost, 1}, &outlook, 0, {1})[0].plan.meets_deadline);
  const Job waiting = job_of(1, 9, true);
  EXPECT_FALSE(schedule({&waiting, 1}, &outlook, 0, {1})[0].run_now);
  EXPECT_TRUE(schedule({&waiting, 1}, nullptr, 0, {1})[0].run_now);
}

TEST(Schedule, WorkWithoutPausesIsLeftAloneOnceItRuns) {
  const HourlyIntensity outlook = outlook_of({300, 1, 1, 1, 1, 1});
  Job job = job_of(2, 6, false);
  job.state = JobState::kRunning;
  job.ran_s = 600;
  EXPECT_TRUE(schedule({&job, 1}, &outlook, 600, {1})[0].run_now);
}

TEST(Schedule, WidthFollowsTheSupply) {
  const HourlyIntensity outlook = outlook_of({400, 50, 400, 400, 400, 400, 400, 400});
  Job job = job_of(3, 8, true);
  job.rates = {1, 1.9, 2.7};
  const auto plans = schedule({&job, 1}, &outlook, 0, {8});
  const auto& runs = plans[0].plan.runs;
  ASSERT_FALSE(runs.empty());
  double work = 0;
  for (const jobs::Run& run : runs) {
    work += job.rates[static_cast<size_t>(run.workers) - 1] * (run.end_unix_s - run.begin_unix_s);
    if (run.begin_unix_s >= kHour && run.end_unix_s <= 2 * kHour) {
      EXPECT_EQ(run.workers, 3);
    }
  }
  EXPECT_NEAR(work, job.takes_s, 1);
  EXPECT_LT(plans[0].plan.expected_mean, 300);
}

meter::IntensitySeries series_of(double start, const std::vector<double>& g, double step = kHour) {
  meter::IntensitySeries series;
  series.source = "test";
  series.step_s = step;
  for (size_t i = 0; i < g.size(); ++i)
    series.points.push_back({start + step * static_cast<double>(i), g[i], false});
  return series;
}

TEST(Outlook, HalfHoursAreAveragedAndSmallGapsBridged) {
  const auto hourly = to_hourly(series_of(0, {100, 200, 300, 500}, 1800));
  ASSERT_TRUE(hourly.ok());
  EXPECT_EQ(hourly->g_per_kwh, (std::vector<double>{150, 400}));
  auto gap = series_of(0, {100, 200, 300, 400, 500});
  gap.points.erase(gap.points.begin() + 1, gap.points.begin() + 4);
  EXPECT_EQ(to_hourly(gap)->g_per_kwh, (std::vector<double>{100, 200, 300, 400, 500}));
  EXPECT_EQ(to_hourly(gap, 2).error().code, ErrorCode::kInvalidArgument);
  EXPECT_FALSE(to_hourly({}).ok());
}

TEST(Outlook, BelievesWhatReachesAheadAndForecastsBeyond) {
  std::vector<double> g;
  for (int i = 0; i < 24 * 90; ++i) g.push_back(200 + 50 * std::cos(2 * M_PI * i / 24));
  const double now = kHour * (24 * 90 - 10) + 120;
  const auto outlook = make_outlook(series_of(0, g), now, 48);
  ASSERT_TRUE(outlook.ok()) << outlook.error().message;
  EXPECT_FALSE(outlook->typical);
  ASSERT_GE(outlook->hourly.g_per_kwh.size(), 49u);
  EXPECT_DOUBLE_EQ(outlook->hourly.g_per_kwh[3], g[24 * 90 - 7]);
  for (int i = 10; i < 40; ++i) {
    EXPECT_NEAR(outlook->hourly.g_per_kwh[static_cast<size_t>(i)],
                200 + 50 * std::cos(2 * M_PI * (24 * 90 - 10 + i) / 24), 5);
  }
}

TEST(Outlook, AnOldYearStandsInByItsWeeksAndSaysSo) {
  std::vector<double> g;
  for (int i = 0; i < 8760; ++i) g.push_back(i);
  const double year = 364 * 86400.0;
  const double now = 3 * year + 100 * 86400.0;
  const auto outlook = make_outlook(series_of(0, g), now, 24);
  ASSERT_TRUE(outlook.ok());
  EXPECT_TRUE(outlook->typical);
  EXPECT_NE(outlook->note.find("stand in"), std::string::npos);
  EXPECT_EQ(outlook->hourly.g_per_kwh[0], 2400);
  const Estimate mean = recorded_mean(series_of(0, g), now, now + kHour, now);
  EXPECT_EQ(mean.provenance, Provenance::kAssumed);
  EXPECT_NEAR(mean.value, 2400, 1e-9);
  // A week of another year cannot stand in for today.
  EXPECT_FALSE(make_outlook(series_of(0, std::vector<double>(168, 1.0)), now, 24).ok());
}

}  // namespace
}  // namespace frugal::jobs
