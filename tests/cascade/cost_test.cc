// Measured costs: monotone, kept in a file, compared with FLOPs.
#include "cascade/cost.h"

#include <gtest/gtest.h>

#include <filesystem>

#include "base/file.h"
#include "base/rng.h"
#include "cascade/rank.h"
#include "cascade/synthetic.h"

namespace frugal::cascade {
namespace {

// A cost for every stage, model and count of the synthetic cascade: a fixed part and one for each item.
CascadeCosts costs_of(const CascadeSpec& spec) {
  CascadeCosts costs;
  costs.batches = {1, 16};
  costs.overhead_s = 1e-6;
  costs.joules_per_cpu_s = {2, 1, 3, Provenance::kModelled};
  costs.cpu_name = "a processor";
  for (int k = 0; k < static_cast<int>(spec.stages.size()); ++k) {
    const auto& counts = spec.stages[static_cast<size_t>(std::max(k - 1, 0))].counts;
    for (int m = 0; m < static_cast<int>(spec.stages[static_cast<size_t>(k)].models.size()); ++m) {
      StageCosts stage{k, m, counts, {}, {}, {}};
      for (const double fixed : {3e-6, 1e-6}) {
        for (const int count : counts) stage.cpu_s.push_back(fixed + (1 + m) * 1e-8 * count);
      }
      stage.wall_s = stage.cpu_raw_s = stage.cpu_s;
      costs.stages.push_back(std::move(stage));
    }
  }
  return costs;
}

TEST(Rank, RisingFitIsTheNearestThatRises) {
  std::vector<double> values{3, 1, 2, 5, 4, 6};
  make_rising(values);
  const std::vector<double> by_hand{2, 2, 2, 4.5, 4.5, 6};
  for (size_t i = 0; i < values.size(); ++i) EXPECT_NEAR(values[i], by_hand[i], 1e-12);
  // No other rising sequence is nearer: tried at random.
  Rng rng(1);
  for (int round = 0; round < 50; ++round) {
    std::vector<double> raw(6), fit;
    for (double& x : raw) x = rng.normal();
    fit = raw;
    make_rising(fit);
    EXPECT_TRUE(std::is_sorted(fit.begin(), fit.end()));
    const auto distance = [&](const std::vector<double>& to) {
      double sum = 0;
      for (size_t i = 0; i < raw.size(); ++i) sum += (raw[i] - to[i]) * (raw[i] - to[i]);
      return sum;
    };
    for (int other = 0; other < 200; ++other) {
      std::vector<double> rival = fit;
      for (double& x : rival) x += 0.1 * rng.normal();
      std::sort(rival.begin(), rival.end());
      EXPECT_GE(distance(rival), distance(fit) - 1e-12);
    }
  }
}

TEST(Rank, UnimodalFitIsTheNearestThatRisesAndFalls) {
  Rng rng(5);
  for (int round = 0; round < 50; ++round) {
    std::vector<double> values(1 + rng.below(12));
    for (double& value : values) value = rng.below(4) == 0 ? 0.5 : rng.normal();
    std::vector<double> fitted = values;
    const size_t mode = make_unimodal(fitted);
    const auto error = [&](const std::vector<double>& other) {
      double sum = 0;
      for (size_t i = 0; i < values.size(); ++i) sum += (other[i] - values[i]) * (other[i] - values[i]);
      return sum;
    };
    for (size_t i = 1; i < fitted.size(); ++i) {
      if (i <= mode) {
        EXPECT_LE(fitted[i - 1], fitted[i]);
      } else {
        EXPECT_GT(fitted[mode], fitted[i]);
        EXPECT_GE(fitted[i - 1], fitted[i]);
      }
    }
    // No other that rises and falls is nearer: those around the fit, and those of other modes.
    for (int other = 0; other < 300; ++other) {
      std::vector<double> drawn = other % 2 == 0 ? fitted : values;
      for (double& value : drawn) value += 0.3 * rng.normal() * rng.uniform();
      const size_t top = rng.below(static_cast<uint32_t>(drawn.size()));
      for (size_t i = top; i-- > 0;) drawn[i] = std::min(drawn[i], drawn[i + 1]);
      for (size_t i = top + 1; i < drawn.size(); ++i) drawn[i] = std::min(drawn[i], drawn[i - 1]);
      EXPECT_LE(error(fitted), error(drawn) + 1e-12);
    }
  }
}

TEST(Costs, SumOverStagesByTheItemsThatEachScores) {
  const CascadeSpec spec = SyntheticWorld::create({}).value().spec();
  const CascadeCosts costs = costs_of(spec);
  const auto cpu_s = costs.cpu_s(spec, 1);
  ASSERT_EQ(cpu_s.size(), static_cast<size_t>(spec.n_chains()));
  for (int j = 0; j < spec.n_chains(); ++j) {
    const auto& actions = spec.chains[static_cast<size_t>(j)];
    double sum = 1e-6;
    for (size_t k = 0; k < spec.stages.size(); ++k) {
      const size_t of = k == 0 ? 0 : k - 1;
      sum += 1e-6 +
             (1 + actions[2 * k]) * 1e-8 * spec.stages[of].counts[static_cast<size_t>(actions[2 * of + 1])];
    }
    EXPECT_NEAR(cpu_s[static_cast<size_t>(j)], sum, 1e-15) << j;
  }
  EXPECT_LT(costs.cpu_s(spec, 1)[0], costs.cpu_s(spec, 0)[0]);
}

TEST(Costs, KeptInAFileThatIsRefusedWhenItDoesNotFit) {
  const CascadeSpec spec = SyntheticWorld::create({}).value().spec();
  const CascadeCosts costs = costs_of(spec);
  const std::string path = testing::TempDir() + "costs_test.json";
  ASSERT_TRUE(save_costs(path, costs).ok());
  const auto read = load_costs(path, spec);
  ASSERT_TRUE(read.ok()) << read.error().message;
  EXPECT_EQ(read->cpu_s(spec, 0), costs.cpu_s(spec, 0));
  EXPECT_EQ(read->joules_per_cpu_s.value, 2);
  const std::string text = read_file(path).value();
  const auto refused = [&](const std::string& from, const std::string& to) {
    std::string changed = text;
    changed.replace(changed.find(from), from.size(), to);
    EXPECT_TRUE(write_file_atomically(path, changed).ok());
    return !load_costs(path, spec).ok();
  };
  EXPECT_TRUE(refused("frugal-cascade-costs", "something-else"));
  EXPECT_TRUE(refused("\"overhead_s\": 1e-06", "\"overhead_s\": -1"));
  EXPECT_TRUE(refused("\"stage\": 0", "\"stage\": 7"));    // nothing is said of the first stage
  EXPECT_TRUE(refused("\"cpu_s\": [", "\"cpu_s\": [1,"));  // one too many
  EXPECT_TRUE(refused("\"stages\"", "\"nothing\""));
  ASSERT_TRUE(write_file_atomically(path, text.substr(0, text.size() / 2)).ok());
  EXPECT_EQ(load_costs(path, spec).error().code, ErrorCode::kCorrupt);
  std::filesystem::remove(path);
  EXPECT_EQ(load_costs(path, spec).error().code, ErrorCode::kNotFound);
}

TEST(Costs, PairsThatFlopsRankOtherwiseAreCounted) {
  const std::vector<double> flops{1, 2, 3, 4}, cpu_s{1, 5, 2, 6};
  const auto ranks = compare_ranks(flops, cpu_s, 3);
  EXPECT_EQ(ranks.pairs, 6);
  EXPECT_EQ(ranks.swapped, 1);
  ASSERT_EQ(ranks.worst.size(), 1u);
  EXPECT_EQ(ranks.worst[0].cheap, 1);
  EXPECT_EQ(ranks.worst[0].dear, 2);
  EXPECT_NEAR(ranks.worst[0].cpu_ratio, 2.5, 1e-12);
  EXPECT_NEAR(ranks.spearman, 0.8, 1e-12);
}

}  // namespace
}  // namespace frugal::cascade
