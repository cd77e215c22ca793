// The cascade that runs: what a request gets equals the naive twin, alone or in a batch of any kind; stages
// that fail or answer nonsense are errors; a replay counts what is shown; arrays in files are read or refused
// with the reason.
#include "cascade/runner.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <filesystem>

#include "base/file.h"
#include "base/rng.h"
#include "cascade/npy.h"
#include "cascade/replay.h"

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
  Result<std::span<float>> score(std::span<const int64_t> histories, std::span<const int64_t> items,
                                 int batch, int n) override {
    if (fault_ == 1) return {ErrorCode::kUnavailable, "the scorer is away"};
    scores_.clear();
    for (int b = 0; b < batch; ++b) {
      const auto history = histories.subspan(static_cast<size_t>(b) * kLength, kLength);
      for (int i = 0; i < n; ++i)
        scores_.push_back(
            toy_score(stage_, model_, history, items.empty() ? i : items[static_cast<size_t>(b * n + i)]));
    }
    if (fault_ == 2) scores_.pop_back();
    return std::span<float>(scores_);
  }

 private:
  std::vector<float> scores_;
  int stage_, model_, fault_;
};

OpenScorer toy_scorers(int fault = 0) {
  return [fault](const std::string&, const CascadeSpec&, int stage, int model,
                 int) -> Result<std::unique_ptr<Scorer>> {
    return std::unique_ptr<Scorer>(std::make_unique<ToyScorer>(stage, model, fault));
  };
}

