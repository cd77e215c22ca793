// The runner of a queue: looks at it now and then, starts keepers for jobs whose time has come, and tells the
// keepers of interruptible jobs when to pause and resume. It holds no state of its own: a runner that died is
// replaced by starting another, and what runs goes on meanwhile.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "jobs/schedule.h"

namespace frugal::jobs {

struct RunnerOptions {
  int threads = 1;  // of the host that jobs may take together
  // The outlook at a time for so many hours; nothing: no data, jobs run at once.
  std::function<std::optional<Outlook>(double now, size_t n_hours)> outlook;
  // Starts the keeper of a job (`frugal jobs exec ID`) and returns without waiting for it.
  std::function<Status(int64_t id)> start;
};

// What one look did, for the log.
struct RunnerReport {
  std::vector<Job> recovered;            // whose keeper was gone
  std::vector<int64_t> started;          // a keeper was started
  std::vector<int64_t> paused, resumed;  // wishes that changed
  std::vector<Planned> plans;            // of all that are not over
  std::string note;                      // of the outlook
  double next_unix_s = 0;                // when the next start or change is planned; 0: nothing left to do
};

// One look. kIo and the like from the queue: nothing is lost, look again later.
Result<RunnerReport> look(Queue& queue, double now_unix_s, const RunnerOptions& options);

// Held by the one runner of a queue: a file lock, gone with its process. kUnavailable: another runner has it.
class RunnerLock {
 public:
  static Result<RunnerLock> take(const std::string& queue_path);
  RunnerLock(RunnerLock&& other) noexcept;
  RunnerLock& operator=(RunnerLock&&) = delete;
  ~RunnerLock();

 private:
  explicit RunnerLock(int fd) : fd_(fd) {}
  int fd_;
};

}  // namespace frugal::jobs
