// Where the library's messages go. The library itself never prints: an application installs a sink.
#pragma once

#include <functional>
#include <string_view>

namespace frugal {

enum class LogLevel { kDebug, kInfo, kWarning, kError };

using LogSink = std::function<void(LogLevel, std::string_view message)>;

// Replaces the sink for the whole process; an empty one drops everything (the default). Thread-safe.
void set_log_sink(LogSink sink);

}  // namespace frugal
