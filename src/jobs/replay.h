// Replays jobs against recorded intensities, planning anew each hour with what was known by then: how a bench
// judges a forecaster, and how much of the possible saving a policy gets.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "frugal/jobs.h"

namespace frugal::jobs {

struct TraceJob {
  double arrival_s = 0;  // after the trace's begin
  double length_s = 0;
  double cpus = 1;
};

// CSV `arrival_time,length,cpus` with a header. kNotFound, kCorrupt (line).
Result<std::vector<TraceJob>> read_trace(const std::string& path);

struct ReplayResult {
  double grams_per_watt = 0;          // over all jobs, per watt of one CPU: ours
  double at_once_grams_per_watt = 0;  // when every job starts on arrival
  int n_jobs = 0;
  int n_missed = 0;  // deadlines that could be met and were not
};

// Hours now + 1 .. now + n of the truth, as they are expected at its hour `now`.
using ForecastFunction = std::function<std::vector<double>(size_t now, size_t n)>;

// Each job arrives `arrival_s` after `begin_hour`'s start and must end within length + slack_s. The present
// hour's intensity counts as known, later ones are forecast.
ReplayResult replay(std::span<const TraceJob> jobs, const HourlyIntensity& truth, size_t begin_hour,
                    double slack_s, bool interruptible, const ForecastFunction& forecaster);

}  // namespace frugal::jobs
