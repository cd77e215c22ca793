// The PFEC report (performance, FLOPs, energy, carbon): what a budget costs and what it earns, each figure
// with its provenance; one HTML page without scripts or outside resources, and the same as JSON.
#pragma once

#include "cascade/evaluate.h"
#include "cascade/simulate.h"
#include "frugal/usage.h"

namespace frugal::cascade {

struct ReportInput {
  CascadeSpec spec;
  Evaluation evaluation;
  std::vector<std::pair<std::string, DayResult>> days;  // by controller; the first one is plotted
  // Energy of a FLOP. There is no counter for a chain's joules unless its models were run under a meter.
  Estimate joules_per_flop;
  Estimate gco2e_per_kwh;
};

std::string report_html(const ReportInput& input);
std::string report_json(const ReportInput& input);

}  // namespace frugal::cascade
