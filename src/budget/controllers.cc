// The price controllers: one of each published family, behind PriceController. All work on the logarithm of
// the price, whose natural size (reward spread over cost spread) comes from the sample: gains then need no
// units.
#include <algorithm>
#include <cmath>

#include "base/text.h"
#include "budget/response.h"
#include "frugal/budget.h"

namespace frugal::budget {
namespace {

// Moves a price by a step in its logarithm, within [1/span, span] reference prices; below the floor it is 0,
// and a price of 0 starts again from the floor when it has to rise.
double stepped(double price, double log_step, double reference) {
  if (reference <= 0) return price;
  const double floor = reference / kPriceSpan, ceiling = reference * kPriceSpan;
  if (price < floor) {
    if (log_step <= 0) return 0;
    price = floor;
  }
  price *= std::exp(log_step);
  return price < floor ? 0 : std::min(price, ceiling);
}

// spent / budget - 1, within [-1, 3]: a budget of nothing counts as far overspent if anything was spent.
double excess(double spent, double budget) {
  if (std::isinf(budget)) return -1;
  if (budget <= 0) return spent > 0 ? 3 : 0;
  return std::clamp(spent / budget - 1, -1.0, 3.0);
}

class Static final : public PriceController {
 public:
  std::string_view name() const override { return "static"; }
  void update(const TickReport&, std::span<double>) override {}
  void reset() override {}
};

// GreenFlow-style: the dual of the last tick's requests is descended by projected subgradients, from the
// present price on, with steps that shrink. (The paper's own step sizes are not public.)
class PrimalDual final : public PriceController {
 public:
  explicit PrimalDual(const ControllerOptions& options) : options_(options) {}
  std::string_view name() const override { return "primal_dual"; }
  void reset() override {}

  void update(const TickReport& report, std::span<double> prices) override {
    if (report.requests <= 0 || report.sample.n == 0) return;
    Response response(report);
    for (int step = 0; step < options_.inner_steps; ++step) {
      const Response::Mean mean = response.at(prices);
      const double size = options_.step / std::sqrt(1.0 + step);
      for (size_t k = 0; k < prices.size(); ++k) {
        const double gradient = excess(report.requests * mean.cost[k], report.next_budget[k]);
        prices[k] = stepped(prices[k], size * gradient, response.reference_price(static_cast<int>(k)));
      }
    }
  }

 private:
  ControllerOptions options_;
};

// DCAF: the price at which the last tick's requests would have met the budget, by bisection; several
// resources in turn.
class Bisection final : public PriceController {
 public:
  std::string_view name() const override { return "bisection"; }
  void reset() override {}

  void update(const TickReport& report, std::span<double> prices) override {
    if (report.requests <= 0 || report.sample.n == 0) return;
    Response response(report);
    const int rounds = prices.size() == 1 ? 1 : 4;
    for (int round = 0; round < rounds; ++round) {
      for (size_t k = 0; k < prices.size(); ++k) {
        if (std::isinf(report.next_budget[k])) continue;
        response.price_for(static_cast<int>(k), report.next_budget[k] / report.requests, prices);
      }
    }
  }
};

// CRAS: feedback alone. The velocity form has no integral to wind up.
class Pid final : public PriceController {
 public:
  explicit Pid(const ControllerOptions& options) : options_(options) {}
  std::string_view name() const override { return "pid"; }
  void reset() override { n_ = 0; }

  void update(const TickReport& report, std::span<double> prices) override {
    Response response(report);
    for (size_t k = 0; k < prices.size(); ++k) {
      const double e = excess(report.spent[k], report.budget[k]);
      const double e1 = n_ > 0 ? last_[k] : e, e2 = n_ > 1 ? before_[k] : e1;
      const double step = options_.kp * (e - e1) + options_.ki * e + options_.kd * (e - 2 * e1 + e2);
      before_[k] = e1;
      last_[k] = e;
      // From no price at all, the first overspending starts at a hundredth of the reference: climbing up from
      // the floor by feedback alone would take minutes.
      const double reference = response.reference_price(static_cast<int>(k));
      if (prices[k] == 0 && e > 0) prices[k] = 0.01 * reference;
      prices[k] = stepped(prices[k], step, reference);
    }
    n_ = std::min(n_ + 1, 2);
  }

