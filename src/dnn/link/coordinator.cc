#include "dnn/link/coordinator.h"

#include <algorithm>

#include "base/clock.h"
#include "base/text.h"

namespace frugal::dnn {

Coordinator::Coordinator(std::shared_ptr<TierRunner> device, std::shared_ptr<Hop> edge, Cluster cluster,
                         CoordinatorOptions options)
    : device_(std::move(device)),
      edge_(std::move(edge)),
      options_(std::move(options)),
      cluster_(std::move(cluster)),
      n_live_tiers_(cluster_.tiers.size()) {
  learnt_.tier_ratio.assign(cluster_.tiers.size(), 1);
  learnt_.link_ratio.assign(cluster_.links.size(), 1);
  watcher_ = std::thread([this] { watch(); });
}

Coordinator::~Coordinator() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  watcher_.join();
}

Plan Coordinator::plan() const {
  const std::lock_guard lock(mutex_);
  return in_force_ ? in_force_->plan : Plan();
}
Cluster Coordinator::cluster() const {
  const std::lock_guard lock(mutex_);
  return learnt_cluster();
}
FrameCost Coordinator::last_cost() const {
  const std::lock_guard lock(mutex_);
  return cost_;
}
int Coordinator::n_replans() const {
  const std::lock_guard lock(mutex_);
  return n_replans_;
}
int Coordinator::n_retries() const {
  const std::lock_guard lock(mutex_);
  return n_retries_;
}
size_t Coordinator::n_live_tiers() const {
  const std::lock_guard lock(mutex_);
  return n_live_tiers_;
}

// The given figures, with what frames told since. Under the lock.
Cluster Coordinator::learnt_cluster() const {
  Cluster cluster = cluster_;
  for (size_t k = 0; k < cluster.tiers.size(); ++k) {
    for (double& seconds : cluster.tiers[k].vertex_seconds) seconds *= learnt_.tier_ratio[k];
    for (auto* costs : {&cluster.tiers[k].tile_fixed_seconds, &cluster.tiers[k].pack_seconds,
                        &cluster.tiers[k].unpack_seconds}) {
      for (double& seconds : *costs) seconds *= learnt_.tier_ratio[k];
    }
  }
  for (size_t k = 0; k < cluster.links.size(); ++k) {
    cluster.links[k].up_bytes_per_second /= learnt_.link_ratio[k];
    cluster.links[k].down_bytes_per_second /= learnt_.link_ratio[k];
  }
  return cluster;
}

Result<std::shared_ptr<const Coordinator::InForce>> Coordinator::plan_for(const Cluster& cluster,
                                                                          size_t n_tiers) const {
  Cluster live = cluster;
  live.tiers.resize(n_tiers);
  live.links.resize(n_tiers - 1);
  auto made = std::make_shared<InForce>();
  const Algorithm algorithm = n_tiers < cluster_.tiers.size() ? Algorithm::kExact : options_.algorithm;
  FRUGAL_TRY(made->plan, make_plan(device_->network().graph(), live, options_.request, algorithm));
  made->n_tiers = n_tiers;
  return std::shared_ptr<const InForce>(std::move(made));
}

Status Coordinator::compile(const Division& division) {
  FRUGAL_TRY_STATUS(device_->prepare(division));
  return edge_ && division.uses_beyond(0) ? edge_->prepare(division) : Status();
}

// Plans for the first n tiers. Takes the lock only to read and to swap.
// With `compile_first` parts are compiled on all tiers before any frame uses the plan.
Status Coordinator::install(size_t n_tiers, bool compile_first) {
  Cluster cluster;
  {
    const std::lock_guard lock(mutex_);
    cluster = learnt_cluster();
  }
  FRUGAL_TRY(std::shared_ptr<const InForce> fresh, plan_for(cluster, n_tiers));
  if (compile_first) FRUGAL_TRY_STATUS(compile(division_of(fresh->plan)));
  const std::lock_guard lock(mutex_);
  in_force_ = std::move(fresh);
  n_live_tiers_ = n_tiers;
  ++n_replans_;
  return {};
}

Result<std::shared_ptr<const Coordinator::InForce>> Coordinator::in_force() {
  size_t n_tiers;
  {
    const std::lock_guard lock(mutex_);
    if (in_force_) return in_force_;
    n_tiers = n_live_tiers_;
  }
  FRUGAL_TRY_STATUS(install(n_tiers, false));
  const std::lock_guard lock(mutex_);
  return in_force_;
}

