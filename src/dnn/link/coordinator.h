// The device's side of a cluster: keeps a plan, runs frames by it, plans again when the world changes.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "dnn/link/tier.h"
#include "frugal/dnn.h"

namespace frugal::dnn {

struct CoordinatorOptions {
  PlanRequest request;
  // Re-planning has hysteresis: a new plan is taken when it saves more over `horizon_frames` frames than
  // moving costs
  // (`move_seconds`: compiling the new parts), and at least `least_gain` of a frame.
  double least_gain = 0.05;
  double horizon_frames = 200;
  double move_seconds = 0.5;
  // A tier that failed is tried again after this long.
  double retry_seconds = 0.5;
};

// One frame after the other from one thread. A frame is answered once: should a tier fail under way, the
// frame is run again without it, at worst on the device alone; computing has no side effects, so running
// twice is harmless.
class Coordinator {
 public:
  Coordinator(std::shared_ptr<TierRunner> device, std::shared_ptr<Hop> edge, Cluster cluster,
              CoordinatorOptions options);

  // Takes the values of all model inputs; gives all outputs.
  Result<Values> run_frame(const Values& inputs);

  // New figures for tiers and links. Returns true when the plan changed.
  Result<bool> update_cluster(const Cluster& cluster);
  Status set_plan(std::vector<int> tier);

  const Plan& plan() const { return plan_; }
  const FrameCost& last_cost() const { return cost_; }
  int n_replans() const { return n_replans_; }
  int n_retries() const { return n_retries_; }

 private:
  Status replan(size_t n_tiers);

  std::shared_ptr<TierRunner> device_;
  std::shared_ptr<Hop> edge_;
  Cluster cluster_;
  CoordinatorOptions options_;
  Plan plan_;
  FrameCost cost_;
  size_t n_live_tiers_;
  double failed_at_ = 0;
  int n_replans_ = 0, n_retries_ = 0;
};

}  // namespace frugal::dnn
