#include "meter/tree_memory.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <map>

#include "base/clock.h"
#include "meter/sysfs.h"

namespace frugal::meter {
namespace {

constexpr double kFirst_s = 0.1, kUsual_s = 1, kMost_s = 60;
constexpr double kShareOfProcessor = 0.002;

// Parents of all processes, by pid.
std::multimap<int64_t, int64_t> read_children(const std::string& procfs) {
  std::multimap<int64_t, int64_t> children;
  for (const std::string& name : list_directory(procfs)) {
    int64_t pid = 0, parent = 0;
    if (std::from_chars(name.data(), name.data() + name.size(), pid).ec != std::errc()) continue;
    const auto stat = read_line(procfs + "/" + name + "/stat");
    if (!stat.ok()) continue;
    const size_t close = stat->rfind(')');  // the name before it may hold anything
    if (close == std::string::npos || close + 4 >= stat->size()) continue;
    std::from_chars(stat->data() + close + 4, stat->data() + stat->size(), parent);
    children.emplace(parent, pid);
  }
  return children;
}

}  // namespace

double tree_memory_bytes(int64_t root, const std::string& procfs) {
  const auto children = read_children(procfs);
  const auto page = static_cast<double>(::sysconf(_SC_PAGESIZE));
  double own = 0, shared = 0;
  std::vector<int64_t> found = {root};
  for (size_t i = 0; i < found.size(); ++i) {
    const auto [begin, end] = children.equal_range(found[i]);
    for (auto it = begin; it != end; ++it) {
      found.push_back(it->second);
      const auto statm = read_line(procfs + "/" + std::to_string(it->second) + "/statm");
      double size = 0, resident = 0, of_it_shared = 0;
      if (!statm.ok() || std::sscanf(statm->c_str(), "%lf %lf %lf", &size, &resident, &of_it_shared) != 3)
        continue;
      own += page * std::max(resident - of_it_shared, 0.0);
      shared = std::max(shared, page * of_it_shared);
    }
  }
  return own + shared;
}

TreeMemoryWatch::TreeMemoryWatch() : thread_([this] { watch(); }) {}

TreeMemoryWatch::~TreeMemoryWatch() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_all();
  thread_.join();
}

double TreeMemoryWatch::peak_bytes() {
  const std::lock_guard lock(mutex_);
  return peak_bytes_;
}

void TreeMemoryWatch::watch() {
  std::unique_lock lock(mutex_);
  double interval = kFirst_s;
  while (!wake_.wait_for(lock, std::chrono::duration<double>(interval), [this] { return stop_; })) {
    lock.unlock();
    const double begin = clock_seconds(CLOCK_THREAD_CPUTIME_ID);
    const double bytes = tree_memory_bytes(::getpid());
    const double cost = clock_seconds(CLOCK_THREAD_CPUTIME_ID) - begin;
    lock.lock();
    peak_bytes_ = std::max(peak_bytes_, bytes);
    interval = std::clamp(cost / kShareOfProcessor, std::min(2 * interval, kUsual_s), kMost_s);
  }
}

}  // namespace frugal::meter
