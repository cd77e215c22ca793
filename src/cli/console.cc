#include "cli/console.h"

#include <unistd.h>

#include <csignal>
#include <cstdio>

#include "base/clock.h"
#include "base/text.h"
#include "cli/commands.h"
#include "frugal/log.h"

namespace frugal::cli {

namespace {

std::atomic<bool> interrupt_flag{false};
static_assert(std::atomic<bool>::is_always_lock_free);  // it is set in a signal handler

extern "C" void on_interrupt(int) {
  if (interrupt_flag.exchange(true)) _exit(kExitInterrupted);
}

}  // namespace

int exit_code_of(ErrorCode code) {
  switch (code) {
    case ErrorCode::kInvalidArgument:
    case ErrorCode::kOutOfRange:
      return kExitUsage;
    case ErrorCode::kNotFound:
    case ErrorCode::kCorrupt:
    case ErrorCode::kUnsupported:
      return kExitBadInput;
    case ErrorCode::kNoMemory:
    case ErrorCode::kPermission:
    case ErrorCode::kIo:
      return kExitNoResource;
    case ErrorCode::kCancelled:
      return kExitInterrupted;
    case ErrorCode::kUnavailable:
      return kExitFailure;
  }
  return kExitFailure;
}

int fail(const Error& error) {
  // One line, whatever bytes a file name or a prompt put into the message.
  std::string line = utf8_sanitized(error.message);
  for (char& c : line) c = static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
  std::fprintf(stderr, "frugal: error: %s\n", line.c_str());
  return exit_code_of(error.code);
}

void install_log_sink() {
  set_log_sink([](LogLevel level, std::string_view message) {
    if (level < LogLevel::kWarning) return;
    std::fprintf(stderr, "frugal: %s: %.*s\n", level == LogLevel::kWarning ? "warning" : "error",
                 static_cast<int>(message.size()), message.data());
  });
}

void install_interrupt_handler() {
  struct sigaction action = {};
  action.sa_handler = on_interrupt;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
}

std::atomic<bool>& interrupted() { return interrupt_flag; }

bool print(std::string_view text) {
  return std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0;
}

bool stderr_is_terminal() {
  static const bool terminal = isatty(STDERR_FILENO) == 1;
  return terminal;
}

ProgressBar::ProgressBar(std::string label, std::string unit, bool enabled)
    : label_(std::move(label)),
      unit_(std::move(unit)),
      enabled_(enabled && stderr_is_terminal()),
      begin_s_(wall_seconds()) {}

ProgressBar::~ProgressBar() { finish(); }

void ProgressBar::update(double done, double total) {
  if (!enabled_ || total <= 0) return;
  const double now = wall_seconds(), elapsed = now - begin_s_;
  constexpr double kWorthABar = 2;       // seconds of the whole work
  constexpr double kBetweenDraws = 0.1;  // seconds: a terminal over a slow line must not be the bottleneck
  const double share = done / total;
  const bool lasts = elapsed > kWorthABar || (share > 0 && elapsed > 0.2 && elapsed / share > kWorthABar);
  if (!lasts || now - last_s_ < kBetweenDraws) return;
  last_s_ = now;
  drawn_ = true;
  constexpr int kWidth = 24;
  const int filled = static_cast<int>(share * kWidth);
  const double left = share > 0 ? elapsed / share - elapsed : 0;
  std::fprintf(stderr, "\r\033[K%s [%.*s%*s] %.0f/%.0f %s, %s left", label_.c_str(), filled,
               "########################", kWidth - filled, "", done, total, unit_.c_str(),
               human_seconds(left).c_str());
  std::fflush(stderr);
}

void ProgressBar::finish() {
  if (drawn_) {
    std::fputs("\r\033[K", stderr);
    std::fflush(stderr);
  }
  drawn_ = false;
}

}  // namespace frugal::cli
