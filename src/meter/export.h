// Views of ledger entries: groups with their SCI, and the texts that other programs read.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "frugal/meter.h"

namespace frugal::meter {

enum class GroupBy { kDay, kProject, kModel, kKind };

// Emissions of making the host: M of the SCI is total * (CPU time / (threads * life)).
struct Embodied {
  double total_kg = 0;  // 0: not counted
  double life_years = 4;
  double threads = 1;
};

struct Group {
  std::string key;
  int64_t n = 0;
  int64_t n_unknown_carbon = 0;  // entries without a place: not in the carbon sum
  Usage usage;                   // carbon over the entries that have it
  double units = 0;
  std::string unit;  // empty when the entries disagree
  double embodied_g = 0;
  Estimate energy_per_unit_j;  // unknown without one unit
  Estimate sci_g;  // ((E * I) + M) per unit (ISO/IEC 21031:2024); unknown without carbon of all entries and
                   // one unit
};

// In order of key.
std::vector<Group> group_entries(std::span<const LedgerEntry> entries, GroupBy by,
                                 const Embodied& embodied = {});

std::string groups_json(std::span<const Group> groups);
// One line an entry, with a header; RFC 4180.
std::string csv_text(std::span<const LedgerEntry> entries);
// Text exposition format 0.0.4, for an endpoint or the node exporter's textfile collector.
std::string prometheus_text(std::span<const LedgerEntry> entries);
// Body of a POST to an OTLP/HTTP metrics endpoint (ExportMetricsServiceRequest as JSON).
std::string otlp_json(std::span<const LedgerEntry> entries, double now_unix_s);

}  // namespace frugal::meter
