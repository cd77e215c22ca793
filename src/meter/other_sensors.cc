#include "meter/other_sensors.h"

#include <dlfcn.h>
#include <linux/perf_event.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "base/text.h"
#include "meter/sysfs.h"

namespace frugal::meter {
namespace {

// An interval may not imply more than this: above it the counter was reset. A GPU of 2026 peaks below 2 kW.
constexpr double kMaxWatts = 3000;

// A counter that only grows, read by `read_joules`.
class CumulativeSensor : public EnergySensor {
 public:
  CumulativeSensor(std::string name, Component component) : name_(std::move(name)), component_(component) {}
  const std::string& name() const override { return name_; }
  Component component() const override { return component_; }

  Result<double> update(double seconds) override {
    state_.pending_s += std::max(seconds, 0.0);
    FRUGAL_TRY(const double now, read_joules());
    const double elapsed = std::exchange(state_.pending_s, 0.0);
    const double last = std::exchange(state_.last, now);
    if (std::exchange(state_.started, 1) == 0) return 0.0;
    const double joules = now - last;
    if (joules < 0 || joules > kMaxWatts * (elapsed + 0.1)) {
      return {ErrorCode::kUnavailable,
              strf("%s: the counter went from %.1f to %.1f J in %.2f s; it was reset", name_.c_str(), last,
                   now, elapsed)};
    }
    return joules;
  }

 protected:
  virtual Result<double> read_joules() = 0;

 private:
  std::string name_;
  Component component_;
};

// A reading of power, held from one look to the next.
class PowerSensor : public EnergySensor {
 public:
  PowerSensor(std::string name, Component component) : name_(std::move(name)), component_(component) {}
  const std::string& name() const override { return name_; }
  Component component() const override { return component_; }

  Result<double> update(double seconds) override {
    state_.pending_s += std::max(seconds, 0.0);
    FRUGAL_TRY(const double watts, read_watts());
    if (!(watts >= 0 && watts < kMaxWatts)) {
      return {ErrorCode::kCorrupt, strf("%s reads %g W", name_.c_str(), watts)};
    }
    const double mean = state_.started != 0 ? 0.5 * (watts + state_.last) : watts;
    state_.last = watts;
    state_.started = 1;
    return mean * std::exchange(state_.pending_s, 0.0);
  }

 protected:
  virtual Result<double> read_watts() = 0;

 private:
  std::string name_;
  Component component_;
};

class PerfSensor final : public CumulativeSensor {
 public:
  PerfSensor(std::string name, Component component, int fd, double scale)
      : CumulativeSensor(std::move(name), component), fd_(fd), scale_(scale) {}
  ~PerfSensor() override { ::close(fd_); }
  bool shareable() const override { return false; }

 protected:
  Result<double> read_joules() override {
    uint64_t count = 0;
    if (::read(fd_, &count, sizeof count) != sizeof count)
      return {ErrorCode::kIo, name() + ": perf gives no count"};
    return scale_ * static_cast<double>(count);
  }

 private:
  int fd_;
  double scale_;
};

class EnergyFile final : public CumulativeSensor {
 public:
  EnergyFile(std::string name, std::string path)
      : CumulativeSensor(std::move(name), Component::kCpu), path_(std::move(path)) {}

 protected:
  Result<double> read_joules() override {
    FRUGAL_TRY(const uint64_t microjoules, read_number(path_));
    return 1e-6 * static_cast<double>(microjoules);
  }

 private:
  std::string path_;
};

class PowerFile final : public PowerSensor {
 public:
  PowerFile(std::string name, std::string path)
      : PowerSensor(std::move(name), Component::kGpu), path_(std::move(path)) {}

 protected:
  Result<double> read_watts() override {
    FRUGAL_TRY(const uint64_t microwatts, read_number(path_));
    return 1e-6 * static_cast<double>(microwatts);
  }

