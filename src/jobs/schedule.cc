#include "jobs/schedule.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace frugal::jobs {
namespace {

constexpr double kHour_s = 3600;

// Added to the intensity of an hour that has no thread left: such an hour is taken last, and only for a
// deadline. Above any intensity there is.
constexpr double kFull = 1e6;

// How soon after now a run has to begin to count as begun.
constexpr double kNow_s = 1;

// Threads taken, by hour from the hour that holds now.
class Load {
 public:
  Load(double start, int threads) : start_(start), threads_(threads) {}

  std::vector<double> prices(const HourlyIntensity& outlook, size_t n, int wanted) const {
    std::vector<double> prices(n);
    for (size_t i = 0; i < n; ++i) {
      prices[i] = outlook.g_per_kwh[std::min(i, outlook.g_per_kwh.size() - 1)];
      if (i < taken_.size() && taken_[i] + wanted > std::max(threads_, wanted)) prices[i] += kFull;
    }
    return prices;
  }
  void take(const Run& run, int threads) {
    const auto first = static_cast<size_t>(std::max(0.0, std::floor((run.begin_unix_s - start_) / kHour_s)));
    const auto last =
        static_cast<size_t>(std::max(0.0, std::ceil((run.end_unix_s - start_) / kHour_s - 1e-9)));
    if (taken_.size() < last) taken_.resize(last, 0);
    for (size_t i = first; i < last; ++i) taken_[i] += threads * run.workers;
  }

 private:
  double start_;
  int threads_;
  std::vector<int> taken_;
};

double mean_over(const HourlyIntensity& outlook, const std::vector<Run>& runs) {
  double sum = 0, weight = 0;
  for (const Run& run : runs) {
    for (double at = run.begin_unix_s; at < run.end_unix_s - 1e-6;) {
      const double hour = std::floor((at - outlook.start_unix_s) / kHour_s + 1e-9);
      const double next = std::min(run.end_unix_s, outlook.start_unix_s + (hour + 1) * kHour_s);
      const auto i = std::min(static_cast<size_t>(std::max(hour, 0.0)), outlook.g_per_kwh.size() - 1);
      sum += run.workers * (next - at) * outlook.g_per_kwh[i];
      weight += run.workers * (next - at);
      at = next;
    }
  }
  return weight > 0 ? sum / weight : 0;
}

// Work whose width follows the supply. False: it does not fit before the deadline even at full width.
bool plan_wide(const Job& job, double work_s, double deadline, double now, double start,
               const std::vector<double>& prices, Plan& plan) {
  std::vector<double> hours, g;
  std::vector<double> begins;
  for (size_t i = 0; i < prices.size(); ++i) {
    const double begin = std::max(now, start + kHour_s * static_cast<double>(i));
    const double end = std::min(deadline, start + kHour_s * static_cast<double>(i + 1));
    if (end <= begin) continue;
    begins.push_back(begin);
    hours.push_back((end - begin) / kHour_s);
    g.push_back(prices[i]);
  }
  const auto workers = scale_workers(work_s / kHour_s, job.rates, g, hours);
  if (!workers.ok()) return false;
  plan.runs.clear();
  double left = work_s;
  for (size_t i = 0; i < begins.size() && left > 1e-6; ++i) {
    const int n = (*workers)[i];
    if (n == 0) continue;
    const double rate = job.rates[static_cast<size_t>(n) - 1];
    const double length = std::min(hours[i] * kHour_s, left / rate);
    left -= length * rate;
    if (!plan.runs.empty() && plan.runs.back().workers == n &&
        std::abs(plan.runs.back().end_unix_s - begins[i]) < 1e-6) {
      plan.runs.back().end_unix_s = begins[i] + length;
    } else {
      plan.runs.push_back({begins[i], begins[i] + length, n});
    }
  }
  plan.meets_deadline = true;
  return true;
}

Plan at_once(double now, double length, int workers, bool meets) {
  Plan plan;
  plan.runs = {{now, now + length, workers}};
  plan.meets_deadline = meets;
  return plan;
}

}  // namespace

double margin_s(double takes_s) { return 30 + 0.05 * takes_s; }

double left_s(const Job& job) { return std::max(job.takes_s - job.ran_s, 0.05 * job.takes_s); }

std::vector<Planned> schedule(std::span<const Job> jobs, const HourlyIntensity* outlook, double now,
                              const ScheduleOptions& options) {
  std::vector<Planned> planned(jobs.size());
  std::vector<size_t> order(jobs.size());
  std::iota(order.begin(), order.end(), 0);
  std::vector<double> slack(jobs.size());
  for (size_t i = 0; i < jobs.size(); ++i) {
    const Job& job = jobs[i];
    const double fastest = job.rates.empty() ? 1 : *std::max_element(job.rates.begin(), job.rates.end());
    planned[i].id = job.id;
    planned[i].latest_start = job.deadline_unix_s - left_s(job) / fastest - margin_s(job.takes_s);
    slack[i] = planned[i].latest_start - now;
    // What runs and cannot pause has no choice left.
    if (job.state == JobState::kRunning && !job.interruptible) slack[i] = -HUGE_VAL;
  }
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return slack[a] < slack[b]; });
  const double start = outlook != nullptr ? outlook->start_unix_s : std::floor(now / kHour_s) * kHour_s;
  Load load(start, options.threads);
  for (const size_t i : order) {
    const Job& job = jobs[i];
    Planned& out = planned[i];
    const double left = left_s(job);
    const bool overdue = job.ran_s >= job.takes_s;
    const int widest = std::max<int>(1, static_cast<int>(job.rates.size()));
    const double deadline = job.deadline_unix_s - margin_s(job.takes_s);
    bool planned_by_supply = false;
    if (outlook != nullptr && !outlook->g_per_kwh.empty() && slack[i] > 0 && !overdue) {
      const auto n = static_cast<size_t>(std::max(0.0, std::ceil((deadline - start) / kHour_s))) + 1;
      const std::vector<double> prices = load.prices(*outlook, n, job.threads);
      if (!job.rates.empty() && job.interruptible) {
        planned_by_supply = plan_wide(job, left, deadline, now, start, prices, out.plan);
      } else {
        auto plan = plan_job({left, deadline, job.interruptible}, now, start, prices);
        if (plan.ok()) {
          out.plan = std::move(plan).value();
          planned_by_supply = true;
        }
      }
    }
    if (!planned_by_supply) {
      const double rate = job.rates.empty() ? 1 : job.rates.back();
      out.plan = at_once(now, left / (job.interruptible ? rate : 1), job.interruptible ? widest : 1,
                         job.deadline_unix_s >= now + left / (job.interruptible ? rate : 1) - 1e-6);
    }
    if (outlook != nullptr && !outlook->g_per_kwh.empty()) {
      out.plan.expected_mean = mean_over(*outlook, out.plan.runs);
      out.plan.at_once_mean = mean_over(*outlook, {{now, now + left, 1}});
    }
    for (const Run& run : out.plan.runs) load.take(run, job.threads);
    out.run_now = !out.plan.runs.empty() && out.plan.runs[0].begin_unix_s <= now + kNow_s;
    out.workers = out.plan.runs.empty() ? 1 : out.plan.runs[0].workers;
  }
  return planned;
}

}  // namespace frugal::jobs
