// The cascade itself: stage models that run, batched, and select. A stage's model is an ONNX file run by
// dnn/exec, or anything else that scores items (a remote service).
//
// ONNX stages: `history` [B, L] int64 (item numbers, newest last, 0 = none), and but for the first stage
// `items` [B, N] int64 (rows with fewer items than others of their batch are filled up with 0, whose scores
// are not looked at); `scores` [B, n_items + 1] of the first stage, [B, N] of the others, float32.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "cascade/select.h"
#include "frugal/cascade.h"

namespace frugal::cascade {

// One model of one stage. Used by one thread at a time.
class Scorer {
 public:
  virtual ~Scorer() = default;
  // histories [batch, history_length], items [batch, n] (empty for a first stage) -> scores [batch, n], or
  // [batch, n_items + 1] of a first stage, which stay until the next call and may be written to.
  virtual Result<std::span<float>> score(std::span<const int64_t> histories, std::span<const int64_t> items,
                                         int batch, int n) = 0;
};
using OpenScorer = std::function<Result<std::unique_ptr<Scorer>>(
    const std::string& folder, const CascadeSpec& spec, int stage, int model, int n_threads)>;
// A model file of the cascade's folder. Shapes are compiled when they are first met and kept: batches are
// filled up to a power of two.
Result<std::unique_ptr<Scorer>> open_onnx_scorer(const std::string& folder, const CascadeSpec& spec,
                                                 int stage, int model, int n_threads);

struct RunnerOptions {
  int n_threads = 1;
  // Requests that a model scores in one call, 1 to 1,024. More share the fixed cost of a call, but what a
  // batch of 32 leaves between operators no longer fits the second-level cache.
  int max_batch = 16;
  OpenScorer open = open_onnx_scorer;
};

struct CascadeRequest {
  std::span<const int64_t> history;  // [history_length]
  std::span<const int32_t> seen;     // items that are never shown; 0 is ignored
  int chain = 0;
};

// One stage of some requests that go through the same model in a batch: n is the width of its rows, 0 for a
// first stage.
struct StageKey {
  int stage, model, n;
  auto operator<=>(const StageKey&) const = default;
};
struct StageTime {
  double requests = 0, calls = 0, cpu_s = 0, wall_s = 0;
};

// kInvalidArgument: a history of another length, an item number or chain that there is not.
Status check_request(const CascadeSpec& spec, const CascadeRequest& request);

// Not thread-safe.
class CascadeRunner {
 public:
  // kNotFound, kCorrupt, kUnsupported: a model that cannot be read, with its name.
  static Result<std::unique_ptr<CascadeRunner>> load(const std::string& folder, CascadeSpec spec,
                                                     const RunnerOptions& options);
  // items [n][shown], best first; what a request gets does not depend on the others of the batch.
  // kInvalidArgument: a history of another length, an item number or chain that there is not; errors of a
  // scorer (kUnavailable: a remote one).
  Status serve(std::span<const CascadeRequest> requests, std::vector<std::vector<int>>& items);

  const CascadeSpec& spec() const { return spec_; }
  // Spent since the start, by stage.
  const std::map<StageKey, StageTime>& times() const { return times_; }
  void reset_times() { times_.clear(); }

 private:
  CascadeRunner() = default;
  // `members` by the number of their items.
  Status run_group(int stage, int model, std::span<const CascadeRequest> requests,
                   std::span<const size_t> members);

  CascadeSpec spec_;
  RunnerOptions options_;
  std::vector<std::vector<std::unique_ptr<Scorer>>> scorers_;  // [stage][model]
  std::map<StageKey, StageTime> times_;
  std::vector<int64_t> all_items_;  // 0 to n_items
  // Scratch. pools_: by request, what is left of the items, ascending; after the last stage best first.
  std::vector<int64_t> histories_, items_, best_;
  std::vector<std::vector<int64_t>> pools_;
  Selector selector_;
};

}  // namespace frugal::cascade
