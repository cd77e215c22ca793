#include "meter/power_model.h"

#include <algorithm>
#include <cmath>

#include "base/text.h"

namespace frugal::meter {

const CurveParameters kCurve = {0.82, 0.50, 2.0, 2.0, 2.5};
// Hold 90 to 95 % of the residuals of `frugal bench meter`, each machine judged by a curve fitted on the
// other. The one without frequency is wider by what the frequency explains there.
const Band kBandByRating = {0.68, 1.425};
const Band kBandNoFrequency = {0.45, 1.75};
const Band kBandCalibrated = {0.86, 1.15};
const Band kBandCalibratedNoFrequency = {0.50, 1.25};

// How busy a thread has to be for the governors to give it the greatest frequency.
constexpr double kGovernorFull = 0.8;

double curve(const CurveParameters& p, double u, std::optional<FrequencyShare> frequency) {
  u = std::clamp(u, 0.0, 1.0);
  const double least = std::clamp(frequency ? frequency->least : 0.5, 0.05, 1.0);
  double busy = 1;
  if (frequency) {
    // At the lowest loads the quotient is mostly noise, hence the floor under u.
    busy = std::clamp((frequency->mean - (1 - u) * least) / std::max(u, 0.03), least, 1.0);
    const double packing = std::clamp(frequency->packing, 0.0, 1.0);
    busy = std::min(busy, least + (1 - least) * std::min(1.0, packing / kGovernorFull));
  }
  const double idle = p.idle * std::pow(least, p.a);
  const double h = (1 - std::exp(-p.k * u)) / (1 - std::exp(-p.k));
  return p.full * (idle + (1 - idle) * std::pow(busy, p.b) * h);
}

PowerModel PowerModel::from_rating(double rated_watts, Band rating, const CurveParameters& parameters) {
  PowerModel model;
  model.scale_ = rated_watts;
  model.rating_ = rating;
  model.parameters_ = parameters;
  return model;
}

Result<PowerModel> PowerModel::from_points(std::span<const CalibrationPoint> points,
                                           const CurveParameters& parameters) {
  PowerModel model;
  model.parameters_ = parameters;
  model.points_.assign(points.begin(), points.end());
  std::sort(model.points_.begin(), model.points_.end(), [](auto& x, auto& y) { return x.load < y.load; });
  for (const CalibrationPoint& point : model.points_) {
    if (!(point.load >= 0 && point.load <= 1) || !(point.watts > 0 && point.watts < 1e5)) {
      return {ErrorCode::kInvalidArgument,
              strf("calibration point %g:%g: load must be in [0, 1] and watts positive", point.load,
                   point.watts)};
    }
    if (point.frequency <= 0 || point.least_frequency <= 0) model.points_have_frequency_ = false;
  }
  if (model.points_.size() < 2 || model.points_.back().load - model.points_.front().load < 0.2) {
    return {ErrorCode::kInvalidArgument,
            "calibration needs two points at least, their loads 0.2 or more apart"};
  }
  const CalibrationPoint &low = model.points_.front(), &high = model.points_.back();
  if (high.watts < low.watts) {
    return {ErrorCode::kInvalidArgument, strf("calibration: %g W at load %g and less, %g W, at load %g",
                                              low.watts, low.load, high.watts, high.load)};
  }
  const auto at = [&](const CalibrationPoint& point) {
    return model.shape(point.load, FrequencyShare{point.frequency, point.least_frequency, 1});
  };
  // The curve is flat where a frequency fell as the load rose; then the points give a level and no slope.
  const double rise = at(high) - at(low);
  model.scale_ = rise > 1e-3 ? (high.watts - low.watts) / rise : 0;
  model.offset_ = low.watts - model.scale_ * at(low);
  for (const CalibrationPoint& point : model.points_) {
    model.errors_.push_back(point.watts - model.offset_ - model.scale_ * at(point));
  }
  return model;
}

double PowerModel::shape(double u, std::optional<FrequencyShare> frequency) const {
  return curve(parameters_, u, points_have_frequency_ ? frequency : std::nullopt);
}

Estimate PowerModel::watts(double u, std::optional<FrequencyShare> frequency) const {
  u = std::clamp(u, 0.0, 1.0);
  double value = offset_ + scale_ * shape(u, frequency);
  if (!points_.empty()) {
    size_t above = 0;
    while (above < points_.size() && points_[above].load <= u) ++above;
    if (above == 0 || above == points_.size()) {
      value += above == 0 ? errors_.front() : errors_.back();
    } else {
      const double t = (u - points_[above - 1].load) / (points_[above].load - points_[above - 1].load);
      value += (1 - t) * errors_[above - 1] + t * errors_[above];
    }
  }
  value = std::max(value, 0.0);
  const bool sighted = frequency.has_value() && (points_.empty() || points_have_frequency_);
  const Band band = points_.empty() ? (sighted ? kBandByRating : kBandNoFrequency)
                                    : (sighted ? kBandCalibrated : kBandCalibratedNoFrequency);
  return {value, value * band.low * rating_.low, value * band.high * rating_.high, Provenance::kModelled};
}

}  // namespace frugal::meter
