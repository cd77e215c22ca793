// The allocator as a service beside a recommender, or as the whole recommender. Over HTTP:
//
//   POST /v1/decide     {"features": [..]}                -> {"chain", "index", "actions", "counts", "flops",
//                                                             "price", "kind", "reward", "score"}
//                       {"requests": [[..], [..]]}        -> {"decisions": [..]}
//   POST /v1/recommend  {"features", "history", "seen"}   -> the same and "items", best first
//                       {"requests": [{..}, {..}]}        -> {"decisions": [..]}
// A body with "limit_ms" gets chains that take no longer, by the costs measured for budgets of latency.
//
//   GET  /v1/state      prices, use of the window, what was saved; GET /metrics the same for Prometheus; GET
//                       /healthz
//
// The reward model may be replaced under load: the file is looked at every second, a new one is loaded beside
// the old and swapped in one step, and a damaged one is refused while the old keeps serving.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "budget/share/share.h"
#include "cascade/serve/budgets.h"
#include "cascade/serve/items.h"
#include "frugal/cascade.h"

namespace frugal::cascade {

struct SidecarOptions {
  std::string model_path;
  BudgetOptions budgets = {};
  budget::GovernorOptions governor = {};
  // This chain is always answered, and what would have been chosen is only counted; -1: off.
  int shadow_chain = -1;
  // The chains on offer, ascending; empty: all. Where none may be chosen (no reward, a budget that is gone)
  // the cheapest of all chains is still served.
  std::vector<int> menu = {};
  std::optional<budget::ShareOptions> share = {};  // one price with other allocators
  std::string items_folder;  // of the cascade whose stages answer /v1/recommend; empty: decisions alone
  ItemOptions items = {.runner = {.open = open_scorer}};
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
  // Calls `done` once, from this or another thread. 400 as above; 404 without items_folder; 503 with the
  // reason when a stage fails or too many wait.
  void recommend(std::string_view body, std::function<void(Answer)> done);
  Answer state() const;
  Answer metrics() const;
  struct Totals {
    uint64_t requests = 0;
    double flops = 0;  // of the chains decided on
  };
  Totals totals() const;

  // `now_s` in Unix time, by which budgets go. With a shared price its own thread ticks, on the clock that
  // allocators share.
  void tick(double now_s) {
    if (share_ == nullptr) governor_->tick(now_s);
  }
  bool tick_wanted() const { return share_ == nullptr && governor_->tick_wanted(); }
  // Loads the model's file again when it has changed. True if a new model serves now; a refused one is logged
  // and counted.
  bool reload();

  // In shadow mode: logs what the allocator would have done and saved so far.
  void log_shadow() const;

  const CascadeSpec& spec() const { return spec_; }

 private:
  Sidecar();
  struct Lane;  // a decider and its scratch space: one for each request in flight
  class LaneLease;
  struct Picked {
    budget::Decision decision;
    int answered = 0;  // chain
  };
  // `limit_s`: of the request's latency; 0: none.
  Result<Picked> pick(const nlohmann::json& features, double limit_s, const RewardModel& model, Lane& lane);
  Result<double> limit_of(const nlohmann::json& json) const;
  std::string picked_json(const Picked& picked, const Lane& lane) const;  // without the closing brace
  // A chain for each request of a body, into the jobs, and the answers' beginnings.
  Status pick_for(const nlohmann::json& json, bool batch, std::vector<std::string>& answers,
                  std::vector<ItemService::Job>& jobs);
  Result<ItemService::Job> read_job(const nlohmann::json& request) const;
  Answer refuse(const std::string& why);

  CascadeSpec spec_;
  SidecarOptions options_;
  Budgets budgets_;
  std::shared_ptr<budget::Governor> governor_;
  std::unique_ptr<budget::PriceShare> share_;
  std::atomic<std::shared_ptr<const RewardModel>> model_;
  int64_t model_time_ = 0;
  std::vector<std::string> chain_json_;  // the part of an answer that depends on the chain alone
  mutable std::mutex lanes_mutex_;
  std::vector<std::unique_ptr<Lane>> idle_lanes_;
  std::atomic<uint64_t> bad_requests_{0}, models_loaded_{0}, models_refused_{0};
  std::atomic<uint64_t> recommended_{0}, failed_{0};        // requests with items, and those that got none
  std::atomic<double> shadow_flops_{0}, shadow_reward_{0};  // of the shadow chain, for what was decided
  std::unique_ptr<ItemService> items_;  // the last member: its threads end before what they answer into
};

}  // namespace frugal::cascade
