// A linear forecaster of hourly carbon intensity, fitted on a zone's own history.
//
// For every distance k there is one least-squares fit of y(t + k) - m(t) on what is known at t, m being the
// mean of the last week: the same hour of the last seven known days, the last hours, means over six hours, a
// day and four weeks (all less m), and Saturday, Sunday, Monday. Ridge regression, first over all hours, then
// for each hour of the day a correction that is pulled towards zero: the sun's hours follow yesterday, the
// night follows the wind.
#include <algorithm>
#include <array>
#include <cmath>

#include "base/text.h"
#include "frugal/jobs.h"

namespace frugal::jobs {
namespace {

constexpr size_t kDay = 24, kWeek = 168, kMonth = 672;
constexpr size_t kFeatures = 20;

// Pull towards zero, in observations of unit variance: of the fit over all hours, and of an hour's own part.
// Chosen on 2021 alone, by the saving of replayed jobs on six blocks of two months, each forecast by a fit on
// the other five: of 10 and 100, 10 and 30, 1 and 30, 1 and 10, these gave most on ES (76.2 % of the perfect
// forecast's saving; 10 and 100: 74.9 %) and on US-CAL-CISO (95.7 %; 95.5 %).
constexpr double kRidge = 1, kHourRidge = 3;

// Less than this and the seasonal blend is the better forecaster.
constexpr size_t kLeastHistory = 60 * kDay;

using Row = std::array<double, kFeatures>;
using Matrix = std::array<Row, kFeatures>;

// Prefix sums make means cheap.
class History {
 public:
  explicit History(const HourlyIntensity& history)
      : y_(history.g_per_kwh), first_hour_(static_cast<int64_t>(std::floor(history.start_unix_s / 3600))) {
    sums_.reserve(y_.size() + 1);
    sums_.push_back(0);
    for (const double value : y_) sums_.push_back(sums_.back() + value);
  }
  double mean(size_t now, size_t n) const {
    n = std::min(n, now + 1);
    return (sums_[now + 1] - sums_[now + 1 - n]) / static_cast<double>(n);
  }
  int64_t hour(size_t i) const { return first_hour_ + static_cast<int64_t>(i); }

  // Features of `ahead` hours after `now`; `scale` is the deviation of y. Returns m.
  double features(size_t now, size_t ahead, double scale, Row& x) const {
    const double m = mean(now, kWeek);
    const auto back = [&](size_t hours) { return hours > now ? y_[0] - m : y_[now - hours] - m; };
    const size_t days = (ahead + kDay - 1) / kDay;
    size_t n = 0;
    for (size_t i = 0; i < 7; ++i) x[n++] = back(kDay * (days + i) - ahead) / scale;
    for (const size_t hours : std::array<size_t, 6>{0, 1, 2, 24, 25, 48}) x[n++] = back(hours) / scale;
    for (const size_t hours : std::array<size_t, 3>{6, kDay, kMonth}) x[n++] = (mean(now, hours) - m) / scale;
    // 1970 began on a Thursday. Flags count a third, so that the ridge holds them back.
    const int64_t weekday = (hour(now + ahead) / static_cast<int64_t>(kDay) + 3) % 7;
    for (const int64_t day : std::array<int64_t, 3>{5, 6, 0}) x[n++] = weekday == day ? 0.3 : 0;
    x[n++] = 1;
    return m;
  }

