// The budget room: which way of serving a request is worth its cost, under budgets that hold for all requests
// together.
//
// A chain is one way to serve a request; it has a predicted reward (per request) and costs in several
// resources (FLOPs, joules, gCO2e, seconds). For every request the allocator takes argmax_j (reward_j - sum_k
// price_k cost_jk), the Lagrangian relaxation of the multiple-choice knapsack problem (DCAF, arXiv
// 2006.09684; GreenFlow, arXiv 2312.16176; written out in MaRCA, arXiv 2512.24325, equations 2 to 6). The
// prices are the only state that requests share; a controller moves them so that the budgets are used and
// kept. Nothing here knows what a chain does: recommenders, language models and partitioned networks go
// through the same call.
//
//   FRUGAL_TRY(auto table, ChainTable::create({"flops"}, chains));
//   FRUGAL_TRY(auto governor, Governor::create(table, {{.budget = Schedule::constant(2e12)}}, {}));
//   FRUGAL_TRY(auto decider, governor->open_decider());
//   Decision d = decider->decide(rewards);      // any thread, a decider each
//   governor->tick(now_s);                      // one thread, about once a second
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "frugal/result.h"

namespace frugal::budget {

inline constexpr int kMaxResources = 4;
using Amounts = std::array<double, kMaxResources>;  // by resource; unused ones are 0

// A way to serve a request. `actions` is the planner's own coding of it (model and item count of each stage,
// say) and is only carried along.
struct Chain {
  std::string name;
  std::vector<int> actions;
  Amounts cost{};  // predicted, of one request, in the units of the resources
};

// The chains on offer and their costs. Immutable, shared between threads.
class ChainTable {
 public:
  // kInvalidArgument: no chains, no or too many resources, a cost that is negative or not finite (zero is
  // fine: a cached answer), two chains of one name.
  static Result<std::shared_ptr<const ChainTable>> create(std::vector<std::string> resources,
                                                          std::vector<Chain> chains);

  int size() const { return static_cast<int>(chains_.size()); }
  int n_resources() const { return static_cast<int>(resources_.size()); }
  const std::string& resource(int k) const { return resources_[static_cast<size_t>(k)]; }
  const Chain& chain(int j) const { return chains_[static_cast<size_t>(j)]; }
  int find(std::string_view name) const;  // -1: none of that name

  // Costs of resource k [size].
  std::span<const double> costs(int k) const {
    return {costs_.data() + static_cast<size_t>(k) * chains_.size(), chains_.size()};
  }
  // What is served when nothing can be afforded or no reward is known: least sum of costs, each relative to
  // its resource's largest.
  int cheapest() const { return cheapest_; }
  // The chain of least and of largest cost in resource k.
  int cheapest_in(int k) const { return cheapest_in_[static_cast<size_t>(k)]; }
  int dearest_in(int k) const { return dearest_in_[static_cast<size_t>(k)]; }

 private:
  ChainTable() = default;
  std::vector<std::string> resources_;
  std::vector<Chain> chains_;
  std::vector<double> costs_;  // [n_resources, size]
  std::array<int, kMaxResources> cheapest_in_{}, dearest_in_{};
  int cheapest_ = 0;
};

// Rates over time, piecewise constant: a budget in units a second, or the grid's carbon intensity. Before the
// first point the first rate holds, after the last the last one, unless the schedule repeats.
class Schedule {
 public:
  struct Point {
    double at_s = 0;
    double rate = 0;
  };

  Schedule() = default;  // no limit: amount() is infinite
  static Schedule constant(double rate);
  // kInvalidArgument: no points, times that do not increase, rates that are negative or not finite, a period
  // that does not reach beyond the last point. `period_s` 0: does not repeat; then the first point need not
  // be at 0.
  static Result<Schedule> piecewise(std::vector<Point> points, double period_s = 0);

  bool limited() const { return !points_.empty(); }
  double rate(double at_s) const;
  double amount(double from_s, double to_s) const;  // integral of the rate; 0 when to_s <= from_s

