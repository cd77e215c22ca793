#include "base/log.h"

#include <memory>
#include <mutex>
#include <utility>

namespace frugal {
namespace {

std::mutex mutex;
std::shared_ptr<const LogSink> current;

}  // namespace

void set_log_sink(LogSink sink) {
  std::lock_guard lock(mutex);
  current = sink ? std::make_shared<const LogSink>(std::move(sink)) : nullptr;
}

void log(LogLevel level, std::string_view message) {
  std::shared_ptr<const LogSink> sink;
  {
    std::lock_guard lock(mutex);
    sink = current;
  }
  if (sink) (*sink)(level, message);  // outside the lock: a sink may log or be replaced
}

}  // namespace frugal
