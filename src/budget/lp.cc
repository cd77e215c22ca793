// The allocation's LP optimum in hindsight, the bound that every controller is measured against.
#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "budget/response.h"
#include "frugal/budget.h"

namespace frugal::budget {
namespace {

struct Segment {
  double slope, cost, reward;  // reward / cost, both > 0
};

// The one-resource case. The LP relaxation of multiple-choice knapsack is solved by walking each request's
// upper hull of (cost, reward) from its cheapest chain on, steepest segments of all requests first (Sinha and
// Zoltners 1979).
LpBound hull_greedy(std::span<const float> rewards, int n, const ChainTable& table, int k, double budget) {
  const auto costs = table.costs(k);
  const size_t n_chains = costs.size();
  std::vector<int> by_cost(n_chains);
  for (size_t j = 0; j < n_chains; ++j) by_cost[j] = static_cast<int>(j);
  std::sort(by_cost.begin(), by_cost.end(),
            [&](int a, int b) { return costs[static_cast<size_t>(a)] < costs[static_cast<size_t>(b)]; });
  LpBound bound;
  bound.prices.assign(static_cast<size_t>(table.n_resources()), 0.0);
  std::vector<Segment> segments;
  struct HullPoint {
    double cost, reward;
  };
  std::vector<HullPoint> hull;
  const auto ki = static_cast<size_t>(k);
  for (int i = 0; i < n; ++i) {
    const auto row = rewards.subspan(static_cast<size_t>(i) * n_chains, n_chains);
    hull.clear();
    for (const int j : by_cost) {
      const float reward = row[static_cast<size_t>(j)];
      if (!std::isfinite(reward)) continue;
      const HullPoint point{costs[static_cast<size_t>(j)], static_cast<double>(reward)};
      if (!hull.empty() && point.reward <= hull.back().reward) continue;
      if (!hull.empty() && point.cost == hull.back().cost) hull.pop_back();
      const auto slope = [](const HullPoint& a, const HullPoint& b) {
        return (b.reward - a.reward) / (b.cost - a.cost);
      };
      while (hull.size() >= 2 && slope(hull[hull.size() - 2], hull.back()) <= slope(hull.back(), point))
        hull.pop_back();
      hull.push_back(point);
    }
    if (hull.empty()) {  // nothing is known of this request: the cheapest chain, for no reward
      bound.spent[ki] += costs[static_cast<size_t>(table.cheapest())];
      continue;
    }
    bound.spent[ki] += hull[0].cost;
    bound.reward += hull[0].reward;
    for (size_t h = 1; h < hull.size(); ++h) {
      const double cost = hull[h].cost - hull[h - 1].cost, reward = hull[h].reward - hull[h - 1].reward;
      segments.push_back({reward / cost, cost, reward});
    }
  }
  bound.feasible = bound.spent[ki] <= budget;
  if (bound.feasible) {
    std::sort(segments.begin(), segments.end(),
              [](const Segment& a, const Segment& b) { return a.slope > b.slope; });
    for (const Segment& segment : segments) {
      const double share = std::min(1.0, (budget - bound.spent[ki]) / segment.cost);
      bound.spent[ki] += share * segment.cost;
      bound.reward += share * segment.reward;
      if (share < 1) {
        bound.prices[ki] = segment.slope;
        break;
      }
    }
  }
  bound.lower = bound.reward;
  return bound;
}

// Several resources, each cost divided by its budget: D(p) = sum_k p_k + sum_i max_j (r_ij - sum_k p_k c_jk /
// B_k).
class Dual {
 public:
  Dual(std::span<const float> rewards, int n, const ChainTable& table, const Amounts& budget,
       std::vector<int> active)
      : rewards_(rewards),
        n_(n),
        table_(table),
        budget_(budget),
        active_(std::move(active)),
        priced_(static_cast<size_t>(table.size())) {}