 private:
  ControllerOptions options_;
  Amounts last_{}, before_{};
  int n_ = 0;
};

// MaRCA: over the next N ticks, minimise sum_i alpha^i (C_{t+i} - B)^2 + beta sum_i alpha^i (C_{t+i} -
// C_{t+i-1})^2, the second only while C >= B, and apply the first step. Here the use is C_{t+i} =
// requests_{t+i} * c(price), with requests forecast by a damped trend and c(price) read off the sample, so
// the plan is found in two steps: the best mean cost c* (a scalar), then the price that yields it. The budget
// aimed at is what is left of the window, so that an error is made good within the window and none is carried
// into the next.
class Mpc final : public PriceController {
 public:
  explicit Mpc(const ControllerOptions& options) : options_(options) {}
  std::string_view name() const override { return "mpc"; }
  void reset() override {
    started_ = false;
    bias_ = {1, 1, 1, 1};
  }

  void update(const TickReport& report, std::span<double> prices) override {
    if (report.dt_s <= 0) return;
    window_s_ = std::max(window_s_, report.window_left_s);
    const double rate = report.requests / report.dt_s;
    // A jump is believed at once, noise (a Poisson count's own) is smoothed away.
    const double noise = 3 * std::sqrt(std::max(report.requests, 1.0)) / report.dt_s;
    const double seen = started_ ? rate - level_ : 0;
    if (!started_ || std::fabs(seen) > noise) {
      trend_ = 0;
      level_ = rate;
      started_ = true;
    } else {
      const double next = level_ + 0.3 * seen;
      trend_ = 0.9 * trend_ + 0.1 * (next - level_);
      level_ = next;
    }
    if (report.sample.n == 0) return;
    Response response(report);
    const Response::Mean before = response.at(prices);
    const int rounds = prices.size() == 1 ? 1 : 4;
    for (int round = 0; round < rounds; ++round) {
      for (size_t k = 0; k < prices.size(); ++k) {
        if (std::isinf(report.next_budget[k])) continue;
        if (round == 0) learn_bias(k, report, before);
        const double target = planned_mean_cost(k, report);
        response.price_for(static_cast<int>(k), target / bias_[k], prices);
      }
    }
  }

 private:
  // What was spent against what the sample says it should have been, smoothed: the sample lags and is small.
  void learn_bias(size_t k, const TickReport& report, const Response::Mean& before) {
    const double predicted = report.requests * before.cost[k];
    if (predicted <= 0 || report.spent[k] <= 0) return;
    bias_[k] = std::clamp(0.8 * bias_[k] + 0.2 * report.spent[k] / predicted, 0.5, 2.0);
  }

  double planned_mean_cost(size_t k, const TickReport& report) const {
    const double dt = report.dt_s;
    const double left_s = std::max(report.window_left_s, dt);
    // Within the window the rest of its budget, spread evenly; a budget already gone leaves nothing to plan
    // with. What was left over is caught up on no faster than over a share of the window: in its last ticks
    // it would make the price fall and rise again at once. What was overspent is made good by the window's
    // end.
    const double beyond = report.next_budget[k] / dt;
    double paced = beyond;
    if (!std::isinf(report.window_left[k])) {
      const double behind = report.window_left[k] - beyond * left_s;
      const double over_s = behind > 0 ? std::max(left_s, options_.catch_up * window_s_) : left_s;
      paced = std::max(0.0, beyond + behind / over_s);
    }
    std::vector<double> requests(static_cast<size_t>(options_.horizon)), budgets(requests.size());
    double damped = 0, level = level_;
    for (size_t i = 0; i < requests.size(); ++i) {
      damped += trend_ * std::pow(0.9, static_cast<double>(i));
      requests[i] = std::max(level + damped, 1e-9) * dt;
      budgets[i] = (static_cast<double>(i) * dt < left_s ? paced : beyond) * dt;
    }
    if (budgets[0] <= 0) return 0;
    const auto objective = [&](double mean_cost) {
      double sum = 0, weight = 1, last = report.spent[k];
      for (size_t i = 0; i < requests.size(); ++i) {
        const double use = requests[i] * mean_cost;
        const double off = use / budgets[0] - budgets[i] / budgets[0];
        const double growth = use / budgets[0] - last / budgets[0];
        weight *= options_.alpha;
        sum += weight * off * off;
        if (use >= budgets[i] && growth > 0) sum += options_.beta * weight * growth * growth;
        last = use;
      }
      return sum;
    };
    // One minimum: each term is convex and falls or is flat up to the budget. Golden section around the naive
    // answer.
    double low = 0, high = 2 * budgets[0] / requests[0];
    constexpr double kGolden = 0.6180339887498949;
    double a = high - kGolden * (high - low), b = low + kGolden * (high - low);
    double at_a = objective(a), at_b = objective(b);
    for (int step = 0; step < 40; ++step) {
      if (at_a <= at_b) {
        high = b, b = a, at_b = at_a;
        a = high - kGolden * (high - low), at_a = objective(a);
      } else {
        low = a, a = b, at_a = at_b;
        b = low + kGolden * (high - low), at_b = objective(b);
      }
    }
    return 0.5 * (low + high);
  }

