// Rivals with trained books, from a trainer that has tapped random tokens.
#include "cli/kv_books.h"

#include <gtest/gtest.h>

#include "base/rng.h"

namespace frugal::cli {
namespace {

using llm::kKvBlock;

constexpr int kDim = 32, kText = 1100;

std::vector<float> token_at(int position) {
  Rng rng(static_cast<uint64_t>(position) + 1);
  std::vector<float> x(kDim);
  for (float& channel : x) channel = static_cast<float>(2 * rng.uniform() - 1);
  return x;
}

// What a rival makes of the values of block 2, [kKvBlock, kDim].
std::vector<float> decoded(const KvRival& rival) {
  const auto cache = rival.source->make({1, 1, kDim, kText}).value();
  for (int t = 0; t < 6 * kKvBlock; ++t) cache->store(0, t, token_at(t).data(), token_at(t).data());
  const std::vector<float> q(kDim, 0.0f);
  std::vector<std::byte> scratch(cache->query_scratch_bytes(1));
  const llm::KvQueries queries{1, q.data(), scratch.data(), 6 * kKvBlock - 1, 1};
  cache->prepare(0, 0, queries);
  std::vector<float> out, spare(kKvBlock);
  for (int t = 0; t < kKvBlock; ++t) {
    std::vector<float> weights(kKvBlock, 0.0f), sums(kDim, 0.0f);
    weights[static_cast<size_t>(t)] = 1;
    cache->add_values(0, 0, 2, kKvBlock, queries, {weights.data(), kKvBlock}, sums.data(), spare.data());
    out.insert(out.end(), sums.begin(), sums.end());
  }
  return out;
}

// Codecs outlive the dictionary that the caller held, whose metric they use, and lose what their bits say:
// less than half of the energy at 2 bits, something at least.
TEST(KvBooks, KeepWhatTheyNeed) {
  llm::Dictionary empty;
  empty.n_layers = empty.n_kv_heads = 1;
  empty.head_dim = empty.n_rot = kDim;
  empty.turns.assign(kDim / 2, 0.01f);
  llm::DictionaryTrainer trainer(empty, kText, kText);
  const auto cache = trainer.source()->make({1, 1, kDim, kText}).value();
  trainer.begin_text(kText);
  for (int t = 0; t < kText; ++t) cache->store(0, t, token_at(t).data(), token_at(t).data());
  auto dictionary = std::make_shared<const llm::Dictionary>(trainer.fit(1, {}).value());
  const std::vector<KvRival> rivals =
      book_rivals(dictionary, trainer, 1, {"residual VQ 2-bit", "product VQ 2-bit"}, kText / 2, [](double) {
        return true;
      }).value();
  ASSERT_EQ(rivals.size(), 2U);
  std::vector<std::vector<float>> before;
  for (const KvRival& rival : rivals) before.push_back(decoded(rival));
  dictionary.reset();
  for (size_t i = 0; i < rivals.size(); ++i) {
    const std::vector<float> after = decoded(rivals[i]);
    EXPECT_EQ(after, before[i]) << rivals[i].name;
    double error = 0, energy = 0;
    for (int t = 0; t < kKvBlock; ++t) {
      const std::vector<float> x = token_at(2 * kKvBlock + t);
      for (size_t d = 0; d < kDim; ++d) {
        const double lost = static_cast<double>(after[static_cast<size_t>(t) * kDim + d] - x[d]);
        error += lost * lost;
        energy += static_cast<double>(x[d]) * static_cast<double>(x[d]);
      }
    }
    EXPECT_GT(error, 0.0) << rivals[i].name;
    EXPECT_LT(error, 0.5 * energy) << rivals[i].name;
  }
}

}  // namespace
}  // namespace frugal::cli
