// Exact parallel decoding gives the tokens, the text, the random draws and the logits of the sequential loop,
// bit for bit. The reference is the plainest loop there is, written out here: one thread, one token a
// forward, alone.
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <memory>

#include "base/hash.h"
#include "base/rng.h"
#include "llm/decode/generate.h"
#include "llm/kv/dictionary.h"
#include "llm/vocab/stream_decoder.h"
#include "llm/vocab/tokenizer.h"
#include "support/temp_file.h"
#include "support/tiny_dictionary.h"
#include "support/tiny_gguf.h"

namespace frugal::llm {
namespace {

uint64_t hash_of(std::span<const float> row) { return fnv1a(std::as_bytes(row)); }

// Keeps, for every position of every sequence, the hash of the logits that were computed there last; and can
// bend what decoding sees, as a wrong rule of acceptance would.
class RecordingEngine final : public Engine {
 public:
  enum class Fault { kNone, kAcceptsFirstGuess, kKeepsRejected };
  explicit RecordingEngine(std::unique_ptr<Engine> inner, Fault fault = Fault::kNone)
      : inner_(std::move(inner)), fault_(fault) {}
  const Model& model() const override { return inner_->model(); }
  const EngineOptions& options() const override { return inner_->options(); }
  Result<SequenceId> open_sequence() override { return inner_->open_sequence(); }
  void close_sequence(SequenceId sequence) override { inner_->close_sequence(sequence); }
  int n_past(SequenceId sequence) const override { return inner_->n_past(sequence); }
  Status truncate(SequenceId sequence, int n_past) override {
    const bool rejects = n_past < inner_->n_past(sequence) && n_past > 0;
    if (fault_ == Fault::kKeepsRejected && rejects) return inner_->truncate(sequence, n_past + 1);
    return inner_->truncate(sequence, n_past);
  }
  Status forward(std::span<const BatchItem> items) override {
    std::vector<int> first;
    for (const BatchItem& item : items) first.push_back(inner_->n_past(item.sequence));
    ++forwards;
    if (on_forward) on_forward(forwards);
    FRUGAL_TRY_STATUS(inner_->forward(items));
    int row = 0;
    for (size_t i = 0; i < items.size(); ++i) {
      const int n = static_cast<int>(items[i].tokens.size());
      for (int k = items[i].logits == LogitRows::kAll ? 0 : n - 1; k < n; ++k)
        rows[{items[i].sequence, first[i] + k}] = hash_of(inner_->logits(row++));
    }
    guess_ = items[0].tokens.size() > 1 ? items[0].tokens[1] : -1;
    return {};
  }
  std::span<const float> logits(int row) const override {
    if (fault_ != Fault::kAcceptsFirstGuess || row != 0 || guess_ < 0) return inner_->logits(row);
    bent_.assign(inner_->logits(0).begin(), inner_->logits(0).end());
    bent_[static_cast<size_t>(guess_)] = 1e9f;
    return bent_;
  }
  int n_logit_rows() const override { return inner_->n_logit_rows(); }
  Status prefill(SequenceId sequence, std::span<const Token> tokens,
                 const std::function<bool(int, int)>& progress) override {
    guess_ = -1;
    FRUGAL_TRY_STATUS(inner_->prefill(sequence, tokens, progress));
    rows[{sequence, inner_->n_past(sequence) - 1}] = hash_of(inner_->logits(0));
    return {};
  }
  Status save_sequence(SequenceId sequence, const std::string& path) const override {
    return inner_->save_sequence(sequence, path);
  }
  Result<SequenceId> load_sequence(const std::string& path) override { return inner_->load_sequence(path); }
  std::span<const Token> tokens(SequenceId sequence) const override { return inner_->tokens(sequence); }
  const Usage& usage() const override { return inner_->usage(); }
  const StepTimes& step_times() const override { return inner_->step_times(); }
  uint64_t kv_bytes(SequenceId sequence) const override { return inner_->kv_bytes(sequence); }

  std::map<std::pair<SequenceId, int>, uint64_t> rows;
  std::function<void(int)> on_forward;
  int forwards = 0;

