// Carbon data by file or address. What an address answers is kept: the answers of a service grow into the
// zone's history, and without a network the last ones stand.
#pragma once

#include <string>

#include "frugal/result.h"

namespace frugal::cli {

// The file to read for --carbon-file: itself or, for an address, the history kept for it, fetched anew when
// the last answer is older than a quarter of an hour ($FRUGAL_CARBON_TOKEN is sent as `auth-token`). Without
// a network an older one is used, with a warning on stderr. Errors: nothing was ever fetched.
Result<std::string> carbon_path(const std::string& file_or_url, const std::string& region);

}  // namespace frugal::cli
