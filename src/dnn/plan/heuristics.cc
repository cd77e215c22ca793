#include "dnn/plan/heuristics.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <numeric>

namespace frugal::dnn {
namespace {

// The items that each vertex reads and writes.
struct Incidence {
  std::vector<std::vector<int>> reads, writes;

  explicit Incidence(const CutProblem& problem)
      : reads(static_cast<size_t>(problem.n_vertices)), writes(static_cast<size_t>(problem.n_vertices)) {
    for (int item = 0; item < problem.n_items(); ++item) {
      writes[static_cast<size_t>(problem.producer[static_cast<size_t>(item)])].push_back(item);
      for (const int w : problem.consumers_of(item)) reads[static_cast<size_t>(w)].push_back(item);
    }
  }
};

std::optional<std::vector<int>> if_allowed(const CutProblem& problem, std::vector<int> labels) {
  if (evaluate(problem, labels) == kNotAllowed) return std::nullopt;
  return labels;
}

// Furthest label among an item's consumers, `skip` left out; the producer's own when there are none.
int reach_without(const CutProblem& problem, int item, int skip, std::span<const int> labels) {
  int reach = labels[static_cast<size_t>(problem.producer[static_cast<size_t>(item)])];
  for (const int w : problem.consumers_of(item)) {
    if (w != skip) reach = std::max(reach, labels[static_cast<size_t>(w)]);
  }
  return reach;
}

double move_between(const CutProblem& problem, int item, int from, int to) {
  double cost = 0;
  for (int k = from; k < to; ++k) cost += problem.move_at(item, k);
  return cost;
}

}  // namespace

int adjust_locally(const CutProblem& problem, std::span<const int> affected, std::vector<int>& labels) {
  const Incidence incidence(problem);
  std::vector<int> n_at(static_cast<size_t>(problem.n_labels), 0);
  for (const int label : labels) ++n_at[static_cast<size_t>(label)];
  std::deque<int> queue(affected.begin(), affected.end());
  std::vector<char> queued(labels.size(), 0);
  for (const int v : queue) queued[static_cast<size_t>(v)] = 1;
  int n_moved = 0;
  while (!queue.empty()) {
    const int v = queue.front();
    queue.pop_front();
    const auto at = static_cast<size_t>(v);
    queued[at] = 0;
    int lowest = 0, highest = problem.n_labels - 1;
    for (const int item : incidence.reads[at]) {
      lowest = std::max(lowest, labels[static_cast<size_t>(problem.producer[static_cast<size_t>(item)])]);
    }
    for (const int item : incidence.writes[at]) {
      for (const int w : problem.consumers_of(item))
        highest = std::min(highest, labels[static_cast<size_t>(w)]);
    }
    const int current = labels[at];
    --n_at[static_cast<size_t>(current)];
    int furthest = 0;
    for (int k = 0; k < problem.n_labels; ++k) {
      if (n_at[static_cast<size_t>(k)] > 0) furthest = k;
    }
    const auto cost_at = [&](int label) {
      double cost = problem.unary_at(v, label);
      for (const int item : incidence.reads[at]) {
        const int reach = reach_without(problem, item, v, labels);
        cost += move_between(problem, item, reach, label);
      }
      for (const int item : incidence.writes[at]) {
        int reach = label;
        for (const int w : problem.consumers_of(item))
          reach = std::max(reach, labels[static_cast<size_t>(w)]);
        cost += move_between(problem, item, label, reach);
      }
      for (int k = furthest; k < label; ++k) cost += problem.open[static_cast<size_t>(k)];
      return cost;
    };
    int best = current;
    double best_cost = cost_at(current);
    // A gain below rounding is none: two labels of equal cost must not swap for ever.
    for (int label = lowest; label <= highest; ++label) {
      const double cost = cost_at(label);
      if (best_cost == kNotAllowed ? cost < best_cost : cost < best_cost - 1e-12 * std::fabs(best_cost)) {
        best = label;
        best_cost = cost;
      }
    }
    ++n_at[static_cast<size_t>(best)];
    if (best == current) continue;
    labels[at] = best;
    ++n_moved;
    const auto enqueue = [&](int u) {
      if (u != v && !queued[static_cast<size_t>(u)]) {
        queued[static_cast<size_t>(u)] = 1;
        queue.push_back(u);
      }
    };
    for (const int item : incidence.reads[at]) {
      enqueue(problem.producer[static_cast<size_t>(item)]);
      for (const int w : problem.consumers_of(item)) enqueue(w);  // siblings share the transfer
    }
    for (const int item : incidence.writes[at]) {
      for (const int w : problem.consumers_of(item)) enqueue(w);
    }
  }
  return n_moved;
}

std::optional<std::vector<int>> hpa(const CutProblem& problem, std::span<const int> layers) {
  const Incidence incidence(problem);
  std::vector<int> order(static_cast<size_t>(problem.n_vertices));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    return layers[static_cast<size_t>(a)] < layers[static_cast<size_t>(b)];
  });
  std::vector<int> labels(order.size(), 0);
  std::vector<int> reach(static_cast<size_t>(problem.n_items()),
                         0);  // furthest that each item has been brought
  int furthest = 0;
  for (const int v : order) {
    const auto at = static_cast<size_t>(v);
    int lowest = 0;
    for (const int item : incidence.reads[at]) {
      lowest = std::max(lowest, labels[static_cast<size_t>(problem.producer[static_cast<size_t>(item)])]);
    }
    int best = -1;
    double best_cost = kNotAllowed;
    for (int label = lowest; label < problem.n_labels; ++label) {
      double cost = problem.unary_at(v, label);
      for (const int item : incidence.reads[at]) {
        cost += move_between(problem, item, reach[static_cast<size_t>(item)], label);
      }
      for (int k = furthest; k < label; ++k) cost += problem.open[static_cast<size_t>(k)];
      if (cost < best_cost) {
        best = label;
        best_cost = cost;
      }
    }
    if (best < 0) return std::nullopt;
    labels[at] = best;
    furthest = std::max(furthest, best);
    for (const int item : incidence.reads[at]) {
      reach[static_cast<size_t>(item)] = std::max(reach[static_cast<size_t>(item)], best);
    }
    for (const int item : incidence.writes[at]) reach[static_cast<size_t>(item)] = best;
  }
  adjust_locally(problem, order, labels);
  return if_allowed(problem, std::move(labels));
}

