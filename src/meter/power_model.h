// The load model: power of the processor packages from how busy and how fast they are.
//
//   P = rated * full * (idle * phi^a + (1 - idle) * phi^b * u^k)
//
// u is the share of the host's threads that are busy, phi the share of the greatest frequency at which they
// run. The curve is concave in u (k < 1): the first busy cores wake the caches and the fabric, the last
// hardware threads share cores that are busy already, and a full package runs slower for its power limit. The
// constants are fitted on public sweeps (scripts/fit_power_model.sh); what stands here is its output.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "frugal/meter.h"
#include "frugal/result.h"

namespace frugal::meter {

struct CurveParameters {
  double full = 0;  // power at full load and greatest frequency, over the rated power
  double idle = 0;  // share of that which an idle package at greatest frequency draws
  double a = 0;     // exponent of frequency for the idle share
  double b = 0;     // and for the rest
  double k = 0;     // exponent of load
};

// Fitted with the frequency known, and without (phi = 1).
extern const CurveParameters kCurve;
extern const CurveParameters kCurveWithoutFrequency;

// Relative 90 % bands around the value: [1 - below, 1 + above].
struct RelativeBand {
  double below = 0, above = 0;
};
extern const RelativeBand kBandByTdp;        // TDP known, not calibrated
extern const RelativeBand kBandNoFrequency;  // the same without frequency
extern const RelativeBand kBandCalibrated;   // two points or more

// The curve over rated power. u and phi are clamped to [0, 1].
double curve(const CurveParameters& parameters, double u, std::optional<double> phi);

// Immutable.
class PowerModel {
 public:
  // From a rated power in watts; `rated_band` is the uncertainty of the rating itself (0 for a known TDP).
  static PowerModel from_rating(double rated_watts, RelativeBand rated_band);
  // From points of this host. Two or more with unlike loads and positive watts: kInvalidArgument otherwise.
  static Result<PowerModel> from_points(std::span<const CalibrationPoint> points);

  // Watts of all packages, kModelled.
  Estimate watts(double u, std::optional<double> phi) const;
  bool calibrated() const { return calibrated_; }

 private:
  // Watts = offset + scale * curve: rating alone has offset 0; calibration fits both.
  double offset_ = 0, scale_ = 0;
  std::vector<CalibrationPoint> points_;  // sorted by load; three or more correct the curve between them
  RelativeBand rated_band_;
  bool calibrated_ = false;
};

}  // namespace frugal::meter
