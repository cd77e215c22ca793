#include "meter/command.h"

#include <fcntl.h>
#include <linux/perf_event.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <cstring>

#include "base/clock.h"
#include "base/file.h"
#include "base/text.h"
#include "meter/sysfs.h"
#include "meter/tree_memory.h"

namespace frugal::meter {
namespace {

std::atomic<pid_t> g_child{0};

void pass_on(int signal) {
  const pid_t child = g_child.load();
  if (child > 0) ::kill(child, signal);
}

void leave_to_child(int) {}

// Restores the handlers at the end of the scope.
class SignalGuard {
 public:
  SignalGuard() {
    for (size_t i = 0; i < 4; ++i) {
      struct sigaction action {};
      action.sa_handler = i < 2 ? leave_to_child : pass_on;
      ::sigaction(kSignals[i], &action, &before_[i]);
    }
  }
  ~SignalGuard() {
    for (size_t i = 0; i < 4; ++i) ::sigaction(kSignals[i], &before_[i], nullptr);
  }

 private:
  static constexpr int kSignals[4] = {SIGINT, SIGQUIT, SIGTERM, SIGHUP};
  struct sigaction before_[4];
};

// Counts user-space instructions of a process from its exec on, and of its children; -1 where the kernel or
// the host does not.
int open_instruction_counter(pid_t process) {
  perf_event_attr attributes{};
  attributes.size = sizeof attributes;
  attributes.type = PERF_TYPE_HARDWARE;
  attributes.config = PERF_COUNT_HW_INSTRUCTIONS;
  attributes.inherit = 1;
  attributes.disabled = 1;
  attributes.enable_on_exec = 1;
  attributes.exclude_kernel = 1;
  attributes.exclude_hv = 1;
  return static_cast<int>(::syscall(SYS_perf_event_open, &attributes, process, -1, -1, PERF_FLAG_FD_CLOEXEC));
}

double seconds(const timeval& time) {
  return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
}

// CPU time so far of live descendants of this process that were orphaned to it, and how many there are.
double orphan_cpu_seconds(int& count) {
  const double tick = 1.0 / static_cast<double>(::sysconf(_SC_CLK_TCK));
  const auto self = static_cast<int>(::getpid());
  double sum = 0;
  for (const std::string& name : list_directory("/proc")) {
    int pid = 0;
    if (std::from_chars(name.data(), name.data() + name.size(), pid).ec != std::errc() || pid == self)
      continue;
    const auto line = read_line("/proc/" + name + "/stat");
    if (!line.ok()) continue;
    const size_t close = line->rfind(')');  // the name before it may hold anything
    if (close == std::string::npos) continue;
    const std::vector<std::string> fields = split(std::string_view(*line).substr(close + 2), ' ');
    if (fields.size() < 15 || fields[1] != std::to_string(self)) continue;
    // utime, stime, and those of children that it waited for.
    for (int i = 11; i < 15; ++i) {
      double ticks = 0;
      std::from_chars(fields[static_cast<size_t>(i)].data(),
                      fields[static_cast<size_t>(i)].data() + fields[static_cast<size_t>(i)].size(), ticks);
      sum += ticks * tick;
    }
    ++count;
  }
  return sum;
}

}  // namespace

Result<CommandResult> run_command(const std::vector<std::string>& words) {
  if (words.empty() || words[0].empty()) return {ErrorCode::kInvalidArgument, "no command to run"};
  std::vector<char*> arguments;
  for (const std::string& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);

  // Orphans of the command come to us, so that their time is not lost.
  ::prctl(PR_SET_CHILD_SUBREAPER, 1);
  int report[2];  // errno of a failed exec; closed by a successful one
  if (::pipe2(report, O_CLOEXEC) != 0) return io_error("open", "a pipe", errno);
  CommandResult result;
  const SignalGuard guard;
  rusage before;
  ::getrusage(RUSAGE_CHILDREN, &before);
  int go[2];  // the child waits for its instruction counter
  if (::pipe2(go, O_CLOEXEC) != 0) {
    const int error_number = errno;
    ::close(report[0]);
    ::close(report[1]);
    return io_error("open", "a pipe", error_number);
  }
  const double start = wall_seconds();
  const pid_t child = ::fork();
  if (child == 0) {
    for (const int signal : {SIGINT, SIGQUIT, SIGTERM, SIGHUP}) ::signal(signal, SIG_DFL);
    // The parent attaches its instruction counter first, and closes its end.
    ::close(go[1]);
    char byte;
    while (::read(go[0], &byte, 1) < 0 && errno == EINTR) {
    }
    ::execvp(arguments[0], arguments.data());
    const int error_number = errno;
    [[maybe_unused]] const ssize_t written = ::write(report[1], &error_number, sizeof error_number);
    ::_exit(error_number == ENOENT ? 127 : 126);
  }
  const int fork_error = errno;
  const int counter = child > 0 ? open_instruction_counter(child) : -1;
  ::close(go[0]);
  ::close(go[1]);
  ::close(report[1]);
  if (child < 0) {
    ::close(report[0]);
    return io_error("start", words[0], fork_error);
  }
  g_child = child;
  int exec_error = 0;
  ssize_t got;
  do {
    got = ::read(report[0], &exec_error, sizeof exec_error);
  } while (got < 0 && errno == EINTR);
  ::close(report[0]);
  result.started = got != sizeof exec_error;
  if (!result.started) result.failure = strf("%s: %s", words[0].c_str(), std::strerror(exec_error));

  int status = 0;
  double tree_bytes = 0;
  {
    TreeMemoryWatch memory;
    while (::waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    tree_bytes = memory.peak_bytes();
  }
  g_child = 0;
  result.usage.wall_seconds = wall_seconds() - start;
  // Orphans that ended already are reaped; those that live on are counted as they stand.
  while (::waitpid(-1, nullptr, WNOHANG) > 0) {
  }
  if (counter >= 0) {
    uint64_t count = 0;
    if (::read(counter, &count, sizeof count) == sizeof count) result.instructions = count;
    ::close(counter);
  }
  rusage after;
  ::getrusage(RUSAGE_CHILDREN, &after);
  result.user_seconds = seconds(after.ru_utime) - seconds(before.ru_utime);
  result.system_seconds = seconds(after.ru_stime) - seconds(before.ru_stime);
  result.usage.cpu_seconds =
      result.user_seconds + result.system_seconds + orphan_cpu_seconds(result.orphans_left);
  result.usage.bytes_held = std::max(tree_bytes, 1024.0 * static_cast<double>(after.ru_maxrss));
  result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return result;
}

}  // namespace frugal::meter
