// Hosts that are emulated on one machine take turns at its processor, so that each computes as if it were
// alone: a file that whoever computes holds locked. Their rests (TierRunner's slowdown) hide the waiting.
#pragma once

#include <memory>
#include <mutex>
#include <string>

#include "frugal/result.h"

namespace frugal::dnn {

// Thread-safe; a lock for BasicLockable's uses, between threads and between processes.
class Turns {
 public:
  // kIo: the file cannot be opened or made.
  static Result<std::shared_ptr<Turns>> open(const std::string& path);
  ~Turns();
  Turns(const Turns&) = delete;
  Turns& operator=(const Turns&) = delete;

  void lock();
  void unlock();

 private:
  explicit Turns(int fd) : fd_(fd) {}
  std::mutex mutex_;  // locks of files are the process's, not a thread's
  int fd_;
};

}  // namespace frugal::dnn
