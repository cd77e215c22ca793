// PowerMeter: integrates the host's energy, and charges runs their share of it.
#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "base/clock.h"
#include "base/text.h"
#include "frugal/meter.h"
#include "meter/cpu_info.h"
#include "meter/host_load.h"
#include "meter/other_sensors.h"
#include "meter/power_model.h"
#include "meter/rapl.h"

namespace frugal::meter {
namespace {

constexpr size_t kMaxSamples = 4096;

// RAPL package counters against the supply rails: a few per cent on Haswell and later (Desrochers et al.
// 2016; Khan et al. 2018); AMD's are modelled in firmware and somewhat worse.
constexpr double kCounterError = 0.05;

// Counters are written about once a millisecond: each end of an interval is uncertain by one step.
constexpr double kCounterStep_s = 0.001;

// Time of the kernel's load counters: one tick, for each of the two ends.
constexpr double kTick_s = 0.01;

// Below this a window is a handful of ticks, and the host's other load cannot be read from them.
constexpr double kShortWindow_s = 0.25;

// A sensor that has not answered for this long is given up, and the model takes its place.
constexpr double kSensorPatience_s = 30;

// Watts per GB of memory in use: Green Algorithms takes 0.3725; idle DDR4 and loaded DDR5 modules span the
// band.
constexpr double kMemoryWattsPerGb = 0.3725, kMemoryLow = 0.10, kMemoryHigh = 0.80;

struct Sensor {
  std::unique_ptr<EnergySensor> counter;
  double silent_s = 0;  // time that its last good read does not cover
  bool alive = true;
};

Estimate difference(const Estimate& now, const Estimate& from) {
  if (!now.known() || !from.known()) return Estimate::unknown();
  return {now.value - from.value, now.low - from.low, now.high - from.high, now.provenance};
}

void add(Estimate& sum, double value, double low, double high) {
  sum.value += value;
  sum.low += low;
  sum.high += high;
}

class HostMeter final : public PowerMeter {
 public:
  HostMeter(MeterOptions options, SourceInfo source, PowerModel model, std::vector<Sensor> sensors)
      : options_(std::move(options)),
        source_(std::move(source)),
        model_(std::move(model)),
        sensors_(std::move(sensors)) {
    n_cpu_sensors_ =
        static_cast<int>(std::count_if(sensors_.begin(), sensors_.end(), [](const Sensor& sensor) {
          return sensor.counter->component() == Component::kCpu;
        }));
    host_.cpu_j.provenance = n_cpu_sensors_ > 0 ? Provenance::kMeasured : Provenance::kModelled;
    if (source_.memory_counter) host_.memory_j.provenance = Provenance::kMeasured;
    if (source_.gpu_counter) host_.gpu_j.provenance = Provenance::kMeasured;
    last_wall_ = frugal::wall_seconds();
    for (Sensor& sensor : sensors_) {
      const auto first = sensor.counter->update(0);
      if (!first.ok()) sensor.silent_s = 0;
    }
    const auto busy = read_busy_seconds(options_.procfs);
    if (busy.ok()) last_busy_ = *busy;
    if (options_.sample_interval_s > 0) sampler_ = std::thread([this] { sample_until_stopped(); });
  }

