// The queue of jobs: one SQLite file (docs/formats/jobs.md). Whatever was acknowledged survives a crash and a
// reboot. A job is executed only by the process whose claim() on it succeeded, so that no job runs twice.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "frugal/jobs.h"
#include "frugal/usage.h"
#include "jobs/process.h"

namespace frugal::meter {
class Database;
}

namespace frugal::jobs {

enum class JobState {
  kWaiting,      // to be started
  kRunning,      // a keeper process executes it
  kPaused,       // stopped by its keeper, or between two runs of a job with checkpoints
  kDone,         // ended with 0
  kFailed,       // ended otherwise, or could not be started
  kCancelled,    // by the user
  kInterrupted,  // its keeper died with it (a crash, a reboot) and it may not be started again by itself
};
std::string_view job_state_name(JobState state);
inline bool is_over(JobState state) { return state >= JobState::kDone; }

// What the runner wants of the keeper of a job.
enum class Wish { kRun, kPause, kCancel };

struct Job {
  int64_t id = 0;
  std::vector<std::string> command;
  std::string folder;   // to run in
  std::string log;      // file that its output goes to
  std::string project;  // for the ledger
  double submitted_unix_s = 0, deadline_unix_s = 0;
  double takes_s = 0;  // running time with one worker
  bool interruptible = false;
  bool restartable = false;         // may be started again after its keeper died with it
  std::string checkpoint;           // shell command that makes it save and exit; empty: paused by signals
  int threads = 1;                  // of the host, while it runs
  std::vector<double> rates;        // throughput with 1, 2, ... workers; empty: of fixed width
  std::string carbon_file, region;  // that it was planned with
  double expected_g = 0,
         at_once_g = 0;  // g/kWh over its runs and when started at once, by the forecast; 0: none

  JobState state = JobState::kWaiting;
  Wish wish = Wish::kRun;
  int workers = 1;
  ProcessId keeper;
  double started_unix_s = 0, ended_unix_s = 0;
  double ran_s = 0;  // work done, in seconds of one worker
  int exit_code = 0;
  std::string error;  // why it failed, in words; empty: nothing to say
  double energy_j = 0, energy_low_j = 0, energy_high_j = 0;
  int energy_from = 0;  // Provenance
  // Of a job that a pool of hosts gave (src/jobs/hosts): its id there, and the lease; no lease: settled with
  // the pool.
  std::string pool_url, pool_id, pool_lease;

  Estimate energy() const {
    return {energy_j, energy_low_j, energy_high_j, static_cast<Provenance>(energy_from)};
  }
};

// kInvalidArgument: why it cannot be run.
Status check_job(const Job& job);

// One connection: one thread at a time. Any number of processes may have one.
class Queue {
 public:
  // Makes the file and its folder when missing. Errors as meter::Database::open().
  static Result<std::unique_ptr<Queue>> open(const std::string& path);
  ~Queue();

  // Checks the job (kInvalidArgument), stores it as waiting and returns its id.
  Result<int64_t> submit(const Job& job);

  // By id; without `over` only those that wait, run or are paused.
  Result<std::vector<Job>> jobs(bool over);
  Result<Job> job(int64_t id);  // kNotFound

  // Takes a waiting job for `keeper`. False: it is no longer there to be taken.
  Result<bool> claim(int64_t id, const ProcessId& keeper, double now_unix_s);

  // The keeper's reports. False: the job is not (or no longer) this keeper's, which must then stop it.
  Result<bool> report(int64_t id, const ProcessId& keeper, JobState state, double ran_s);
  Result<bool> finish(const Job& job);  // by job.keeper; reads state, times, exit code, error and energy

  // Runs that took place, for the saving afterwards.
  Status add_run(int64_t id, const Run& run);
  Result<std::vector<Run>> runs(int64_t id);

  // The runner's side.
  Status wish(int64_t id, Wish wish, int workers);
  // Jobs whose keeper is gone: back to waiting if they can be started again, else interrupted. Kills what
  // they left.
  Result<std::vector<Job>> recover(double now_unix_s);

  // Jobs of a pool that have not been settled with it.
  Result<std::vector<Job>> pooled();
  Status set_lease(int64_t id, const std::string& lease);

  // The user's side. False: over already.
  Result<bool> cancel(int64_t id, double now_unix_s);
  // A job that is over (not done) waits again. False: it is not over, or it is done.
  Result<bool> retry(int64_t id);

 private:
  explicit Queue(std::unique_ptr<meter::Database> database);
  std::unique_ptr<meter::Database> database_;
};

}  // namespace frugal::jobs
