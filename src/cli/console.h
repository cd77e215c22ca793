// What the commands share at the terminal: errors as one line, exit codes, Ctrl-C, progress.
#pragma once

#include <atomic>
#include <string>
#include <string_view>

#include "frugal/result.h"

namespace frugal::cli {

// Prints `frugal: error: message` on stderr and returns the exit code that the error's kind has.
int fail(const Error& error);
int exit_code_of(ErrorCode code);

// Warnings and errors of the library go to stderr as `frugal: warning: ...`.
void install_log_sink();

// From here on Ctrl-C sets interrupted() instead of ending the process; a second Ctrl-C while it is still set
// ends it with 130, in case that nothing listens.
void install_interrupt_handler();
std::atomic<bool>& interrupted();

// Writes all of `text` to stdout and flushes. False once stdout is gone (a closed pipe, a full disk).
bool print(std::string_view text);

bool stderr_is_terminal();

// A bar on stderr for work that lasts: drawn only on a terminal, and only once the work is known to take over
// two seconds. Erased when finished.
class ProgressBar {
 public:
  // `unit` stands after the counts: "tokens". Disabled: draws nothing (for --json).
  ProgressBar(std::string label, std::string unit, bool enabled = true);
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void update(double done, double total);
  void finish();

 private:
  std::string label_, unit_;
  bool enabled_, drawn_ = false;
  double begin_s_, last_s_ = 0;
};

}  // namespace frugal::cli