  ~HostMeter() override {
    {
      const std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    if (sampler_.joinable()) sampler_.join();
  }

  const SourceInfo& source() const override { return source_; }
  const MeterOptions& options() const override { return options_; }

  Snapshot snapshot() override {
    const std::lock_guard lock(mutex_);
    sample();
    return {host_};
  }

  Charge charge(const Snapshot& from, Usage& usage) override;

  std::vector<PowerSample> samples(const Snapshot& from) override {
    const std::lock_guard lock(mutex_);
    std::vector<PowerSample> found;
    double age = host_.wall_s - from.host.wall_s;
    for (auto at = samples_.rbegin(); at != samples_.rend() && age > 0; ++at) {
      found.push_back(*at);
      age -= at->seconds;
    }
    std::reverse(found.begin(), found.end());
    return found;
  }

 private:
  void sample_until_stopped() {
    std::unique_lock lock(mutex_);
    const auto interval = std::chrono::duration<double>(options_.sample_interval_s);
    while (!wake_.wait_for(lock, interval, [this] { return stop_; })) sample();
  }

  // Adds the interval since the last sample. Called with the lock held.
  void sample() {
    const double now = frugal::wall_seconds();
    const double elapsed = std::max(now - last_wall_, 0.0);
    last_wall_ = now;
    const auto busy_now = read_busy_seconds(options_.procfs);
    double busy = 0;
    if (busy_now.ok()) {
      busy = std::max(*busy_now - last_busy_, 0.0);
      last_busy_ = *busy_now;
    }
    const double u = elapsed > 0 ? std::min(1.0, busy / (elapsed * source_.threads)) : 0;
    auto frequency = read_frequency_share(options_.sysfs);
    if (frequency) {
      // Only where frequencies are known does it matter how the load is spread.
      auto by_cpu = read_busy_by_cpu(options_.procfs);
      if (by_cpu.ok()) {
        frequency->packing = std::max(u, packing_of(busy_by_cpu_, *by_cpu, elapsed));
        busy_by_cpu_ = std::move(by_cpu).value();
      }
    }
    const Estimate modelled = model_.watts(u, frequency);

    const Estimate before = host_.cpu_j;
    double model_share = n_cpu_sensors_ == 0 ? 1 : 0;  // of this interval's processors
    for (Sensor& sensor : sensors_) add_sensor(sensor, elapsed, modelled, model_share);
    if (n_cpu_sensors_ == 0) {
      add(host_.cpu_j, modelled.value * elapsed, modelled.low * elapsed, modelled.high * elapsed);
    }
    host_.modelled_s += model_share * elapsed;
    host_.measured_s += (1 - model_share) * elapsed;
    host_.busy_s += busy;
    host_.wall_s += elapsed;
    if (elapsed > kTick_s) {
      Estimate power = difference(host_.cpu_j, before).scaled(1 / elapsed);
      if (model_share > 0) power.provenance = Provenance::kModelled;
      samples_.push_back({clock_seconds(CLOCK_REALTIME), elapsed, power, u});
      if (samples_.size() > kMaxSamples) samples_.pop_front();
    }
  }

  void add_sensor(Sensor& sensor, double elapsed, const Estimate& modelled, double& model_share) {
    const Component component = sensor.counter->component();
    Estimate& sum = component == Component::kCpu      ? host_.cpu_j
                    : component == Component::kMemory ? host_.memory_j
                                                      : host_.gpu_j;
    const double covered_s = sensor.silent_s + elapsed;
    double unknown_s = 0;  // to be filled by the model
    if (sensor.alive) {
      const auto joules = sensor.counter->update(elapsed);
      if (joules.ok()) {
        sensor.silent_s = 0;
        add(sum, *joules, *joules * (1 - kCounterError), *joules * (1 + kCounterError));
        return;
      }
      if (joules.error().code ==
          ErrorCode::kUnavailable) {  // a reset: this interval is lost, the next is sound
        sensor.silent_s = 0;
        unknown_s = covered_s;
      } else if (joules.error().code == ErrorCode::kNotFound || covered_s > kSensorPatience_s) {
        sensor.alive = false;
        unknown_s = covered_s;
      } else {
        sensor.silent_s = covered_s;
        return;
      }
    } else {
      unknown_s = elapsed;
    }
    if (component == Component::kCpu) {
      const double part = unknown_s / n_cpu_sensors_;
      add(sum, modelled.value * part, modelled.low * part, modelled.high * part);
      model_share += 1.0 / n_cpu_sensors_;
    } else {
      sum = Estimate::unknown();  // no model of this host's memory or GPU: better no figure than half of one
    }
  }

  const MeterOptions options_;
  const SourceInfo source_;
  const PowerModel model_;

  std::mutex mutex_;
  std::condition_variable wake_;
  bool stop_ = false;
  std::vector<Sensor> sensors_;
  int n_cpu_sensors_ = 0;
  HostEnergy host_;
  double last_wall_ = 0, last_busy_ = 0;
  std::vector<double> busy_by_cpu_;
  std::deque<PowerSample> samples_;
  std::thread sampler_;
};

Charge HostMeter::charge(const Snapshot& from, Usage& usage) {
  const HostEnergy now = snapshot().host;
  const double wall = now.wall_s - from.host.wall_s;
  const double busy = now.busy_s - from.host.busy_s;
  const double cpu = usage.cpu_seconds;
  const bool measured = n_cpu_sensors_ > 0 && now.modelled_s == from.host.modelled_s;
  Charge charge;
  charge.host_cpu_j = difference(now.cpu_j, from.host.cpu_j);
  charge.host_cpu_j.provenance = measured ? Provenance::kMeasured : Provenance::kModelled;

  // The run's share of the busy time, and its band: two ticks of doubt about the rest of the load.
  const double others = std::max(busy - cpu, 0.0);
  const double share = cpu > 0 ? cpu / (cpu + others) : 0;
  const double share_low = cpu > 0 ? cpu / (cpu + others + 2 * kTick_s) : 0;
  const double share_high = cpu > 0 ? cpu / (cpu + std::max(others - 2 * kTick_s, 0.0)) : 0;
  charge.share = share;

  Estimate host = charge.host_cpu_j;
  if (measured) {
    const double step_j = wall > 0 ? 2 * kCounterStep_s * host.value / wall : 0;
    host.low = std::max(0.0, host.low - step_j);
    host.high += step_j;
  }
  if (wall < kShortWindow_s && !measured && wall > 0) {
    // The load counters are too coarse for the window. The run alone gives the value; a host busy with
    // others, so that the run bears a thread's part of full power only, gives the low end.
    const double alone = std::min(1.0, cpu / (wall * source_.threads));
    const auto phi = read_frequency_share(options_.sysfs);
    const Estimate power = model_.watts(alone, phi), full = model_.watts(1, phi);
    charge.cpu_j = {power.value * wall, std::min(power.low * wall, full.low * cpu / source_.threads),
                    power.high * wall, Provenance::kModelled};
    charge.share = 1;
  } else {
    charge.cpu_j = {host.value * share, host.low * share_low, host.high * share_high,
                    measured && share > 0.9 ? Provenance::kMeasured : Provenance::kModelled};
  }
  charge.total_j = charge.cpu_j;

  charge.memory_j = difference(now.memory_j, from.host.memory_j);
  if (charge.memory_j.known()) {
    charge.memory_j = {charge.memory_j.value * share, charge.memory_j.low * share_low,
                       charge.memory_j.high * share_high, charge.cpu_j.provenance};
  } else {
    const double gb_s = 1e-9 * usage.bytes_held * wall;
    charge.memory_j = {kMemoryWattsPerGb * gb_s, kMemoryLow * gb_s, kMemoryHigh * gb_s, Provenance::kAssumed};
  }
  // A guess about memory below a hundredth of the whole must not brand the whole as guessed: its band is
  // added, its provenance is not.
  const Provenance cpu_provenance = charge.total_j.provenance;
  charge.total_j += charge.memory_j;
  if (charge.memory_j.value < 0.01 * charge.cpu_j.value) charge.total_j.provenance = cpu_provenance;

  charge.gpu_j = difference(now.gpu_j, from.host.gpu_j);
  if (charge.gpu_j.known()) charge.total_j += charge.gpu_j;

  charge.total_j = charge.total_j.scaled(options_.pue);
  const Estimate& grams = options_.intensity.g_per_kwh;
  if (grams.known()) {
    constexpr double kJoulesPerKwh = 3.6e6;
    charge.carbon_gco2e = {charge.total_j.value * grams.value / kJoulesPerKwh,
                           charge.total_j.low * grams.low / kJoulesPerKwh,
                           charge.total_j.high * grams.high / kJoulesPerKwh,
                           std::max(charge.total_j.provenance, grams.provenance)};
  }
  usage.energy_j = charge.total_j;
  usage.carbon_gco2e = charge.carbon_gco2e;
  return charge;
}

// What the host has beside powercap. A processor counter is taken from the best source that has one.
void add_other_sensors(const MeterOptions& options, SourceInfo& source, std::vector<Sensor>& sensors) {
  const auto take = [&](FoundSensors found, SourceKind kind, bool processors) {
    for (std::string& note : found.notes) source.notes.push_back(std::move(note));
    for (auto& sensor : found.sensors) {
      const Component component = sensor->component();
      if (component == Component::kGpu) {
        source.gpu_counter = true;
      } else if (!processors) {
        continue;
      } else {
        source.kind = kind;
        if (component == Component::kMemory) source.memory_counter = true;
      }
      source.description += (source.description.empty() ? "" : ", ") + sensor->name();
      sensors.push_back({std::move(sensor), 0, true});
    }
  };
  if (sensors.empty()) take(discover_perf(options.sysfs), SourceKind::kPerf, true);
  take(discover_hwmon(options.sysfs), SourceKind::kHwmon, sensors.empty());
  // The driver's library knows nothing of a test's /sys.
  if (options.sysfs == "/sys") take(discover_nvml(), SourceKind::kRapl, false);
}

Status check_options(const MeterOptions& options) {
  const auto bad = [](const char* what, double value, const char* wanted) {
    return Status(ErrorCode::kInvalidArgument, strf("%s is %g; it must be %s", what, value, wanted));
  };
  if (!(options.tdp_w >= 0 && options.tdp_w <= 10000))
    return bad("TDP", options.tdp_w, "between 0 and 10,000 watts");
  if (options.host_threads < 0) return bad("the host's thread count", options.host_threads, "positive");
  if (!(options.pue >= 1 && options.pue <= 10)) return bad("PUE", options.pue, "between 1 and 10");
  if (!(options.water_l_per_kwh >= 0))
    return bad("water per kWh", options.water_l_per_kwh, "0 or more litres");
  if (!(options.sample_interval_s >= 0 && options.sample_interval_s <= 60)) {
    return bad("the sample interval", options.sample_interval_s, "between 0 and 60 seconds");
  }
  const Estimate& grams = options.intensity.g_per_kwh;
  if (grams.known() &&
      !(grams.low >= 0 && grams.low <= grams.value && grams.value <= grams.high && grams.high < 1e5)) {
    return bad("carbon intensity", grams.value, "0 or more g/kWh, inside its band");
  }
  return {};
}

}  // namespace

std::string_view source_kind_name(SourceKind kind) {
  switch (kind) {
    case SourceKind::kRapl:
      return "rapl";
    case SourceKind::kPerf:
      return "perf";
    case SourceKind::kHwmon:
      return "hwmon";
    case SourceKind::kLoadModel:
      return "load-model";
    case SourceKind::kThreads:
      return "threads";
  }
  return "threads";
}

Result<std::unique_ptr<PowerMeter>> PowerMeter::open(const MeterOptions& options) {
  FRUGAL_TRY_STATUS(check_options(options));
  const CpuInfo cpu = read_cpu_info(options.procfs);
  SourceInfo source;
  source.cpu_name = cpu.name;
  source.sockets = cpu.sockets;
  source.threads = cpu.threads;
  source.virtual_machine = cpu.virtual_machine;

  std::vector<Sensor> sensors;
  if (options.use_counters) {
    RaplDomains rapl = discover_rapl(options.sysfs);
    source.notes = std::move(rapl.notes);
    for (RaplDomain& domain : rapl.domains) {
      source.description += (source.description.empty() ? "powercap: " : ", ") + domain.name;
      if (domain.kind == DomainKind::kDram) source.memory_counter = true;
      sensors.push_back({std::make_unique<EnergyCounter>(std::move(domain)), 0, true});
      source.kind = SourceKind::kRapl;
    }
    add_other_sensors(options, source, sensors);
  } else {
    source.notes.push_back("counters are switched off by the options");
  }
  // A GPU's counter alone leaves the processors to the model.
  const bool counters = std::any_of(sensors.begin(), sensors.end(), [](const Sensor& sensor) {
    return sensor.counter->component() == Component::kCpu;
  });

  // The model stands in for missing counters and for intervals that they lose.
  double tdp = options.tdp_w;
  std::string rating;
  if (tdp == 0 && !options.cpu_table.empty()) {
    const auto found = find_tdp(options.cpu_table, cpu.name);
    if (found.ok()) {
      tdp = *found;
    } else if (found.error().code == ErrorCode::kNotFound) {
      source.notes.push_back("TDP unknown: " + found.error().message);
    } else {
      return Error(found.error()).in("reading the processor table");
    }
  }
  std::optional<PowerModel> model;
  if (!options.calibration.empty()) {
    FRUGAL_TRY(model, PowerModel::from_points(options.calibration));
    rating = strf("load model, calibrated at %zu points", options.calibration.size());
  } else if (tdp > 0 && (!cpu.virtual_machine || options.host_threads > 0)) {
    double rated = tdp * cpu.sockets;
    rating = strf("load model, TDP %g W", tdp);
    if (cpu.virtual_machine) {
      rated = tdp * cpu.threads / options.host_threads;
      rating += strf(", %d of %d threads of the host", cpu.threads, options.host_threads);
    } else if (cpu.sockets > 1) {
      rating += strf(" x %d sockets", cpu.sockets);
    }
    model = PowerModel::from_rating(rated, {});
  } else {
    const WattsPerThread watts = watts_per_thread(cpu);
    model = PowerModel::from_rating(watts.value * cpu.threads,
                                    Band{watts.low / watts.value, watts.high / watts.value});
    rating = strf("load model, %g W per thread of %s", watts.value, watts.family.c_str());
    source.notes.push_back(cpu.virtual_machine && tdp > 0
                               ? strf("TDP %g W is of the whole part and this is a virtual machine: tell how "
                                      "many threads a package of "
                                      "the host has (--host-threads) to use it",
                                      tdp)
                               : "give the processor's TDP (--tdp), or calibrate, for a narrower band");
  }
  if (!counters) {
    source.kind = options.calibration.empty() && rating.find("per thread") != std::string::npos
                      ? SourceKind::kThreads
                      : SourceKind::kLoadModel;
    source.description = rating + (source.description.empty() ? "" : "; " + source.description);
  } else {
    source.notes.push_back("for intervals that counters lose: " + rating);
  }
  const auto phi = read_frequency_share(options.sysfs);
  source.max_watts =
      model->watts(1, phi ? std::optional(FrequencyShare{1, phi->least, 1}) : std::nullopt).value;
  source.idle_watts = model->watts(0, phi).value;
  return std::unique_ptr<PowerMeter>(
      std::make_unique<HostMeter>(options, std::move(source), std::move(*model), std::move(sensors)));
}

}  // namespace frugal::meter
