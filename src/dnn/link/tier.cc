#include "dnn/link/tier.h"

#include <algorithm>
#include <chrono>
#include <thread>

#include "base/clock.h"
#include "base/text.h"

namespace frugal::dnn {
namespace {

constexpr size_t kMaxParts = 4;  // compiled parts kept: each holds a copy of its weights

void sleep_seconds(double seconds) {
  if (seconds > 0) std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
}

uint64_t bytes_of(const Values& values) {
  uint64_t bytes = 0;
  for (const auto& [t, tensor] : values) bytes += tensor.bytes.size();
  return bytes;
}

}  // namespace

FrameCost& FrameCost::operator+=(const FrameCost& other) {
  for (size_t k = 0; k < tier_seconds.size() && k < other.tier_seconds.size(); ++k)
    tier_seconds[k] += other.tier_seconds[k];
  for (size_t k = 0; k < up_bytes.size() && k < other.up_bytes.size(); ++k) {
    up_bytes[k] += other.up_bytes[k];
    down_bytes[k] += other.down_bytes[k];
  }
  return *this;
}

TierRunner::TierRunner(std::shared_ptr<const Network> network, int k, int n_threads, double slowdown)
    : network_(std::move(network)), k_(k), n_threads_(n_threads), slowdown_(std::max(1.0, slowdown)) {}

Result<std::shared_ptr<Part>> TierRunner::part_for(const std::vector<int>& tier) {
  const Graph& graph = network_->graph();
  if (tier.size() != graph.vertices.size()) {
    return Error{ErrorCode::kInvalidArgument, strf("a plan for %zu vertices does not fit this model of %zu",
                                                   tier.size(), graph.vertices.size())};
  }
  std::vector<int> vertices;
  for (size_t v = 0; v < tier.size(); ++v) {
    if (tier[v] == k_ && graph.vertices[v].kind != "Input") vertices.push_back(static_cast<int>(v));
  }
  if (vertices.empty()) return std::shared_ptr<Part>();
  for (auto at = parts_.begin(); at != parts_.end(); ++at) {
    if (at->first != vertices) continue;
    parts_.splice(parts_.begin(), parts_, at);
    return parts_.front().second;
  }
  FRUGAL_TRY(std::unique_ptr<Part> compiled, network_->compile(vertices, n_threads_));
  parts_.emplace_front(std::move(vertices), std::move(compiled));
  if (parts_.size() > kMaxParts) parts_.pop_back();
  return parts_.front().second;
}

Status TierRunner::prepare(const std::vector<int>& tier) {
  const std::lock_guard lock(mutex_);
  const auto part = part_for(tier);
  if (!part.ok()) return part.error();
  return {};
}

Status TierRunner::run(const std::vector<int>& tier, Values& values, FrameCost& cost) {
  const std::lock_guard lock(mutex_);
  FRUGAL_TRY(const std::shared_ptr<Part> part, part_for(tier));
  if (!part) return {};
  const double start = wall_seconds();
  std::vector<const HostTensor*> inputs;
  for (const int t : part->inputs()) {
    const auto at = values.find(t);
    if (at == values.end()) {
      return {ErrorCode::kInvalidArgument,
              strf("tensor '%s' has not arrived",
                   network_->graph().tensors[static_cast<size_t>(t)].name.c_str())};
    }
    inputs.push_back(&at->second);
  }
  std::vector<HostTensor> outputs;
  FRUGAL_TRY_STATUS(part->run(inputs, outputs));
  for (size_t i = 0; i < outputs.size(); ++i) values[part->outputs()[i]] = std::move(outputs[i]);
  sleep_seconds((wall_seconds() - start) * (slowdown_ - 1));
  if (static_cast<size_t>(k_) < cost.tier_seconds.size()) {
    cost.tier_seconds[static_cast<size_t>(k_)] += wall_seconds() - start;
  }
  return {};
}

Values needed_beyond(const Graph& graph, const std::vector<int>& tier, int k, const Values& values) {
  Values needed;
  for (const auto& [t, tensor] : values) {
    const auto& consumers = graph.tensors[static_cast<size_t>(t)].consumers;
    if (std::any_of(consumers.begin(), consumers.end(),
                    [&](int w) { return tier[static_cast<size_t>(w)] > k; })) {
      needed[t] = tensor;
    }
  }
  return needed;
}

Result<Values> run_from(TierRunner& here, Hop* next, const std::vector<int>& tier, Values values,
                        FrameCost& cost) {
  const Graph& graph = here.network().graph();
  FRUGAL_TRY_STATUS(here.run(tier, values, cost));
  Values results;
  for (auto& [t, tensor] : values) {
    // An output made here, or an input of the model that is its output too; one made below stays there.
    const Tensor& of = graph.tensors[static_cast<size_t>(t)];
    if (of.is_output && tier[static_cast<size_t>(of.producer)] == here.k()) results[t] = tensor;
  }
  if (std::any_of(tier.begin(), tier.end(), [&](int k) { return k > here.k(); })) {
    if (next == nullptr) return Error{ErrorCode::kUnavailable, strf("there is no tier beyond %d", here.k())};
    FRUGAL_TRY(Values rest, next->run(tier, needed_beyond(graph, tier, here.k(), values), cost));
    results.merge(rest);
  }
  return results;
}

LocalHop::LocalHop(std::shared_ptr<TierRunner> runner, std::shared_ptr<Hop> next, const Link& link)
    : runner_(std::move(runner)), next_(std::move(next)), link_(link) {}

void LocalHop::set_link(const Link& link) {
  const std::lock_guard lock(mutex_);
  link_ = link;
}

Result<Values> LocalHop::run(const std::vector<int>& tier, Values inputs, FrameCost& cost) {
  Link link;
  {
    const std::lock_guard lock(mutex_);
    link = link_;
  }
  const Error down{ErrorCode::kUnavailable, strf("tier %d does not answer", runner_->k())};
  if (!up_) return down;
  const auto wire = static_cast<size_t>(runner_->k() - 1);
  const uint64_t up = bytes_of(inputs);
  sleep_seconds(link.latency_seconds + link.tensor_seconds * static_cast<double>(inputs.size()) +
                static_cast<double>(up) / link.up_bytes_per_second);
  FRUGAL_TRY(Values outputs, run_from(*runner_, next_.get(), tier, std::move(inputs), cost));
  if (!up_) return down;
  const uint64_t back = bytes_of(outputs);
  sleep_seconds(link.latency_seconds + link.tensor_seconds * static_cast<double>(outputs.size()) +
                static_cast<double>(back) / link.down_bytes_per_second);
  if (wire < cost.up_bytes.size()) {
    cost.up_bytes[wire] += up;
    cost.down_bytes[wire] += back;
  }
  return outputs;
}

}  // namespace frugal::dnn
