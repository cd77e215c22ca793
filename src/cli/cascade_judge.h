// A trained cascade judged as a whole: costs measured, policies priced on FLOPs and on processor time, and
// both served by the real models. `cascade replay`, `cascade report` and `bench cascade` show parts of it.
#pragma once

#include "cascade/cost.h"
#include "cascade/replay.h"

namespace frugal::cli {

struct JudgeOptions {
  cascade::EvaluateOptions evaluate = {};
  cascade::ReplayOptions replay = {};
  cascade::CostMeasureOptions costs = {};
  // replay.max_batch 0: the one of 8 to 128 in which the static chain that earns most on `fit` takes the
  // least processor time there.
  std::string split = "test";  // that is served; "fit": for choosing parameters
  int requests = 0;            // the first so many are served; 0: all
  std::function<void(const std::string&)> progress = {};
};

struct JudgedCascade {
  cascade::CascadeSpec spec;
  cascade::CascadeCosts costs;
  std::vector<double> flops, cpu_s;  // [n_chains], of a request; cpu_s at the largest batch
  int max_batch = 0;                 // that served
  std::string batches;               // what each took on `fit`, where it was chosen
  cascade::Evaluation by_flops, by_cpu;
  cascade::Replayed served;  // the requests that judge
  std::vector<int> rows;     // of the split, those requests
  std::vector<cascade::ReplayPolicy> policies;
  // Arms: the static chains, then each seed's price on FLOPs, then each seed's on processor time.
  cascade::ReplayResult replayed;

  std::span<const cascade::ReplayArm> arms(bool price_cpu) const {
    const size_t n = by_flops.policies.size();
    return std::span(replayed.arms).subspan(2 + (price_cpu ? n : 0), n);
  }
};

Result<JudgedCascade> judge_cascade(const std::string& folder, meter::PowerMeter& meter,
                                    const JudgeOptions& options);

// 1 - joules (processor seconds) of a request beside the static chain's, mean over seeds; the interval is
// over seeds and resamples of users by the cost model, each seed's scaled to what its replay took.
struct SavedWithBand {
  double value = 0, low = 0, high = 0;
  std::vector<double> draws;
};
SavedWithBand joules_saved(const JudgedCascade& judged, bool price_cpu);
SavedWithBand cpu_saved(const JudgedCascade& judged, bool price_cpu);

}  // namespace frugal::cli
