#include "meter/host_meter.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <thread>

#include "base/clock.h"
#include "base/text.h"
#include "meter/host_load.h"
#include "meter/sysfs.h"

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

// Intervals shorter than this are not closed: the kernel's load counters are too coarse for them. A snapshot
// adds what has passed since the last one, and the next sample counts it again with more behind it.
constexpr double kShortest_s = 0.1;

// Nobody has sampled for this long (and three intervals): the time in between belongs to no one's run.
constexpr double kGap_s = 10;

Estimate difference(const Estimate& now, const Estimate& from) {
  if (!now.known() || !from.known()) return Estimate::unknown();
  return {now.value - from.value, now.low - from.low, now.high - from.high, now.provenance};
}

void add(Estimate& sum, double value, double low, double high) {
  sum.value += value;
  sum.low += low;
  sum.high += high;
}

// True if `pid` is this process or descends from it.
bool is_own(int64_t pid, const std::string& procfs, std::map<int64_t, bool>& known) {
  const int64_t self = ::getpid();
  std::vector<int64_t> line;
  bool own = false;
  for (int depth = 0; depth < 64 && pid > 1; ++depth) {
    if (pid == self) {
      own = true;
      break;
    }
    const auto found = known.find(pid);
    if (found != known.end()) {
      own = found->second;
      break;
    }
    const auto stat = read_line(procfs + "/" + std::to_string(pid) + "/stat");
    const size_t close =
        stat.ok() ? stat->rfind(')') : std::string::npos;  // the name before it may hold anything
    if (close == std::string::npos || close + 4 >= stat->size()) return false;
    line.push_back(pid);
    std::from_chars(stat->data() + close + 4, stat->data() + stat->size(), pid);
  }
  // Ended processes stay known: their samples come late.
  for (const int64_t one : line) known[one] = own;
  return own;
}

class HostMeter final : public PowerMeter {
 public:
  HostMeter(MeterOptions options, SourceInfo source, PowerModel model, Sensors sensors,
            std::unique_ptr<StateKeeper> keeper)
      : options_(std::move(options)),
        source_(std::move(source)),
        model_(std::move(model)),
        sensors_(std::move(sensors)),
        keeper_(std::move(keeper)) {
    for (const auto& sensor : sensors_) {
      n_cpu_sensors_ += sensor->component() == Component::kCpu ? 1 : 0;
      if (sensor->component() != Component::kGpu) continue;
      const bool told = sensor->process_use().has_value();
      own_gpu_known_ = told && (own_gpu_known_ || gpu_before_.empty());
      gpu_before_.push_back(0);
    }
    sample(false);
    seen_ = state_.host;
    look_at_gpus();
    if (own_gpu_known_) own_gpu_j_.provenance = Provenance::kModelled;
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
    sample(false);
    return {state_.host, own_gpu_j_};
  }

  Charge charge(const Snapshot& from, Usage& usage) override;

  std::vector<PowerSample> samples(const Snapshot& from) override {
    const std::lock_guard lock(mutex_);
    std::vector<PowerSample> found;
    double age = state_.host.wall_s - from.host.wall_s;
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
    while (!wake_.wait_for(lock, interval, [this] { return stop_; })) sample(true);
  }

  // Brings the state up to now, by reading the host or, if `due` and somebody has just done so, from what
  // they read. Called with the lock held.
  void sample(bool due) {
    const auto step = [&](HostState& state) {
      const double now = frugal::wall_seconds();
      const double elapsed = now - state.last_wall_s;
      const double gap = std::max(kGap_s, 3 * options_.sample_interval_s);
      if (state.last_wall_s == 0 || elapsed < 0 || (keeper_->shared() && elapsed > gap)) {
        begin(state, now);
        state_ = state;
        return true;
      }
      if (due && elapsed < 0.9 * options_.sample_interval_s) {
        state_ = state;
        return false;
      }
      advance(state, now, elapsed);
      state_ = state;
      return elapsed >= kShortest_s;
    };
    if (!keeper_->update(step)) {
      // The holder of the lock is stopped: on our own from here on.
      keeper_ = private_state(state_);
      keeper_->update(step);
    }
    look_back();
  }

  // Counts from now on: energies stay, readings are taken anew.
  void begin(HostState& state, double now) {
    HostEnergy& host = state.host;
    host.cpu_j.provenance = n_cpu_sensors_ > 0 ? Provenance::kMeasured : Provenance::kModelled;
    if (source_.memory_counter) host.memory_j.provenance = Provenance::kMeasured;
    if (source_.gpu_counter) host.gpu_j.provenance = Provenance::kMeasured;
    state.last_wall_s = now;
    for (size_t i = 0; i < sensors_.size(); ++i) {
      sensors_[i]->state() = {};
      sensors_[i]->state().total_j = state.sensors[i].total_j;
      const auto first = sensors_[i]->update(0);
      static_cast<void>(first);  // a counter that cannot be read yet starts with its first good read
      state.sensors[i] = sensors_[i]->state();
    }
    const auto busy = read_busy_seconds(options_.procfs);
    if (busy.ok()) state.last_busy_s = *busy;
    state.n_cpus = 0;
  }

