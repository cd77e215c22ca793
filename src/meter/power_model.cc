#include "meter/power_model.h"

#include <algorithm>
#include <cmath>

#include "base/text.h"

namespace frugal::meter {

const CurveParameters kCurve = {0.85, 0.15, 2.0, 1.6, 0.35};
const CurveParameters kCurveWithoutFrequency = {0.82, 0.12, 0, 0, 0.5};
const RelativeBand kBandByTdp = {0.40, 0.50};
const RelativeBand kBandNoFrequency = {0.50, 0.70};
const RelativeBand kBandCalibrated = {0.20, 0.20};

double curve(const CurveParameters& p, double u, std::optional<double> phi) {
  u = std::clamp(u, 0.0, 1.0);
  const double f = phi ? std::clamp(*phi, 0.05, 1.0) : 1.0;
  return p.full * (p.idle * std::pow(f, p.a) + (1 - p.idle) * std::pow(f, p.b) * std::pow(u, p.k));
}

PowerModel PowerModel::from_rating(double rated_watts, RelativeBand rated_band) {
  PowerModel model;
  model.scale_ = rated_watts;
  model.rated_band_ = rated_band;
  return model;
}

Result<PowerModel> PowerModel::from_points(std::span<const CalibrationPoint> points) {
  PowerModel model;
  model.points_.assign(points.begin(), points.end());
  std::sort(model.points_.begin(), model.points_.end(), [](auto& x, auto& y) { return x.load < y.load; });
  for (const CalibrationPoint& point : model.points_) {
    if (!(point.load >= 0 && point.load <= 1) || !(point.watts > 0 && point.watts < 1e5)) {
      return {ErrorCode::kInvalidArgument,
              strf("calibration point %g:%g: load must be in [0, 1] and watts positive", point.load,
                   point.watts)};
    }
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
  // Frequency at the points is not known: the curve without frequency is scaled through the outer two.
  const double x0 = curve(kCurveWithoutFrequency, low.load, {}),
               x1 = curve(kCurveWithoutFrequency, high.load, {});
  model.scale_ = (high.watts - low.watts) / (x1 - x0);
  model.offset_ = low.watts - model.scale_ * x0;
  model.calibrated_ = true;
  return model;
}

Estimate PowerModel::watts(double u, std::optional<double> phi) const {
  const CurveParameters& parameters = phi && !calibrated_ ? kCurve : kCurveWithoutFrequency;
  double value = offset_ + scale_ * curve(parameters, u, calibrated_ ? std::nullopt : phi);
  if (calibrated_ && points_.size() > 2) {
    // The curve's error at each point is interpolated in between.
    const auto error = [&](const CalibrationPoint& point) {
      return point.watts - offset_ - scale_ * curve(kCurveWithoutFrequency, point.load, {});
    };
    const auto above =
        std::upper_bound(points_.begin(), points_.end(), u,
                         [](double load, const CalibrationPoint& point) { return load < point.load; });
    if (above == points_.begin()) {
      value += error(points_.front());
    } else if (above == points_.end()) {
      value += error(points_.back());
    } else {
      const auto below = above - 1;
      const double span = above->load - below->load;
      const double t = span > 0 ? (u - below->load) / span : 0;
      value += (1 - t) * error(*below) + t * error(*above);
    }
  }
  value = std::max(value, 0.0);
  const RelativeBand band = calibrated_ ? kBandCalibrated : phi ? kBandByTdp : kBandNoFrequency;
  return {value, value * (1 - band.below) * (1 - rated_band_.below),
          value * (1 + band.above) * (1 + rated_band_.above), Provenance::kModelled};
}

}  // namespace frugal::meter
