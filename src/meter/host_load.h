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

// Mean over processors of current / greatest frequency, in (0, 1]; nothing when the host does not tell (most
// virtual machines). `max_cpus` processors are looked at, evenly spread, so that a large host costs no more
// to sample.
std::optional<double> read_frequency_share(const std::string& sysfs, int max_cpus = 16);

}  // namespace frugal::meter
