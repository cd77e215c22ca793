#include "dnn/link/coordinator.h"

#include <algorithm>

#include "base/clock.h"
#include "base/text.h"

namespace frugal::dnn {

Coordinator::Coordinator(std::shared_ptr<TierRunner> device, std::shared_ptr<Hop> edge, Cluster cluster,
                         CoordinatorOptions options)
    : device_(std::move(device)),
      edge_(std::move(edge)),
      cluster_(std::move(cluster)),
      options_(std::move(options)),
      n_live_tiers_(cluster_.tiers.size()) {}

Status Coordinator::replan(size_t n_tiers) {
  Cluster live = cluster_;
  live.tiers.resize(n_tiers);
  live.links.resize(n_tiers - 1);
  FRUGAL_TRY(plan_, make_plan(device_->network().graph(), live, options_.request));
  n_live_tiers_ = n_tiers;
  ++n_replans_;
  return {};
}

Status Coordinator::set_plan(std::vector<int> tier) {
  FRUGAL_TRY(plan_, price_plan(device_->network().graph(), cluster_, options_.request, std::move(tier)));
  return {};
}

Result<bool> Coordinator::update_cluster(const Cluster& cluster) {
  if (cluster.tiers.size() != cluster_.tiers.size()) {
    return Error{ErrorCode::kInvalidArgument, "a coordinator's cluster keeps its number of tiers"};
  }
  cluster_ = cluster;
  if (plan_.tier.empty()) return false;
  Cluster live = cluster_;
  live.tiers.resize(n_live_tiers_);
  live.links.resize(n_live_tiers_ - 1);
  const Graph& graph = device_->network().graph();
  FRUGAL_TRY(Plan fresh, make_plan(graph, live, options_.request));
  FRUGAL_TRY(const Plan kept, price_plan(graph, live, options_.request, plan_.tier));
  const double gain = kept.objective - fresh.objective;
  // Moving is paid in seconds; an objective in other units weighs it as the share of a frame's cost that it
  // takes.
  const double moving = options_.move_seconds * (kept.seconds > 0 ? kept.objective / kept.seconds : 0);
  if (gain <= options_.least_gain * kept.objective || gain * options_.horizon_frames <= moving) {
    plan_ = kept;
    return false;
  }
  plan_ = std::move(fresh);
  ++n_replans_;
  return true;
}

Result<Values> Coordinator::run_frame(const Values& inputs) {
  const size_t n_tiers = cluster_.tiers.size();
  if (plan_.tier.empty()) FRUGAL_TRY_STATUS(replan(n_tiers));
  if (n_live_tiers_ < n_tiers && wall_seconds() - failed_at_ >= options_.retry_seconds)
    FRUGAL_TRY_STATUS(replan(n_tiers));
  while (true) {
    cost_ = FrameCost(n_tiers);
    Result<Values> outputs = run_from(*device_, edge_.get(), plan_.tier, inputs, cost_);
    if (outputs.ok() || outputs.error().code != ErrorCode::kUnavailable || n_live_tiers_ == 1) return outputs;
    // Which of the tiers beyond failed is not known for sure: give up the furthest in use first.
    ++n_retries_;
    failed_at_ = wall_seconds();
    const int furthest = *std::max_element(plan_.tier.begin(), plan_.tier.end());
    FRUGAL_TRY_STATUS(replan(std::min(n_live_tiers_ - 1, static_cast<size_t>(std::max(1, furthest)))));
  }
}

}  // namespace frugal::dnn
