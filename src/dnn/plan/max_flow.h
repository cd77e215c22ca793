// Maximum flow and minimum cut between two nodes, by Dinic's algorithm on integer capacities.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace frugal::dnn {

// Build with add_arc, call solve once, then ask on which side nodes lie. Not thread-safe.
class MaxFlow {
 public:
  // More than any sum of finite capacities may reach: an arc that is never cut.
  static constexpr int64_t kInfinite = int64_t{1} << 60;

  explicit MaxFlow(int n_nodes);

  // A directed arc, and `back` capacity in the other direction. Capacities are in [0, kInfinite].
  void add_arc(int from, int to, int64_t capacity, int64_t back = 0);

  // The value of the maximum flow; kInfinite or more when every cut passes an infinite arc.
  int64_t solve(int source, int sink);

  // After solve: true for nodes that the source still reaches. The smallest source side of all minimum cuts.
  bool on_source_side(int node) const { return level_[static_cast<size_t>(node)] >= 0; }

 private:
  struct Arc {
    int to;
    int64_t capacity;  // left
  };
  void lay_out();
  bool assign_levels(int source, int sink);
  int64_t push(int source, int sink);

  int n_nodes_;
  std::vector<int> from_;  // arc i and i ^ 1 are each other's reverse
  std::vector<Arc> arcs_;
  std::vector<int> first_;  // [n_nodes + 1], into order_
  std::vector<int> order_;  // arcs by node
  std::vector<int> level_, next_, queue_, path_;
};

}  // namespace frugal::dnn
