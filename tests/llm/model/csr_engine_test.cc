// An engine with a csr cache: the same bits at any number of threads, chunk and width, and after tokens were
// taken back.
#include <gtest/gtest.h>

#include <memory>
#include <tuple>
#include <vector>

#include "base/file.h"
#include "base/rng.h"
#include "frugal/llm.h"
#include "llm/kv/dict_train.h"
#include "llm/kv/kv_cache.h"
#include "llm/model/forward.h"
#include "support/temp_file.h"
#include "support/tiny_gguf.h"

namespace frugal::llm {
namespace {

constexpr int kContext = 1100, kTokens = 420, kLong = 2700;

std::vector<Token> random_tokens(int n, uint64_t seed) {
  Rng rng(seed);
  std::vector<Token> tokens(static_cast<size_t>(n));
  for (Token& token : tokens) token = static_cast<Token>(rng.below(300));
  return tokens;
}

class CsrEngine : public testing::Test {
 protected:
  void SetUp() override {
    test::TinyModel tiny;
    tiny.head_dim = 32;
    tiny.n_ctx = kLong;
    tiny.architecture = "llama";
    const frugal::test::TempFile file(test::tiny_gguf(tiny));
    model_ = Model::load(file.path()).value();
    dictionary_ = std::make_shared<Dictionary>(train(1));
    source_ = make_csr_source(dictionary_, 2).value();
  }

  Dictionary train(int n_threads) const {
    const ModelInfo& info = model_->info();
    Dictionary empty;
    empty.model_hash = info.file_hash;
    empty.n_layers = info.n_layers;
    empty.n_kv_heads = info.n_kv_heads;
    empty.head_dim = info.head_dim;
    empty.n_rot = model_->impl().config.n_rot;
    empty.interleaved = model_->impl().config.rope_layout == RopeLayout::kInterleaved;
    for (int layer = 0; layer < info.n_layers; ++layer) {
      const auto turns = rope_turns(model_->impl().config, model_->impl().weights, layer);
      empty.turns.insert(empty.turns.end(), turns.begin(), turns.end());
    }
    DictionaryTrainer trainer(std::move(empty), kContext, kContext);
    EngineOptions options;
    options.n_threads = n_threads;
    options.n_ctx = kContext;
    options.kv_source = trainer.source();
    const auto engine = Engine::create(model_, options).value();
    trainer.begin_text(kContext);
    EXPECT_TRUE(engine->prefill(engine->open_sequence().value(), random_tokens(kContext, 5)).ok());
    auto dictionary = trainer.fit(n_threads, {});
    EXPECT_TRUE(dictionary.ok()) << (dictionary.ok() ? "" : dictionary.error().message);
    return std::move(dictionary).value();
  }

  std::unique_ptr<Engine> engine(int n_threads, int max_rows = 512, int n_ctx = kContext) const {
    EngineOptions options;
    options.n_threads = n_threads;
    options.n_ctx = n_ctx;
    options.max_rows = max_rows;
    options.kv_source = source_;
    return Engine::create(model_, options).value();
  }

  // Logits of the last 40 tokens: those before in chunks, these in windows of `width`.
  static std::vector<float> run(Engine& engine, SequenceId sequence, const std::vector<Token>& tokens,
                                int chunk, int width) {
    std::vector<float> kept;
    const int n = static_cast<int>(tokens.size()), n_first = n - 40;
    for (int done = engine.n_past(sequence); done < n;) {
      const bool keep = done >= n_first;
      const int step = keep ? std::min(width, n - done) : std::min(chunk, n_first - done);
      const BatchItem item{sequence,
                           {tokens.data() + done, static_cast<size_t>(step)},
                           keep ? LogitRows::kAll : LogitRows::kNone};
      EXPECT_TRUE(engine.forward({&item, 1}).ok());
      for (int row = 0; row < engine.n_logit_rows(); ++row) {
        const auto logits = engine.logits(row);
        kept.insert(kept.end(), logits.begin(), logits.end());
      }
      done += step;
    }
    return kept;
  }

