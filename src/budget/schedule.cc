// Schedule: piecewise constant rates and their integral.
#include <algorithm>
#include <cmath>
#include <limits>

#include "base/text.h"
#include "frugal/budget.h"

namespace frugal::budget {

Schedule Schedule::constant(double rate) {
  Schedule schedule;
  schedule.points_ = {{0, std::isfinite(rate) ? std::max(rate, 0.0) : 0.0}};
  schedule.until_ = {0};
  if (std::isinf(rate) && rate > 0) return Schedule();
  return schedule;
}

Result<Schedule> Schedule::piecewise(std::vector<Point> points, double period_s) {
  if (points.empty()) return {ErrorCode::kInvalidArgument, "a schedule needs at least one point"};
  for (size_t i = 0; i < points.size(); ++i) {
    if (!std::isfinite(points[i].at_s) || !std::isfinite(points[i].rate) || points[i].rate < 0) {
      return {ErrorCode::kInvalidArgument,
              strf("schedule point %zu is (%g s, %g): times are finite, rates finite and not negative", i,
                   points[i].at_s, points[i].rate)};
    }
    if (i > 0 && points[i].at_s <= points[i - 1].at_s) {
      return {ErrorCode::kInvalidArgument,
              strf("schedule point %zu at %g s does not come after the one before it at %g s", i,
                   points[i].at_s, points[i - 1].at_s)};
    }
  }
  if (period_s != 0 && (!std::isfinite(period_s) || points[0].at_s != 0 || period_s <= points.back().at_s)) {
    return {ErrorCode::kInvalidArgument, strf("a schedule that repeats starts at 0 s and its period (%g s) "
                                              "reaches beyond its last point (%g s)",
                                              period_s, points.back().at_s)};
  }
  Schedule schedule;
  schedule.until_.push_back(0);
  for (size_t i = 1; i < points.size(); ++i) {
    schedule.until_.push_back(schedule.until_[i - 1] +
                              points[i - 1].rate * (points[i].at_s - points[i - 1].at_s));
  }
  schedule.points_ = std::move(points);
  schedule.period_s_ = period_s;
  return schedule;
}

namespace {

// Index of the point whose rate holds at `at_s`: the last one not after it, or the first.
size_t segment(const std::vector<Schedule::Point>& points, double at_s) {
  const auto next = std::upper_bound(points.begin(), points.end(), at_s,
                                     [](double t, const Schedule::Point& point) { return t < point.at_s; });
  return next == points.begin() ? 0 : static_cast<size_t>(next - points.begin()) - 1;
}

}  // namespace

double Schedule::rate(double at_s) const {
  if (!limited()) return std::numeric_limits<double>::infinity();
  if (period_s_ > 0) at_s -= std::floor(at_s / period_s_) * period_s_;
  return points_[segment(points_, at_s)].rate;
}

double Schedule::amount(double from_s, double to_s) const {
  if (!(to_s > from_s)) return 0;
  if (!limited()) return std::numeric_limits<double>::infinity();
  const auto up_to = [this](double t) {
    double whole = 0;
    if (period_s_ > 0) {
      const double periods = std::floor(t / period_s_);
      t -= periods * period_s_;
      whole = periods * (until_.back() + points_.back().rate * (period_s_ - points_.back().at_s));
    }
    const size_t i = segment(points_, t);
    return whole + until_[i] + points_[i].rate * (t - points_[i].at_s);
  };
  return up_to(to_s) - up_to(from_s);
}

}  // namespace frugal::budget
