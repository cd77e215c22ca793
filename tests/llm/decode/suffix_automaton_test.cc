#include "llm/decode/suffix_automaton.h"

#include <gtest/gtest.h>

#include <map>
#include <set>

#include "base/rng.h"

namespace frugal::llm {
namespace {

// The naive twin: looks through all of the text.
struct Occurrences {
  int count = 0;
  std::map<Token, int> next;
};
Occurrences find_all(const std::vector<Token>& text, std::span<const Token> what) {
  Occurrences found;
  for (size_t at = 0; at + what.size() <= text.size(); ++at) {
    if (!std::equal(what.begin(), what.end(), text.begin() + static_cast<ptrdiff_t>(at))) continue;
    ++found.count;
    if (at + what.size() < text.size()) ++found.next[text[at + what.size()]];
  }
  return found;
}

// Length of the longest suffix that occurs earlier.
int longest_earlier(const std::vector<Token>& text) {
  for (size_t n = text.size(); n-- > 1;) {
    if (find_all(text, std::span(text).last(n)).count > 1) return static_cast<int>(n);
  }
  return 0;
}

TEST(SuffixAutomaton, FindsWhatALookThroughTheTextFinds) {
  Rng rng(7);
  for (const uint32_t alphabet : {1u, 2u, 5u, 1000u}) {
    SuffixAutomaton automaton(150);
    std::vector<Token> text;
    for (int i = 0; i < 150; ++i) {
      const auto token = static_cast<Token>(rng.below(alphabet));
      automaton.push(token);
      text.push_back(token);
      const int expected = longest_earlier(text);
      SuffixAutomaton::State state = automaton.earlier();
      ASSERT_EQ(automaton.length(state), expected) << "alphabet " << alphabet << ", token " << i;
      for (int contexts = 0; state > SuffixAutomaton::kRoot && contexts < 3; ++contexts) {
        const Occurrences found =
            find_all(text, std::span(text).last(static_cast<size_t>(automaton.length(state))));
        std::set<Token> seen;
        automaton.for_each_edge(state, [&](const SuffixAutomaton::Edge& edge) {
          EXPECT_TRUE(seen.insert(edge.token).second);
          // Counts are exact as long as no more than 64 suffixes share an end.
          EXPECT_TRUE(found.next.contains(edge.token));
          if (alphabet > 1) {
            EXPECT_EQ(automaton.count(edge.target), found.next.at(edge.token));
          }
        });
        EXPECT_EQ(seen.size(), found.next.size());
        if (alphabet > 1) {
          EXPECT_EQ(automaton.count(state), found.count);
        }
        state = automaton.link(state);
      }
    }
  }
}

TEST(SuffixAutomaton, StopsLearningWhenFullAndStartsAnew) {
  SuffixAutomaton automaton(4);
  for (const Token token : {1, 2, 1, 2, 1, 2}) automaton.push(token);
  EXPECT_TRUE(automaton.full());
  EXPECT_EQ(automaton.size(), 4u);
  EXPECT_EQ(automaton.length(automaton.earlier()), 2);
  const size_t bytes = automaton.bytes();
  automaton.clear();
  EXPECT_EQ(automaton.earlier(), SuffixAutomaton::kRoot - 1);
  EXPECT_EQ(automaton.step(SuffixAutomaton::kRoot, 1), -1);
  automaton.push(7);
  EXPECT_EQ(automaton.length(automaton.earlier()), 0);
  EXPECT_EQ(automaton.bytes(), bytes);
}

TEST(SuffixAutomaton, TextThatRepeatsItselfStaysLinear) {
  // With a walk over all suffixes at each token this would be 4e10 steps.
  SuffixAutomaton automaton(200000);
  for (int i = 0; i < 200000; ++i) automaton.push(5);
  EXPECT_EQ(automaton.length(automaton.earlier()), 199999);
}

}  // namespace
}  // namespace frugal::llm
