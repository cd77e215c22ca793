// The partition problem in numbers, free of what they mean: every objective becomes one of these, and every
// algorithm is judged by the same evaluate().
#pragma once

#include <limits>
#include <optional>
#include <span>
#include <vector>

namespace frugal::dnn {

inline constexpr double kNotAllowed = std::numeric_limits<double>::infinity();

// Assign a label in [0, n_labels) to each vertex, never decreasing along an edge, at least total cost:
//   sum of unary[v][label(v)]
//   + for each item and boundary k between its producer's label and its furthest consumer's: move[item][k]
//   + for each boundary k that any vertex lies beyond: open[k].
struct CutProblem {
  int n_labels = 1;
  int n_vertices = 0;
  std::vector<double> unary;  // [n_vertices, n_labels], finite (of either sign) or kNotAllowed
  // Items (tensors): producer, consumers in compressed rows, and the cost of each boundary.
  std::vector<int> producer;        // [n_items]
  std::vector<int> consumer_begin;  // [n_items + 1], into `consumers`
  std::vector<int> consumers;
  std::vector<double> move;  // [n_items, n_labels - 1], >= 0
  std::vector<double> open;  // [n_labels - 1], >= 0

  int n_items() const { return static_cast<int>(producer.size()); }
  double unary_at(int v, int label) const {
    return unary[static_cast<size_t>(v) * static_cast<size_t>(n_labels) + static_cast<size_t>(label)];
  }
  double move_at(int item, int boundary) const {
    return move[static_cast<size_t>(item) * static_cast<size_t>(n_labels - 1) +
                static_cast<size_t>(boundary)];
  }
  std::span<const int> consumers_of(int item) const {
    const auto begin = static_cast<size_t>(consumer_begin[static_cast<size_t>(item)]);
    const auto end = static_cast<size_t>(consumer_begin[static_cast<size_t>(item) + 1]);
    return std::span(consumers).subspan(begin, end - begin);
  }
};

// The cost of a labelling; kNotAllowed when it breaks the order or uses a label that is not allowed.
double evaluate(const CutProblem& problem, std::span<const int> labels);

// The best labelling, by one minimum s-t cut: exact but for rounding of costs to 2^-46 of their sum. None
// when no labelling is allowed. About linear in practice; worst case polynomial.
std::optional<std::vector<int>> solve_min_cut(const CutProblem& problem);

}  // namespace frugal::dnn
