// Plans of single jobs over an hourly forecast.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/text.h"
#include "frugal/jobs.h"

namespace frugal::jobs {
namespace {

constexpr double kHour_s = 3600;

// Seconds that a plan keeps free before the deadline when it can: pausing and resuming take time.
constexpr double kEpsilon_s = 1e-6;

struct Slot {
  double begin, end, g;
};

double cost(std::span<const Slot> slots, double begin, double end) {
  double sum = 0;
  for (const Slot& slot : slots) {
    const double overlap = std::min(end, slot.end) - std::max(begin, slot.begin);
    if (overlap > 0) sum += overlap * slot.g;
  }
  return sum;
}

}  // namespace

Result<Plan> plan_job(const JobShape& job, double now, double hourly_start, std::span<const double> hourly) {
  if (!(job.length_s > 0) || !std::isfinite(job.length_s) || !std::isfinite(job.deadline_unix_s)) {
    return {ErrorCode::kInvalidArgument, strf("a job of %g s cannot be planned", job.length_s)};
  }
  if (hourly.empty() || now < hourly_start - kEpsilon_s) {
    return {ErrorCode::kInvalidArgument, "the forecast does not cover the present"};
  }
  Plan plan;
  const double end = std::max(job.deadline_unix_s, now + job.length_s);
  plan.meets_deadline = now + job.length_s <= job.deadline_unix_s + kEpsilon_s;
  // Whole hours of the forecast, cut at `now` and at the end.
  std::vector<Slot> slots;
  for (double at = now; at < end - kEpsilon_s;) {
    const double hour = std::floor((at - hourly_start) / kHour_s + 1e-9);
    const double next = std::min(end, hourly_start + (hour + 1) * kHour_s);
    const auto index = std::min(static_cast<size_t>(std::max(hour, 0.0)), hourly.size() - 1);
    slots.push_back({at, next, hourly[index]});
    at = next;
  }
  plan.at_once_mean = cost(slots, now, now + job.length_s) / job.length_s;
  if (!plan.meets_deadline || slots.empty()) {
    plan.runs = {{now, now + job.length_s}};
    plan.expected_mean = plan.at_once_mean;
    return plan;
  }
  if (!job.interruptible) {
    // The cost of a start is piecewise linear between hour edges of start and end: the best start lies on one
    // of them.
    std::vector<double> starts;
    for (const Slot& slot : slots) {
      starts.push_back(slot.begin);
      starts.push_back(slot.end - job.length_s);
    }
    std::sort(starts.begin(), starts.end());
    // Prefix sums give each start in logarithmic time.
    std::vector<double> sums = {0};
    for (const Slot& slot : slots) sums.push_back(sums.back() + slot.g * (slot.end - slot.begin));
    const auto until = [&](double time) {
      const auto at = std::upper_bound(slots.begin(), slots.end(), time,
                                       [](double t, const Slot& slot) { return t < slot.end; });
      if (at == slots.end()) return sums.back();
      return sums[static_cast<size_t>(at - slots.begin())] + at->g * std::max(0.0, time - at->begin);
    };
    double best = HUGE_VAL, best_start = now;
    for (const double start : starts) {
      if (start < now || start + job.length_s > job.deadline_unix_s + kEpsilon_s) continue;
      const double total = until(start + job.length_s) - until(start);
      if (total < best - 1e-9 * job.length_s) {
        best = total;
        best_start = start;
      }
    }
    plan.runs = {{best_start, best_start + job.length_s}};
    plan.expected_mean = cost(slots, best_start, best_start + job.length_s) / job.length_s;
    return plan;
  }
  std::vector<size_t> order(slots.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return slots[a].g < slots[b].g; });
  std::vector<double> used(slots.size(), 0);
  double left = job.length_s, grams = 0;
  for (const size_t i : order) {
    if (left <= 0) break;
    used[i] = std::min(left, slots[i].end - slots[i].begin);
    left -= used[i];
    grams += used[i] * slots[i].g;
  }
  plan.expected_mean = grams / job.length_s;
  for (size_t i = 0; i < slots.size(); ++i) {
    if (used[i] <= 0) continue;
    // A part of an hour is run where it joins its neighbours: at the end when the next hour runs and the one
    // before does not.
    const bool late = i + 1 < slots.size() && used[i + 1] > 0 && (i == 0 || used[i - 1] <= 0);
    const double begin = late ? slots[i].end - used[i] : slots[i].begin;
    if (!plan.runs.empty() && begin - plan.runs.back().end_unix_s < kEpsilon_s) {
      plan.runs.back().end_unix_s = begin + used[i];
    } else {
      plan.runs.push_back({begin, begin + used[i]});
    }
  }
  return plan;
}

Result<std::vector<int>> scale_workers(double work, std::span<const double> rate,
                                       std::span<const double> g_per_kwh, std::span<const double> hours) {
  if (!(work > 0) || rate.empty() || g_per_kwh.empty() ||
      (!hours.empty() && hours.size() != g_per_kwh.size())) {
    return {ErrorCode::kInvalidArgument, "work, throughputs and intensities must be given and positive"};
  }
  struct Step {
    double value;  // work per gram
    size_t hour;
    int workers;
    double gain;
  };
  std::vector<Step> steps;
  for (size_t hour = 0; hour < g_per_kwh.size(); ++hour) {
    for (size_t k = 0; k < rate.size(); ++k) {
      const double gain = rate[k] - (k > 0 ? rate[k - 1] : 0);
      if (gain <= 0) break;  // more workers slow it down from here on
      steps.push_back({gain / std::max(g_per_kwh[hour], 1e-9), hour, static_cast<int>(k) + 1,
                       gain * (hours.empty() ? 1 : hours[hour])});
    }
  }
  std::stable_sort(steps.begin(), steps.end(),
                   [](const Step& a, const Step& b) { return a.value > b.value; });
  std::vector<int> workers(g_per_kwh.size(), 0);
  double done = 0;
  // A step counts only on top of the one before it in its hour; where throughput is not concave it may come
  // up early and waits.
  bool moved = true;
  std::vector<bool> taken(steps.size(), false);
  while (done < work && moved) {
    moved = false;
    for (size_t i = 0; i < steps.size() && done < work; ++i) {
      if (taken[i] || workers[steps[i].hour] != steps[i].workers - 1) continue;
      taken[i] = moved = true;
      workers[steps[i].hour] = steps[i].workers;
      done += steps[i].gain;
    }
  }
  if (done < work * (1 - 1e-12)) {
    return {ErrorCode::kInvalidArgument, strf("%g of %g units of work fit before the deadline", done, work)};
  }
  return workers;
}

}  // namespace frugal::jobs
