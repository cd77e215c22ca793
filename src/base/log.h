// Sends messages to the sink that the application installed (frugal/log.h).
#pragma once

#include <string_view>

#include "frugal/log.h"

namespace frugal {
void log(LogLevel level, std::string_view message);
}
