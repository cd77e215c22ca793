#include "llm/decode/glance.h"

#include <gtest/gtest.h>

#include "llm/vocab/tokenizer.h"
#include "support/temp_file.h"
#include "support/tiny_gguf.h"

namespace frugal::llm {
namespace {

class Glance : public ::testing::Test {
 protected:
  static constexpr int kContext = 256;
  void SetUp() override {
    test::TinyModel tiny;
    tiny.architecture = "qwen2";
    const frugal::test::TempFile file(test::tiny_gguf(tiny));
    model = std::move(Model::load(file.path())).value();
    EngineOptions options;
    options.n_ctx = kContext;
    options.n_threads = 1;
    engine = std::move(Engine::create(model, options)).value();
    sequence = engine->open_sequence().value();
    prompt = model->tokenizer().encode("one two three one two three one two", true, false).value();
    rationale.max_tokens = 60;
    rationale.ignore_end = true;
    plain = std::move(generate(*engine, sequence, model->tokenizer(), prompt, rationale)).value();
    never.confidence = 2;
  }
  GlanceResult run(const GlanceOptions& rule) {
    auto result = glance(*engine, sequence, model->tokenizer(), prompt, rationale, rule);
    EXPECT_TRUE(result.ok()) << (result.ok() ? "" : result.error().message);
    return result.ok() ? std::move(result).value() : GlanceResult{};
  }

  std::shared_ptr<const Model> model;
  std::unique_ptr<Engine> engine;
  SequenceId sequence = 0;
  std::vector<Token> prompt;
  GenerateOptions rationale;
  GlanceOptions never;
  Generation plain;
};

TEST_F(Glance, LooksLeaveTheRationaleAndTheCacheAsTheyWere) {
  const GlanceResult result = run(never);
  EXPECT_FALSE(result.glanced);
  EXPECT_GT(result.looks.size(), 3u);
  EXPECT_EQ(result.rationale.tokens, plain.tokens);
  EXPECT_EQ(result.rationale.text, plain.text);
  EXPECT_EQ(result.rationale.stop, StopReason::kMaxTokens);
  EXPECT_EQ(engine->n_past(sequence), static_cast<int>(prompt.size() + plain.tokens.size()) - 1);
}

TEST_F(Glance, TheWindowsForwardSaysWhatALookOfItsOwnSays) {
  rationale.decode.max_draft = 0;
  auto glancer =
      std::move(Glancer::create(*engine, sequence, model->tokenizer(), prompt, rationale, never)).value();
  ASSERT_TRUE(glancer.prefill().ok());
  while (!glancer.done()) {
    const auto alone = glancer.look(0);
    ASSERT_TRUE(alone.ok());
    Look shared;
    ASSERT_TRUE(glancer.step_and_look(&shared).ok());
    EXPECT_EQ(shared.exact, alone->exact);
    EXPECT_EQ(shared.approximate, 0);
    EXPECT_EQ(shared.answer, alone->answer);
    EXPECT_EQ(shared.confidence, alone->confidence);
  }
  EXPECT_EQ(glancer.finish().tokens, plain.tokens);
}

TEST_F(Glance, StopsWhenTheAnswerIsStable) {
  GlanceOptions rule;
  rule.confidence = 0;
  rule.stable = 1;
  const GlanceResult result = run(rule);
  EXPECT_TRUE(result.glanced);
  EXPECT_FALSE(result.out_of_budget);
  EXPECT_EQ(result.rationale.stop, StopReason::kGlance);
  EXPECT_EQ(result.looks.size(), 1u);
  EXPECT_EQ(result.agreement, 1);
  EXPECT_EQ(result.answer, result.looks.back().answer);
  ASSERT_LT(result.rationale.tokens.size(), plain.tokens.size());
  EXPECT_TRUE(
      std::equal(result.rationale.tokens.begin(), result.rationale.tokens.end(), plain.tokens.begin()));
  // The window that carried the last look added its own tokens.
  EXPECT_LT(result.looks.back().exact, static_cast<int>(result.rationale.tokens.size()));
  EXPECT_EQ(engine->n_past(sequence), static_cast<int>(prompt.size() + result.rationale.tokens.size()) - 1);
}

TEST_F(Glance, ABudgetEndsTheRationale) {
  GlanceOptions rule = never;
  rule.most_tokens = 20;
  GlanceResult result = run(rule);
  EXPECT_TRUE(result.glanced);
  EXPECT_TRUE(result.out_of_budget);
  EXPECT_GE(result.rationale.tokens.size(), 20u);
  EXPECT_LT(result.rationale.tokens.size(), 20u + kLongestDraft + 1);
  rule = never;
  rule.most_seconds = 1e-9;
  result = run(rule);
  EXPECT_TRUE(result.out_of_budget);
  EXPECT_EQ(result.rationale.tokens.size(), 1u);
  rule = never;
  int asked = 0;
  rule.spent = [&] { return ++asked == 3; };
  EXPECT_TRUE(run(rule).out_of_budget);
}

TEST_F(Glance, NoRoomForTheTriggerIsNoFault) {
  rationale.max_tokens = 0;  // to the end of the context
  GlanceOptions rule = never;
  rule.every = 1;
  const GlanceResult result = run(rule);
  EXPECT_FALSE(result.glanced);
  EXPECT_EQ(result.rationale.stop, StopReason::kContextFull);
  EXPECT_EQ(engine->n_past(sequence), kContext);
}

TEST_F(Glance, RefusesWhatCannotBe) {
  GlanceOptions rule;
  rule.trigger = "";
  EXPECT_FALSE(glance(*engine, sequence, model->tokenizer(), prompt, rationale, rule).ok());
  rule = {};
  rule.stable = 0;
  EXPECT_FALSE(glance(*engine, sequence, model->tokenizer(), prompt, rationale, rule).ok());
  EXPECT_FALSE(glance(*engine, sequence, model->tokenizer(), {}, rationale, {}).ok());
}

TEST(GlanceRule, NeedsAgreementAndConfidence) {
  const auto look = [](const char* answer, float confidence) {
    Look made;
    made.answer = answer;
    made.confidence = confidence;
    return made;
  };
  GlanceOptions rule;
  rule.stable = 2;
  rule.confidence = 0.7f;
  EXPECT_FALSE(agreed({}, rule));
  std::vector<Look> looks = {look("B", 0.9f)};
  EXPECT_FALSE(agreed(looks, rule));
  looks.push_back(look("B", 0.6f));
  EXPECT_FALSE(agreed(looks, rule));
  looks.push_back(look("B", 0.8f));
  EXPECT_FALSE(agreed(looks, rule));
  looks.push_back(look("B", 0.8f));
  EXPECT_TRUE(agreed(looks, rule));
  looks.push_back(look("A", 0.9f));
  EXPECT_FALSE(agreed(looks, rule));
  looks = {look("", 0.9f), look("", 0.9f)};
  EXPECT_FALSE(agreed(looks, rule));  // no answer is none
}

}  // namespace
}  // namespace frugal::llm