  // Adds the interval since the last sample.
  void advance(HostState& state, double now, double elapsed) {
    state.last_wall_s = now;
    const auto busy_now = read_busy_seconds(options_.procfs);
    double busy = 0;
    if (busy_now.ok()) {
      busy = std::max(*busy_now - state.last_busy_s, 0.0);
      state.last_busy_s = *busy_now;
    }
    const Estimate modelled = modelled_watts(state, elapsed, busy);
    HostEnergy& host = state.host;
    double model_share = n_cpu_sensors_ == 0 ? 1 : 0;  // of this interval's processors
    for (size_t i = 0; i < sensors_.size(); ++i) {
      sensors_[i]->state() = state.sensors[i];
      add_sensor(*sensors_[i], host, elapsed, modelled, model_share);
      state.sensors[i] = sensors_[i]->state();
    }
    if (n_cpu_sensors_ == 0) {
      add(host.cpu_j, modelled.value * elapsed, modelled.low * elapsed, modelled.high * elapsed);
    }
    host.modelled_s += model_share * elapsed;
    host.measured_s += (1 - model_share) * elapsed;
    host.busy_s += busy;
    host.wall_s += elapsed;
  }

  Estimate modelled_watts(HostState& state, double elapsed, double busy) {
    // Too short for its ticks: as the last full interval.
    if (elapsed < kShortest_s && state.model_w[0] > 0) {
      return {state.model_w[0], state.model_w[1], state.model_w[2], Provenance::kModelled};
    }
    const double u = elapsed > 0 ? std::min(1.0, busy / (elapsed * source_.threads)) : 0;
    auto frequency = read_frequency_share(options_.sysfs);
    if (frequency) {
      // Only where frequencies are known does it matter how the load is spread.
      const auto by_cpu = read_busy_by_cpu(options_.procfs);
      if (by_cpu.ok() && by_cpu->size() <= kMaxCpus) {
        const std::vector<double> before(state.busy_by_cpu.begin(), state.busy_by_cpu.begin() + state.n_cpus);
        frequency->packing = std::max(u, packing_of(before, *by_cpu, elapsed));
        std::copy(by_cpu->begin(), by_cpu->end(), state.busy_by_cpu.begin());
        state.n_cpus = static_cast<int64_t>(by_cpu->size());
      }
    }
    const Estimate watts = model_.watts(u, frequency);
    if (elapsed >= kShortest_s) {
      state.model_w[0] = watts.value;
      state.model_w[1] = watts.low;
      state.model_w[2] = watts.high;
    }
    return watts;
  }

