// frugal meter watch: the host's power as it is, line by line or in place.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <deque>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "base/text.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/meter_setup.h"
#include "meter/carbon.h"

namespace frugal::cli {
namespace {

struct WatchOptions {
  std::shared_ptr<MeterSetup> meter;
  double interval_s = 1;
  int64_t count = 0;
  bool json = false;
};

// One character a sample, from the least to the most of those shown.
std::string sparkline(const std::deque<double>& watts) {
  static constexpr const char* kBars[] = {"▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
  const auto [low, high] = std::minmax_element(watts.begin(), watts.end());
  std::string text;
  for (const double w : watts) {
    const double t = *high > *low ? (w - *low) / (*high - *low) : 0;
    text += kBars[std::min(7, static_cast<int>(8 * t))];
  }
  return text;
}

int watch(const WatchOptions& options) {
  MeterSetup setup = *options.meter;
  setup.interval_s = std::clamp(options.interval_s, 0.1, 60.0);
  const auto opened = open_meter(setup);
  if (!opened.ok()) return fail(opened.error());
  meter::PowerMeter& meter = **opened;
  install_interrupt_handler();
  const bool in_place = !options.json && ::isatty(STDOUT_FILENO) != 0;
  const Estimate grams = meter.options().intensity.g_per_kwh;
  if (!options.json) {
    if (!print("power from " + meter.source().description + "\n")) return kExitFailure;
  }
  const meter::Snapshot begin = meter.snapshot();
  meter::HostEnergy before = begin.host;
  std::deque<double> recent;
  for (int64_t i = 0; (options.count == 0 || i < options.count) && !interrupted(); ++i) {
    const double until = wall_seconds() + options.interval_s;
    while (!interrupted() && wall_seconds() < until) {
      ::usleep(static_cast<useconds_t>(1e6 * std::clamp(until - wall_seconds(), 0.0, 0.1)));
    }
    const meter::HostEnergy now = meter.snapshot().host;
    const double seconds = now.wall_s - before.wall_s;
    if (seconds <= 0) continue;
    const bool measured = now.modelled_s == before.modelled_s;
    const auto power = [&](const Estimate& to, const Estimate& from) {
      if (!to.known() || !from.known()) return Estimate::unknown();
      Estimate e = {(to.value - from.value) / seconds, (to.low - from.low) / seconds,
                    (to.high - from.high) / seconds, to.provenance};
      return e;
    };
    Estimate cpu = power(now.cpu_j, before.cpu_j);
    cpu.provenance = measured ? Provenance::kMeasured : Provenance::kModelled;
    const Estimate memory = power(now.memory_j, before.memory_j), gpu = power(now.gpu_j, before.gpu_j);
    const double total = cpu.value + (memory.known() ? memory.value : 0) + (gpu.known() ? gpu.value : 0);
    const double busy = std::min(1.0, (now.busy_s - before.busy_s) / seconds / meter.source().threads);
    const double since_j = now.cpu_j.value - begin.host.cpu_j.value;
    before = now;
    std::string text;
    if (options.json) {
      const auto watts = [](const Estimate& e) {
        return e.known() ? nlohmann::ordered_json({{"value", e.value},
                                                   {"low", e.low},
                                                   {"high", e.high},
                                                   {"provenance", provenance_name(e.provenance)}})
                         : nlohmann::ordered_json(nullptr);
      };
      const nlohmann::ordered_json line = {
          {"time", meter::format_time(clock_seconds(CLOCK_REALTIME))},
          {"cpu_w", watts(cpu)},
          {"memory_w", watts(memory)},
          {"gpu_w", watts(gpu)},
          {"busy", busy},
          {"g_per_hour", grams.known() ? nlohmann::ordered_json(total * grams.value / 1000) : nullptr}};
      text = line.dump() + "\n";
    } else {
      recent.push_back(total);
      if (recent.size() > 40) recent.pop_front();
      text = strf("%6.2f W (%.3g to %.3g, %s)  busy %3.0f %%", total, cpu.low, cpu.high,
                  std::string(provenance_name(cpu.provenance)).c_str(), 100 * busy);
      if (memory.known()) text += strf("  memory %.1f W", memory.value);
      if (gpu.known()) text += strf("  gpu %.1f W", gpu.value);
      text += strf("  cpu %.4g J so far", since_j);
      text += grams.known() ? strf("  %.3g gCO2e/h", total * grams.value / 1000) : "";
      text = in_place ? "\r\x1b[K" + text + "  " + sparkline(recent) : text + "\n";
    }
    if (!print(text)) return kExitFailure;
  }
  if (in_place && !print("\n")) return kExitFailure;
  return interrupted() ? kExitInterrupted : kExitOk;
}

}  // namespace

Action add_meter_watch(CLI::App& app) {
  auto options = std::make_shared<WatchOptions>();
  app.add_option("--interval", options->interval_s, "seconds between lines")->check(CLI::Range(0.1, 3600.0));
  app.add_option("-n,--count", options->count, "end after so many lines (0: Ctrl-C ends it)")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 40));
  app.add_flag("--json", options->json, "a JSON object a line");
  options->meter = add_meter_options(app);
  return [options] { return watch(*options); };
}

}  // namespace frugal::cli
