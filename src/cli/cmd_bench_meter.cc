// frugal bench meter: how far the load model is from measured power, what the meter costs, and how much of
// the possible saving the job planner gets. Fitted on some machines and years, judged on others.
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "base/file.h"
#include "base/text.h"
#include "cli/bench_report.h"
#include "cli/bench_tools.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/meter_setup.h"
#include "jobs/outlook.h"
#include "jobs/replay.h"
#include "jobs/schedule.h"
#include "meter/carbon.h"
#include "meter/command.h"
#include "meter/power_fit.h"

namespace frugal::cli {
namespace {

struct BenchOptions {
  std::string data = "../shared/data";
  std::string cpu_table;
  std::vector<std::string> packages;  // "E5-2620=2"
  bool json = false;
  bool fit = false;
  bool quick = false;
  std::string out;
  std::string codecarbon;  // python with codecarbon
};

using Rows = std::vector<BenchRow>;

// `spread` is in the row's unit; `peer` may be NaN for none.
BenchRow row(const std::string& name, const std::string& unit, double ours, double peer,
             const std::string& peer_name, double ratio, double spread, int n) {
  BenchRow row;
  row.name = name;
  row.unit = unit;
  row.ours = ours;
  if (std::isfinite(peer)) row.peer = peer;
  row.peer_name = peer_name;
  row.ratio = std::isfinite(ratio) ? ratio : 0;
  row.spread = ours != 0 && std::isfinite(spread) ? std::abs(spread / ours) : 0;
  row.n = n;
  return row;
}

double mean_of(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return values.empty() ? NAN : sum / static_cast<double>(values.size());
}

// Largest distance of a machine's (or year's) figure from the mean.
double spread_of(const std::vector<double>& values) {
  double spread = 0;
  for (const double value : values) spread = std::max(spread, std::abs(value - mean_of(values)));
  return spread;
}

// CodeCarbon 3.3 in load mode: P = TDP (0.1 + 0.9 u^3).
double codecarbon_watts(double rated, double u) { return rated * (0.1 + 0.9 * u * u * u); }

Status bench_power(const BenchOptions& options, Rows& rows) {
  std::vector<std::pair<std::string, int>> packages;
  for (const std::string& text : options.packages) {
    const size_t equals = text.rfind('=');
    const int count = equals == std::string::npos ? 0 : std::atoi(text.c_str() + equals + 1);
    if (count < 1) return {ErrorCode::kInvalidArgument, "--packages takes NAME=COUNT, not '" + text + "'"};
    packages.emplace_back(text.substr(0, equals), count);
  }
  FRUGAL_TRY(const auto machines, meter::read_sweeps(options.data + "/rapl", options.cpu_table, packages));
  if (options.fit) {
    const meter::CurveParameters p = meter::fit_curve(machines);
    std::printf("const CurveParameters kCurve = {%.3f, %.3f, %.3f, %.3f, %.3f};\n", p.full, p.idle, p.a, p.b,
                p.k);
  }
  std::vector<double> uncalibrated, two_point, theirs, their_two_point, covered, covered_calibrated;
  for (size_t left_out = 0; left_out < machines.size(); ++left_out) {
    const meter::Machine& machine = machines[left_out];
    std::vector<meter::Machine> others;
    for (size_t i = 0; i < machines.size(); ++i) {
      if (i != left_out) others.push_back(machines[i]);
    }
    const meter::CurveParameters fitted = meter::fit_curve(others);
    const auto by_rating = meter::PowerModel::from_rating(machine.rated_watts, {}, fitted);
    const auto [low, high] = std::minmax_element(machine.points.begin(), machine.points.end(),
                                                 [](auto& x, auto& y) { return x.load < y.load; });
    std::vector<meter::CalibrationPoint> points;
    for (const auto& at : {*low, *high})
      points.push_back({at.load, at.watts, at.frequency.mean, at.frequency.least});
    FRUGAL_TRY(const meter::PowerModel calibrated, meter::PowerModel::from_points(points, fitted));
    std::vector<double> e1, e2, e3, e4, c1, c2;
    for (const meter::SweepPoint& point : machine.points) {
      const Estimate rated = by_rating.watts(point.load, point.frequency);
      const Estimate known = calibrated.watts(point.load, point.frequency);
      const double linear =
          low->watts + (high->watts - low->watts) * (point.load - low->load) / (high->load - low->load);
      e1.push_back(100 * std::abs(rated.value / point.watts - 1));
      e2.push_back(100 * std::abs(known.value / point.watts - 1));
      e3.push_back(100 * std::abs(codecarbon_watts(machine.rated_watts, point.load) / point.watts - 1));
      e4.push_back(100 * std::abs(linear / point.watts - 1));
      c1.push_back(rated.low <= point.watts && point.watts <= rated.high ? 100 : 0);
      c2.push_back(known.low <= point.watts && point.watts <= known.high ? 100 : 0);
    }
    uncalibrated.push_back(mean_of(e1));
    two_point.push_back(mean_of(e2));
    theirs.push_back(mean_of(e3));
    their_two_point.push_back(mean_of(e4));
    covered.push_back(mean_of(c1));
    covered_calibrated.push_back(mean_of(c2));
    if (!options.json) {
      std::printf("  %-50s %4.1f %% uncalibrated, %4.1f %% two points, in the band %3.0f %% and %3.0f %%\n",
                  machine.name.c_str(), uncalibrated.back(), two_point.back(), covered.back(),
                  covered_calibrated.back());
    }
  }
  const int n = static_cast<int>(machines.size());
  rows.push_back(row("mape_uncalibrated", "%", mean_of(uncalibrated), mean_of(theirs),
                     "CodeCarbon 3.3 load formula", mean_of(theirs) / mean_of(uncalibrated),
                     spread_of(uncalibrated), n));
  rows.push_back(row("mape_two_point", "%", mean_of(two_point), mean_of(their_two_point),
                     "straight line through the two points", mean_of(their_two_point) / mean_of(two_point),
                     spread_of(two_point), n));
  rows.push_back(row("band_coverage", "%", mean_of(covered), 90, "nominal", mean_of(covered) / 90,
                     spread_of(covered), n));
  rows.push_back(row("band_coverage_two_point", "%", mean_of(covered_calibrated), 90, "nominal",
                     mean_of(covered_calibrated) / 90, spread_of(covered_calibrated), n));
  return {};
}

// CPU time of one sample, at one sample a second, over one thread's time.
Status bench_overhead(Rows& rows) {
  meter::MeterOptions options;
  options.sample_interval_s = 0;
  FRUGAL_TRY(auto meter, meter::PowerMeter::open(options));
  std::vector<double> percent;
  for (int trial = 0; trial < 5; ++trial) {
    constexpr int kSamples = 200;
    const double begin = process_cpu_seconds();
    for (int i = 0; i < kSamples; ++i) meter->snapshot();
    percent.push_back(100 * (process_cpu_seconds() - begin) / kSamples);
  }
  rows.push_back(row("overhead", "% of a CPU at 1 Hz", mean_of(percent), 0.3, "bar", 0.3 / mean_of(percent),
                     spread_of(percent), 5));
  return {};
}

// A queue of 1,000 jobs over a week, planned together on the host's threads.
Status bench_planning(const std::vector<jobs::TraceJob>& trace, const jobs::HourlyIntensity& hourly,
                      Rows& rows) {
  std::vector<jobs::Job> queue;
  for (size_t i = 0; i < trace.size() && i < 1000; ++i) {
    jobs::Job job;
    job.id = static_cast<int64_t>(i) + 1;
    job.takes_s = std::min(trace[i].length_s, 5e5);
    job.interruptible = i % 2 == 0;
    job.deadline_unix_s = 168 * 3600.0;
    queue.push_back(job);
  }
  jobs::HourlyIntensity outlook;
  outlook.g_per_kwh.assign(hourly.g_per_kwh.begin(), hourly.g_per_kwh.begin() + 169);
  std::vector<double> seconds;
  for (int trial = 0; trial < 5; ++trial) {
    const double begin = wall_seconds();
    const auto plans = jobs::schedule(queue, &outlook, 0, {64});
    seconds.push_back(wall_seconds() - begin);
    if (plans.size() != queue.size()) return {ErrorCode::kCorrupt, "a job was left unplanned"};
  }
  rows.push_back(
      row("jobs_plan_1000", "s", mean_of(seconds), 1, "bar", 1 / mean_of(seconds), spread_of(seconds), 5));
  return {};
}

// Eight metered commands at once, each in a process of its own: what they are charged together, over the part
// of the host's energy that is theirs by CPU time.
Status bench_concurrent(Rows& rows) {
  constexpr int kRuns = 8;
  struct Charged {
    double cpu_j, cpu_s;
  };
  std::vector<double> off;
  for (int trial = 0; trial < 3; ++trial) {
    meter::MeterOptions options;
    options.sample_interval_s = 0;
    FRUGAL_TRY(auto host, meter::PowerMeter::open(options));
    int results[2];
    if (::pipe(results) != 0) return {ErrorCode::kIo, "no pipe"};
    const meter::Snapshot begin = host->snapshot();
    for (int i = 0; i < kRuns; ++i) {
      if (::fork() != 0) continue;
      meter::MeterOptions mine;
      mine.share_folder = sampler_folder();
      auto own = meter::PowerMeter::open(mine);
      if (!own.ok()) ::_exit(1);
      const meter::Snapshot start = (*own)->snapshot();
      auto done = meter::run_command(
          {"/bin/sh", "-c", "end=$(($(date +%s)+4)); while [ $(date +%s) -lt $end ]; do :; done"});
      if (!done.ok()) ::_exit(1);
      const meter::Charge charge = (*own)->charge(start, done->usage);
      const Charged charged = {charge.cpu_j.value, done->usage.cpu_seconds};
      ::_exit(::write(results[1], &charged, sizeof charged) == sizeof charged ? 0 : 1);
    }
    ::close(results[1]);
    Charged sum = {0, 0}, one;
    while (::read(results[0], &one, sizeof one) == sizeof one) {
      sum.cpu_j += one.cpu_j;
      sum.cpu_s += one.cpu_s;
    }
    ::close(results[0]);
    while (::wait(nullptr) > 0) {
    }
    const meter::HostEnergy end = host->snapshot().host;
    const double host_j = end.cpu_j.value - begin.host.cpu_j.value;
    const double theirs = sum.cpu_s / (end.busy_s - begin.host.busy_s);
    off.push_back(100 * (sum.cpu_j / (host_j * theirs) - 1));
  }
  rows.push_back(row("concurrent_runs_off", "% of their part of the host", median(off), 0, "bar: within 2 %",
                     NAN, median_deviation(off), 3));
  return {};
}

// A command of some 10 ms, again and again: how many of its runs have the median figure in their band.
Status bench_short(Rows& rows) {
  constexpr int kRuns = 40;
  FRUGAL_TRY(auto meter, open_meter({}));
  std::vector<Estimate> charged;
  std::vector<double> joules;
  for (int i = 0; i < kRuns; ++i) {
    const meter::Snapshot start = meter->snapshot();
    FRUGAL_TRY(auto done,
               meter::run_command({"/bin/sh", "-c", "i=0; while [ $i -lt 6000 ]; do i=$((i+1)); done"}));
    charged.push_back(meter->charge(start, done.usage).cpu_j);
    joules.push_back(charged.back().value);
  }
  const double middle = median(joules);
  const auto inside = std::count_if(charged.begin(), charged.end(),
                                    [&](const Estimate& e) { return e.low <= middle && middle <= e.high; });
  rows.push_back(row("short_command_in_band", "% of runs of 10 ms",
                     100.0 * static_cast<double>(inside) / kRuns, 90, "nominal",
                     static_cast<double>(inside) / kRuns / 0.9, NAN, kRuns));
  return {};
}

// A zone's recorded hours, and how many of them are there to be fitted on.
struct Zone {
  std::string name;
  jobs::HourlyIntensity hourly;
  size_t n_fit = 0;
};

// Every `<zone>_<year>_hourly.csv` of a folder: the last year is judged, the years before it are fitted on.
Result<std::vector<Zone>> read_zones(const std::string& folder) {
  std::map<std::string, std::map<std::string, std::string>> files;  // zone, year, path
  for (const auto& entry :
       std::filesystem::directory_iterator(folder, std::filesystem::directory_options())) {
    const std::string name = entry.path().filename().string();
    if (!name.ends_with("_hourly.csv") || name.size() < 17) continue;
    const std::string stem = name.substr(0, name.size() - 11);
    files[stem.substr(0, stem.size() - 5)][stem.substr(stem.size() - 4)] = entry.path().string();
  }
  std::vector<Zone> zones;
  for (const auto& [name, years] : files) {
    if (years.size() < 2) continue;
    meter::IntensitySeries all;
    double judged_from = 0;
    for (const auto& [year, path] : years) {
      FRUGAL_TRY(const auto series, meter::read_intensity(path));
      all.source = name;
      judged_from = series.points.front().unix_s;
      all.points.insert(all.points.end(), series.points.begin(), series.points.end());
    }
    Zone zone;
    zone.name = name;
    FRUGAL_TRY(zone.hourly, jobs::to_hourly(all));
    zone.n_fit = static_cast<size_t>((judged_from - zone.hourly.start_unix_s) / 3600);
    zones.push_back(std::move(zone));
  }
  if (zones.empty()) {
    return {ErrorCode::kNotFound,
            strf("no zone with two years (ZONE_YEAR_hourly.csv) in '%s'", folder.c_str())};
  }
  return zones;
}

// What the forecasters save over slacks, kinds of work and weeks, in grams per watt.
struct Saved {
  std::vector<double> grams;  // by forecaster
  double at_once = 0;
  int missed = 0, n_jobs = 0;
};

void replay_zone(const Zone& zone, const std::vector<jobs::TraceJob>& trace,
                 const std::vector<jobs::ForecastFunction>& forecasters, bool quick, Saved& saved) {
  for (const double slack_h : {0.0, 6.0, 24.0}) {  // 0 stands for once a job's own length
    for (const bool interruptible : {false, true}) {
      for (size_t day = 14; day < 330; day += quick ? 91 : 45) {
        const size_t begin = zone.n_fit + 24 * day;
        for (size_t f = 0; f < forecasters.size(); ++f) {
          for (const jobs::TraceJob& job : trace) {
            const double slack = slack_h > 0 ? 3600 * slack_h : job.length_s;
            const auto one =
                jobs::replay({&job, 1}, zone.hourly, begin, slack, interruptible, forecasters[f]);
            saved.grams[f] += one.grams_per_watt;
            if (f == 1) saved.missed += one.n_missed;
            if (f > 0) continue;  // the first is the truth
            saved.at_once += one.at_once_grams_per_watt;
            saved.n_jobs += one.n_jobs;
          }
        }
      }
    }
  }
}

Status bench_jobs(const BenchOptions& options, Rows& rows) {
  FRUGAL_TRY(const auto trace, jobs::read_trace(options.data + "/jobs/pai_1k.csv"));
  FRUGAL_TRY(const auto zones, read_zones(options.data + "/carbon"));
  static constexpr const char* kNames[] = {"perfect forecast",    "fitted",           "seasonal blend",
                                           "same hour yesterday", "mean of the week", "persistence"};
  constexpr size_t kPerfect = 0, kOurs = 1, kN = 6;
  std::vector<std::vector<double>> shares(kN);
  double ours = 0, perfect = 0, at_once = 0;
  int missed = 0, n_jobs = 0;
  for (const Zone& zone : zones) {
    jobs::HourlyIntensity known = zone.hourly;
    known.g_per_kwh.resize(zone.n_fit);
    FRUGAL_TRY(const auto fitted, jobs::FittedForecaster::fit(known));
    std::vector<jobs::ForecastFunction> forecasters;
    for (const jobs::Forecaster simple :
         {jobs::Forecaster::kPerfect, jobs::Forecaster::kBlend, jobs::Forecaster::kBlend,
          jobs::Forecaster::kYesterday, jobs::Forecaster::kWeekMean, jobs::Forecaster::kPersistence}) {
      forecasters.push_back(
          [&zone, simple](size_t now, size_t n) { return jobs::forecast(simple, zone.hourly, now, n); });
    }
    // The features of a forecast depend on its hour alone: kept for the jobs that look at the same one.
    auto cache = std::make_shared<std::map<size_t, std::vector<double>>>();
    forecasters[kOurs] = [&zone, &fitted, cache](size_t now, size_t n) {
      std::vector<double>& kept = (*cache)[now];
      if (kept.size() < n) kept = fitted.ahead(zone.hourly, now, std::max<size_t>(n, 96));
      return std::vector<double>(kept.begin(), kept.begin() + static_cast<ptrdiff_t>(n));
    };
    Saved saved;
    saved.grams.resize(kN);
    replay_zone(zone, trace, forecasters, options.quick, saved);
    for (size_t f = 0; f < kN; ++f) {
      shares[f].push_back(100 * (saved.at_once - saved.grams[f]) / (saved.at_once - saved.grams[kPerfect]));
    }
    if (!options.json) {
      std::printf(
          "  %-12s saved %4.1f %% of gCO2e against run-at-once, %4.1f %% by a perfect forecast: %.1f %% of "
          "it\n",
          zone.name.c_str(), 100 * (1 - saved.grams[kOurs] / saved.at_once),
          100 * (1 - saved.grams[kPerfect] / saved.at_once), shares[kOurs].back());
    }
    ours += saved.grams[kOurs];
    perfect += saved.grams[kPerfect];
    at_once += saved.at_once;
    missed += saved.missed;
    n_jobs += saved.n_jobs;
  }
  const double share = mean_of(shares[kOurs]);
  rows.push_back(row("jobs_share_of_perfect", "%", share, 85, "bar", share / 85, spread_of(shares[kOurs]),
                     static_cast<int>(zones.size())));
  for (size_t f = kOurs + 1; f < kN; ++f) {
    rows.push_back(row("jobs_share_of_perfect", "%", share, mean_of(shares[f]), kNames[f],
                       share / mean_of(shares[f]), spread_of(shares[kOurs]), static_cast<int>(zones.size())));
  }
  rows.push_back(row("jobs_saved", "% of gCO2e", 100 * (1 - ours / at_once), 100 * (1 - perfect / at_once),
                     "perfect forecast", (at_once - ours) / (at_once - perfect), NAN,
                     static_cast<int>(zones.size())));
  rows.push_back(
      row("jobs_missed", strf("of %d deadlines", n_jobs).c_str(), missed, 0, "bar", NAN, NAN, n_jobs));
  return bench_planning(trace, zones[0].hourly, rows);
}

// The same busy loop under both, in one run: frugal meters the process in which CodeCarbon meters its child.
Status bench_codecarbon(const BenchOptions& options, Rows& rows) {
  FRUGAL_TRY(auto meter, open_meter({}));
  const meter::Snapshot start = meter->snapshot();
  const std::string result =
      strf("%s/frugal-codecarbon-%d.json", std::filesystem::temp_directory_path().c_str(),
           static_cast<int>(::getpid()));
  const std::string script = "exec \"$1\" scripts/codecarbon_beside.py 8 > \"$2\"";
  auto done = meter::run_command({"/bin/sh", "-c", script, "sh", options.codecarbon, result});
  if (!done.ok()) return done.error();
  const auto text = read_file(result, size_t{1} << 20);
  std::error_code ignored;
  std::filesystem::remove(result, ignored);
  const auto theirs = text.ok() ? nlohmann::json::parse(*text, nullptr, false) : nlohmann::json();
  if (done->exit_code != 0 || !theirs.is_object() || !theirs.contains("cpu_j")) {
    return {ErrorCode::kUnavailable,
            "CodeCarbon did not run: from the clone's root, `python3 scripts/bootstrap.py "
            "--codecarbon` installs it, and --codecarbon takes its bin/python"};
  }
  const auto number = [&](const char* key) { return theirs.value(key, 0.0); };
  const meter::Charge charge = meter->charge(start, done->usage);
  const double seconds = number("seconds"), wall = done->usage.wall_seconds;
  const auto add = [&](const char* name, const char* unit, double ours, double peer,
                       const std::string& what) {
    rows.push_back(row(name, unit, ours, peer, "CodeCarbon 3.3.2, " + what, 0, NAN, 1));
  };
  add("busy loop, processors", "W", charge.cpu_j.value / wall, number("cpu_j") / seconds,
      strf("%g W a thread where the name is not in its table, cubed load", 4.0));
  // The same scope: CodeCarbon takes the machine's load for the run's, whoever makes it.
  add("busy loop, the host's processors", "W", charge.host_cpu_j.value / wall, number("cpu_j") / seconds,
      strf("of the whole machine; the loop had %.0f %% of its CPU time", 100 * charge.share));
  add("busy loop, memory", "W", charge.memory_j.value / wall, number("ram_j") / seconds,
      "of the whole machine's slots, a constant");
  add("busy loop, all", "W", charge.total_j.value / wall, number("energy_j") / seconds,
      "without a network it takes the place for " + theirs.value("without_network", std::string("?")));
  if (!options.json) {
    std::printf(
        "  busy loop: ours %.3g W (%.3g to %.3g) on %s; CodeCarbon %.3g W for the processors, %.3g W for "
        "memory\n",
        charge.total_j.value / wall, charge.total_j.low / wall, charge.total_j.high / wall,
        meter->source().description.c_str(), number("cpu_j") / seconds, number("ram_j") / seconds);
  }
  return {};
}

int bench(BenchOptions options) {
  if (options.cpu_table.empty()) options.cpu_table = package_data("cpu_power.csv");
  if (options.cpu_table.empty()) {
    return fail({ErrorCode::kNotFound, "the table of processors is not installed: run scripts/bootstrap.py"});
  }
  if (!std::filesystem::is_directory(options.data)) {
    return fail(
        {ErrorCode::kNotFound, strf("there is no folder '%s': --data names one with rapl/, carbon/ and jobs/",
                                    options.data.c_str())});
  }
  Rows rows;
  const Status powered = bench_power(options, rows);
  if (!powered.ok()) return fail(powered.error());
  if (options.fit) return kExitOk;
  for (const auto& part :
       {std::function(bench_overhead), std::function(bench_concurrent), std::function(bench_short),
        std::function([&](Rows& r) { return bench_jobs(options, r); }), std::function([&](Rows& r) {
          return options.codecarbon.empty() ? Status() : bench_codecarbon(options, r);
        })}) {
    const Status status = part(rows);
    if (!status.ok()) return fail(status.error());
  }
  BenchContext context;
  context.bench = "meter";
  context.threads = 1;
  context.command = this_command_line();
  return report_bench(context, rows, options.out, options.json);
}

}  // namespace

Action add_bench_meter(CLI::App& app) {
  auto options = std::make_shared<BenchOptions>();
  app.add_option("--data", options->data, "folder with rapl/, carbon/ and jobs/");
  app.add_option("--cpu-table", options->cpu_table,
                 "CSV file Name,TDP (default: the one that bootstrap.py unpacks)");
  app.add_option("--packages", options->packages,
                 "machines with several packages: a part of the name, =, the number");
  app.add_flag("--json", options->json, "print the rows as JSON");
  app.add_flag("--fit", options->fit, "print the constants fitted on all machines, and skip the rest");
  app.add_option("--codecarbon", options->codecarbon,
                 "python with CodeCarbon (scripts/bootstrap.py --codecarbon): the same busy loop under both");
  app.add_option("--out", options->out, "also write the rows to this file, for docs/benchmarks.md");
  app.add_flag("--quick", options->quick, "four weeks of the year instead of eight");
  return [options] { return bench(*options); };
}

}  // namespace frugal::cli