 private:
  std::string path_;
};

// The part of NVML that is used, by its published interface.
struct NvmlProcessSample {
  unsigned pid;
  unsigned long long time_us;
  unsigned sm, memory, encoder, decoder;  // per cent
};
struct Nvml {
  void* library = nullptr;
  int (*init)() = nullptr;
  int (*count)(unsigned*) = nullptr;
  int (*handle)(unsigned, void**) = nullptr;
  int (*energy)(void*, unsigned long long*) = nullptr;  // millijoules since the driver was loaded
  int (*power)(void*, unsigned*) = nullptr;             // milliwatts
  int (*processes)(void*, NvmlProcessSample*, unsigned*, unsigned long long) = nullptr;
};

// The samples of use by process that the driver took since the last call. NVML's codes: 6 is "no samples", 7
// "more room is needed".
class NvmlProcesses {
 public:
  std::optional<std::vector<ProcessUse>> since_last(const Nvml& nvml, void* device) {
    if (nvml.processes == nullptr) return std::nullopt;
    unsigned n = 0;
    int code = nvml.processes(device, nullptr, &n, last_us_);
    if (code == 6) return std::vector<ProcessUse>{};
    if ((code != 7 && code != 0) || n > 100000) return std::nullopt;
    std::vector<NvmlProcessSample> samples(n + 16);  // some more may come in between
    n = static_cast<unsigned>(samples.size());
    code = nvml.processes(device, samples.data(), &n, last_us_);
    if (code == 6) return std::vector<ProcessUse>{};
    if (code != 0 || n > samples.size()) return std::nullopt;
    std::vector<ProcessUse> uses;
    for (unsigned i = 0; i < n; ++i) {
      last_us_ = std::max(last_us_, samples[i].time_us);
      if (samples[i].sm > 0) uses.push_back({samples[i].pid, static_cast<double>(samples[i].sm)});
    }
    return uses;
  }

 private:
  unsigned long long last_us_ = 0;
};

class NvmlEnergy final : public CumulativeSensor {
 public:
  NvmlEnergy(std::string name, Nvml nvml, void* device)
      : CumulativeSensor(std::move(name), Component::kGpu), nvml_(nvml), device_(device) {}
  std::optional<std::vector<ProcessUse>> process_use() override {
    return processes_.since_last(nvml_, device_);
  }

 protected:
  Result<double> read_joules() override {
    unsigned long long millijoules = 0;
    const int code = nvml_.energy(device_, &millijoules);
    if (code != 0) return {ErrorCode::kIo, strf("%s: NVML gives error %d", name().c_str(), code)};
    return 1e-3 * static_cast<double>(millijoules);
  }

 private:
  Nvml nvml_;
  void* device_;
  NvmlProcesses processes_;
};

class NvmlPower final : public PowerSensor {
 public:
  NvmlPower(std::string name, Nvml nvml, void* device)
      : PowerSensor(std::move(name), Component::kGpu), nvml_(nvml), device_(device) {}
  std::optional<std::vector<ProcessUse>> process_use() override {
    return processes_.since_last(nvml_, device_);
  }

 protected:
  Result<double> read_watts() override {
    unsigned milliwatts = 0;
    const int code = nvml_.power(device_, &milliwatts);
    if (code != 0) return {ErrorCode::kIo, strf("%s: NVML gives error %d", name().c_str(), code)};
    return 1e-3 * milliwatts;
  }

