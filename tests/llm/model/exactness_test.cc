// Exactness: the logits of a token are the same bits whatever runs beside it. The reference is the plainest
// run there is (one thread, one token at a time, alone); everything else has to reproduce it bit for bit.
#include <gtest/gtest.h>

#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "base/rng.h"
#include "frugal/llm.h"
#include "llm/kernel/kernel.h"
#include "support/temp_file.h"
#include "support/tiny_gguf.h"

namespace frugal::llm {
namespace {

// Sanitizers look for wrong accesses and races, which a part of the matrix shows as well as all of it does in
// an hour.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

using Logits = std::vector<float>;  // [n_tokens, n_vocab] or of the last rows

std::vector<Token> random_tokens(int n, int n_vocab, uint64_t seed) {
  Rng rng(seed);
  std::vector<Token> tokens(static_cast<size_t>(n));
  for (Token& token : tokens) token = static_cast<Token>(rng.below(static_cast<uint32_t>(n_vocab)));
  return tokens;
}

std::unique_ptr<Engine> make_engine(const std::shared_ptr<const Model>& model, int n_threads, KvFormat kv,
                                    int n_ctx) {
  EngineOptions options;
  options.n_threads = n_threads;
  options.n_ctx = n_ctx;
  options.kv = kv;
  auto engine = Engine::create(model, options);
  EXPECT_TRUE(engine.ok()) << (engine.ok() ? "" : engine.error().message);
  return engine.ok() ? std::move(engine).value() : nullptr;
}

void append(Logits& all, std::span<const float> row) { all.insert(all.end(), row.begin(), row.end()); }

// Logits of the last `n_keep` of `tokens`: those before in chunks of `chunk`, the kept ones in windows of
// `width`.
Logits run(Engine& engine, const std::vector<Token>& tokens, int chunk, int width, int n_keep) {
  Logits kept;
  auto opened = engine.open_sequence();
  EXPECT_TRUE(opened.ok());
  const SequenceId sequence = opened.value();
  const int n = static_cast<int>(tokens.size());
  for (int done = 0; done < n;) {
    const bool keep = done >= n - n_keep;
    const int step = keep ? std::min(width, n - done) : std::min(chunk, n - n_keep - done);
    const BatchItem item{sequence,
                         {tokens.data() + done, static_cast<size_t>(step)},
                         keep ? LogitRows::kAll : LogitRows::kNone};
    const Status status = engine.forward({&item, 1});
    EXPECT_TRUE(status.ok()) << (status.ok() ? "" : status.error().message);
    for (int row = 0; row < engine.n_logit_rows(); ++row) append(kept, engine.logits(row));
    done += step;
  }
  engine.close_sequence(sequence);
  return kept;
}

// The same tokens in a batch of several sequences that start later, stop earlier and take windows of other
// sizes.
Logits run_in_company(Engine& engine, const std::vector<Token>& tokens, int n_keep) {
  Logits kept;
  const int n = static_cast<int>(tokens.size()), n_vocab = engine.model().info().n_vocab;
  const SequenceId ours = engine.open_sequence().value();
  std::vector<SequenceId> others;
  Rng rng(99);
  for (int done = 0, step_idx = 0; done < n; ++step_idx) {
    if (step_idx % 3 == 0 && others.size() < 4) others.push_back(engine.open_sequence().value());
    if (step_idx % 5 == 4 && !others.empty()) {
      engine.close_sequence(others.front());
      others.erase(others.begin());
    }
    const bool keep = done >= n - n_keep;
    const int left = keep ? n - done : n - n_keep - done;
    const int step = std::min(left, 1 + static_cast<int>(rng.below(keep ? 5 : 60)));
    std::vector<std::vector<Token>> noise;
    std::vector<BatchItem> items;
    const size_t our_place = rng.below(static_cast<uint32_t>(others.size() + 1));
    for (const SequenceId other : others) {
      const int room = engine.options().n_ctx - engine.n_past(other);
      noise.push_back(
          random_tokens(std::min(room, 1 + static_cast<int>(rng.below(20))), n_vocab, rng.next()));
      if (!noise.back().empty()) items.push_back({other, noise.back(), LogitRows::kLast});
    }
    const BatchItem item{
        ours, {tokens.data() + done, static_cast<size_t>(step)}, keep ? LogitRows::kAll : LogitRows::kNone};
    const size_t place = std::min(our_place, items.size());
    items.insert(items.begin() + static_cast<std::ptrdiff_t>(place), item);
    const Status status = engine.forward(items);
    EXPECT_TRUE(status.ok()) << (status.ok() ? "" : status.error().message);
    if (keep) {
      for (int row = 0; row < step; ++row) append(kept, engine.logits(static_cast<int>(place) + row));
    }
    done += step;
  }
  engine.close_sequence(ours);
  for (const SequenceId other : others) engine.close_sequence(other);
  return kept;
}

int count_differences(const Logits& a, const Logits& b) {
  if (a.size() != b.size()) return -1;
  int n = 0;
  for (size_t i = 0; i < a.size(); ++i) n += std::memcmp(&a[i], &b[i], sizeof(float)) != 0;
  return n;
}

struct Matrix {
  std::vector<int> threads, chunks, widths;
};

// Runs the whole matrix against the reference; 0 differing bits anywhere.
void check_exactness(const std::shared_ptr<const Model>& model, KvFormat kv, int n_tokens, int n_keep,
                     const Matrix& matrix) {
  const std::vector<Token> tokens = random_tokens(n_tokens, model->info().n_vocab, 17);
  const int n_ctx = n_tokens + 8;
  const auto plain = make_engine(model, 1, kv, n_ctx);
  ASSERT_NE(plain, nullptr);
  const Logits reference = run(*plain, tokens, 1, 1, n_keep);
  ASSERT_EQ(reference.size(), static_cast<size_t>(n_keep) * static_cast<size_t>(model->info().n_vocab));
  bool finite = true, varied = false;
  for (const float logit : reference) {
    finite = finite && std::isfinite(logit);
    varied = varied || logit != reference[0];
  }
  ASSERT_TRUE(finite && varied);  // equal garbage would prove nothing
  for (const int threads : matrix.threads) {
    const auto engine = make_engine(model, threads, kv, n_ctx);
    ASSERT_NE(engine, nullptr);
    for (const int chunk : matrix.chunks) {
      EXPECT_EQ(count_differences(run(*engine, tokens, chunk, 1, n_keep), reference), 0)
          << threads << " threads, chunks of " << chunk;
    }
    for (const int width : matrix.widths) {
      EXPECT_EQ(count_differences(run(*engine, tokens, 64, width, n_keep), reference), 0)
          << threads << " threads, windows of " << width;
    }
    EXPECT_EQ(count_differences(run_in_company(*engine, tokens, n_keep), reference), 0)
        << threads << " threads, in company";
  }
}

TEST(Exactness, TinyModelsOfEveryArchitectureAndWeightType) {
  for (const std::string& architecture : test::tiny_architectures()) {
    for (const TensorType type : test::tiny_weight_types()) {
      SCOPED_TRACE(architecture + " " + std::string(tensor_type_name(type)));
      test::TinyModel tiny;
      tiny.architecture = architecture;
      tiny.weights = type;
      if (type == TensorType::kQ4_K || type == TensorType::kQ5_K || type == TensorType::kQ6_K) {
        tiny.n_embd = 256;
        tiny.n_ff = 256;
        tiny.head_dim = 64;
      }
      const frugal::test::TempFile file(test::tiny_gguf(tiny));
      auto model = Model::load(file.path());
      ASSERT_TRUE(model.ok()) << model.error().message;
      if (kSanitized) {
        check_exactness(*model, KvFormat::kF16, 70, 20, {{1, 2}, {64}, {3, 16}});
      } else {
        check_exactness(*model, KvFormat::kF16, 300, 20, {{1, 2, 3}, {7, 64, 300}, {2, 3, 16}});
      }
    }
  }
}

TEST(Exactness, EveryWidthAndCacheFormat) {
  test::TinyModel tiny;
  tiny.architecture = "gemma3";  // with windowed layers
  tiny.weights = TensorType::kQ4_1;
  tiny.head_dim = 32;
  tiny.sliding_window = 48;
  const frugal::test::TempFile file(test::tiny_gguf(tiny));
  auto model = Model::load(file.path());
  ASSERT_TRUE(model.ok()) << model.error().message;
  std::vector<int> widths;
  for (int width = 1; width <= 16; ++width) widths.push_back(width);
  for (const KvFormat kv : {KvFormat::kF32, KvFormat::kF16, KvFormat::kBF16, KvFormat::kQ8_0}) {
    SCOPED_TRACE(std::string(kv_format_name(kv)));
    check_exactness(*model, kv, 560, 32, {{1, 2, 4}, {1, 16, 17, 250, 512}, widths});
  }
}

TEST(Exactness, OddSizes) {
  test::TinyModel tiny;
  tiny.n_embd = 72;
  tiny.n_heads = 6;
  tiny.n_kv_heads = 1;
  tiny.head_dim = 20;
  tiny.n_ff = 100;
  tiny.n_vocab = 333;
  tiny.weights = TensorType::kF16;
  const frugal::test::TempFile file(test::tiny_gguf(tiny));
  auto model = Model::load(file.path());
  ASSERT_TRUE(model.ok()) << model.error().message;
  check_exactness(*model, KvFormat::kF32, 300, 20, {{1, 2, 3}, {5, 300}, {1, 4, 7}});
}

// The test of the test: one kernel that sums in another order when it has several columns, as a careless
// tiling would, has to be noticed.
TEST(Exactness, AReorderedSumIsNoticed) {
  static const Kernels best = kernels();
  Kernels reordered = best;
  reordered.panel_f32 = [](const FloatPanels<float>& panels, const float* x, size_t x_stride, size_t n_cols,
                           float* y, size_t y_stride, bool accumulate) {
    if (n_cols < 2) return best.panel_f32(panels, x, x_stride, n_cols, y, y_stride, accumulate);
    FloatPanels<float> first = panels, second = panels;
    first.k = panels.k / 2;
    second.k -= first.k;
    second.w += first.k * panels.k_stride;
    best.panel_f32(second, x + first.k, x_stride, n_cols, y, y_stride, accumulate);
    best.panel_f32(first, x, x_stride, n_cols, y, y_stride, true);
  };
  const frugal::test::TempFile file(test::tiny_gguf({}));
  auto model = Model::load(file.path());
  ASSERT_TRUE(model.ok()) << model.error().message;
  const std::vector<Token> tokens = random_tokens(40, (*model)->info().n_vocab, 17);
  const auto engine = make_engine(*model, 1, KvFormat::kF16, 64);
  const Logits reference = run(*engine, tokens, 1, 1, 10);
  EXPECT_EQ(count_differences(run(*engine, tokens, 8, 4, 10), reference), 0);
  use_kernels(&reordered);
  const int n_differences = count_differences(run(*engine, tokens, 8, 4, 10), reference);
  use_kernels(nullptr);
  EXPECT_GT(n_differences, 0);
}

void check_real(const char* name) {
  const char* folder = std::getenv("FRUGAL_MODELS");
  ASSERT_NE(folder, nullptr) << "FRUGAL_MODELS is set by ctest";
  auto model = Model::load(std::string(folder) + "/" + name);
  ASSERT_TRUE(model.ok()) << model.error().message;
  for (const KvFormat kv : {KvFormat::kF16, KvFormat::kQ8_0}) {
    if (kSanitized) {
      check_exactness(*model, kv, 40, 16, {{2}, {24}, {16}});
    } else {
      check_exactness(*model, kv, 290, 16, {{1, 2, 3}, {100}, {2, 5, 16}});
    }
  }
}

TEST(Exactness, SmolLM2) { check_real("smollm2-135m-instruct-q4_1.gguf"); }
TEST(Exactness, Gemma3) { check_real("gemma-3-270m-q4_k_m.gguf"); }

}  // namespace
}  // namespace frugal::llm