  void add_sensor(EnergySensor& sensor, HostEnergy& host, double elapsed, const Estimate& modelled,
                  double& model_share) {
    const Component component = sensor.component();
    Estimate& sum = component == Component::kCpu      ? host.cpu_j
                    : component == Component::kMemory ? host.memory_j
                                                      : host.gpu_j;
    SensorState& kept = sensor.state();
    const double covered_s = kept.silent_s + elapsed;
    double unknown_s = 0;  // to be filled by the model
    if (kept.dead == 0) {
      const auto joules = sensor.update(elapsed);
      if (joules.ok()) {
        kept.silent_s = 0;
        kept.total_j += *joules;
        add(sum, *joules, *joules * (1 - kCounterError), *joules * (1 + kCounterError));
        return;
      }
      if (joules.error().code ==
          ErrorCode::kUnavailable) {  // a reset: this interval is lost, the next is sound
        kept.silent_s = 0;
        unknown_s = covered_s;
      } else if (joules.error().code == ErrorCode::kNotFound || covered_s > kSensorPatience_s) {
        kept.dead = 1;
        unknown_s = covered_s;
      } else {
        kept.silent_s = covered_s;
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

  // What passed since the last look of this process, whoever read it.
  void look_back() {
    const HostEnergy& now = state_.host;
    const double elapsed = now.wall_s - seen_.wall_s;
    if (elapsed < kShortest_s) return;
    Estimate power = difference(now.cpu_j, seen_.cpu_j).scaled(1 / elapsed);
    power.provenance = now.modelled_s > seen_.modelled_s ? Provenance::kModelled : Provenance::kMeasured;
    const double u = std::min(1.0, (now.busy_s - seen_.busy_s) / (elapsed * source_.threads));
    samples_.push_back({clock_seconds(CLOCK_REALTIME), elapsed, power, u});
    if (samples_.size() >= kMaxSamples) thin_out();
    seen_ = now;
    look_at_gpus();
  }

  // Neighbours become one: a run of any length fits.
  void thin_out() {
    std::deque<PowerSample> fewer;
    for (size_t i = 0; i + 1 < samples_.size(); i += 2) {
      const PowerSample &a = samples_[i], &b = samples_[i + 1];
      const double seconds = a.seconds + b.seconds;
      Estimate watts = a.watts.scaled(a.seconds / seconds);
      watts += b.watts.scaled(b.seconds / seconds);
      fewer.push_back(
          {b.unix_s, seconds, watts, (a.seconds * a.busy_share + b.seconds * b.busy_share) / seconds});
    }
    if (samples_.size() % 2 == 1) fewer.push_back(samples_.back());
    samples_ = std::move(fewer);
  }

  // Each GPU's energy since the last look goes to processes by their use of it. An idle GPU's goes to nobody.
  void look_at_gpus() {
    if (!own_gpu_known_) return;
    size_t gpu = 0;
    for (size_t i = 0; i < sensors_.size(); ++i) {
      if (sensors_[i]->component() != Component::kGpu) continue;
      const double total = state_.sensors[i].total_j;
      const double joules = std::max(0.0, total - std::exchange(gpu_before_[gpu++], total));
      const auto uses = sensors_[i]->process_use();
      double own = 0, all = 0;
      for (const ProcessUse& one : uses.value_or(std::vector<ProcessUse>{})) {
        all += one.use;
        if (is_own(one.pid, options_.procfs, pids_)) own += one.use;
      }
      const double part = all > 0 ? joules * own / all : 0;
      add(own_gpu_j_, part, part * (1 - kCounterError), part * (1 + kCounterError));
    }
    if (pids_.size() > 10000) pids_.clear();
  }

  const MeterOptions options_;
  const SourceInfo source_;
  const PowerModel model_;

  std::mutex mutex_;
  std::condition_variable wake_;
  bool stop_ = false;
  Sensors sensors_;
  std::unique_ptr<StateKeeper> keeper_;
  int n_cpu_sensors_ = 0;
  HostState state_;  // as of the last sample
  HostEnergy seen_;  // as of the last look back
  std::deque<PowerSample> samples_;
  bool own_gpu_known_ = false;
  Estimate own_gpu_j_;
  std::vector<double> gpu_before_;  // total_j of each GPU at the last look
  std::map<int64_t, bool> pids_;
  std::thread sampler_;
};

Charge HostMeter::charge(const Snapshot& from, Usage& usage) {
  const auto [now, own_gpu_j] = snapshot();
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
  if (charge.gpu_j.known() && own_gpu_j.known() && from.own_gpu_j.known()) {
    charge.gpu_j = difference(own_gpu_j, from.own_gpu_j);
    charge.gpu_is_own = true;
  }
  if (charge.gpu_j.known()) charge.total_j += charge.gpu_j;

  charge.total_j = charge.total_j.scaled(options_.pue);
  Estimate grams = Estimate::unknown();
  if (options_.intensity_over) {
    const double end = clock_seconds(CLOCK_REALTIME);
    grams = options_.intensity_over(end - wall, end);
  }
  if (!grams.known()) grams = options_.intensity.g_per_kwh;
  if (grams.known()) {
    constexpr double kJoulesPerKwh = 3.6e6;
    charge.carbon_gco2e = {charge.total_j.value * grams.value / kJoulesPerKwh,
                           charge.total_j.low * grams.low / kJoulesPerKwh,
                           charge.total_j.high * grams.high / kJoulesPerKwh,
                           std::max(charge.total_j.provenance, grams.provenance)};
    charge.g_per_kwh = grams;
  }
  usage.energy_j = charge.total_j;
  usage.carbon_gco2e = charge.carbon_gco2e;
  return charge;
}

}  // namespace

std::vector<PowerStretch> power_over_time(const std::vector<PowerSample>& samples, double share) {
  constexpr size_t kMost = 60, kFew = 10;
  std::vector<PowerStretch> power;
  if (samples.size() < kFew) return power;
  const size_t each = (samples.size() + kMost - 1) / kMost;
  for (size_t i = 0; i < samples.size(); i += each) {
    PowerStretch stretch;
    double joules = 0;
    for (size_t j = i; j < std::min(i + each, samples.size()); ++j) {
      stretch.seconds += samples[j].seconds;
      joules += share * samples[j].watts.value * samples[j].seconds;
    }
    stretch.begin_unix_s = samples[i].unix_s - samples[i].seconds;
    stretch.watts = joules / stretch.seconds;
    power.push_back(stretch);
  }
  return power;
}

std::unique_ptr<PowerMeter> make_host_meter(MeterOptions options, SourceInfo source, PowerModel model,
                                            Sensors sensors, std::unique_ptr<StateKeeper> state) {
  return std::make_unique<HostMeter>(std::move(options), std::move(source), std::move(model),
                                     std::move(sensors), std::move(state));
}

}  // namespace frugal::meter