 private:
  const std::vector<double>& y_;
  int64_t first_hour_;
  std::vector<double> sums_;
};

// Solves (a + ridge) w = b by Cholesky; a is symmetric and not negative.
Row solve(Matrix a, Row b, double ridge) {
  for (size_t i = 0; i < kFeatures; ++i) {
    a[i][i] += ridge;
    for (size_t j = 0; j <= i; ++j) {
      double sum = a[i][j];
      for (size_t k = 0; k < j; ++k) sum -= a[i][k] * a[j][k];
      a[i][j] = i == j ? std::sqrt(std::max(sum, 1e-12)) : sum / a[j][j];
    }
  }
  for (size_t i = 0; i < kFeatures; ++i) {
    for (size_t k = 0; k < i; ++k) b[i] -= a[i][k] * b[k];
    b[i] /= a[i][i];
  }
  for (size_t i = kFeatures; i-- > 0;) {
    for (size_t k = i + 1; k < kFeatures; ++k) b[i] -= a[k][i] * b[k];
    b[i] /= a[i][i];
  }
  return b;
}

struct Sums {
  Matrix xx{};
  Row xt{};
  void add(const Row& x, double t) {
    for (size_t i = 0; i < kFeatures; ++i) {
      xt[i] += x[i] * t;
      for (size_t j = 0; j <= i; ++j) xx[i][j] += x[i] * x[j];
    }
  }
  void add(const Sums& other) {
    for (size_t i = 0; i < kFeatures; ++i) {
      xt[i] += other.xt[i];
      for (size_t j = 0; j <= i; ++j) xx[i][j] += other.xx[i][j];
    }
  }
};

}  // namespace

Result<FittedForecaster> FittedForecaster::fit(const HourlyIntensity& history, size_t max_ahead) {
  const std::vector<double>& y = history.g_per_kwh;
  if (max_ahead == 0 || max_ahead % kDay != 0) {
    return {ErrorCode::kInvalidArgument, strf("a forecast of %zu hours: whole days are wanted", max_ahead)};
  }
  if (y.size() < kLeastHistory + max_ahead) {
    return {ErrorCode::kInvalidArgument, strf("%zu hours of history are too few to fit on: %zu are needed",
                                              y.size(), kLeastHistory + max_ahead)};
  }
  FittedForecaster fitted;
  fitted.max_ahead_ = max_ahead;
  fitted.weights_.resize(max_ahead * kDay * kFeatures);
  const History known(history);
  const double mean = known.mean(y.size() - 1, y.size());
  double variance = 0;
  for (const double value : y) variance += (value - mean) * (value - mean);
  fitted.scale_ = std::max(std::sqrt(variance / static_cast<double>(y.size())), 1e-3);
  for (size_t ahead = 1; ahead <= max_ahead; ++ahead) {
    std::vector<Sums> hours(kDay);
    Row x;
    for (size_t now = 2 * kWeek; now + ahead < y.size(); ++now) {
      const double m = known.features(now, ahead, fitted.scale_, x);
      const auto hour = static_cast<size_t>(known.hour(now + ahead)) % kDay;
      hours[hour].add(x, (y[now + ahead] - m) / fitted.scale_);
    }
    Sums all;
    for (const Sums& sums : hours) all.add(sums);
    const Row w = solve(all.xx, all.xt, kRidge);
    for (size_t hour = 0; hour < kDay; ++hour) {
      // What the common weights leave over: x'(t - x w) = x't - x'x w.
      Row rest = hours[hour].xt;
      for (size_t i = 0; i < kFeatures; ++i) {
        for (size_t j = 0; j < kFeatures; ++j) {
          rest[i] -= (j <= i ? hours[hour].xx[i][j] : hours[hour].xx[j][i]) * w[j];
        }
      }
      const Row own = solve(hours[hour].xx, rest, kHourRidge);
      double* at = &fitted.weights_[((ahead - 1) * kDay + hour) * kFeatures];
      for (size_t i = 0; i < kFeatures; ++i) at[i] = w[i] + own[i];
    }
  }
  return fitted;
}

std::vector<double> FittedForecaster::ahead(const HourlyIntensity& history, size_t now, size_t n) const {
  // Young history: the features would repeat its first value.
  if (now < 3 * kWeek) return forecast(Forecaster::kBlend, history, now, n);
  // Only what the features look at is copied, so that a call costs no more in a long history.
  const size_t days_back = (n + kDay - 1) / kDay + 7;
  const size_t begin = now - std::min(now, std::max(kMonth, kDay * days_back));
  HourlyIntensity recent;
  recent.start_unix_s = history.start_unix_s + 3600.0 * static_cast<double>(begin);
  recent.g_per_kwh.assign(history.g_per_kwh.begin() + static_cast<ptrdiff_t>(begin),
                          history.g_per_kwh.begin() + static_cast<ptrdiff_t>(now) + 1);
  const History known(recent);
  const size_t here = now - begin;
  std::vector<double> values(n);
  Row x;
  for (size_t k = 1; k <= n; ++k) {
    // Beyond the last fitted day its weights go on.
    const size_t row = k <= max_ahead_ ? k : max_ahead_ - kDay + (k - 1) % kDay + 1;
    const double m = known.features(here, k, scale_, x);
    const auto hour = static_cast<size_t>(known.hour(here + k)) % kDay;
    const double* w = &weights_[((row - 1) * kDay + hour) * kFeatures];
    double sum = 0;
    for (size_t i = 0; i < kFeatures; ++i) sum += w[i] * x[i];
    values[k - 1] = std::max(0.0, m + scale_ * sum);
  }
  return values;
}

}  // namespace frugal::jobs
