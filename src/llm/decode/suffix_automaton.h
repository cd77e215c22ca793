// A suffix automaton over tokens (Blumer et al. 1985): the smallest machine that knows every substring of the
// text so far. It grows by a token in amortised constant time, and the longest suffix of the text that also
// stands earlier in it is one link away: the place to copy a draft from (SAM-Decoding, Hu et al. 2024).
//
// States are classes of substrings that end at the same places; a transition leads to the class with one more
// token, so that counts and the last end of a class tell what followed a context, how often, and when.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "frugal/llm.h"

namespace frugal::llm {

class SuffixAutomaton {
 public:
  using State = int32_t;
  static constexpr State kRoot = 0;  // of the empty string

  // A continuation of a state: the token, where it leads, how often it stood there and where last.
  struct Edge {
    Token token;
    State target;
    int32_t next;  // of the same state; -1 = none
  };

  // Holds at most `max_tokens` tokens; later ones are not learnt. All memory is taken here: some 80 bytes a
  // token.
  explicit SuffixAutomaton(size_t max_tokens = 0);

  // Empty again, with the same room.
  void clear();
  void push(Token token);
  size_t size() const { return n_tokens_; }
  bool full() const { return n_tokens_ >= max_tokens_; }
  size_t bytes() const;

  // The longest suffix of the text that occurs earlier; kRoot when not even the last token does.
  State earlier() const { return states_[static_cast<size_t>(last_)].link; }
  State link(State state) const { return states_[static_cast<size_t>(state)].link; }
  // Length of the longest string of the class.
  int length(State state) const { return states_[static_cast<size_t>(state)].length; }
  // Times that the strings of the class occurred (a lower bound in text that repeats itself endlessly).
  int count(State state) const { return states_[static_cast<size_t>(state)].count; }
  // Where the class ended last: number of tokens pushed by then (the same bound).
  int last_end(State state) const { return states_[static_cast<size_t>(state)].last_end; }
  // The state after `token`; -1 when it never followed.
  State step(State state, Token token) const;

  // Calls f(edge) for every continuation of a state.
  template <typename F>
  void for_each_edge(State state, F f) const {
    for (int32_t at = states_[static_cast<size_t>(state)].first_edge; at >= 0;
         at = edges_[static_cast<size_t>(at)].next) {
      f(edges_[static_cast<size_t>(at)]);
    }
  }

 private:
  struct Node {
    int32_t length = 0, link = -1, first_edge = -1, count = 0, last_end = 0;
  };

  int32_t find_edge(State state, Token token) const;
  void add_edge(State state, Token token, State target);
  State clone(State of, int length);
  size_t slot_of(State state, Token token) const;

  size_t max_tokens_, n_tokens_ = 0;
  State last_ = kRoot;
  std::vector<Node> states_;    // at most 2 n + 1
  std::vector<Edge> edges_;     // at most 3 n + 1
  std::vector<int32_t> table_;  // open addressing: index of an edge, -1 = free
  std::vector<State> owner_;    // [edge] the state that it leaves
};

}  // namespace frugal::llm
