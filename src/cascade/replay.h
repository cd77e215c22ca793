// The test requests served by the real stage models, once with the same chain for everyone and once with the
// chain that the allocator gives each: what that takes in processor time and joules, and what it earns.
#pragma once

#include <functional>

#include "cascade/evaluate.h"
#include "frugal/meter.h"

namespace frugal::cascade {

struct ReplayArm {
  double clicks = 0, flops = 0;     // a request; FLOPs by formula, the reward model's own included
  double cpu_s = 0, wall_s = 0;     // a request, median over rounds
  Estimate joules;                  // a request, of the same round
  std::vector<double> round_cpu_s;  // a request, by round
};

struct ReplayResult {
  int n = 0, rounds = 0;
  ReplayArm fixed, priced;
  // 1 - priced / fixed by round: median, least and most.
  double cpu_saved = 0, cpu_saved_low = 0, cpu_saved_high = 0;
  double joules_saved = 0, flops_saved = 0;
  double disagreeing = 0;  // share of requests whose clicks differ from those in rewards_<split>.npy
  // Processor seconds of a request, by chain: the sum of its stages', each measured at the batches of the
  // replay. [n_chains]; NaN where a stage of it never ran.
  std::vector<double> chain_cpu_s;
};

struct ReplayOptions {
  int rounds = 5;
  int batch =
      256;  // requests handed to the cascade at once: those of one model and count are scored together
  int max_batch = 32;
  int requests = 0;  // the first so many; 0: all
  int n_threads = 1;
  std::function<void(const std::string&)> progress;
};

// kNotFound, kCorrupt: DIR/history_<split>.npy, seen_<split>.npy, clicked_<split>.npy, or a stage's model.
Result<ReplayResult> replay(const std::string& folder, const std::string& split, const CascadeSpec& spec,
                            const Replayed& requests, const Evaluation& evaluation, meter::PowerMeter& meter,
                            const ReplayOptions& options);

}  // namespace frugal::cascade
