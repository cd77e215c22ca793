// Forecasts of hourly carbon intensity.
#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "frugal/jobs.h"

namespace frugal::jobs {
namespace {

constexpr size_t kDay = 24, kWeek = 168;

// Least squares over 1 to 48 hours ahead on US-CAL-CISO and ES, 2021 (scripts/fit_forecast.py): weights of
// the same hour yesterday, of its mean over seven days and of last week, and how the present deviation fades.
constexpr double kYesterdayWeight = 0.169, kMeanWeight = 0.638, kLastWeekWeight = 0.176;
constexpr double kDeviationGain = 0.9, kDeviationHours = 70;

// The last known value of `hour`'s time of day, `days_back` days before that; nothing when history is too
// short.
bool same_hour(const std::vector<double>& y, size_t now, size_t hour, size_t period, size_t periods_back,
               double& value) {
  size_t back = hour > now ? (hour - now + period - 1) / period : 0;
  if (hour <= now) back = 1;
  back += periods_back;
  if (hour < back * period) return false;
  value = y[hour - back * period];
  return true;
}

double week_mean(const std::vector<double>& y, size_t now, size_t hour, double otherwise) {
  double sum = 0, value = 0;
  int n = 0;
  for (size_t i = 0; i < 7; ++i) {
    if (!same_hour(y, now, hour, kDay, i, value)) break;
    sum += value;
    ++n;
  }
  return n > 0 ? sum / n : otherwise;
}

double base(const std::vector<double>& y, size_t now, size_t hour) {
  double yesterday = y[now];
  same_hour(y, now, hour, kDay, 0, yesterday);
  const double mean = week_mean(y, now, hour, yesterday);
  double last_week = mean;
  same_hour(y, now, hour, kWeek, 0, last_week);
  return kYesterdayWeight * yesterday + kMeanWeight * mean + kLastWeekWeight * last_week;
}

}  // namespace

std::string_view forecaster_name(Forecaster forecaster) {
  switch (forecaster) {
    case Forecaster::kBlend:
      return "blend";
    case Forecaster::kPersistence:
      return "persistence";
    case Forecaster::kYesterday:
      return "yesterday";
    case Forecaster::kWeekMean:
      return "week-mean";
    case Forecaster::kPerfect:
      return "perfect";
  }
  return "blend";
}

std::vector<double> forecast(Forecaster forecaster, const HourlyIntensity& history, size_t now, size_t n) {
  const std::vector<double>& y = history.g_per_kwh;
  FRUGAL_CHECK(now < y.size());
  std::vector<double> ahead(n);
  const double deviation =
      forecaster == Forecaster::kBlend ? kDeviationGain * (y[now] - base(y, now, now)) : 0;
  for (size_t i = 0; i < n; ++i) {
    const size_t hour = now + 1 + i;
    double value = y[now];
    switch (forecaster) {
      case Forecaster::kBlend:
        value = base(y, now, hour) + deviation * std::exp(-static_cast<double>(i + 1) / kDeviationHours);
        break;
      case Forecaster::kPersistence:
        break;
      case Forecaster::kYesterday:
        same_hour(y, now, hour, kDay, 0, value);
        break;
      case Forecaster::kWeekMean:
        value = week_mean(y, now, hour, value);
        break;
      case Forecaster::kPerfect:
        value = y[std::min(hour, y.size() - 1)];
        break;
    }
    ahead[i] = std::max(value, 0.0);
  }
  return ahead;
}

}  // namespace frugal::jobs
