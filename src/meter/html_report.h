// The ledger as one page that needs nothing else: tables, and plots as inline SVG.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "meter/export.h"

namespace frugal::meter {

// A job on the curve of intensity.
struct JobBar {
  std::string label;
  double submitted_unix_s = 0, deadline_unix_s = 0;
  std::vector<std::pair<double, double>> runs;     // begin and end
  std::vector<std::pair<double, double>> planned;  // the same, ahead, of a job that is not over
  std::string outcome;                             // "done, 31 % saved"
};

struct ReportPage {
  std::span<const LedgerEntry> entries;  // oldest first
  Embodied embodied;
  double water_l_per_kwh = 0;  // 0: no water
  // Hourly intensity around the jobs, g/kWh, and where it is from.
  std::vector<std::pair<double, double>> intensity;  // begin of the hour, value
  std::string intensity_source;
  std::vector<JobBar> jobs;
  double now_unix_s = 0;
};

std::string html_report(const ReportPage& page);

}  // namespace frugal::meter
