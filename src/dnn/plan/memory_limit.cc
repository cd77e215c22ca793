#include "dnn/plan/memory_limit.h"

#include <algorithm>
#include <cmath>

namespace frugal::dnn {
namespace {

std::vector<double> held_by(std::span<const int> labels, std::span<const uint64_t> weight, size_t n_labels) {
  std::vector<double> held(n_labels, 0);
  for (size_t v = 0; v < labels.size(); ++v)
    held[static_cast<size_t>(labels[v])] += static_cast<double>(weight[v]);
  return held;
}

class BranchAndBound {
 public:
  BranchAndBound(const CutProblem& problem, std::span<const uint64_t> weight, std::span<const uint64_t> limit,
                 int max_cuts)
      : problem_(problem), weight_(weight), limit_(limit), cuts_left_(max_cuts) {}

  LimitedPlan solve() {
    Node root{problem_.unary, std::vector<double>(limit_.size(), 0), -kNotAllowed};
    open_bound_ = kNotAllowed;
    visit(std::move(root));
    LimitedPlan result;
    result.lower_bound = std::min(open_bound_, best_cost_);
    result.labels = std::move(best_);
    return result;
  }

 private:
  struct Node {
    std::vector<double> unary;  // kNotAllowed where a branch has closed a label
    std::vector<double> price;  // Lagrangian multiplier of each label's limit, cost per byte
    double bound;
  };

  size_t n_labels() const { return static_cast<size_t>(problem_.n_labels); }

  // Bytes that must be at each label: of vertices with one label left, the order counted. False when that is
  // too much.
  bool close(Node& node) const {
    const size_t k_count = n_labels(), n = static_cast<size_t>(problem_.n_vertices);
    std::vector<size_t> lowest(n, 0), highest(n, k_count - 1);
    for (size_t v = 0; v < n; ++v) {
      const double* row = node.unary.data() + v * k_count;
      while (lowest[v] < k_count && row[lowest[v]] == kNotAllowed) ++lowest[v];
      if (lowest[v] == k_count) return false;
      while (row[highest[v]] == kNotAllowed) --highest[v];
    }
    // Repeated sweeps settle in a few rounds: items are in the order of their producers.
    for (bool changed = true; changed;) {
      changed = false;
      for (int item = 0; item < problem_.n_items(); ++item) {
        const auto u = static_cast<size_t>(problem_.producer[static_cast<size_t>(item)]);
        for (const int consumer : problem_.consumers_of(item)) {
          const auto w = static_cast<size_t>(consumer);
          if (lowest[w] < lowest[u]) lowest[w] = lowest[u], changed = true;
          if (highest[u] > highest[w]) highest[u] = highest[w], changed = true;
        }
      }
    }
    std::vector<uint64_t> fixed(k_count, 0);
    for (size_t v = 0; v < n; ++v) {
      if (lowest[v] > highest[v]) return false;
      for (size_t k = 0; k < k_count; ++k) {
        if (k < lowest[v] || k > highest[v]) node.unary[v * k_count + k] = kNotAllowed;
      }
      if (lowest[v] == highest[v]) fixed[lowest[v]] += weight_[v];
    }
    for (size_t k = 0; k < k_count; ++k) {
      if (limit_[k] > 0 && fixed[k] > limit_[k]) return false;
    }
    return true;
  }

