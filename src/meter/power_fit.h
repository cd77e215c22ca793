// Fits the load model on sweeps: used by the bench, and by scripts/fit_power_model.sh, which prints the
// constants.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "frugal/result.h"
#include "meter/power_model.h"

namespace frugal::meter {

// One measured point of a sweep.
struct SweepPoint {
  double load = 0;  // share of the threads that are busy
  FrequencyShare frequency;
  double watts = 0;  // of all packages, by RAPL
};

// The sweeps of one machine.
struct Machine {
  std::string name;
  double rated_watts = 0;  // TDP x packages
  std::vector<SweepPoint> points;
};

// Reads every *.csv of a folder in the format of CodeCarbon's load profiling (cpu_name, cpu_load in per cent,
// cpu_freq in MHz, rapl_energy in kWh, duration in seconds); points of one processor name belong to one
// machine. The greatest and least frequency are those seen. TDPs come from `cpu_table`; `packages` gives the
// number of packages of a machine whose name holds its first word. kNotFound, kCorrupt.
Result<std::vector<Machine>> read_sweeps(const std::string& folder, const std::string& cpu_table,
                                         std::span<const std::pair<std::string, int>> packages = {});

// Least squares of log(model / measured), every machine of equal weight, pulled towards kPrior: with a few
// machines the data alone would give the scale of the machines at hand, not of the next one.
CurveParameters fit_curve(std::span<const Machine> machines);
extern const CurveParameters kPrior;

}  // namespace frugal::meter
