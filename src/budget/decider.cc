// Decider: one thread's choices by the prices in force, and the cap on what a window may still spend.
#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "budget/accounts.h"
#include "budget/response.h"

namespace frugal::budget {
namespace {

void add(std::atomic<double>& to, double amount) {
  to.store(to.load(std::memory_order_relaxed) + amount, std::memory_order_relaxed);
}

}  // namespace

void Decider::Impl::refresh() {
  if (shared->version.load(std::memory_order_acquire) == version) return;
  {
    const std::lock_guard lock(shared->mutex);
    version = shared->version.load(std::memory_order_relaxed);
    if (shared->terms.tick != terms.tick) since_tick = extra = {};
    terms = shared->terms;
  }
  const ChainTable& table = *shared->table;
  price_chains(table, terms.prices, terms.scale, priced);
  for (size_t j = 0; j < priced.size(); ++j) {
    for (size_t k = 0; k < n_resources(); ++k) {
      scaled[j * n_resources() + k] = table.costs(static_cast<int>(k))[j] * terms.scale[k];
    }
  }
}

void Decider::Impl::keep_sample(std::span<const float> rewards) {
  if (--until_sample > 0) return;
  until_sample = shared->sample_every;
  const std::lock_guard lock(shared->mutex);
  std::copy(rewards.begin(), rewards.end(),
            shared->sample.begin() + static_cast<std::ptrdiff_t>(shared->sample_next * rewards.size()));
  shared->sample_next = (shared->sample_next + 1) % shared->sample_size;
  shared->sample_filled = std::min(shared->sample_filled + 1, shared->sample_size);
}

Decision Decider::Impl::settle(int chain, DecisionKind kind, std::span<const float> rewards,
                               const double* cost, const double* fallback_cost, double price_of_chain) {
  const int cheapest = shared->table->cheapest();
  if (chain != cheapest) {
    for (size_t k = 0; k < n_resources(); ++k) {
      if (cost[k] <= fallback_cost[k]) continue;  // falling back would not spare this resource
      if (extra[k] + cost[k] - fallback_cost[k] <= terms.left[k]) continue;
      chain = cheapest;
      cost = fallback_cost;
      kind = DecisionKind::kExhausted;
      shared->tick_wanted.store(true, std::memory_order_relaxed);
      price_of_chain = static_cast<double>(priced[static_cast<size_t>(cheapest)]);
      break;
    }
  }
  Decision decision;
  decision.chain = chain;
  decision.kind = kind;
  const float reward = rewards[static_cast<size_t>(chain)];
  decision.reward = std::isfinite(reward) ? reward : 0;
  decision.score = decision.reward - static_cast<float>(price_of_chain);
  bool alarmed = false;
  for (size_t k = 0; k < n_resources(); ++k) {
    add(counters->spent[k], cost[k]);
    since_tick[k] += cost[k];
    extra[k] += std::max(0.0, cost[k] - fallback_cost[k]);
    alarmed |= since_tick[k] > terms.alarm[k];
  }
  if (alarmed) shared->tick_wanted.store(true, std::memory_order_relaxed);
  add(counters->reward, static_cast<double>(decision.reward));
  auto& count = counters->kinds[static_cast<size_t>(kind)];
  count.store(count.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
  return decision;
}

Decider::Decider(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Decider::~Decider() {
  const std::lock_guard lock(impl_->shared->mutex);
  std::erase(impl_->shared->open, impl_->counters);
  impl_->shared->closed.push_back(impl_->counters);
}

Decision Decider::decide(std::span<const float> rewards) {
  Impl& d = *impl_;
  FRUGAL_CHECK(rewards.size() == d.priced.size());
  d.refresh();
  d.keep_sample(rewards);
  int chain = argmax_net_reward(rewards, d.priced);
  DecisionKind kind = DecisionKind::kPriced;
  if (chain < 0) {
    chain = d.shared->table->cheapest();
    kind = DecisionKind::kNoReward;
  }
  const size_t n_k = d.n_resources();
  return d.settle(chain, kind, rewards, &d.scaled[static_cast<size_t>(chain) * n_k],
                  &d.scaled[static_cast<size_t>(d.shared->table->cheapest()) * n_k],
                  static_cast<double>(d.priced[static_cast<size_t>(chain)]));
}

Decision Decider::decide(const Request& request) {
  Impl& d = *impl_;
  const size_t n_chains = d.priced.size(), n_k = d.n_resources();
  FRUGAL_CHECK(request.rewards.size() == n_chains);
  FRUGAL_CHECK(request.costs.empty() || request.costs.size() == n_k * n_chains);
  d.refresh();
  d.keep_sample(request.rewards);
  const bool own = !request.costs.empty();
  const auto cost_of = [&](size_t j, size_t k) {
    const double cost = own ? request.costs[k * n_chains + j] * d.terms.scale[k] : d.scaled[j * n_k + k];
    return std::isfinite(cost) && cost >= 0 ? cost : kInfinity;  // a cost that makes no sense is never chosen
  };
  // Plain doubles and one pass: requests of this kind are few and slow (a language model's answer).
  int best = -1, allowed = 0;
  size_t least = static_cast<size_t>(d.shared->table->cheapest());
  double best_score = -kInfinity, best_priced = 0, least_cost = kInfinity;
  for (size_t j = 0; j < n_chains; ++j) {
    double priced = 0, sum = 0;
    bool fits = true;
    for (size_t k = 0; k < n_k; ++k) {
      const double cost = cost_of(j, k);
      const bool limited = std::isfinite(request.limits[k]) && request.limits[k] > 0;
      fits = fits && std::isfinite(cost) && !(limited && cost > request.limits[k]);
      priced += d.terms.prices[k] * cost;
      const double dearest = d.shared->table->costs(
          static_cast<int>(k))[static_cast<size_t>(d.shared->table->dearest_in(static_cast<int>(k)))];
      sum += dearest > 0 ? cost / dearest : cost;
    }
    if (sum < least_cost) least_cost = sum, least = j;
    if (!fits) continue;
    ++allowed;
    const double score = static_cast<double>(request.rewards[j]) - priced;
    if (std::isfinite(score) && score > best_score)
      best_score = score, best = static_cast<int>(j), best_priced = priced;
  }
  DecisionKind kind = DecisionKind::kPriced;
  if (best < 0) {
    best = static_cast<int>(least);
    kind = allowed == 0 ? DecisionKind::kNoChain : DecisionKind::kNoReward;
    best_priced = 0;
    for (size_t k = 0; k < n_k; ++k) best_priced += d.terms.prices[k] * cost_of(least, k);
  }
  Amounts cost{}, fallback{};
  for (size_t k = 0; k < n_k; ++k) {
    const double chosen = cost_of(static_cast<size_t>(best), k);
    const double cheapest = cost_of(static_cast<size_t>(d.shared->table->cheapest()), k);
    cost[k] = std::isfinite(chosen) ? chosen : 0;
    fallback[k] = std::isfinite(cheapest) ? cheapest : 0;
  }
  return d.settle(best, kind, request.rewards, cost.data(), fallback.data(), best_priced);
}

void Decider::decide_batch(std::span<const float> rewards, std::span<Decision> out) {
  const size_t n_chains = impl_->priced.size();
  FRUGAL_CHECK(rewards.size() == out.size() * n_chains);
  for (size_t i = 0; i < out.size(); ++i) out[i] = decide(rewards.subspan(i * n_chains, n_chains));
}

std::span<const double> Decider::prices() const { return impl_->terms.prices; }

}  // namespace frugal::budget
