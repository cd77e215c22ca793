// Weights from measured errors: a stopped measurement goes on to the same bytes.
#include "cli/kv_sensitivity.h"

#include <gtest/gtest.h>

#include "base/file.h"
#include "base/rng.h"
#include "support/temp_file.h"
#include "support/tiny_dictionary.h"
#include "support/tiny_gguf.h"

namespace frugal::cli {
namespace {

class Sensitivity : public testing::Test {
 protected:
  void SetUp() override {
    llm::test::TinyModel tiny;
    tiny.architecture = "llama";
    tiny.head_dim = 32;
    tiny.n_ctx = 512;
    const frugal::test::TempFile file(llm::test::tiny_gguf(tiny));
    model_ = llm::Model::load(file.path()).value();
    const llm::ModelInfo& info = model_->info();
    dictionary_ = llm::test::tiny_dictionary(3, info.n_layers, info.n_kv_heads, info.head_dim);
    Rng rng(8);
    for (int i = 0; i < 2; ++i) {
      std::vector<llm::Token> window(400);
      for (llm::Token& token : window) token = static_cast<llm::Token>(rng.below(300));
      texts_.windows.push_back(window);
    }
    recall_.text = texts_.windows[0];
    for (int i = 0; i < 2; ++i) {
      RecallText::Question& question = recall_.questions.emplace_back();
      for (int t = 0; t < 9; ++t) question.tokens.push_back(static_cast<llm::Token>(rng.below(300)));
      question.answer = 6;
    }
    n_probes_ = 4 * info.n_layers;  // of both windows
  }

  // Weights after `n` probes at most; empty when stopped before the end. Counts them.
  std::vector<float> weigh(int n, const std::string& partial, int* done, int n_threads = 1) const {
    llm::Dictionary d = dictionary_;
    *done = 0;
    const Status status =
        weigh_by_sensitivity(model_, texts_, n_threads, partial, d, [&](double) { return ++*done < n; });
    EXPECT_TRUE(status.ok() || status.error().code == ErrorCode::kCancelled);
    std::vector<float> all;
    for (const llm::HeadBasis& basis : d.bases)
      all.insert(all.end(), basis.weight.begin(), basis.weight.end());
    return status.ok() ? all : std::vector<float>();
  }

  std::shared_ptr<const llm::Model> model_;
  llm::Dictionary dictionary_;
  SensitivityTexts texts_;
  RecallText recall_;  // of which texts_ has none at first
  int n_probes_ = 0;
};

TEST_F(Sensitivity, AStoppedMeasurementGoesOnToTheSameWeights) {
  int done = 0;
  const std::vector<float> whole = weigh(1000, "", &done);
  EXPECT_EQ(done, n_probes_);
  ASSERT_FALSE(whole.empty());
  bool changed = false;
  for (size_t i = 0; i < whole.size(); ++i) {
    EXPECT_GT(whole[i], 0);
    changed = changed || whole[i] != dictionary_.bases[0].weight[i % 32];
  }
  EXPECT_TRUE(changed);

  const frugal::test::TempFile partial("", ".partial");
  EXPECT_TRUE(weigh(3, partial.path(), &done).empty());
  EXPECT_TRUE(weigh(n_probes_ / 2, partial.path(), &done).empty());  // in the second window
  EXPECT_EQ(weigh(1000, partial.path(), &done, 2), whole);
  EXPECT_EQ(done, n_probes_ - 3 - n_probes_ / 2);
  EXPECT_FALSE(read_file(partial.path()).ok());  // gone
}

TEST_F(Sensitivity, WhatWasMeasuredOnSomethingElseOrIsDamagedIsMeasuredAgain) {
  int done = 0;
  const std::vector<float> whole = weigh(1000, "", &done);
  const frugal::test::TempFile partial("", ".partial");
  weigh(3, partial.path(), &done);
  std::string bytes = read_file(partial.path()).value();
  for (const size_t at : {size_t{0}, size_t{9}, size_t{17}, size_t{30}, bytes.size() - 1}) {
    std::string bad = bytes;
    bad[at] = static_cast<char>(bad[at] ^ 1);
    ASSERT_TRUE(write_file_atomically(partial.path(), bad).ok());
    EXPECT_EQ(weigh(1000, partial.path(), &done), whole) << at;
    EXPECT_EQ(done, n_probes_) << at;
  }
  ASSERT_TRUE(write_file_atomically(partial.path(), bytes).ok());
  texts_.windows[0][0] ^= 1;
  weigh(1000, partial.path(), &done);
  EXPECT_EQ(done, n_probes_);
}

// Answers only raise weights, each head's by a factor of its own.
TEST_F(Sensitivity, WhatIsLostOfAnswersRaisesWeightsOfHeads) {
  int done = 0;
  const std::vector<float> without = weigh(1000, "", &done);
  texts_.recalls = {recall_};
  const std::vector<float> with = weigh(1000, "", &done);
  const int n_bases = static_cast<int>(dictionary_.bases.size());
  EXPECT_EQ(done, n_probes_ + n_bases);
  ASSERT_EQ(with.size(), without.size());
  const size_t dim = with.size() / static_cast<size_t>(n_bases);
  std::vector<float> factors;
  for (size_t base = 0; base < static_cast<size_t>(n_bases); ++base) {
    factors.push_back(with[base * dim] / without[base * dim]);
    EXPECT_GT(factors.back(), 1.0f);
    EXPECT_LT(factors.back(), 100.0f);
    for (size_t i = 1; i < dim; ++i)
      EXPECT_NEAR(with[base * dim + i] / without[base * dim + i], factors.back(), 1e-5f * factors.back());
  }
  EXPECT_NE(factors[0], factors[1]);

  const frugal::test::TempFile partial("", ".partial");
  EXPECT_TRUE(weigh(n_probes_ + 3, partial.path(), &done).empty());
  EXPECT_EQ(weigh(1000, partial.path(), &done), with);
  EXPECT_EQ(done, n_bases - 3);
}

}  // namespace
}  // namespace frugal::cli
