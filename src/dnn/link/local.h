// Tiers and workers in one process, behind links that are emulated by sleeping.
#pragma once

#include <atomic>
#include <memory>
#include <mutex>
#include <vector>

#include "dnn/link/tier.h"

namespace frugal::dnn {

// A tier in this process behind a link that is emulated by sleeping. The link and the fault can be changed at
// any time.
class LocalHop final : public Hop {
 public:
  LocalHop(std::shared_ptr<TierRunner> runner, std::shared_ptr<Hop> next, const Link& link);
  Result<Values> run(const Division& division, Values inputs, FrameCost& cost) override;
  int reach() override { return !up_ ? 0 : 1 + (next_ ? next_->reach() : 0); }
  Status prepare(const Division& division) override;

  void set_link(const Link& link);
  // Down: every call fails with kUnavailable, also those under way once they would answer.
  void set_up(bool up) { up_ = up; }

 private:
  void cross(double latency, double seconds);

  std::shared_ptr<TierRunner> runner_;
  std::shared_ptr<Hop> next_;
  std::mutex mutex_, wire_mutex_;
  Link link_;
  std::atomic<bool> up_{true};
};

// Other workers of a tier in this process, behind a link of so many bytes a second.
class LocalPeers final : public TilePeers {
 public:
  LocalPeers(std::vector<std::shared_ptr<TierRunner>> peers, double latency_seconds, double bytes_per_second);
  Result<std::vector<HostTensor>> run_tile(size_t worker, const TileJob& job) override;

 private:
  std::vector<std::shared_ptr<TierRunner>> peers_;
  double latency_seconds_, bytes_per_second_;
  std::mutex out_mutex_, in_mutex_;  // the link carries one tile at a time each way
};

}  // namespace frugal::dnn
