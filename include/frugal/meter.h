// The meter: joules and gCO2e for a piece of work, each with a 90 % band and its provenance.
//
//   FRUGAL_TRY(auto meter, meter::PowerMeter::open({}));
//   const meter::Snapshot start = meter->snapshot();
//   ... work, counted in `usage` (CPU- and wall-seconds, bytes held) ...
//   meter->charge(start, usage);          // fills usage.energy_j and usage.carbon_gco2e
//
// The meter integrates the energy of the whole host; a run is charged its share of the host's CPU time, so
// the runs of a host, its other load included, sum to the host. Without counters a fitted load model stands
// in, and the figure says so. Carbon is a number only when an intensity is configured: no place is ever
// guessed.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "frugal/result.h"
#include "frugal/usage.h"

namespace frugal::meter {

// Grams of CO2 equivalent per kWh, and where the number is from.
struct CarbonIntensity {
  Estimate g_per_kwh;  // unknown: no carbon figures
  std::string region;  // "ES", "US-CAL-CISO"; empty when only a number was given
  std::string source;  // "given by the user", a file's name, "annual average 2023"
};

// A point of this host's own power curve, from a wall meter, a RAPL host of the same kind, or a data sheet.
struct CalibrationPoint {
  double load = 0;   // share of the host's threads that are busy, in [0, 1]
  double watts = 0;  // of the processor packages
  // Mean frequency at that load, and the least frequency, over the greatest; 0: not known.
  double frequency = 0, least_frequency = 0;
};

struct MeterOptions {
  std::string sysfs = "/sys";  // another root for tests
  std::string procfs = "/proc";
  std::string cpu_table;  // CSV file `Name,TDP` (watts); empty: none
  double tdp_w = 0;       // of one processor package; 0: look its name up in cpu_table
  int host_threads =
      0;  // threads of one package of the physical host that a virtual machine shares; 0: not known
  std::vector<CalibrationPoint> calibration;  // two or more points replace TDP and idle share
  bool use_counters = true;                   // false: the load model even where counters are readable
  double sample_interval_s = 1;  // of the sampler thread; 0: none, the host is read at snapshots only
  CarbonIntensity intensity;
  // The mean over a time (Unix seconds), for runs of hours; unknown: `intensity` holds. Empty: always.
  std::function<Estimate(double from_unix_s, double to_unix_s)> intensity_over;
  // A folder in memory (/dev/shm, $XDG_RUNTIME_DIR) through which all meters of this user sample the host as
  // one; empty: on its own. Needs a sample interval, and counters that another process can read on.
  std::string share_folder;
  std::string nvml_library;    // empty: the system's, for the system's /sys
  double pue = 1;              // power usage effectiveness of the room: energy of the meter x pue, >= 1
  double water_l_per_kwh = 0;  // of the room and the grid; 0: not reported
};

enum class SourceKind {
  kRapl,       // powercap counters
  kPerf,       // perf energy events
  kHwmon,      // energy or power sensors
  kLoadModel,  // fitted curve over load and frequency, scaled by TDP or calibration
  kThreads,    // the same curve over typical watts per thread: the processor is not known by name
};
std::string_view source_kind_name(SourceKind kind);

// What the host offers, and what is missing.
struct SourceInfo {
  SourceKind kind = SourceKind::kThreads;
  std::string description;         // "powercap: package-0, package-1, dram"
  std::vector<std::string> notes;  // better sources that are not there, why, and what enables them
  bool memory_counter = false;     // a dram domain is read
  bool gpu_counter = false;        // a GPU tells its energy or power
  bool shared = false;             // with other meters of this user, by MeterOptions::share_folder
  std::string cpu_name;
  int sockets = 1;
  int threads = 1;  // threads that the operating system sees
  bool virtual_machine = false;
  double max_watts = 0;  // that the load model gives this host at full load
  double idle_watts = 0;
};

// Energy of the host by component, since some moment before now. Cumulative; take differences.
struct HostEnergy {
  Estimate cpu_j, memory_j, gpu_j;  // memory and gpu unknown where nothing reads them
  double modelled_s = 0;            // time for which the CPU figure is from the model
  double measured_s = 0;            // time for which it is from counters
  double busy_s = 0;                // CPU-seconds spent by anyone
  double wall_s = 0;
};

struct Snapshot {
  HostEnergy host;
  Estimate own_gpu_j;  // of the GPUs, for this process and its descendants; unknown where GPUs do not tell
};

// What a run was charged.
struct Charge {
  Estimate cpu_j, memory_j, gpu_j;
  Estimate total_j;  // sum of the known components, pue included
  Estimate carbon_gco2e;
  Estimate g_per_kwh;       // that it was reckoned with
  Estimate host_cpu_j;      // of the whole host over the same time
  double share = 0;         // of the host's busy CPU time
  bool gpu_is_own = false;  // gpu_j is of this process and its descendants; false: of the whole devices
};

// The host's processors between two samples.
struct PowerSample {
  double unix_s = 0;   // at its end
  double seconds = 0;  // its length
  Estimate watts;
  double busy_share = 0;  // of the host's threads
};

// Thread-safe. One for a process: it owns a thread that wakes once per sample interval, and samples the host
// unless another meter that it shares with has done so.
class PowerMeter {
 public:
  // Never fails for lack of counters; kInvalidArgument for options that make no sense (message says which),
  // kNotFound and kCorrupt for a named CPU table.
  static Result<std::unique_ptr<PowerMeter>> open(const MeterOptions& options);
  virtual ~PowerMeter() = default;

