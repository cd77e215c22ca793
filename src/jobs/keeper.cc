#include "jobs/keeper.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>

#include "base/clock.h"
#include "base/file.h"
#include "base/text.h"
#include "jobs/schedule.h"

namespace frugal::jobs {
namespace {

// How often the work done so far is written to the queue.
constexpr double kReport_s = 10;

// A job with checkpoints that exits with this has saved its state and wants to be started again
// (EX_TEMPFAIL).
constexpr int kExitSaved = 75;

// Stretches of power that are kept of a job.
constexpr size_t kMostStretches = 480;

double children_cpu_seconds() {
  rusage used;
  ::getrusage(RUSAGE_CHILDREN, &used);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return seconds(used.ru_utime) + seconds(used.ru_stime);
}

// Neighbours become one, but not across a pause.
void thin_out(std::vector<meter::PowerStretch>& power) {
  std::vector<meter::PowerStretch> fewer;
  for (const meter::PowerStretch& p : power) {
    const bool pair = !fewer.empty() && fewer.size() % 2 == 1;
    meter::PowerStretch* last = fewer.empty() ? nullptr : &fewer.back();
    if (pair && p.begin_unix_s - (last->begin_unix_s + last->seconds) < 0.1 * p.seconds) {
      const double seconds = last->seconds + p.seconds;
      last->watts = (last->watts * last->seconds + p.watts * p.seconds) / seconds;
      last->seconds = seconds;
    } else {
      fewer.push_back(p);
    }
  }
  power = std::move(fewer);
}

class Keeper {
 public:
  Keeper(Queue& queue, Job job, const KeeperOptions& options)
      : queue_(queue), options_(options), self_(::getpid()) {
    kept_.claimed = true;
    kept_.job = std::move(job);
    ::sigemptyset(&signals_);
    for (const int signal : {SIGCHLD, SIGTERM, SIGINT, SIGHUP}) ::sigaddset(&signals_, signal);
    ::sigprocmask(SIG_BLOCK, &signals_, &before_);
    ::prctl(PR_SET_CHILD_SUBREAPER, 1);
  }
  ~Keeper() { ::sigprocmask(SIG_SETMASK, &before_, nullptr); }

  Result<Kept> run() {
    Job& job = kept_.job;
    if (!start(job.command)) return end(JobState::kFailed);
    while (true) {
      const int signal = wait();
      if (signal == SIGTERM || signal == SIGINT || signal == SIGHUP) return end_early();
      reap();
      if (running_ || paused_by_signal_) {
        if (main_ended_ && descendants(self_).empty() && !any_child()) {
          if (job.checkpoint.empty() || exit_code_ != kExitSaved) return end(by_exit_code());
          // It saved its state by itself: started again at once, or when the pause is over.
          stop_clock();
          running_ = false;
        }
      }
      FRUGAL_TRY(const Job wished, queue_.job(job.id));
      if (is_over(wished.state) || wished.keeper.pid != job.keeper.pid ||
          wished.keeper.start != job.keeper.start) {
        // Someone decided otherwise meanwhile: the queue is right.
        kill_tree();
        return kept_;
      }
      if (wished.wish == Wish::kCancel) return cancel();
      follow(wished);
      if (!running_ && !paused_by_signal_ && failed_to_start_) return end(JobState::kFailed);
      if (wall_seconds() - reported_ > kReport_s) {
        FRUGAL_TRY(const bool ours, report());
        static_cast<void>(ours);
      }
    }
  }

 private:
  // The next signal, or 0 after the poll interval.
  int wait() {
    timespec limit;
    limit.tv_sec = static_cast<time_t>(options_.poll_s);
    limit.tv_nsec = static_cast<long>(1e9 * (options_.poll_s - static_cast<double>(limit.tv_sec)));
    const int signal = ::sigtimedwait(&signals_, nullptr, &limit);
    return signal > 0 ? signal : 0;
  }

  bool any_child() {
    siginfo_t info;
    return ::waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == 0;
  }

