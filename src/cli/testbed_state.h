// What a testbed run has measured so far, kept in a file after every cell: a run in parts goes on where the
// last part ended.
#pragma once

#include <string>

#include "cli/testbed_report.h"

namespace frugal::cli {

// kNotFound: there is no such file. kCorrupt: not a state, or one of other options (`key` tells them apart).
Result<TestbedResult> read_testbed_state(const std::string& path, const std::string& key);
Status write_testbed_state(const std::string& path, const std::string& key, const TestbedResult& result);

}  // namespace frugal::cli
