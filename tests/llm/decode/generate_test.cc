#include "llm/decode/generate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <limits>

#include "llm/vocab/tokenizer.h"

namespace frugal::llm {
namespace {

// An engine that passes everything on, counts, and can spoil the logits.
class WatchedEngine final : public Engine {
 public:
  explicit WatchedEngine(std::unique_ptr<Engine> inner) : inner_(std::move(inner)) {}
  const Model& model() const override { return inner_->model(); }
  const EngineOptions& options() const override { return inner_->options(); }
  Result<SequenceId> open_sequence() override { return inner_->open_sequence(); }
  void close_sequence(SequenceId sequence) override { inner_->close_sequence(sequence); }
  int n_past(SequenceId sequence) const override { return inner_->n_past(sequence); }
  Status truncate(SequenceId sequence, int n_past) override { return inner_->truncate(sequence, n_past); }
  Status forward(std::span<const BatchItem> items) override {
    ++forwards;
    if (on_forward) on_forward();
    return inner_->forward(items);
  }
  std::span<const float> logits(int row) const override {
    if (!spoil) return inner_->logits(row);
    spoiled_.assign(inner_->logits(row).begin(), inner_->logits(row).end());
    spoiled_[7] = std::numeric_limits<float>::quiet_NaN();
    return spoiled_;
  }
  int n_logit_rows() const override { return inner_->n_logit_rows(); }
  Status prefill(SequenceId sequence, std::span<const Token> tokens,
                 const std::function<bool(int, int)>& progress) override {
    prefilled += tokens.size();
    return inner_->prefill(sequence, tokens, progress);
  }
  Status save_sequence(SequenceId sequence, const std::string& path) const override {
    return inner_->save_sequence(sequence, path);
  }
  Result<SequenceId> load_sequence(const std::string& path) override { return inner_->load_sequence(path); }
  std::span<const Token> tokens(SequenceId sequence) const override { return inner_->tokens(sequence); }
  const Usage& usage() const override { return inner_->usage(); }
  const StepTimes& step_times() const override { return inner_->step_times(); }
  uint64_t kv_bytes(SequenceId sequence) const override { return inner_->kv_bytes(sequence); }

  int forwards = 0;
  size_t prefilled = 0;
  bool spoil = false;
  std::function<void()> on_forward;

 private:
  std::unique_ptr<Engine> inner_;
  mutable std::vector<float> spoiled_;
};

class Generate : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    const char* folder = std::getenv("FRUGAL_MODELS");
    ASSERT_NE(folder, nullptr) << "FRUGAL_MODELS names the folder of the models";
    auto loaded = Model::load(std::string(folder) + "/smollm2-135m-instruct-q4_1.gguf");
    ASSERT_TRUE(loaded.ok()) << loaded.error().message;
    model = std::move(loaded).value();
  }
  static void TearDownTestSuite() { model.reset(); }

  void SetUp() override { open({}); }

  void open(EngineOptions options) {
    if (options.n_ctx == 0) options.n_ctx = 256;
    auto made = Engine::create(model, options);
    ASSERT_TRUE(made.ok()) << made.error().message;
    engine = std::make_unique<WatchedEngine>(std::move(made).value());
    auto opened = engine->open_sequence();
    ASSERT_TRUE(opened.ok()) << opened.error().message;
    sequence = *opened;
  }

  std::vector<Token> tokens(const std::string& text) {
    auto encoded = model->tokenizer().encode(text, true, false);
    EXPECT_TRUE(encoded.ok());
    return std::move(encoded).value();
  }

  Generation answer(const std::vector<Token>& prompt, const GenerateOptions& options) {
    auto result = generate(*engine, sequence, model->tokenizer(), prompt, options);
    EXPECT_TRUE(result.ok()) << (result.ok() ? "" : result.error().message);
    return result.ok() ? std::move(result).value() : Generation{};
  }
  Error refusal(const std::vector<Token>& prompt, const GenerateOptions& options = {}) {
    const auto result = generate(*engine, sequence, model->tokenizer(), prompt, options);
    EXPECT_FALSE(result.ok());
    return result.ok() ? Error{} : result.error();
  }

  static std::shared_ptr<const Model> model;
  std::unique_ptr<WatchedEngine> engine;
  SequenceId sequence = 0;
};
std::shared_ptr<const Model> Generate::model;