  // Raises the node's bound by subgradient steps on the prices; keeps feasible labellings met on the way.
  // Returns the last labelling, or none when the node is empty.
  std::optional<std::vector<int>> bound(Node& node) {
    constexpr int kSteps = 8;
    const size_t k_count = n_labels();
    std::optional<std::vector<int>> last;
    CutProblem priced = problem_;
    for (int step = 0; step < kSteps && cuts_left_ > 0; ++step) {
      for (size_t i = 0; i < priced.unary.size(); ++i) {
        priced.unary[i] = node.unary[i] + node.price[i % k_count] * static_cast<double>(weight_[i / k_count]);
      }
      --cuts_left_;
      auto labels = solve_min_cut(priced);
      if (!labels) return std::nullopt;
      double value = evaluate(priced, *labels);
      for (size_t k = 0; k < k_count; ++k) value -= node.price[k] * static_cast<double>(limit_[k]);
      node.bound = std::max(node.bound, value);
      if (keeps_limits(*labels, weight_, limit_)) {
        const double cost = evaluate(problem_, *labels);
        if (cost < best_cost_) {
          best_cost_ = cost;
          best_ = *labels;
        }
      }
      const std::vector<double> held = held_by(*labels, weight_, k_count);
      last = std::move(labels);
      if (closed(node)) break;
      // Polyak's step towards the best known cost, or half as much again as the bound while there is none.
      std::vector<double> excess(k_count, 0);
      double norm = 0;
      for (size_t k = 0; k < k_count; ++k) {
        if (limit_[k] == 0) continue;
        excess[k] = held[k] - static_cast<double>(limit_[k]);
        if (excess[k] > 0 || node.price[k] > 0) norm += excess[k] * excess[k];
      }
      if (norm == 0) break;
      const double target = best_cost_ < kNotAllowed ? best_cost_ : value + 0.5 * std::fabs(value);
      const double length = std::max(target - value, 1e-6 * std::fabs(value)) / norm;
      for (size_t k = 0; k < k_count; ++k) node.price[k] = std::max(0.0, node.price[k] + length * excess[k]);
    }
    return last;
  }

  bool closed(const Node& node) const {
    return best_cost_ < kNotAllowed && node.bound >= best_cost_ - 1e-9 * std::fabs(best_cost_);
  }

  void visit(Node node) {
    if (cuts_left_ <= 0) {
      open_bound_ = std::min(open_bound_, node.bound);
      return;
    }
    if (!close(node)) return;
    const auto labels = bound(node);
    if (!labels) {
      if (cuts_left_ <= 0) open_bound_ = std::min(open_bound_, node.bound);
      return;
    }
    if (closed(node)) return;
    // Branch on the heaviest vertex that is not settled, those at an overfull label first.
    const std::vector<double> held = held_by(*labels, weight_, n_labels());
    int branch = -1;
    double heaviest = -1;
    for (int v = 0; v < problem_.n_vertices; ++v) {
      const auto row = node.unary.begin() + static_cast<long>(static_cast<size_t>(v) * n_labels());
      const auto n_open =
          std::count_if(row, row + problem_.n_labels, [](double cost) { return cost != kNotAllowed; });
      if (n_open < 2) continue;
      const auto k = static_cast<size_t>((*labels)[static_cast<size_t>(v)]);
      const bool over = limit_[k] > 0 && held[k] > static_cast<double>(limit_[k]);
      const double rank = static_cast<double>(weight_[static_cast<size_t>(v)]) + (over ? 1e18 : 0);
      if (rank > heaviest) {
        heaviest = rank;
        branch = v;
      }
    }
    if (branch < 0) return;  // all settled: this one labelling has been judged
    const auto row = static_cast<size_t>(branch) * n_labels();
    const auto at = static_cast<size_t>((*labels)[static_cast<size_t>(branch)]);
    // Three children: where the relaxation wants it, below, above.
    for (int child = 0; child < 3; ++child) {
      Node next = node;
      bool any = false;
      for (size_t k = 0; k < n_labels(); ++k) {
        const bool keep = child == 0 ? k == at : child == 1 ? k < at : k > at;
        if (!keep) next.unary[row + k] = kNotAllowed;
        any |= next.unary[row + k] != kNotAllowed;
      }
      if (any) visit(std::move(next));
    }
  }

  const CutProblem& problem_;
  std::span<const uint64_t> weight_, limit_;
  int cuts_left_;
  double open_bound_ = kNotAllowed;  // least bound of the nodes that were given up
  double best_cost_ = kNotAllowed;
  std::optional<std::vector<int>> best_;
};

}  // namespace

bool keeps_limits(std::span<const int> labels, std::span<const uint64_t> weight,
                  std::span<const uint64_t> limit) {
  std::vector<uint64_t> held(limit.size(), 0);
  for (size_t v = 0; v < labels.size(); ++v) held[static_cast<size_t>(labels[v])] += weight[v];
  for (size_t k = 0; k < limit.size(); ++k) {
    if (limit[k] > 0 && held[k] > limit[k]) return false;
  }
  return true;
}

LimitedPlan solve_with_limits(const CutProblem& problem, std::span<const uint64_t> weight,
                              std::span<const uint64_t> limit, int max_cuts) {
  return BranchAndBound(problem, weight, limit, max_cuts).solve();
}

}  // namespace frugal::dnn
