#include "llm/kv/dictionary.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "base/file.h"
#include "base/rng.h"
#include "llm/kv/dict_train.h"
#include "support/temp_file.h"
#include "support/tiny_dictionary.h"

namespace frugal::llm {
namespace {

std::string file_of(const Dictionary& dictionary) {
  const frugal::test::TempFile file("", ".dict");
  EXPECT_TRUE(write_dictionary(dictionary, file.path()).ok());
  return read_file(file.path()).value();
}
Result<Dictionary> parse(const std::string& bytes) {
  return parse_dictionary(std::as_bytes(std::span(bytes)), "d");
}

// Of one layer and head, nothing trained; all pairs turn alike.
Dictionary one_head(int dim, float turn) {
  Dictionary empty;
  empty.n_layers = empty.n_kv_heads = 1;
  empty.head_dim = empty.n_rot = dim;
  empty.turns.assign(static_cast<size_t>(dim) / 2, turn);
  return empty;
}

TEST(Dictionary, ComesBackAsItWasWritten) {
  const Dictionary d = test::tiny_dictionary(4, 2, 2, 32);
  const auto back = parse(file_of(d));
  ASSERT_TRUE(back.ok()) << back.error().message;
  EXPECT_EQ(back->turns, d.turns);
  EXPECT_EQ(back->interleaved, d.interleaved);
  for (size_t i = 0; i < d.bases.size(); ++i) {
    EXPECT_EQ(back->bases[i].mean, d.bases[i].mean);
    EXPECT_EQ(back->bases[i].analysis, d.bases[i].analysis);
    EXPECT_EQ(back->bases[i].synthesis, d.bases[i].synthesis);
    EXPECT_EQ(back->bases[i].spread, d.bases[i].spread);
    EXPECT_EQ(back->bases[i].book, d.bases[i].book);
    EXPECT_EQ(back->bases[i].book_scale, d.bases[i].book_scale);
  }
  EXPECT_EQ(make_csr_source(std::make_shared<Dictionary>(d), 2).value()->content_hash(),
            make_csr_source(std::make_shared<Dictionary>(*back), 2).value()->content_hash());
}

TEST(Dictionary, EveryDamageIsSeen) {
  const std::string good = file_of(test::tiny_dictionary(4, 1, 1, 32));
  for (size_t at = 0; at < good.size(); at += at < 64 ? 1 : 211) {
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 0x10);
    EXPECT_FALSE(parse(bad).ok()) << at;
  }
  for (const size_t n : {size_t{0}, size_t{20}, size_t{56}, good.size() - 1})
    EXPECT_FALSE(parse(good.substr(0, n)).ok());
  EXPECT_FALSE(parse(good + "x").ok());
  std::string newer = good;
  newer[8] = static_cast<char>(kDictionaryVersion + 1);
  EXPECT_EQ(parse(newer).error().code, ErrorCode::kUnsupported);
  newer[8] = 3;  // from before there were books
  EXPECT_EQ(parse(newer).error().code, ErrorCode::kUnsupported);
  EXPECT_NE(parse(newer).error().message.find("version 3"), std::string::npos);
}

TEST(Dictionary, OfAnotherModelIsRefused) {
  const Dictionary d = test::tiny_dictionary(4, 1, 1, 32);
  ModelInfo info;
  info.file_hash = d.model_hash;
  info.n_layers = 1;
  info.n_kv_heads = 1;
  info.head_dim = 32;
  EXPECT_TRUE(check_model(d, info, "d").ok());
  info.file_hash ^= 1;
  EXPECT_EQ(check_model(d, info, "d").error().code, ErrorCode::kInvalidArgument);
}

TEST(Dictionary, BitsGoWhereTheyBringMost) {
  const Dictionary d = test::tiny_dictionary(4, 1, 1, 32);
  for (const double bits : {0.5, 1.0, 2.6, 4.0}) {
    const auto [allotted, books] = allot_bits(d, bits);
    // A scale of a token's values has kScaleBits, a group's further bits come by one or two of each atom.
    const int given = kAtomGroup * std::accumulate(allotted.begin(), allotted.end(), 0) +
                      kBookBits * std::accumulate(books.begin(), books.end(), 0),
              budget = static_cast<int>(bits * 64) - kScaleBits;
    EXPECT_LE(given, budget);
    EXPECT_GT(given, budget - 2 * kAtomGroup);
    // As tiny_dictionary's spreads say: the one leaves a sixth of the cost, the other 98 %.
    EXPECT_EQ(books[0], 1);
    EXPECT_EQ(books[1], 0);
    // Weights fall within a basis, and so do bits.
    for (size_t base = 0; base < 2; ++base) {
      for (size_t g = 1; g < 8; ++g) EXPECT_LE(allotted[base * 8 + g], allotted[base * 8 + g - 1]);
    }
  }
}

// Keys along one channel of a pair that hardly turns within the text of training, and by 1.6 radians in the
// context. Quantisers expect coefficients of variance 1 over the spread: trained where the text stands alone,
// those of the pair's other channel have tens.
TEST(Dictionary, FitsKeysFarBeyondTheTextItWasTrainedOn) {
  constexpr int kText = 1100, kContext = 16000, kDim = 32;
  Dictionary empty = one_head(kDim, 0);
  empty.turns[0] = 1e-4f;
  const auto largest = [&](int n_positions) {
    Rng rng(3);
    const auto key = [&](int position, float* k) {
      float x[kDim];
      for (float& channel : x) channel = 0.01f * static_cast<float>(2 * rng.uniform() - 1);
      x[0] = static_cast<float>(2 * rng.uniform() - 1);
      turn_to(empty, 0, position, x, k);
    };
    DictionaryTrainer trainer(empty, kText, n_positions);
    const auto cache = trainer.source()->make({1, 1, kDim, kText}).value();
    trainer.begin_text(kText);
    float k[kDim], v[kDim];
    for (int t = 0; t < kText; ++t) {
      key(t, k);
      for (float& channel : v) channel = static_cast<float>(rng.uniform());
      cache->store(0, t, k, v);
    }
    const Dictionary d = trainer.fit(1, {}).value();
    const HeadBasis& basis = d.basis(0, KvSide::kKeys, 0);
    double sums[kDim] = {};
    for (int t = 0; t < 1000; ++t) {
      const int position = kContext - 1000 + t;
      float mean[kDim];
      key(position, k);
      turn_to(d, 0, position, basis.mean.data(), mean);
      for (int i = 0; i < kDim; ++i) {
        double y = 0;
        for (int j = 0; j < kDim; ++j)
          y += static_cast<double>(basis.analysis[static_cast<size_t>(i * kDim + j)]) *
               static_cast<double>(k[j] - mean[j]);
        y /= static_cast<double>(basis.spread[static_cast<size_t>(i)]);
        sums[i] += y * y / 1000;
      }
    }
    return *std::max_element(sums, sums + kDim);
  };
  EXPECT_LT(largest(kContext), 6);
  EXPECT_GT(largest(kText), 20);
}

// Values that are one of eight vectors and a little noise: the book knows the vectors, and the spread tells.
TEST(Dictionary, BooksLearnWhatVectorsAreLike) {
  constexpr int kText = 1100, kDim = 32;
  constexpr double kNoise = 0.05;
  const Dictionary empty = one_head(kDim, 0.1f);
  DictionaryTrainer trainer(empty, kText, kText);
  const auto cache = trainer.source()->make({1, 1, kDim, kText}).value();
  trainer.begin_text(kText);
  Rng rng(3);
  std::vector<std::vector<double>> kinds(8, std::vector<double>(kDim));
  for (auto& kind : kinds) {
    for (double& x : kind) x = rng.normal();
  }
  for (int t = 0; t < kText; ++t) {
    float k[kDim], v[kDim];
    const auto& kind = kinds[rng.below(8)];
    for (size_t i = 0; i < kDim; ++i) {
      k[i] = static_cast<float>(rng.normal());
      v[i] = static_cast<float>(kind[i] + kNoise * rng.normal());
    }
    cache->store(0, t, k, v);
  }
  const Dictionary d = trainer.fit(1, {}).value();
  const auto energy = [&](KvSide side) {  // of coefficients, over what the book leaves
    double sum = 0;
    for (const float spread : d.basis(0, side, 0).spread)
      sum += static_cast<double>(spread) * static_cast<double>(spread) / kDim;
    return sum;
  };
  // 1 / kNoise^2 = 400 times what is left, and more as some of the 256 entries learn noise.
  EXPECT_GT(energy(KvSide::kValues), 400);
  EXPECT_LT(energy(KvSide::kKeys), 10);
  const Allotment allotted = allot_bits(d, 1);
  EXPECT_EQ(allotted.books[1], 1);
}

// Every query is after the key at 300 and sees all positions or the last 200. What it cannot see does not
// count by it, and queries count wherever their window begins.
TEST(Dictionary, TokensCountByTheQueriesThatSeeThem) {
  constexpr int kText = 1100, kDim = 32, kLiked = 300;
  const Dictionary empty = one_head(kDim, 0);
  // The share of the liked token's value, over the mean of all, by queries from `first` on.
  const auto share = [&](int window, int first) {
    DictionaryTrainer trainer(empty, kText, kText);
    const auto cache = trainer.source()->make({1, 1, kDim, kText}).value();
    trainer.begin_text(kText);
    Rng rng(3);
    float liked[kDim] = {4};
    for (int t = 0; t < kText; ++t) {
      float k[kDim], v[kDim];
      for (int i = 0; i < kDim; ++i) {
        k[i] = t == kLiked ? liked[i] : 0.1f * static_cast<float>(rng.normal());
        v[i] = static_cast<float>(rng.normal());
      }
      cache->store(0, t, k, v);
      KvQueries queries{1, liked, nullptr, t, 1, window};
      if (t >= first) cache->prepare(0, 0, queries);
    }
    const std::vector<float> shares = trainer.rows(0, KvSide::kValues, 0).shares;
    return shares[kLiked - 4];  // the first four are left out
  };
  EXPECT_GT(share(0, 0), 100);
  EXPECT_GT(share(0, 800), 100);
  EXPECT_GT(share(200, 0), 100);     // those just after it see it
  EXPECT_LT(share(200, 800), 0.5f);  // these do not
}

// Of a model whose keys or values are no numbers somewhere; and of a text of no tokens.
TEST(Dictionary, IsNotFittedToWhatIsNoNumber) {
  constexpr int kText = 1100, kDim = 32;
  const Dictionary empty = one_head(kDim, 0.1f);
  const auto fitted = [&](float bad, bool in_keys) {
    DictionaryTrainer trainer(empty, kText, kText);
    const auto cache = trainer.source()->make({1, 1, kDim, kText}).value();
    trainer.begin_text(kText);
    Rng rng(3);
    for (int t = 0; t < kText; ++t) {
      float k[kDim], v[kDim];
      for (float& channel : k) channel = static_cast<float>(rng.normal());
      for (float& channel : v) channel = static_cast<float>(rng.normal());
      if (t == 700) (in_keys ? k : v)[5] = bad;
      cache->store(0, t, k, v);
    }
    return trainer.fit(1, {});
  };
  EXPECT_TRUE(fitted(1.0f, true).ok());
  for (const float bad : {std::nanf(""), INFINITY, -INFINITY}) {
    for (const bool in_keys : {false, true}) {
      const auto result = fitted(bad, in_keys);
      ASSERT_FALSE(result.ok());
      EXPECT_EQ(result.error().code, ErrorCode::kInvalidArgument);
      EXPECT_NE(result.error().message.find("not finite"), std::string::npos);
    }
  }
  DictionaryTrainer nothing(empty, kText, kText);
  EXPECT_EQ(nothing.fit(1, {}).error().code, ErrorCode::kInvalidArgument);
}

}  // namespace
}  // namespace frugal::llm