GenerateOptions at_most(int max_tokens) {
  GenerateOptions options;
  options.max_tokens = max_tokens;
  options.ignore_end = true;
  options.decode.max_draft = 0;  // exact_decoding_test is about drafts
  return options;
}

TEST_F(Generate, GreedyIsTheLargestLogitStepByStep) {
  const std::vector<Token> prompt = tokens("The three largest cities of France are");
  std::vector<Token> expected;
  ASSERT_TRUE(engine->prefill(sequence, prompt, {}).ok());
  for (int i = 0; i < 12; ++i) {
    const std::span<const float> logits = engine->logits(0);
    expected.push_back(static_cast<Token>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
    const BatchItem step{sequence, {&expected.back(), 1}, LogitRows::kLast};
    ASSERT_TRUE(engine->forward({&step, 1}).ok());
  }
  std::string streamed;
  GenerateOptions options = at_most(12);
  options.on_text = [&](std::string_view text) {
    streamed += text;
    return true;
  };
  const Generation result = answer(prompt, options);
  EXPECT_EQ(result.tokens, expected);
  EXPECT_EQ(result.stop, StopReason::kMaxTokens);
  EXPECT_EQ(result.text, streamed);
  EXPECT_EQ(result.text, *model->tokenizer().decode(expected));
  EXPECT_EQ(result.decode_forwards, 11);       // the last token is not run
  EXPECT_GT(result.usage.flops, 2.0 * 100e6);  // a token of this model is some 2 x 135 M
  EXPECT_GT(result.kv_bytes, 0u);
}

TEST_F(Generate, KeepsTheCommonPrefixAndAnswersTheSame) {
  const std::string shared = "Rivers carry water from the mountains to the sea. ";
  const std::vector<Token> first = tokens(shared + "The longest river is"),
                           second = tokens(shared + "A river begins");
  const size_t common = common_prefix(first, second);
  ASSERT_GT(common, 5u);
  answer(first, at_most(6));
  engine->prefilled = 0;
  const Generation warm = answer(second, at_most(10));
  EXPECT_EQ(warm.reused_tokens, static_cast<int>(common));
  EXPECT_EQ(engine->prefilled, second.size() - common);
  open({});
  const Generation cold = answer(second, at_most(10));
  EXPECT_EQ(cold.reused_tokens, 0);
  EXPECT_EQ(warm.tokens, cold.tokens);
  // The same prompt again: all but the last token is there.
  const Generation again = answer(second, at_most(10));
  EXPECT_EQ(again.reused_tokens, static_cast<int>(second.size()) - 1);
  EXPECT_EQ(again.tokens, cold.tokens);
}

TEST_F(Generate, StopsBeforeAStopString) {
  const std::vector<Token> prompt = tokens("One, two, three, four,");
  const Generation whole = answer(prompt, at_most(12));
  ASSERT_GE(whole.text.size(), 8u);
  GenerateOptions options = at_most(12);
  options.stop = {"never in any answer", whole.text.substr(5, 3)};
  std::string streamed;
  options.on_text = [&](std::string_view text) {
    streamed += text;
    return true;
  };
  const Generation cut = answer(prompt, options);
  EXPECT_EQ(cut.stop, StopReason::kStopString);
  EXPECT_EQ(cut.stop_string, options.stop[1]);
  EXPECT_EQ(cut.text, whole.text.substr(0, whole.text.find(options.stop[1])));
  EXPECT_EQ(streamed, cut.text);
  options.stop = {""};
  EXPECT_EQ(refusal(prompt, options).code, ErrorCode::kInvalidArgument);
}

TEST_F(Generate, EndsWhereTheModelEnds) {
  const ChatMessage message{"user", "Say only the word yes."};
  const auto chat = model->tokenizer().apply_chat_template({&message, 1}, true);
  ASSERT_TRUE(chat.ok()) << chat.error().message;
  const auto prompt = model->tokenizer().encode(*chat, true, true);
  ASSERT_TRUE(prompt.ok());
  GenerateOptions options;
  const Generation result = answer(*prompt, options);
  EXPECT_EQ(result.stop, StopReason::kEndOfGeneration);
  EXPECT_TRUE(model->tokenizer().is_end_of_generation(result.tokens.back()));
}

TEST_F(Generate, ContextLimit) {
  EngineOptions small;
  small.n_ctx = 16;
  open(small);
  const std::vector<Token> prompt = tokens("A B C D");
  ASSERT_LT(prompt.size(), 16u);
  const Generation result = answer(prompt, at_most(0));
  EXPECT_EQ(result.stop, StopReason::kContextFull);
  EXPECT_EQ(result.tokens.size(), 16 - prompt.size() + 1);  // the last one needs no place of its own
  EXPECT_EQ(engine->n_past(sequence), 16);
  const Error error = refusal(std::vector<Token>(16, prompt[0]));
  EXPECT_EQ(error.code, ErrorCode::kOutOfRange);
  EXPECT_NE(error.message.find("16 tokens"), std::string::npos) << error.message;
}

TEST_F(Generate, RefusesWhatMakesNoSense) {
  EXPECT_EQ(refusal({}).code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(refusal({-1}).code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(refusal({model->info().n_vocab}).code, ErrorCode::kInvalidArgument);
  GenerateOptions options;
  options.max_tokens = -1;
  EXPECT_EQ(refusal({1}, options).code, ErrorCode::kInvalidArgument);
  options = {};
  options.sampler.top_p = 7;
  EXPECT_EQ(refusal({1}, options).code, ErrorCode::kInvalidArgument);
}

TEST_F(Generate, BrokenLogitsEndInAnError) {
  engine->spoil = true;
  const Error error = refusal(tokens("Hello"));
  EXPECT_EQ(error.code, ErrorCode::kCorrupt);
  EXPECT_NE(error.message.find("token 7"), std::string::npos) << error.message;
}

TEST_F(Generate, CallbackStops) {
  int calls = 0;
  GenerateOptions options = at_most(50);
  options.on_text = [&](std::string_view) { return ++calls < 3; };
  EXPECT_EQ(answer(tokens("Once upon a time"), options).stop, StopReason::kCallback);
  EXPECT_EQ(calls, 3);
  options = at_most(50);
  options.on_prefill = [](int, int) { return false; };
  const Generation result = answer(tokens("An entirely different prompt"), options);
  EXPECT_EQ(result.stop, StopReason::kCallback);
  EXPECT_TRUE(result.tokens.empty());
}

TEST_F(Generate, CancelFlagStopsPrefillAndDecode) {
  EngineOptions small;
  small.max_rows = 4;
  open(small);
  std::atomic<bool> cancel{false};
  GenerateOptions options = at_most(50);
  options.cancel = &cancel;
  int chunks = 0;
  options.on_prefill = [&](int, int) {
    if (++chunks == 2) cancel = true;
    return true;
  };
  const std::vector<Token> prompt =
      tokens("A somewhat longer prompt that takes a good number of chunks of four tokens.");
  const Generation in_prefill = answer(prompt, options);
  EXPECT_EQ(in_prefill.stop, StopReason::kCancelled);
  EXPECT_TRUE(in_prefill.tokens.empty());
  EXPECT_LT(engine->n_past(sequence), static_cast<int>(prompt.size()));
  EXPECT_GT(engine->n_past(sequence), 0);  // what was done is kept, and reused:

  cancel = false;
  options.on_prefill = {};
  options.on_text = [&](std::string_view) {
    cancel = true;
    return true;
  };
  const Generation in_decode = answer(prompt, options);
  EXPECT_GT(in_decode.reused_tokens, 0);
  EXPECT_EQ(in_decode.stop, StopReason::kCancelled);
  EXPECT_FALSE(in_decode.tokens.empty());
  EXPECT_LT(in_decode.tokens.size(), 50u);
}

TEST_F(Generate, PenaltiesSeeThePrompt) {
  const std::vector<Token> prompt = tokens("blue blue blue blue blue blue blue");
  GenerateOptions options = at_most(1);
  options.sampler.presence_penalty = 100;
  const Generation penalised = answer(prompt, options);
  EXPECT_EQ(std::find(prompt.begin(), prompt.end(), penalised.tokens[0]), prompt.end()) << penalised.text;
  options.sampler.presence_penalty = -100;  // a reward for what was seen
  const Generation rewarded = answer(prompt, options);
  EXPECT_NE(std::find(prompt.begin(), prompt.end(), rewarded.tokens[0]), prompt.end()) << rewarded.text;
}

}  // namespace
}  // namespace frugal::llm
