#include "meter/power_fit.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>

#include "base/file.h"
#include "base/text.h"
#include "meter/cpu_info.h"
#include "meter/sysfs.h"

namespace frugal::meter {

// What is expected before any sweep is seen. Rated power is a ceiling for the worst load, and an ordinary one
// stays below. Exponents of frequency lie halfway between 1 (voltage constant) and 3 (voltage proportional).
// Idle share and curvature are round numbers in the middle of what published curves show.
const CurveParameters kPrior = {0.82, 0.5, 2, 2, 2.5};

namespace {

using Vector = std::array<double, 5>;

// How far the parameters are believed to lie from the prior, and how the prior weighs against one machine's
// sweep.
constexpr Vector kPriorDeviation = {0.12, 0.2, 0.7, 0.7, 0.5};
constexpr double kPriorWeight = 8;
constexpr double kNoise = 0.2;        // relative deviation of a point
constexpr double kPointsPerFact = 6;  // points of one sweep are not independent: so many count as one

Vector to_vector(const CurveParameters& p) { return {p.full, p.idle, p.a, p.b, p.k}; }
CurveParameters to_parameters(const Vector& v) { return {v[0], v[1], v[2], v[3], v[4]}; }

double loss(const Vector& v, std::span<const Machine> machines) {
  static constexpr Vector kLow = {0.3, 0.02, 0, 0, 0.1}, kHigh = {1.5, 0.95, 4, 4, 6};
  double sum = 0;
  for (size_t i = 0; i < v.size(); ++i) {
    if (v[i] < kLow[i] || v[i] > kHigh[i]) return 1e9;
    const double off = kPriorWeight * (v[i] - to_vector(kPrior)[i]) / kPriorDeviation[i];
    sum += 2 * (std::sqrt(1 + off * off) - 1);
  }
  for (const Machine& machine : machines) {
    const double scale =
        1 / (kNoise * std::sqrt(static_cast<double>(machine.points.size()) / kPointsPerFact));
    for (const SweepPoint& point : machine.points) {
      const double modelled = machine.rated_watts * curve(to_parameters(v), point.load, point.frequency);
      const double residual = scale * std::log(std::max(modelled, 1e-3) / point.watts);
      sum += 2 * (std::sqrt(1 + residual * residual) - 1);  // quadratic near 0, linear for outliers
    }
  }
  return sum;
}

}  // namespace

// Pattern search: five smooth parameters and a cheap loss need no gradient. Deterministic.
CurveParameters fit_curve(std::span<const Machine> machines) {
  Vector best = to_vector(kPrior);
  double best_loss = loss(best, machines);
  for (double step = 0.5; step > 1e-5;) {
    bool better = false;
    for (size_t i = 0; i < best.size(); ++i) {
      for (const double sign : {1.0, -1.0}) {
        Vector trial = best;
        trial[i] += sign * step * kPriorDeviation[i];
        const double trial_loss = loss(trial, machines);
        if (trial_loss < best_loss) {
          best = trial;
          best_loss = trial_loss;
          better = true;
        }
      }
    }
    if (!better) step /= 2;
  }
  return to_parameters(best);
}

Result<std::vector<Machine>> read_sweeps(const std::string& folder, const std::string& cpu_table,
                                         std::span<const std::pair<std::string, int>> packages) {
  struct Row {
    double load, mhz, watts;
    int threads;  // that were kept busy; 0: all, or not told
  };
  std::map<std::string, std::vector<Row>> rows;
  for (const std::string& name : list_directory(folder)) {
    if (!name.ends_with(".csv")) continue;
    const std::string path = folder + "/" + name;
    FRUGAL_TRY(const std::string text, read_file(path, size_t{64} << 20));
    std::map<std::string, size_t> columns;
    size_t line_number = 0;
    for (const std::string& line : split(text, '\n')) {
      ++line_number;
      if (trim(line).empty()) continue;
      const std::vector<std::string> fields = split(trim(line), ',');
      if (columns.empty()) {
        for (size_t i = 0; i < fields.size(); ++i) columns[fields[i]] = i;
        for (const char* needed : {"cpu_name", "cpu_load", "cpu_freq", "rapl_energy", "duration"}) {
          if (!columns.contains(needed))
            return {ErrorCode::kCorrupt, strf("%s: no column `%s`", path.c_str(), needed)};
        }
        continue;
      }
      const auto number = [&](const char* column) {
        const auto found = columns.find(column);
        const size_t at = found == columns.end() ? SIZE_MAX : found->second;
        return at < fields.size() ? std::strtod(fields[at].c_str(), nullptr) : 0.0;
      };
      const double seconds = number("duration"), joules = 3.6e6 * number("rapl_energy"),
                   mhz = number("cpu_freq");
      if (!(seconds > 0 && joules > 0 && mhz > 0)) {
        return {ErrorCode::kCorrupt, strf("%s, line %zu: energy, duration and frequency must be positive",
                                          path.c_str(), line_number)};
      }
      rows[fields[columns["cpu_name"]]].push_back(
          {number("cpu_load") / 100, mhz, joules / seconds, static_cast<int>(number("cores_used"))});
    }
  }
  if (rows.empty()) return {ErrorCode::kNotFound, strf("no sweeps (*.csv) in '%s'", folder.c_str())};
  std::vector<Machine> machines;
  for (const auto& [name, points] : rows) {
    FRUGAL_TRY(const double tdp, find_tdp(cpu_table, name));
    Machine machine{name, tdp, {}};
    for (const auto& [part, count] : packages) {
      if (name.find(part) != std::string::npos) machine.rated_watts = tdp * count;
    }
    double greatest = 0, least = 1e9;
    int threads = 0;
    for (const Row& row : points) {
      threads = std::max(threads, row.threads);
      greatest = std::max(greatest, row.mhz);
      least = std::min(least, row.mhz);
    }
    for (const Row& row : points) {
      // A load on some of the threads keeps those busy; one on all of them is spread.
      const double packing = row.threads == 0 ? row.load : std::min(1.0, row.load * threads / row.threads);
      machine.points.push_back({row.load, {row.mhz / greatest, least / greatest, packing}, row.watts});
    }
    machines.push_back(std::move(machine));
  }
  return machines;
}

}  // namespace frugal::meter
