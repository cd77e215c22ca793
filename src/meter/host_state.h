// What the integration of a host's energy remembers between two samples, and where it is kept: in this
// process, or in a small file that all meters of the user share. Sharing makes one sampler of many: whoever
// needs a figure takes the lock and goes on from the last sample of anyone, so that counters are read once an
// interval however many runs there are, and all runs are charged parts of the same whole.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "frugal/meter.h"
#include "frugal/result.h"
#include "meter/sensor.h"

namespace frugal::meter {

constexpr size_t kMaxSensors = 64, kMaxCpus = 1024;

// Plain data: copied whole.
struct HostState {
  double last_wall_s = 0;  // CLOCK_MONOTONIC of the last sample; 0: none yet
  double last_busy_s = 0;
  HostEnergy host;
  double model_w[3] = {0, 0, 0};  // value, low, high of the last full interval; 0: none yet
  std::array<SensorState, kMaxSensors> sensors;
  std::array<double, kMaxCpus> busy_by_cpu{};
  int64_t n_cpus = 0;
};

class StateKeeper {
 public:
  virtual ~StateKeeper() = default;
  // Calls `step` on the present state with nobody else at it; what it changed is kept if it returns true.
  // False: the state could not be had in time (its holder is stopped).
  virtual bool update(const std::function<bool(HostState&)>& step) = 0;
  virtual bool shared() const = 0;
};

std::unique_ptr<StateKeeper> private_state(const HostState& initial = {});

// The file `folder`/meter-<hash of fingerprint>; the folder is made, for its owner alone. Whatever the
// meter's figures depend on belongs into the fingerprint. A writer that is killed at any moment leaves the
// state of before. kPermission: the folder is somebody else's; kIo.
Result<std::unique_ptr<StateKeeper>> shared_state(const std::string& folder, const std::string& fingerprint);

}  // namespace frugal::meter
