// frugal jobs submit -- COMMAND: puts work into the queue, and says when it is to run and what that saves.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "base/text.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/jobs_pool.h"
#include "cli/jobs_setup.h"
#include "cli/meter_setup.h"
#include "jobs/runner.h"
#include "jobs/schedule.h"
#include "meter/http/http.h"

namespace frugal::cli {
namespace {

struct SubmitOptions {
  std::shared_ptr<JobsSetup> setup;
  std::string by = "24h", takes, checkpoint, project, log;
  bool interruptible = false, restart = false, json = false;
  int threads = 1;
  std::vector<double> rates;
  std::vector<std::string> command;
};

// Absolute, so that the runner finds it from wherever it is started.
std::string absolute(const std::string& path) {
  std::error_code error;
  const auto full = std::filesystem::absolute(path, error);
  return error ? path : full.lexically_normal().string();
}

std::string windows(const jobs::Plan& plan) {
  std::string text;
  for (const jobs::Run& run : plan.runs) {
    text += (text.empty() ? "" : ", ") + local_time(run.begin_unix_s) + " to " +
            local_time(run.end_unix_s).substr(4);
    if (run.workers != 1) text += strf(" with %d workers", run.workers);
  }
  return text;
}

int submit(const SubmitOptions& options) {
  const double now = clock_seconds(CLOCK_REALTIME);
  const auto takes = parse_duration(options.takes);
  if (!takes.ok()) return fail(takes.error());
  const auto by = parse_deadline(options.by, now);
  if (!by.ok()) return fail(by.error());
  jobs::Job job;
  job.command = options.command;
  job.folder = absolute(".");
  job.project = options.project;
  job.submitted_unix_s = now;
  job.deadline_unix_s = *by;
  job.takes_s = *takes;
  job.interruptible = options.interruptible || !options.checkpoint.empty() || !options.rates.empty();
  job.restartable = options.restart;
  job.checkpoint = options.checkpoint;
  job.threads = options.threads;
  job.rates = options.rates;
  if (!options.setup->carbon_file.empty()) {
    const std::string& file = options.setup->carbon_file;
    job.carbon_file = meter::is_url(file) ? file : absolute(file);
  }
  job.region = options.setup->region;

  const std::string path = options.setup->path();
  auto queue = jobs::Queue::open(path);
  if (!queue.ok()) return fail(queue.error());
  const auto others = (*queue)->jobs(false);
  if (!others.ok()) return fail(others.error());
  std::vector<jobs::Job> all = *others;
  CarbonData carbon = carbon_data(*options.setup, all);
  const double horizon = std::clamp((job.deadline_unix_s - now) / 3600 + 2, 2.0, 336.0);
  const auto outlook = carbon.outlook(now, static_cast<size_t>(horizon));
  if (!outlook.ok()) return fail(outlook.error());
  all.push_back(job);
  const auto plans = jobs::schedule(all, *outlook ? &(*outlook)->hourly : nullptr, now,
                                    {static_cast<int>(::sysconf(_SC_NPROCESSORS_ONLN))});
  const jobs::Plan& plan = plans.back().plan;
  job.expected_g = plan.expected_mean;
  job.at_once_g = plan.at_once_mean;
  std::string number;
  if (!options.setup->nats.empty()) {
    auto pool = jobs::Pool::open(pool_options(*options.setup));
    if (!pool.ok()) return fail(pool.error());
    auto id = (*pool)->submit(job);
    if (!id.ok()) return fail(id.error());
    number = std::move(id).value();
  } else {
    job.log = options.log.empty() ? job_log(path, now) : absolute(options.log);
    const auto id = (*queue)->submit(job);
    if (!id.ok()) return fail(id.error());
    number = std::to_string(*id);
  }

  const double saving = job.at_once_g > 0 ? 100 * (1 - job.expected_g / job.at_once_g) : 0;
  // A host plans all its jobs on the carbon data of the place where it stands.
  const std::string without_data =
      options.setup->nats.empty() ? "nothing: without --carbon-file it runs at once"
                                  : "what is not known here: the host that takes it may have carbon data";
  if (options.json) {
    nlohmann::ordered_json out = {
        {"id", options.setup->nats.empty() ? nlohmann::ordered_json(std::stoll(number))
                                           : nlohmann::ordered_json(number)},
        {"deadline", meter::format_time(job.deadline_unix_s)},
        {"meets_deadline", plan.meets_deadline},
        {"log", job.log},
        {"runs", nlohmann::ordered_json::array()}};
    for (const jobs::Run& run : plan.runs) {
      out["runs"].push_back({{"begin", meter::format_time(run.begin_unix_s)},
                             {"end", meter::format_time(run.end_unix_s)},
                             {"workers", run.workers}});
    }
    out["expected_g_per_kwh"] = *outlook ? nlohmann::ordered_json(job.expected_g) : nullptr;
    out["at_once_g_per_kwh"] = *outlook ? nlohmann::ordered_json(job.at_once_g) : nullptr;
    out["expected_saving_percent"] = *outlook ? nlohmann::ordered_json(saving) : nullptr;
    out["note"] = *outlook ? (*outlook)->note : without_data;
    return print(out.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n") ? kExitOk
                                                                                           : kExitFailure;
  }
  std::string text =
      strf("job %s, to be done by %s\n", number.c_str(), local_time(job.deadline_unix_s).c_str());
  text += "  runs      " + windows(plan) + "\n";
  if (*outlook) {
    text += strf("  saves     %.0f %% of gCO2e expected: %.0f g/kWh instead of %.0f when run at once\n",
                 saving, job.expected_g, job.at_once_g);
    if (!(*outlook)->note.empty()) text += "  note      " + (*outlook)->note + "\n";
  } else {
    text += "  saves     " + without_data + "\n";
  }
  if (!plan.meets_deadline) text += "  note      the deadline cannot be met any more: it runs at once\n";
  if (options.setup->nats.empty()) {
    text += "  output    " + job.log + "\n";
    auto lock = jobs::RunnerLock::take(path);
    if (lock.ok()) text += "  note      no runner is at work: start one with `frugal jobs run`\n";
  } else {
    text +=
        "  output    beside the queue of the host that takes it (`frugal jobs list --nats URL` names it)\n";
  }
  return print(text) ? kExitOk : kExitFailure;
}

}  // namespace

Action add_jobs_submit(CLI::App& app) {
  auto options = std::make_shared<SubmitOptions>();
  app.add_option("command", options->command, "the command and its arguments, after `--`")->required();
  app.add_option("--by", options->by,
                 "deadline: 18:00 (local, today or tomorrow), \"2026-12-24 18:00\", or 6h from now");
  app.add_option("--takes", options->takes, "how long it runs when nothing pauses it: 2h, 90min")->required();
  app.add_flag("--interruptible", options->interruptible,
               "it may be stopped (SIGSTOP) and continued, with all its processes");
  app.add_option(
      "--checkpoint", options->checkpoint,
      "shell command that makes it save and exit with 75 instead ($FRUGAL_JOB_PID is its process); it is "
      "started anew later");
  app.add_flag("--restart", options->restart,
               "may be started again from its beginning after a crash or reboot");
  app.add_option("--threads", options->threads, "threads of the host that it keeps busy")
      ->check(CLI::Range(1, 4096));
  app.add_option(
         "--rates", options->rates,
         "throughput with 1, 2, ... workers, 1 first (1,1.9,2.7): its width follows the supply, and it reads "
         "the number of workers from the file $FRUGAL_WORKERS_FILE")
      ->delimiter(',');
  app.add_option("--project", options->project, "name that the ledger files it under");
  app.add_option("-o,--output", options->log, "file for its output (default: beside the queue)");
  app.add_flag("--json", options->json, "print the job and its plan as JSON");
  options->setup = add_jobs_options(app, true);
  add_pool_options(app, *options->setup, false);
  app.positionals_at_end();
  app.footer(
      "Example: frugal jobs submit --by 18:00 --takes 2h --interruptible --carbon-file es.csv -- make train");
  return [options] { return submit(*options); };
}

}  // namespace frugal::cli
