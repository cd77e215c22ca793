// EnergySensor: something on this host that tells joules, whatever stands behind it.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "frugal/result.h"

namespace frugal::meter {

enum class Component { kCpu, kMemory, kGpu };

// What a sensor remembers between two reads: plain data, so that processes can share it.
struct SensorState {
  double last = 0;       // joules (or, of a sensor of power, watts) at the last good read
  double pending_s = 0;  // time since then
  int64_t started = 0;   // there was a good read
  // Kept by the meter: time that no read covers, whether the sensor is given up, joules of all good reads.
  double silent_s = 0;
  int64_t dead = 0;
  double total_j = 0;
};

struct ProcessUse {
  int64_t pid = 0;
  double use = 0;  // comparable between the processes of one device and one call
};

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

  // False: its count starts with its owner, so that no other process can go on from there.
  virtual bool shareable() const { return true; }

  // Processes that computed on the device since the last call, and how much; empty: none did. Nothing: it
  // cannot be told.
  virtual std::optional<std::vector<ProcessUse>> process_use() { return std::nullopt; }

  SensorState& state() { return state_; }

 protected:
  SensorState state_;
};

}  // namespace frugal::meter