  struct At {
    double dual = 0, reward = 0;
    Amounts use{};  // spent / budget, by active resource
  };
  At at(const std::vector<double>& p) {
    std::vector<double> prices(static_cast<size_t>(table_.n_resources()), 0.0);
    Amounts one{1, 1, 1, 1};
    for (size_t a = 0; a < active_.size(); ++a) {
      prices[static_cast<size_t>(active_[a])] = p[a] / budget_[static_cast<size_t>(active_[a])];
    }
    price_chains(table_, prices, one, priced_);
    At result;
    const size_t n_chains = priced_.size();
    for (int i = 0; i < n_; ++i) {
      const auto row = rewards_.subspan(static_cast<size_t>(i) * n_chains, n_chains);
      int j = argmax_net_reward(row, priced_);
      if (j < 0) {
        j = table_.cheapest();
      } else {
        result.reward += static_cast<double>(row[static_cast<size_t>(j)]);
      }
      for (size_t a = 0; a < active_.size(); ++a) {
        const auto k = static_cast<size_t>(active_[a]);
        result.use[a] += table_.costs(active_[a])[static_cast<size_t>(j)] / budget_[k];
      }
    }
    result.dual = result.reward;
    for (size_t a = 0; a < active_.size(); ++a) result.dual += p[a] * (1 - result.use[a]);
    return result;
  }
  const std::vector<int>& active() const { return active_; }

  double least_reward() const {
    double sum = 0;
    const size_t n_chains = priced_.size();
    for (int i = 0; i < n_; ++i) {
      float least = std::numeric_limits<float>::infinity();
      for (const float r : rewards_.subspan(static_cast<size_t>(i) * n_chains, n_chains)) {
        if (std::isfinite(r)) least = std::min(least, r);
      }
      if (std::isfinite(least)) sum += static_cast<double>(least);
    }
    return sum;
  }

