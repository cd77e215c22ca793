#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "base/rng.h"
#include "llm/kernel/kernel.h"
#include "llm/kv/csr_plan.h"
#include "llm/kv/dictionary.h"
#include "llm/kv/kv_cache.h"
#include "support/tiny_dictionary.h"

namespace frugal::llm {
namespace {

constexpr int kDim = 32, kHeads = 2, kTokens = 400, kGroup = 3;

// 8 bits for each of 32 numbers, and a half for their scale.
void round_to_bytes(std::vector<float>& x) {
  for (size_t first = 0; first < x.size(); first += 32) {
    float largest = 0;
    for (size_t i = first; i < first + 32; ++i) largest = std::max(largest, std::fabs(x[i]));
    const float scale = largest / 127, half = f16_to_f32(f32_to_f16(scale));
    for (size_t i = first; i < first + 32; ++i) x[i] = std::nearbyint(x[i] / scale) * half;
  }
}

// A cache of random tokens, and what its codes mean, computed one coefficient at a time.
struct Filled {
  Filled(uint64_t seed, double bits)
      : dictionary(std::make_shared<Dictionary>(test::tiny_dictionary(seed, 1, kHeads, kDim))),
        plan(*dictionary, bits) {
    source = make_csr_source(dictionary, bits).value();
    cache = source->make({1, kHeads, kDim, kTokens}).value();
    Rng rng(seed + 100);
    for (int t = 0; t < kTokens; ++t) {
      std::vector<float> row[2];
      for (auto& side : row) {
        for (int i = 0; i < kHeads * kDim; ++i) side.push_back(static_cast<float>(rng.normal()));
      }
      cache->store(0, t, row[0].data(), row[1].data());
      keys.push_back(row[0]);
      values.push_back(row[1]);
    }
  }

  // The vector that a token's code stands for.
  std::vector<double> decoded(KvSide side, int head, int t) const {
    const HeadBasis& basis = dictionary->basis(0, side, head);
    const float* x =
        &(side == KvSide::kKeys ? keys : values)[static_cast<size_t>(t)][static_cast<size_t>(head * kDim)];
    std::vector<float> mean = basis.mean;
    if (side == KvSide::kKeys) turn_to(*dictionary, 0, t, basis.mean.data(), mean.data());
    const SidePlan& of = plan.side(0, side, head);
    const LevelPlan& levels = plan.levels_of(0, side);
    std::vector<double> out(mean.begin(), mean.end());
    const auto books = [&](size_t entry, size_t a) {
      return static_cast<double>(basis.book_scale[a]) * (basis.book[entry * kDim + a] - kLevelCentre);
    };
    std::vector<float> less(kDim), y(kDim);  // coefficients, of unit variance where there is no book
    for (size_t i = 0; i < kDim; ++i) less[i] = x[i] - mean[i];
    if (side == KvSide::kKeys) round_to_bytes(less);  // what is coded was whole before
    for (size_t a = 0; a < kDim; ++a) {
      double coefficient = 0;
      for (size_t i = 0; i < kDim; ++i)
        coefficient += static_cast<double>(basis.analysis[a * kDim + i]) * static_cast<double>(less[i]);
      y[a] = static_cast<float>(of.book.empty() ? coefficient / static_cast<double>(basis.spread[a])
                                                : coefficient);
    }
    if (side == KvSide::kValues) round_to_bytes(y);
    const auto add = [&](double coefficient, size_t a) {
      if (of.book.empty()) coefficient *= static_cast<double>(basis.spread[a]);
      for (size_t i = 0; i < kDim; ++i)
        out[i] += coefficient * static_cast<double>(basis.synthesis[i * kDim + a]);
    };
    std::vector<float> rows;
    for (size_t i = 0; i < kPathTokens; ++i) rows.insert(rows.end(), y.begin(), y.end());
    TokenCode code[kPathTokens];
    code_rows(of, levels, side == KvSide::kValues, rows.data(), code);
    const uint8_t* codes = code[0].codes;
    if (!of.book.empty()) {
      const auto entry = static_cast<size_t>(code[0].entry);
      for (size_t a = 0; a < kDim; ++a) {
        add(books(entry, a), a);
        y[a] -= static_cast<float>(books(entry, a));
      }
    }
    double energy = 0, n = 0;
    for (size_t a = 0; a < 4 * static_cast<size_t>(of.n_groups); ++a) {
      if (of.bits[a / 4] == 0) continue;
      energy += static_cast<double>(y[a]) * static_cast<double>(y[a]);
      n += 1;
    }
    const double scale =
        side == KvSide::kValues && n > 0
            ? static_cast<double>(token_scale(token_scale_code(static_cast<float>(energy / n))))
            : 1;
    int window = 0;  // the bits of a code and of those after it
    for (int a = 4 * of.n_groups - 1; a >= 0; --a) {
      const int bits = of.bits[static_cast<size_t>(a / 4)];
      if (bits == 0) continue;
      window = (window << bits | codes[a]) % kWindows;
      const int place = bits == 8 ? codes[a] : levels.table[static_cast<size_t>(kWindows * bits + window)];
      add(scale * static_cast<double>(levels.scale[static_cast<size_t>(bits)]) * (place - kLevelCentre),
          static_cast<size_t>(a));
    }
    return out;
  }