 private:
  std::vector<Point> points_;
  std::vector<double> until_;  // integral from points_[0] to points_[i]
  double period_s_ = 0;
};

// Rewards of some recent requests and how often they stand for others; what price controllers learn the
// response from.
struct Sample {
  std::span<const float> rewards;  // [n, n_chains]; entries that are not finite are chains not on offer
  int n = 0;
};

// What a controller sees at a tick.
struct TickReport {
  double now_s = 0;
  double dt_s = 0;        // time that the tick covered
  double requests = 0;    // in the tick
  Amounts spent{};        // in the tick
  Amounts budget{};       // of the tick; infinite: no limit
  Amounts next_budget{};  // for as long a time from now
  Amounts window_left{};  // of the window's budget, negative when overspent
  double window_left_s = 0;
  Amounts cost_scale{};  // factor on the table's costs, now
  Sample sample;
  const ChainTable* table = nullptr;
};

// Sets the prices (one for each resource, >= 0). One per governor; called by one thread at a time;
// deterministic.
class PriceController {
 public:
  virtual ~PriceController() = default;
  virtual std::string_view name() const = 0;
  virtual void update(const TickReport& report, std::span<double> prices) = 0;
  // Forget rates and integrals (after a clock jump), keep prices.
  virtual void reset() = 0;
};

enum class ControllerKind {
  kStatic,      // prices stay as they were given
  kPrimalDual,  // GreenFlow: projected subgradient of the dual over the last requests
  kBisection,   // DCAF: the price at which the last requests would have met the budget
  kPid,         // CRAS: proportional, integral and differential feedback on the use
  kMpc,         // MaRCA: model-predictive over a horizon, over-use punished more than slack
};
Result<ControllerKind> parse_controller(
    std::string_view name);  // "static", "primal_dual", "bisection", "pid", "mpc"
std::string_view controller_name(ControllerKind kind);

struct ControllerOptions {
  ControllerKind kind = ControllerKind::kMpc;
  double step = 0.5;     // primal_dual: step on the log price for a relative excess of one, (0, 2]
  int inner_steps = 40;  // primal_dual: descents a tick over the sample, 1 to 1,000
  double kp = 0.4, ki = 0.08, kd = 0.05;  // pid, on the log price against the relative excess
  int horizon = 10;                       // mpc: ticks ahead, 1 to 100
  double alpha = 0.4;                     // mpc: weight of each further tick, (0, 1]
  double beta = 8;                        // mpc: weight of growth while over the budget, >= 0
  // mpc: what a window has left over is spent over this share of it at least, [0, 1]. Chosen on
  // simulated days: at 0 the price falls in a window's last ticks, at 1 use settles late.
  double catch_up = 0.5;
};
// kInvalidArgument: an option out of its range.
Result<std::unique_ptr<PriceController>> make_controller(const ControllerOptions& options, int n_resources);

struct ResourceOptions {
  Schedule budget = {};      // in units a second; default: no limit
  Schedule cost_scale = {};  // factor on the table's costs over time (gCO2e per joule for carbon); default: 1
  bool per_request = false;  // the budget's rate is for each request (mean latency, say), not for each second
  double initial_price = 0;  // >= 0; a warm start
};

struct GovernorOptions {
  ControllerOptions controller = {};
  double window_s = 60;     // over which each budget is to be kept, > 0
  double max_tick_s = 300;  // a tick that is longer is a clock jump: rates are forgotten, prices stay
  int sample_size = 256;    // recent requests whose rewards are kept, 16 to 65,536
  int sample_every = 8;     // one request of so many is kept, >= 1
  // Windows end at multiples of window_s, so that allocators on one clock share them.
  bool align_windows = false;
  bool hard_cap = true;  // once a window's budget is gone, serve the cheapest until it ends
  // A decider asks for an early tick when it has spent its tick's budget and this share more. Chosen on two
  // simulated days among 0.25 to 3: below 0.6 prices move more than requests do, above 1 regret grows.
  double alarm = 1;
};

enum class DecisionKind : uint8_t {
  kPriced,     // the best by reward - price * cost
  kNoReward,   // no reward was finite: the cheapest
  kExhausted,  // the budget of the window is gone: the cheapest
  kNoChain,    // a request's own limits leave no chain: the cheapest
};
std::string_view decision_kind_name(DecisionKind kind);

struct Decision {
  int chain = 0;
  DecisionKind kind = DecisionKind::kPriced;
  float reward = 0;  // as given for the chain; 0 when none was known
  float score = 0;   // reward - price * cost
};

// A request whose costs are its own, or which has limits of its own.
struct Request {
  std::span<const float> rewards;  // [n_chains]
  std::span<const double> costs;   // [n_resources, n_chains]; empty: the table's
  Amounts limits = {};             // a chain that costs more is not on offer; 0: no limit
};

// The argmax itself: index of the largest finite rewards[j] - priced_costs[j], the lowest index of equals, -1
// if none is finite.
int argmax_net_reward(std::span<const float> rewards, std::span<const float> priced_costs);

// The state of a governor, for reports and metrics.
struct GovernorState {
  std::vector<double> prices;
  uint64_t version = 0;  // of the prices
  uint64_t requests = 0;
  Amounts spent{};  // since the start
  Amounts window_spent{};
  Amounts window_budget{};
  uint64_t no_reward = 0, exhausted = 0, no_chain = 0;  // decisions of these kinds
  uint64_t clock_jumps = 0;
  bool unmeetable = false;  // the cheapest chains alone exceed a budget at the present load
  double reward = 0;        // sum of predicted rewards of the decisions
};

class Governor;

// Decides for one thread. Reads the shared prices, which costs an atomic load while they stay the same.
class Decider {
 public:
  ~Decider();
  Decider(const Decider&) = delete;
  Decider& operator=(const Decider&) = delete;

