// Small files of /sys and /proc.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "frugal/result.h"

namespace frugal::meter {

// First line, trimmed. kNotFound, kPermission, kIo.
Result<std::string> read_line(const std::string& path);

// The first line as an unsigned number. kCorrupt when it is none.
Result<uint64_t> read_number(const std::string& path);

// Names in a directory, sorted; empty when there is none.
std::vector<std::string> list_directory(const std::string& path);

}  // namespace frugal::meter
