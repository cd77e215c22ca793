// frugal bench meter: how far the load model is from measured power, what the meter costs, and how much of
// the possible saving the job planner gets. Fitted on some machines and years, judged on others.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "base/text.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/meter_setup.h"
#include "jobs/replay.h"
#include "meter/carbon.h"
#include "meter/cpu_info.h"
#include "meter/power_fit.h"

namespace frugal::cli {
namespace {

using Json = nlohmann::ordered_json;

struct BenchOptions {
  std::string data = "../shared/data";
  std::string cpu_table;
  std::vector<std::string> packages;  // "E5-2620=2"
  bool json = false;
  bool fit = false;
  bool quick = false;
};

// `ratio` above 1: ours is better. A peer of nothing is a NaN.
Json row(const char* name, const char* unit, double ours, double peer, const char* peer_name, double ratio,
         double spread) {
  const auto number = [](double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); };
  return {
      {"name", name},           {"unit", unit},           {"ours", number(ours)},    {"peer", number(peer)},
      {"peer_name", peer_name}, {"ratio", number(ratio)}, {"spread", number(spread)}};
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

Status bench_power(const BenchOptions& options, Json& rows) {
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
  rows.push_back(row("mape_uncalibrated", "%", mean_of(uncalibrated), mean_of(theirs),
                     "CodeCarbon 3.3 load formula", mean_of(theirs) / mean_of(uncalibrated),
                     spread_of(uncalibrated)));
  rows.push_back(row("mape_two_point", "%", mean_of(two_point), mean_of(their_two_point),
                     "straight line through the two points", mean_of(their_two_point) / mean_of(two_point),
                     spread_of(two_point)));
  rows.push_back(
      row("band_coverage", "%", mean_of(covered), 90, "nominal", mean_of(covered) / 90, spread_of(covered)));
  rows.push_back(row("band_coverage_two_point", "%", mean_of(covered_calibrated), 90, "nominal",
                     mean_of(covered_calibrated) / 90, spread_of(covered_calibrated)));
  return {};
}

// CPU time of one sample, at one sample a second, over one thread's time.
Status bench_overhead(Json& rows) {
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
                     spread_of(percent)));
  return {};
}

Status bench_jobs(const BenchOptions& options, Json& rows) {
  FRUGAL_TRY(const auto trace, jobs::read_trace(options.data + "/jobs/pai_1k.csv"));
  std::vector<double> share;
  double ours = 0, perfect = 0, at_once = 0, persistence = 0;
  int missed = 0, n_jobs = 0;
  for (const char* zone : {"US-CAL-CISO", "ES"}) {
    FRUGAL_TRY(const auto series,
               meter::read_intensity(options.data + "/carbon/" + zone + "_2022_hourly.csv"));
    jobs::HourlyIntensity truth;
    truth.start_unix_s = series.points.front().unix_s;
    for (const auto& point : series.points) truth.g_per_kwh.push_back(point.g_per_kwh);
    double zone_ours = 0, zone_perfect = 0, zone_at_once = 0;
    for (const double slack : {0.0, 6.0, 24.0}) {
      // Slack 0 stands for "once its own length", the 1x: taken below as each job's length.
      for (const bool interruptible : {false, true}) {
        for (size_t begin_hour = 24 * 14; begin_hour < 24 * 330;
             begin_hour += options.quick ? 24 * 91 : 24 * 45) {
          const auto run = [&](jobs::Forecaster forecaster) {
            if (slack > 0)
              return jobs::replay(trace, truth, begin_hour, slack * 3600, interruptible, forecaster);
            jobs::ReplayResult sum;
            for (const jobs::TraceJob& job : trace) {
              const auto one =
                  jobs::replay({&job, 1}, truth, begin_hour, job.length_s, interruptible, forecaster);
              sum.grams_per_watt += one.grams_per_watt;
              sum.at_once_grams_per_watt += one.at_once_grams_per_watt;
              sum.n_jobs += one.n_jobs;
              sum.n_missed += one.n_missed;
            }
            return sum;
          };
          const auto blend = run(jobs::Forecaster::kBlend);
          zone_ours += blend.grams_per_watt;
          zone_at_once += blend.at_once_grams_per_watt;
          missed += blend.n_missed;
          n_jobs += blend.n_jobs;
          zone_perfect += run(jobs::Forecaster::kPerfect).grams_per_watt;
          persistence += run(jobs::Forecaster::kYesterday).grams_per_watt;
        }
      }
    }
    share.push_back(100 * (zone_at_once - zone_ours) / (zone_at_once - zone_perfect));
    if (!options.json) {
      std::printf("  %-12s saved %4.1f %% of gCO2e against run-at-once, %4.1f %% by a perfect forecast\n",
                  zone, 100 * (1 - zone_ours / zone_at_once), 100 * (1 - zone_perfect / zone_at_once));
    }
    ours += zone_ours;
    perfect += zone_perfect;
    at_once += zone_at_once;
  }
  const double yesterday_share = 100 * (at_once - persistence) / (at_once - perfect);
  rows.push_back(row("jobs_share_of_perfect", "%", mean_of(share), yesterday_share, "same hour yesterday",
                     mean_of(share) / yesterday_share, spread_of(share)));
  rows.push_back(row("jobs_saved", "% of gCO2e", 100 * (1 - ours / at_once), 100 * (1 - perfect / at_once),
                     "perfect forecast", (at_once - ours) / (at_once - perfect), NAN));
  rows.push_back(row("jobs_missed", strf("of %d deadlines", n_jobs).c_str(), missed, 0, "bar", NAN, NAN));
  // A week of hours for a thousand jobs.
  const std::vector<double> hourly(168, 100.0);
  const double begin = wall_seconds();
  for (const jobs::TraceJob& job : trace) {
    FRUGAL_TRY(const auto plan,
               jobs::plan_job({std::min(job.length_s, 6e5), 168 * 3600.0, true}, 0, 0, hourly));
    static_cast<void>(plan);
  }
  const double seconds = wall_seconds() - begin;
  rows.push_back(row("jobs_plan_1000", "s", seconds, 1, "bar", 1 / seconds, NAN));
  return {};
}

int bench(BenchOptions options) {
  if (options.cpu_table.empty()) options.cpu_table = package_data("cpu_power.csv");
  if (options.cpu_table.empty()) {
    return fail({ErrorCode::kNotFound, "the table of processors is not installed: run scripts/bootstrap.py"});
  }
  Json rows = Json::array();
  for (const Status& status : {bench_power(options, rows), options.fit ? Status() : bench_overhead(rows),
                               options.fit ? Status() : bench_jobs(options, rows)}) {
    if (!status.ok()) return fail(status.error());
  }
  if (options.json) {
    const meter::CpuInfo cpu = meter::read_cpu_info("/proc");
    const Json out = {{"rows", rows}, {"version", FRUGAL_VERSION},       {"cpu", cpu.name},
                      {"threads", 1}, {"command", "frugal bench meter"}, {"data", options.data}};
    return print(out.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n") ? kExitOk
                                                                                           : kExitFailure;
  }
  for (const Json& line : rows) {
    std::printf("%-24s %10.4g %-20s %s %s\n", line["name"].get<std::string>().c_str(),
                line["ours"].get<double>(), line["unit"].get<std::string>().c_str(),
                line["peer_name"].get<std::string>().c_str(), line["peer"].dump().c_str());
  }
  return kExitOk;
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
  app.add_flag("--quick", options->quick, "four weeks of the year instead of eight");
  return [options] { return bench(*options); };
}

}  // namespace frugal::cli