Status Coordinator::set_plan(std::vector<int> tier, std::vector<TiledRun> tiled_runs) {
  const size_t n_tiers = cluster_.tiers.size();
  auto made = std::make_shared<InForce>();
  FRUGAL_TRY(made->plan, price_plan(device_->network().graph(), cluster(), options_.request, std::move(tier),
                                    std::move(tiled_runs)));
  made->n_tiers = n_tiers;
  const std::lock_guard lock(mutex_);
  in_force_ = std::move(made);
  n_live_tiers_ = n_tiers;
  return {};
}

Result<size_t> Coordinator::audition(std::span<const Plan> plans, const Values& inputs, int n_frames) {
  if (plans.empty()) return Error{ErrorCode::kInvalidArgument, "there is no plan to try"};
  std::vector<std::vector<double>> seconds(plans.size());
  for (int i = 0; i <= std::max(1, n_frames); ++i) {  // in turn: all of them meet the same moods of the hosts
    for (size_t p = 0; p < plans.size(); ++p) {
      FRUGAL_TRY_STATUS(set_plan(plans[p].tier, plans[p].tiled_runs));
      const double start = wall_seconds();
      FRUGAL_TRY(const Values outputs, run_frame(inputs));
      if (i > 0) seconds[p].push_back(wall_seconds() - start);
    }
  }
  const auto median = [&](size_t p) {
    std::sort(seconds[p].begin(), seconds[p].end());
    return seconds[p][seconds[p].size() / 2];
  };
  size_t best = plans.size() - 1;
  double least = (1 - options_.least_gain) * median(best);
  for (size_t p = 0; p + 1 < plans.size(); ++p) {
    if (median(p) >= least) continue;
    best = p;
    least = median(p);
  }
  FRUGAL_TRY_STATUS(set_plan(plans[best].tier, plans[best].tiled_runs));
  return best;
}

Result<bool> Coordinator::update_cluster(const Cluster& cluster) {
  if (cluster.tiers.size() != cluster_.tiers.size()) {
    return Error{ErrorCode::kInvalidArgument, "a coordinator's cluster keeps its number of tiers"};
  }
  {
    const std::lock_guard lock(mutex_);
    cluster_ = cluster;
    learnt_.tier_ratio.assign(cluster_.tiers.size(), 1);
    learnt_.link_ratio.assign(cluster_.links.size(), 1);
    if (!in_force_) return false;
  }
  return reconsider();
}

// The best plan for the figures as they are now, if it is worth moving to.
Result<bool> Coordinator::reconsider() {
  Cluster cluster;
  std::shared_ptr<const InForce> current;
  {
    const std::lock_guard lock(mutex_);
    cluster = learnt_cluster();
    current = in_force_;
  }
  const Graph& graph = device_->network().graph();
  Cluster live = cluster;
  live.tiers.resize(current->n_tiers);
  live.links.resize(current->n_tiers - 1);
  FRUGAL_TRY(const std::shared_ptr<const InForce> fresh, plan_for(cluster, current->n_tiers));
  FRUGAL_TRY(const Plan kept,
             price_plan(graph, live, options_.request, current->plan.tier, current->plan.tiled_runs));
  const double gain = kept.objective - fresh->plan.objective;
  // Moving is paid in seconds; an objective in other units weighs it as the share of a frame's cost that it
  // takes.
  const double moving = options_.move_seconds * (kept.seconds > 0 ? kept.objective / kept.seconds : 0);
  const bool worth = gain > options_.least_gain * kept.objective && gain * options_.horizon_frames > moving;
  if (worth) FRUGAL_TRY_STATUS(compile(division_of(fresh->plan)));  // no frame waits for the move
  const std::lock_guard lock(mutex_);
  if (in_force_ != current) return false;  // a tier failed or came back meanwhile: that decision stands
  auto next = std::make_shared<InForce>(*current);
  if (worth) {
    in_force_ = fresh;
    ++n_replans_;
  } else {
    next->plan = kept;
    in_force_ = std::move(next);
  }
  return worth;
}

// A frame that ran alone tells how links and tiers really are. Under the lock.
void Coordinator::learn(const InForce& by, const FrameCost& cost) {
  constexpr double kWeight = 0.3;  // of the newest frame
  const auto smooth = [&](double& ratio, double measured, double expected) {
    const double seen = std::clamp(ratio * measured / expected, 1e-2, 1e3);
    ratio += kWeight * (seen - ratio);
  };
  const Plan& plan = by.plan;
  for (size_t k = 0; k < plan.tiers.size(); ++k) {
    double expected = plan.tiers[k].seconds;
    for (const TiledRun& run : plan.tiled_runs) {
      if (static_cast<size_t>(run.tier) == k) expected += run.seconds - run.work_seconds;
    }
    if (expected > 1e-4 && cost.tier_seconds[k] > 0)
      smooth(learnt_.tier_ratio[k], cost.tier_seconds[k], expected);
  }
  for (size_t k = 0; k < plan.links.size(); ++k) {
    const uint64_t bytes = cost.up_bytes[k] + cost.down_bytes[k];
    if (bytes < 16384) continue;
    const double latency = 2 * cluster_.links[k].latency_seconds;
    smooth(learnt_.link_ratio[k], std::max(1e-5, cost.link_seconds[k] - latency),
           std::max(1e-5, plan.links[k].seconds - latency));
  }
}

