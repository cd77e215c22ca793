// PowerMeter: integrates the host's energy, and charges runs their share of it.
#include <algorithm>

#include "base/text.h"
#include "frugal/meter.h"
#include "meter/cpu_info.h"
#include "meter/host_load.h"
#include "meter/host_meter.h"
#include "meter/other_sensors.h"
#include "meter/power_model.h"
#include "meter/rapl.h"
#include "meter/sysfs.h"

namespace frugal::meter {
namespace {

// What the host has beside powercap. A processor counter is taken from the best source that has one.
void add_other_sensors(const MeterOptions& options, SourceInfo& source, Sensors& sensors) {
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
      sensors.push_back(std::move(sensor));
    }
  };
  if (sensors.empty()) take(discover_perf(options.sysfs), SourceKind::kPerf, true);
  take(discover_hwmon(options.sysfs), SourceKind::kHwmon, sensors.empty());
  // The driver's library knows nothing of a test's /sys.
  if (!options.nvml_library.empty()) {
    take(discover_nvml(options.nvml_library), SourceKind::kRapl, false);
  } else if (options.sysfs == "/sys") {
    take(discover_nvml(), SourceKind::kRapl, false);
  }
}

// Shared where the options ask for it and all sensors allow it. What cannot be shared is no fault: a note
// says why.
std::unique_ptr<StateKeeper> open_state(const MeterOptions& options, const std::string& rating,
                                        const Sensors& sensors, SourceInfo& source) {
  if (options.share_folder.empty() || options.sample_interval_s <= 0) return private_state();
  std::string fingerprint = options.sysfs + "\n" + options.procfs + "\n" + rating + "\n";
  const auto boot = read_line("/proc/sys/kernel/random/boot_id");
  fingerprint += (boot.ok() ? *boot : "") + strf("\n%zu %d", sizeof(HostState), source.threads);
  for (const CalibrationPoint& p : options.calibration)
    fingerprint += strf("\n%a %a %a %a", p.load, p.watts, p.frequency, p.least_frequency);
  for (const auto& sensor : sensors) {
    fingerprint += "\n" + sensor->name();
    if (!sensor->shareable()) {
      source.notes.push_back("this meter samples on its own: counts of " + sensor->name() +
                             " begin with their reader");
      return private_state();
    }
  }
  auto state = shared_state(options.share_folder, fingerprint);
  if (state.ok()) {
    source.shared = true;
    return std::move(state).value();
  }
  source.notes.push_back("this meter samples on its own: " + state.error().message);
  return private_state();
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

  Sensors sensors;
  if (options.use_counters) {
    RaplDomains rapl = discover_rapl(options.sysfs);
    source.notes = std::move(rapl.notes);
    for (RaplDomain& domain : rapl.domains) {
      source.description += (source.description.empty() ? "powercap: " : ", ") + domain.name;
      if (domain.kind == DomainKind::kDram) source.memory_counter = true;
      sensors.push_back(std::make_unique<EnergyCounter>(std::move(domain)));
      source.kind = SourceKind::kRapl;
    }
    add_other_sensors(options, source, sensors);
  } else {
    source.notes.push_back("counters are switched off by the options");
  }
  if (sensors.size() > kMaxSensors) {
    source.notes.push_back(
        strf("%zu sensors are more than this meter reads: the last ones are left out", sensors.size()));
    sensors.resize(kMaxSensors);
  }
  // A GPU's counter alone leaves the processors to the model.
  const bool counters = std::any_of(sensors.begin(), sensors.end(), [](const auto& sensor) {
    return sensor->component() == Component::kCpu;
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
  std::unique_ptr<StateKeeper> state = open_state(options, rating, sensors, source);
  return make_host_meter(options, std::move(source), std::move(*model), std::move(sensors), std::move(state));
}

}  // namespace frugal::meter
