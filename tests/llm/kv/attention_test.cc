// Attention against its naive twin: softmax(q k) v in double precision over what the cache was given.
#include "llm/kv/attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <vector>

#include "base/rng.h"

namespace frugal::llm {
namespace {

struct Setting {
  KvFormat format;
  int head_dim, group, window;
  double tolerance;
};

class Filled {
 public:
  Filled(const Setting& setting, int n_tokens) : setting_(setting), n_tokens_(n_tokens) {
    const KvShape shape{1, 2, setting.head_dim, n_tokens};
    auto made = make_kv_cache(setting.format, shape);
    EXPECT_TRUE(made.ok());
    cache = std::move(made).value();
    Rng rng(3);
    const auto dim = static_cast<size_t>(setting.head_dim);
    for (int t = 0; t < n_tokens; ++t) {
      std::vector<float> k(2 * dim), v(2 * dim);
      for (float& x : k) x = static_cast<float>(rng.normal());
      for (float& x : v) x = static_cast<float>(rng.normal());
      cache->store(0, t, k.data(), v.data());
      keys.insert(keys.end(), k.begin(), k.end());
      values.insert(values.end(), v.begin(), v.end());
    }
  }

  // Attention of n_rows rows from first_position on, by the library.
  std::vector<float> attend(int first_position, int n_rows, const std::vector<float>& q) const {
    AttentionTile tile{cache.get(), 0, 1, n_rows, setting_.group, first_position, setting_.window};
    const int n_cols = n_rows * setting_.group, dim = cache->shape().padded_dim();
    const auto n = static_cast<size_t>(n_cols), padded = static_cast<size_t>(dim);
    std::vector<float> total_out(n * padded), part_out(n * padded), stats(4 * n),
        scratch(attention_scratch_floats(n_cols));
    std::vector<std::byte> codec(cache->query_scratch_bytes(n_cols));
    const AttentionState total{&stats[0], &stats[n], total_out.data()},
        part{&stats[2 * n], &stats[3 * n], part_out.data()};
    const KvQueries queries{n_cols, q.data(), codec.data(), first_position, setting_.group};
    cache->prepare(0, 1, queries);
    frugal::llm::attend(tile, queries, visible_chunks(tile), total, part, scratch.data());
    std::vector<float> out(n * static_cast<size_t>(setting_.head_dim));
    finish_columns(tile, total, 0, n_cols, out.data());
    return out;
  }

  // The same for one column, naively.
  std::vector<double> naive(int position, const float* q) const {
    const auto dim = static_cast<size_t>(setting_.head_dim);
    const int first = setting_.window > 0 ? std::max(0, position - setting_.window + 1) : 0;
    std::vector<double> weights, out(dim, 0.0);
    double largest = -1e300, sum = 0;
    for (int t = first; t <= position; ++t) {
      double score = 0;
      for (size_t i = 0; i < dim; ++i)
        score += static_cast<double>(q[i]) * keys[(static_cast<size_t>(t) * 2 + 1) * dim + i];
      weights.push_back(score);
      largest = std::max(largest, score);
    }
    for (double& w : weights) sum += w = std::exp(w - largest);
    for (size_t j = 0; j < weights.size(); ++j) {
      for (size_t i = 0; i < dim; ++i)
        out[i] += weights[j] / sum * values[((static_cast<size_t>(first) + j) * 2 + 1) * dim + i];
    }
    return out;
  }

  std::unique_ptr<KvCache> cache;
  std::vector<float> keys, values;

