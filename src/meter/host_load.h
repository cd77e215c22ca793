// How busy the host is, and how fast its processors run.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "frugal/result.h"

namespace frugal::meter {

// CPU-seconds that anyone spent on this host since boot: user, nice, system and interrupts; neither idle, I/O
// wait nor time stolen by the hypervisor. Resolution: one clock tick (10 ms) per processor and state.
// kNotFound, kCorrupt.
Result<double> read_busy_seconds(const std::string& procfs);

// How fast the processors run, over the greatest frequency that they can.
struct FrequencyShare {
  double mean = 1;     // over processors, busy or not, in (0, 1]
  double least = 0.5;  // that they can be set to
};

// Nothing when the host does not tell (most virtual machines). `max_cpus` processors are looked at, evenly
// spread, so that a large host costs no more to sample.
std::optional<FrequencyShare> read_frequency_share(const std::string& sysfs, int max_cpus = 16);

}  // namespace frugal::meter
