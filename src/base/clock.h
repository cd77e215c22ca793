// Clocks: monotonic wall time, and processor time of this process over all its threads, in seconds.
#pragma once

#include <ctime>

namespace frugal {

inline double clock_seconds(clockid_t clock) {
  timespec now;
  clock_gettime(clock, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

inline double wall_seconds() { return clock_seconds(CLOCK_MONOTONIC); }
inline double process_cpu_seconds() { return clock_seconds(CLOCK_PROCESS_CPUTIME_ID); }

}  // namespace frugal
