// The cascade that runs: what a request gets equals the naive twin, alone or in a batch of any kind; stages
// that fail or answer nonsense are errors; arrays in files are read or refused with the reason.
#include "cascade/runner.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/rng.h"
#include "cascade/npy.h"

namespace frugal::cascade {
namespace {

constexpr int kItems = 60, kLength = 4;

CascadeSpec small_cascade() {
  CascadeSpec spec;
  spec.features = {"x"};
  spec.shown = 3;
  spec.history_length = kLength;
  spec.n_items = kItems;
  spec.stages = {{"recall", {{"a", "a", 1, 0}, {"b", "b", 2, 0}}, {20, 40}},
                 {"rank", {{"c", "c", 1, 1}, {"d", "d", 2, 2}}, {3}}};
  for (int r = 0; r < 2; ++r) {
    for (int n = 0; n < 2; ++n) {
      for (int k = 0; k < 2; ++k) spec.chains.push_back({r, n, k, 0});
    }
  }
  return spec;
}

// Few values, so that there are ties; one item has no score.
float toy_score(int stage, int model, std::span<const int64_t> history, int64_t item) {
  int64_t sum = item * (3 + stage) + model;
  for (const int64_t one : history) sum = sum * 5 + one;
  return item == 7 ? NAN : static_cast<float>(((sum % 11) + 11) % 11);
}

class ToyScorer final : public Scorer {
 public:
  ToyScorer(int stage, int model, int fault) : stage_(stage), model_(model), fault_(fault) {}
  Status score(std::span<const int64_t> histories, std::span<const int64_t> items, int batch, int n,
               std::vector<float>& scores) override {
    if (fault_ == 1) return {ErrorCode::kUnavailable, "the scorer is away"};
    scores.clear();
    for (int b = 0; b < batch; ++b) {
      const auto history = histories.subspan(static_cast<size_t>(b) * kLength, kLength);
      for (int i = 0; i < n; ++i)
        scores.push_back(
            toy_score(stage_, model_, history, items.empty() ? i : items[static_cast<size_t>(b * n + i)]));
    }
    if (fault_ == 2) scores.pop_back();
    return {};
  }

