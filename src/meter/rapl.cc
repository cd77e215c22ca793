#include "meter/rapl.h"

#include <algorithm>
#include <set>

#include "base/text.h"
#include "meter/sysfs.h"

namespace frugal::meter {
namespace {

// A package that draws more than this has not been built: the most power that an interval may imply where the
// kernel does not give the limit itself (the largest server parts of 2026 are rated at 500 W and peak below 1
// kW).
constexpr double kMaxPackageWatts = 1500;

// Long-term limits are averages: short peaks go above them.
constexpr double kPeakOverLimit = 4;

double most_watts(const std::string& folder) {
  double watts = 0;
  for (int i = 0; i < 3; ++i) {
    const auto limit = read_number(strf("%s/constraint_%d_max_power_uw", folder.c_str(), i));
    if (limit.ok()) watts = std::max(watts, 1e-6 * static_cast<double>(*limit) * kPeakOverLimit);
  }
  return watts > 0 ? std::min(watts, kMaxPackageWatts) : kMaxPackageWatts;
}

// Adds `folder` if its counter can be read; says why in `notes` otherwise.
void add_domain(const std::string& folder, const std::string& name, DomainKind kind, RaplDomains& found) {
  const auto energy = read_number(folder + "/energy_uj");
  const auto range = read_number(folder + "/max_energy_range_uj");
  if (!energy.ok()) {
    std::string note = name + ": " + energy.error().message;
    if (energy.error().code == ErrorCode::kPermission) {
      note += "; let your group read it, as root once per boot: chgrp <group> " + folder +
              "/energy_uj && chmod g+r " + folder + "/energy_uj (a udev or tmpfiles.d rule makes it last)";
    }
    found.notes.push_back(std::move(note));
    return;
  }
  if (!range.ok() || *range == 0) {
    found.notes.push_back(name +
                          ": its max_energy_range_uj is missing, so a wrap could not be told from a reset");
    return;
  }
  found.domains.push_back({folder, name, kind, *range, most_watts(folder)});
}

}  // namespace

RaplDomains discover_rapl(const std::string& sysfs) {
  RaplDomains found;
  const std::string root = sysfs + "/class/powercap";
  std::set<std::string> packages;  // names taken: "package-0" of msr before that of mmio
  bool any_zone = false, psys = false;
  for (const bool mmio : {false, true}) {
    for (const std::string& zone : list_directory(root)) {
      const bool is_mmio = zone.starts_with("intel-rapl-mmio:");
      if (is_mmio != mmio || (!is_mmio && !zone.starts_with("intel-rapl:"))) continue;
      if (std::count(zone.begin(), zone.end(), ':') != 1) continue;  // a part of a package: seen below
      const std::string folder = root + "/" + zone;
      const auto name = read_line(folder + "/name");
      any_zone = true;
      if (!name.ok()) {
        found.notes.push_back(zone + ": " + name.error().message);
        continue;
      }
      if (*name == "psys") {
        psys = true;
        continue;
      }
      if (!name->starts_with("package") || packages.contains(*name)) continue;
      const size_t before = found.domains.size();
      add_domain(folder, *name, DomainKind::kPackage, found);
      if (found.domains.size() == before) continue;
      packages.insert(*name);
      // Parts stand in the class folder and, with some kernels, only under their package.
      std::set<std::string> parts;
      for (const std::string& at : {root, folder}) {
        for (const std::string& part : list_directory(at)) {
          if (!part.starts_with(zone + ":") || !parts.insert(part).second) continue;
          const auto part_name = read_line(at + "/" + part + "/name");
          if (part_name.ok() && *part_name == "dram") {
            add_domain(at + "/" + part, *name + "/dram", DomainKind::kDram, found);
          }
        }
      }
    }
  }
  if (psys && !found.domains.empty()) {
    found.notes.push_back(
        "psys is there and left out: it holds the packages, and adding it would count them twice");
  }
  if (!any_zone) {
    found.notes.push_back("no RAPL zones under " + root +
                          ": a virtual machine, an old kernel, or the module intel_rapl_msr is not loaded");
  }
  return found;
}

Result<double> EnergyCounter::update(double seconds) {
  state_.pending_s += std::max(seconds, 0.0);
  FRUGAL_TRY(const uint64_t now_uj, read_number(domain_.path + "/energy_uj"));
  const double elapsed = std::exchange(state_.pending_s, 0.0);
  const double now = 1e-6 * static_cast<double>(now_uj), range = 1e-6 * static_cast<double>(domain_.range_uj);
  const double last = std::exchange(state_.last, now);
  if (std::exchange(state_.started, 1) == 0) return 0.0;
  // Counters step about every millisecond; an interval shorter than that may hold a step's worth.
  const double possible_j = domain_.max_watts * (elapsed + 0.01);
  double joules;
  if (now >= last) {
    joules = now - last;
  } else if (last <= range) {
    joules = now + (range - last);
  } else {
    return {ErrorCode::kUnavailable, domain_.name + ": the counter stood above its own range"};
  }
  if (joules > possible_j) {
    return {ErrorCode::kUnavailable, strf("%s: the counter jumped by %.0f J in %.2f s; it was reset",
                                          domain_.name.c_str(), joules, elapsed)};
  }
  return joules;
}

}  // namespace frugal::meter
