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
      windows_.push_back(window);
    }
    n_probes_ = 4 * info.n_layers;  // of both windows
  }

  // Weights after `n` probes at most; empty when stopped before the end. Counts them.
  std::vector<float> weigh(int n, const std::string& partial, int* done, int n_threads = 1) const {
    llm::Dictionary d = dictionary_;
    *done = 0;
    const Status status =
        weigh_by_sensitivity(model_, windows_, n_threads, partial, d, [&](double) { return ++*done < n; });
    EXPECT_TRUE(status.ok() || status.error().code == ErrorCode::kCancelled);
    std::vector<float> all;
    for (const llm::HeadBasis& basis : d.bases)
      all.insert(all.end(), basis.weight.begin(), basis.weight.end());
    return status.ok() ? all : std::vector<float>();
  }

  std::shared_ptr<const llm::Model> model_;
  llm::Dictionary dictionary_;
  std::vector<std::vector<llm::Token>> windows_;
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
  windows_[0][0] ^= 1;
  weigh(1000, partial.path(), &done);
  EXPECT_EQ(done, n_probes_);
}

}  // namespace
}  // namespace frugal::cli
