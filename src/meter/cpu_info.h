// Which processor this is, and the watts it is built for.
#pragma once

#include <string>
#include <string_view>

#include "frugal/result.h"

namespace frugal::meter {

struct CpuInfo {
  std::string name;    // "AMD EPYC 7763 64-Core Processor"; empty when the kernel does not say
  std::string vendor;  // "GenuineIntel"
  int family = 0;
  int model = 0;
  int sockets = 1;
  int threads = 1;  // that the operating system sees, over all sockets
  bool virtual_machine = false;
};

// From <procfs>/cpuinfo. A field that is not there keeps its default.
CpuInfo read_cpu_info(const std::string& procfs);

// TDP in watts of the part that a CSV file `Name,TDP` lists under `name`. Names are compared without case,
// trademark signs, "CPU", "Processor", core counts and clock rates; a name that fits two entries of unlike
// TDP is refused. kNotFound: no such part; kCorrupt: no line of the file is of that form.
Result<double> find_tdp(const std::string& table_path, std::string_view name);

// The same over a table in memory; `origin` stands in messages.
Result<double> find_tdp_in(std::string_view table, std::string_view origin, std::string_view name);

// The form in which names are compared: "amd epyc 7763".
std::string normalised_cpu_name(std::string_view name);

// Typical watts per thread at the rated power of a family of processors, when the part itself is not known;
// the band spans the family's parts.
struct WattsPerThread {
  double value = 0, low = 0, high = 0;
  std::string family;  // "AMD EPYC 7003 (Milan)"
};
WattsPerThread watts_per_thread(const CpuInfo& cpu);

}  // namespace frugal::meter
