// Work that waits for clean power: forecasts of carbon intensity, and plans of when to run, pause and resume.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "frugal/result.h"

namespace frugal::jobs {

// Carbon intensity by the hour, g/kWh. Hour i covers [start + 3600 i, start + 3600 (i + 1)).
struct HourlyIntensity {
  double start_unix_s = 0;
  std::vector<double> g_per_kwh;
};

enum class Forecaster {
  kBlend,        // yesterday, the week's mean and last week at the same hour, corrected by the present
                 // deviation: ours where history is short
  kPersistence,  // the present value goes on
  kYesterday,    // the same hour of the last known day
  kWeekMean,     // the mean of that hour over the last seven days
  kPerfect,      // the truth: the bound that no forecast passes
};
std::string_view forecaster_name(Forecaster forecaster);

// Forecasts hours now + 1 .. now + n from hours 0 .. now alone (kPerfect excepted). With less than eight days
// of history the seasonal parts that are missing are replaced by what there is, at worst by the present
// value. `now` < history.g_per_kwh.size(). kPerfect needs the truth in `history` and repeats its last value
// beyond the end.
std::vector<double> forecast(Forecaster forecaster, const HourlyIntensity& history, size_t now, size_t n);

// A linear forecaster fitted on a zone's own history, by hour of the day and distance (src/jobs/fitted.cc).
// Immutable; a copy is cheap enough to keep.
class FittedForecaster {
 public:
  // Fits on all of `history`, 1 .. max_ahead (whole days) hours ahead: 0.2 s for a year and six days.
  // kInvalidArgument for less than 60 days of history.
  static Result<FittedForecaster> fit(const HourlyIntensity& history, size_t max_ahead = 144);

  // Hours now + 1 .. now + n from hours 0 .. now of `history`, which may be another stretch of the same zone.
  // The first three weeks of a history are left to the seasonal blend.
  std::vector<double> ahead(const HourlyIntensity& history, size_t now, size_t n) const;

 private:
  size_t max_ahead_ = 0;
  double scale_ = 1;             // standard deviation of the history
  std::vector<double> weights_;  // [max_ahead, 24, features]
};

struct JobShape {
  double length_s = 0;         // running time, > 0
  double deadline_unix_s = 0;  // to be done by then
  bool interruptible = false;  // may be paused and resumed
};

// A stretch of running.
struct Run {
  double begin_unix_s = 0, end_unix_s = 0;
  int workers = 1;  // for work whose width follows the supply
};

struct Plan {
  std::vector<Run> runs;       // in order, apart from each other; together length_s long
  double expected_mean = 0;    // g/kWh over the runs, by the forecast
  double at_once_mean = 0;     // g/kWh when started at once, by the same forecast
  bool meets_deadline = true;  // false: cannot be met any more; the plan is to run at once
};

// The plan of least expected carbon from `now_unix_s` on that meets the deadline. `hourly` forecasts from the
// hour that `hourly_start_unix_s` begins, which holds `now`, and its last value goes on. Interruptible work
// takes the cheapest hours; other work the cheapest start. Ties go to the earlier time. O(n log n) in hours.
// kInvalidArgument for a length that is not positive.
Result<Plan> plan_job(const JobShape& job, double now_unix_s, double hourly_start_unix_s,
                      std::span<const double> hourly);

// How much of a divisible workload to do in each hour: `rate(k)` is the throughput with k workers, k = 1 ..
// max_workers, concave or not. Hours take workers in order of marginal throughput per gram (CarbonScaler,
// Hanafy et al. 2023, Algorithm 1) until `work` is done. Returns workers per hour. kInvalidArgument when all
// hours at full width do not suffice. `hours` are the lengths of the slots in hours; empty: one each.
Result<std::vector<int>> scale_workers(double work, std::span<const double> rate,
                                       std::span<const double> g_per_kwh, std::span<const double> hours = {});

}  // namespace frugal::jobs
