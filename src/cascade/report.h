// The PFEC report (performance, FLOPs, energy, carbon): what a budget costs and what it earns, each figure
// with its provenance; one HTML page without scripts or outside resources, and the same as JSON.
#pragma once

#include <optional>

#include "cascade/cost.h"
#include "cascade/replay.h"
#include "cascade/simulate.h"
#include "frugal/usage.h"

namespace frugal::cascade {

struct ReportInput {
  CascadeSpec spec;
  Evaluation evaluation;
  std::vector<std::pair<std::string, DayResult>> days;  // by controller; the first one is plotted
  // Where the cascade's models ran here: what chains take, and what a price on processor time does.
  std::optional<CascadeCosts> costs;
  std::optional<Evaluation> by_cpu;
  // The test requests served by the real models: two static chains, each seed's price on FLOPs, each seed's
  // price on processor time. Empty: not served.
  std::vector<ReplayArm> served;
  std::string made;          // when, where and by what, a sentence
  Estimate joules_per_flop;  // where there are no costs: an assumption
  Estimate gco2e_per_kwh;
};

std::string report_html(const ReportInput& input);
std::string report_json(const ReportInput& input);

}  // namespace frugal::cascade