 private:
  Nvml nvml_;
  void* device_;
  NvmlProcesses processes_;
};

// "event=0x02" -> 2
bool parse_event(const std::string& text, uint64_t& config) {
  const size_t at = text.find("event=0x");
  if (at == std::string::npos) return false;
  const char* begin = text.data() + at + 8;
  return std::from_chars(begin, text.data() + text.size(), config, 16).ec == std::errc();
}

}  // namespace

FoundSensors discover_perf(const std::string& sysfs) {
  FoundSensors found;
  const std::string root = sysfs + "/bus/event_source/devices/power";
  const auto type = read_number(root + "/type");
  if (!type.ok()) {
    found.notes.push_back("no perf energy events: " + root + " is not there");
    return found;
  }
  const auto mask = read_line(root + "/cpumask");
  for (const auto& [event, component] :
       {std::pair{"energy-pkg", Component::kCpu}, std::pair{"energy-ram", Component::kMemory}}) {
    const auto config_text = read_line(root + "/events/" + event);
    const auto scale_text = read_line(root + "/events/" + event + ".scale");
    uint64_t config = 0;
    if (!config_text.ok() || !scale_text.ok() || !mask.ok() || !parse_event(*config_text, config)) continue;
    const double scale = std::strtod(scale_text->c_str(), nullptr);
    if (!(scale > 0 && scale < 1)) {
      found.notes.push_back(strf("perf %s: its scale '%s' is no number", event, scale_text->c_str()));
      continue;
    }
    // One processor of each package: "0,18" or "0-1".
    for (const std::string& part : split(*mask, ',')) {
      perf_event_attr attributes{};
      attributes.size = sizeof attributes;
      attributes.type = static_cast<uint32_t>(*type);
      attributes.config = config;
      const int cpu = std::atoi(part.c_str());
      const int fd =
          static_cast<int>(::syscall(SYS_perf_event_open, &attributes, -1, cpu, -1, PERF_FLAG_FD_CLOEXEC));
      if (fd < 0) {
        found.notes.push_back(
            strf("perf %s on cpu %d: %s%s", event, cpu, std::strerror(errno),
                 errno == EACCES || errno == EPERM
                     ? "; as root: sysctl kernel.perf_event_paranoid=0, or give frugal CAP_PERFMON"
                     : ""));
        continue;
      }
      found.sensors.push_back(
          std::make_unique<PerfSensor>(strf("perf %s of cpu %d", event, cpu), component, fd, scale));
    }
  }
  return found;
}

FoundSensors discover_hwmon(const std::string& sysfs) {
  FoundSensors found;
  const std::string root = sysfs + "/class/hwmon";
  const std::vector<std::string> chips = list_directory(root);
  for (const std::string& chip : chips) {
    const std::string folder = root + "/" + chip;
    const auto name = read_line(folder + "/name");
    if (!name.ok()) continue;
    for (const std::string& file : list_directory(folder)) {
      const std::string path = folder + "/" + file;
      if (file.starts_with("energy") && file.ends_with("_input")) {
        const auto label = read_line(folder + "/" + file.substr(0, file.size() - 5) + "label");
        // Cores are parts of their socket.
        if (!label.ok() || !label->starts_with("Esocket")) continue;
        const auto value = read_number(path);
        if (!value.ok()) {
          found.notes.push_back(*name + " " + *label + ": " + value.error().message);
          continue;
        }
        found.sensors.push_back(std::make_unique<EnergyFile>(*name + " " + *label, path));
      } else if (*name == "amdgpu" && (file == "power1_average" || file == "power1_input")) {
        const auto value = read_number(path);
        if (!value.ok()) {
          found.notes.push_back("amdgpu: " + value.error().message);
          continue;
        }
        found.sensors.push_back(std::make_unique<PowerFile>("amdgpu " + chip, path));
        break;
      } else if (*name == "power_meter" && file == "power1_average") {
        found.notes.push_back(
            path + " meters the whole machine: use it to calibrate (frugal meter calibrate --wall)");
      }
    }
  }
  if (chips.empty()) found.notes.push_back("no hwmon chips under " + root);
  return found;
}

FoundSensors discover_nvml(const std::string& library) {
  FoundSensors found;
  Nvml nvml;
  nvml.library = ::dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (nvml.library == nullptr) {
    found.notes.push_back("no NVIDIA GPU is metered: " + std::string(::dlerror()));
    return found;
  }
  // The library stays loaded: its handles live as long as the process.
  nvml.init = reinterpret_cast<int (*)()>(::dlsym(nvml.library, "nvmlInit_v2"));
  nvml.count = reinterpret_cast<int (*)(unsigned*)>(::dlsym(nvml.library, "nvmlDeviceGetCount_v2"));
  nvml.handle =
      reinterpret_cast<int (*)(unsigned, void**)>(::dlsym(nvml.library, "nvmlDeviceGetHandleByIndex_v2"));
  nvml.energy = reinterpret_cast<int (*)(void*, unsigned long long*)>(
      ::dlsym(nvml.library, "nvmlDeviceGetTotalEnergyConsumption"));
  nvml.power = reinterpret_cast<int (*)(void*, unsigned*)>(::dlsym(nvml.library, "nvmlDeviceGetPowerUsage"));
  nvml.processes = reinterpret_cast<int (*)(void*, NvmlProcessSample*, unsigned*, unsigned long long)>(
      ::dlsym(nvml.library, "nvmlDeviceGetProcessUtilization"));
  if (nvml.init == nullptr || nvml.count == nullptr || nvml.handle == nullptr) {
    found.notes.push_back(library + " is there and lacks NVML's functions: no GPU is metered");
    return found;
  }
  unsigned n = 0;
  int code = nvml.init();
  if (code == 0) code = nvml.count(&n);
  if (code != 0) {
    found.notes.push_back(strf("NVML gives error %d: no GPU is metered; is the driver loaded?", code));
    return found;
  }
  for (unsigned i = 0; i < n; ++i) {
    void* device = nullptr;
    const std::string name = strf("NVIDIA GPU %u", i);
    if (nvml.handle(i, &device) != 0) {
      found.notes.push_back(name + " gives no handle");
      continue;
    }
    unsigned long long millijoules = 0;
    unsigned milliwatts = 0;
    if (nvml.energy != nullptr && nvml.energy(device, &millijoules) == 0) {
      found.sensors.push_back(std::make_unique<NvmlEnergy>(name, nvml, device));
    } else if (nvml.power != nullptr && nvml.power(device, &milliwatts) == 0) {
      found.sensors.push_back(std::make_unique<NvmlPower>(name, nvml, device));
      found.notes.push_back(name + " has no energy counter: its power is sampled");
    } else {
      found.notes.push_back(name + " tells neither energy nor power");
    }
  }
  return found;
}

}  // namespace frugal::meter
