// The same logits as llama.cpp, for tiny models of every architecture, weight type, and RoPE variant.
#include <gtest/gtest.h>
#include <llama.h>

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "base/rng.h"
#include "frugal/llm.h"
#include "support/temp_file.h"
#include "support/tiny_gguf.h"

namespace frugal::llm {
namespace {

constexpr int kTokens = 96;

std::vector<Token> random_tokens(int n_vocab) {
  Rng rng(5);
  std::vector<Token> tokens(kTokens);
  for (Token& token : tokens) token = static_cast<Token>(rng.below(static_cast<uint32_t>(n_vocab)));
  return tokens;
}

// Logits [kTokens, n_vocab] of llama.cpp, with attention in f32 (flash attention sums values in half
// precision).
std::vector<float> llama_logits(const std::string& path, const std::vector<Token>& tokens, int n_vocab,
                                float rope_scale = 1) {
  llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  llama_model_params model_params = llama_model_default_params();
  std::unique_ptr<llama_model, decltype(&llama_model_free)> model(
      llama_model_load_from_file(path.c_str(), model_params), llama_model_free);
  if (model == nullptr) return {};
  llama_context_params params = llama_context_default_params();
  params.n_ctx = 512;
  params.n_threads = params.n_threads_batch = 1;
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
  params.type_k = params.type_v = GGML_TYPE_F32;
  if (rope_scale != 1) {
    params.rope_scaling_type = LLAMA_ROPE_SCALING_TYPE_LINEAR;
    params.rope_freq_scale = 1 / rope_scale;
  }
  std::unique_ptr<llama_context, decltype(&llama_free)> context(llama_init_from_model(model.get(), params),
                                                                llama_free);
  llama_batch batch = llama_batch_init(kTokens, 0, 1);
  batch.n_tokens = kTokens;
  for (int i = 0; i < kTokens; ++i) {
    batch.token[i] = tokens[static_cast<size_t>(i)];
    batch.pos[i] = i;
    batch.n_seq_id[i] = 1;
    batch.seq_id[i][0] = 0;
    batch.logits[i] = 1;
  }
  std::vector<float> logits;
  if (llama_decode(context.get(), batch) == 0) {
    for (int i = 0; i < kTokens; ++i) {
      const float* row = llama_get_logits_ith(context.get(), i);
      logits.insert(logits.end(), row, row + n_vocab);
    }
  }
  llama_batch_free(batch);
  return logits;
}

struct Comparison {
  double kl = 0;        // mean over positions, reference llama.cpp
  double same_top = 0;  // share of positions with the same most likely token
};

Comparison compare(const float* ours, const float* theirs, int n_vocab) {
  Comparison total;
  for (int i = 0; i < kTokens; ++i, ours += n_vocab, theirs += n_vocab) {
    auto log_sum = [&](const float* x) {
      double sum = 0;
      for (int v = 0; v < n_vocab; ++v) sum += std::exp(static_cast<double>(x[v]));
      return std::log(sum);
    };
    const double our_sum = log_sum(ours), their_sum = log_sum(theirs);
    int our_top = 0, their_top = 0;
    for (int v = 0; v < n_vocab; ++v) {
      const double p = theirs[v] - their_sum, q = ours[v] - our_sum;
      total.kl += std::exp(p) * (p - q);
      if (ours[v] > ours[our_top]) our_top = v;
      if (theirs[v] > theirs[their_top]) their_top = v;
    }
    total.same_top += our_top == their_top;
  }
  return {total.kl / kTokens, total.same_top / kTokens};
}

// Logits [kTokens, n_vocab] of frugal.
std::vector<float> our_logits(const std::string& path, const std::vector<Token>& tokens, bool widen,
                              float rope_scale = 1) {
  ModelOptions model_options;
  model_options.rope_scale = rope_scale;
  model_options.widen = widen;
  auto model = Model::load(path, model_options);
  EXPECT_TRUE(model.ok());
  EngineOptions options;
  options.n_threads = 1;
  options.kv = KvFormat::kF32;
  options.max_logit_rows = kTokens;
  auto engine = Engine::create(*model, options);
  EXPECT_TRUE(engine.ok());
  const BatchItem item{(*engine)->open_sequence().value(), tokens, LogitRows::kAll};
  EXPECT_TRUE((*engine)->forward({&item, 1}).ok());
  std::vector<float> logits;
  for (int i = 0; i < kTokens; ++i)
    logits.insert(logits.end(), (*engine)->logits(i).begin(), (*engine)->logits(i).end());
  return logits;
}

void check(const test::TinyModel& tiny, double max_kl, double min_same) {
  const frugal::test::TempFile file(test::tiny_gguf(tiny));
  const std::vector<Token> tokens = random_tokens(tiny.n_vocab);
  const std::vector<float> ours = our_logits(file.path(), tokens, /*widen=*/false);
  const std::vector<float> theirs = llama_logits(file.path(), tokens, tiny.n_vocab);
  ASSERT_EQ(theirs.size(), ours.size());
  const Comparison comparison = compare(ours.data(), theirs.data(), tiny.n_vocab);
  EXPECT_LT(comparison.kl, max_kl);
  EXPECT_GE(comparison.same_top, min_same);
}

bool is_float(TensorType type) {
  return type == TensorType::kF32 || type == TensorType::kF16 || type == TensorType::kBF16;
}

// llama.cpp rounds activations to the type of the weights: 11 bits for F16, 8 for BF16, int8 blocks
// otherwise. What frugal keeps in f32 (F16, BF16) or rounds likewise, but after sums taken in another order,
// differs by that much.
TEST(LlamaLogits, EveryArchitectureAndWeightType) {
  for (const std::string& architecture : test::tiny_architectures()) {
    for (const TensorType type : test::tiny_weight_types()) {
      SCOPED_TRACE(architecture + " " + std::string(tensor_type_name(type)));
      test::TinyModel tiny;
      tiny.architecture = architecture;
      tiny.weights = type;
      if (type == TensorType::kQ4_K || type == TensorType::kQ5_K || type == TensorType::kQ6_K) {
        tiny.n_embd = tiny.n_ff = 256;
        tiny.head_dim = 64;
      }
      const double max_kl = type == TensorType::kF32 || type == TensorType::kF16 ? 1e-5
                            : is_float(type)                                     ? 1e-3
                                                                                 : 2e-3;
      check(tiny, max_kl, is_float(type) ? 0.97 : 0.9);
    }
  }
}

TEST(LlamaLogits, RopeVariants) {
  for (const char* scaling : {"", "linear", "yarn"}) {
    for (const char* architecture : {"llama", "qwen2"}) {
      SCOPED_TRACE(std::string(architecture) + " " + scaling);
      test::TinyModel tiny;
      tiny.architecture = architecture;
      tiny.rope_scaling = scaling;
      tiny.rope_factors = std::string(architecture) == "llama";
      check(tiny, 1e-5, 0.97);
    }
  }
}

TEST(LlamaLogits, StretchedContexts) {
  test::TinyModel tiny;
  const frugal::test::TempFile file(test::tiny_gguf(tiny));
  const std::vector<Token> tokens = random_tokens(tiny.n_vocab);
  const std::vector<float> plain = our_logits(file.path(), tokens, false);
  const std::vector<float> theirs = llama_logits(file.path(), tokens, tiny.n_vocab, 4);
  ASSERT_EQ(theirs.size(), plain.size());
  EXPECT_GT(compare(plain.data(), theirs.data(), tiny.n_vocab).kl, 1e-3);
  const std::vector<float> ours = our_logits(file.path(), tokens, false, 4);
  EXPECT_LT(compare(ours.data(), theirs.data(), tiny.n_vocab).kl, 1e-5);

  const auto load = [&](float scale) {
    ModelOptions options;
    options.rope_scale = scale;
    return Model::load(file.path(), options);
  };
  EXPECT_EQ((*load(4))->info().n_ctx_train, 4 * tiny.n_ctx);
  EXPECT_NE((*load(4))->info().file_hash, (*load(1))->info().file_hash);
  for (const float bad : {0.0f, 0.5f, 65.0f, std::nanf("")})
    EXPECT_EQ(load(bad).error().code, ErrorCode::kInvalidArgument);
}

TEST(LlamaLogits, WindowsSoftcapUntiedOutputAndOddSizes) {
  test::TinyModel gemma;
  gemma.architecture = "gemma3";
  gemma.sliding_window = 10;
  gemma.sliding_window_period = 3;
  gemma.n_layers = 4;
  check(gemma, 1e-5, 0.97);
  gemma.sliding_window = 0;
  check(gemma, 1e-5, 0.97);
  test::TinyModel odd;
  odd.tied_output = false;
  odd.n_embd = 72;
  odd.n_heads = 6;
  odd.n_kv_heads = 3;
  odd.head_dim = 12;
  odd.n_ff = 100;
  odd.n_vocab = 333;
  check(odd, 1e-5, 0.97);
}

// Weights as floats: nothing changes where they were floats already, since both are summed in one order; else
// what goes is the rounding of activations, which is as small as their distance from llama.cpp's, and no
// less.
TEST(LlamaLogits, WidenedWeights) {
  for (const TensorType type : test::tiny_weight_types()) {
    SCOPED_TRACE(tensor_type_name(type));
    test::TinyModel tiny;
    tiny.weights = type;
    tiny.n_embd = tiny.n_ff = 256;
    tiny.head_dim = 64;
    const frugal::test::TempFile file(test::tiny_gguf(tiny));
    const std::vector<Token> tokens = random_tokens(tiny.n_vocab);
    const std::vector<float> exact = our_logits(file.path(), tokens, /*widen=*/true);
    const std::vector<float> ours = our_logits(file.path(), tokens, /*widen=*/false);
    EXPECT_EQ(ours == exact, is_float(type));
    const std::vector<float> theirs = llama_logits(file.path(), tokens, tiny.n_vocab);
    ASSERT_EQ(theirs.size(), ours.size());
    EXPECT_LE(compare(ours.data(), exact.data(), tiny.n_vocab).kl,
              1.5 * compare(theirs.data(), exact.data(), tiny.n_vocab).kl);
  }
}

}  // namespace
}  // namespace frugal::llm
