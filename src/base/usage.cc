#include "frugal/usage.h"

#include <algorithm>

namespace frugal {

std::string_view provenance_name(Provenance provenance) {
  switch (provenance) {
    case Provenance::kNone:
      return "none";
    case Provenance::kMeasured:
      return "measured";
    case Provenance::kModelled:
      return "modelled";
    case Provenance::kAssumed:
      return "assumed";
  }
  return "none";
}

Estimate& Estimate::operator+=(const Estimate& other) {
  if (!known() || !other.known()) return *this = Estimate::unknown();
  value += other.value;
  low += other.low;
  high += other.high;
  provenance = std::max(provenance, other.provenance);
  return *this;
}

Estimate Estimate::scaled(double factor) const {
  return {value * factor, low * factor, high * factor, provenance};
}

Usage& Usage::operator+=(const Usage& other) {
  flops += other.flops;
  bytes_moved += other.bytes_moved;
  bytes_held = std::max(bytes_held, other.bytes_held);
  cpu_seconds += other.cpu_seconds;
  wall_seconds += other.wall_seconds;
  energy_j += other.energy_j;
  carbon_gco2e += other.carbon_gco2e;
  return *this;
}

}  // namespace frugal
