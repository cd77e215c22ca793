// frugal jobs list, plan, cancel, retry: what is in the queue, when it will run, and what it saved.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "base/text.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/jobs_pool.h"
#include "cli/jobs_setup.h"
#include "cli/meter_setup.h"
#include "jobs/schedule.h"

namespace frugal::cli {
namespace {

using Json = nlohmann::ordered_json;

struct ListOptions {
  std::shared_ptr<JobsSetup> setup;
  bool all = false, json = false;
};

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : " ") + word;
  return text;
}

int dump(const Json& json) {
  return print(json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n") ? kExitOk
                                                                                          : kExitFailure;
}

Json known_or_null(const Estimate& estimate) {
  return estimate.known() ? Json(estimate.value) : Json(nullptr);
}

// The jobs of several hosts.
int list_pool(const ListOptions& options) {
  auto pool = jobs::Pool::open(pool_options(*options.setup));
  if (!pool.ok()) return fail(pool.error());
  const auto found = (*pool)->list();
  if (!found.ok()) return fail(found.error());
  const double now = clock_seconds(CLOCK_REALTIME);
  Json out = Json::array();
  std::string text;
  for (const jobs::PooledJob& pooled : *found) {
    const jobs::Job& job = pooled.job;
    const bool over = jobs::is_over(job.state);
    if (!options.all && over && job.ended_unix_s < now - 86400) continue;
    if (options.json) {
      out.push_back({{"id", pooled.id},
                     {"state", jobs::job_state_name(job.state)},
                     {"host", pooled.host},
                     {"command", job.command},
                     {"submitted", meter::format_time(job.submitted_unix_s)},
                     {"deadline", meter::format_time(job.deadline_unix_s)},
                     {"takes_s", job.takes_s},
                     {"ran_s", job.ran_s},
                     {"exit_code", over ? Json(job.exit_code) : Json(nullptr)},
                     {"error", job.error},
                     {"energy_j", known_or_null(job.energy())}});
      continue;
    }
    text += strf("%s  %-11s by %s  %s  %s\n", pooled.id.c_str(),
                 std::string(job_state_name(job.state)).c_str(), local_time(job.deadline_unix_s).c_str(),
                 pooled.host.empty() ? "no host yet" : pooled.host.c_str(), joined(job.command).c_str());
    if (job.energy().known()) text += "      energy   " + estimate_text(job.energy(), "J") + "\n";
    if (!job.error.empty()) text += "      note     " + job.error + "\n";
  }
  if (options.json) return dump(out);
  return print(text.empty() ? "no jobs\n" : text) ? kExitOk : kExitFailure;
}

int list(const ListOptions& options) {
  if (!options.setup->nats.empty()) return list_pool(options);
  auto queue = jobs::Queue::open(options.setup->path());
  if (!queue.ok()) return fail(queue.error());
  const auto found = (*queue)->jobs(true);
  if (!found.ok()) return fail(found.error());
  const double now = clock_seconds(CLOCK_REALTIME);
  Json out = Json::array();
  std::string text;
  double saved = 0;
  for (const jobs::Job& job : *found) {
    // Without --all: what is not over, and what ended within the last day.
    if (!options.all && jobs::is_over(job.state) && job.ended_unix_s < now - 86400) continue;
    CarbonData carbon = carbon_data(*options.setup, {job});
    const auto series = carbon.series();
    const auto runs = (*queue)->runs(job.id);
    if (!runs.ok()) return fail(runs.error());
    const Saving saving = saving_of(job, *runs, series.ok() && *series ? &**series : nullptr, now);
    const double expected = job.at_once_g > 0 ? 100 * (1 - job.expected_g / job.at_once_g) : 0;
    saved += saving.saved_g;
    if (options.json) {
      Json item = {{"id", job.id},
                   {"state", jobs::job_state_name(job.state)},
                   {"command", job.command},
                   {"submitted", meter::format_time(job.submitted_unix_s)},
                   {"deadline", meter::format_time(job.deadline_unix_s)},
                   {"takes_s", job.takes_s},
                   {"ran_s", job.ran_s},
                   {"exit_code", jobs::is_over(job.state) ? Json(job.exit_code) : Json(nullptr)},
                   {"error", job.error},
                   {"log", job.log},
                   {"energy_j", known_or_null(job.energy())},
                   {"expected_saving_percent", job.at_once_g > 0 ? Json(expected) : Json(nullptr)},
                   {"actual_g_per_kwh", known_or_null(saving.actual_g)},
                   {"at_once_g_per_kwh", known_or_null(saving.at_once_g)},
                   {"saved_percent", saving.at_once_g.known() ? Json(saving.percent) : Json(nullptr)},
                   {"saved_g",
                    saving.at_once_g.known() && job.energy().known() ? Json(saving.saved_g) : Json(nullptr)},
                   {"runs", Json::array()}};
      if (jobs::is_over(job.state)) item["met_deadline"] = job.ended_unix_s <= job.deadline_unix_s;
      for (const jobs::Run& run : *runs) {
        item["runs"].push_back({{"begin", meter::format_time(run.begin_unix_s)},
                                {"end", meter::format_time(run.end_unix_s)},
                                {"workers", run.workers}});
      }
      out.push_back(std::move(item));
      continue;
    }
    text +=
        strf("%4lld  %-11s by %s  ran %s of %s", static_cast<long long>(job.id),
             std::string(jobs::job_state_name(job.state)).c_str(), local_time(job.deadline_unix_s).c_str(),
             human_seconds(job.ran_s).c_str(), human_seconds(job.takes_s).c_str());
    if (job.state == jobs::JobState::kDone || job.state == jobs::JobState::kFailed) {
      text += strf(", exit %d%s", job.exit_code, job.ended_unix_s > job.deadline_unix_s ? ", late" : "");
    }
    text += "  " + joined(job.command) + "\n";
    if (job.energy().known()) text += "      energy   " + estimate_text(job.energy(), "J") + "\n";
    if (saving.at_once_g.known()) {
      text += strf("      saved    %.0f %% (%.3g g): %.0f g/kWh instead of %.0f at once", saving.percent,
                   saving.saved_g, saving.actual_g.value, saving.at_once_g.value);
      text += job.at_once_g > 0 ? strf("; %.0f %% were expected\n", expected) : "\n";
    } else if (job.at_once_g > 0) {
      text += strf("      expected %.0f %% saved: %.0f g/kWh instead of %.0f at once\n", expected,
                   job.expected_g, job.at_once_g);
    }
    if (!job.error.empty()) text += "      note     " + job.error + "\n";
  }
  if (options.json) return dump(out);
  if (text.empty()) text = "no jobs\n";
  return print(text) ? kExitOk : kExitFailure;
}

int plan(const ListOptions& options) {
  auto queue = jobs::Queue::open(options.setup->path());
  if (!queue.ok()) return fail(queue.error());
  const auto active = (*queue)->jobs(false);
  if (!active.ok()) return fail(active.error());
  const double now = clock_seconds(CLOCK_REALTIME);
  double latest = now;
  for (const jobs::Job& job : *active) latest = std::max(latest, job.deadline_unix_s);
  CarbonData carbon = carbon_data(*options.setup, *active);
  const auto outlook =
      carbon.outlook(now, static_cast<size_t>(std::clamp((latest - now) / 3600 + 2, 2.0, 336.0)));
  if (!outlook.ok()) return fail(outlook.error());
  const auto plans = jobs::schedule(*active, *outlook ? &(*outlook)->hourly : nullptr, now,
                                    {static_cast<int>(::sysconf(_SC_NPROCESSORS_ONLN))});
  if (options.json) {
    Json out = {{"source", *outlook ? (*outlook)->source : ""},
                {"note", *outlook ? (*outlook)->note : "no carbon data: jobs run at once"},
                {"forecast_start",
                 *outlook ? Json(meter::format_time((*outlook)->hourly.start_unix_s)) : Json(nullptr)},
                {"forecast_g_per_kwh", *outlook ? Json((*outlook)->hourly.g_per_kwh) : Json(nullptr)},
                {"jobs", Json::array()}};
    for (const jobs::Planned& planned : plans) {
      Json item = {{"id", planned.id},
                   {"meets_deadline", planned.plan.meets_deadline},
                   {"expected_g_per_kwh", *outlook ? Json(planned.plan.expected_mean) : Json(nullptr)},
                   {"at_once_g_per_kwh", *outlook ? Json(planned.plan.at_once_mean) : Json(nullptr)},
                   {"runs", Json::array()}};
      for (const jobs::Run& run : planned.plan.runs) {
        item["runs"].push_back({{"begin", meter::format_time(run.begin_unix_s)},
                                {"end", meter::format_time(run.end_unix_s)},
                                {"workers", run.workers}});
      }
      out["jobs"].push_back(std::move(item));
    }
    return dump(out);
  }
  std::string text;
  if (*outlook) {
    text += "forecast  " + (*outlook)->source + "\n";
    if (!(*outlook)->note.empty()) text += "note      " + (*outlook)->note + "\n";
  } else {
    text += "note      no carbon data (--carbon-file): jobs run at once\n";
  }
  for (size_t i = 0; i < plans.size(); ++i) {
    const jobs::Plan& p = plans[i].plan;
    text += strf("%4lld  by %s  ", static_cast<long long>(plans[i].id),
                 local_time((*active)[i].deadline_unix_s).c_str());
    for (size_t r = 0; r < p.runs.size(); ++r) {
      text += (r > 0 ? ", " : "") + local_time(p.runs[r].begin_unix_s) + " to " +
              local_time(p.runs[r].end_unix_s).substr(4);
      if (p.runs[r].workers != 1) text += strf(" x%d", p.runs[r].workers);
    }
    if (*outlook) text += strf("  %.0f g/kWh (at once %.0f)", p.expected_mean, p.at_once_mean);
    if (!p.meets_deadline) text += "  cannot meet its deadline";
    text += "\n";
  }
  if (plans.empty()) text += "no jobs wait\n";
  return print(text) ? kExitOk : kExitFailure;
}

// Of the queue here, or of the pool.
Result<bool> change_one(const JobsSetup& setup, const std::string& id, bool cancel) {
  if (!setup.nats.empty()) {
    FRUGAL_TRY(auto pool, jobs::Pool::open(pool_options(setup)));
    return pool->cancel(id);
  }
  char* end = nullptr;
  const long long number = std::strtoll(id.c_str(), &end, 10);
  if (id.empty() || *end != '\0')
    return {ErrorCode::kInvalidArgument, "'" + id + "' is no job's number; those of a pool need --nats"};
  FRUGAL_TRY(auto queue, jobs::Queue::open(setup.path()));
  return cancel ? queue->cancel(number, clock_seconds(CLOCK_REALTIME)) : queue->retry(number);
}

int change(const JobsSetup& setup, const std::vector<std::string>& ids, bool cancel) {
  for (const std::string& id : ids) {
    const auto changed = change_one(setup, id, cancel);
    if (!changed.ok()) return fail(changed.error());
    if (!*changed) {
      return fail({ErrorCode::kInvalidArgument,
                   "job " + id + (cancel ? " is over already" : " is not one that failed or was stopped")});
    }
    if (!print("job " + id + (cancel ? " is cancelled\n" : " waits again\n"))) return kExitFailure;
  }
  return kExitOk;
}

Action add_change(CLI::App& app, bool cancel) {
  auto ids = std::make_shared<std::vector<std::string>>();
  app.add_option("id", *ids, "numbers of jobs")->required();
  auto setup = add_jobs_options(app, false);
  if (cancel) add_pool_options(app, *setup, false);
  return [ids, setup, cancel] { return change(*setup, *ids, cancel); };
}

}  // namespace

Action add_jobs_list(CLI::App& app) {
  auto options = std::make_shared<ListOptions>();
  app.add_flag("-a,--all", options->all, "also what ended more than a day ago");
  app.add_flag("--json", options->json, "print the jobs as JSON");
  options->setup = add_jobs_options(app, true);
  add_pool_options(app, *options->setup, false);
  return [options] { return list(*options); };
}

Action add_jobs_plan(CLI::App& app) {
  auto options = std::make_shared<ListOptions>();
  app.add_flag("--json", options->json, "print forecast and plans as JSON");
  options->setup = add_jobs_options(app, true);
  return [options] { return plan(*options); };
}

Action add_jobs_cancel(CLI::App& app) { return add_change(app, true); }
Action add_jobs_retry(CLI::App& app) { return add_change(app, false); }

}  // namespace frugal::cli
