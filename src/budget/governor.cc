// Governor and Decider: the accounts, the window, and the hand-over of prices to the threads that decide.
//
// A decider owns its counters (relaxed atomics that only it writes) and a copy of the priced costs, which it
// takes anew when the version has moved on; the governor adds the counters up at each tick. So a decision
// costs one atomic load, the argmax, and a few additions, whatever the number of threads.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <mutex>

#include "base/check.h"
#include "base/text.h"
#include "budget/response.h"
#include "frugal/budget.h"

namespace frugal::budget {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// What deciders need to know, replaced as a whole at each tick.
struct Terms {
  std::vector<double> prices;
  Amounts scale{1, 1, 1, 1};
  // Of the window, each decider's share, less what the cheapest chains of the requests still to come will
  // take: what may be spent beyond the cheapest.
  Amounts left{kInfinity, kInfinity, kInfinity, kInfinity};
  Amounts alarm{kInfinity, kInfinity, kInfinity,
                kInfinity};  // spending since the tick that calls for another
  uint64_t tick = 0;         // `left` and `alarm` are of this tick; prices may change within it
};

// Counters of one decider since it was opened. One writer, any reader.
struct Counters {
  std::array<std::atomic<double>, kMaxResources> spent{};
  std::atomic<double> reward{0};
  std::array<std::atomic<uint64_t>, 4> kinds{};  // by DecisionKind
};

void add(std::atomic<double>& to, double amount) {
  to.store(to.load(std::memory_order_relaxed) + amount, std::memory_order_relaxed);
}

struct Shared {
  std::shared_ptr<const ChainTable> table;
  std::atomic<uint64_t> version{1};
  std::atomic<bool> tick_wanted{false};
  mutable std::mutex mutex;  // guards what follows
  Terms terms;
  std::vector<std::shared_ptr<Counters>> open, closed;  // `closed`: not yet added up for the last time
  std::vector<float> sample;                            // [sample_size, n_chains], a ring
  size_t sample_next = 0, sample_filled = 0, sample_size = 0;
  int sample_every = 1;
};

struct Totals {
  Amounts spent{};
  double reward = 0;
  std::array<uint64_t, 4> kinds{};
  double others = 0;  // requests of other allocators
  uint64_t own_requests() const { return kinds[0] + kinds[1] + kinds[2] + kinds[3]; }
  double requests() const { return static_cast<double>(own_requests()) + others; }
  void add(const Counters& counters) {
    for (size_t k = 0; k < spent.size(); ++k) spent[k] += counters.spent[k].load(std::memory_order_relaxed);
    for (size_t kind = 0; kind < kinds.size(); ++kind) {
      kinds[kind] += counters.kinds[kind].load(std::memory_order_relaxed);
    }
    reward += counters.reward.load(std::memory_order_relaxed);
  }
};

}  // namespace

struct Decider::Impl {
  std::shared_ptr<Shared> shared;
  std::shared_ptr<Counters> counters = std::make_shared<Counters>();
  uint64_t version = 0;
  Terms terms;
  std::vector<float> priced;      // [n_chains]
  std::vector<double> scaled;     // [n_chains, n_resources]: cost as charged
  std::vector<float> adjusted;    // scratch: rewards of a request with limits
  Amounts since_tick{}, extra{};  // spent, and spent beyond the cheapest chain's cost
  int until_sample = 0;

  size_t n_resources() const { return static_cast<size_t>(shared->table->n_resources()); }

