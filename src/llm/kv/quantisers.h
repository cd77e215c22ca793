// Quantisers of coefficients, fitted to a sample of them.
#pragma once

#include <cstdint>
#include <vector>

#include "llm/kv/dictionary.h"

namespace frugal::llm {

// Coefficients of a token as its stream has them, with what their errors cost and the bits of their codes.
struct CoefficientRow {
  std::vector<float> y, weights;
  std::vector<uint8_t> bits;  // 1 to 4
};

// Levels of 1 to 4 bits, fitted by turns to the paths that rows take with them (Lloyd's iteration), and the
// even steps for 6 and 8 bits that lose least of `values`.
CoefficientLevels quantisers_of(std::vector<float> values, const std::vector<CoefficientRow>& rows);

}  // namespace frugal::llm
