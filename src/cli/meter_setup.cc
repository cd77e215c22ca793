#include "cli/meter_setup.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "base/file.h"
#include "base/text.h"
#include "cli/carbon_source.h"
#include "meter/carbon.h"

namespace frugal::cli {
namespace {

// The folder named by `variable`, else `fallback` below the user's home.
std::string user_folder(const char* variable, const char* fallback) {
  if (const char* folder = std::getenv(variable); folder != nullptr && *folder != '\0') return folder;
  const char* home = std::getenv("HOME");
  return std::string(home != nullptr ? home : ".") + "/" + fallback;
}

}  // namespace

std::shared_ptr<MeterSetup> add_meter_options(CLI::App& app) {
  auto setup = std::make_shared<MeterSetup>();
  const char* group = "Meter";
  app.add_option("--tdp", setup->tdp_w, "rated power of one processor package, watts (0: look it up by name)")
      ->check(CLI::Range(0.0, 10000.0))
      ->group(group);
  app.add_option("--host-threads", setup->host_threads,
                 "hardware threads of one package of the physical host, for virtual machines (0: not known)")
      ->check(CLI::Range(0, 4096))
      ->group(group);
  app.add_flag("--no-counters", setup->no_counters, "use the load model even where counters are readable")
      ->group(group);
  app.add_flag("--own-sampler", setup->alone,
               "sample the host alone instead of together with this user's other meters")
      ->group(group);
  app.add_option("--sample-interval", setup->interval_s, "seconds between samples of the host")
      ->check(CLI::Range(0.01, 60.0))
      ->group(group);
  app.add_option(
         "--region", setup->region,
         "country of the grid (ESP, Spain) for its annual average, or a place in --carbon-file; without it "
         "carbon is unknown")
      ->group(group);
  app.add_option("--intensity", setup->intensity, "carbon intensity of the grid, gCO2e/kWh")
      ->check(CLI::Range(0.0, 5000.0))
      ->group(group);
  app.add_option("--carbon-file", setup->carbon_file,
                 "intensity by the hour, a file or an http(s) address: Electricity Maps (CSV, JSON), GB "
                 "Carbon Intensity "
                 "or Carbon Aware SDK")
      ->group(group);
  app.add_option("--pue", setup->pue, "power usage effectiveness of the room")
      ->check(CLI::Range(1.0, 10.0))
      ->group(group);
  app.add_option("--water", setup->water_l_per_kwh, "litres of water per kWh")
      ->check(CLI::Range(0.0, 100.0))
      ->group(group);
  return setup;
}

std::shared_ptr<LedgerSetup> add_ledger_options(CLI::App& app) {
  auto setup = std::make_shared<LedgerSetup>();
  app.add_option("--ledger", setup->path, "file that keeps what every run cost (default: the user's own)")
      ->group("Meter");
  app.add_flag("--no-ledger", setup->off, "write nothing to the ledger")->group("Meter");
  app.add_option("--project", setup->project, "name that the ledger files this under")->group("Meter");
  return setup;
}

std::string state_folder() { return user_folder("XDG_STATE_HOME", ".local/state") + "/frugal"; }

std::string ledger_path() {
  if (const char* path = std::getenv("FRUGAL_LEDGER"); path != nullptr && *path != '\0') return path;
  return state_folder() + "/ledger.db";
}

Status write_to_ledger(const LedgerSetup& setup, const meter::PowerMeter& meter, meter::LedgerEntry entry) {
  if (setup.off) return {};
  FRUGAL_TRY(auto ledger, meter::Ledger::open(setup.path.empty() ? ledger_path() : setup.path));
  if (entry.unix_s == 0) entry.unix_s = clock_seconds(CLOCK_REALTIME);
  entry.project = setup.project;
  entry.source = meter::source_kind_name(meter.source().kind);
  entry.region = meter.options().intensity.region;
  if (!entry.g_per_kwh.known()) entry.g_per_kwh = meter.options().intensity.g_per_kwh;
  FRUGAL_TRY(const int64_t id, ledger->append(entry));
  static_cast<void>(id);
  return {};
}

void record(const LedgerSetup& setup, meter::PowerMeter& meter, const meter::Snapshot& from,
            const meter::Charge& charge, meter::LedgerEntry entry) {
  entry.cpu_j = charge.cpu_j;
  entry.memory_j = charge.memory_j;
  entry.gpu_j = charge.gpu_j;
  if (charge.g_per_kwh.known()) entry.g_per_kwh = charge.g_per_kwh;
  if (entry.usage.wall_seconds > 0) entry.average_watts = charge.total_j.value / entry.usage.wall_seconds;
  const std::vector<meter::PowerSample> samples = meter.samples(from);
  for (const meter::PowerSample& sample : samples)
    entry.peak_watts = std::max(entry.peak_watts, charge.share * sample.watts.value);
  entry.power = meter::power_over_time(samples, charge.share);
  const Status written = write_to_ledger(setup, meter, std::move(entry));
  if (!written.ok()) std::fprintf(stderr, "frugal: warning: %s\n", written.error().message.c_str());
}

std::string sampler_folder() {
  if (const char* folder = std::getenv("XDG_RUNTIME_DIR"); folder != nullptr && *folder == '/')
    return std::string(folder) + "/frugal";
  return strf("/dev/shm/frugal-%u", static_cast<unsigned>(::geteuid()));
}

std::string calibration_path() { return user_folder("XDG_CONFIG_HOME", ".config") + "/frugal/meter.json"; }

std::string package_data(const std::string& name) {
  std::string folder;
  if (const char* cache = std::getenv("FRUGAL_CACHE"); cache != nullptr && *cache != '\0') {
    folder = cache;
  } else {
    const char* home = std::getenv("HOME");
    folder = std::string(home != nullptr ? home : ".") + "/.cache/frugal";
  }
  const std::string path = folder + "/" + FRUGAL_POWER_DATA + "/" + name;
  return ::access(path.c_str(), R_OK) == 0 ? path : "";
}

Result<std::vector<meter::CalibrationPoint>> read_calibration(const std::string& path) {
  FRUGAL_TRY(const std::string text, read_file(path, size_t{1} << 20));
  const auto root = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  const auto corrupt = [&] {
    return Error{ErrorCode::kCorrupt,
                 path + ": not a calibration file; run `frugal meter calibrate` again or remove it"};
  };
  if (!root.is_object() || !root.contains("points") || !root["points"].is_array()) return corrupt();
  std::vector<meter::CalibrationPoint> points;
  for (const auto& point : root["points"]) {
    if (!point.is_object() || !point.contains("load") || !point.contains("watts") ||
        !point["load"].is_number() || !point["watts"].is_number()) {
      return corrupt();
    }
    meter::CalibrationPoint read = {point["load"].get<double>(), point["watts"].get<double>()};
    if (point.contains("frequency") && point["frequency"].is_number() && point.contains("least_frequency") &&
        point["least_frequency"].is_number()) {
      read.frequency = point["frequency"].get<double>();
      read.least_frequency = point["least_frequency"].get<double>();
    }
    points.push_back(read);
  }
  return points;
}

Result<std::unique_ptr<meter::PowerMeter>> open_meter(const MeterSetup& setup) {
  meter::MeterOptions options;
  options.tdp_w = setup.tdp_w;
  options.host_threads = setup.host_threads;
  options.use_counters = !setup.no_counters;
  options.sample_interval_s = setup.interval_s;
  if (!setup.alone) options.share_folder = sampler_folder();
  options.pue = setup.pue;
  options.water_l_per_kwh = setup.water_l_per_kwh;
  options.cpu_table = package_data("cpu_power.csv");
  auto calibration = read_calibration(calibration_path());
  if (calibration.ok()) {
    options.calibration = std::move(calibration).value();
  } else if (calibration.error().code != ErrorCode::kNotFound) {
    return std::move(calibration).error();
  }
  if (setup.intensity >= 0) {
    options.intensity = meter::given_intensity(setup.intensity, setup.region);
  } else if (!setup.carbon_file.empty()) {
    FRUGAL_TRY(const std::string path, carbon_path(setup.carbon_file, setup.region));
    FRUGAL_TRY(const meter::IntensitySeries series, meter::read_intensity(path, setup.region));
    const double now = clock_seconds(CLOCK_REALTIME);
    const Estimate grams = series.mean(now, now + 1);
    if (!grams.known()) {
      return {ErrorCode::kInvalidArgument,
              strf("%s ends %s and does not cover the present: fetch it anew, or give --intensity",
                   setup.carbon_file.c_str(), meter::format_time(series.points.back().unix_s).c_str())};
    }
    options.intensity = {grams, series.region, series.source};
    options.intensity_over = [series](double from, double to) { return series.mean(from, to); };
  } else if (!setup.region.empty()) {
    const std::string path = package_data("global_energy_mix.json");
    if (path.empty()) {
      return {ErrorCode::kNotFound,
              "the table of annual averages is not installed: run scripts/bootstrap.py, or give --intensity"};
    }
    FRUGAL_TRY(options.intensity, meter::annual_intensity(path, setup.region));
  }
  return meter::PowerMeter::open(options);
}

std::string estimate_text(const Estimate& estimate, const char* unit) {
  if (!estimate.known()) return "unknown";
  return strf("%.4g %s (%.3g to %.3g, %s)", estimate.value, unit, estimate.low, estimate.high,
              std::string(provenance_name(estimate.provenance)).c_str());
}

}  // namespace frugal::cli
