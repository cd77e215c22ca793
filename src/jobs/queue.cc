#include "jobs/queue.h"

#include <algorithm>
#include <cmath>

#include "base/text.h"
#include "meter/columns.h"
#include "meter/database.h"

namespace frugal::jobs {
namespace {

using meter::ColumnNames;
using meter::Database;
using meter::Statement;

constexpr int32_t kApplicationId = 0x46524a31;  // "FRJ1"
constexpr int kVersion = 2;

constexpr std::string_view kStates[] = {"waiting", "running",   "paused",     "done",
                                        "failed",  "cancelled", "interrupted"};

// The first column is the id.
template <typename Job_, typename Visitor>
void visit_columns(Job_& j, Visitor&& visit) {
  visit("command", j.command);
  visit("folder", j.folder);
  visit("log", j.log);
  visit("project", j.project);
  visit("submitted_s", j.submitted_unix_s);
  visit("deadline_s", j.deadline_unix_s);
  visit("takes_s", j.takes_s);
  visit("interruptible", j.interruptible);
  visit("restartable", j.restartable);
  visit("checkpoint", j.checkpoint);
  visit("threads", j.threads);
  visit("rates", j.rates);
  visit("carbon_file", j.carbon_file);
  visit("region", j.region);
  visit("expected_g", j.expected_g);
  visit("at_once_g", j.at_once_g);
  visit("state", j.state);
  visit("wish", j.wish);
  visit("workers", j.workers);
  visit("keeper_pid", j.keeper.pid);
  visit("keeper_start", j.keeper.start);
  visit("keeper_boot", j.keeper.boot);
  visit("started_s", j.started_unix_s);
  visit("ended_s", j.ended_unix_s);
  visit("ran_s", j.ran_s);
  visit("exit_code", j.exit_code);
  visit("error", j.error);
  visit("energy_j", j.energy_j);
  visit("energy_low_j", j.energy_low_j);
  visit("energy_high_j", j.energy_high_j);
  visit("energy_from", j.energy_from);
  visit("pool_url", j.pool_url);
  visit("pool_id", j.pool_id);
  visit("pool_lease", j.pool_lease);
}

const ColumnNames& columns() {
  static const ColumnNames kColumns = [] {
    ColumnNames names;
    const Job job;
    visit_columns(job, names);
    return names;
  }();
  return kColumns;
}

Job read_job(const Statement& row) {
  Job job;
  visit_columns(job, meter::ColumnReader{row});
  job.state = std::clamp(job.state, JobState::kWaiting, JobState::kInterrupted);
  job.wish = std::clamp(job.wish, Wish::kRun, Wish::kCancel);
  return job;
}

// Runs a statement that changes at most one row; true when it did.
Result<bool> change(Database& database, const std::string& sql, const std::function<void(Statement&)>& bind) {
  FRUGAL_TRY(Statement statement, database.prepare(sql));
  bind(statement);
  FRUGAL_TRY(const bool row, statement.step());
  static_cast<void>(row);
  return database.changes() > 0;
}

void bind_keeper(Statement& statement, int at, const ProcessId& keeper) {
  statement.bind(at, keeper.pid);
  statement.bind(at + 1, keeper.start);
  statement.bind(at + 2, std::string_view(keeper.boot));
}

}  // namespace

Status check_job(const Job& job) {
  const auto bad = [](std::string text) { return Status(ErrorCode::kInvalidArgument, std::move(text)); };
  if (job.command.empty() || job.command[0].empty()) return bad("a job needs a command, after `--`");
  for (const std::string& word : job.command) {
    if (!utf8_valid(word)) return bad("the command holds bytes that are not UTF-8 text");
  }
  if (!(job.takes_s > 0 && job.takes_s <= 366 * 86400.0)) {
    return bad(strf("a job of %g s: its length must be positive and a year at most", job.takes_s));
  }
  if (!std::isfinite(job.deadline_unix_s) || !(job.deadline_unix_s > 0))
    return bad("the deadline is no time");
  if (job.threads < 1) return bad("a job uses one thread at least");
  for (const double rate : job.rates) {
    if (!(rate > 0 && rate < 1e6)) return bad("throughputs of workers must be positive");
  }
  if (!job.rates.empty() && std::abs(job.rates[0] - 1) > 1e-9) {
    return bad("the throughput of one worker is 1: give the others in that unit");
  }
  return {};
}

std::string_view job_state_name(JobState state) { return kStates[static_cast<size_t>(state)]; }

Queue::Queue(std::unique_ptr<Database> database) : database_(std::move(database)) {}
Queue::~Queue() = default;

Result<std::unique_ptr<Queue>> Queue::open(const std::string& path) {
  meter::Schema schema;
  schema.application_id = kApplicationId;
  schema.version = kVersion;
  schema.tables =
      "CREATE TABLE jobs (id INTEGER PRIMARY KEY AUTOINCREMENT, " + columns().declarations +
      "); CREATE INDEX jobs_state ON jobs (state); CREATE TABLE runs (job INTEGER NOT NULL REFERENCES "
      "jobs(id), begin_s REAL NOT NULL, end_s REAL NOT NULL, workers INTEGER NOT NULL); CREATE INDEX "
      "runs_job ON runs (job)";
  schema.upgrades = {
      "ALTER TABLE jobs ADD COLUMN pool_url TEXT NOT NULL DEFAULT ''; ALTER TABLE jobs ADD COLUMN pool_id "
      "TEXT NOT "
      "NULL DEFAULT ''; ALTER TABLE jobs ADD COLUMN pool_lease TEXT NOT NULL DEFAULT ''"};
  auto database = Database::open(path, schema);
  if (!database.ok()) return std::move(database).error().in("job queue");
  return std::unique_ptr<Queue>(new Queue(std::make_unique<Database>(std::move(database).value())));
}

Result<int64_t> Queue::submit(const Job& job) {
  FRUGAL_TRY_STATUS(check_job(job));
  int64_t id = 0;
  FRUGAL_TRY_STATUS(database_->transact([&]() -> Status {
    FRUGAL_TRY(Statement insert, database_->prepare("INSERT INTO jobs (" + columns().names + ") VALUES (" +
                                                    columns().marks + ")"));
    visit_columns(job, meter::ColumnBinder{insert});
    FRUGAL_TRY(const bool row, insert.step());
    static_cast<void>(row);
    id = database_->last_row();
    return {};
  }));
  return id;
}

namespace {

Result<std::vector<Job>> select_jobs(Database& database, const std::string& where) {
  FRUGAL_TRY(Statement select,
             database.prepare("SELECT " + columns().names + ", id FROM jobs" + where + " ORDER BY id"));
  std::vector<Job> found;
  while (true) {
    FRUGAL_TRY(const bool row, select.step());
    if (!row) break;
    Job job = read_job(select);
    job.id = select.integer(columns().n);
    found.push_back(std::move(job));
  }
  return found;
}

}  // namespace

Result<std::vector<Job>> Queue::jobs(bool over) {
  return select_jobs(*database_, over ? "" : " WHERE state < 3");
}
Result<std::vector<Job>> Queue::pooled() { return select_jobs(*database_, " WHERE pool_lease != ''"); }

Status Queue::set_lease(int64_t id, const std::string& lease) {
  const auto done = change(*database_, "UPDATE jobs SET pool_lease = ? WHERE id = ?", [&](Statement& s) {
    s.bind(0, std::string_view(lease));
    s.bind(1, id);
  });
  return done.ok() ? Status() : Status(done.error());
}

Result<Job> Queue::job(int64_t id) {
  FRUGAL_TRY(Statement select, database_->prepare("SELECT " + columns().names + " FROM jobs WHERE id = ?"));
  select.bind(0, id);
  FRUGAL_TRY(const bool row, select.step());
  if (!row) {
    return {ErrorCode::kNotFound,
            strf("there is no job %lld: `frugal jobs list --all` shows them", static_cast<long long>(id))};
  }
  Job job = read_job(select);
  job.id = id;
  return job;
}

Result<bool> Queue::claim(int64_t id, const ProcessId& keeper, double now) {
  return change(
      *database_,
      "UPDATE jobs SET state = 1, wish = 0, keeper_pid = ?, keeper_start = ?, keeper_boot = ?, started_s = "
      "CASE WHEN started_s = 0 THEN ? ELSE started_s END WHERE id = ? AND state = 0",
      [&](Statement& s) {
        bind_keeper(s, 0, keeper);
        s.bind(3, now);
        s.bind(4, id);
      });
}

Result<bool> Queue::report(int64_t id, const ProcessId& keeper, JobState state, double ran_s) {
  return change(
      *database_,
      "UPDATE jobs SET state = ?, ran_s = ? WHERE id = ? AND state IN (1, 2) AND keeper_pid = ? AND "
      "keeper_start = ? AND keeper_boot = ?",
      [&](Statement& s) {
        s.bind(0, static_cast<int64_t>(state));
        s.bind(1, ran_s);
        s.bind(2, id);
        bind_keeper(s, 3, keeper);
      });
}

Result<bool> Queue::finish(const Job& job) {
  return change(
      *database_,
      "UPDATE jobs SET state = ?, ended_s = ?, ran_s = ?, exit_code = ?, error = ?, energy_j = ?, "
      "energy_low_j = ?, energy_high_j = ?, energy_from = ? WHERE id = ? AND state IN (1, 2) AND keeper_pid "
      "= ? AND keeper_start = ? AND keeper_boot = ?",
      [&](Statement& s) {
        s.bind(0, static_cast<int64_t>(job.state));
        s.bind(1, job.ended_unix_s);
        s.bind(2, job.ran_s);
        s.bind(3, static_cast<int64_t>(job.exit_code));
        s.bind(4, std::string_view(job.error));
        s.bind(5, job.energy_j);
        s.bind(6, job.energy_low_j);
        s.bind(7, job.energy_high_j);
        s.bind(8, static_cast<int64_t>(job.energy_from));
        s.bind(9, job.id);
        bind_keeper(s, 10, job.keeper);
      });
}

Status Queue::add_run(int64_t id, const Run& run) {
  const auto done = change(*database_, "INSERT INTO runs (job, begin_s, end_s, workers) VALUES (?, ?, ?, ?)",
                           [&](Statement& s) {
                             s.bind(0, id);
                             s.bind(1, run.begin_unix_s);
                             s.bind(2, run.end_unix_s);
                             s.bind(3, static_cast<int64_t>(run.workers));
                           });
  return done.ok() ? Status() : Status(done.error());
}

Result<std::vector<Run>> Queue::runs(int64_t id) {
  FRUGAL_TRY(Statement select,
             database_->prepare("SELECT begin_s, end_s, workers FROM runs WHERE job = ? ORDER BY begin_s"));
  select.bind(0, id);
  std::vector<Run> found;
  while (true) {
    FRUGAL_TRY(const bool row, select.step());
    if (!row) break;
    found.push_back({select.number(0), select.number(1), static_cast<int>(select.integer(2))});
  }
  return found;
}

Status Queue::wish(int64_t id, Wish wish, int workers) {
  // A cancellation is never taken back.
  const auto done =
      change(*database_,
             "UPDATE jobs SET wish = ?, workers = ? WHERE id = ? AND wish != 2 AND (wish != ? OR workers "
             "!= ?)",
             [&](Statement& s) {
               s.bind(0, static_cast<int64_t>(wish));
               s.bind(1, static_cast<int64_t>(workers));
               s.bind(2, id);
               s.bind(3, static_cast<int64_t>(wish));
               s.bind(4, static_cast<int64_t>(workers));
             });
  return done.ok() ? Status() : Status(done.error());
}

Result<std::vector<Job>> Queue::recover(double now) {
  FRUGAL_TRY(const std::vector<Job> active, jobs(false));
  std::vector<Job> recovered;
  for (Job job : active) {
    if (job.state == JobState::kWaiting || is_alive(job.keeper)) continue;
    kill_session(job.keeper);
    const bool again = job.restartable || !job.checkpoint.empty();
    const char* why = "the host or the job's keeper went down while it ran";
    FRUGAL_TRY(
        const bool changed,
        change(*database_,
               again ? "UPDATE jobs SET state = 0, ran_s = ?, error = ? WHERE id = ? AND keeper_pid = ? AND "
                       "keeper_start = ? AND keeper_boot = ? AND state IN (1, 2)"
                     : "UPDATE jobs SET state = 6, exit_code = 137, ended_s = ?, error = ? WHERE id = ? AND "
                       "keeper_pid = ? AND keeper_start = ? AND keeper_boot = ? AND state IN (1, 2)",
               [&](Statement& s) {
                 // With checkpoints what was done is kept; without, the work starts anew.
                 s.bind(0, again ? (job.checkpoint.empty() ? 0.0 : job.ran_s) : now);
                 s.bind(1, std::string_view(why));
                 s.bind(2, job.id);
                 bind_keeper(s, 3, job.keeper);
               }));
    if (!changed) continue;
    job.state = again ? JobState::kWaiting : JobState::kInterrupted;
    recovered.push_back(std::move(job));
  }
  return recovered;
}

Result<bool> Queue::cancel(int64_t id, double now) {
  FRUGAL_TRY(const Job known, job(id));
  static_cast<void>(known);
  bool changed = false;
  FRUGAL_TRY_STATUS(database_->transact([&]() -> Status {
    FRUGAL_TRY(const bool waiting,
               change(*database_, "UPDATE jobs SET state = 5, ended_s = ? WHERE id = ? AND state = 0",
                      [&](Statement& s) {
                        s.bind(0, now);
                        s.bind(1, id);
                      }));
    FRUGAL_TRY(const bool running,
               change(*database_, "UPDATE jobs SET wish = 2 WHERE id = ? AND state IN (1, 2)",
                      [&](Statement& s) { s.bind(0, id); }));
    changed = waiting || running;
    return {};
  }));
  return changed;
}

Result<bool> Queue::retry(int64_t id) {
  FRUGAL_TRY(const Job known, job(id));
  static_cast<void>(known);
  return change(
      *database_,
      "UPDATE jobs SET state = 0, wish = 0, ran_s = CASE WHEN checkpoint = '' THEN 0 ELSE ran_s END, "
      "started_s = 0, ended_s = 0, exit_code = 0, error = '' WHERE id = ? AND state IN (4, 5, 6)",
      [&](Statement& s) { s.bind(0, id); });
}

}  // namespace frugal::jobs
