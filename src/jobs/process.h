// Processes by an identity that survives pid reuse and reboots, and whole trees of them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace frugal::jobs {

struct ProcessId {
  int64_t pid = 0;    // 0: none
  int64_t start = 0;  // clock ticks after boot
  std::string boot;   // the kernel's boot id
};

// Empty (pid 0) when there is no such process.
ProcessId identify(int64_t pid);
ProcessId this_process();
bool is_alive(const ProcessId& process);

// Live descendants of `root` (itself not among them), zombies left out.
std::vector<int64_t> descendants(int64_t root);

// CPU time of the live descendants of `root`, and of their dead children that they waited for.
double tree_cpu_seconds(int64_t root);

// Sends `signal` to every descendant of `root`, again and again until no new one turns up: a tree that forks
// while it is being stopped is caught too. Returns how many got it.
int signal_tree(int64_t root, int signal);

// Kills what a dead leader left behind: processes of session `leader.pid` that began after it.
void kill_session(const ProcessId& leader);

}  // namespace frugal::jobs
