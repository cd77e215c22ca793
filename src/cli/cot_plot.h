// Pictures of `frugal cot eval`, as SVG.
#pragma once

#include <string>
#include <vector>

#include "cli/cot_report.h"

namespace frugal::cli {

// Agreement with the whole chain over time saved, of FastCoT and Trunc-CoT.
std::string glance_svg(const std::vector<CotPoint>& curve);

// Speed over greedy decoding by longest draft, 0 to 16, of the adaptive and the fixed window: the rows
// "window N" and "window N, fixed". Empty when there is none.
std::string windows_svg(const std::vector<BenchRow>& rows);

}  // namespace frugal::cli