  virtual const SourceInfo& source() const = 0;
  virtual const MeterOptions& options() const = 0;

  // Reads the host now: some tens of microseconds.
  virtual Snapshot snapshot() = 0;

  // Charges the work since `from`: reads usage.cpu_seconds, wall_seconds and bytes_held, adds nothing, sets
  // usage.energy_j and usage.carbon_gco2e.
  virtual Charge charge(const Snapshot& from, Usage& usage) = 0;

  // The host's power since `from`, oldest first: at most 4,096 samples, the older ones over longer stretches,
  // fewer when the meter is younger.
  virtual std::vector<PowerSample> samples(const Snapshot& from) = 0;
};

// Mean power over a stretch of a run.
struct PowerStretch {
  double begin_unix_s = 0, seconds = 0, watts = 0;
};

// A run's power over time from samples of the host, of which it had `share` of the processors' time: at most
// 60 stretches; none for runs of few samples.
std::vector<PowerStretch> power_over_time(const std::vector<PowerSample>& samples, double share);

// A line of the ledger: one run, request or job, and what it cost.
struct LedgerEntry {
  int64_t id = 0;     // given by the ledger
  double unix_s = 0;  // end of the work
  std::string kind;   // "run", "dnn", "cascade", "command", "job"
  std::string name;   // the command line, the request's id
  std::string project;
  std::string model;
  std::string unit;  // of `units`: "token", "request"; the functional unit of the SCI
  double units = 0;
  Usage usage;
  Estimate cpu_j, memory_j, gpu_j;
  std::string source;  // source_kind_name of the meter
  std::string region;  // empty: unknown
  Estimate g_per_kwh;
  int exit_code = 0;
  double average_watts = 0, peak_watts = 0;  // of the run; 0: not sampled
  std::vector<PowerStretch> power;  // over a run of many samples, oldest first; empty: the average tells all
};

struct LedgerFilter {
  double since_unix_s = 0;
  double until_unix_s = 1e18;
  std::string kind, project, model;  // empty: any
  int64_t newest = 1000000;          // at most this many, the newest
};

struct LedgerOptions {
  int64_t max_entries = 1000000;  // the oldest go when there are more; at least 1,000
};

// Usage of everything that ran, in one SQLite file (docs/formats/ledger.md). Any number of processes may
// write and read at once; an entry that append() acknowledged survives a crash. One thread at a time for each
// object.
class Ledger {
 public:
  // Makes the file and its folder when missing. kCorrupt: damaged or of another program; kUnsupported: newer
  // version; kPermission, kIo.
  static Result<std::unique_ptr<Ledger>> open(const std::string& path, const LedgerOptions& options = {});
  virtual ~Ledger() = default;

  // Returns the entry's id. A full disk is kIo, and the ledger stays as it was.
  virtual Result<int64_t> append(const LedgerEntry& entry) = 0;
  // Oldest first.
  virtual Result<std::vector<LedgerEntry>> read(const LedgerFilter& filter = {}) = 0;
};

}  // namespace frugal::meter
