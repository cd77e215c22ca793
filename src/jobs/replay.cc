#include "jobs/replay.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "base/check.h"
#include "base/file.h"
#include "base/text.h"

namespace frugal::jobs {
namespace {

constexpr double kHour_s = 3600;

double grams(const HourlyIntensity& truth, double begin, double end) {
  double sum = 0;
  for (double at = begin; at < end - 1e-9;) {
    const double hour = std::floor(at / kHour_s + 1e-12);
    const double next = std::min(end, (hour + 1) * kHour_s);
    const auto index = std::min(static_cast<size_t>(hour), truth.g_per_kwh.size() - 1);
    sum += (next - at) * truth.g_per_kwh[index] / 3.6e6;
    at = next;
  }
  return sum;
}

}  // namespace

Result<std::vector<TraceJob>> read_trace(const std::string& path) {
  FRUGAL_TRY(const std::string text, read_file(path, size_t{256} << 20));
  std::vector<TraceJob> jobs;
  size_t line_number = 0;
  for (const std::string& line : split(text, '\n')) {
    ++line_number;
    if (line_number == 1 || trim(line).empty()) continue;
    const std::vector<std::string> fields = split(trim(line), ',');
    TraceJob job;
    if (fields.size() >= 3) {
      job = {std::strtod(fields[0].c_str(), nullptr), std::strtod(fields[1].c_str(), nullptr),
             std::strtod(fields[2].c_str(), nullptr)};
    }
    if (fields.size() < 3 || !(job.length_s > 0) || !(job.arrival_s >= 0) || !(job.cpus > 0)) {
      return {ErrorCode::kCorrupt,
              strf("%s, line %zu: expected arrival, length and cpus", path.c_str(), line_number)};
    }
    jobs.push_back(job);
  }
  return jobs;
}

// Times here are seconds from the first hour of `truth`.
ReplayResult replay(std::span<const TraceJob> jobs, const HourlyIntensity& truth, size_t begin_hour,
                    double slack_s, bool interruptible, const ForecastFunction& forecaster) {
  ReplayResult result;
  for (const TraceJob& job : jobs) {
    const double arrival = static_cast<double>(begin_hour) * kHour_s + job.arrival_s;
    const double deadline = arrival + job.length_s + slack_s;
    if (deadline > kHour_s * static_cast<double>(truth.g_per_kwh.size())) continue;
    ++result.n_jobs;
    result.at_once_grams_per_watt += job.cpus * grams(truth, arrival, arrival + job.length_s);
    double left = job.length_s, now = arrival, end = arrival;
    while (left > 1e-6) {
      const double hour = std::floor(now / kHour_s + 1e-12);
      const double next_hour = (hour + 1) * kHour_s;
      const auto index = static_cast<size_t>(hour);
      const auto n_ahead = static_cast<size_t>(std::ceil((deadline - hour * kHour_s) / kHour_s)) + 1;
      std::vector<double> hourly = {truth.g_per_kwh[index]};
      const std::vector<double> ahead = forecaster(index, n_ahead);
      hourly.insert(hourly.end(), ahead.begin(), ahead.end());
      const auto plan = plan_job({left, deadline, interruptible}, now, hour * kHour_s, hourly);
      FRUGAL_CHECK(plan.ok());
      // What falls into this hour is done; the rest is planned anew. Work that cannot pause goes to its end
      // once begun.
      bool began = false;
      for (const Run& run : plan->runs) {
        if (run.begin_unix_s >= next_hour - 1e-9) break;
        const double until = interruptible ? std::min(run.end_unix_s, next_hour) : run.end_unix_s;
        result.grams_per_watt += job.cpus * grams(truth, run.begin_unix_s, until);
        left -= until - run.begin_unix_s;
        end = until;
        began = true;
      }
      if (began && !interruptible) break;
      now = next_hour;
    }
    if (end > deadline + 1e-3) ++result.n_missed;
  }
  return result;
}

}  // namespace frugal::jobs
