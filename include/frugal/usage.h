// Usage: what a piece of work cost. Every plane returns one, the meter adds energy and carbon, the ledger
// keeps them, and the parts of a whole sum to the whole.
#pragma once

#include <cstdint>
#include <string_view>

namespace frugal {

// How a figure came about. Ordered from best to worst: a sum is only as good as its worst part.
enum class Provenance {
  kNone,      // no figure at all: the value is not to be shown as a number
  kMeasured,  // read from a counter or meter
  kModelled,  // from a model fitted on measurements of other machines, or of this one by calibration
  kAssumed,   // from a constant: a data-sheet figure, a national average
};

// Stable lower-case name ("modelled").
std::string_view provenance_name(Provenance provenance);

// A figure with its 90 % band: low <= value <= high. Provenance kNone means that there is no figure.
struct Estimate {
  double value = 0;
  double low = 0;
  double high = 0;
  Provenance provenance = Provenance::kNone;

  bool known() const { return provenance != Provenance::kNone; }
  static Estimate exact(double value) { return {value, value, value, Provenance::kMeasured}; }
  static Estimate unknown() { return {}; }

  // Bands add linearly: parts of one run share their error, so they are not independent. Known + unknown is
  // unknown.
  Estimate& operator+=(const Estimate& other);
  Estimate scaled(double factor) const;
};

struct Usage {
  double flops = 0;        // counted by formula; a fused multiply-add is two
  double bytes_moved = 0;  // weights, cache and activations read or written at least once, by formula
  double bytes_held = 0;   // peak of what the work kept in memory (a sum takes the larger, not both)
  double cpu_seconds = 0;  // over all threads
  double wall_seconds = 0;
  Estimate energy_j;      // joules
  Estimate carbon_gco2e;  // grams of CO2 equivalent, operational

  // Adds work done after this work: times, FLOPs and energy sum, bytes_held takes the larger.
  Usage& operator+=(const Usage& other);
};

}  // namespace frugal
