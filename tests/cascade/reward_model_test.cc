// The reward model: monotone for any weights, equal to its slow twin, better than its ablations on known
// truth, and unharmed by damaged files and bad logs.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>

#include "base/file.h"
#include "cascade/predict.h"
#include "cascade/synthetic.h"

namespace frugal::cascade {
namespace {

struct Judged {
  std::vector<float> features, truth;
  int n = 0;
};

Judged fresh_requests(const SyntheticWorld& world, int n, uint64_t seed) {
  Judged judged;
  judged.n = n;
  Rng rng(seed, 9);
  std::vector<float> x(static_cast<size_t>(world.spec().n_features())),
      r(static_cast<size_t>(world.spec().n_chains()));
  for (int i = 0; i < n; ++i) {
    const auto request = world.draw(rng);
    world.features(request, x);
    world.truth(request, r);
    judged.features.insert(judged.features.end(), x.begin(), x.end());
    judged.truth.insert(judged.truth.end(), r.begin(), r.end());
  }
  return judged;
}

TrainOptions quick() {
  TrainOptions options;
  options.epochs = 6;
  return options;
}

TEST(RewardModel, FastEqualsSlowAndRisesWithEveryCountForAnyRequest) {
  for (const int n_chains : {64, 1000}) {
    const auto world = SyntheticWorld::create({.n_chains = n_chains}).value();
    TrainOptions options = quick();
    options.epochs = 1;
    const auto model = RewardModel::train(world.spec(), world.logs(2000, 3), options).value();
    Rng rng(4);
    std::vector<float> x(12), r(static_cast<size_t>(n_chains));
    for (int round = 0; round < 50; ++round) {
      for (float& value : x) value = static_cast<float>(6 * rng.normal());  // far outside what was trained on
      model.predict(x, r);
      for (int j = 0; j < n_chains; ++j) {
        const double slow = model.predict_slowly(x, j);
        ASSERT_NEAR(static_cast<double>(r[static_cast<size_t>(j)]), slow, 2e-5 * (1 + std::fabs(slow)))
            << "chain " << j;
      }
      // Every pair of chains that differs in one count alone, upwards.
      for (int a = 0; a < n_chains; ++a) {
        for (size_t k = 0; k < 3; ++k) {
          auto more = world.spec().chains[static_cast<size_t>(a)];
          ++more[2 * k + 1];
          for (int b = a + 1; b < n_chains; ++b) {
            if (world.spec().chains[static_cast<size_t>(b)] != more) continue;
            // Rounding of a few sums: relative to the value and, as an offset is taken off, to one.
            const float low = r[static_cast<size_t>(a)];
            ASSERT_GE(r[static_cast<size_t>(b)], low - 1e-6f * (1 + std::fabs(low))) << a << " -> " << b;
            break;
          }
        }
      }
    }
  }
}

TEST(RewardModel, InstructionSetsGiveTheSameBits) {
  const PredictKernel generic = find_predict_kernel("generic"), other = find_predict_kernel("avx2");
  if (other == nullptr) GTEST_SKIP() << "this processor has one set only";
  constexpr int kZ = 21, kHeads = 40, kGains = 30, kLeaves = 333;
  Rng rng(8);
  std::vector<float> weights(kZ * kHeads), z(kZ);
  std::vector<PredictView::Gain> gains(kGains);
  std::vector<PredictView::Node> first(17), last(kLeaves);
  std::vector<int> chain_of_leaf(kLeaves);
  for (PredictView::Gain& gain : gains) {
    gain.head = static_cast<int>(rng.below(kHeads - kBases));
    for (float& phi : gain.phi) phi = static_cast<float>(rng.uniform());
  }
  const auto node = [&](int parents) {
    return PredictView::Node{static_cast<int>(rng.below(static_cast<uint32_t>(parents))),
                             static_cast<int>(rng.below(kGains)), static_cast<int>(rng.below(kHeads))};
  };
  for (auto& one : first) one = node(1);
  for (auto& one : last) one = node(17);
  for (int i = 0; i < kLeaves; ++i) chain_of_leaf[static_cast<size_t>(i)] = kLeaves - 1 - i;
  for (const bool recursive : {true, false}) {
    for (const bool monotone : {true, false}) {
      const PredictView view{weights.data(),
                             kZ,
                             kHeads,
                             gains.data(),
                             kGains,
                             {first.data(), last.data()},
                             {first.size(), last.size()},
                             2,
                             kLeaves,
                             chain_of_leaf.data(),
                             1.5f,
                             -0.25f,
                             kHeads - 1,
                             recursive,
                             monotone};
      for (int round = 0; round < 50; ++round) {
        for (float& w : weights) w = static_cast<float>((round % 5 == 0 ? 40 : 1) * rng.normal());
        for (float& value : z) value = static_cast<float>(rng.normal());
        if (round == 49) z[3] = NAN;
        std::vector<float> scratch(kHeads + kGains + 2 * kLeaves), a(kLeaves), b(kLeaves);
        generic(view, z.data(), scratch.data(), a.data());
        other(view, z.data(), scratch.data(), b.data());
        ASSERT_EQ(0, std::memcmp(a.data(), b.data(), a.size() * sizeof(float))) << "round " << round;
      }
    }
  }
}

TEST(RewardModel, LearnsTheTruthAndEachPartHelps) {
  const auto world = SyntheticWorld::create({}).value();
  const LoggedChains logs = world.logs(20000, 1);
  const Judged judged = fresh_requests(world, 400, 2);
  const auto quality = [&](const TrainOptions& options) {
    return judge(RewardModel::train(world.spec(), logs, options).value(), judged.features, judged.truth,
                 judged.n);
  };
  TrainOptions options = quick();
  const Quality full = quality(options);
  EXPECT_GT(full.spearman, 0.85);
  EXPECT_GT(full.within_spearman, 0.9);
  EXPECT_LT(std::fabs(full.bias), 0.1);
  EXPECT_LT(full.calibration, 0.15);
  // Each part left out costs accuracy. (Without the constraint the weights may also turn a count's effect
  // around.)
  options.model = {.recursive = false};
  EXPECT_GT(quality(options).rmse, full.rmse);
  options.model = {.multi_basis = false};
  EXPECT_GT(quality(options).rmse, full.rmse);
  options.model = {.monotone = false};
  EXPECT_GT(quality(options).rmse, full.rmse);
  options.model = {.hidden = 0};
  EXPECT_GT(quality(options).rmse, full.rmse);
}

TEST(RewardModel, WeightingByPropensityFitsTheRareChainsBetter) {
  // A model too small for the truth has to choose where to be wrong: with weights evenly, without them where
  // the policy seldom went.
  const auto world = SyntheticWorld::create({.noise = 0}).value();
  const LoggedChains logs = world.logs(20000, 5);
  const Judged judged = fresh_requests(world, 300, 6);
  TrainOptions options = quick();
  options.model = {.recursive = false, .multi_basis = false, .hidden = 0};
  const Quality corrected =
      judge(RewardModel::train(world.spec(), logs, options).value(), judged.features, judged.truth, judged.n);
  options.off_policy = false;
  const Quality naive =
      judge(RewardModel::train(world.spec(), logs, options).value(), judged.features, judged.truth, judged.n);
  EXPECT_LT(corrected.rmse, naive.rmse);
}

TEST(RewardModel, FeaturesThatAreNotFiniteGiveRewardsThatAreNot) {
  const auto world = SyntheticWorld::create({}).value();
  TrainOptions options = quick();
  options.epochs = 1;
  const auto model = RewardModel::train(world.spec(), world.logs(500, 1), options).value();
  std::vector<float> x(12, 0.1f), r(64);
  x[3] = NAN;
  model.predict(x, r);
  for (const float value : r) EXPECT_TRUE(std::isnan(value));
}

TEST(RewardModel, RetrainingGoesOnAndRefusesAnotherCascade) {
  const auto world = SyntheticWorld::create({}).value();
  TrainOptions options = quick();
  options.epochs = 2;
  const auto first = RewardModel::train(world.spec(), world.logs(4000, 1), options).value();
  const Judged judged = fresh_requests(world, 200, 2);
  const auto second = RewardModel::retrain(first, world.spec(), world.logs(20000, 7), quick());
  ASSERT_TRUE(second.ok());
  EXPECT_GT(judge(*second, judged.features, judged.truth, judged.n).spearman,
            judge(first, judged.features, judged.truth, judged.n).spearman);
  const auto other = SyntheticWorld::create({.n_chains = 1000}).value();
  EXPECT_FALSE(RewardModel::retrain(first, other.spec(), other.logs(500, 1), quick()).ok());
}

TEST(RewardModel, FileRoundTripsAndEveryDamageIsRefused) {
  const auto world = SyntheticWorld::create({}).value();
  TrainOptions options = quick();
  options.epochs = 1;
  const auto model = RewardModel::train(world.spec(), world.logs(500, 1), options).value();
  const std::string path = testing::TempDir() + "reward_model_test.frm";
  ASSERT_TRUE(model.save(path).ok());
  const auto loaded = RewardModel::load(path, world.spec());
  ASSERT_TRUE(loaded.ok()) << loaded.error().message;
  std::vector<float> x(12, 0.3f), a(64), b(64);
  model.predict(x, a);
  loaded->predict(x, b);
  EXPECT_EQ(a, b);
  const std::string bytes = read_file(path).value();
  for (size_t at = 0; at < bytes.size(); at += at < 56 ? 1 : 97) {
    std::string damaged = bytes;
    damaged[at] = static_cast<char>(damaged[at] ^ 0x41);
    ASSERT_TRUE(write_file_atomically(path, damaged).ok());
    EXPECT_FALSE(RewardModel::load(path, world.spec()).ok()) << "byte " << at;
  }
  for (size_t size = 0; size < bytes.size(); size += 41) {
    ASSERT_TRUE(write_file_atomically(path, bytes.substr(0, size)).ok());
    EXPECT_FALSE(RewardModel::load(path, world.spec()).ok()) << "cut at " << size;
  }
  ASSERT_TRUE(write_file_atomically(path, bytes).ok());
  const auto other = SyntheticWorld::create({.n_chains = 1000}).value();
  const auto refused = RewardModel::load(path, other.spec());
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().message.find("another cascade"), std::string::npos);
  std::filesystem::remove(path);
}

TEST(RewardModel, BadLogsAreRefusedWithTheRow) {
  const auto world = SyntheticWorld::create({}).value();
  const LoggedChains good = world.logs(200, 1);
  const auto refused = [&](const LoggedChains& logs) {
    const auto result = RewardModel::train(world.spec(), logs, quick());
    return result.ok() ? std::string() : result.error().message;
  };
  LoggedChains logs = good;
  logs.rewards[7] = NAN;
  EXPECT_NE(refused(logs).find("row 7"), std::string::npos);
  logs = good;
  logs.chains[3] = 64;
  EXPECT_NE(refused(logs).find("row 3"), std::string::npos);
  logs = good;
  logs.propensity[5] = 0;
  EXPECT_NE(refused(logs).find("row 5"), std::string::npos);
  logs = good;
  logs.features[12 * 4 + 2] = INFINITY;
  EXPECT_NE(refused(logs).find("row 4: feature 'x2'"), std::string::npos);
  logs = good;
  logs.features.pop_back();
  EXPECT_FALSE(refused(logs).empty());
  EXPECT_FALSE(refused(LoggedChains{}).empty());
}

}  // namespace
}  // namespace frugal::cascade
