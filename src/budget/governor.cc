// Governor: the accounts of all deciders, the window, and the hand-over of prices to the threads that decide.
#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "base/text.h"
#include "budget/accounts.h"

namespace frugal::budget {
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
