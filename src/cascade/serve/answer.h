// Shared by the sidecar's files: answers that are errors.
#pragma once

#include <string>

#include "cascade/serve/sidecar.h"

namespace frugal::cascade {

Sidecar::Answer error_answer(int status, ErrorCode code, const std::string& why);

}  // namespace frugal::cascade
