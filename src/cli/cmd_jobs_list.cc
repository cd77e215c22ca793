// frugal jobs list, plan, cancel, retry: what is in the queue, when it will run, and what it saved.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <map>
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

// A job as lists show it, of the queue here or of a pool.
struct Listed {
  std::string id, host;
  bool pooled = false;
  jobs::Job job;
  std::vector<jobs::Run> runs;
  Saving saving;
  double expected_percent = 0;  // by the forecast when it was submitted
};

Json to_json(const Listed& listed) {
  const jobs::Job& job = listed.job;
  const Saving& saving = listed.saving;
  const bool over = jobs::is_over(job.state), known = saving.at_once_g.known();
  Json item = {{"id", listed.pooled ? Json(listed.id) : Json(job.id)},
               {"state", jobs::job_state_name(job.state)},
               {"command", job.command},
               {"submitted", meter::format_time(job.submitted_unix_s)},
               {"deadline", meter::format_time(job.deadline_unix_s)},
               {"takes_s", job.takes_s},
               {"ran_s", job.ran_s},
               {"exit_code", over ? Json(job.exit_code) : Json(nullptr)},
               {"error", job.error},
               {"energy_j", known_or_null(job.energy())},
               {"expected_saving_percent", job.at_once_g > 0 ? Json(listed.expected_percent) : Json(nullptr)},
               {"actual_g_per_kwh", known_or_null(saving.actual_g)},
               {"at_once_g_per_kwh", known_or_null(saving.at_once_g)},
               {"saved_percent", known ? Json(saving.percent) : Json(nullptr)},
               {"saved_g", known && job.energy().known() ? Json(saving.saved_g) : Json(nullptr)},
               {"runs", Json::array()}};
  item[listed.pooled ? "host" : "log"] = listed.pooled ? listed.host : job.log;
  if (over) item["met_deadline"] = job.ended_unix_s <= job.deadline_unix_s;
  for (const jobs::Run& run : listed.runs) {
    item["runs"].push_back({{"begin", meter::format_time(run.begin_unix_s)},
                            {"end", meter::format_time(run.end_unix_s)},
                            {"workers", run.workers}});
  }
  return item;
}

std::string to_text(const Listed& listed) {
  const jobs::Job& job = listed.job;
  const Saving& saving = listed.saving;
  std::string text =
      strf("%4s  %-11s by %s  ran %s of %s", listed.id.c_str(),
           std::string(jobs::job_state_name(job.state)).c_str(), local_time(job.deadline_unix_s).c_str(),
           human_seconds(job.ran_s).c_str(), human_seconds(job.takes_s).c_str());
  if (job.state == jobs::JobState::kDone || job.state == jobs::JobState::kFailed) {
    text += strf(", exit %d%s", job.exit_code, job.ended_unix_s > job.deadline_unix_s ? ", late" : "");
  }
  if (listed.pooled) text += "  " + (listed.host.empty() ? "no host yet" : "on " + listed.host);
  text += "  " + joined(job.command) + "\n";
  if (job.energy().known()) text += "      energy   " + estimate_text(job.energy(), "J") + "\n";
  if (saving.at_once_g.known()) {
    text += strf("      saved    %.0f %% (%.3g g): %.0f g/kWh instead of %.0f at once", saving.percent,
                 saving.saved_g, saving.actual_g.value, saving.at_once_g.value);
    text += job.at_once_g > 0 ? strf("; %.0f %% were expected\n", listed.expected_percent) : "\n";
  } else if (job.at_once_g > 0) {
    text += strf("      expected %.0f %% saved: %.0f g/kWh instead of %.0f at once\n",
                 listed.expected_percent, job.expected_g, job.at_once_g);
  }
  if (!job.error.empty()) text += "      note     " + job.error + "\n";
  return text;
}

