// Scalar quantisers of coefficients, fitted to a sample of them.
#pragma once

#include <vector>

#include "llm/kv/dictionary.h"

namespace frugal::llm {

// Lloyd's levels for 1 to 4 bits, and the even steps for 6 and 8 bits that lose least.
CoefficientLevels quantisers_of(std::vector<float> y);

}  // namespace frugal::llm
