#include "llm/decode/drafts.h"

#include <gtest/gtest.h>

#include "llm/decode/window.h"

namespace frugal::llm {
namespace {

std::vector<Token> tokens_of(std::span<const DraftToken> line) {
  std::vector<Token> tokens;
  for (const DraftToken& guess : line) tokens.push_back(guess.token);
  return tokens;
}
void push(Drafts& drafts, std::initializer_list<Token> tokens) {
  for (const Token token : tokens) drafts.push(token);
}
DraftOptions only(DraftSource source, std::shared_ptr<const OutputPool> pool = nullptr) {
  DraftOptions options;
  options.text = source == DraftSource::kText;
  options.trajectory = source == DraftSource::kTrajectory;
  options.recycled = source == DraftSource::kRecycled;
  options.pool = std::move(pool);
  return options;
}

TEST(Drafts, CopiesWhatFollowedTheLongestSuffix) {
  Drafts drafts(only(DraftSource::kText), 100);
  push(drafts, {1, 2, 3, 4, 5, 9, 2, 3, 7, 7, 1, 2, 3});
  const auto line = drafts.propose(4);
  EXPECT_EQ(tokens_of(line), (std::vector<Token>{4, 5, 9, 2}));  // after 1 2 3, not after 2 3
  for (const DraftToken& guess : line) {
    EXPECT_EQ(guess.source, DraftSource::kText);
    EXPECT_GT(guess.confidence, 0);
    EXPECT_LT(guess.confidence, 1);
  }
}

TEST(Drafts, GoesRoundALoop) {
  Drafts drafts(only(DraftSource::kText), 100);
  push(drafts, {8, 1, 2, 3, 1, 2, 3, 1, 2, 3});
  EXPECT_EQ(tokens_of(drafts.propose(7)), (std::vector<Token>{1, 2, 3, 1, 2, 3, 1}));
}

TEST(Drafts, ProposesNothingWithoutEvidence) {
  Drafts drafts({}, 100);
  EXPECT_TRUE(drafts.propose(8).empty());
  push(drafts, {1, 2, 3});
  EXPECT_TRUE(drafts.propose(8).empty());
  push(drafts, {1});
  EXPECT_TRUE(drafts.propose(0).empty());
}

TEST(Drafts, StopsLearningAndProposingFromTextBeyondItsRoom) {
  Drafts drafts(only(DraftSource::kText), 6);
  push(drafts, {1, 2, 3, 1, 2});
  EXPECT_FALSE(drafts.propose(3).empty());
  push(drafts, {3, 4, 5, 1, 2});
  EXPECT_TRUE(drafts.propose(3).empty());
}

TEST(Drafts, RecyclesWhatTheModelComputedAfterAToken) {
  Drafts drafts(only(DraftSource::kRecycled), 100);
  drafts.observe(1, 2, 30, true);
  drafts.observe(2, 30, 40, false);
  push(drafts, {7, 2});
  EXPECT_EQ(tokens_of(drafts.propose(3)), (std::vector<Token>{30, 40}));
}

TEST(Drafts, RemembersTheTrajectoryOfRejectedRows) {
  Drafts drafts(only(DraftSource::kTrajectory), 100);
  drafts.observe(1, 2, 3, false);
  drafts.observe(5, 2, 9, true);  // exact: in the text, and not here
  push(drafts, {1, 2});
  EXPECT_EQ(tokens_of(drafts.propose(2)), (std::vector<Token>{3}));
  push(drafts, {5, 2});
  EXPECT_TRUE(drafts.propose(2).empty());
}

TEST(Drafts, ThePoolIsOptInBoundedAndKeepsOutputsApart) {
  const auto pool = std::make_shared<OutputPool>(16);
  pool->add(std::vector<Token>{1, 2, 3, 4});
  pool->add(std::vector<Token>{5, 6, 7});
  Drafts with(only(DraftSource::kPool, pool), 100), without({}, 100);
  push(with, {9, 1, 2});
  push(without, {9, 1, 2});
  EXPECT_EQ(tokens_of(with.propose(8)), (std::vector<Token>{3, 4}));  // and not on into 5 6 7
  EXPECT_TRUE(without.propose(8).empty());
  for (Token token = 100; token < 200; ++token) pool->add(std::vector<Token>{token, token + 1, token + 2});
  EXPECT_LE(pool->size(), 16u);
  push(with, {1, 2});
  EXPECT_TRUE(with.propose(8).empty());  // forgotten, and the place from before the growth is not used
  push(with, {199});
  EXPECT_EQ(tokens_of(with.propose(8)), (std::vector<Token>{200, 201}));
}

TEST(Drafts, ConfidenceFollowsWhatIsAccepted) {
  Drafts good(only(DraftSource::kText), 1000), bad(only(DraftSource::kText), 1000);
  for (Drafts* drafts : {&good, &bad}) push(*drafts, {1, 2, 3, 1, 2});
  const std::vector<DraftToken> line = {good.propose(1).begin(), good.propose(1).end()};
  for (int i = 0; i < 30; ++i) {
    good.judge(line, 1, false);
    bad.judge(line, 0, true);
  }
  EXPECT_GT(good.propose(1)[0].confidence, line[0].confidence);
  EXPECT_LT(bad.propose(1)[0].confidence, line[0].confidence / 2);
  // Another request starts from the prior: nothing leaks.
  Drafts next(only(DraftSource::kText), 1000);
  push(next, {1, 2, 3, 1, 2});
  EXPECT_EQ(next.propose(1)[0].confidence, line[0].confidence);
}

// ---- the window policy ----

std::vector<DraftToken> line_of(std::initializer_list<float> confidences) {
  std::vector<DraftToken> line;
  for (const float confidence : confidences) line.push_back({1, confidence, DraftSource::kText, 0});
  return line;
}
int chosen(const StepCosts& costs, const std::vector<DraftToken>& line) {
  const DraftLine view = line;
  int length = -1;
  choose_lengths(costs, {&view, 1}, static_cast<int>(line.size()) + 1, {&length, 1});
  return length;
}

TEST(Window, IsAsLongAsItPays) {
  StepCosts costs(0.1);
  EXPECT_EQ(chosen(costs, line_of({0.9f, 0.9f, 0.9f, 0.05f, 0.9f})), 3);
  EXPECT_EQ(chosen(costs, line_of({0.05f, 0.99f})), 0);
  EXPECT_EQ(chosen(costs, {}), 0);
  // A weak guess before strong ones pays when the whole does.
  EXPECT_EQ(chosen(StepCosts(0.02), line_of({0.5f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f})), 6);
}

TEST(Window, BruteForceFindsNoBetterLengths) {
  StepCosts costs(0.2);
  const auto a = line_of({0.8f, 0.7f, 0.3f}), b = line_of({0.5f, 0.9f}), c = line_of({0.2f, 0.2f});
  const DraftLine lines[] = {a, b, c};
  int lengths[3];
  choose_lengths(costs, lines, 64, lengths);
  const auto rate = [&](int x, int y, int z) {
    double expected = 3;
    const auto add = [&](const std::vector<DraftToken>& line, int n) {
      double chance = 1;
      for (int i = 0; i < n; ++i)
        expected += chance *= static_cast<double>(line[static_cast<size_t>(i)].confidence);
    };
    add(a, x);
    add(b, y);
    add(c, z);
    return expected / costs.cost(3 + x + y + z);
  };
  double best = 0;
  for (int x = 0; x <= 3; ++x)
    for (int y = 0; y <= 2; ++y)
      for (int z = 0; z <= 2; ++z) best = std::max(best, rate(x, y, z));
  EXPECT_DOUBLE_EQ(rate(lengths[0], lengths[1], lengths[2]), best);
}

TEST(Window, FallsBackToOneRowWhereRowsAreDear) {
  StepCosts costs(0.1);
  for (int i = 0; i < 60; ++i) {
    costs.add(1, 0.010);
    costs.add(3, 0.031);
  }
  EXPECT_NEAR(costs.cost(3), 3.1, 0.1);
  EXPECT_EQ(chosen(costs, line_of({0.8f, 0.8f, 0.8f})), 0);
}

TEST(Window, CostsFollowRowsAndNotTheMachinesMoods) {
  StepCosts costs(0.1);
  for (int i = 0; i < 60; ++i) {
    const double mood = i / 20 == 1 ? 5.0 : 1.0;  // for a while everything takes five times as long
    costs.add(1, 0.010 * mood);
    costs.add(5, (i % 7 == 3 ? 0.500 : 0.018) * mood);
  }
  EXPECT_NEAR(costs.cost(5), 1.8, 0.1);
  costs.add(2, -1);  // a clock that went back
  costs.add(0, 1);
  EXPECT_NEAR(costs.cost(5), 1.8, 0.1);
  // Steps that got faster with more rows are noise: a row is never free.
  StepCosts odd(0.1);
  for (int i = 0; i < 60; ++i) odd.add(1 + i % 2, i % 2 == 0 ? 0.02 : 0.01);
  EXPECT_GT(odd.cost(17), 1.3);
}

TEST(Window, CostsNeedNotBeALine) {
  // The second to fourth row are next to free, the fifth opens a new group of columns.
  const auto truth = [](int rows) { return rows <= 4 ? 1 + 0.02 * (rows - 1) : rows <= 8 ? 1.8 : 2.6; };
  StepCosts costs;
  uint32_t state = 1;
  for (int i = 0; i < 600; ++i) {
    state = state * 1664525 + 1013904223;
    const int rows = static_cast<int>(state >> 16) % 12 + 1;
    costs.add(rows, 0.003 * truth(rows));
  }
  for (int rows = 1; rows <= 12; ++rows) EXPECT_NEAR(costs.cost(rows), truth(rows), 0.1) << rows;
  EXPECT_EQ(chosen(costs, line_of({0.3f, 0.3f, 0.3f, 0.3f, 0.3f})), 3);
  // Nothing is known of 40 rows but that they are not cheaper than those seen.
  EXPECT_GT(costs.cost(40), costs.cost(12));
}

}  // namespace
}  // namespace frugal::llm
