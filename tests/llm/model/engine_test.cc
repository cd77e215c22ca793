// The engine's contract: limits, errors that change nothing, truncation, cache files, and no allocation in a
// step.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <new>
#include <string>
#include <vector>

#include "base/file.h"
#include "frugal/llm.h"
#include "llm/model/gguf.h"
#include "support/temp_file.h"
#include "support/tiny_gguf.h"

namespace {
std::atomic<long> n_allocations{0};
}  // namespace

// Counts every allocation of the process, so that a test can show that a step makes none.
[[gnu::noinline]] void* operator new(std::size_t size) {
  ++n_allocations;
  if (void* memory = std::malloc(size)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace frugal::llm {
namespace {

class EngineTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto model = Model::load(file_.path());
    ASSERT_TRUE(model.ok()) << model.error().message;
    model_ = *model;
  }
  std::unique_ptr<Engine> engine(const EngineOptions& options = {}) {
    auto made = Engine::create(model_, options);
    EXPECT_TRUE(made.ok()) << (made.ok() ? "" : made.error().message);
    return std::move(made).value();
  }
  static std::vector<Token> tokens(int n) {
    std::vector<Token> all;
    for (int i = 0; i < n; ++i) all.push_back((i * 37 + 11) % 300);
    return all;
  }
  static std::vector<float> step(Engine& e, SequenceId sequence, const std::vector<Token>& more) {
    const BatchItem item{sequence, more, LogitRows::kLast};
    EXPECT_TRUE(e.forward({&item, 1}).ok());
    return {e.logits(0).begin(), e.logits(0).end()};
  }

  frugal::test::TempFile file_{test::tiny_gguf({})};
  std::shared_ptr<const Model> model_;
};

TEST_F(EngineTest, DecodeStepAllocatesNothing) {
  for (const int threads : {1, 2}) {
    EngineOptions options;
    options.n_threads = threads;
    const auto e = engine(options);
    const SequenceId sequence = e->open_sequence().value();
    const std::vector<Token> prompt = tokens(100), one = {5}, window = tokens(9);
    ASSERT_TRUE(e->prefill(sequence, prompt).ok());
    const BatchItem single{sequence, one, LogitRows::kLast}, several{sequence, window, LogitRows::kAll};
    const long before = n_allocations.load();
    for (int i = 0; i < 20; ++i) ASSERT_TRUE(e->forward({&single, 1}).ok());
    ASSERT_TRUE(e->forward({&several, 1}).ok());
    ASSERT_TRUE(e->truncate(sequence, 110).ok());
    EXPECT_EQ(n_allocations.load() - before, 0);
  }
}

TEST_F(EngineTest, BadOptionsAreRefusedByName) {
  for (const int threads : {-1, 10000}) {
    EngineOptions options;
    options.n_threads = threads;
    auto made = Engine::create(model_, options);
    ASSERT_FALSE(made.ok());
    EXPECT_EQ(made.error().code, ErrorCode::kInvalidArgument);
    EXPECT_NE(made.error().message.find("threads"), std::string::npos);
  }
  EngineOptions options;
  options.kv = KvFormat::kQ8_0;  // heads of 16 channels
  const auto e = engine(options);
  auto sequence = e->open_sequence();
  ASSERT_FALSE(sequence.ok());
  EXPECT_EQ(sequence.error().code, ErrorCode::kUnsupported);
}

TEST_F(EngineTest, ErrorsChangeNothing) {
  EngineOptions options;
  options.n_ctx = 32;
  options.max_rows = 16;
  options.max_sequences = 2;
  options.max_logit_rows = 8;
  const auto e = engine(options);
  const SequenceId a = e->open_sequence().value(), b = e->open_sequence().value();
  EXPECT_EQ(e->open_sequence().error().code, ErrorCode::kOutOfRange);
  const std::vector<Token> ten = tokens(10), wrong = {1, 2, 100000}, negative = {-1}, none, many = tokens(17),
                           long_prompt = tokens(40);
  ASSERT_TRUE(e->prefill(a, ten).ok());
  auto code = [&](std::vector<BatchItem> items) {
    const Status status = e->forward(items);
    return status.ok() ? -1 : static_cast<int>(status.error().code);
  };
  const int invalid = static_cast<int>(ErrorCode::kInvalidArgument),
            range = static_cast<int>(ErrorCode::kOutOfRange);
  EXPECT_EQ(code({}), invalid);
  EXPECT_EQ(code({{b, none, LogitRows::kLast}}), invalid);
  EXPECT_EQ(code({{b, wrong, LogitRows::kLast}}), invalid);
  EXPECT_EQ(code({{b, negative, LogitRows::kLast}}), invalid);
  EXPECT_EQ(code({{77, ten, LogitRows::kLast}}), invalid);
  EXPECT_EQ(code({{b, ten, LogitRows::kLast}, {b, ten, LogitRows::kLast}}), invalid);
  EXPECT_EQ(code({{b, many, LogitRows::kLast}}), range);
  EXPECT_EQ(code({{b, ten, LogitRows::kAll}}), range);
  EXPECT_EQ(e->prefill(b, long_prompt).error().code, ErrorCode::kOutOfRange);
  EXPECT_EQ(e->n_past(a), 10);
  EXPECT_EQ(e->n_past(b), 0);
  EXPECT_EQ(e->truncate(a, 11).error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(e->truncate(a, -1).error().code, ErrorCode::kInvalidArgument);
  ASSERT_TRUE(e->prefill(a, tokens(22)).ok());  // exactly full
  EXPECT_EQ(code({{a, negative.empty() ? ten : std::span<const Token>(ten).first(1), LogitRows::kLast}}),
            range);
}

// Tensors of the mapped file may lie at any multiple of 8 bytes, between the rows that vectors are loaded
// from.
TEST_F(EngineTest, WeightsAtOddPlacesOfTheFileGiveTheSameBits) {
  for (const TensorType type : test::tiny_weight_types()) {
    test::TinyModel tiny;
    tiny.weights = type;
    tiny.n_embd = 96;
    tiny.n_vocab = 333;
    std::vector<float> logits[2];
    for (const uint32_t alignment : {32u, 8u}) {
      tiny.alignment = alignment;
      const std::string bytes = test::tiny_gguf(tiny);
      const auto parsed = GgufFile::parse(std::as_bytes(std::span(bytes)));
      ASSERT_TRUE(parsed.ok()) << parsed.error().message;
      bool odd = false;
      for (const GgufTensor& tensor : parsed->tensors()) odd = odd || tensor.offset % 32 != 0;
      EXPECT_EQ(odd, alignment == 8);
      const frugal::test::TempFile file(bytes);
      auto model = Model::load(file.path());
      ASSERT_TRUE(model.ok()) << model.error().message;
      const auto e = Engine::create(*model, {}).value();
      logits[alignment == 8] = step(*e, e->open_sequence().value(), tokens(20));
    }
    ASSERT_EQ(logits[0].size(), logits[1].size());
    EXPECT_EQ(std::memcmp(logits[0].data(), logits[1].data(), logits[0].size() * sizeof(float)), 0);
  }
}

TEST_F(EngineTest, TruncationForgets) {
  const auto e = engine();
  const SequenceId sequence = e->open_sequence().value();
  const std::vector<float> first = step(*e, sequence, tokens(40));
  step(*e, sequence, {7, 8, 9, 10});
  ASSERT_TRUE(e->truncate(sequence, 20).ok());
  const std::vector<Token> all = tokens(40);
  const std::vector<float> again = step(*e, sequence, {all.begin() + 20, all.end()});
  EXPECT_EQ(std::memcmp(first.data(), again.data(), first.size() * sizeof(float)), 0);
}

TEST_F(EngineTest, CancelledPrefillKeepsWhatWasDone) {
  EngineOptions options;
  options.max_rows = 16;
  const auto e = engine(options);
  const SequenceId sequence = e->open_sequence().value();
  const Status status = e->prefill(sequence, tokens(100), [](int done, int) { return done < 32; });
  EXPECT_EQ(status.error().code, ErrorCode::kCancelled);
  EXPECT_EQ(e->n_past(sequence), 32);
}

TEST_F(EngineTest, CacheFileBringsTheSequenceBack) {
  for (const KvFormat kv : {KvFormat::kF32, KvFormat::kF16, KvFormat::kBF16}) {
    EngineOptions options;
    options.kv = kv;
    const auto e = engine(options);
    const SequenceId sequence = e->open_sequence().value();
    ASSERT_TRUE(e->prefill(sequence, tokens(77)).ok());
    const frugal::test::TempFile saved("", ".cache");
    ASSERT_TRUE(e->save_sequence(sequence, saved.path()).ok());
    const std::vector<float> expected = step(*e, sequence, {5});

    const auto other = engine(options);
    auto loaded = other->load_sequence(saved.path());
    ASSERT_TRUE(loaded.ok()) << loaded.error().message;
    EXPECT_EQ(other->n_past(*loaded), 77);
    const std::vector<float> got = step(*other, *loaded, {5});
    EXPECT_EQ(std::memcmp(expected.data(), got.data(), got.size() * sizeof(float)), 0);
  }
}

TEST_F(EngineTest, DamagedCacheFilesAreRefused) {
  const auto e = engine();
  const SequenceId sequence = e->open_sequence().value();
  ASSERT_TRUE(e->prefill(sequence, tokens(20)).ok());
  const frugal::test::TempFile saved("", ".cache");
  ASSERT_TRUE(e->save_sequence(sequence, saved.path()).ok());
  const std::string whole = read_file(saved.path()).value();
  auto load = [&](const std::string& bytes) {
    EXPECT_TRUE(write_file_atomically(saved.path(), bytes).ok());
    const int open_before = e->n_past(1);
    auto loaded = e->load_sequence(saved.path());
    EXPECT_FALSE(loaded.ok());
    EXPECT_EQ(e->n_past(1), open_before);  // no half-loaded sequence stays open
    return loaded.error();
  };
  for (size_t size = 0; size < whole.size(); size += whole.size() / 50 + 1)
    EXPECT_EQ(load(whole.substr(0, size)).code, ErrorCode::kCorrupt) << size;
  EXPECT_EQ(load(whole + "x").code, ErrorCode::kCorrupt);
  for (size_t at = 64; at < whole.size(); at += whole.size() / 40 + 1) {
    std::string bad = whole;
    bad[at] = static_cast<char>(bad[at] ^ 4);
    EXPECT_EQ(load(bad).code, ErrorCode::kCorrupt) << at;
  }
  std::string bad = whole;
  bad[8] = 9;  // version
  EXPECT_EQ(load(bad).code, ErrorCode::kUnsupported);
  bad = whole;
  bad[16] = static_cast<char>(bad[16] ^ 1);  // model hash
  EXPECT_NE(load(bad).message.find("another model"), std::string::npos);
  bad = whole;
  bad[48] = 1;  // a dictionary, in a file of a cache that has none
  EXPECT_NE(load(bad).message.find("another dictionary"), std::string::npos);

  EngineOptions f32;
  f32.kv = KvFormat::kF32;
  ASSERT_TRUE(write_file_atomically(saved.path(), whole).ok());
  const auto other = engine(f32);
  EXPECT_NE(other->load_sequence(saved.path()).error().message.find("f16"), std::string::npos);
  EngineOptions small;
  small.n_ctx = 10;
  EXPECT_EQ(engine(small)->load_sequence(saved.path()).error().code, ErrorCode::kOutOfRange);
}

TEST_F(EngineTest, UsageCountsByFormula) {
  const auto e = engine();
  const SequenceId sequence = e->open_sequence().value();
  ASSERT_TRUE(e->prefill(sequence, tokens(10)).ok());
  // Two layers: q and o 64x64, k and v 32x64, gate, up and down 96x64; output 512x64 for one row; scores and
  // values 4 * 64 FLOPs for each visible position, 55 of them.
  const double macs = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 96 * 64);
  EXPECT_DOUBLE_EQ(e->usage().flops, 2 * (10 * macs + 512 * 64) + 2 * 4 * 64 * 55);
  // Without logits nothing of the last layer but q, k and v is computed.
  const SequenceId second = e->open_sequence().value();
  const std::vector<Token> one = tokens(1);
  const BatchItem item{second, one, LogitRows::kNone};
  const double before = e->usage().flops;
  ASSERT_TRUE(e->forward({&item, 1}).ok());
  EXPECT_DOUBLE_EQ(e->usage().flops - before, 2 * (macs / 2 + 64 * 64 + 2 * 32 * 64) + 4 * 64);
  EXPECT_GT(e->usage().wall_seconds, 0);
  EXPECT_EQ(e->kv_bytes(sequence), 10u * 2 * 2 * 32 * 2);  // tokens x layers x (k, v) x channels x 2 bytes
}

// A profile changes no bit; its seconds are within those of the forwards; its bytes are those of the weights
// that a step reads and of the K/V.
TEST_F(EngineTest, StepTimesAddUpToTheForward) {
  EngineOptions options;
  options.profile = true;
  const auto e = engine(options), plain = engine();
  const SequenceId sequence = e->open_sequence().value(), other = plain->open_sequence().value();
  EXPECT_EQ(step(*e, sequence, tokens(40)), step(*plain, other, tokens(40)));
  double seconds = 0, bytes = 0;
  for (int i = 0; i < kForwardSteps; ++i) {
    EXPECT_GE(e->step_times().seconds[i], 0);
    EXPECT_EQ(plain->step_times().seconds[i], 0) << "an engine that was not asked keeps no time";
    seconds += e->step_times().seconds[i];
    bytes += e->step_times().bytes[i];
    EXPECT_STRNE(forward_step_name(static_cast<ForwardStep>(i)), "");
  }
  EXPECT_GT(seconds, 0);
  EXPECT_LE(seconds, e->usage().wall_seconds);
  EXPECT_LE(bytes, e->usage().bytes_moved);  // which counts an embedding that no product reads
  EXPECT_GT(bytes, e->usage().bytes_moved / 2);
}

}  // namespace
}  // namespace frugal::llm
