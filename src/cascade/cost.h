// What a chain takes on this machine, measured: processor time and latency of a request, by the item counts
// of its stages and by how many requests wait together. FLOPs rank chains differently where looking up and
// sorting take as long as products.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "frugal/cascade.h"
#include "frugal/meter.h"

namespace frugal::cascade {

// One model of one stage, at each of its item counts: of the first stage those that it passes on, of the
// others those that it scores. Made monotone: more items never cost less, and a longer queue of requests,
// scored together, never makes one dearer.
struct StageCosts {
  int stage = 0, model = 0;
  std::vector<int> counts;        // [n], ascending
  std::vector<double> cpu_s;      // [n_batches, n], of a request
  std::vector<double> wall_s;     // [n_batches, n], until the whole batch is done
  std::vector<double> cpu_raw_s;  // [n_batches, n], as measured
};

struct CascadeCosts {
  std::vector<int> batches;  // requests that wait together, ascending
  std::vector<StageCosts> stages;
  double overhead_s = 0;  // processor time of a request outside of its stages
  // Of a chain measured as a whole beside the sum of its stages, the median of the relative error.
  double error = 0;
  Estimate joules_per_cpu_s;
  std::string cpu_name;

  // Of a request by chain [n_chains], where `batch` of `batches` requests wait together.
  std::vector<double> cpu_s(const CascadeSpec& spec, size_t batch) const;
  std::vector<double> latency_s(const CascadeSpec& spec, size_t batch) const;
};

struct CostMeasureOptions {
  std::vector<int> batches = {1, 4, 16};
  int rounds = 7;   // medians over them
  int covered = 5;  // chains that are served have each model and count of a stage at least so often
  int n_threads = 1;
  std::function<void(const std::string&)> progress;
};
// Serves requests of a split by chains that together have every model and count. kNotFound, kCorrupt:
// DIR/history_<split>.npy, seen_<split>.npy, a stage's model; kInvalidArgument.
Result<CascadeCosts> measure_costs(const std::string& folder, const std::string& split,
                                   const CascadeSpec& spec, meter::PowerMeter& meter,
                                   const CostMeasureOptions& options);

// DIR/costs.json. kCorrupt: a field that is wrong, or costs of another cascade.
Status save_costs(const std::string& path, const CascadeCosts& costs);
Result<CascadeCosts> load_costs(const std::string& path, const CascadeSpec& spec);

// How two measures rank chains.
struct RankComparison {
  double spearman = 0;
  int swapped = 0, pairs = 0;  // pairs that the measures put in opposite orders, of those that differ in both
  // The pairs that swap furthest: `cheap` has this share of the FLOPs of `dear` and yet this multiple of its
  // time.
  struct Pair {
    int cheap = 0, dear = 0;
    double flops_ratio = 0, cpu_ratio = 0;
  };
  std::vector<Pair> worst;
};
RankComparison compare_ranks(std::span<const double> flops, std::span<const double> cpu_s, int n_worst);

}  // namespace frugal::cascade
