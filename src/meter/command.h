// Runs a command and its children, and counts what they used: `time`, with memory, and orphans included.
#pragma once

#include <csignal>
#include <functional>
#include <string>
#include <vector>

#include "frugal/result.h"
#include "frugal/usage.h"

namespace frugal::meter {

struct CommandResult {
  // cpu_seconds and wall_seconds of the whole tree; bytes_held: the most that it held, as it was sampled, and
  // at least the largest process.
  Usage usage;
  int exit_code =
      0;  // as a shell gives it: 128 + signal when it was killed, 127 not found, 126 not executable
  bool started = false;
  std::string failure;        // why it did not start
  uint64_t instructions = 0;  // in user space, over the tree; 0 where perf does not count
  double user_seconds = 0, system_seconds = 0;
  int orphans_left = 0;  // descendants that went on after the command ended; their CPU time so far is counted
};

// Waits for the command to end. Signals SIGINT, SIGQUIT, SIGTERM, SIGHUP that this process gets meanwhile are
// left to the command: the first two reach it from the terminal, the others are passed on. Not for use beside
// other children of this process: it reaps them all.
Result<CommandResult> run_command(const std::vector<std::string>& words);

}  // namespace frugal::meter