 private:
  std::span<const float> rewards_;
  int n_;
  const ChainTable& table_;
  Amounts budget_;
  std::vector<int> active_;
  std::vector<float> priced_;
};

LpBound ellipsoid(Dual& dual, int n_resources, const Amounts& budget, double tolerance) {
  const size_t dim = dual.active().size();
  LpBound bound;
  bound.prices.assign(static_cast<size_t>(n_resources), 0.0);
  const auto record = [&](const std::vector<double>& p, const Dual::At& at) {
    bound.reward = at.dual;
    for (size_t a = 0; a < dim; ++a) {
      const auto k = static_cast<size_t>(dual.active()[a]);
      bound.prices[k] = p[a] / budget[k];
      bound.spent[k] = at.use[a] * budget[k];
    }
  };
  const auto fits = [&](const Dual::At& at) {
    for (size_t a = 0; a < dim; ++a) {
      if (at.use[a] > 1) return false;
    }
    return true;
  };
  std::vector<double> p(dim, 0.0), best(dim, 0.0);
  Dual::At at = dual.at(p);
  record(p, at);
  if (fits(at)) {
    bound.lower = at.reward;
    return bound;
  }
  // Prices beyond which the cheapest chains win whatever the request: a feasible point of least reward, if
  // there is one.
  const double spread = std::max(std::fabs(at.reward), 1e-12);
  double radius = spread;
  std::vector<double> ceiling(dim, radius);
  Dual::At at_ceiling = dual.at(ceiling);
  while (!fits(at_ceiling) && radius < 1e6 * spread) {
    radius *= 4;
    ceiling.assign(dim, radius);
    at_ceiling = dual.at(ceiling);
  }
  // Where equal prices do not help (one budget tight in what another resource's cheapest chains cost) unequal
  // ones may.
  const bool have_feasible = fits(at_ceiling);
  // The least of the dual may lie outside the box of equal prices, too: the search starts well beyond it.
  radius = have_feasible ? 32 * radius : 1e3 * spread;
  // Central-cut ellipsoid method: {centre + B u, |u| <= 1} holds a minimum; the centre moves against the
  // subgradient 1 - use. The factor B is updated rather than B B', which rounding would make indefinite
  // within some 70 steps.
  double best_dual = at.dual;
  const double d = static_cast<double>(dim);
  std::vector<double> factor(dim * dim, 0.0);
  for (size_t a = 0; a < dim; ++a) {
    p[a] = 0.5 * radius;
    factor[a * dim + a] = 0.5 * radius * std::sqrt(d);
  }
  for (int iteration = 0; iteration < 2000; ++iteration) {
    std::vector<double> g(dim, 0.0);
    const auto negative = std::find_if(p.begin(), p.end(), [](double x) { return x < 0; });
    if (negative != p.end()) {
      g[static_cast<size_t>(negative - p.begin())] = -1;
    } else {
      at = dual.at(p);
      if (at.dual < best_dual) {
        best_dual = at.dual;
        best = p;
        record(p, at);
      }
      for (size_t a = 0; a < dim; ++a) g[a] = 1 - at.use[a];
    }
    std::vector<double> q(dim, 0.0), step(dim, 0.0);
    double norm = 0;
    for (size_t b = 0; b < dim; ++b) {
      for (size_t a = 0; a < dim; ++a) q[b] += factor[a * dim + b] * g[a];
      norm += q[b] * q[b];
    }
    norm = std::sqrt(norm);
    if (norm == 0) break;  // a subgradient of zero: this is a minimum
    // `norm` bounds how far below the value at the centre the minimum can lie.
    if (negative == p.end() && norm <= tolerance * std::max(std::fabs(best_dual), 1e-12)) break;
    for (size_t a = 0; a < dim; ++a) {
      for (size_t b = 0; b < dim; ++b) step[a] += factor[a * dim + b] * q[b] / norm;
    }
    const double wide = d / std::sqrt(d * d - 1), thin = d / (d + 1);
    for (size_t a = 0; a < dim; ++a) {
      p[a] -= step[a] / (d + 1);
      for (size_t b = 0; b < dim; ++b) {
        factor[a * dim + b] = wide * factor[a * dim + b] + (thin - wide) * step[a] * q[b] / norm;
      }
    }
  }
  // Any feasible allocation earns at least the sum of the least rewards: a dual value below that proves there
  // is none.
  if (best_dual < dual.least_reward() - 1e-9 * spread) {
    bound.feasible = false;
    bound.reward = bound.lower = dual.at(best).reward;
    return bound;
  }
  // A feasible point nearby: prices of overspent resources raised by small steps until every budget is kept.
  std::vector<double> raised = best;
  Dual::At feasible = dual.at(raised);
  for (int step = 0; step < 1500 && !fits(feasible); ++step) {
    for (size_t a = 0; a < dim; ++a) {
      if (feasible.use[a] > 1) raised[a] = 1.02 * raised[a] + 1e-9 * spread;
    }
    feasible = dual.at(raised);
  }
  if (!fits(feasible)) {
    feasible = at_ceiling;
    if (!have_feasible) feasible.reward = dual.least_reward();
  }
  bound.lower = feasible.reward;
  return bound;
}

}  // namespace

LpBound lp_bound(std::span<const float> rewards, int n, const ChainTable& table, const Amounts& budget,
                 double tolerance) {
  FRUGAL_CHECK(n >= 0 && rewards.size() == static_cast<size_t>(n) * static_cast<size_t>(table.size()));
  std::vector<int> active;
  for (int k = 0; k < table.n_resources(); ++k) {
    if (std::isfinite(budget[static_cast<size_t>(k)])) active.push_back(k);
  }
  if (active.size() <= 1) {
    const int k = active.empty() ? 0 : active[0];
    const double limit =
        active.empty() ? std::numeric_limits<double>::infinity() : budget[static_cast<size_t>(k)];
    return hull_greedy(rewards, n, table, k, limit);
  }
  Amounts positive = budget;  // a budget of nothing divides costs by the least double that keeps them finite
  for (double& amount : positive) amount = std::max(amount, 1e-12);
  Dual dual(rewards, n, table, positive, active);
  return ellipsoid(dual, table.n_resources(), positive, tolerance);
}

}  // namespace frugal::budget
