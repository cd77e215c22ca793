#include "jobs/runner.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <utility>

#include "base/file.h"
#include "base/text.h"

namespace frugal::jobs {

Result<RunnerReport> look(Queue& queue, double now, const RunnerOptions& options) {
  RunnerReport report;
  FRUGAL_TRY(report.recovered, queue.recover(now));
  FRUGAL_TRY(const std::vector<Job> active, queue.jobs(false));
  if (active.empty()) return report;
  double latest = now;
  for (const Job& job : active) latest = std::max(latest, job.deadline_unix_s);
  // Forecasts beyond a fortnight are the season's profile at best.
  const auto n_hours = static_cast<size_t>(std::min(std::ceil((latest - now) / 3600) + 2, 24.0 * 14));
  std::optional<Outlook> outlook;
  if (options.outlook) outlook = options.outlook(now, n_hours);
  if (outlook) report.note = outlook->note;
  report.plans = schedule(active, outlook ? &outlook->hourly : nullptr, now, {options.threads});
  for (size_t i = 0; i < active.size(); ++i) {
    const Job& job = active[i];
    const Planned& planned = report.plans[i];
    const auto note_time = [&](double at) {
      if (at > now + 1 && (report.next_unix_s == 0 || at < report.next_unix_s)) report.next_unix_s = at;
    };
    for (const Run& run : planned.plan.runs) {
      note_time(run.begin_unix_s);
      note_time(run.end_unix_s);
    }
    note_time(planned.latest_start);
    if (job.wish == Wish::kCancel) continue;
    if (job.state == JobState::kWaiting) {
      if (!planned.run_now) continue;
      FRUGAL_TRY_STATUS(queue.wish(job.id, Wish::kRun, planned.workers));
      FRUGAL_TRY_STATUS(options.start(job.id));
      report.started.push_back(job.id);
    } else if (job.interruptible) {
      const Wish wish = planned.run_now ? Wish::kRun : Wish::kPause;
      FRUGAL_TRY_STATUS(queue.wish(job.id, wish, planned.run_now ? planned.workers : job.workers));
      if (wish != job.wish) (wish == Wish::kRun ? report.resumed : report.paused).push_back(job.id);
    }
  }
  return report;
}

Result<RunnerLock> RunnerLock::take(const std::string& queue_path) {
  const std::string path = queue_path + ".lock";
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (fd < 0) return io_error("open", path, errno);
  if (::flock(fd, LOCK_EX | LOCK_NB) != 0) {
    const int error_number = errno;
    ::close(fd);
    if (error_number != EWOULDBLOCK) return io_error("lock", path, error_number);
    return {ErrorCode::kUnavailable,
            strf("another runner serves '%s' already; one is enough for all its jobs", queue_path.c_str())};
  }
  return RunnerLock(fd);
}

RunnerLock::RunnerLock(RunnerLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
RunnerLock::~RunnerLock() {
  if (fd_ >= 0) ::close(fd_);
}

}  // namespace frugal::jobs