std::optional<std::vector<int>> neurosurgeon(const CutProblem& problem) {
  std::optional<std::vector<int>> best;
  double best_cost = kNotAllowed;
  // From the whole network on label 0, the cut walks back one vertex at a time.
  std::vector<int> labels(static_cast<size_t>(problem.n_vertices), 0);
  for (int cut = problem.n_vertices; cut >= 0; --cut) {
    if (cut < problem.n_vertices) labels[static_cast<size_t>(cut)] = problem.n_labels - 1;
    const double cost = evaluate(problem, labels);
    if (cost < best_cost) {
      best_cost = cost;
      best = labels;
    }
  }
  return best;
}

std::optional<std::vector<int>> dads(const CutProblem& problem) {
  CutProblem two = problem;
  for (int v = 0; v < problem.n_vertices; ++v) {
    double* row = two.unary.data() + static_cast<size_t>(v) * static_cast<size_t>(problem.n_labels);
    const bool can_leave = std::any_of(row + std::max(0, problem.n_labels - 2), row + problem.n_labels,
                                       [](double cost) { return cost != kNotAllowed; });
    if (can_leave) std::fill(row, row + std::max(0, problem.n_labels - 2), kNotAllowed);
  }
  return solve_min_cut(two);
}

std::optional<std::vector<int>> all_on(const CutProblem& problem, int label) {
  std::vector<int> labels(static_cast<size_t>(problem.n_vertices), label);
  for (int v = 0; v < problem.n_vertices; ++v) {
    int& at = labels[static_cast<size_t>(v)];
    int best = -1;
    for (int k = 0; k < problem.n_labels; ++k) {
      if (problem.unary_at(v, k) == kNotAllowed) continue;
      if (best < 0 || std::abs(k - label) < std::abs(best - label)) best = k;
    }
    if (best < 0) return std::nullopt;
    at = best;
  }
  return if_allowed(problem, std::move(labels));
}

}  // namespace frugal::dnn
