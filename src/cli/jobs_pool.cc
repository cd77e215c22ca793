#include "cli/jobs_pool.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <filesystem>

#include "base/clock.h"
#include "base/text.h"
#include "jobs/schedule.h"

namespace frugal::cli {
namespace {

constexpr double kReconnect_s = 5;
constexpr int kTakenAtOnce = 8;

// Whether all deadlines can be kept with so many threads: up to each, the work that is due fits. A tenth is
// left free.
bool can_bear(const std::vector<jobs::Job>& jobs, int threads, double now) {
  for (const jobs::Job& limit : jobs) {
    double work = 0;
    for (const jobs::Job& job : jobs) {
      if (job.deadline_unix_s <= limit.deadline_unix_s)
        work += jobs::left_s(job) * std::min(job.threads, threads);
    }
    if (work > 0.9 * threads * (limit.deadline_unix_s - now)) return false;
  }
  return true;
}

// Runs that cannot be read cost the saving in lists, and no more.
std::vector<jobs::Run> runs_of(jobs::Queue& queue, int64_t id) {
  auto runs = queue.runs(id);
  return runs.ok() ? std::move(runs).value() : std::vector<jobs::Run>{};
}

}  // namespace

void add_pool_options(CLI::App& app, JobsSetup& setup, bool host) {
  app.add_option("--nats", setup.nats,
                 "NATS server with JetStream whose work queue several hosts share (nats://127.0.0.1:4222)")
      ->group("Several hosts");
  app.add_option("--nats-creds", setup.nats_credentials, "credentials file of NATS")->group("Several hosts");
  if (!host) return;
  app.add_option("--host-name", setup.host, "this host's name in lists (default: its own)")
      ->group("Several hosts");
  app.add_option(
         "--lease", setup.lease_s,
         "seconds without a sign of life after which others take a host's jobs; the first runner fixes it")
      ->check(CLI::Range(1.0, 86400.0))
      ->group("Several hosts");
}

jobs::PoolOptions pool_options(const JobsSetup& setup) {
  jobs::PoolOptions options;
  options.url = setup.nats;
  options.credentials = setup.nats_credentials;
  options.lease_s = setup.lease_s;
  options.host = setup.host;
  if (options.host.empty()) {
    char name[256] = "host";
    ::gethostname(name, sizeof name - 1);
    options.host = utf8_sanitized(name);
  }
  return options;
}

std::string job_log(const std::string& queue_path, double now) {
  std::error_code ignored;
  const std::string folder =
      std::filesystem::absolute(queue_path + ".logs", ignored).lexically_normal().string();
  std::filesystem::create_directories(folder, ignored);
  static int serial = 0;
  return strf("%s/%.0f-%d-%d.log", folder.c_str(), now * 1000, static_cast<int>(::getpid()), serial++);
}

Status PoolLink::connect() {
  if (pool_ != nullptr) return {};
  if (wall_seconds() - tried_s_ < kReconnect_s) return {ErrorCode::kUnavailable, last_fault_};
  tried_s_ = wall_seconds();
  FRUGAL_TRY(pool_, jobs::Pool::open(pool_options(setup_)));
  return {};
}

void PoolLink::look(jobs::Queue& queue, double now) {
  Status status = connect();
  hold(queue);
  if (status.ok()) status = take_jobs(queue, now);
  const std::string fault = status.ok() ? "" : status.error().message;
  if (fault != last_fault_) say_(fault.empty() ? "the pool of jobs is there again" : "warning: " + fault);
  last_fault_ = fault;
}

void PoolLink::hold(jobs::Queue& queue) {
  const auto held = queue.pooled();
  if (!held.ok()) return say_("warning: " + held.error().message);
  for (const jobs::Job& job : *held) {
    const auto let_go = [&](const std::string& why) {
      const auto cancelled = queue.cancel(job.id, clock_seconds(CLOCK_REALTIME));
      const Status settled = queue.set_lease(job.id, "");
      if (cancelled.ok() && settled.ok()) say_(strf("job %lld: ", static_cast<long long>(job.id)) + why);
    };
    if (jobs::is_over(job.state)) {
      if (pool_ == nullptr) continue;
      const auto told = pool_->tell(job.pool_id, job.pool_lease, job, runs_of(queue, job.id));
      if (told.ok() || told.error().code == ErrorCode::kNotFound) {
        const Status settled = queue.set_lease(job.id, "");
        static_cast<void>(settled);  // told once more next time
      }
      extended_s_.erase(job.id);
      continue;
    }
    if (job.state != jobs::JobState::kWaiting) continue;  // its keeper holds it
    const double lease_s = pool_ != nullptr ? pool_->lease_s() : setup_.lease_s;
    const auto last = extended_s_.try_emplace(job.id, wall_seconds() - lease_s / 2).first;
    const double age = wall_seconds() - last->second;
    if (age < lease_s / 3) continue;
    const auto got = pool_ != nullptr ? pool_->extend(job.pool_id, job.pool_lease)
                                      : Result<jobs::Pool::Held>(Error{ErrorCode::kUnavailable, ""});
    if (got.ok() && *got == jobs::Pool::Held::kYes) {
      last->second = wall_seconds();
    } else if (got.ok() && *got == jobs::Pool::Held::kCancel) {
      const auto cancelled = queue.cancel(job.id, clock_seconds(CLOCK_REALTIME));
      if (cancelled.ok()) say_(strf("job %lld is cancelled", static_cast<long long>(job.id)));
    } else if (got.ok() || got.error().code == ErrorCode::kNotFound) {
      let_go("another host has it");
    } else if (age > lease_s) {
      let_go("given up, as the pool cannot be reached and others will be offered it");
    }
  }
}

Status PoolLink::take_jobs(jobs::Queue& queue, double now) {
  for (int taken = 0; taken < kTakenAtOnce; ++taken) {
    FRUGAL_TRY(const auto offer, pool_->next());
    if (!offer) return {};
    FRUGAL_TRY(std::vector<jobs::Job> active, queue.jobs(false));
    int64_t here = 0;  // its number in this queue, if it is here already
    for (const jobs::Job& known : active) here = known.pool_id == offer->pooled.id ? known.id : here;
    jobs::Job job = offer->pooled.job;
    if (here == 0) {
      const bool hopeless = !can_bear({job}, threads_, now);  // late wherever it runs: better now
      active.push_back(job);
      if (!hopeless && !can_bear(active, threads_, now)) return pool_->leave(*offer, 5);
    }
    FRUGAL_TRY(const bool ours, pool_->take(*offer));
    if (!ours) continue;
    if (here != 0) {
      // Its lease ran out while no runner was here to extend it.
      FRUGAL_TRY_STATUS(queue.set_lease(here, offer->lease));
      continue;
    }
    job.log = job_log(setup_.path(), now);
    job.pool_url = setup_.nats;
    job.pool_id = offer->pooled.id;
    job.pool_lease = offer->lease;
    FRUGAL_TRY(const int64_t id, queue.submit(job));
    extended_s_[id] = wall_seconds();
    say_(strf("job %lld is %s of the pool", static_cast<long long>(id), job.pool_id.c_str()));
  }
  return {};
}

Result<std::unique_ptr<JobLease>> JobLease::begin(const JobsSetup& setup, const jobs::Job& job) {
  JobsSetup mine = setup;
  mine.nats = job.pool_url;
  auto lease = std::unique_ptr<JobLease>(new JobLease());
  lease->queue_path_ = setup.path();
  lease->job_ = job;
  FRUGAL_TRY(lease->pool_, jobs::Pool::open(pool_options(mine)));
  jobs::Job running = job;
  running.state = jobs::JobState::kRunning;
  running.started_unix_s = clock_seconds(CLOCK_REALTIME);
  FRUGAL_TRY(const bool ours, lease->pool_->tell(job.pool_id, job.pool_lease, running));
  if (!ours) return {ErrorCode::kCancelled, "another host has job " + job.pool_id + " of the pool"};
  lease->thread_ = std::thread([raw = lease.get()] { raw->extend_until_stopped(); });
  return lease;
}

JobLease::~JobLease() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void JobLease::extend_until_stopped() {
  std::unique_lock lock(mutex_);
  double extended = wall_seconds();
  const double lease_s = pool_->lease_s();
  const bool again =
      job_.restartable || !job_.checkpoint.empty();  // others begin it when the lease has run out
  while (!wake_.wait_for(lock, std::chrono::duration<double>(std::min(lease_s / 4, 2.0)),
                         [this] { return stop_; })) {
    const auto held = pool_->extend(job_.pool_id, job_.pool_lease);
    if (held.ok() && *held == jobs::Pool::Held::kYes) {
      extended = wall_seconds();
      continue;
    }
    if (!held.ok() && !(again && wall_seconds() - extended > 0.75 * lease_s)) continue;
    auto queue = jobs::Queue::open(queue_path_);
    if (!queue.ok()) continue;
    const auto cancelled = (*queue)->cancel(job_.id, clock_seconds(CLOCK_REALTIME));
    if (cancelled.ok()) return;
  }
}

void JobLease::end(jobs::Queue& queue, const jobs::Job& job) {
  const std::lock_guard lock(mutex_);
  if (!jobs::is_over(job.state)) return;  // it waits again: the runner's
  const auto told = pool_->tell(job_.pool_id, job_.pool_lease, job, runs_of(queue, job.id));
  if (!told.ok()) return;
  const Status settled = queue.set_lease(job.id, "");
  static_cast<void>(settled);  // the runner tells it once more
}

}  // namespace frugal::cli