  void reap() {
    int status = 0;
    pid_t pid;
    while ((pid = ::waitpid(-1, &status, WNOHANG)) > 0) {
      if (pid != child_) continue;
      main_ended_ = true;
      exit_code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
  }

  JobState by_exit_code() { return exit_code_ == 0 ? JobState::kDone : JobState::kFailed; }

  // Starts the command with its output in the log. False: kept_.job says why.
  bool start(const std::vector<std::string>& command) {
    Job& job = kept_.job;
    const auto fail = [&](int code, std::string text) {
      job.exit_code = exit_code_ = code;
      job.error = std::move(text);
      failed_to_start_ = true;
      return false;
    };
    const int log = job.log.empty()
                        ? ::open("/dev/null", O_WRONLY | O_CLOEXEC)
                        : ::open(job.log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (log < 0) return fail(126, strf("its log '%s': %s", job.log.c_str(), std::strerror(errno)));
    if (!job.rates.empty() && !write_width()) {
      ::close(log);
      return fail(126, "its file of workers cannot be written");
    }
    int report[2];
    if (::pipe2(report, O_CLOEXEC) != 0) {
      ::close(log);
      return fail(126, strf("no pipe: %s", std::strerror(errno)));
    }
    std::vector<char*> arguments;
    for (const std::string& word : command) arguments.push_back(const_cast<char*>(word.c_str()));
    arguments.push_back(nullptr);
    if (!job.rates.empty()) ::setenv("FRUGAL_WORKERS_FILE", width_path().c_str(), 1);
    ::setenv("FRUGAL_JOB_ID", std::to_string(job.id).c_str(), 1);
    child_ = ::fork();
    if (child_ == 0) {
      ::sigprocmask(SIG_SETMASK, &before_, nullptr);
      for (const int signal : {SIGTERM, SIGINT, SIGHUP}) ::signal(signal, SIG_DFL);
      // Dies with its keeper: otherwise it could be started a second time beside itself.
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      int error_number = 0;
      const int null = ::open("/dev/null", O_RDONLY);
      if (null >= 0) ::dup2(null, 0);
      ::dup2(log, 1);
      ::dup2(log, 2);
      if (!job.folder.empty() && ::chdir(job.folder.c_str()) != 0) error_number = -errno;
      if (error_number == 0) {
        ::execvp(arguments[0], arguments.data());
        error_number = errno;
      }
      [[maybe_unused]] const ssize_t written = ::write(report[1], &error_number, sizeof error_number);
      ::_exit(127);
    }
    const int fork_error = errno;
    ::close(log);
    ::close(report[1]);
    int error_number = 0;
    ssize_t got = 0;
    if (child_ > 0) {
      do {
        got = ::read(report[0], &error_number, sizeof error_number);
      } while (got < 0 && errno == EINTR);
    }
    ::close(report[0]);
    if (child_ < 0) return fail(126, strf("cannot start a process: %s", std::strerror(fork_error)));
    if (got == sizeof error_number) {
      ::waitpid(child_, nullptr, 0);
      if (error_number < 0)
        return fail(126, strf("its folder '%s': %s", job.folder.c_str(), std::strerror(-error_number)));
      return fail(error_number == ENOENT ? 127 : 126,
                  strf("%s: %s", command[0].c_str(), std::strerror(error_number)));
    }
    main_ended_ = false;
    running_ = true;
    start_clock();
    return true;
  }

  std::string width_path() const { return kept_.job.log + ".workers"; }
  bool write_width() { return write_file_atomically(width_path(), strf("%d\n", kept_.job.workers)).ok(); }
  double rate() const {
    const Job& job = kept_.job;
    if (job.rates.empty()) return 1;
    return job
        .rates[static_cast<size_t>(std::clamp<int>(job.workers, 1, static_cast<int>(job.rates.size()))) - 1];
  }

  // Time counts while the tree runs. Wall clocks may step; lengths come from the monotonic one.
  void start_clock() {
    ticking_ = true;
    began_unix_ = clock_seconds(CLOCK_REALTIME);
    began_ = counted_ = wall_seconds();
    cpu_began_ = cpu_seconds();
    if (options_.meter != nullptr) energy_began_ = options_.meter->snapshot();
  }
  double cpu_seconds() const { return children_cpu_seconds() + tree_cpu_seconds(self_); }
  void count() {
    if (!ticking_) return;
    const double now = wall_seconds();
    kept_.job.ran_s += rate() * (now - counted_);
    counted_ = now;
  }
  void stop_clock() {
    if (!ticking_) return;
    count();
    ticking_ = false;
    const double length = wall_seconds() - began_;
    const Status added = queue_.add_run(
        kept_.job.id, {began_unix_, began_unix_ + length, kept_.job.rates.empty() ? 1 : kept_.job.workers});
    static_cast<void>(added);  // a full disk costs the stretch's record, not the job
    Usage stretch;
    stretch.wall_seconds = length;
    stretch.cpu_seconds = std::max(0.0, cpu_seconds() - cpu_began_);
    rusage used;
    ::getrusage(RUSAGE_CHILDREN, &used);
    stretch.bytes_held = 1024.0 * static_cast<double>(used.ru_maxrss);
    if (options_.meter != nullptr) {
      const meter::Charge charge = options_.meter->charge(energy_began_, stretch);
      add(kept_.cpu_j, charge.cpu_j);
      add(kept_.memory_j, charge.memory_j);
      add(kept_.gpu_j, charge.gpu_j);
      auto power = meter::power_over_time(options_.meter->samples(energy_began_), charge.share);
      if (power.empty() && length > 0) power.push_back({began_unix_, length, charge.cpu_j.value / length});
      kept_.power.insert(kept_.power.end(), power.begin(), power.end());
      if (kept_.power.size() > kMostStretches) thin_out(kept_.power);
    }
    if (stretches_++ == 0) {
      kept_.usage = stretch;
    } else {
      kept_.usage += stretch;
    }
  }
  void add(Estimate& sum, const Estimate& more) {
    if (stretches_ == 0) {
      sum = more;
    } else {
      sum += more;
    }
  }

  Result<bool> report() {
    count();
    reported_ = wall_seconds();
    return queue_.report(kept_.job.id, kept_.job.keeper, running_ ? JobState::kRunning : JobState::kPaused,
                         kept_.job.ran_s);
  }

  void follow(const Job& wished) {
    Job& job = kept_.job;
    // A deadline that draws near is met whatever the runner says, or if it is gone.
    const double fastest = job.rates.empty() ? 1 : *std::max_element(job.rates.begin(), job.rates.end());
    const double latest = job.deadline_unix_s - left_s(job) / fastest - margin_s(job.takes_s);
    const bool must = clock_seconds(CLOCK_REALTIME) >= latest;
    const int workers = must && !job.rates.empty() ? static_cast<int>(job.rates.size()) : wished.workers;
    if (!job.rates.empty() && workers != job.workers) {
      if (ticking_) {
        stop_clock();
        job.workers = workers;
        start_clock();
      }
      job.workers = workers;
      write_width();
    }
    const bool run = must || wished.wish == Wish::kRun || !job.interruptible;
    if (run && !running_) {
      resume();
    } else if (!run && running_ && !main_ended_) {
      pause();
    }
  }

  void pause() {
    if (kept_.job.checkpoint.empty()) {
      signal_tree(self_, SIGSTOP);
      stop_clock();
      paused_by_signal_ = true;
      running_ = false;
    } else {
      save_and_exit();
      if (exit_code_ == 0) return;  // it was done already: the loop ends it
      stop_clock();
      running_ = false;
    }
    const auto reported = report();
    static_cast<void>(reported);
  }

  // Asks for a checkpoint and waits for the job to exit. What does not exit in time is killed: what it had
  // saved by then counts.
  void save_and_exit() {
    const std::string command = strf("FRUGAL_JOB_PID=%d; export FRUGAL_JOB_PID; %s", static_cast<int>(child_),
                                     kept_.job.checkpoint.c_str());
    const pid_t asking = ::fork();
    if (asking == 0) {
      ::sigprocmask(SIG_SETMASK, &before_, nullptr);
      if (!kept_.job.folder.empty() && ::chdir(kept_.job.folder.c_str()) != 0) ::_exit(126);
      ::execl("/bin/sh", "sh", "-c", command.c_str(), static_cast<char*>(nullptr));
      ::_exit(127);
    }
    const double give_up = wall_seconds() + options_.grace_s;
    while (wall_seconds() < give_up) {
      reap();
      if (main_ended_ && descendants(self_).empty()) return;
      ::usleep(20000);
    }
    kill_tree();
  }

  void resume() {
    if (paused_by_signal_) {
      paused_by_signal_ = false;
      running_ = true;
      start_clock();
      signal_tree(self_, SIGCONT);
    } else if (!start(kept_.job.command)) {
      return;
    }
    const auto reported = report();
    static_cast<void>(reported);
  }

  void kill_tree() {
    const double give_up = wall_seconds() + 5;
    while (signal_tree(self_, SIGKILL) > 0 && wall_seconds() < give_up) {
      ::usleep(5000);
      reap();
    }
    reap();
  }

  // Asks the tree to end, and makes it.
  void end_tree() {
    signal_tree(self_, SIGTERM);
    signal_tree(self_, SIGCONT);
    const double give_up = wall_seconds() + options_.grace_s;
    while (wall_seconds() < give_up && !descendants(self_).empty()) {
      ::usleep(20000);
      reap();
    }
    kill_tree();
  }

  Result<Kept> cancel() {
    end_tree();
    kept_.job.error = "cancelled";
    exit_code_ = main_ended_ ? exit_code_ : 130;
    return end(JobState::kCancelled);
  }

  Result<Kept> end_early() {
    end_tree();
    if (main_ended_ && exit_code_ == 0) return end(JobState::kDone);
    kept_.job.error = "its keeper was told to end";
    if (!kept_.job.restartable && kept_.job.checkpoint.empty()) return end(JobState::kInterrupted);
    if (kept_.job.checkpoint.empty()) {
      stop_clock();
      kept_.job.ran_s = 0;
    }
    return end(JobState::kWaiting);
  }

  Result<Kept> end(JobState state) {
    stop_clock();
    Job& job = kept_.job;
    job.state = state;
    job.exit_code = exit_code_;
    job.ended_unix_s = clock_seconds(CLOCK_REALTIME);
    const Estimate& energy = kept_.usage.energy_j;
    if (energy.known()) {
      job.energy_j = energy.value;
      job.energy_low_j = energy.low;
      job.energy_high_j = energy.high;
      job.energy_from = static_cast<int>(energy.provenance);
    }
    // A full disk or a busy queue: the outcome is worth waiting for.
    for (int attempt = 0;; ++attempt) {
      const auto written = queue_.finish(job);
      if (written.ok()) return kept_;
      if (attempt >= 60) return written.error();
      ::usleep(1000000);
    }
  }

  Queue& queue_;
  const KeeperOptions options_;
  const pid_t self_;
  sigset_t signals_, before_;
  Kept kept_;
  pid_t child_ = -1;
  int exit_code_ = 0;
  bool running_ = false, paused_by_signal_ = false, main_ended_ = false, failed_to_start_ = false;
  bool ticking_ = false;
  int stretches_ = 0;
  double began_unix_ = 0, began_ = 0, counted_ = 0, cpu_began_ = 0, reported_ = 0;
  meter::Snapshot energy_began_;
};

}  // namespace

Result<Kept> keep(Queue& queue, int64_t id, const KeeperOptions& options) {
  ::setsid();  // fails for the leader of a session, which is as good
  const ProcessId self = this_process();
  FRUGAL_TRY(const bool ours, queue.claim(id, self, clock_seconds(CLOCK_REALTIME)));
  if (!ours) return Kept{};
  FRUGAL_TRY(Job job, queue.job(id));
  return Keeper(queue, std::move(job), options).run();
}

}  // namespace frugal::jobs
