// Memory of all descendants of this process together. The kernel tells the peak of one process (ru_maxrss);
// that of a tree has to be sampled.
#pragma once

#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>

namespace frugal::meter {

// Bytes that the descendants of process `root` hold now: what each has for itself, and the largest part that
// one of them shares with others (libraries, mapped files) once. Pages that forked processes still share
// count for each.
double tree_memory_bytes(int64_t root, const std::string& procfs = "/proc");

// Samples the descendants of this process in a thread of its own, first after a tenth of a second, then less
// and less often: once a second at most, and so seldom that it takes 0.2 % of a processor.
class TreeMemoryWatch {
 public:
  TreeMemoryWatch();
  ~TreeMemoryWatch();
  TreeMemoryWatch(const TreeMemoryWatch&) = delete;
  TreeMemoryWatch& operator=(const TreeMemoryWatch&) = delete;

  double peak_bytes();

 private:
  void watch();

  std::mutex mutex_;
  std::condition_variable wake_;
  bool stop_ = false;
  double peak_bytes_ = 0;
  std::thread thread_;
};

}  // namespace frugal::meter
