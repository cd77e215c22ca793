// The exact construction. For each vertex v and boundary k (between labels k and k + 1) a node y(v, k), on
// the source side when label(v) > k. The column s -> y(v,0) -> ... -> y(v,K-2) -> t carries the unary costs
// (Ishikawa's graph); infinite arcs keep the column cut once and labels from falling along edges; a node for
// each item and boundary makes a tensor pay once, however many consumers lie beyond; a node for each boundary
// pays for its being used at all.
#include "dnn/plan/cut_problem.h"

#include <algorithm>
#include <cmath>

#include "base/check.h"
#include "dnn/plan/max_flow.h"

namespace frugal::dnn {

double evaluate(const CutProblem& problem, std::span<const int> labels) {
  FRUGAL_CHECK(labels.size() == static_cast<size_t>(problem.n_vertices));
  double total = 0;
  int furthest_vertex = 0;
  for (int v = 0; v < problem.n_vertices; ++v) {
    const int label = labels[static_cast<size_t>(v)];
    if (label < 0 || label >= problem.n_labels) return kNotAllowed;
    total += problem.unary_at(v, label);
    furthest_vertex = std::max(furthest_vertex, label);
  }
  for (int item = 0; item < problem.n_items(); ++item) {
    const int from = labels[static_cast<size_t>(problem.producer[static_cast<size_t>(item)])];
    int furthest = from;
    for (const int consumer : problem.consumers_of(item)) {
      const int to = labels[static_cast<size_t>(consumer)];
      if (to < from) return kNotAllowed;
      furthest = std::max(furthest, to);
    }
    for (int k = from; k < furthest; ++k) total += problem.move_at(item, k);
  }
  for (int k = 0; k < furthest_vertex; ++k) total += problem.open[static_cast<size_t>(k)];
  return total;
}

std::optional<std::vector<int>> solve_min_cut(const CutProblem& problem) {
  const int n = problem.n_vertices, n_boundaries = problem.n_labels - 1, n_items = problem.n_items();
  std::vector<int> labels(static_cast<size_t>(n), 0);
  // Each column is shifted so that its least cost is zero: the same for every labelling, and it lets costs be
  // negative.
  std::vector<double> shift(static_cast<size_t>(n), kNotAllowed);
  double sum = 0;
  for (int v = 0; v < n; ++v) {
    double largest = -kNotAllowed;
    for (int label = 0; label < problem.n_labels; ++label) {
      const double cost = problem.unary_at(v, label);
      if (cost == kNotAllowed) continue;
      shift[static_cast<size_t>(v)] = std::min(shift[static_cast<size_t>(v)], cost);
      largest = std::max(largest, cost);
    }
    if (largest == -kNotAllowed) return std::nullopt;
    sum += largest - shift[static_cast<size_t>(v)];
  }
  if (n_boundaries == 0) return labels;
  for (const double cost : problem.move) sum += cost;
  for (const double cost : problem.open) sum += cost;
  // Integers make the flow exact and its end certain; 2^46 leaves room for their sum below kInfinite.
  const double scale = sum > 0 ? 0x1p46 / sum : 0;
  const auto capacity = [&](double cost) {
    return cost == kNotAllowed ? MaxFlow::kInfinite : static_cast<int64_t>(std::llround(cost * scale));
  };

  // Items that nobody consumes never move.
  std::vector<int> item_node(static_cast<size_t>(n_items), -1);
  int n_nodes = 2 + n * n_boundaries;
  std::vector<char> has_consumer(static_cast<size_t>(n), 0);
  for (int item = 0; item < n_items; ++item) {
    const auto consumers = problem.consumers_of(item);
    if (consumers.empty()) continue;
    has_consumer[static_cast<size_t>(problem.producer[static_cast<size_t>(item)])] = 1;
    // One consumer needs no node of its own: the cost sits on the arc between the two.
    if (consumers.size() > 1) {
      item_node[static_cast<size_t>(item)] = n_nodes;
      n_nodes += n_boundaries;
    }
  }
  const int open_node = n_nodes;
  n_nodes += n_boundaries;

  constexpr int kSource = 0, kSink = 1;
  const auto y = [&](int v, int k) { return 2 + v * n_boundaries + k; };
  MaxFlow flow(n_nodes);
  for (int v = 0; v < n; ++v) {
    int previous = kSource;
    for (int label = 0; label < problem.n_labels; ++label) {
      const int next = label == n_boundaries ? kSink : y(v, label);
      const double cost = problem.unary_at(v, label);
      flow.add_arc(previous, next,
                   capacity(cost == kNotAllowed ? cost : cost - shift[static_cast<size_t>(v)]),
                   previous == kSource || next == kSink ? 0 : MaxFlow::kInfinite);
      previous = next;
    }
  }
  for (int item = 0; item < n_items; ++item) {
    const int u = problem.producer[static_cast<size_t>(item)], a = item_node[static_cast<size_t>(item)];
    for (const int w : problem.consumers_of(item)) {
      for (int k = 0; k < n_boundaries; ++k) {
        // u beyond k implies w beyond k; and w beyond k without u pays the move.
        if (a < 0) {
          flow.add_arc(y(u, k), y(w, k), MaxFlow::kInfinite, capacity(problem.move_at(item, k)));
        } else {
          // Through the item's node: u implies it, it implies nothing, so the order arc stays separate.
          flow.add_arc(y(u, k), y(w, k), MaxFlow::kInfinite);
          flow.add_arc(y(w, k), a + k, MaxFlow::kInfinite);
        }
      }
    }
    if (a >= 0) {
      for (int k = 0; k < n_boundaries; ++k) flow.add_arc(a + k, y(u, k), capacity(problem.move_at(item, k)));
    }
  }
  for (int k = 0; k < n_boundaries; ++k) {
    if (problem.open[static_cast<size_t>(k)] == 0) continue;
    flow.add_arc(open_node + k, kSink, capacity(problem.open[static_cast<size_t>(k)]));
    // Labels never fall along edges, so the furthest label is at a vertex without consumers.
    for (int v = 0; v < n; ++v) {
      if (!has_consumer[static_cast<size_t>(v)]) flow.add_arc(y(v, k), open_node + k, MaxFlow::kInfinite);
    }
  }
  if (flow.solve(kSource, kSink) >= MaxFlow::kInfinite) return std::nullopt;
  for (int v = 0; v < n; ++v) {
    int& label = labels[static_cast<size_t>(v)];
    while (label < n_boundaries && flow.on_source_side(y(v, label))) ++label;
  }
  return labels;
}

}  // namespace frugal::dnn
