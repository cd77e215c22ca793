// The simulated day, the carbon year, replayed data: the loop keeps its budget, files that are wrong are
// refused.
#include "cascade/simulate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "base/file.h"
#include "cascade/evaluate.h"

namespace frugal::cascade {
namespace {

DayOptions short_day() {
  DayOptions options;
  options.seconds = 7200;
  options.mean_rps = 5;
  options.spike_share = 0.1;
  return options;
}

TEST(Day, LoadHasTheMeanThatWasAskedForAndASpike) {
  DayOptions options;
  options.spike_factor = 1;
  double sum = 0;
  for (int s = 0; s < 86400; s += 10) sum += day_load(options, s) / 8640;
  EXPECT_NEAR(sum, options.mean_rps, 0.02 * options.mean_rps);
  const double calm = day_load(options, 0.63 * 86400);
  options.spike_factor = 3;
  EXPECT_NEAR(day_load(options, 0.63 * 86400), 3 * calm, 1e-9);
}

TEST(Day, BudgetIsUsedAndKeptThroughTheSpike) {
  const auto world = SyntheticWorld::create({}).value();
  const auto day = simulate_day(world, nullptr, short_day());
  ASSERT_TRUE(day.ok());
  EXPECT_GE(day->utilisation, 0.96);
  EXPECT_LE(day->over_use, 0.006);
  double sum = 0, requests = 0;
  for (const auto& row : day->rows) {
    sum += row.spent;
    requests += row.requests;
    EXPECT_LE(row.predicted, row.bound * (1 + std::max(0.0, row.spent / row.budget - 1)) +
                                 1e-3);  // nothing beats the optimum
  }
  EXPECT_NEAR(sum, day->spent, 1e-6 * sum);
  EXPECT_EQ(requests, day->requests);
}

TEST(Day, RegretIsSmallOnStationaryLoad) {
  const auto world = SyntheticWorld::create({}).value();
  DayOptions options = short_day();
  options.stationary = true;
  const auto day = simulate_day(world, nullptr, options);
  ASSERT_TRUE(day.ok());
  EXPECT_LE(day->regret, 0.02);  // windows of 300 requests only: the bench's are twice as large
  EXPECT_GE(day->regret, -1e-3);
}

TEST(Day, OptionsThatMakeNoSenseAreRefused) {
  const auto world = SyntheticWorld::create({}).value();
  DayOptions options;
  options.mean_rps = 0;
  EXPECT_FALSE(simulate_day(world, nullptr, options).ok());
  options.mean_rps = 1e9;
  EXPECT_FALSE(simulate_day(world, nullptr, options).ok());
  EXPECT_FALSE(SyntheticWorld::create({.n_chains = 63}).ok());
  EXPECT_FALSE(SyntheticWorld::create({.n_users = 0}).ok());
}

TEST(CarbonYear, PricingCarbonSavesWhereTheGridVariesAndNothingWhereItDoesNot) {
  const auto world = SyntheticWorld::create({}).value();
  std::vector<double> varying, flat;
  for (int h = 0; h < 24 * 28; ++h) {
    varying.push_back(300 + 200 * std::sin(2 * M_PI * h / 24));
    flat.push_back(300);
  }
  const CarbonYear wave = simulate_carbon_year(world, varying, varying, 1e-9, 0.1, 1);
  EXPECT_LT(wave.gco2e_oracle, 0.95 * wave.gco2e_constant);
  EXPECT_GE(wave.gco2e_causal, wave.gco2e_oracle * (1 - 1e-3));
  EXPECT_LT(wave.gco2e_causal, wave.gco2e_constant);
  EXPECT_GT(wave.reward_causal_equal_carbon, wave.reward_constant);
  const CarbonYear still = simulate_carbon_year(world, flat, flat, 1e-9, 0.1, 1);
  // What is left is what sharing one budget over hours of unlike load brings.
  EXPECT_LE(still.gco2e_oracle, still.gco2e_constant * (1 + 1e-3));
  EXPECT_LT(wave.gco2e_oracle / wave.gco2e_constant, still.gco2e_oracle / still.gco2e_constant);
}

TEST(Intensity, ReadsTheExportFormatAndRefusesOthers) {
  const std::string path = testing::TempDir() + "intensity_test.csv";
  std::string text =
      "Datetime (UTC),Carbon Intensity gCO2eq/kWh (direct),Carbon Intensity gCO2eq/kWh (LCA)\n";
  for (int h = 0; h < 24; ++h) text += "2022-01-01 00:00:00,1," + std::to_string(100 + h) + "\n";
  text += "2022-01-02 00:00:00,1,\n";  // a gap
  ASSERT_TRUE(write_file_atomically(path, text).ok());
  const auto hours = read_intensity(path);
  ASSERT_TRUE(hours.ok());
  ASSERT_EQ(hours->size(), 25u);
  EXPECT_EQ((*hours)[3], 103);
  EXPECT_EQ((*hours)[24], 123);
  ASSERT_TRUE(write_file_atomically(path, "a,b\n1,2\n").ok());
  EXPECT_FALSE(read_intensity(path).ok());
  EXPECT_FALSE(read_intensity(path + ".not_there").ok());
  std::filesystem::remove(path);
}

// A replayed set of the synthetic world: clicks of every chain.
Replayed replay(const SyntheticWorld& world, int n, uint64_t seed) {
  Replayed set;
  set.n = n;
  Rng rng(seed, 3);
  std::vector<float> x(12), r(64);
  for (int i = 0; i < n; ++i) {
    const auto request = world.draw(rng);
    world.features(request, x);
    world.truth(request, r);
    for (float& value : r)
      value = static_cast<float>(SyntheticWorld::clicks(static_cast<double>(value), rng));
    set.features.insert(set.features.end(), x.begin(), x.end());
    set.rewards.insert(set.rewards.end(), r.begin(), r.end());
    set.user.push_back(i);
  }
  return set;
}

TEST(Evaluate, GreenFlowBeatsStaticAndItsPeersWhereRequestsDiffer) {
  const auto world = SyntheticWorld::create({}).value();
  EvaluateOptions options;
  options.seeds = 1;
  options.resamples = 40;
  options.splits = 2;
  options.train.epochs = 5;
  const Replayed fit = replay(world, 3000, 1), test = replay(world, 2000, 2);
  const auto models = train_seeds(world.spec(), fit, test, options);
  ASSERT_TRUE(models.ok()) << models.error().message;
  EXPECT_EQ((*models)[0].fit.size(), 2 * fit.rewards.size());  // each request once for each split
  const auto result = evaluate(world.spec(), fit, test, *models, options);
  ASSERT_TRUE(result.ok()) << result.error().message;
  EXPECT_GT(result->flops_saved, 0);  // one seed and a short training: the bench has the figure
  EXPECT_GT(result->reward_ratio, 0.9);
  EXPECT_LE(result->saved_low, result->saved_high);
  for (const auto& peer : result->at_equal_compute) {
    if (peer.kind == PolicyKind::kStatic) {
      EXPECT_GT(peer.gain, 0);
    }
    if (peer.kind == PolicyKind::kOracle) {
      EXPECT_LT(peer.gain, 0);  // clicks known beforehand cannot be beaten
    }
  }
  double share = 0;
  for (const double s : result->chain_share) share += s;
  EXPECT_NEAR(share, 1, 1e-6);
  // Who asks for more clicks on the fitting requests spends more.
  options.static_share = 0.5;
  const auto plain = evaluate(world.spec(), fit, test, *models, options);
  options.margin = 0.02;
  const auto dearer = evaluate(world.spec(), fit, test, *models, options);
  ASSERT_TRUE(plain.ok() && dearer.ok());
  EXPECT_GT(dearer->equal_flops, plain->equal_flops);
  options.splits = 3;  // models of two
  EXPECT_FALSE(evaluate(world.spec(), fit, test, *models, options).ok());
}

TEST(Replayed, DamagedArraysAreRefused) {
  const auto world = SyntheticWorld::create({}).value();
  const std::string folder = testing::TempDir() + "replayed_test";
  std::filesystem::create_directories(folder);
  const auto npy = [](int n, int m, const char* type, size_t bytes) {
    std::string header = std::string("{'descr': '") + type + "', 'fortran_order': False, 'shape': (" +
                         std::to_string(n) + ", " + std::to_string(m) + "), }";
    header.resize(118, ' ');
    header.back() = '\n';
    return std::string("\x93NUMPY\x01\x00\x76\x00", 10) + header + std::string(bytes, '\0');
  };
  const auto write = [&](const char* name, const std::string& bytes) {
    ASSERT_TRUE(write_file_atomically(folder + "/" + name, bytes).ok());
  };
  write("features_fit.npy", npy(3, 12, "<f4", 3 * 12 * 4));
  write("rewards_fit.npy", npy(3, 64, "<f4", 3 * 64 * 4));
  ASSERT_TRUE(load_replayed(folder, "fit", world.spec()).ok());
  EXPECT_FALSE(load_replayed(folder, "test", world.spec()).ok());
  for (const std::string& bad :
       {npy(2, 64, "<f4", 2 * 64 * 4), npy(3, 63, "<f4", 3 * 63 * 4), npy(3, 64, "<f8", 3 * 64 * 8),
        npy(3, 64, "<f4", 3 * 64 * 4 - 1), npy(3, 64, "<f4", 0), std::string("x"), std::string()}) {
    write("rewards_fit.npy", bad);
    EXPECT_FALSE(load_replayed(folder, "fit", world.spec()).ok());
  }
  std::filesystem::remove_all(folder);
}

TEST(Cascade, DescriptionsThatMakeNoSenseAreRefused) {
  const std::string folder = testing::TempDir() + "cascade_spec_test";
  std::filesystem::create_directories(folder);
  const auto loads = [&](const std::string& json) {
    EXPECT_TRUE(write_file_atomically(folder + "/cascade.json", json).ok());
    return load_cascade(folder).ok();
  };
  const std::string good =
      R"({"format":"frugal-cascade","version":1,"source":"s","shown":2,"history_length":3,"n_items":9,"features":["a"],
      "stages":[{"name":"r","counts":[5,8],"models":[{"name":"m","file":"","flops_fixed":1,"flops_item":2}]}],"chains":[{"actions":[0,1]}]})";
  EXPECT_TRUE(loads(good));
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string json = good;
    json.replace(json.find(from), from.size(), to);
    return json;
  };
  EXPECT_FALSE(loads(with("[0,1]", "[0,2]")));
  EXPECT_FALSE(loads(with("[0,1]", "[0]")));
  EXPECT_FALSE(loads(with("[5,8]", "[8,5]")));
  EXPECT_FALSE(loads(with("\"flops_item\":2", "\"flops_item\":-2")));
  EXPECT_FALSE(loads(with("\"version\":1", "\"version\":2")));
  EXPECT_FALSE(loads(with("\"chains\"", "\"chain\"")));
  EXPECT_FALSE(loads(good.substr(0, 40)));
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace frugal::cascade