  std::shared_ptr<const Dictionary> dictionary;
  CsrPlan plan;
  std::shared_ptr<const KvSource> source;
  std::unique_ptr<KvCache> cache;
  std::vector<std::vector<float>> keys, values;
};

std::vector<float> queries_of(int n_cols) {
  Rng rng(77);
  std::vector<float> q(static_cast<size_t>(n_cols * kDim));
  for (float& x : q) x = static_cast<float>(rng.normal()) * 0.3f;
  return q;
}

// Rounding: factors of the atoms and of the mean to 1 / 254 of their largest (about 1), cosines and levels
// (at most 2.4) to 1 / 126. Over 32 terms that is sqrt(32) * (2.4 / 254 + 1 / 254 + 1 / 126) = 0.12 were
// every one at its worst.
TEST(CsrCache, ScoresAreThoseOfTheDecodedKeys) {
  for (const double bits : {1.0, 2.0, 3.5}) {
    const Filled f(bits > 1 ? 1 : 2, bits);
    const auto q = queries_of(kGroup);
    std::vector<std::byte> scratch(f.cache->query_scratch_bytes(kGroup));
    const KvQueries queries{kGroup, q.data(), scratch.data(), kTokens - 1, kGroup};
    f.cache->prepare(0, 1, queries);
    for (int block = 0; block < 4; ++block) {
      std::vector<float> scores(kGroup * kKvBlock);
      f.cache->score_chunk(0, 1, block, kKvBlock, queries, scores.data(), 0);
      for (int col = 0; col < kGroup; ++col) {
        for (int t = 0; t < kKvBlock; ++t) {
          const int token = block * kKvBlock + t;
          const auto k = f.decoded(KvSide::kKeys, 1, token);
          double expected = 0;
          for (int i = 0; i < kDim; ++i) {
            const double key = token < 4 ? f.keys[static_cast<size_t>(token)][static_cast<size_t>(kDim + i)]
                                         : k[static_cast<size_t>(i)];
            expected += static_cast<double>(q[static_cast<size_t>(col * kDim + i)]) * key;
          }
          ASSERT_NEAR(scores[static_cast<size_t>(col * kKvBlock + t)], expected, 0.12)
              << bits << " " << token;
        }
      }
    }
  }
}

// Rounding of a whole key: half a step of 1 / 127 of the largest of its 32 channels less the mean, and 2^-12
// of its level for the scale's half, 3 % of a step; for the mean's share of the score 3e-4 (csr_mean.h).
TEST(CsrCache, TheNewestKeysAreWholeAndTheFirstExact) {
  const Filled f(1, 2.0);
  const auto q = queries_of(kGroup);
  std::vector<std::byte> scratch(f.cache->query_scratch_bytes(kGroup));
  const KvQueries queries{kGroup, q.data(), scratch.data(), kTokens - 1, kGroup};
  f.cache->prepare(0, 1, queries);
  for (const int block : {0, (kTokens - 1) / kKvBlock - 1, (kTokens - 1) / kKvBlock}) {
    std::vector<float> scores(kGroup * kKvBlock);
    const int n = std::min(kKvBlock, kTokens - block * kKvBlock);
    f.cache->score_chunk(0, 1, block, n, queries, scores.data(), 0);
    for (int t = 0; t < (block == 0 ? 4 : n); ++t) {
      const float* key = &f.keys[static_cast<size_t>(block * kKvBlock + t)][kDim];
      std::vector<float> mean(kDim);
      turn_to(*f.dictionary, 0, block * kKvBlock + t, f.dictionary->basis(0, KvSide::kKeys, 1).mean.data(),
              mean.data());
      for (int col = 0; col < kGroup; ++col) {
        double expected = 0, bound = 1e-5;
        for (int first = 0; first < kDim; first += 32) {
          double largest = 0, sum = 0;
          for (int i = first; i < first + 32; ++i) {
            const auto at = static_cast<double>(q[static_cast<size_t>(col * kDim + i)]);
            expected += at * static_cast<double>(key[i]);
            largest =
                std::max(largest, static_cast<double>(std::fabs(key[i] - mean[static_cast<size_t>(i)])));
            sum += std::fabs(at);
            if (block > 0) bound += 3e-4 * std::fabs(at * static_cast<double>(mean[static_cast<size_t>(i)]));
          }
          if (block > 0) bound += 1.03 * sum * largest / 254;
        }
        ASSERT_NEAR(scores[static_cast<size_t>(col * kKvBlock + t)], expected, bound) << block << " " << t;
      }
    }
  }
}

// Weights are off by a step of 1 / 254 of the largest at most, by 0.4 of it in the root mean square, this way
// or that: 64 of them that sum to about 16 by 0.4 / 254 * sqrt(64) / 16 = 8e-4 of a coefficient of about 1.
// Five times that; their sums over a book's entries are rounded to 16 bits.
TEST(CsrCache, SumsAreThoseOfTheDecodedValues) {
  for (const uint64_t seed : {1, 2}) {  // without a book and with one
    const Filled f(seed, 2);
    const auto width = static_cast<size_t>(f.cache->sum_width(0, 0));
    EXPECT_EQ(width, kDim + (seed == 1 ? 0 : kBookEntries));
    const auto q = queries_of(kGroup);
    std::vector<std::byte> scratch(f.cache->query_scratch_bytes(kGroup));
    const KvQueries queries{kGroup, q.data(), scratch.data(), kTokens - 1, kGroup};
    Rng rng(5);
    std::vector<float> weights(kGroup * kKvBlock), out(kGroup * width), spare(kGroup * kKvBlock);
    for (float& w : weights) w = static_cast<float>(rng.uniform() * rng.uniform());
    double sum[kGroup] = {};
    for (int col = 0; col < kGroup; ++col) {
      for (int t = 0; t < kKvBlock; ++t) sum[col] += weights[static_cast<size_t>(col * kKvBlock + t)];
    }
    f.cache->add_values(0, 0, 2, kKvBlock, queries, {weights.data(), kGroup * kKvBlock}, out.data(),
                        spare.data());
    for (int col = 0; col < kGroup; ++col) {
      float* sums = &out[static_cast<size_t>(col) * width];
      for (size_t i = 0; i < width; ++i) sums[i] /= static_cast<float>(sum[col]);
      float row[kDim];
      f.cache->restore(0, 0, sums, 1, row);
      std::vector<double> expected(kDim, 0.0);
      for (int t = 0; t < kKvBlock; ++t) {
        const auto v = f.decoded(KvSide::kValues, 0, 2 * kKvBlock + t);
        for (size_t i = 0; i < kDim; ++i)
          expected[i] += weights[static_cast<size_t>(col * kKvBlock + t)] / sum[col] * v[i];
      }
      for (size_t i = 0; i < kDim; ++i) EXPECT_NEAR(row[i], expected[i], 4e-3);
    }
  }
}

TEST(CsrCache, BooksAreUsedWhereTheyPay) {
  const Filled f(1, 2);
  for (const KvSide side : {KvSide::kKeys, KvSide::kValues}) {  // as tiny_dictionary says
    EXPECT_TRUE(f.plan.side(0, side, 0).book.empty());
    EXPECT_FALSE(f.plan.side(0, side, 1).book.empty());
  }
}

// Against doubles, entry by entry.
TEST(CsrCache, BooksFindMultiplyAndSum) {
  const Dictionary d = test::tiny_dictionary(1, 1, kHeads, kDim);
  const HeadBasis& basis = d.basis(0, KvSide::kKeys, 1);
  const CodeBook book(basis.book, basis.book_scale, basis.weight);
  const auto entry = [&](size_t e, size_t i) {
    return static_cast<double>(basis.book_scale[i]) * (basis.book[e * kDim + i] - kLevelCentre);
  };
  Rng rng(8);
  for (int round = 0; round < 20; ++round) {
    std::vector<float> y(kDim), products(kBookEntries), sums(kBookEntries), added(kDim, 0.5f);
    for (float& x : y) x = static_cast<float>(rng.normal());
    for (float& x : sums) x = static_cast<float>(rng.uniform() * rng.uniform());
    book.products(y.data(), 1, products.data());
    book.add_sums(sums.data(), 0, 1, added.data());
    std::vector<double> errors(kBookEntries, 0.0), expected(kDim, 0.5);
    double size = 0;
    for (const float x : y) size = std::max(size, std::fabs(static_cast<double>(x)));
    for (size_t e = 0; e < kBookEntries; ++e) {
      double product = 0;
      for (size_t i = 0; i < kDim; ++i) {
        const double off = static_cast<double>(y[i]) - entry(e, i);
        errors[e] += static_cast<double>(basis.weight[i]) * off * off;
        product += static_cast<double>(y[i]) * entry(e, i);
        expected[i] += static_cast<double>(sums[e]) * entry(e, i);
      }
      // y to half a step of 1 / 127 of its largest, 32 of them against entries of at most 1.9.
      EXPECT_NEAR(products[e], product, 32 * 1.9 * size / 254);
    }
    // Sums to half a step of 1 / 65000 of the largest, 256 of them.
    for (size_t i = 0; i < kDim; ++i) EXPECT_NEAR(added[i], expected[i], 256 * 1.9 / 130000);
    // As good as the best but for what y is rounded by: of weights that sum to 4.1, twice.
    CodeBook::Nearest nearest;
    book.nearest(y.data(), 1, &nearest);
    const auto found = static_cast<size_t>(nearest.entries[0]);
    EXPECT_LE(errors[found], *std::min_element(errors.begin(), errors.end()) + 4 * 4.1 * 1.9 * size / 254);
    std::vector<float> left = y;
    book.subtract(static_cast<int>(found), left.data());
    for (size_t i = 0; i < kDim; ++i) EXPECT_NEAR(left[i], static_cast<double>(y[i]) - entry(found, i), 1e-6);
  }
}

// What a code costs, coefficient by coefficient.
double cost_of(const SidePlan& of, const LevelPlan& levels, bool scaled, const float* y,
               const TokenCode& code) {
  std::vector<float> left(y, y + kDim);
  of.book.subtract(code.entry, left.data());
  double cost = 0;
  int window = 0;
  for (size_t a = kDim; a-- > 0;) {
    double coded = 0;
    if (a < 4 * static_cast<size_t>(of.n_groups) && of.bits[a / 4] > 0) {
      const auto bits = static_cast<size_t>(of.bits[a / 4]);
      window = (window << bits | code.codes[a]) % kWindows;
      const int place =
          bits == 8 ? code.codes[a] : levels.table[kWindows * bits + static_cast<size_t>(window)];
      coded = static_cast<double>(levels.scale[bits]) * (place - kLevelCentre);
    }
    if (scaled) coded *= static_cast<double>(token_scale(code.scale));
    cost += static_cast<double>(of.weights[a]) * std::pow(static_cast<double>(left[a]) - coded, 2);
  }
  return cost;
}

// A vector alone has the code that it has beside others, and no entry that is nearly as near as the nearest
// codes it better.
TEST(CsrCache, OfNearEntriesTheOneThatCodesBestIsTaken) {
  const Filled f(1, 2);
  Rng rng(31);
  int others = 0;
  for (const KvSide side : {KvSide::kKeys, KvSide::kValues}) {
    const SidePlan& of = f.plan.side(0, side, 1);
    const LevelPlan& levels = f.plan.levels_of(0, side);
    const bool scaled = side == KvSide::kValues;
    ASSERT_FALSE(of.book.empty());
    for (int round = 0; round < 50; ++round) {
      std::vector<float> y(kPathTokens * kDim);
      for (float& x : y) x = static_cast<float>(rng.normal());
      TokenCode codes[kPathTokens];
      code_rows(of, levels, scaled, y.data(), codes);
      CodeBook::Nearest near[kPathTokens];
      of.book.nearest(y.data(), kPathTokens, near);
      for (size_t t = 0; t < kPathTokens; ++t) {
        const float* own = &y[t * kDim];
        std::vector<float> same;
        for (size_t i = 0; i < kPathTokens; ++i) same.insert(same.end(), own, own + kDim);
        TokenCode alone[kPathTokens];
        code_rows(of, levels, scaled, same.data(), alone);
        const auto n = static_cast<size_t>(4 * of.n_groups);
        EXPECT_EQ(alone[0].entry, codes[t].entry);
        EXPECT_EQ(std::vector<uint8_t>(alone[0].codes, alone[0].codes + n),
                  std::vector<uint8_t>(codes[t].codes, codes[t].codes + n));
        others += codes[t].entry != near[t].entries[0];
        const double cost = cost_of(of, levels, scaled, own, codes[t]);
        for (size_t i = 0; i < near[t].n; ++i) {
          TokenCode with = codes[t];
          with.entry = near[t].entries[i];
          std::vector<float> left(own, own + kDim), rows;
          of.book.subtract(with.entry, left.data());
          float energy = 0, coded = 0;
          for (size_t a = 0; a < n; ++a) {
            if (of.bits[a / 4] == 0) continue;
            energy += left[a] * left[a];
            coded += 1;
          }
          with.scale = scaled ? token_scale_code(energy / coded) : 0;
          const float inverse = scaled ? 1 / token_scale(with.scale) : 1.0f;
          for (size_t k = 0; k < kPathTokens; ++k) {
            for (size_t a = 0; a < n; ++a) rows.push_back(left[a] * inverse);
          }
          std::vector<uint8_t> path(rows.size());
          float costs[kPathTokens];
          code_tokens(of, levels, rows.data(), path.data(), costs);
          std::copy_n(path.begin(), n, with.codes);
          EXPECT_LE(cost, cost_of(of, levels, scaled, own, with) * 1.0001);
        }
      }
    }
  }
  EXPECT_GT(others, 10);
}

// What may be left out of a query's weights is a hundredth of them at most, and something: the bound is taken
// from the tokens that are whole, and counts the first ones twice where they are among the newest.
TEST(CsrCache, WhatIsNegligibleIsLittle) {
  const Filled f(2, 2);
  const int n_rows = 5, n_cols = n_rows * kGroup, first = kTokens - n_rows;
  const auto q = queries_of(n_cols);
  std::vector<std::byte> scratch(f.cache->query_scratch_bytes(n_cols));
  KvQueries queries{n_cols, q.data(), scratch.data(), first, kGroup};
  f.cache->prepare(0, 0, queries);
  const float* negligible = f.cache->negligible(queries);
  ASSERT_NE(negligible, nullptr);
  std::vector<double> sums(static_cast<size_t>(n_cols), 0.0);
  for (int block = 0; block * kKvBlock < kTokens; ++block) {
    std::vector<float> scores(static_cast<size_t>(n_cols * kKvBlock));
    const int n_tokens = std::min(kKvBlock, kTokens - block * kKvBlock);
    f.cache->score_chunk(0, 0, block, n_tokens, queries, scores.data(), 0);
    for (int col = 0; col < n_cols; ++col) {
      for (int t = 0; t < n_tokens && block * kKvBlock + t <= first + col / kGroup; ++t)
        sums[static_cast<size_t>(col)] +=
            std::exp(static_cast<double>(scores[static_cast<size_t>(col * kKvBlock + t)]));
    }
  }
  for (size_t col = 0; col < sums.size(); ++col) {
    const double share = std::exp(static_cast<double>(negligible[col])) / sums[col];
    EXPECT_LT(share, 0.0101);
    EXPECT_GT(share, 1e-4);
  }
  queries.window = 64;  // the first tokens may not be seen
  EXPECT_EQ(f.cache->negligible(queries), nullptr);
}

// A tile whose rows stand on both sides of the place where a block stops being whole.
TEST(CsrCache, ARowSeesTheSameAloneAndInATile) {
  const Filled f(2, 2);
  const auto width = static_cast<size_t>(f.cache->sum_width(0, 0));
  const int n_rows = 16, first = 2 * kKvBlock + 2 * kKvBlock - 7,
            n_cols = n_rows * kGroup;  // block 2 straddles
  const auto q = queries_of(n_cols);
  std::vector<std::byte> scratch(f.cache->query_scratch_bytes(n_cols));
  const KvQueries tile{n_cols, q.data(), scratch.data(), first, kGroup};
  f.cache->prepare(0, 0, tile);
  std::vector<float> scores(static_cast<size_t>(n_cols * kKvBlock)), weights(scores.size()),
      spare(scores.size()), out(static_cast<size_t>(n_cols) * width);
  Rng rng(6);
  for (float& w : weights) w = static_cast<float>(rng.uniform());
  std::vector<float> least(static_cast<size_t>(n_cols));  // so that of many columns little counts
  for (float& x : least) x = static_cast<float>(4 * rng.uniform());
  for (const int block : {0, 2}) {
    f.cache->score_chunk(0, 0, block, kKvBlock, tile, scores.data(), 0);
    std::fill(out.begin(), out.end(), 0.0f);
    f.cache->add_values(0, 0, block, kKvBlock, tile, {weights.data(), weights.size(), least.data()},
                        out.data(), spare.data());
    for (int row = 0; row < n_rows; ++row) {
      std::vector<std::byte> own(f.cache->query_scratch_bytes(kGroup));
      const KvQueries alone{kGroup, &q[static_cast<size_t>(row * kGroup * kDim)], own.data(), first + row,
                            kGroup};
      f.cache->prepare(0, 0, alone);
      EXPECT_EQ(std::memcmp(f.cache->negligible(alone), f.cache->negligible(tile) + row * kGroup,
                            kGroup * sizeof(float)),
                0);
      std::vector<float> a(kGroup * kKvBlock), b(kGroup * width);
      f.cache->score_chunk(0, 0, block, kKvBlock, alone, a.data(), 0);
      f.cache->add_values(0, 0, block, kKvBlock, alone,
                          {&weights[static_cast<size_t>(row * kGroup * kKvBlock)], weights.size(),
                           &least[static_cast<size_t>(row * kGroup)]},
                          b.data(), spare.data());
      EXPECT_EQ(std::memcmp(a.data(), &scores[static_cast<size_t>(row * kGroup * kKvBlock)], a.size() * 4), 0)
          << row;
      EXPECT_EQ(std::memcmp(b.data(), &out[static_cast<size_t>(row * kGroup) * width], b.size() * 4), 0)
          << row;
    }
  }
}

// Of weights that are small beside what is negligible a book's entries alone count: sums of coefficients are
// nothing, those by entry what they are with all. Without a book everything counts.
TEST(CsrCache, TakesValuesOfSmallWeightsRoughly) {
  for (const uint64_t seed : {1, 2}) {  // without a book and with one
    const Filled f(seed, 2);
    const auto width = static_cast<size_t>(f.cache->sum_width(0, 0));
    const auto q = queries_of(kGroup);
    std::vector<std::byte> scratch(f.cache->query_scratch_bytes(kGroup));
    const KvQueries queries{kGroup, q.data(), scratch.data(), kTokens - 1, kGroup};
    Rng rng(7);
    std::vector<float> weights(kGroup * kKvBlock), spare(kGroup * kKvBlock), all(kGroup * width), some(all);
    for (float& w : weights) w = static_cast<float>(rng.uniform());
    std::vector<float> least(kGroup, 1e-3f);
    least[1] = 1e3f;
    const auto sum = [&](const float* negligible, std::vector<float>& out) {
      f.cache->add_values(0, 0, 2, kKvBlock, queries, {weights.data(), weights.size(), negligible},
                          out.data(), spare.data());
    };
    sum(nullptr, all);
    sum(least.data(), some);
    for (size_t col = 0; col < kGroup; ++col) {
      const bool rough = seed == 2 && col == 1;
      for (size_t i = 0; i < width; ++i) {
        const float expected = all[col * width + i];
        EXPECT_EQ(some[col * width + i], rough && i < kDim ? 0.0f : expected) << col << " " << i;
        EXPECT_TRUE(i >= kDim || expected != 0);
      }
    }
  }
}

// Rows with a window may share a tile with rows that see an earlier block of the chunk.
TEST(CsrCache, SumsDoNotDependOnWhereTheirTokensBegin) {
  const Filled f(2, 2);
  const auto width = static_cast<size_t>(f.cache->sum_width(0, 0));
  const auto q = queries_of(kGroup);
  std::vector<std::byte> scratch(f.cache->query_scratch_bytes(kGroup));
  const KvQueries queries{kGroup, q.data(), scratch.data(), kTokens - 1, kGroup};
  constexpr size_t kBlock = kGroup * kKvBlock;
  std::vector<float> weights(2 * kBlock, 0.0f), spare(kBlock), early(kGroup * width), late(early);
  Rng rng(8);
  for (size_t i = kBlock; i < 2 * kBlock; ++i) weights[i] = static_cast<float>(rng.uniform());
  f.cache->add_values(0, 0, 1, 2 * kKvBlock, queries, {weights.data(), kBlock}, early.data(), spare.data());
  f.cache->add_values(0, 0, 2, kKvBlock, queries, {&weights[kBlock], kBlock}, late.data(), spare.data());
  EXPECT_EQ(early, late);
}

TEST(CsrCache, SaysWhatItCanTakeBack) {
  const Filled f(1, 2);
  const KvCache& cache = *f.cache;
  EXPECT_EQ(cache.max_rows_ahead(), kKvBlock);
  EXPECT_TRUE(cache.can_rewind(kTokens, kTokens));
  EXPECT_TRUE(cache.can_rewind(kTokens, kTokens - kKvBlock));
  EXPECT_FALSE(cache.can_rewind(kTokens, kTokens - 3 * kKvBlock));
  EXPECT_FALSE(cache.can_rewind(kTokens, 1));
  EXPECT_TRUE(cache.can_rewind(kTokens, 0));
}

// Tokens are taken back to the start of a block and come again: the block that has left the ring since is not
// coded anew from what stands there now.
TEST(CsrCache, GoesOnFromWhatWasTakenBack) {
  const Filled straight(2, 2);
  const auto cache = straight.source->make({1, kHeads, kDim, kTokens}).value();
  const auto store = [&](int first, int last) {
    for (int t = first; t < last; ++t) {
      const auto at = static_cast<size_t>(t);
      cache->store(0, t, straight.keys[at].data(), straight.values[at].data());
    }
  };
  store(0, 5 * kKvBlock + 3);
  ASSERT_TRUE(cache->can_rewind(5 * kKvBlock + 3, 4 * kKvBlock));
  store(4 * kKvBlock, kTokens);
  std::vector<std::byte> a(cache->save_bytes(kTokens)), b(a.size());
  cache->save(kTokens, a.data());
  straight.cache->save(kTokens, b.data());
  EXPECT_TRUE(a == b);
}

TEST(CsrCache, SavesAndLoads) {
  const Filled f(1, 1.5);
  std::vector<std::byte> image(f.cache->save_bytes(kTokens)), again(image.size());
  f.cache->save(kTokens, image.data());
  const auto other = f.source->make({1, kHeads, kDim, kTokens}).value();
  other->load(kTokens, image.data());
  other->save(kTokens, again.data());
  EXPECT_EQ(image, again);
  EXPECT_FALSE(other->can_rewind(kTokens, 1));
}

TEST(CsrCache, TakesNumbersThatAreNotFinite) {
  const Filled f(1, 2);
  std::vector<float> bad(kHeads * kDim, std::nanf(""));
  bad[3] = INFINITY;
  f.cache->store(0, 130, bad.data(), bad.data());
  const auto q = bad;
  std::vector<std::byte> scratch(f.cache->query_scratch_bytes(2));
  const KvQueries queries{2, q.data(), scratch.data(), kTokens - 1, 2};
  f.cache->prepare(0, 0, queries);
  std::vector<float> scores(2 * kKvBlock), out(2 * (kDim + kBookEntries)), spare(2 * kKvBlock);
  f.cache->score_chunk(0, 0, 2, kKvBlock, queries, scores.data(), 0);
  f.cache->add_values(0, 0, 2, kKvBlock, queries, {scores.data(), scores.size()}, out.data(), spare.data());
  EXPECT_TRUE(std::isnan(scores[0]));  // it shows
}

TEST(CsrCache, RefusesWhatItCannotDo) {
  const auto dictionary = std::make_shared<const Dictionary>(test::tiny_dictionary(1, 1, kHeads, kDim));
  EXPECT_FALSE(make_csr_source(dictionary, 0.1).ok());
  EXPECT_FALSE(make_csr_source(dictionary, std::nan("")).ok());
  const auto odd = std::make_shared<const Dictionary>(test::tiny_dictionary(1, 1, kHeads, 48));
  EXPECT_EQ(make_csr_source(odd, 2).error().code, ErrorCode::kUnsupported);
  EXPECT_FALSE(make_csr_source(dictionary, 2).value()->make({2, kHeads, kDim, 64}).ok());
}

}  // namespace
}  // namespace frugal::llm
