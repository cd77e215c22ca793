#include "llm/decode/glance.h"

#include <gtest/gtest.h>

#include <cstdlib>

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
    never.every = 8;
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
    EXPECT_EQ(shared.named, alone->named);
  }
  EXPECT_EQ(glancer.finish().tokens, plain.tokens);
}

TEST_F(Glance, TheChainNamesItsAnswerWhereTheTriggerIsWhatComesNext) {
  rationale.decode.max_draft = 0;
  const Tokenizer& tokenizer = model->tokenizer();
  // Two tokens of the chain that their text gives back.
  GlanceOptions rule = never;
  std::vector<Token> trigger;
  for (size_t at = 4; at + 2 < plain.tokens.size(); ++at) {
    trigger.assign(plain.tokens.begin() + static_cast<ptrdiff_t>(at),
                   plain.tokens.begin() + static_cast<ptrdiff_t>(at) + 2);
    rule.trigger = tokenizer.decode(trigger).value();
    const auto back = tokenizer.encode(rule.trigger, false, false);
    if (back.ok() && *back == trigger) break;
    trigger.clear();
  }
  ASSERT_FALSE(trigger.empty());
  auto glancer = std::move(Glancer::create(*engine, sequence, tokenizer, prompt, rationale, rule)).value();
  ASSERT_TRUE(glancer.prefill().ok());
  int n_named = 0;
  while (!glancer.done()) {
    const size_t at = glancer.tokens().size();
    Look look;
    ASSERT_TRUE(glancer.step_and_look(&look).ok());
    if (at + 2 > plain.tokens.size()) continue;
    const bool next = plain.tokens[at] == trigger[0] && plain.tokens[at + 1] == trigger[1];
    EXPECT_EQ(look.named, next) << at;
    n_named += next ? 1 : 0;
  }
  EXPECT_GT(n_named, 0);
}

TEST_F(Glance, ALookSaysHowManyOfItsGuessesTurnedExact) {
  rationale.decode.fixed = true;  // guesses in every window
  never.every = 1;
  auto glancer =
      std::move(Glancer::create(*engine, sequence, model->tokenizer(), prompt, rationale, never)).value();
  ASSERT_TRUE(glancer.prefill().ok());
  while (!glancer.done()) {
    Look look;
    ASSERT_TRUE(glancer.step_and_look(&look).ok());
    EXPECT_LE(look.accepted, look.approximate);
    if (glancer.done()) break;
    EXPECT_EQ(static_cast<int>(glancer.tokens().size()), look.exact + look.accepted + 1);
  }
  EXPECT_EQ(glancer.finish().tokens, plain.tokens);
}

TEST(GlanceOfSmolLM2, StopsWhereTheChainIsAboutToNameItsAnswer) {
  const char* folder = std::getenv("FRUGAL_MODELS");
  ASSERT_NE(folder, nullptr) << "FRUGAL_MODELS is set by ctest";
  const auto model = std::move(Model::load(std::string(folder) + "/smollm2-135m-instruct-q4_1.gguf")).value();
  EngineOptions engine_options;
  engine_options.n_ctx = 512;
  engine_options.n_threads = 1;
  const auto engine = std::move(Engine::create(model, engine_options)).value();
  const SequenceId sequence = engine->open_sequence().value();
  const auto prompt =
      model->tokenizer()
          .encode(
              "Q: A box holds 4 pens. How many pens are in 3 boxes?\nA: Each box holds 4 pens. There are "
              "3 boxes. 3 * 4 = 12. The answer is 12.\n\nQ: A bag holds 5 nuts. How many nuts are in 6 "
              "bags?\nA: Each bag holds 5 nuts. There are 6 bags. 6 * 5 = 30. The answer is 30.\n\nQ: A "
              "shelf holds 7 books. How many books are on 2 shelves?\nA:",
              true, false)
          .value();
  GenerateOptions rationale;
  rationale.max_tokens = 60;
  rationale.stop = {"\nQ:"};
  const Generation plain =
      std::move(generate(*engine, sequence, model->tokenizer(), prompt, rationale)).value();
  GlanceOptions rule;
  rule.trigger = " The answer is";
  rule.answer_tokens = 6;
  rule.stable = 0;  // nothing but the chain's own word
  rule.every = 0;
  rule.first = 1;
  rule.confidence = 0;
  // The place is within a window, where exact tokens alone never stand: guesses have to find it.
  const auto result = glance(*engine, sequence, model->tokenizer(), prompt, rationale, rule);
  ASSERT_TRUE(result.ok()) << result.error().message;
  EXPECT_TRUE(result->glanced);
  EXPECT_TRUE(result->looks.back().named);
  for (const Look& look : result->looks) EXPECT_NE(look.place, Place::kAnywhere);
  EXPECT_LT(result->rationale.tokens.size(), plain.tokens.size());
  const size_t at = plain.text.find(rule.trigger);
  ASSERT_NE(at, std::string::npos);
  EXPECT_EQ(plain.text.substr(at + rule.trigger.size() + 1, result->answer.size()), result->answer);
}