  std::shared_ptr<const Model> model_;
  std::shared_ptr<const Dictionary> dictionary_;
  std::shared_ptr<const KvSource> source_;
};

TEST_F(CsrEngine, TheSameBitsHoweverTheWorkIsCut) {
  const auto tokens = random_tokens(kTokens, 1);
  const auto plain = engine(1);
  const auto expected = run(*plain, plain->open_sequence().value(), tokens, 1, 1);
  ASSERT_FALSE(expected.empty());
  for (const int threads : {1, 2, 3}) {
    for (const auto& [chunk, width] : {std::pair{512, 1}, {100, 7}, {37, 16}, {300, 40}}) {
      const auto other = engine(threads);
      EXPECT_EQ(run(*other, other->open_sequence().value(), tokens, chunk, width), expected)
          << threads << " threads, chunk " << chunk << ", width " << width;
    }
  }
}

// From kSpanFrom on rows see several chunks at once: windows around it, and behind it.
TEST_F(CsrEngine, TheSameBitsWhereRowsSeeMoreAtOnce) {
  for (const int n_tokens : {kSpanFrom + 20, kLong - 30}) {
    const auto tokens = random_tokens(n_tokens, 7);
    const auto plain = engine(1, 512, kLong);
    const auto expected = run(*plain, plain->open_sequence().value(), tokens, 64, 1);
    for (const auto& [threads, chunk, width] :
         {std::tuple{1, 512, 40}, {2, 100, 7}, {2, 512, 1}, {3, 300, 16}}) {
      const auto other = engine(threads, 512, kLong);
      EXPECT_EQ(run(*other, other->open_sequence().value(), tokens, chunk, width), expected)
          << n_tokens << " tokens, " << threads << " threads, chunk " << chunk << ", width " << width;
    }
  }
}

// The tiny model's keys and values are noise, which no basis makes small: what can be asked is that the error
// falls with the bits. Quantisers of a Gaussian leave 0.36, 0.12 and 0.01 of its variance at 1, 2 and 4 bits;
// through two layers of attention the logits lose no more than ten times the last.
TEST_F(CsrEngine, CodesAreUsedAndComeNearerTheDenseCacheWithEachBit) {
  const auto tokens = random_tokens(kTokens, 1);
  EngineOptions options;
  options.n_ctx = kContext;
  options.kv = KvFormat::kF32;
  const auto dense = Engine::create(model_, options).value();
  const auto expected = run(*dense, dense->open_sequence().value(), tokens, 64, 8);
  double size = 0, last = INFINITY;
  for (const float x : expected) size += x * x;
  for (const int bits : {1, 2, 4}) {
    source_ = make_csr_source(dictionary_, bits).value();
    const auto coded = engine(2);
    const auto got = run(*coded, coded->open_sequence().value(), tokens, 64, 8);
    double difference = 0;
    for (size_t i = 0; i < got.size(); ++i) difference += (got[i] - expected[i]) * (got[i] - expected[i]);
    SCOPED_TRACE(bits);
    EXPECT_GT(difference, 0);
    EXPECT_LT(difference / size, 0.7 * last);
    last = difference / size;
  }
  EXPECT_LT(last, 0.1);
}

// Drafts that are rejected, and a return to far before: as if they had never been there.
TEST_F(CsrEngine, TokensTakenBackLeaveNoTrace) {
  const auto tokens = random_tokens(kTokens, 1);
  const auto plain = engine(2);
  const auto expected = run(*plain, plain->open_sequence().value(), tokens, 64, 1);
  const auto drafting = engine(2, 128);
  const SequenceId sequence = drafting->open_sequence().value();
  const auto wrong = random_tokens(700, 9);
  for (const int at : {70, 129, 190, 255, 330, 380}) {
    const std::span<const Token> all(tokens);
    const auto past = static_cast<size_t>(drafting->n_past(sequence));
    ASSERT_TRUE(drafting->prefill(sequence, all.subspan(past, static_cast<size_t>(at) - past)).ok());
    for (const size_t n_drafts : {size_t{5}, size_t{16}, size_t{64}, size_t{300}}) {
      ASSERT_TRUE(drafting->prefill(sequence, std::span<const Token>(wrong).first(n_drafts)).ok());
      ASSERT_TRUE(drafting->truncate(sequence, at).ok());
    }
  }
  EXPECT_EQ(run(*drafting, sequence, tokens, 64, 5), expected);
}

TEST_F(CsrEngine, ASavedSequenceGoesOn) {
  const auto tokens = random_tokens(kTokens, 1);
  const auto first = engine(2);
  const SequenceId sequence = first->open_sequence().value();
  ASSERT_TRUE(first->prefill(sequence, std::span<const Token>(tokens).first(300)).ok());
  const frugal::test::TempFile file("", ".kv");
  ASSERT_TRUE(first->save_sequence(sequence, file.path()).ok());
  const auto expected = run(*first, sequence, tokens, 64, 4);
  const auto second = engine(1);
  const auto loaded = second->load_sequence(file.path());
  ASSERT_TRUE(loaded.ok()) << loaded.error().message;
  EXPECT_EQ(run(*second, *loaded, tokens, 64, 1), expected);

  EngineOptions other;  // another number of bits is another code
  other.n_ctx = kContext;
  other.kv_source = make_csr_source(std::make_shared<Dictionary>(train(1)), 3).value();
  const auto refusing = Engine::create(model_, other).value();
  EXPECT_FALSE(refusing->load_sequence(file.path()).ok());
}

TEST_F(CsrEngine, TrainingGivesTheSameAtAnyNumberOfThreads) {
  const Dictionary one = train(1), three = train(3);
  for (size_t i = 0; i < one.bases.size(); ++i) {
    EXPECT_EQ(one.bases[i].mean, three.bases[i].mean);
    EXPECT_EQ(one.bases[i].analysis, three.bases[i].analysis);
    EXPECT_EQ(one.bases[i].weight, three.bases[i].weight);
  }
}

}  // namespace
}  // namespace frugal::llm