  ControllerOptions options_;
  bool started_ = false;
  double window_s_ = 0;           // the longest rest of a window seen
  double level_ = 0, trend_ = 0;  // requests a second, and their change a tick
  Amounts bias_{1, 1, 1, 1};
};

constexpr std::pair<ControllerKind, std::string_view> kNames[] = {
    {ControllerKind::kStatic, "static"},
    {ControllerKind::kPrimalDual, "primal_dual"},
    {ControllerKind::kBisection, "bisection"},
    {ControllerKind::kPid, "pid"},
    {ControllerKind::kMpc, "mpc"}};

}  // namespace

Result<ControllerKind> parse_controller(std::string_view name) {
  std::string known;
  for (const auto& [kind, its_name] : kNames) {
    if (name == its_name) return kind;
    known += (known.empty() ? "" : ", ") + std::string(its_name);
  }
  return {ErrorCode::kInvalidArgument, strf("there is no price controller '%.*s'; there are: %s",
                                            static_cast<int>(name.size()), name.data(), known.c_str())};
}

std::string_view controller_name(ControllerKind kind) {
  for (const auto& [its_kind, name] : kNames) {
    if (kind == its_kind) return name;
  }
  return "";
}

Result<std::unique_ptr<PriceController>> make_controller(const ControllerOptions& options, int n_resources) {
  const auto within = [](double x, double low, double high) { return x >= low && x <= high; };
  if (!within(n_resources, 1, kMaxResources)) {
    return {ErrorCode::kInvalidArgument,
            strf("%d resources; 1 to %d are possible", n_resources, kMaxResources)};
  }
  if (!(options.step > 0) || !within(options.step, 0, 2) || !within(options.inner_steps, 1, 1000)) {
    return {ErrorCode::kInvalidArgument, "primal_dual: step lies in (0, 2], inner_steps in [1, 1000]"};
  }
  if (!within(options.kp, 0, 100) || !within(options.ki, 0, 100) || !within(options.kd, 0, 100)) {
    return {ErrorCode::kInvalidArgument, "pid: kp, ki and kd lie in [0, 100]"};
  }
  if (!within(options.horizon, 1, 100) || !(options.alpha > 0) || !within(options.alpha, 0, 1) ||
      !within(options.beta, 0, 1e6) || !within(options.catch_up, 0, 1)) {
    return {ErrorCode::kInvalidArgument,
            "mpc: horizon lies in [1, 100], alpha in (0, 1], beta in [0, 1e6], catch_up in [0, 1]"};
  }
  switch (options.kind) {
    case ControllerKind::kStatic:
      return std::unique_ptr<PriceController>(new Static());
    case ControllerKind::kPrimalDual:
      return std::unique_ptr<PriceController>(new PrimalDual(options));
    case ControllerKind::kBisection:
      return std::unique_ptr<PriceController>(new Bisection());
    case ControllerKind::kPid:
      return std::unique_ptr<PriceController>(new Pid(options));
    case ControllerKind::kMpc:
      return std::unique_ptr<PriceController>(new Mpc(options));
  }
  return {ErrorCode::kInvalidArgument, "unknown controller"};
}

}  // namespace frugal::budget
