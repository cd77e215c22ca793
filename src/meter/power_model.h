// The load model: power of the processor packages from how busy and how fast they are.
//
//   P = rated * full * (I + (1 - I) * phi^b * h(u))      I = idle * least^a,   h(u) = (1 - e^(-k u)) / (1 -
//   e^-k)
//
// u is the share of the host's threads that are busy, `least` the least frequency over the greatest, and phi
// the frequency of the busy threads, which follows from the mean of all when the idle ones run at `least`. h
// is concave: the first busy cores wake the caches and the fabric, the last hardware threads share cores that
// are busy already. Load that is spread thinly over the threads runs slower than a reading of the frequency
// says: the kernel's governors set a frequency in proportion to how busy a thread is and reach the greatest
// at 80 % (schedutil's headroom of a quarter, ondemand's threshold), and the reading wakes what it reads. phi
// is therefore held below least + (1 - least) * packing / 0.8. Power at a given voltage grows with the
// frequency, with the voltage as its square, so exponents lie between 1 and 3. The constants are what
// scripts/fit_power_model.sh prints from public sweeps.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "frugal/meter.h"
#include "frugal/result.h"
#include "meter/host_load.h"

namespace frugal::meter {

struct CurveParameters {
  double full = 0;  // power at full load and greatest frequency, over the rated power
  double idle = 0;  // idle share where the least frequency is the greatest
  double a = 0;     // exponent of the least frequency in the idle share
  double b = 0;     // exponent of the frequency of busy threads
  double k = 0;     // curvature in load
};

extern const CurveParameters kCurve;

// 90 % bands, as factors on the value.
struct Band {
  double low = 1, high = 1;
};
extern const Band kBandByRating;     // rated power known, not calibrated
extern const Band kBandNoFrequency;  // the same without frequency
extern const Band kBandCalibrated;   // two points or more
extern const Band kBandCalibratedNoFrequency;

// The curve over rated power. u is clamped to [0, 1]; without frequency the busy threads run at full speed
// and the least frequency is taken as half of the greatest.
double curve(const CurveParameters& parameters, double u, std::optional<FrequencyShare> frequency);

// Immutable.
class PowerModel {
 public:
  // From a rated power in watts; `rating` is the uncertainty of the rating itself.
  static PowerModel from_rating(double rated_watts, Band rating = {},
                                const CurveParameters& parameters = kCurve);
  // From points of this host: two or more, loads 0.2 or more apart, watts positive and growing with the load.
  // kInvalidArgument otherwise.
  static Result<PowerModel> from_points(std::span<const CalibrationPoint> points,
                                        const CurveParameters& parameters = kCurve);

  // Watts of all packages, kModelled.
  Estimate watts(double u, std::optional<FrequencyShare> frequency) const;

 private:
  double shape(double u, std::optional<FrequencyShare> frequency) const;

  // Watts = offset + scale * curve. A rating alone has offset 0; calibration sets both through its outer
  // points.
  double offset_ = 0, scale_ = 0;
  CurveParameters parameters_;
  std::vector<CalibrationPoint> points_;  // sorted by load
  std::vector<double> errors_;  // watts that the curve misses at each point; interpolated in between
  Band rating_;
  bool points_have_frequency_ = true;  // else frequency is left out: the points were taken without
};

}  // namespace frugal::meter
