// The parts of `frugal bench cascade`: price control, the service, and quality on a trained cascade.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "cli/bench_report.h"

namespace frugal::cli {

struct CascadeBench {
  std::string data = "../shared/data";
  std::vector<std::string> cascade_folders;
  bool quick = false;
  std::function<void(const std::string&)> say;  // what is under way
  std::vector<BenchRow> rows;

  // A figure without a peer.
  void add(const std::string& name, double value, const char* unit, const std::string& how) {
    BenchRow row;
    row.name = name;
    row.unit = unit;
    row.ours = value;
    row.n = 1;
    row.how = how;
    rows.push_back(row);
  }
};

// Regret, use and over-use of the price controllers on a simulated day.
Status bench_cascade_control(CascadeBench& bench);
// The same of two budgets at once.
Status bench_cascade_budgets(CascadeBench& bench);
// Decisions a second, in process and over HTTP.
Status bench_cascade_service(CascadeBench& bench);
// Eight allocators with one budget through the death of their leader.
Status bench_cascade_share(CascadeBench& bench);
// Ablations of the reward model, and the policies, where the true rewards are known.
Status bench_cascade_ablation(CascadeBench& bench);
// A day of 10^8 requests.
Status bench_cascade_scale(CascadeBench& bench);
// FLOPs and joules saved by a trained cascade; a year of a carbon budget.
Status bench_cascade_quality(CascadeBench& bench);

}  // namespace frugal::cli
