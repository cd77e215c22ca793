// Frames in throughput mode while workers die, links are cut and rates step.
#pragma once

#include "cli/testbed_bench.h"

namespace frugal::cli {

// `log`: one line of JSON for every fault and every gap of more than half a second between answers.
Result<ChaosResult> run_chaos(Bench& bench, TestbedHosts& hosts, const std::string& near_name, int n_frames,
                              std::string& log);

}  // namespace frugal::cli
