#include "jobs/outlook.h"

#include <algorithm>
#include <cmath>

#include "base/text.h"

namespace frugal::jobs {
namespace {

constexpr double kHour_s = 3600;

// Older data say nothing about the present weather; the time of day still does.
constexpr double kFresh_s = 14 * 86400.0;

// Whole weeks, so that weekdays stay, and a day short of a year, so that seasons do.
constexpr double kYear_s = 364 * 86400.0;

// Seconds to add to the series' times so that it reaches `until`; 0 for a fresh one.
double shift_of(const meter::IntensitySeries& series, double now, double until) {
  const double last = series.points.back().unix_s + series.step_s;
  if (last > now - kFresh_s) return 0;
  return kYear_s * std::ceil((until - last) / kYear_s);
}

}  // namespace

Result<HourlyIntensity> to_hourly(const meter::IntensitySeries& series, size_t max_gap) {
  if (series.points.empty()) return {ErrorCode::kInvalidArgument, "the carbon data hold no values"};
  HourlyIntensity hourly;
  const double start = std::floor(series.points.front().unix_s / kHour_s) * kHour_s;
  hourly.start_unix_s = start;
  const auto n = static_cast<size_t>(std::floor((series.points.back().unix_s - start) / kHour_s)) + 1;
  if (n > size_t{24} * 366 * 50) {
    return {ErrorCode::kInvalidArgument, "the carbon data span more than fifty years"};
  }
  std::vector<double> sum(n, 0), count(n, 0);
  for (const meter::IntensityPoint& point : series.points) {
    const auto hour = static_cast<size_t>((point.unix_s - start) / kHour_s);
    sum[std::min(hour, n - 1)] += point.g_per_kwh;
    count[std::min(hour, n - 1)] += 1;
  }
  hourly.g_per_kwh.resize(n);
  size_t last = 0;
  for (size_t i = 0; i < n; ++i) {
    if (count[i] == 0) continue;
    hourly.g_per_kwh[i] = sum[i] / count[i];
    if (i - last > max_gap + 1) {
      return {ErrorCode::kInvalidArgument,
              strf("%s has no value for %zu hours from %s on", series.source.c_str(), i - last - 1,
                   meter::format_time(start + kHour_s * static_cast<double>(last + 1)).c_str())};
    }
    for (size_t j = last + 1; j < i; ++j) {
      const double t = static_cast<double>(j - last) / static_cast<double>(i - last);
      hourly.g_per_kwh[j] = (1 - t) * hourly.g_per_kwh[last] + t * hourly.g_per_kwh[i];
    }
    last = i;
  }
  return hourly;
}

Result<Outlook> make_outlook(const meter::IntensitySeries& series, double now, size_t n_hours) {
  FRUGAL_TRY(HourlyIntensity known, to_hourly(series));
  Outlook outlook;
  outlook.source = series.source;
  const double first = std::floor(now / kHour_s) * kHour_s;
  const double until = first + kHour_s * static_cast<double>(n_hours + 1);
  outlook.hourly.start_unix_s = first;
  std::vector<double>& out = outlook.hourly.g_per_kwh;
  const double shift = shift_of(series, now, until);
  known.start_unix_s += shift;
  if (first < known.start_unix_s) {
    return {ErrorCode::kInvalidArgument,
            strf("%s begins %s: give a file that reaches the present, or a whole year to stand in for it",
                 series.source.c_str(), meter::format_time(known.start_unix_s - shift).c_str())};
  }
  const auto here = static_cast<size_t>((first - known.start_unix_s) / kHour_s + 0.5);
  if (shift > 0) {
    outlook.typical = true;
    outlook.note =
        strf("%s ends %s: the same weeks of that year stand in for the days ahead", series.source.c_str(),
             meter::format_time(series.points.back().unix_s).substr(0, 10).c_str());
  }
  const size_t n_known = known.g_per_kwh.size();
  for (size_t i = here; i < n_known && out.size() <= n_hours; ++i) out.push_back(known.g_per_kwh[i]);
  if (out.size() > n_hours) return outlook;
  // The rest is ours to forecast, from the last value that is there.
  const size_t last = n_known - 1;
  const size_t wanted = here + n_hours - last;  // hours after `last` up to the end
  std::vector<double> ahead;
  const auto fitted = FittedForecaster::fit(known);
  ahead =
      fitted.ok() ? fitted->ahead(known, last, wanted) : forecast(Forecaster::kBlend, known, last, wanted);
  for (size_t i = 0; i < ahead.size(); ++i) {
    if (last + 1 + i >= here) out.push_back(ahead[i]);
  }
  const double age = now - (series.points.back().unix_s + series.step_s);
  if (age > 6 * kHour_s) {
    outlook.note = strf("%s ends %s, %.0f hours ago: forecast from there", series.source.c_str(),
                        meter::format_time(series.points.back().unix_s).c_str(), age / kHour_s);
  }
  return outlook;
}

Estimate recorded_mean(const meter::IntensitySeries& series, double begin, double end, double now) {
  if (series.points.empty()) return Estimate::unknown();
  const double shift = shift_of(series, now, std::max(end, now));
  Estimate mean = series.mean(begin - shift, std::max(end, begin + 1) - shift);
  if (mean.known() && shift > 0) mean.provenance = Provenance::kAssumed;
  return mean;
}

}  // namespace frugal::jobs
