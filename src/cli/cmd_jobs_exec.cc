// frugal jobs exec ID: executes one job of the queue to its end, metered. The runner starts it for each job;
// by hand it runs a waiting job now.
#include <signal.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>

#include "base/clock.h"
#include "base/text.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/jobs_pool.h"
#include "cli/jobs_setup.h"
#include "cli/meter_setup.h"
#include "jobs/keeper.h"

namespace frugal::cli {
namespace {

struct ExecOptions {
  std::shared_ptr<JobsSetup> setup;
  std::shared_ptr<MeterSetup> meter;
  std::shared_ptr<LedgerSetup> ledger;
  int64_t id = 0;
  bool quiet = false;
};

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : " ") + word;
  return text;
}

int exec(const ExecOptions& options) {
  auto queue = jobs::Queue::open(options.setup->path());
  if (!queue.ok()) return fail(queue.error());
  const auto waiting = (*queue)->job(options.id);
  if (!waiting.ok()) return fail(waiting.error());
  // Threads that start here must not be the ones that signals to the keeper find.
  sigset_t signals, before;
  ::sigemptyset(&signals);
  for (const int signal : {SIGCHLD, SIGTERM, SIGINT, SIGHUP}) ::sigaddset(&signals, signal);
  ::pthread_sigmask(SIG_BLOCK, &signals, &before);
  std::unique_ptr<JobLease> lease;
  if (!waiting->pool_lease.empty() && waiting->state == jobs::JobState::kWaiting) {
    auto begun = JobLease::begin(*options.setup, *waiting);
    if (!begun.ok()) return fail(begun.error());
    lease = std::move(begun).value();
  }
  // A meter that cannot be opened costs the figures, not the job.
  auto meter = open_meter(*options.meter);
  ::pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (!meter.ok() && !options.quiet)
    std::fprintf(stderr, "frugal: warning: %s\n", meter.error().message.c_str());
  jobs::KeeperOptions keeping;
  keeping.meter = meter.ok() ? meter->get() : nullptr;
  // A job that is another host's soon has to be gone by then.
  if (lease != nullptr) keeping.grace_s = std::min(keeping.grace_s, lease->lease_s() / 8);
  const auto kept = jobs::keep(**queue, options.id, keeping);
  if (!kept.ok()) return fail(kept.error());
  if (!kept->claimed) {
    return fail({ErrorCode::kUnavailable, strf("job %lld is %s: only a waiting job can be executed",
                                               static_cast<long long>(options.id),
                                               std::string(job_state_name(waiting->state)).c_str())});
  }
  const jobs::Job& job = kept->job;
  if (lease != nullptr) lease->end(**queue, job);
  if (meter.ok()) {
    meter::LedgerEntry entry;
    entry.kind = "job";
    entry.name = joined(job.command);
    entry.unit = "job";
    entry.units = 1;
    entry.usage = kept->usage;
    entry.cpu_j = kept->cpu_j;
    entry.memory_j = kept->memory_j;
    entry.gpu_j = kept->gpu_j;
    entry.exit_code = job.exit_code;
    entry.power = kept->power;
    for (const meter::PowerStretch& p : entry.power) entry.peak_watts = std::max(entry.peak_watts, p.watts);
    if (kept->usage.wall_seconds > 0)
      entry.average_watts = kept->usage.energy_j.value / kept->usage.wall_seconds;
    // Carbon by the hours in which it ran, where they are known.
    CarbonData carbon(job.carbon_file, job.region);
    const auto series = carbon.series();
    const auto runs = (*queue)->runs(job.id);
    if (series.ok() && *series && runs.ok() && entry.usage.energy_j.known()) {
      const Saving saving = saving_of(job, *runs, &**series, clock_seconds(CLOCK_REALTIME));
      if (saving.actual_g.known()) {
        const Estimate& e = entry.usage.energy_j;
        entry.usage.carbon_gco2e = {
            e.value * saving.actual_g.value / 3.6e6, e.low * saving.actual_g.low / 3.6e6,
            e.high * saving.actual_g.high / 3.6e6, std::max(e.provenance, saving.actual_g.provenance)};
        entry.g_per_kwh = saving.actual_g;
        entry.region = (*series)->region;
      }
    }
    LedgerSetup ledger = *options.ledger;
    if (ledger.project.empty()) ledger.project = job.project;
    const Status written = write_to_ledger(ledger, **meter, entry);
    if (!written.ok() && !options.quiet)
      std::fprintf(stderr, "frugal: warning: %s\n", written.error().message.c_str());
  }
  if (!options.quiet) {
    std::printf("job %lld %s with %d%s%s\n", static_cast<long long>(job.id),
                std::string(job_state_name(job.state)).c_str(), job.exit_code, job.error.empty() ? "" : ": ",
                job.error.c_str());
  }
  return job.exit_code;
}

}  // namespace

Action add_jobs_exec(CLI::App& app) {
  auto options = std::make_shared<ExecOptions>();
  app.add_option("id", options->id, "the job's number")->required();
  app.add_flag("-q,--quiet", options->quiet, "say nothing");
  options->setup = add_jobs_options(app, false);
  app.add_option("--nats-creds", options->setup->nats_credentials, "credentials file of NATS")
      ->group("Several hosts");
  app.add_option("--host-name", options->setup->host, "this host's name in lists")->group("Several hosts");
  options->meter = add_meter_options(app);
  options->ledger = add_ledger_options(app);
  return [options] { return exec(*options); };
}

}  // namespace frugal::cli
