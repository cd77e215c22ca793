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

// CPU-seconds since boot of each processor that is online. kNotFound, kCorrupt.
Result<std::vector<double>> read_busy_by_cpu(const std::string& procfs);

// How busy a processor is while it does anything: sum of u^2 over sum of u, in [u, 1]. A few pinned threads
// give 1, the same load spread over all processors gives the load itself. 1 when nothing is known.
double packing_of(const std::vector<double>& before, const std::vector<double>& now, double seconds);

// How fast the processors run, over the greatest frequency that they can.
struct FrequencyShare {
  double mean = 1;     // over processors, busy or not, in (0, 1]
  double least = 0.5;  // that they can be set to
  double packing = 1;  // packing_of() over the same time
};

// Nothing when the host does not tell (most virtual machines). `max_cpus` processors are looked at, evenly
// spread, so that a large host costs no more to sample.
std::optional<FrequencyShare> read_frequency_share(const std::string& sysfs, int max_cpus = 16);

}  // namespace frugal::meter