TEST_F(Glance, StopsWhenTheAnswerIsStable) {
  GlanceOptions rule;
  rule.wrong = true;
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
  rule.most_iterations = 5;
  result = run(rule);
  EXPECT_TRUE(result.glanced);
  EXPECT_TRUE(result.out_of_budget);
  EXPECT_EQ(result.rationale.decode_forwards, 5);
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

TEST_F(Glance, IsTimedByTheGivenClock) {
  static double now = 0;
  GlanceOptions rule = never;
  rule.every = 8;
  rule.approximate = 0;
  rule.clock = [] { return now += 1; };
  const GlanceResult result = run(rule);
  ASSERT_GT(result.looks.size(), 1u);
  double looks = 0;
  for (const Look& look : result.looks) {
    EXPECT_EQ(look.seconds, 1);  // the clock is read before and after
    looks += look.seconds;
  }
  EXPECT_GT(result.seconds, looks + result.rationale.decode_forwards);
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
  rule.stable = -1;
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

TEST(GlanceRule, LooksOnGuessesThatTurnedOutWrongDoNotCount) {
  Look right, wrong;
  right.answer = wrong.answer = "B";
  right.confidence = wrong.confidence = 0.9f;
  wrong.approximate = 3;
  wrong.accepted = 2;
  GlanceOptions rule;
  rule.stable = 2;
  rule.confidence = 0.7f;
  EXPECT_FALSE(agreed(std::vector<Look>{right, wrong}, rule));
  EXPECT_TRUE(agreed(std::vector<Look>{right, wrong, right}, rule));
  wrong.answer = "A";
  EXPECT_TRUE(agreed(std::vector<Look>{right, wrong, right}, rule));
  rule.wrong = true;
  EXPECT_FALSE(agreed(std::vector<Look>{right, wrong, right}, rule));
}

TEST(GlanceRule, TheChainsOwnWordNeedsNoAgreement) {
  Look look;
  look.answer = "B";
  look.named = true;
  GlanceOptions rule;
  rule.stable = 0;
  rule.confidence = 2;
  EXPECT_TRUE(agreed(std::vector<Look>{look}, rule));
  look.approximate = 1;  // its guesses were wrong: it would have come to say something else
  rule.wrong = true;
  EXPECT_FALSE(agreed(std::vector<Look>{look}, rule));
  look.accepted = 1;
  EXPECT_TRUE(agreed(std::vector<Look>{look}, rule));
  look.named = false;
  EXPECT_FALSE(agreed(std::vector<Look>{look}, rule));
}

TEST(GlanceRule, KnowsWhereSentencesEnd) {
  for (const char* text : {".", " end.", "?", "!\n", "\n", ". "}) EXPECT_TRUE(ends_sentence(text)) << text;
  for (const char* text : {"", " ", "a", ".5", ",", " the"}) EXPECT_FALSE(ends_sentence(text)) << text;
}

}  // namespace
}  // namespace frugal::llm
