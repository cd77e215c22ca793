// The tiny models are only worth something when they are real: llama.cpp loads each, runs it, and its logits
// have life.
#include "support/tiny_gguf.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <set>

#include <llama.h>
#include <unistd.h>

#include "llm/model/gguf.h"

namespace frugal::llm {
namespace {

using test::tiny_architectures;
using test::tiny_weight_types;
using test::TinyModel;

struct Freed {
  void operator()(llama_model* model) const { llama_model_free(model); }
  void operator()(llama_context* context) const { llama_free(context); }
};

// Logits [n_tokens][n_vocab] by llama.cpp.
std::vector<std::vector<float>> llama_logits(const std::string& path, const std::string& text) {
  llama_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
  llama_model_params model_params = llama_model_default_params();
  model_params.n_gpu_layers = 0;
  const std::unique_ptr<llama_model, Freed> model(llama_model_load_from_file(path.c_str(), model_params));
  if (!model) return {};
  const llama_vocab* vocab = llama_model_get_vocab(model.get());
  std::vector<llama_token> tokens(text.size() + 8);
  const int n_tokens = llama_tokenize(vocab, text.data(), static_cast<int>(text.size()), tokens.data(),
                                      static_cast<int>(tokens.size()), true, true);
  if (n_tokens <= 0) return {};
  llama_context_params context_params = llama_context_default_params();
  context_params.n_ctx = 256;
  context_params.n_threads = context_params.n_threads_batch = 1;
  context_params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
  const std::unique_ptr<llama_context, Freed> context(llama_init_from_model(model.get(), context_params));
  if (!context) return {};
  llama_batch batch = llama_batch_init(n_tokens, 0, 1);
  for (int i = 0; i < n_tokens; ++i) {
    batch.token[i] = tokens[i];
    batch.pos[i] = i;
    batch.n_seq_id[i] = 1;
    batch.seq_id[i][0] = 0;
    batch.logits[i] = 1;
  }
  batch.n_tokens = n_tokens;
  std::vector<std::vector<float>> rows;
  if (llama_decode(context.get(), batch) == 0) {
    for (int i = 0; i < n_tokens; ++i) {
      const float* logits = llama_get_logits_ith(context.get(), i);
      rows.emplace_back(logits, logits + llama_vocab_n_tokens(vocab));
    }
  }
  llama_batch_free(batch);
  return rows;
}

// Each token of the text meets another next token at the top, and the logits are neither flat nor one spike.
void expect_lively(const std::vector<std::vector<float>>& rows, int n_vocab) {
  ASSERT_GE(rows.size(), 8u);
  std::set<size_t> best;
  for (const auto& row : rows) {
    ASSERT_EQ(row.size(), static_cast<size_t>(n_vocab));
    double sum = 0, squares = 0;
    for (const float logit : row) {
      ASSERT_TRUE(std::isfinite(logit));
      sum += logit;
      squares += static_cast<double>(logit) * logit;
    }
    const double mean = sum / n_vocab, deviation = std::sqrt(squares / n_vocab - mean * mean);
    EXPECT_GT(deviation, 0.8);
    EXPECT_LT(deviation, 8.0);
    best.insert(static_cast<size_t>(std::max_element(row.begin(), row.end()) - row.begin()));
  }
  EXPECT_GE(best.size(), rows.size() / 3);
}

class EveryTinyModel : public testing::TestWithParam<std::string> {
 protected:
  // Written for llama.cpp, and read back by our own reader.
  std::vector<std::vector<float>> run(const TinyModel& model) {
    const std::string path =
        testing::TempDir() + "tiny_" + model.architecture + "_" + std::to_string(::getpid()) + ".gguf";
    const Status written = write_tiny_gguf(model, path);
    EXPECT_TRUE(written.ok());
    const auto read = GgufFile::open(path);
    EXPECT_TRUE(read.ok()) << read.error().message;
    auto rows = llama_logits(path, "The energy of the water, and what they would know about 42 \xC3\xA9?");
    std::remove(path.c_str());
    return rows;
  }
};

TEST_P(EveryTinyModel, RunsInLlamaCppWithEveryWeightType) {
  for (const TensorType type : tiny_weight_types()) {
    SCOPED_TRACE(tensor_type_label(type));
    TinyModel model;
    model.architecture = GetParam();
    model.weights = type;
    model.n_embd = 256;  // the K types come in blocks of 256
    model.n_heads = 8;
    model.head_dim = 32;
    model.n_ff = 512;
    expect_lively(run(model), model.n_vocab);
  }
}

TEST_P(EveryTinyModel, RunsInOddSizes) {
  TinyModel model;
  model.architecture = GetParam();
  model.weights = TensorType::kQ4_0;
  model.n_layers = 3;
  // llama.cpp wants n_embd = n_heads * head_dim of qwen2; the others may differ.
  const bool square = model.architecture == "qwen2";
  model.n_embd = square ? 72 : 96;
  model.n_heads = 3;
  model.n_kv_heads = 1;
  model.head_dim = 24;
  model.n_ff = 150;
  model.n_vocab = 389;
  model.tied_output = false;
  expect_lively(run(model), model.n_vocab);
  model.weights = TensorType::kBF16;
  model.n_embd = square ? 54 : 61;
  model.head_dim = square ? 18 : 24;
  expect_lively(run(model), model.n_vocab);
}

TEST_P(EveryTinyModel, RunsWithScaledRope) {
  for (const char* scaling : {"linear", "yarn"}) {
    SCOPED_TRACE(scaling);
    TinyModel model;
    model.architecture = GetParam();
    model.rope_scaling = scaling;
    expect_lively(run(model), model.n_vocab);
  }
}

TEST_P(EveryTinyModel, IsTheSameForTheSameSeedOnly) {
  TinyModel model;
  model.architecture = GetParam();
  EXPECT_EQ(tiny_gguf(model), tiny_gguf(model));
  TinyModel other = model;
  other.seed = 2;
  EXPECT_NE(tiny_gguf(model), tiny_gguf(other));
}

INSTANTIATE_TEST_SUITE_P(Architectures, EveryTinyModel, testing::ValuesIn(tiny_architectures()),
                         [](const auto& architecture) { return architecture.param; });

TEST(TinyModel, GemmaWindowsAndCapsAndLlamaRopeFactorsChangeTheLogits) {
  const auto logits = [](const TinyModel& model) {
    const std::string path = testing::TempDir() + "tiny_" + std::to_string(::getpid()) + ".gguf";
    EXPECT_TRUE(write_tiny_gguf(model, path).ok());
    const auto rows =
        llama_logits(path, "they would have some other good question about language and memory there");
    std::remove(path.c_str());
    return rows;
  };
  TinyModel gemma;
  gemma.architecture = "gemma3";
  gemma.sliding_window = 4;
  const auto windowed = logits(gemma);
  ASSERT_GE(windowed.size(), 8u);
  gemma.sliding_window = 0;
  EXPECT_NE(windowed.back(), logits(gemma).back());
  gemma.sliding_window = 4;
  gemma.rope_freq_base_swa = 500;
  EXPECT_NE(windowed.back(), logits(gemma).back());
  gemma.rope_freq_base_swa = 1000;
  gemma.final_logit_softcap = 3;
  const auto capped = logits(gemma);
  for (const float logit : capped.back()) EXPECT_LE(std::fabs(logit), 3);
  TinyModel llama;
  const auto plain = logits(llama);
  llama.rope_factors = true;
  EXPECT_NE(plain.back(), logits(llama).back());
}

}  // namespace
}  // namespace frugal::llm
