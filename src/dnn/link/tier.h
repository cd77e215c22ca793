// Tiers at work: a runner computes its share of a plan, a hop carries tensors to the next tier and brings
// results back. In process, a hop is a call behind an emulated link; between hosts it is NATS (nats_tier.h).
#pragma once

#include <atomic>
#include <list>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "dnn/exec/network.h"
#include "frugal/dnn.h"

namespace frugal::dnn {

using Values = std::map<int, HostTensor>;  // tensor -> value

// What a frame did on the tiers from some tier on.
struct FrameCost {
  std::vector<double> tier_seconds;            // [n_tiers], computing
  std::vector<uint64_t> up_bytes, down_bytes;  // [n_links]

  explicit FrameCost(size_t n_tiers = 0)
      : tier_seconds(n_tiers, 0), up_bytes(n_tiers > 0 ? n_tiers - 1 : 0, 0), down_bytes(up_bytes) {}
  FrameCost& operator+=(const FrameCost& other);
};

// The way to tier k: takes the tensors that tiers k and beyond need, returns the model outputs made there.
class Hop {
 public:
  virtual ~Hop() = default;
  // kUnavailable: the tier or the link to it is down; the frame may be run again elsewhere. Thread-safe.
  virtual Result<Values> run(const std::vector<int>& tier, Values inputs, FrameCost& cost) = 0;
};

// Computes one tier's vertices. Compiled parts are kept for the plans used last. Thread-safe: frames take
// turns.
class TierRunner {
 public:
  // `slowdown` >= 1 stretches computing by sleeping, to stand for a weaker host.
  TierRunner(std::shared_ptr<const Network> network, int k, int n_threads, double slowdown = 1);

  // Runs the vertices with tier[v] == k on `values` and adds what they make.
  Status run(const std::vector<int>& tier, Values& values, FrameCost& cost);
  // Compiles what `tier` needs without running it.
  Status prepare(const std::vector<int>& tier);
  const Network& network() const { return *network_; }
  int k() const { return k_; }

 private:
  Result<std::shared_ptr<Part>> part_for(const std::vector<int>& tier);

  std::shared_ptr<const Network> network_;
  int k_, n_threads_;
  double slowdown_;
  std::mutex mutex_;
  std::list<std::pair<std::vector<int>, std::shared_ptr<Part>>> parts_;  // by vertices, last used first
};

// Runs tiers k, k + 1, ... of a plan: this tier's share here, the rest over `next` (may be null for the last
// tier).
Result<Values> run_from(TierRunner& here, Hop* next, const std::vector<int>& tier, Values values,
                        FrameCost& cost);

// A tier in this process behind a link that is emulated by sleeping. The link and the fault can be changed at
// any time.
class LocalHop final : public Hop {
 public:
  LocalHop(std::shared_ptr<TierRunner> runner, std::shared_ptr<Hop> next, const Link& link);
  Result<Values> run(const std::vector<int>& tier, Values inputs, FrameCost& cost) override;

  void set_link(const Link& link);
  // Down: every call fails with kUnavailable, also those under way once they would answer.
  void set_up(bool up) { up_ = up; }

 private:
  std::shared_ptr<TierRunner> runner_;
  std::shared_ptr<Hop> next_;
  std::mutex mutex_;
  Link link_;
  std::atomic<bool> up_{true};
};

// The tensors of `values` that tiers beyond k read.
Values needed_beyond(const Graph& graph, const std::vector<int>& tier, int k, const Values& values);

}  // namespace frugal::dnn