  void refresh() {
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

  void keep_sample(std::span<const float> rewards) {
    if (--until_sample > 0) return;
    until_sample = shared->sample_every;
    const std::lock_guard lock(shared->mutex);
    std::copy(rewards.begin(), rewards.end(),
              shared->sample.begin() + static_cast<std::ptrdiff_t>(shared->sample_next * rewards.size()));
    shared->sample_next = (shared->sample_next + 1) % shared->sample_size;
    shared->sample_filled = std::min(shared->sample_filled + 1, shared->sample_size);
  }

  // `cost`: [n_resources] of the chosen chain, `fallback_cost` of the cheapest.
  Decision settle(int chain, DecisionKind kind, std::span<const float> rewards, const double* cost,
                  const double* fallback_cost, double price_of_chain) {
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
};

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

namespace {

class GovernorImpl final : public Governor {
 public:
  GovernorImpl(std::shared_ptr<const ChainTable> table, std::vector<ResourceOptions> resources,
               const GovernorOptions& options, std::unique_ptr<PriceController> controller)
      : resources_(std::move(resources)), options_(options), controller_(std::move(controller)) {
    shared_->table = std::move(table);
    shared_->sample_size = static_cast<size_t>(options.sample_size);
    shared_->sample_every = options.sample_every;
    shared_->sample.resize(shared_->sample_size * static_cast<size_t>(shared_->table->size()));
    for (const ResourceOptions& resource : resources_)
      shared_->terms.prices.push_back(resource.initial_price);
  }

  std::unique_ptr<Decider> open_decider() override;
  void tick(double now_s) override;
  bool tick_wanted() const override { return shared_->tick_wanted.load(std::memory_order_relaxed); }
  Status set_prices(std::span<const double> prices) override;
  void follow(bool following) override {
    const std::lock_guard lock(shared_->mutex);
    following_ = following;
  }
  void set_others(const Amounts& spent, double requests, int n_deciders) override {
    const std::lock_guard lock(shared_->mutex);
    others_spent_ = spent;
    others_requests_ = requests;
    others_deciders_ = n_deciders;
  }
  void report_measured(int k, double predicted, double measured) override;
  GovernorState state() const override;
  const ChainTable& table() const override { return *shared_->table; }

 private:
  size_t n_resources() const { return resources_.size(); }
  Totals totals() const;  // of all deciders, open and closed; the mutex is held
  void open_window(double now_s);
  // `requests_s`: requests a second that are expected.
  void publish(double now_s, const Amounts& tick_budget, double requests_s);

  std::shared_ptr<Shared> shared_ = std::make_shared<Shared>();
  std::vector<ResourceOptions> resources_;
  GovernorOptions options_;
  std::unique_ptr<PriceController> controller_;
  // The following are guarded by shared_->mutex.
  bool started_ = false, following_ = false, unmeetable_ = false;
  double last_s_ = 0, window_end_s_ = 0;
  Totals gone_, at_tick_, at_window_;  // gone_: of deciders that were closed
  Amounts window_budget_{};
  Amounts measured_ratio_{1, 1, 1, 1};
  Amounts others_spent_{};
  double others_requests_ = 0, own_share_ = 1;
  int others_deciders_ = 0;
  uint64_t clock_jumps_ = 0;
};

std::unique_ptr<Decider> GovernorImpl::open_decider() {
  auto impl = std::make_unique<Decider::Impl>();
  impl->shared = shared_;
  impl->terms.prices.resize(n_resources());
  impl->priced.resize(static_cast<size_t>(shared_->table->size()));
  impl->scaled.resize(impl->priced.size() * n_resources());
  const std::lock_guard lock(shared_->mutex);
  shared_->open.push_back(impl->counters);
  return make_decider(std::move(impl));
}

Totals GovernorImpl::totals() const {
  Totals sum = gone_;
  for (const auto& counters : shared_->open) sum.add(*counters);
  for (const auto& counters : shared_->closed) sum.add(*counters);
  return sum;
}

void GovernorImpl::open_window(double now_s) {
  window_end_s_ = now_s + options_.window_s;
  if (options_.align_windows) {  // the half a thousandth: a tick just before a boundary opens the next window
    window_end_s_ = (std::floor(now_s / options_.window_s + 5e-4) + 1) * options_.window_s;
  }
  // A tick that comes a little after a boundary gives the window its whole budget: what was spent in between
  // was charged to the window before, and this one will end as late.
  double from_s = now_s;
  const double begin_s = window_end_s_ - options_.window_s;
  if (options_.align_windows && now_s - begin_s < 0.05 * options_.window_s) from_s = begin_s;
  for (size_t k = 0; k < n_resources(); ++k) {
    window_budget_[k] = resources_[k].per_request ? 0 : resources_[k].budget.amount(from_s, window_end_s_);
  }
  at_window_ = at_tick_;
}

void GovernorImpl::tick(double now_s) {
  const std::lock_guard lock(shared_->mutex);
  shared_->tick_wanted.store(false, std::memory_order_relaxed);
  for (const auto& counters : shared_->closed)
    gone_.add(*counters);  // their writers are gone: once, for good
  shared_->closed.clear();
  Totals now = totals();
  // From here on `now` is of all who share the budgets.
  for (size_t k = 0; k < n_resources(); ++k) now.spent[k] += others_spent_[k];
  now.others = others_requests_;
  const double dt = now_s - last_s_;
  const bool jumped = started_ && !(dt >= 0 && dt <= options_.max_tick_s);  // a NaN is a jump too
  if (!std::isfinite(now_s)) {
    ++clock_jumps_;
    return;
  }
  if (!started_ || jumped) {
    clock_jumps_ += jumped ? 1 : 0;
    started_ = true;
    last_s_ = now_s;
    at_tick_ = now;
    controller_->reset();
    open_window(now_s);
    Amounts tick_budget;
    tick_budget.fill(kInfinity);
    publish(now_s, tick_budget, 0);
    return;
  }
  if (dt == 0) return;

  TickReport report;
  report.now_s = now_s;
  report.dt_s = dt;
  report.requests = std::max(0.0, now.requests() - at_tick_.requests());
  // A tick holds few requests: smoothed.
  if (report.requests > 0)
    own_share_ += 0.3 * (static_cast<double>(now.own_requests() - at_tick_.own_requests()) / report.requests -
                         own_share_);
  report.table = shared_->table.get();
  unmeetable_ = false;
  for (size_t k = 0; k < n_resources(); ++k) {
    const ResourceOptions& resource = resources_[k];
    report.spent[k] = now.spent[k] - at_tick_.spent[k];
    report.cost_scale[k] =
        (resource.cost_scale.limited() ? resource.cost_scale.rate(now_s) : 1) * measured_ratio_[k];
    if (resource.per_request) {
      report.budget[k] = report.next_budget[k] = resource.budget.rate(now_s) * report.requests;
    } else {
      report.budget[k] = resource.budget.amount(last_s_, now_s);
      report.next_budget[k] = resource.budget.amount(now_s, now_s + dt);
    }
    const double least = shared_->table->costs(static_cast<int>(
                             k))[static_cast<size_t>(shared_->table->cheapest_in(static_cast<int>(k)))] *
                         report.cost_scale[k];
    unmeetable_ |= report.requests * least > report.budget[k] * (1 + 1e-9);
  }
  at_tick_ = now;
  last_s_ = now_s;
  // A tick within a thousandth of the window's end closes it: tick times rarely add up to the last bit.
  if (now_s >= window_end_s_ - 1e-3 * options_.window_s) open_window(now_s);
  report.window_left_s = window_end_s_ - now_s;
  for (size_t k = 0; k < n_resources(); ++k) {
    const double used = now.spent[k] - at_window_.spent[k];
    if (resources_[k].per_request) {
      window_budget_[k] = resources_[k].budget.rate(now_s) * (now.requests() - at_window_.requests());
      // What the window still owes or holds is spread over the requests expected in the rest of it.
      report.window_left[k] = window_budget_[k] - used + report.next_budget[k] * report.window_left_s / dt;
    } else {
      report.window_left[k] = window_budget_[k] - used;
    }
  }
  report.sample = {
      {shared_->sample.data(), shared_->sample_filled * static_cast<size_t>(shared_->table->size())},
      static_cast<int>(shared_->sample_filled)};
  if (!following_) {
    controller_->update(report, shared_->terms.prices);
    for (double& price : shared_->terms.prices) {
      if (!std::isfinite(price) || price < 0) price = 0;
    }
  }
  publish(now_s, report.next_budget, report.requests / dt);
}

// The mutex is held.
void GovernorImpl::publish(double now_s, const Amounts& tick_budget, double requests_s) {
  Terms& terms = shared_->terms;
  const double n_deciders = std::max<double>(1, static_cast<double>(shared_->open.size()));
  // A decider's share of what is left: among all allocators by their traffic, among one's own evenly. Who had
  // next to no traffic still gets a quarter of an even share.
  const double even = n_deciders / (n_deciders + static_cast<double>(others_deciders_));
  const double mine = (others_deciders_ > 0 ? std::clamp(own_share_, even / 4, 1.0) : 1.0) / n_deciders;
  for (size_t k = 0; k < n_resources(); ++k) {
    const ResourceOptions& resource = resources_[k];
    terms.scale[k] =
        (resource.cost_scale.limited() ? resource.cost_scale.rate(now_s) : 1) * measured_ratio_[k];
    const double used = at_tick_.spent[k] - at_window_.spent[k];
    const bool capped = options_.hard_cap && !resource.per_request;
    const double least =
        shared_->table->costs(static_cast<int>(k))[static_cast<size_t>(shared_->table->cheapest())];
    const double reserve = least * terms.scale[k] * requests_s * std::max(0.0, window_end_s_ - now_s);
    terms.left[k] = capped ? std::max(0.0, window_budget_[k] - used - reserve) * mine : kInfinity;
    terms.alarm[k] = resource.per_request ? kInfinity : tick_budget[k] * (1 + options_.alarm) * mine;
  }
  ++terms.tick;
  shared_->version.fetch_add(1, std::memory_order_release);
}

Status GovernorImpl::set_prices(std::span<const double> prices) {
  if (prices.size() != n_resources()) {
    return {ErrorCode::kInvalidArgument, strf("%zu prices for %zu resources", prices.size(), n_resources())};
  }
  for (size_t k = 0; k < prices.size(); ++k) {
    if (!std::isfinite(prices[k]) || prices[k] < 0) {
      return {ErrorCode::kInvalidArgument,
              strf("price %g of '%s': prices are finite and not negative", prices[k],
                   shared_->table->resource(static_cast<int>(k)).c_str())};
    }
  }
  const std::lock_guard lock(shared_->mutex);
  shared_->terms.prices.assign(prices.begin(), prices.end());
  shared_->version.fetch_add(1, std::memory_order_release);
  return {};
}

void GovernorImpl::report_measured(int k, double predicted, double measured) {
  FRUGAL_CHECK(k >= 0 && static_cast<size_t>(k) < n_resources());
  if (!(predicted > 0) || !(measured >= 0) || !std::isfinite(predicted) || !std::isfinite(measured)) return;
  const std::lock_guard lock(shared_->mutex);
  double& ratio = measured_ratio_[static_cast<size_t>(k)];
  ratio = std::clamp(0.9 * ratio + 0.1 * ratio * measured / predicted, 0.01, 100.0);
}

GovernorState GovernorImpl::state() const {
  const std::lock_guard lock(shared_->mutex);
  const Totals now = totals();
  GovernorState state;
  state.prices = shared_->terms.prices;
  state.version = shared_->version.load(std::memory_order_relaxed);
  state.requests = now.own_requests();
  state.spent = now.spent;
  for (size_t k = 0; k < n_resources(); ++k)
    state.window_spent[k] = now.spent[k] + others_spent_[k] - at_window_.spent[k];
  state.window_budget = window_budget_;
  state.no_reward = now.kinds[static_cast<size_t>(DecisionKind::kNoReward)];
  state.exhausted = now.kinds[static_cast<size_t>(DecisionKind::kExhausted)];
  state.no_chain = now.kinds[static_cast<size_t>(DecisionKind::kNoChain)];
  state.clock_jumps = clock_jumps_;
  state.unmeetable = unmeetable_;
  state.reward = now.reward;
  return state;
}

}  // namespace

std::unique_ptr<Decider> Governor::make_decider(std::unique_ptr<Decider::Impl> impl) {
  return std::unique_ptr<Decider>(new Decider(std::move(impl)));
}

Result<std::shared_ptr<Governor>> Governor::create(std::shared_ptr<const ChainTable> table,
                                                   std::vector<ResourceOptions> resources,
                                                   const GovernorOptions& options) {
  if (table == nullptr || resources.size() != static_cast<size_t>(table->n_resources())) {
    return {ErrorCode::kInvalidArgument, strf("%zu budgets for a table of %d resources", resources.size(),
                                              table == nullptr ? 0 : table->n_resources())};
  }
  for (size_t k = 0; k < resources.size(); ++k) {
    if (!std::isfinite(resources[k].initial_price) || resources[k].initial_price < 0) {
      return {ErrorCode::kInvalidArgument,
              strf("initial price %g of '%s': prices are finite and not negative", resources[k].initial_price,
                   table->resource(static_cast<int>(k)).c_str())};
    }
  }
  if (!(options.window_s > 0) || !std::isfinite(options.window_s) || !(options.max_tick_s > 0)) {
    return {ErrorCode::kInvalidArgument, "window_s and max_tick_s are positive"};
  }
  if (options.sample_size < 16 || options.sample_size > 65536 || options.sample_every < 1 ||
      !(options.alarm >= 0)) {
    return {ErrorCode::kInvalidArgument,
            "sample_size lies in [16, 65536], sample_every is at least 1, alarm at least 0"};
  }
  FRUGAL_TRY(auto controller, make_controller(options.controller, table->n_resources()));
  return std::shared_ptr<Governor>(
      std::make_shared<GovernorImpl>(std::move(table), std::move(resources), options, std::move(controller)));
}

}  // namespace frugal::budget
