// The test requests served by the real stage models under several policies by turns: what each takes in
// processor time and joules, and what it earns.
#pragma once

#include <functional>

#include "cascade/evaluate.h"
#include "cascade/runner.h"
#include "frugal/meter.h"

namespace frugal::cascade {

struct ReplayPolicy {
  std::string name;
  int chain = 0;                             // for everyone, where there is no model
  std::shared_ptr<const RewardModel> model;  // chooses the chain by reward - priced
  std::vector<float> priced;                 // [n_chains]: price * cost
};
// The best static chain (the first), the cheapest within 1 % of it, and each seed's allocator at equal
// reward. `costs` [n_chains] are what the evaluation priced.
std::vector<ReplayPolicy> replay_policies(const Evaluation& evaluation, std::span<const double> costs,
                                          const std::string& name);

struct ReplayArm {
  std::string name;
  double clicks = 0, flops = 0;             // a request; FLOPs by formula, the reward model's own included
  double cpu_s = 0, wall_s = 0;             // a request, median over rounds
  double latency_s = 0, latency_p99_s = 0;  // from arrival to answer, last round; with ReplayOptions::rate
  double batch = 0;                         // requests served at once, mean of the last round
  Estimate joules;                          // a request, mean over rounds
  std::vector<double> round_cpu_s;          // a request, by round
};

struct ReplayResult {
  int n = 0, rounds = 0;
  std::vector<ReplayArm> arms;  // as the policies
  double disagreeing = 0;       // share of requests whose clicks differ from those in rewards_<split>.npy
};

// 1 - of / beside by round: median, least and most.
struct Saved {
  double median = 0, least = 0, most = 0;
};
Saved cpu_saved(const ReplayArm& of, const ReplayArm& beside);

struct ReplayOptions {
  int rounds = 5;
  int batch = 256;  // requests handed to the cascade at once: those of one model are scored together
  int max_batch = 16;
  // Requests a second that arrive (Poisson), whatever is done by then: what waits is served together, up to
  // `batch`. 0: all are there at the start.
  double rate = 0;
  int n_threads = 1;
  OpenScorer open = open_onnx_scorer;
  std::function<void(const std::string&)> progress;
};

// Serves all of `requests`, the first of the split. kNotFound, kCorrupt: DIR/history_<split>.npy,
// seen_<split>.npy, clicked_<split>.npy, or a stage's model.
Result<ReplayResult> replay(const std::string& folder, const std::string& split, const CascadeSpec& spec,
                            const Replayed& requests, std::span<const ReplayPolicy> policies,
                            meter::PowerMeter& meter, const ReplayOptions& options);

}  // namespace frugal::cascade