 private:
  std::unique_ptr<Engine> inner_;
  Fault fault_;
  Token guess_ = -1;
  mutable std::vector<float> bent_;
};

std::unique_ptr<RecordingEngine> make_engine(const std::shared_ptr<const Model>& model, int n_threads,
                                             KvFormat kv, int n_ctx,
                                             RecordingEngine::Fault fault = RecordingEngine::Fault::kNone) {
  EngineOptions options;
  options.n_threads = n_threads;
  options.n_ctx = n_ctx;
  options.kv = kv;
  if (kv == KvFormat::kCsr) {
    const ModelInfo& info = model->info();
    options.kv_source = make_csr_source(std::make_shared<const Dictionary>(test::tiny_dictionary(
                                            7, info.n_layers, info.n_kv_heads, info.head_dim)),
                                        2)
                            .value();
  }
  auto engine = Engine::create(model, options);
  EXPECT_TRUE(engine.ok()) << (engine.ok() ? "" : engine.error().message);
  return std::make_unique<RecordingEngine>(std::move(engine).value(), fault);
}

struct Answer {
  std::vector<Token> tokens;
  std::vector<uint64_t> logits;  // [tokens] hash of the row that each was picked from
  std::string text;
  StopReason stop = StopReason::kMaxTokens;
  std::vector<Token> held;  // by the sequence, at the end
  bool operator==(const Answer&) const = default;
};
void PrintTo(const Answer& answer, std::ostream* out) {
  for (size_t i = 0; i < answer.tokens.size(); ++i)
    *out << answer.tokens[i] << ":" << answer.logits[i] % 997 << " ";
  *out << "| " << answer.text << " | " << stop_reason_name(answer.stop) << " | " << answer.held.size()
       << " held";
}

// The sequential loop, without anything of src/llm/decode but the sampler. That stop strings are found where
// they are is stream_decoder_test's to show.
Answer reference(const std::shared_ptr<const Model>& model, KvFormat kv, int n_ctx,
                 const std::vector<Token>& prompt, const GenerateOptions& options) {
  Answer answer;
  const auto engine = make_engine(model, 1, kv, n_ctx);
  const SequenceId sequence = engine->open_sequence().value();
  Sampler sampler = Sampler::create(options.sampler, model->info().n_vocab).value();
  StreamDecoder decoder = StreamDecoder::create(model->tokenizer(), options.stop).value();
  for (const Token token : prompt) sampler.accept(token);
  EXPECT_TRUE(engine->prefill(sequence, prompt, {}).ok());
  while (true) {
    const Token token = sampler.sample(engine->logits(0)).value();
    sampler.accept(token);
    answer.tokens.push_back(token);
    answer.logits.push_back(hash_of(engine->logits(0)));
    if (!options.ignore_end && model->tokenizer().is_end_of_generation(token)) {
      answer.stop = StopReason::kEndOfGeneration;
      break;
    }
    answer.text += decoder.push(token);
    if (decoder.stopped()) {
      answer.stop = StopReason::kStopString;
      break;
    }
    if (options.max_tokens > 0 && static_cast<int>(answer.tokens.size()) == options.max_tokens) break;
    if (engine->n_past(sequence) == n_ctx) {
      answer.stop = StopReason::kContextFull;
      break;
    }
    const BatchItem step{sequence, {&token, 1}, LogitRows::kLast};
    EXPECT_TRUE(engine->forward({&step, 1}).ok());
  }
  answer.text += decoder.finish();
  answer.held.assign(engine->tokens(sequence).begin(), engine->tokens(sequence).end());
  return answer;
}

Answer answer_of(const RecordingEngine& engine, SequenceId sequence, size_t prompt_size,
                 const Generation& out) {
  Answer answer{out.tokens, {}, out.text, out.stop, {}};
  for (size_t i = 0; i < out.tokens.size(); ++i) {
    const auto at = engine.rows.find({sequence, static_cast<int>(prompt_size + i) - 1});
    answer.logits.push_back(at == engine.rows.end() ? 0 : at->second);
  }
  answer.held.assign(engine.tokens(sequence).begin(), engine.tokens(sequence).end());
  return answer;
}

Answer decoded(const std::shared_ptr<const Model>& model, int n_threads, KvFormat kv, int n_ctx,
               const std::vector<Token>& prompt, const GenerateOptions& options, DraftStats* stats = nullptr,
               RecordingEngine::Fault fault = RecordingEngine::Fault::kNone) {
  const auto engine = make_engine(model, n_threads, kv, n_ctx, fault);
  const SequenceId sequence = engine->open_sequence().value();
  const auto out = generate(*engine, sequence, model->tokenizer(), prompt, options);
  EXPECT_TRUE(out.ok()) << (out.ok() ? "" : out.error().message);
  if (!out.ok()) return {};
  if (stats != nullptr) *stats = out->drafts;
  return answer_of(*engine, sequence, prompt.size(), *out);
}

// Text in which some things come again and some do not.
std::vector<Token> repetitive_tokens(int n, int n_vocab, uint64_t seed) {
  Rng rng(seed);
  std::vector<Token> tokens;
  while (static_cast<int>(tokens.size()) < n) {
    const auto size = static_cast<uint32_t>(tokens.size());
    if (size > 8 && rng.below(2) == 0) {
      const uint32_t from = rng.below(size - 6);
      for (uint32_t i = 0; i < 6; ++i) tokens.push_back(tokens[from + i]);
    } else {
      tokens.push_back(static_cast<Token>(rng.below(static_cast<uint32_t>(n_vocab))));
    }
  }
  tokens.resize(static_cast<size_t>(n));
  return tokens;
}

GenerateOptions at_most(int n) {
  GenerateOptions options;
  options.max_tokens = n;
  options.ignore_end = true;
  return options;
}

std::shared_ptr<const Model> tiny_model(const std::string& architecture, TensorType weights) {
  test::TinyModel tiny;
  tiny.architecture = architecture;
  tiny.weights = weights;
  tiny.head_dim = 32;
  if (architecture == "gemma3") tiny.sliding_window = 48;
  const frugal::test::TempFile file(test::tiny_gguf(tiny));
  auto model = Model::load(file.path());
  EXPECT_TRUE(model.ok()) << model.error().message;
  return std::move(model).value();
}

constexpr KvFormat kFormats[] = {KvFormat::kF32, KvFormat::kF16, KvFormat::kBF16, KvFormat::kQ8_0,
                                 KvFormat::kCsr};

TEST(ExactDecoding, EveryWindowThreadCountAndCacheFormat) {
  const auto model = tiny_model("gemma3", TensorType::kQ4_1);
  const auto prompt = repetitive_tokens(150, model->info().n_vocab, 3);
  for (const KvFormat kv : kFormats) {
    const Answer expected = reference(model, kv, 400, prompt, at_most(60));
    for (int window = 0; window <= kLongestDraft; ++window) {
      for (const bool fixed : {true, false}) {
        if (!fixed && window % 8 != 0) continue;
        GenerateOptions options = at_most(60);
        options.decode.max_draft = window;
        options.decode.fixed = fixed;
        EXPECT_EQ(decoded(model, window % 3 + 1, kv, 400, prompt, options), expected)
            << kv_format_name(kv) << ", window " << window << (fixed ? ", fixed" : "");
      }
    }
  }
}

TEST(ExactDecoding, EveryArchitectureDrafterAndSampler) {
  for (const std::string& architecture : test::tiny_architectures()) {
    const auto model = tiny_model(architecture, TensorType::kF16);
    const auto prompt = repetitive_tokens(90, model->info().n_vocab, 5);
    const auto pool = std::make_shared<OutputPool>(256);
    for (const float temperature : {0.0f, 0.7f}) {
      for (const float penalty : {1.0f, 1.3f}) {
        GenerateOptions plain = at_most(40);
        plain.sampler.temperature = temperature;
        plain.sampler.repeat_penalty = penalty;
        plain.sampler.seed = 11;
        const Answer expected = reference(model, KvFormat::kF16, 256, prompt, plain);
        pool->add(expected.tokens);
        for (int drafters = 0; drafters < 16; ++drafters) {
          GenerateOptions options = plain;
          options.decode.drafts.text = (drafters & 1) != 0;
          options.decode.drafts.trajectory = (drafters & 2) != 0;
          options.decode.drafts.recycled = (drafters & 4) != 0;
          if ((drafters & 8) != 0) options.decode.drafts.pool = pool;
          options.decode.fixed = drafters % 3 == 0;
          EXPECT_EQ(decoded(model, 2, KvFormat::kF16, 256, prompt, options), expected)
              << architecture << ", temperature " << temperature << ", penalty " << penalty << ", drafters "
              << drafters;
        }
      }
    }
  }
}

TEST(ExactDecoding, RaggedBatchesAcceptEachTheirOwn) {
  const auto model = tiny_model("llama", TensorType::kQ4_1);
  constexpr int kRequests = 5;
  for (const KvFormat kv : kFormats) {
    for (const bool fixed : {false, true}) {
      const auto engine = make_engine(model, 2, kv, 200);
      std::vector<std::vector<Token>> prompts;
      std::vector<GenerateRequest> requests;
      for (int i = 0; i < kRequests; ++i)
        prompts.push_back(
            repetitive_tokens(20 + 23 * i, model->info().n_vocab, 40 + static_cast<uint64_t>(i)));
      for (int i = 0; i < kRequests; ++i) {
        GenerateOptions options = at_most(20 + 7 * i);
        options.sampler.temperature = i == 2 ? 0.5f : 0.0f;
        options.decode.max_draft = 3 * i;
        options.decode.fixed = fixed;
        requests.push_back({engine->open_sequence().value(), prompts[static_cast<size_t>(i)], options});
      }
      const auto outs = generate_batch(*engine, model->tokenizer(), requests);
      ASSERT_TRUE(outs.ok()) << kv_format_name(kv) << ": " << outs.error().message;
      for (size_t i = 0; i < requests.size(); ++i) {
        EXPECT_EQ(answer_of(*engine, requests[i].sequence, prompts[i].size(), (*outs)[i]),
                  reference(model, kv, 200, prompts[i], requests[i].options))
            << kv_format_name(kv) << ", request " << i << (fixed ? ", fixed" : "");
      }
    }
  }
}

TEST(ExactDecoding, AWrongAcceptanceIsNoticed) {
  const auto model = tiny_model("llama", TensorType::kF16);
  const auto prompt = repetitive_tokens(90, model->info().n_vocab, 5);
  const Answer expected = reference(model, KvFormat::kF16, 256, prompt, at_most(40));
  GenerateOptions options = at_most(40);
  options.decode.fixed = true;
  options.decode.max_draft = 4;
  EXPECT_EQ(decoded(model, 1, KvFormat::kF16, 256, prompt, options), expected);
  for (const auto fault :
       {RecordingEngine::Fault::kAcceptsFirstGuess, RecordingEngine::Fault::kKeepsRejected})
    EXPECT_NE(decoded(model, 1, KvFormat::kF16, 256, prompt, options, nullptr, fault), expected);
}

TEST(ExactDecoding, TheContextEndsInsideTheWindow) {
  const auto model = tiny_model("llama", TensorType::kF16);
  const auto prompt = repetitive_tokens(50, model->info().n_vocab, 8);
  GenerateOptions options = at_most(0);
  options.decode.fixed = true;
  for (const int n_ctx : {51, 52, 57, 80}) {
    const Answer expected = reference(model, KvFormat::kF16, n_ctx, prompt, options);
    EXPECT_EQ(expected.stop, StopReason::kContextFull);
    EXPECT_EQ(decoded(model, 1, KvFormat::kF16, n_ctx, prompt, options), expected) << n_ctx;
  }
}

// ---- real models ----

std::shared_ptr<const Model> real_model(const char* name) {
  const char* folder = std::getenv("FRUGAL_MODELS");
  EXPECT_NE(folder, nullptr) << "FRUGAL_MODELS is set by ctest";
  auto model = Model::load(std::string(folder == nullptr ? "" : folder) + "/" + name);
  EXPECT_TRUE(model.ok()) << model.error().message;
  return std::move(model).value();
}

constexpr const char* kExamples =
    "Q: A box holds 4 pens. How many pens are in 3 boxes?\nA: Each box holds 4 pens. There are 3 boxes. 3 * "
    "4 = 12. "
    "The answer is 12.\n\nQ: A bag holds 5 nuts. How many nuts are in 6 bags?\nA: Each bag holds 5 nuts. "
    "There are 6 "
    "bags. 6 * 5 = 30. The answer is 30.\n\nQ: A shelf holds 7 books. How many books are on 2 shelves?\nA:";

void check_real(const char* name, int n_tokens) {
  const auto model = real_model(name);
  const auto prompt = model->tokenizer().encode(kExamples, true, false).value();
  for (const KvFormat kv : {KvFormat::kF16, KvFormat::kQ8_0, KvFormat::kCsr}) {
    const Answer expected = reference(model, kv, 512, prompt, at_most(n_tokens));
    for (const int window : {1, 4, 16}) {
      if (kv != KvFormat::kF16 && window != 4) continue;
      GenerateOptions options = at_most(n_tokens);
      options.decode.max_draft = window;
      options.decode.fixed = window < 16;
      DraftStats stats;
      EXPECT_EQ(decoded(model, window % 3 + 1, kv, 512, prompt, options, &stats), expected)
          << kv_format_name(kv) << ", window " << window;
      if (window >= 4) {
        EXPECT_GT(stats.n_accepted(), 0) << "nothing accepted proves nothing";
      }
    }
  }
}

TEST(ExactDecoding, SmolLM2) { check_real("smollm2-135m-instruct-q4_1.gguf", 32); }
TEST(ExactDecoding, Gemma3) { check_real("gemma-3-270m-q4_k_m.gguf", 16); }

TEST(ExactDecoding, StopsInsideTheWindow) {
  const auto model = real_model("smollm2-135m-instruct-q4_1.gguf");
  const auto prompt = model->tokenizer().encode(kExamples, true, false).value();
  GenerateOptions options = at_most(200);
  options.ignore_end = false;
  options.decode.fixed = true;
  options.decode.max_draft = 16;
  options.max_tokens = 40;
  const std::string whole = reference(model, KvFormat::kF16, 512, prompt, options).text;
  ASSERT_GT(whole.size(), 40u);
  // Stop strings at many places: some begin in one window and end in the next.
  for (size_t at = 5; at + 12 < whole.size() && at < 45; at += 9) {
    options.stop = {whole.substr(at, 6)};
    EXPECT_EQ(decoded(model, 1, KvFormat::kF16, 512, prompt, options),
              reference(model, KvFormat::kF16, 512, prompt, options))
        << options.stop[0];
  }
  // The model's own end, drafted within a window: the pool knows the whole answer.
  options.stop.clear();
  options.max_tokens = 300;
  const std::vector<ChatMessage> question = {{"user", "Explain what a CPU is in one sentence."}};
  const std::string form = model->tokenizer().apply_chat_template(question, true).value();
  const auto chat = model->tokenizer().encode(form, true, true).value();
  const Answer ended = reference(model, KvFormat::kF16, 512, chat, options);
  ASSERT_EQ(ended.stop, StopReason::kEndOfGeneration);
  const auto pool = std::make_shared<OutputPool>(4096);
  pool->add(ended.tokens);
  options.decode.drafts.pool = pool;
  DraftStats stats;
  EXPECT_EQ(decoded(model, 1, KvFormat::kF16, 512, chat, options, &stats), ended);
  EXPECT_GT(stats.accepted[static_cast<size_t>(DraftSource::kPool)], 0);
}

TEST(ExactDecoding, AnInterruptedAnswerGoesOnAsIfNothingHadHappened) {
  const auto model = real_model("smollm2-135m-instruct-q4_1.gguf");
  const auto prompt = model->tokenizer().encode(kExamples, true, false).value();
  const Answer expected = reference(model, KvFormat::kF16, 512, prompt, at_most(40));
  const auto engine = make_engine(model, 1, KvFormat::kF16, 512);
  const SequenceId sequence = engine->open_sequence().value();
  std::atomic<bool> cancel{false};
  engine->on_forward = [&](int n) { cancel = n == 4; };  // while the fourth window is computed
  GenerateOptions options = at_most(40);
  options.cancel = &cancel;
  options.decode.fixed = true;
  auto first = generate(*engine, sequence, model->tokenizer(), prompt, options);
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(first->stop, StopReason::kCancelled);
  ASSERT_LT(first->tokens.size(), 40u);
  EXPECT_EQ(engine->n_past(sequence), static_cast<int>(prompt.size() + first->tokens.size()) - 1);
  std::vector<Token> longer = prompt;
  longer.insert(longer.end(), first->tokens.begin(), first->tokens.end());
  GenerateOptions rest = at_most(40 - static_cast<int>(first->tokens.size()));
  const auto second = generate(*engine, sequence, model->tokenizer(), longer, rest);
  ASSERT_TRUE(second.ok());
  EXPECT_EQ(second->reused_tokens, static_cast<int>(longer.size()) - 1);
  std::vector<Token> all = first->tokens;
  all.insert(all.end(), second->tokens.begin(), second->tokens.end());
  EXPECT_EQ(all, expected.tokens);
}

}  // namespace
}  // namespace frugal::llm