std::unique_ptr<CascadeRunner> runner_of(int max_batch, int fault = 0) {
  RunnerOptions options;
  options.max_batch = max_batch;
  options.open = toy_scorers(fault);
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

TEST(Select, InstructionSetsGiveTheSameKeysAndCounts) {
  const SelectKernel avx2 = find_select_kernel("avx2"), generic = find_select_kernel("generic");
  if (avx2.keys == nullptr) GTEST_SKIP() << "no AVX2 here";
  Rng rng(3);
  for (int round = 0; round < 200; ++round) {
    const size_t n = 1 + rng.below(200), padded = (n + kSelectLanes - 1) / kSelectLanes * kSelectLanes;
    std::vector<float> scores(n);
    for (float& score : scores) {
      score = static_cast<float>(rng.normal());
      if (rng.below(5) == 0)
        score = std::vector<float>{0.0f, -0.0f, NAN, INFINITY, -INFINITY, FLT_MAX, -FLT_MAX}[rng.below(7)];
    }
    std::vector<int32_t> a(padded), b(padded);
    int32_t least_a, least_b, most_a, most_b;
    generic.keys(scores.data(), n, a.data(), &least_a, &most_a);
    avx2.keys(scores.data(), n, b.data(), &least_b, &most_b);
    EXPECT_EQ(a, b);
    EXPECT_EQ(least_a, least_b);
    EXPECT_EQ(most_a, most_b);
    for (size_t i = 0; i < n; ++i) {
      const auto reached =
          static_cast<size_t>(std::count_if(a.begin(), a.end(), [&](int32_t key) { return key >= a[i]; }));
      EXPECT_EQ(generic.count(a.data(), padded, a[i]), reached);
      EXPECT_EQ(avx2.count(a.data(), padded, a[i]), reached);
      for (size_t j = 0; j < n; ++j) {
        if (std::isfinite(scores[i]) && std::isfinite(scores[j])) {
          ASSERT_EQ(scores[i] < scores[j], a[i] < a[j]);
        }
      }
    }
  }
}

TEST(Select, UnorderedAreTheSameItemsInThePoolsOrder) {
  Rng rng(2);
  Selector selector;
  std::vector<int64_t> chosen;
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
    selector.best_items(pool, scores, keep, true, chosen);
    EXPECT_EQ(chosen, best) << round;
    std::sort(best.begin(), best.end());
    selector.best_items(pool, scores, keep, false, chosen);
    EXPECT_EQ(chosen, best) << round;
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

// All requests, all chains by the naive twin, and what a replay says of them.
TEST(Replay, CountsTheClicksOfWhatIsShownHoweverRequestsArrive) {
  const CascadeSpec spec = small_cascade();
  const std::string folder = testing::TempDir() + "replay_test";
  std::filesystem::create_directories(folder);
  constexpr int kRequests = 120, kClicked = 8;
  Rng rng(4);
  Array2<int32_t> history{kRequests, kLength, {}}, seen{kRequests, 3, {}}, clicked{kRequests, kClicked, {}};
  for (int i = 0; i < kRequests * kLength; ++i)
    history.values.push_back(static_cast<int>(rng.below(kItems + 1)));
  for (int i = 0; i < kRequests; ++i) {
    seen.values.insert(seen.values.end(), {static_cast<int>(1 + rng.below(kItems)), 0, 0});
    for (int c = 0; c < kClicked; ++c)
      clicked.values.push_back(c == 0 ? 0 : 1 + 8 * c - static_cast<int>(rng.below(8)));
  }
  ASSERT_TRUE(write_file_atomically(folder + "/history_test.npy", npy_bytes(history)).ok());
  ASSERT_TRUE(write_file_atomically(folder + "/seen_test.npy", npy_bytes(seen)).ok());
  ASSERT_TRUE(write_file_atomically(folder + "/clicked_test.npy", npy_bytes(clicked)).ok());
  Replayed requests;
  requests.n = kRequests;
  requests.features.assign(kRequests, 0);
  double expected = 0;
  constexpr int kChain = 5;
  for (size_t i = 0; i < kRequests; ++i) {
    const std::vector<int64_t> past(history.values.begin() + static_cast<std::ptrdiff_t>(i * kLength),
                                    history.values.begin() + static_cast<std::ptrdiff_t>((i + 1) * kLength));
    for (int j = 0; j < spec.n_chains(); ++j) {
      int hits = 0;
      for (const int item : naive(spec, {past, std::span(seen.values).subspan(3 * i, 1), j})) {
        const auto of = std::span(clicked.values).subspan(i * kClicked, kClicked);
        hits += std::find(of.begin(), of.end(), item) != of.end();
      }
      requests.rewards.push_back(static_cast<float>(hits));
      if (j == kChain) expected += hits;
    }
    requests.user.push_back(static_cast<int>(i));
  }
  auto meter = meter::PowerMeter::open({});
  ASSERT_TRUE(meter.ok());
  const ReplayPolicy policy{"one", kChain, nullptr, {}};
  for (const double rate : {0.0, 20000.0}) {
    ReplayOptions options;
    options.rounds = 2;
    options.batch = 16;
    options.rate = rate;
    options.open = toy_scorers();
    const auto result = replay(folder, "test", spec, requests, {&policy, 1}, **meter, options);
    ASSERT_TRUE(result.ok()) << result.error().message;
    EXPECT_EQ(result->disagreeing, 0);
    EXPECT_NEAR(result->arms[0].clicks, expected / kRequests, 1e-12);
    EXPECT_NEAR(result->arms[0].flops, chain_flops(spec, kChain), 1e-9);
    EXPECT_EQ(result->arms[0].round_cpu_s.size(), 2u);
    EXPECT_EQ(result->arms[0].latency_s > 0, rate > 0);
    EXPECT_LE(result->arms[0].batch, 16);
  }
  ReplayOptions options;
  options.rate = -1;
  EXPECT_FALSE(replay(folder, "test", spec, requests, {&policy, 1}, **meter, options).ok());
  options.rate = 0;
  options.open = toy_scorers();
  requests.n = kRequests + 1;  // more than there are
  EXPECT_FALSE(replay(folder, "test", spec, requests, {&policy, 1}, **meter, options).ok());
  std::filesystem::remove_all(folder);
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
