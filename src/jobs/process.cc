#include "jobs/process.h"

#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <map>
#include <set>

#include "base/text.h"
#include "meter/sysfs.h"

namespace frugal::jobs {
namespace {

struct Stat {
  char state = '?';
  int64_t parent = 0, session = 0, start = 0;
  double cpu_ticks = 0;
};

int64_t to_number(const std::string& text) {
  int64_t value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

bool read_stat(int64_t pid, Stat& stat) {
  const auto line = meter::read_line(strf("/proc/%lld/stat", static_cast<long long>(pid)));
  if (!line.ok()) return false;
  const size_t close = line->rfind(')');  // the name before it may hold anything
  if (close == std::string::npos || close + 2 >= line->size()) return false;
  // From field 3 on: state ppid pgrp session ... utime(14) stime cutime cstime ... starttime(22)
  const std::vector<std::string> fields = split(std::string_view(*line).substr(close + 2), ' ');
  if (fields.size() < 20) return false;
  stat.state = fields[0].empty() ? '?' : fields[0][0];
  stat.parent = to_number(fields[1]);
  stat.session = to_number(fields[3]);
  for (size_t i = 11; i < 15; ++i) stat.cpu_ticks += static_cast<double>(to_number(fields[i]));
  stat.start = to_number(fields[19]);
  return true;
}

std::map<int64_t, Stat> read_all() {
  std::map<int64_t, Stat> all;
  for (const std::string& name : meter::list_directory("/proc")) {
    if (name.empty() || name[0] < '0' || name[0] > '9') continue;
    Stat stat;
    const int64_t pid = to_number(name);
    if (pid > 0 && read_stat(pid, stat)) all[pid] = stat;
  }
  return all;
}

// Descendants of `root`, zombies among them.
std::vector<int64_t> below(const std::map<int64_t, Stat>& all, int64_t root) {
  std::multimap<int64_t, int64_t> children;
  for (const auto& [pid, stat] : all) children.emplace(stat.parent, pid);
  std::vector<int64_t> found = {root};
  for (size_t i = 0; i < found.size(); ++i) {
    const auto [begin, end] = children.equal_range(found[i]);
    for (auto it = begin; it != end; ++it) {
      if (std::find(found.begin(), found.end(), it->second) == found.end()) found.push_back(it->second);
    }
  }
  found.erase(found.begin());
  return found;
}

std::string boot_id() {
  const auto id = meter::read_line("/proc/sys/kernel/random/boot_id");
  return id.ok() ? *id : "";
}

}  // namespace

ProcessId identify(int64_t pid) {
  Stat stat;
  if (pid <= 0 || !read_stat(pid, stat)) return {};
  return {pid, stat.start, boot_id()};
}

ProcessId this_process() { return identify(::getpid()); }

bool is_alive(const ProcessId& process) {
  Stat stat;
  return process.pid > 0 && read_stat(process.pid, stat) && stat.start == process.start &&
         stat.state != 'Z' && stat.state != 'X' && boot_id() == process.boot;
}

std::vector<int64_t> descendants(int64_t root) {
  const auto all = read_all();
  std::vector<int64_t> found = below(all, root);
  std::erase_if(found, [&](int64_t pid) { return all.at(pid).state == 'Z'; });
  return found;
}

double tree_cpu_seconds(int64_t root) {
  const auto all = read_all();
  double ticks = 0;
  for (const int64_t pid : below(all, root)) ticks += all.at(pid).cpu_ticks;
  return ticks / static_cast<double>(::sysconf(_SC_CLK_TCK));
}

int signal_tree(int64_t root, int signal) {
  std::set<int64_t> reached;
  // A tree that forks faster than it is walked a hundred times is not to be caught this way.
  for (int round = 0; round < 100; ++round) {
    bool any = false;
    for (const int64_t pid : descendants(root)) {
      if (!reached.insert(pid).second) continue;
      any = true;
      ::kill(static_cast<pid_t>(pid), signal);
    }
    if (!any) break;
  }
  return static_cast<int>(reached.size());
}

void kill_session(const ProcessId& leader) {
  if (leader.pid <= 0 || leader.boot != boot_id()) return;
  for (const auto& [pid, stat] : read_all()) {
    if (stat.session == leader.pid && stat.start >= leader.start && pid != ::getpid()) {
      ::kill(static_cast<pid_t>(pid), SIGKILL);
    }
  }
}

}  // namespace frugal::jobs
