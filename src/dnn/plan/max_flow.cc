#include "dnn/plan/max_flow.h"

#include <algorithm>

#include "base/check.h"

namespace frugal::dnn {

MaxFlow::MaxFlow(int n_nodes) : n_nodes_(n_nodes) {}

void MaxFlow::add_arc(int from, int to, int64_t capacity, int64_t back) {
  FRUGAL_DCHECK(from >= 0 && from < n_nodes_ && to >= 0 && to < n_nodes_ && capacity >= 0 && back >= 0);
  from_.push_back(from);
  from_.push_back(to);
  arcs_.push_back({to, capacity});
  arcs_.push_back({from, back});
}

void MaxFlow::lay_out() {
  first_.assign(static_cast<size_t>(n_nodes_) + 1, 0);
  for (const int node : from_) ++first_[static_cast<size_t>(node) + 1];
  for (size_t i = 1; i < first_.size(); ++i) first_[i] += first_[i - 1];
  order_.resize(from_.size());
  next_.assign(first_.begin(), first_.end() - 1);
  for (size_t arc = 0; arc < from_.size(); ++arc) {
    order_[static_cast<size_t>(next_[static_cast<size_t>(from_[arc])]++)] = static_cast<int>(arc);
  }
}

bool MaxFlow::assign_levels(int source, int sink) {
  level_.assign(static_cast<size_t>(n_nodes_), -1);
  queue_.clear();
  queue_.push_back(source);
  level_[static_cast<size_t>(source)] = 0;
  for (size_t at = 0; at < queue_.size(); ++at) {
    const auto node = static_cast<size_t>(queue_[at]);
    for (int i = first_[node]; i < first_[node + 1]; ++i) {
      const Arc& arc = arcs_[static_cast<size_t>(order_[static_cast<size_t>(i)])];
      if (arc.capacity > 0 && level_[static_cast<size_t>(arc.to)] < 0) {
        level_[static_cast<size_t>(arc.to)] = level_[node] + 1;
        if (arc.to == sink) return true;  // nodes as far as the sink itself cannot lie on a shortest path
        queue_.push_back(arc.to);
      }
    }
  }
  return false;
}

// Blocking flow by depth-first search with an explicit path: networks get tens of thousands of levels deep.
int64_t MaxFlow::push(int source, int sink) {
  int64_t total = 0;
  next_.assign(first_.begin(), first_.end() - 1);
  path_.clear();
  int node = source;
  while (true) {
    if (node == sink) {
      int64_t amount = kInfinite;
      for (const int arc : path_) amount = std::min(amount, arcs_[static_cast<size_t>(arc)].capacity);
      total += amount;
      if (total >= kInfinite) return total;
      size_t keep = path_.size();
      for (size_t i = path_.size(); i-- > 0;) {
        Arc& arc = arcs_[static_cast<size_t>(path_[i])];
        arc.capacity -= amount;
        arcs_[static_cast<size_t>(path_[i] ^ 1)].capacity += amount;
        if (arc.capacity == 0) keep = i;
      }
      node = from_[static_cast<size_t>(path_[keep])];
      path_.resize(keep);
      continue;
    }
    int& i = next_[static_cast<size_t>(node)];
    const int end = first_[static_cast<size_t>(node) + 1];
    for (; i < end; ++i) {
      const Arc& arc = arcs_[static_cast<size_t>(order_[static_cast<size_t>(i)])];
      if (arc.capacity > 0 && level_[static_cast<size_t>(arc.to)] == level_[static_cast<size_t>(node)] + 1)
        break;
    }
    if (i < end) {
      path_.push_back(order_[static_cast<size_t>(i)]);
      node = arcs_[static_cast<size_t>(path_.back())].to;
    } else {
      if (path_.empty()) return total;
      node = from_[static_cast<size_t>(path_.back())];
      path_.pop_back();
      ++next_[static_cast<size_t>(node)];
    }
  }
}

int64_t MaxFlow::solve(int source, int sink) {
  lay_out();
  int64_t total = 0;
  while (total < kInfinite && assign_levels(source, sink)) total += push(source, sink);
  return total;
}

}  // namespace frugal::dnn
