// EnergySensor: something on this host that tells joules, whatever stands behind it.
#pragma once

#include <string>

#include "frugal/result.h"

namespace frugal::meter {

enum class Component { kCpu, kMemory, kGpu };

// Not thread-safe: the meter's lock guards its sensors.
class EnergySensor {
 public:
  virtual ~EnergySensor() = default;
  virtual const std::string& name() const = 0;
  virtual Component component() const = 0;

  // Joules since the last successful update, over `seconds` since the last call. The first call gives 0.
  // kUnavailable: the counter was reset, the energy of the interval is unknown and the count starts anew. Any
  // other error: the read failed and the state is kept, so that the next good read covers the gap.
  virtual Result<double> update(double seconds) = 0;
};

}  // namespace frugal::meter
