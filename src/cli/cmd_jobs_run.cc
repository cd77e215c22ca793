// frugal jobs run: the runner. Starts what is due, pauses and resumes, and can be killed at any time: what
// runs goes on, and the next runner takes over.
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstring>
#include <memory>

#include "base/clock.h"
#include "base/file.h"
#include "base/text.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/jobs_pool.h"
#include "cli/jobs_setup.h"
#include "jobs/runner.h"

namespace frugal::cli {
namespace {

struct RunnerSetup {
  std::shared_ptr<JobsSetup> setup;
  int threads = 0;
  double poll_s = 2;
  bool until_empty = false;
  bool quiet = false;
};

// Starts `frugal jobs exec ID` as a child of init, in a session of its own, so that it outlives this runner.
Status start_keeper(const JobsSetup& setup, int64_t id) {
  const std::string queue = setup.path();
  char self[PATH_MAX];
  const ssize_t n = ::readlink("/proc/self/exe", self, sizeof self - 1);
  if (n <= 0) return io_error("find", "/proc/self/exe", errno);
  self[n] = '\0';
  const std::string number = std::to_string(id);
  std::vector<const char*> arguments = {"frugal", "jobs", "exec", "--quiet", "--queue", queue.c_str()};
  if (!setup.nats_credentials.empty())
    arguments.insert(arguments.end(), {"--nats-creds", setup.nats_credentials.c_str()});
  if (!setup.host.empty()) arguments.insert(arguments.end(), {"--host-name", setup.host.c_str()});
  arguments.insert(arguments.end(), {number.c_str(), nullptr});
  const pid_t middle = ::fork();
  if (middle < 0) return io_error("start", "a keeper", errno);
  if (middle == 0) {
    ::setsid();
    if (::fork() != 0) ::_exit(0);
    for (const int signal : {SIGINT, SIGTERM, SIGHUP}) ::signal(signal, SIG_DFL);
    const int null = ::open("/dev/null", O_RDWR);
    for (int fd = 0; fd < 3; ++fd) ::dup2(null, fd);
    for (int fd = 3; fd < 1024; ++fd) ::close(fd);
    ::execv(self, const_cast<char* const*>(arguments.data()));
    ::_exit(127);
  }
  int status = 0;
  while (::waitpid(middle, &status, 0) < 0 && errno == EINTR) {
  }
  return {};
}

int run(const RunnerSetup& options) {
  const std::string path = options.setup->path();
  auto queue = jobs::Queue::open(path);
  if (!queue.ok()) return fail(queue.error());
  auto lock = jobs::RunnerLock::take(path);
  if (!lock.ok()) return fail(lock.error());
  install_interrupt_handler();
  std::string last_note;
  const auto say = [&](const std::string& text) {
    if (!options.quiet)
      std::fprintf(stderr, "%s  %s\n", local_time(clock_seconds(CLOCK_REALTIME)).c_str(), text.c_str());
  };
  const auto known = (*queue)->jobs(true);
  if (!known.ok()) return fail(known.error());
  CarbonData carbon = carbon_data(*options.setup, *known);
  jobs::RunnerOptions runner;
  runner.threads = options.threads > 0 ? options.threads : static_cast<int>(::sysconf(_SC_NPROCESSORS_ONLN));
  runner.start = [&](int64_t id) { return start_keeper(*options.setup, id); };
  runner.outlook = [&](double now, size_t n) -> std::optional<jobs::Outlook> {
    auto outlook = carbon.outlook(now, n);
    std::string note;
    if (!outlook.ok()) {
      note = outlook.error().message + "; jobs run at once";
    } else if (*outlook) {
      note = (*outlook)->note;
    } else {
      note = "no carbon data (--carbon-file): jobs run at once";
    }
    if (note != last_note) say("note: " + note);
    last_note = note;
    return outlook.ok() ? *outlook : std::nullopt;
  };
  say(strf("serving %s with %d threads", path.c_str(), runner.threads));
  std::unique_ptr<PoolLink> pool;
  if (!options.setup->nats.empty()) pool = std::make_unique<PoolLink>(*options.setup, runner.threads, say);
  while (!interrupted()) {
    if (pool != nullptr) pool->look(**queue, clock_seconds(CLOCK_REALTIME));
    if (!carbon.named()) {
      const auto jobs = (*queue)->jobs(false);
      if (jobs.ok()) carbon = carbon_data(*options.setup, *jobs);
    }
    const auto report = jobs::look(**queue, clock_seconds(CLOCK_REALTIME), runner);
    if (!report.ok()) {
      // A full disk or a queue that is held: nothing is lost, try again.
      say("warning: " + report.error().message);
    } else {
      const auto tell = [&](const std::vector<int64_t>& ids, const char* what) {
        for (const int64_t id : ids) say(strf("job %lld %s", static_cast<long long>(id), what));
      };
      for (const jobs::Job& job : report->recovered) {
        say(strf(
            "job %lld: its keeper died with it; %s", static_cast<long long>(job.id),
            job.state == jobs::JobState::kWaiting ? "it waits again" : "`frugal jobs retry` starts it anew"));
      }
      tell(report->started, "starts");
      tell(report->paused, "pauses: cleaner hours are ahead");
      tell(report->resumed, "goes on");
      if (options.until_empty && report->plans.empty()) break;
    }
    const double until = wall_seconds() + options.poll_s;
    while (!interrupted() && wall_seconds() < until) ::usleep(50000);
  }
  return interrupted() ? kExitInterrupted : kExitOk;
}

}  // namespace

Action add_jobs_run(CLI::App& app) {
  auto options = std::make_shared<RunnerSetup>();
  app.add_option("--threads", options->threads, "threads of this host that jobs may take together (0: all)")
      ->check(CLI::Range(0, 4096));
  app.add_option("--poll", options->poll_s, "seconds between looks at the queue")
      ->check(CLI::Range(0.1, 3600.0));
  app.add_flag("--until-empty", options->until_empty, "end when no job is left");
  app.add_flag("-q,--quiet", options->quiet, "say nothing about what starts and pauses");
  options->setup = add_jobs_options(app, true);
  add_pool_options(app, *options->setup, true);
  app.footer(
      "Started again after a crash or a reboot it takes up where the last one left: a systemd unit or a\n"
      "crontab line `@reboot frugal jobs run` makes it permanent.");
  return [options] { return run(*options); };
}

}  // namespace frugal::cli