 private:
  int stage_, model_, fault_;
};

std::unique_ptr<CascadeRunner> runner_of(int max_batch, int fault = 0) {
  RunnerOptions options;
  options.max_batch = max_batch;
  options.open = [fault](const std::string&, const CascadeSpec&, int stage, int model,
                         int) -> Result<std::unique_ptr<Scorer>> {
    return std::unique_ptr<Scorer>(std::make_unique<ToyScorer>(stage, model, fault));
  };
  return CascadeRunner::load("", small_cascade(), options).value();
}

// By a stable sort of everything, one request at a time.
std::vector<int> naive(const CascadeSpec& spec, const CascadeRequest& request) {
  std::vector<int64_t> pool;
  for (int item = 0; item <= kItems; ++item) pool.push_back(item);
  const auto& chain = spec.chains[static_cast<size_t>(request.chain)];
  for (int k = 0; k < 2; ++k) {
    std::vector<std::pair<float, int64_t>> scored;
    for (const int64_t item : pool) {
      float score = toy_score(k, chain[static_cast<size_t>(2 * k)], request.history, item);
      const bool seen = std::find(request.seen.begin(), request.seen.end(), item) != request.seen.end();
      if (!std::isfinite(score) || (k == 0 && (item == 0 || seen))) score = -INFINITY;
      scored.emplace_back(score, item);
    }
    std::stable_sort(scored.begin(), scored.end(), [](auto& a, auto& b) { return a.first > b.first; });
    pool.clear();
    const int keep = spec.stages[static_cast<size_t>(k)]
                         .counts[static_cast<size_t>(chain[static_cast<size_t>(2 * k + 1)])];
    for (int i = 0; i < keep; ++i) pool.push_back(scored[static_cast<size_t>(i)].second);
  }
  return {pool.begin(), pool.end()};
}

TEST(Runner, EqualsTheNaiveTwinWhateverTheBatch) {
  const CascadeSpec spec = small_cascade();
  Rng rng(1);
  std::vector<std::vector<int64_t>> histories(50, std::vector<int64_t>(kLength));
  std::vector<std::vector<int32_t>> seen(50);
  std::vector<CascadeRequest> requests;
  for (size_t i = 0; i < histories.size(); ++i) {
    for (int64_t& item : histories[i]) item = rng.below(kItems + 1);
    for (uint32_t s = rng.below(10); s > 0; --s)
      seen[i].push_back(static_cast<int32_t>(rng.below(kItems + 1)));
    requests.push_back({histories[i], seen[i], static_cast<int>(rng.below(8))});
  }
  for (const int max_batch : {1, 3, 32}) {
    auto runner = runner_of(max_batch);
    std::vector<std::vector<int>> items;
    ASSERT_TRUE(runner->serve(requests, items).ok());
    for (size_t i = 0; i < requests.size(); ++i) EXPECT_EQ(items[i], naive(spec, requests[i])) << i;
    double first_stage = 0;
    for (const auto& [key, time] : runner->times()) first_stage += key.stage == 0 ? time.requests : 0;
    EXPECT_EQ(first_stage, 50);
  }
}

TEST(BestItems, UnorderedAreTheSameItemsInThePoolsOrder) {
  Rng rng(2);
  for (int round = 0; round < 400; ++round) {
    const size_t n = 1 + rng.below(2000);
    std::vector<int64_t> pool(n);
    std::vector<float> scores(n);
    for (size_t i = 0; i < n; ++i) {
      pool[i] = static_cast<int64_t>(7 * i + 3);
      scores[i] = static_cast<float>(rng.normal());
      if (round % 4 == 1) scores[i] = static_cast<float>(rng.below(5));  // ties
      if (round % 4 == 2)
        scores[i] *= std::exp(static_cast<float>(20 * rng.normal()));  // one bucket has nearly all
      if (rng.below(10) == 0) scores[i] = rng.below(2) == 0 ? NAN : -INFINITY;
      if (rng.below(100) == 0) scores[i] = INFINITY;  // no score either
      if (round % 40 == 3) scores[i] = -INFINITY;
    }
    std::vector<std::pair<float, size_t>> order;
    for (size_t i = 0; i < n; ++i) order.emplace_back(std::isfinite(scores[i]) ? scores[i] : -INFINITY, i);
    std::stable_sort(order.begin(), order.end(), [](auto& a, auto& b) { return a.first > b.first; });
    const int keep = static_cast<int>(rng.below(static_cast<uint32_t>(n + 20)));
    std::vector<int64_t> best;
    for (size_t i = 0; i < std::min(n, static_cast<size_t>(keep)); ++i) best.push_back(pool[order[i].second]);
    EXPECT_EQ(best_items(pool, scores, keep), best) << round;
    std::sort(best.begin(), best.end());
    EXPECT_EQ(best_items(pool, scores, keep, false), best) << round;
  }
}

TEST(Runner, RefusesBadRequestsAndPassesFaultsOn) {
  auto runner = runner_of(4);
  std::vector<std::vector<int>> items;
  const std::vector<int64_t> good(kLength, 1), high(kLength, kItems + 1), low(kLength, -1), brief(2, 1);
  const auto serve = [&](std::span<const int64_t> history, int chain) {
    const CascadeRequest request{history, {}, chain};
    return runner->serve({&request, 1}, items).ok();
  };
  EXPECT_TRUE(serve(good, 0));
  EXPECT_FALSE(serve(high, 0));
  EXPECT_FALSE(serve(low, 0));
  EXPECT_FALSE(serve(brief, 0));
  EXPECT_FALSE(serve(good, -1));
  EXPECT_FALSE(serve(good, 8));
  runner = runner_of(4, 1);
  EXPECT_FALSE(serve(good, 0));
  runner = runner_of(4, 2);
  EXPECT_FALSE(serve(good, 0));
}

TEST(Runner, ModelThatIsNotThereIsNamed) {
  CascadeSpec spec = small_cascade();
  spec.stages[0].models[0].file = "no_such_model.onnx";
  const auto runner = CascadeRunner::load(testing::TempDir(), spec, {});
  ASSERT_FALSE(runner.ok());
  EXPECT_NE(runner.error().message.find("no_such_model.onnx"), std::string::npos);
}

std::string npy(const std::string& type, const std::string& shape, size_t bytes) {
  std::string header = "{'descr': '" + type + "', 'fortran_order': False, 'shape': " + shape + ", }";
  std::string file = "\x93NUMPY";
  file += '\x01';
  file += '\0';
  file += static_cast<char>(header.size());
  file += '\0';
  return file + header + std::string(bytes, '\0');
}

TEST(Npy, ReadsTablesAndRefusesTheRest) {
  EXPECT_EQ(parse_floats(npy("<f4", "(3, 2)", 24), "a", 2).value().rows, 3);
  EXPECT_EQ(parse_integers(npy("<i4", "(3, 2)", 24), "a", 0).value().columns, 2);
  std::string nan = npy("<f4", "(1, 1)", 4);
  const float value = NAN;
  std::memcpy(nan.data() + nan.size() - 4, &value, 4);
  for (const std::string& bytes :
       {std::string(), std::string("\x93NUMPY"), npy("<f8", "(3, 2)", 48), npy("<f4", "(3, 2)", 23),
        npy("<f4", "(3, 3)", 36), npy("<f4", "(3,)", 12), npy("<f4", "(99999999999999999999, 2)", 24),
        npy("<f4", "(-1, 2)", 24), npy("<f4", "", 24), nan}) {
    EXPECT_FALSE(parse_floats(bytes, "a", 2).ok()) << bytes.size();
  }
  const std::string whole = npy("<f4", "(3, 2)", 24);
  for (size_t n = 0; n < whole.size(); ++n) EXPECT_FALSE(parse_floats(whole.substr(0, n), "a", 2).ok());
}

}  // namespace
}  // namespace frugal::cascade
