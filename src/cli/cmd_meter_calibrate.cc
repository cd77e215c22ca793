// frugal meter calibrate: points of this host's own power curve, for all later runs. From typed watts, from a
// wall meter that the user reads while frugal makes the load, or from the host's own counters.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/clock.h"
#include "base/file.h"
#include "base/text.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/meter_setup.h"
#include "meter/host_load.h"
#include "meter/power_model.h"

namespace frugal::cli {
namespace {

struct CalibrateOptions {
  std::vector<std::string> points;
  bool counters = false, wall = false, remove = false;
  double seconds = 15;
  double rest_w = 0;
  std::vector<double> loads = {0, 0.25, 0.5, 1};
  double scale = 1;
  std::string from, output;
};

// Threads that compute until stopped: what a load of so many busy threads means.
class Burners {
 public:
  explicit Burners(int n) {
    for (int i = 0; i < n; ++i) {
      threads_.emplace_back([this] {
        volatile double x = 1;
        while (!stop_.load(std::memory_order_relaxed)) {
          for (int k = 0; k < 10000; ++k) x = x * 1.0000001 + 1e-9;
        }
      });
    }
  }
  ~Burners() {
    stop_ = true;
    for (std::thread& thread : threads_) thread.join();
  }

 private:
  std::atomic<bool> stop_{false};
  std::vector<std::thread> threads_;
};

Result<meter::CalibrationPoint> parse_point(const std::string& text) {
  const size_t colon = text.find(':');
  char *end_load = nullptr, *end_watts = nullptr;
  const std::string load_text = text.substr(0, colon);
  const std::string watts_text = colon == std::string::npos ? "" : text.substr(colon + 1);
  double load = std::strtod(load_text.c_str(), &end_load);
  const double watts = std::strtod(watts_text.c_str(), &end_watts);
  if (*end_load == '%') {
    load /= 100;
    ++end_load;
  }
  if (load_text.empty() || *end_load != '\0' || watts_text.empty() || *end_watts != '\0') {
    return {ErrorCode::kInvalidArgument,
            strf("'%s' is no point: write LOAD:WATTS, as 0:12 or 100%%:48", text.c_str())};
  }
  return meter::CalibrationPoint{load, watts};
}

Result<double> ask_watts(double load) {
  std::fprintf(stderr, "load %.0f %%: what does the wall meter say now, in watts? ", 100 * load);
  std::string line;
  if (!std::getline(std::cin, line)) return {ErrorCode::kCancelled, "no reading was given"};
  char* end = nullptr;
  const double watts = std::strtod(line.c_str(), &end);
  if (end == line.c_str() || !(watts > 0 && watts < 1e5)) {
    return {ErrorCode::kInvalidArgument, strf("'%s' is no power in watts", line.c_str())};
  }
  return watts;
}

// Makes each load and reads counters or asks.
Result<std::vector<meter::CalibrationPoint>> sweep(const CalibrateOptions& options) {
  MeterSetup setup;
  setup.interval_s = 0;
  FRUGAL_TRY(auto meter, open_meter(setup));
  const int threads = meter->source().threads;
  if (options.counters && meter->source().kind == meter::SourceKind::kLoadModel) {
    return {ErrorCode::kUnavailable,
            "this host has no counters to calibrate by: `frugal meter doctor` says why; type "
            "points (--point) or read a wall meter (--wall)"};
  }
  if (options.counters && meter->source().kind == meter::SourceKind::kThreads) {
    return {ErrorCode::kUnavailable,
            "this host has no counters to calibrate by: `frugal meter doctor` says why; type "
            "points (--point) or read a wall meter (--wall)"};
  }
  std::vector<meter::CalibrationPoint> points;
  for (const double load : options.loads) {
    const int busy = static_cast<int>(load * threads + 0.5);
    std::fprintf(stderr, "%d of %d threads busy for %.0f s\n", busy, threads, options.seconds);
    const Burners burners(busy);
    ::sleep(2);  // fans, governors and the meter settle
    const meter::Snapshot before = meter->snapshot();
    double mean = 0, least = 0;
    int n = 0;
    for (const double until = wall_seconds() + options.seconds; wall_seconds() < until && !interrupted();
         ::usleep(200000)) {
      const auto frequency = meter::read_frequency_share("/sys");
      if (!frequency) continue;
      mean += frequency->mean;
      least += frequency->least;
      ++n;
    }
    if (interrupted()) return {ErrorCode::kCancelled, "interrupted; nothing was stored"};
    const meter::Snapshot after = meter->snapshot();
    const double seconds = after.host.wall_s - before.host.wall_s;
    meter::CalibrationPoint point;
    point.load = std::min(1.0, (after.host.busy_s - before.host.busy_s) / seconds / threads);
    if (options.wall) {
      FRUGAL_TRY(const double watts, ask_watts(load));
      point.watts = watts - options.rest_w;
    } else {
      point.watts = (after.host.cpu_j.value - before.host.cpu_j.value) / seconds;
    }
    if (n > 0) {
      point.frequency = mean / n;
      point.least_frequency = least / n;
    }
    points.push_back(point);
  }
  return points;
}

int calibrate(const CalibrateOptions& options) {
  const std::string path = options.output.empty() ? calibration_path() : options.output;
  if (options.remove) {
    std::error_code error;
    const bool was = std::filesystem::remove(path, error);
    return print(was ? "removed " + path + "\n" : "there was no calibration\n") ? kExitOk : kExitFailure;
  }
  install_interrupt_handler();
  std::vector<meter::CalibrationPoint> points;
  std::string how;
  if (options.counters || options.wall) {
    auto swept = sweep(options);
    if (!swept.ok()) return fail(swept.error());
    points = std::move(swept).value();
    how = options.wall ? "wall meter" : "counters of the host";
  } else if (!options.from.empty()) {
    auto read = read_calibration(options.from);
    if (!read.ok()) return fail(read.error());
    points = std::move(read).value();
    how = options.from;
  } else {
    for (const std::string& text : options.points) {
      const auto point = parse_point(text);
      if (!point.ok()) return fail(point.error());
      points.push_back(*point);
    }
    how = "typed";
  }
  for (meter::CalibrationPoint& point : points) point.watts *= options.scale;
  const auto model = meter::PowerModel::from_points(points);
  if (!model.ok()) return fail(model.error());
  nlohmann::ordered_json out = {{"points", nlohmann::ordered_json::array()}, {"from", how}};
  std::string text;
  for (const meter::CalibrationPoint& point : points) {
    out["points"].push_back({{"load", point.load},
                             {"watts", point.watts},
                             {"frequency", point.frequency},
                             {"least_frequency", point.least_frequency}});
    text += strf("  load %3.0f %%  %.4g W\n", 100 * point.load, point.watts);
  }
  std::error_code ignored;
  std::filesystem::create_directories(std::filesystem::path(path).parent_path(), ignored);
  const Status written = write_file_atomically(path, out.dump(2) + "\n");
  if (!written.ok()) return fail(written.error());
  return print(text + "stored in " + path + "; later runs use it\n") ? kExitOk : kExitFailure;
}

}  // namespace

Action add_meter_calibrate(CLI::App& app) {
  auto options = std::make_shared<CalibrateOptions>();
  auto* point = app.add_option("--point", options->points,
                               "LOAD:WATTS of the processors, twice or more: --point 0:12 --point 100%:48");
  auto* counters =
      app.add_flag("--counters", options->counters,
                   "make loads and read this host's counters; the file then serves hosts of the same kind");
  auto* wall = app.add_flag("--wall", options->wall, "make loads and ask what a wall meter says");
  auto* from =
      app.add_option("--from", options->from, "a file that this command wrote on a host of the same kind");
  auto* remove = app.add_flag("--remove", options->remove, "forget the calibration");
  app.add_option("--scale", options->scale, "factor on the watts: 0.125 for 4 of the other host's 32 threads")
      ->check(CLI::PositiveNumber);
  app.add_option("--rest", options->rest_w,
                 "watts of the wall meter that are not the processors' (fans, disks)")
      ->check(CLI::Range(0.0, 10000.0));
  app.add_option("--loads", options->loads, "loads to make, as shares of the threads")
      ->delimiter(',')
      ->check(CLI::Range(0.0, 1.0));
  app.add_option("--seconds", options->seconds, "length of each load")->check(CLI::Range(1.0, 600.0));
  app.add_option("-o,--output", options->output,
                 "file to write (default: the user's own, which later runs read)");
  for (auto* a : {point, static_cast<CLI::Option*>(counters), wall, from, remove}) {
    for (auto* b : {point, static_cast<CLI::Option*>(counters), wall, from, remove}) {
      if (a != b) a->excludes(b);
    }
  }
  return [options] { return calibrate(*options); };
}

}  // namespace frugal::cli
