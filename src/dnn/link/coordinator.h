// The device's side of a cluster: keeps a plan, runs frames by it, plans again when the world changes.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "dnn/link/tier.h"
#include "frugal/dnn.h"

namespace frugal::dnn {

struct CoordinatorOptions {
  PlanRequest request;
  Algorithm algorithm = Algorithm::kExact;
  // Re-planning has hysteresis: a new plan is taken when it saves more over `horizon_frames` frames than
  // moving costs (`move_seconds`: compiling the new parts), and at least `least_gain` of a frame.
  double least_gain = 0.05;
  double horizon_frames = 200;
  double move_seconds = 0.5;
  // Tiers that failed are asked again, and measured figures looked at, this often.
  double retry_seconds = 0.5;
  // Learn bandwidth and load from the frames themselves and re-plan by that. Off: only update_cluster()
  // changes figures.
  bool adapt = false;
};

// Frames may come from many threads: each runs by the plan that was in force when it began. A frame is
// answered once: should a tier fail under way, the frame is run again without it, at worst on the device
// alone; computing has no side effects, so running twice is harmless.
class Coordinator {
 public:
  Coordinator(std::shared_ptr<TierRunner> device, std::shared_ptr<Hop> edge, Cluster cluster,
              CoordinatorOptions options);
  ~Coordinator();

  // Takes the values of all model inputs; gives all outputs.
  Result<Values> run_frame(const Values& inputs, FrameCost* cost = nullptr);

  // New figures for tiers and links. Returns true when the plan changed.
  Result<bool> update_cluster(const Cluster& cluster);
  // This plan from now on, for the tiers that answer.
  Status set_plan(std::vector<int> tier, std::vector<TiledRun> tiled_runs = {});

  // Predictions differ in how far they can be trusted (tiles less than whole vertices): runs frames by each
  // of the plans, the first to compile, and keeps the last one unless another's median time is less by
  // `least_gain`. Returns its index.
  Result<size_t> audition(std::span<const Plan> plans, const Values& inputs, int n_frames = 3);

  Plan plan() const;
  Cluster cluster() const;  // with what was learnt
  FrameCost last_cost() const;
  int n_replans() const;
  int n_retries() const;
  size_t n_live_tiers() const;

 private:
  struct InForce {
    Plan plan;
    size_t n_tiers = 0;
  };
  // What frames told about a link or a tier: measured over expected, smoothed.
  struct Learnt {
    std::vector<double> tier_ratio, link_ratio;
  };

  Result<std::shared_ptr<const InForce>> plan_for(const Cluster& cluster, size_t n_tiers) const;
  Cluster learnt_cluster() const;
  void learn(const InForce& by, const FrameCost& cost);
  Status install(size_t n_tiers, bool compile_first);
  Status compile(const Division& division);
  Result<bool> reconsider();
  Result<std::shared_ptr<const InForce>> in_force();
  void watch();

  std::shared_ptr<TierRunner> device_;
  std::shared_ptr<Hop> edge_;
  CoordinatorOptions options_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool stopping_ = false;
  Cluster cluster_;
  std::shared_ptr<const InForce> in_force_;
  Learnt learnt_;
  FrameCost cost_;
  size_t n_live_tiers_;
  int n_replans_ = 0, n_retries_ = 0, n_in_flight_ = 0;
  std::thread watcher_;
};

// Throughput mode: frames in order in, results in order out, several on their way at a time. push() waits
// while `window` frames are under way, so a source that is too fast is slowed down and nothing piles up.
class FrameStream {
 public:
  using Deliver = std::function<void(size_t index, Result<Values> outputs, double seconds)>;

  // `deliver` is called once for each frame, in order, from one thread at a time; it must not push.
  FrameStream(Coordinator& coordinator, int window, Deliver deliver);
  ~FrameStream();

  void push(Values inputs);
  void finish();  // waits until all frames are delivered

 private:
  struct Frame {
    size_t index;
    Values inputs;
  };
  struct Done {
    Result<Values> outputs;
    double seconds;
  };
  void work();

  Coordinator& coordinator_;
  size_t window_;
  Deliver deliver_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Frame> waiting_;
  std::map<size_t, Done> done_;  // not yet delivered, since an earlier one is missing
  size_t n_pushed_ = 0, n_delivered_ = 0;
  bool delivering_ = false, stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace frugal::dnn
