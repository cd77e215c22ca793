// The allocator as a service beside a recommender: request features in, chain and price out.
//
//   POST /v1/decide   {"features": [..]}            -> {"chain": "..", "index": 3, "actions": [..], "counts":
//   [..], "flops": .., ...}
//                     {"requests": [[..], [..]]}    -> {"decisions": [..]}
//   GET  /v1/state    prices, use of the window, what was saved; GET /metrics the same for Prometheus; GET
//   /healthz
//
// The reward model may be replaced under load: the file is looked at every second, a new one is loaded beside
// the old and swapped in one step, and a damaged one is refused while the old keeps serving.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "frugal/cascade.h"

namespace frugal::cascade {

struct SidecarOptions {
  std::string model_path;
  double flops_per_s = 0;  // the budget; 0: no limit
  budget::GovernorOptions governor = {};
  int shadow_chain =
      -1;  // this chain is always answered, and what would have been chosen is only counted; -1: off
};

// Thread-safe, but for tick() and reload(), which one thread calls.
class Sidecar {
 public:
  static Result<std::unique_ptr<Sidecar>> create(CascadeSpec spec, SidecarOptions options);
  ~Sidecar();

  struct Answer {
    int status = 200;
    std::string body;
    const char* type = "application/json";
  };
  Answer decide(std::string_view body);  // 400 with the reason: malformed JSON, wrong number of features
  Answer state() const;
  Answer metrics() const;
  struct Totals {
    uint64_t requests = 0;
    double flops = 0;  // of the chains decided on
  };
  Totals totals() const;

  void tick(double now_s) { governor_->tick(now_s); }
  bool tick_wanted() const { return governor_->tick_wanted(); }
  // Loads the model's file again when it has changed. True if a new model serves now; a refused one is logged
  // and counted.
  bool reload();

  const CascadeSpec& spec() const { return spec_; }

 private:
  Sidecar();
  struct Lane;  // a decider and its scratch space: one for each request in flight
  class LaneLease;

  CascadeSpec spec_;
  SidecarOptions options_;
  std::shared_ptr<const budget::ChainTable> table_;
  std::shared_ptr<budget::Governor> governor_;
  std::atomic<std::shared_ptr<const RewardModel>> model_;
  int64_t model_time_ = 0;
  std::vector<std::string> chain_json_;  // the part of an answer that depends on the chain alone
  mutable std::mutex lanes_mutex_;
  std::vector<std::unique_ptr<Lane>> idle_lanes_;
  std::atomic<uint64_t> bad_requests_{0}, models_loaded_{0}, models_refused_{0};
  std::atomic<double> shadow_flops_{0}, shadow_reward_{0};  // of the shadow chain, for what was decided
};

// Serves until `stop` is true. `ready(port)` is called once it listens (port 0 asks for a free one). kIo: the
// address is taken.
Status serve_http(Sidecar& sidecar, const std::string& host, int port, int n_threads,
                  const std::atomic<bool>& stop, const std::function<void(int)>& ready);

}  // namespace frugal::cascade