Result<std::vector<Listed>> find_jobs(const JobsSetup& setup) {
  std::vector<Listed> found;
  if (!setup.nats.empty()) {
    FRUGAL_TRY(auto pool, jobs::Pool::open(pool_options(setup)));
    FRUGAL_TRY(auto pooled, pool->list());
    for (jobs::PooledJob& one : pooled)
      found.push_back({one.id, one.host, true, std::move(one.job), std::move(one.runs), {}});
    return found;
  }
  FRUGAL_TRY(auto queue, jobs::Queue::open(setup.path()));
  FRUGAL_TRY(auto known, queue->jobs(true));
  for (jobs::Job& job : known) {
    FRUGAL_TRY(auto runs, queue->runs(job.id));
    found.push_back({std::to_string(job.id), "", false, std::move(job), std::move(runs), {}});
  }
  return found;
}

int list(const ListOptions& options) {
  auto found = find_jobs(*options.setup);
  if (!found.ok()) return fail(found.error());
  const double now = clock_seconds(CLOCK_REALTIME);
  Json out = Json::array();
  std::string text;
  std::map<std::pair<std::string, std::string>, CarbonData> kept;  // by file and region
  for (Listed& listed : *found) {
    const jobs::Job& job = listed.job;
    // Without --all: what is not over, and what ended within the last day.
    if (!options.all && jobs::is_over(job.state) && job.ended_unix_s < now - 86400) continue;
    CarbonData& carbon =
        kept.try_emplace({job.carbon_file, job.region}, carbon_data(*options.setup, {job})).first->second;
    const auto series = carbon.series();
    listed.saving = saving_of(job, listed.runs, series.ok() && *series ? &**series : nullptr, now);
    if (job.at_once_g > 0) listed.expected_percent = 100 * (1 - job.expected_g / job.at_once_g);
    if (options.json) {
      out.push_back(to_json(listed));
    } else {
      text += to_text(listed);
    }
  }
  if (options.json) return dump(out);
  return print(text.empty() ? "no jobs\n" : text) ? kExitOk : kExitFailure;
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

// Of the queue here, or of the pool. What became of it, in words.
Result<std::string> change_one(const JobsSetup& setup, const std::string& id, bool cancel) {
  const Error over = {ErrorCode::kInvalidArgument, "job " + id + " is over already"};
  if (!setup.nats.empty()) {
    FRUGAL_TRY(auto pool, jobs::Pool::open(pool_options(setup)));
    if (!cancel) {
      FRUGAL_TRY(const std::string anew, pool->retry(id));
      return "job " + id + " waits again, as " + anew + "\n";
    }
    FRUGAL_TRY(const bool cancelled, pool->cancel(id));
    return cancelled ? Result<std::string>("job " + id + " is cancelled\n") : over;
  }
  char* end = nullptr;
  const long long number = std::strtoll(id.c_str(), &end, 10);
  if (id.empty() || *end != '\0')
    return {ErrorCode::kInvalidArgument, "'" + id + "' is no job's number; those of a pool need --nats"};
  FRUGAL_TRY(auto queue, jobs::Queue::open(setup.path()));
  if (cancel) {
    FRUGAL_TRY(const bool cancelled, queue->cancel(number, clock_seconds(CLOCK_REALTIME)));
    return cancelled ? Result<std::string>("job " + id + " is cancelled\n") : over;
  }
  FRUGAL_TRY(const bool waits, queue->retry(number));
  if (waits) return "job " + id + " waits again\n";
  return {ErrorCode::kInvalidArgument, "job " + id + " is not one that failed or was stopped"};
}

int change(const JobsSetup& setup, const std::vector<std::string>& ids, bool cancel) {
  for (const std::string& id : ids) {
    const auto changed = change_one(setup, id, cancel);
    if (!changed.ok()) return fail(changed.error());
    if (!print(*changed)) return kExitFailure;
  }
  return kExitOk;
}

Action add_change(CLI::App& app, bool cancel) {
  auto ids = std::make_shared<std::vector<std::string>>();
  app.add_option("id", *ids, "numbers of jobs")->required();
  auto setup = add_jobs_options(app, false);
  add_pool_options(app, *setup, false);
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
