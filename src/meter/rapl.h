// Powercap RAPL: energy counters of processor packages, memory and platform under <sysfs>/class/powercap.
//
// Domains overlap: psys holds the packages, a package holds core and uncore. Only packages and dram are added
// up; psys is left out, and the mmio twin of a package that msr has too is left out. A counter wraps at
// max_energy_range_uj; it also jumps back after a suspend or a reset, and a read can fail. A wrap is added
// only when the power that it implies is possible; otherwise the interval is reported as unread, and the
// caller fills it by its model.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "frugal/result.h"
#include "meter/sensor.h"

namespace frugal::meter {

enum class DomainKind { kPackage, kDram };

struct RaplDomain {
  std::string path;  // of its folder
  std::string name;  // "package-0", "dram"
  DomainKind kind = DomainKind::kPackage;
  uint64_t range_uj = 0;  // the counter wraps to 0 after this value
  double max_watts = 0;   // that one interval may imply before it counts as a reset
};

// What discovery found, and why domains were left out or could not be read.
struct RaplDomains {
  std::vector<RaplDomain> domains;
  std::vector<std::string> notes;
};

// Readable packages and dram domains. No domain is no error: notes say why.
RaplDomains discover_rapl(const std::string& sysfs);

// Unwraps one counter.
class EnergyCounter : public EnergySensor {
 public:
  explicit EnergyCounter(RaplDomain domain) : domain_(std::move(domain)) {}

  const std::string& name() const override { return domain_.name; }
  Component component() const override {
    return domain_.kind == DomainKind::kDram ? Component::kMemory : Component::kCpu;
  }
  Result<double> update(double seconds) override;

 private:
  RaplDomain domain_;
};

}  // namespace frugal::meter
