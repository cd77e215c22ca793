// The options of the meter, the same for every command that meters what it does:
//
//   auto setup = add_meter_options(app);                 // while declaring options
//   FRUGAL_TRY(auto meter, open_meter(*setup));          // in the action
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "frugal/meter.h"

namespace CLI {
class App;
}

namespace frugal::cli {

struct MeterSetup {
  double tdp_w = 0;
  int host_threads = 0;
  bool no_counters = false, alone = false;
  double interval_s = 1;
  std::string region;     // country, or the place within carbon_file
  double intensity = -1;  // g/kWh; below 0: not given
  std::string carbon_file;
  double pue = 1;
  double water_l_per_kwh = 0;
};

// Which ledger, and what its entries are filed under.
struct LedgerSetup {
  std::string path;  // empty: ledger_path()
  bool off = false;
  std::string project;
};
std::shared_ptr<LedgerSetup> add_ledger_options(CLI::App& app);

// Where the user's ledger and queue are kept: $XDG_STATE_HOME/frugal.
std::string state_folder();

// $FRUGAL_LEDGER, else $XDG_STATE_HOME/frugal/ledger.db.
std::string ledger_path();

// Writes one entry, unless the ledger is off. The place (region, intensity, source) is filled in from the
// meter.
Status write_to_ledger(const LedgerSetup& setup, const meter::PowerMeter& meter, meter::LedgerEntry entry);

// An entry of work that began at `from`, with what it was charged and its power over time. A ledger that
// cannot be written costs a warning on stderr, never the work.
void record(const LedgerSetup& setup, meter::PowerMeter& meter, const meter::Snapshot& from,
            const meter::Charge& charge, meter::LedgerEntry entry);

// Where this user's meters meet to sample the host as one: $XDG_RUNTIME_DIR/frugal, else /dev/shm/frugal-UID.
std::string sampler_folder();

std::shared_ptr<MeterSetup> add_meter_options(CLI::App& app);

// Resolves tables and calibration in the user's folders, and opens the meter.
Result<std::unique_ptr<meter::PowerMeter>> open_meter(const MeterSetup& setup);

// Path of the file that `frugal meter calibrate` writes: $XDG_CONFIG_HOME/frugal/meter.json.
std::string calibration_path();

// A file of the package data that scripts/bootstrap.py unpacks (cpu_power.csv, global_energy_mix.json); empty
// when it is not there.
std::string package_data(const std::string& name);

// Calibration points in a file that `frugal meter calibrate` wrote. kNotFound, kCorrupt.
Result<std::vector<meter::CalibrationPoint>> read_calibration(const std::string& path);

// "12.3 J (8.1 to 17.9, modelled)"
std::string estimate_text(const Estimate& estimate, const char* unit);

}  // namespace frugal::cli
