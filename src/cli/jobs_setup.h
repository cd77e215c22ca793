// What the jobs commands share: the queue's place, times as people write them, the carbon data that plans
// stand on, and savings in words.
#pragma once

#include <memory>
#include <optional>
#include <string>

#include "frugal/result.h"
#include "jobs/outlook.h"
#include "jobs/queue.h"

namespace CLI {
class App;
}

namespace frugal::cli {

struct JobsSetup {
  std::string queue;  // empty: $FRUGAL_QUEUE, else $XDG_STATE_HOME/frugal/jobs.db
  std::string carbon_file, region;
  std::string nats, nats_credentials, host;  // of a pool of hosts (cli/jobs_pool.h); no nats: this host alone
  double lease_s = 0;                        // 0: as the pool has it

  std::string path() const;
};
std::shared_ptr<JobsSetup> add_jobs_options(CLI::App& app, bool carbon);

// "2h", "1h30m", "90 min", "45s", "1.5h", "2d"; a bare number is minutes. kInvalidArgument.
Result<double> parse_duration(const std::string& text);

// "18:00" (the next time that the clock says so), "2026-11-25 18:00" (both local), the same with a zone
// ("...T18:00Z"), or from now on: "6h", "+6h". kInvalidArgument.
Result<double> parse_deadline(const std::string& text, double now_unix_s);

// "Tue 18:00", local.
std::string local_time(double unix_s);

// The data that a plan stands on: of the options, else of the newest job that names some. Cached: a file is
// read again when it changes, and the outlook made anew each hour.
class CarbonData {
 public:
  CarbonData(std::string file, std::string region) : file_(std::move(file)), region_(std::move(region)) {}

  bool named() const { return !file_.empty(); }
  // Nothing without a file. kNotFound, kCorrupt, kInvalidArgument: of the file.
  Result<std::optional<meter::IntensitySeries>> series();
  Result<std::optional<jobs::Outlook>> outlook(double now_unix_s, size_t n_hours);

 private:
  std::string file_, region_;
  std::optional<meter::IntensitySeries> series_;
  int64_t stamp_ = -1;
  std::optional<jobs::Outlook> outlook_;
  double outlook_hour_ = -1;
  size_t outlook_n_ = 0;
};
CarbonData carbon_data(const JobsSetup& setup, const std::vector<jobs::Job>& jobs);

// What a job that ran saved against running at once, by what was recorded since.
struct Saving {
  Estimate actual_g, at_once_g;  // g/kWh; unknown: no data of that time
  double saved_g = 0;            // gCO2e, when both are known and the energy is
  double percent = 0;
};
Saving saving_of(const jobs::Job& job, const std::vector<jobs::Run>& runs,
                 const meter::IntensitySeries* series, double now_unix_s);

}  // namespace frugal::cli
