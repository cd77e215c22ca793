// The jobs commands over several hosts: options, and the two ends that hold leases: the runner for jobs that
// wait here, and the keeper of each for one that runs.
#pragma once

#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "cli/jobs_setup.h"
#include "jobs/hosts/pool.h"

namespace frugal::cli {

// Adds --nats and what belongs to it.
void add_pool_options(CLI::App& app, JobsSetup& setup, bool host);

jobs::PoolOptions pool_options(const JobsSetup& setup);

// A new file for the output of a job, beside the queue.
std::string job_log(const std::string& queue_path, double now_unix_s);

// The runner's side. Survives the server: while it is away, what is here runs on, and what waits is given up
// when its lease has run out.
class PoolLink {
 public:
  using Say = std::function<void(const std::string&)>;
  PoolLink(const JobsSetup& setup, int threads, Say say)
      : setup_(setup), threads_(threads), say_(std::move(say)) {}

  // Settles what is over, extends leases, takes jobs that this host's threads can bear.
  void look(jobs::Queue& queue, double now_unix_s);

 private:
  Status connect();
  void hold(jobs::Queue& queue);
  Status take_jobs(jobs::Queue& queue, double now_unix_s);

  const JobsSetup setup_;
  const int threads_;
  const Say say_;
  std::unique_ptr<jobs::Pool> pool_;
  double tried_s_ = -1e9;
  std::map<int64_t, double> extended_s_;  // by job
  std::string last_fault_;
};

// The keeper's side: begins by telling the pool that the job runs here. While it lives it extends the lease;
// a job that was cancelled or is another host's now is ended.
class JobLease {
 public:
  // False: the job is not this host's (any more).
  static Result<std::unique_ptr<JobLease>> begin(const JobsSetup& setup, const jobs::Job& job);
  ~JobLease();

  double lease_s() const { return pool_->lease_s(); }

  // Tells how it ended. A pool that cannot be reached is told by the runner, later.
  void end(jobs::Queue& queue, const jobs::Job& job);

 private:
  JobLease() = default;
  void extend_until_stopped();

  std::string queue_path_;
  jobs::Job job_;
  std::unique_ptr<jobs::Pool> pool_;
  std::mutex mutex_;  // of the pool
  std::condition_variable wake_;
  bool stop_ = false;
  std::thread thread_;
};

}  // namespace frugal::cli
