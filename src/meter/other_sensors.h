// Energy sensors beside powercap: the kernel's perf events, hwmon, and NVIDIA's management library. Each
// finds what the host offers, and says in `notes` why what it looked for is not to be had.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "frugal/result.h"
#include "meter/sensor.h"

namespace frugal::meter {

struct FoundSensors {
  std::vector<std::unique_ptr<EnergySensor>> sensors;
  std::vector<std::string> notes;
};

// perf's `power` unit: energy-pkg of each package, and energy-ram. Needs CAP_PERFMON or perf_event_paranoid
// <= 0.
FoundSensors discover_perf(const std::string& sysfs);

// hwmon: the energy counters of sockets (driver amd_energy) and the power of AMD GPUs (amdgpu). A meter of
// the whole machine (ACPI power_meter) is told in the notes and left out: it is no component.
FoundSensors discover_hwmon(const std::string& sysfs);

// NVML, opened by name at run time: the energy counter of each GPU, or its power where there is none.
FoundSensors discover_nvml(const std::string& library = "libnvidia-ml.so.1");

}  // namespace frugal::meter
