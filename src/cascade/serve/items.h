// The whole cascade as a service: requests whose chain is chosen wait in a queue, and those that wait
// together go through the stages in one batch.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "cascade/runner.h"

namespace frugal::cascade {

struct ItemOptions {
  RunnerOptions runner;
  int n_runners = 1;       // threads, each with stages of its own, 1 to 64
  int max_waiting = 1024;  // requests in the queue; those beyond are refused, > 0
};

// Thread-safe. Ends every job: at its destruction those that still wait end with kCancelled.
class ItemService {
 public:
  // Errors of CascadeRunner::load; kInvalidArgument.
  static Result<std::unique_ptr<ItemService>> start(const std::string& folder, const CascadeSpec& spec,
                                                    const ItemOptions& options);
  virtual ~ItemService() = default;

  struct Job {
    std::vector<int64_t> history;  // [history_length]
    std::vector<int32_t> seen;
    int chain = 0;
    std::function<void(Result<std::vector<int>>)> done;  // called once, from a thread of the service
  };
  // kInvalidArgument: a history or chain that does not fit; kUnavailable: too many wait. Then `done` is never
  // called.
  virtual Status submit(Job job) = 0;
};

// A stage's model behind HTTP, where `file` is an http:// or https:// address; any other is an ONNX file.
//
//   POST {"stage", "model", "histories": [[..], ..], "items": [[..], ..]}  ->  {"scores": [[..], ..]}
//
// `items` is left out for a first stage, which gives n_items + 1 scores a row (the first is of no item). null
// is no score: such an item comes last. After a failure nobody is asked for a second, so that a dead host
// costs its timeout once and not for each request. kUnavailable, with the address.
Result<std::unique_ptr<Scorer>> open_scorer(const std::string& folder, const CascadeSpec& spec, int stage,
                                            int model, int n_threads);

}  // namespace frugal::cascade