  // rewards [n_chains]; a wrong length is the caller's bug.
  Decision decide(std::span<const float> rewards);
  Decision decide(const Request& request);
  // For many at once: rewards [n, n_chains], out [n].
  void decide_batch(std::span<const float> rewards, std::span<Decision> out);
  std::span<const double> prices() const;  // [n_resources], of the last decision

  struct Impl;

 private:
  friend class Governor;
  explicit Decider(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Keeps the accounts of all deciders, moves the prices. tick() from one thread; the rest from any.
class Governor : public std::enable_shared_from_this<Governor> {
 public:
  // kInvalidArgument: resources.size() differs from the table's, an option out of range.
  static Result<std::shared_ptr<Governor>> create(std::shared_ptr<const ChainTable> table,
                                                  std::vector<ResourceOptions> resources,
                                                  const GovernorOptions& options);
  virtual ~Governor() = default;

  virtual std::unique_ptr<Decider> open_decider() = 0;
  // Closes the time since the last tick and sets new prices. Time going backwards or leaping ahead is counted
  // and survived. The first call only starts the clock.
  virtual void tick(double now_s) = 0;
  // Whether a decider has overspent so far that waiting for the next regular tick would hurt.
  virtual bool tick_wanted() const = 0;
  // Prices from elsewhere (a leader that shares its own). kInvalidArgument: wrong count, negative, not
  // finite.
  virtual Status set_prices(std::span<const double> prices) = 0;
  // Following: tick() keeps the accounts but leaves the prices to set_prices.
  virtual void follow(bool following) = 0;
  // What other allocators under the same budgets have spent so far, cumulative, and their deciders: they
  // count against the budgets from the next tick on.
  virtual void set_others(const Amounts& spent, double requests, int n_deciders) = 0;
  // What was really spent beside what the table predicted, in resource k: later costs are scaled by the
  // smoothed ratio.
  virtual void report_measured(int k, double predicted, double measured) = 0;

  virtual GovernorState state() const = 0;
  virtual const ChainTable& table() const = 0;

 protected:
  static std::unique_ptr<Decider> make_decider(std::unique_ptr<Decider::Impl> impl);
};

// Allocation in hindsight: max sum x_ij r_ij, sum_ij x_ij c_jk <= budget_k, sum_j x_ij = 1, x >= 0.
struct LpBound {
  double reward = 0;  // of the LP optimum; an upper bound of every allocation
  double lower =
      0;  // reward of a feasible point (one resource: equal to `reward`; several: the bound's gap shows)
  std::vector<double> prices;  // dual solution
  Amounts spent{};             // at the dual solution, ties to the cheaper chain
  bool feasible =
      true;  // false: even the cheapest chains exceed a budget; reward is then that of the cheapest
};
// rewards [n, table.size()]. One resource: exact, by the upper hull of each request's chains and a greedy
// over all hull segments, O(n m log). Several: the dual function minimised by the ellipsoid method, which
// gives an upper bound for certain and the optimum to within `tolerance` (relative) as a rule. Budgets that
// are infinite do not bind.
LpBound lp_bound(std::span<const float> rewards, int n, const ChainTable& table, const Amounts& budget,
                 double tolerance = 1e-6);

}  // namespace frugal::budget
