#include "llm/decode/suffix_automaton.h"

#include <algorithm>
#include <bit>

#include "base/check.h"

namespace frugal::llm {

namespace {

// Suffixes whose counts a new token updates, the longest first. Text that repeats itself has as many suffixes
// as tokens, and a walk over all of them would make it quadratic; contexts worth a draft are long.
constexpr int kMostCounted = 64;

}  // namespace

SuffixAutomaton::SuffixAutomaton(size_t max_tokens) : max_tokens_(max_tokens) {
  states_.reserve(2 * max_tokens + 2);
  edges_.reserve(3 * max_tokens + 2);
  owner_.reserve(3 * max_tokens + 2);
  table_.resize(std::bit_ceil(6 * max_tokens + 4));
  clear();
}

void SuffixAutomaton::clear() {
  states_.clear();
  edges_.clear();
  owner_.clear();
  std::fill(table_.begin(), table_.end(), -1);
  states_.push_back({});
  last_ = kRoot;
  n_tokens_ = 0;
}

size_t SuffixAutomaton::bytes() const {
  return states_.capacity() * sizeof(Node) + edges_.capacity() * (sizeof(Edge) + sizeof(State)) +
         table_.size() * sizeof(int32_t);
}

size_t SuffixAutomaton::slot_of(State state, Token token) const {
  const uint64_t key =
      static_cast<uint64_t>(static_cast<uint32_t>(state)) << 32 | static_cast<uint32_t>(token);
  // Fibonacci hashing: 2^64 over the golden ratio spreads neighbouring keys.
  return static_cast<size_t>((key ^ key >> 29) * 0x9e3779b97f4a7c15ull >> 20) & (table_.size() - 1);
}

int32_t SuffixAutomaton::find_edge(State state, Token token) const {
  for (size_t slot = slot_of(state, token);; slot = (slot + 1) & (table_.size() - 1)) {
    const int32_t at = table_[slot];
    if (at < 0) return -1;
    if (owner_[static_cast<size_t>(at)] == state && edges_[static_cast<size_t>(at)].token == token) return at;
  }
}

void SuffixAutomaton::add_edge(State state, Token token, State target) {
  FRUGAL_DCHECK(edges_.size() < edges_.capacity());
  const auto at = static_cast<int32_t>(edges_.size());
  Node& node = states_[static_cast<size_t>(state)];
  edges_.push_back({token, target, node.first_edge});
  owner_.push_back(state);
  node.first_edge = at;
  size_t slot = slot_of(state, token);
  while (table_[slot] >= 0) slot = (slot + 1) & (table_.size() - 1);
  table_[slot] = at;
}

SuffixAutomaton::State SuffixAutomaton::step(State state, Token token) const {
  const int32_t at = find_edge(state, token);
  return at < 0 ? -1 : edges_[static_cast<size_t>(at)].target;
}

// A class split off from `of`: its strings up to `length`, which end at more places than the longer ones.
SuffixAutomaton::State SuffixAutomaton::clone(State of, int length) {
  const auto made = static_cast<State>(states_.size());
  Node node = states_[static_cast<size_t>(of)];
  node.length = length;
  node.first_edge = -1;
  states_.push_back(node);
  for (int32_t at = states_[static_cast<size_t>(of)].first_edge; at >= 0;) {
    const Edge edge = edges_[static_cast<size_t>(at)];
    add_edge(made, edge.token, edge.target);
    at = edge.next;
  }
  return made;
}

void SuffixAutomaton::push(Token token) {
  if (full()) return;
  ++n_tokens_;
  const auto now = static_cast<int32_t>(n_tokens_);
  const auto made = static_cast<State>(states_.size());
  states_.push_back({states_[static_cast<size_t>(last_)].length + 1, kRoot, -1, 0, now});
  State at = last_;
  int32_t edge = -1;
  for (; at >= 0 && (edge = find_edge(at, token)) < 0; at = states_[static_cast<size_t>(at)].link) {
    add_edge(at, token, made);
  }
  if (at >= 0) {
    const State target = edges_[static_cast<size_t>(edge)].target;
    const int length = states_[static_cast<size_t>(at)].length + 1;
    State suffix = target;
    if (states_[static_cast<size_t>(target)].length != length) {
      suffix = clone(target, length);
      states_[static_cast<size_t>(target)].link = suffix;
      for (; at >= 0 && (edge = find_edge(at, token)) >= 0 &&
             edges_[static_cast<size_t>(edge)].target == target;
           at = states_[static_cast<size_t>(at)].link) {
        edges_[static_cast<size_t>(edge)].target = suffix;
      }
    }
    states_[static_cast<size_t>(made)].link = suffix;
  }
  last_ = made;
  State suffix = made;
  for (int i = 0; i < kMostCounted && suffix > kRoot; ++i) {
    Node& node = states_[static_cast<size_t>(suffix)];
    ++node.count;
    node.last_end = now;
    suffix = node.link;
  }
}

}  // namespace frugal::llm