 private:
  Setting setting_;
  int n_tokens_;
};

// Tolerances: keys and values are normal, so a weighted mean of values is below 1 in size; rounding a key of
// d channels to b bits moves a score by about sqrt(d) 2^-b and the result by as much: f16 11 bits, bf16 8,
// q8_0 7.
const Setting kSettings[] = {
    {KvFormat::kF32, 64, 3, 0, 1e-5},   {KvFormat::kF16, 64, 3, 0, 1e-2}, {KvFormat::kBF16, 64, 2, 0, 6e-2},
    {KvFormat::kQ8_0, 64, 3, 0, 8e-2},  {KvFormat::kF32, 20, 1, 0, 1e-5}, {KvFormat::kF32, 256, 4, 100, 1e-5},
    {KvFormat::kQ8_0, 32, 1, 70, 8e-2}, {KvFormat::kF32, 16, 5, 1, 1e-5},
};

TEST(Attention, MatchesTheNaiveTwin) {
  const int n_tokens = 700;
  for (const Setting& setting : kSettings) {
    SCOPED_TRACE(std::string(kv_format_name(setting.format)) + " dim " + std::to_string(setting.head_dim) +
                 " window " + std::to_string(setting.window));
    const Filled filled(setting, n_tokens);
    const auto padded = static_cast<size_t>(filled.cache->shape().padded_dim()),
               dim = static_cast<size_t>(setting.head_dim);
    Rng rng(8);
    for (const auto& [first, n_rows] : std::vector<std::pair<int, int>>{
             {0, 1}, {0, 16}, {63, 2}, {255, 1}, {250, 13}, {699, 1}, {690, 10}}) {
      std::vector<float> q(static_cast<size_t>(n_rows * setting.group) * padded, 0.0f);
      for (size_t col = 0; col < q.size() / padded; ++col) {
        for (size_t i = 0; i < dim; ++i)
          q[col * padded + i] = static_cast<float>(rng.normal() / std::sqrt(static_cast<double>(dim)));
      }
      const std::vector<float> out = filled.attend(first, n_rows, q);
      for (size_t col = 0; col < q.size() / padded; ++col) {
        const std::vector<double> expected =
            filled.naive(first + static_cast<int>(col) / setting.group, &q[col * padded]);
        for (size_t i = 0; i < dim; ++i)
          ASSERT_NEAR(out[col * dim + i], expected[i], setting.tolerance)
              << "rows from " << first << " col " << col;
      }
    }
  }
}

TEST(Attention, SavedCacheIsTheSameCache) {
  for (const Setting& setting : kSettings) {
    const int n_tokens = 75;
    const Filled filled(setting, n_tokens);
    std::vector<std::byte> image(filled.cache->save_bytes(n_tokens));
    filled.cache->save(n_tokens, image.data());
    auto other = make_kv_cache(setting.format, filled.cache->shape());
    ASSERT_TRUE(other.ok());
    (*other)->load(n_tokens, image.data());
    std::vector<std::byte> again((*other)->save_bytes(n_tokens));
    (*other)->save(n_tokens, again.data());
    EXPECT_EQ(image, again);
  }
}

// What docs/formats/cache.md says, whatever order the cache itself has: keys in panels of 16, values row by
// row.
TEST(Attention, ImageIsInTheOrderOfTheFileFormat) {
  const int n_tokens = 150;
  const size_t dim = 20, padded = 32, n = n_tokens, n_panels = (n + 15) / 16;
  const Filled filled({KvFormat::kF32, static_cast<int>(dim), 1, 0, 0}, n_tokens);
  std::vector<float> image(2 * (n_panels * 16 * dim + n * padded));
  ASSERT_EQ(filled.cache->save_bytes(n_tokens), image.size() * sizeof(float));
  filled.cache->save(n_tokens, reinterpret_cast<std::byte*>(image.data()));
  const float* at = image.data();
  for (size_t head = 0; head < 2; ++head) {
    for (size_t t = 0; t < n; ++t) {
      for (size_t i = 0; i < dim; ++i) {
        ASSERT_EQ(at[(t / 16 * dim + i) * 16 + t % 16], filled.keys[(t * 2 + head) * dim + i]);
        ASSERT_EQ(at[n_panels * 16 * dim + t * padded + i], filled.values[(t * 2 + head) * dim + i]);
      }
    }
    at += n_panels * 16 * dim + n * padded;
  }
}

}  // namespace
}  // namespace frugal::llm