Result<Values> Coordinator::run_frame(const Values& inputs, FrameCost* told) {
  const size_t n_tiers = cluster_.tiers.size();
  size_t most = n_tiers;  // a frame does not go again where it was lost: every link keeps it waiting once
  bool alone;
  {
    const std::lock_guard lock(mutex_);
    alone = n_in_flight_++ == 0;
  }
  const auto leave = [&] {
    const std::lock_guard lock(mutex_);
    --n_in_flight_;
  };
  while (true) {
    auto by = in_force();
    if (by.ok() && (*by)->n_tiers > most) by = plan_for(cluster(), most);
    if (!by.ok()) {
      leave();
      return by.error();
    }
    FrameCost cost(n_tiers);
    Result<Values> outputs = run_from(*device_, edge_.get(), division_of((*by)->plan), inputs, cost);
    const bool unavailable = !outputs.ok() && outputs.error().code == ErrorCode::kUnavailable;
    if (!unavailable || (*by)->n_tiers == 1) {
      const std::lock_guard lock(mutex_);
      alone = alone && n_in_flight_ == 1;
      --n_in_flight_;
      if (outputs.ok() && alone && options_.adapt && in_force_->plan.tier == (*by)->plan.tier)
        learn(**by, cost);
      cost_ = cost;
      if (told != nullptr) *told = cost;
      return outputs;
    }
    // The message tells how far the frame came. Nobody is asked now: the frame has waited long enough.
    const size_t left = outputs.error().message.starts_with(kBeyond) ? (*by)->n_tiers - 1 : 1;
    most = left;
    {
      const std::lock_guard lock(mutex_);
      ++n_retries_;
      if (in_force_ != *by) continue;  // another frame noticed first
    }
    if (const Status status = install(left, false); !status.ok()) {
      leave();
      return status.error();
    }
  }
}

// Looks from time to time whether lost tiers are back, and whether what was learnt asks for another plan.
void Coordinator::watch() {
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    changed_.wait_for(lock, std::chrono::duration<double>(std::max(0.005, options_.retry_seconds)));
    if (stopping_ || !in_force_) continue;
    const size_t live = n_live_tiers_, all = cluster_.tiers.size();
    lock.unlock();
    if (live < all && edge_) {
      const size_t reached = std::min(all, static_cast<size_t>(edge_->reach()) + 1);
      if (reached > live) (void)install(reached, true);
    } else if (options_.adapt) {
      (void)reconsider();
    }
    lock.lock();
  }
}

FrameStream::FrameStream(Coordinator& coordinator, int window, Deliver deliver)
    : coordinator_(coordinator),
      window_(static_cast<size_t>(std::max(1, window))),
      deliver_(std::move(deliver)) {
  for (size_t i = 0; i < window_; ++i) threads_.emplace_back([this] { work(); });
}

FrameStream::~FrameStream() {
  finish();
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void FrameStream::push(Values inputs) {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return n_pushed_ - n_delivered_ < window_; });
  waiting_.push_back({n_pushed_++, std::move(inputs)});
  changed_.notify_all();
}

void FrameStream::finish() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return n_delivered_ == n_pushed_; });
}

void FrameStream::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return stopping_ || !waiting_.empty(); });
    if (stopping_) return;
    Frame frame = std::move(waiting_.front());
    waiting_.pop_front();
    lock.unlock();
    const double start = wall_seconds();
    Result<Values> outputs = coordinator_.run_frame(frame.inputs);
    const double seconds = wall_seconds() - start;
    lock.lock();
    done_.emplace(frame.index, Done{std::move(outputs), seconds});
    // Whoever completes the next frame that is due delivers it and those behind it.
    while (!delivering_ && !done_.empty() && done_.begin()->first == n_delivered_) {
      delivering_ = true;
      auto next = done_.extract(done_.begin());
      lock.unlock();
      deliver_(next.key(), std::move(next.mapped().outputs), next.mapped().seconds);
      lock.lock();
      delivering_ = false;
      ++n_delivered_;
      changed_.notify_all();
    }
  }
}

}  // namespace frugal::dnn
