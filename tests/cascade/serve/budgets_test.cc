// Budgets of carbon and latency in a served cascade.
#include "cascade/serve/budgets.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "cascade/serve/sidecar.h"
#include "cascade/synthetic.h"

namespace frugal::cascade {
namespace {

// Costs that fall where FLOPs rise would be odd; these rise with the count, at 1 J a processor second.
CascadeCosts costs_of(const CascadeSpec& spec) {
  CascadeCosts costs;
  costs.batches = {1};
  costs.joules_per_cpu_s = Estimate::exact(1);
  for (int k = 0; k < static_cast<int>(spec.stages.size()); ++k) {
    const auto& counts = spec.stages[static_cast<size_t>(std::max(k - 1, 0))].counts;
    for (int m = 0; m < static_cast<int>(spec.stages[static_cast<size_t>(k)].models.size()); ++m) {
      StageCosts stage{k, m, counts, {}, {}, {}};
      for (const int count : counts) stage.cpu_s.push_back((1 + m) * 1e-5 * count);
      stage.wall_s = stage.cpu_raw_s = stage.cpu_s;
      costs.stages.push_back(std::move(stage));
    }
  }
  return costs;
}

meter::IntensitySeries series_of(std::vector<double> hours, double from_s) {
  meter::IntensitySeries series;
  for (size_t i = 0; i < hours.size(); ++i)
    series.points.push_back({from_s + 3600 * static_cast<double>(i), hours[i]});
  return series;
}

TEST(IntensitySchedule, FollowsTheFileAndThenItsLastWeek) {
  std::vector<double> hours;
  for (int h = 0; h < 24 * 10; ++h) hours.push_back(100 + h);  // ten days
  const double start = 1.7e9;
  const auto series = series_of(hours, start);
  const auto from_within = intensity_schedule(series, start + 3 * 3600 + 60).value();
  EXPECT_EQ(from_within.rate(start + 3 * 3600 + 60), 103);
  EXPECT_EQ(from_within.rate(start + 5 * 3600), 105);
  EXPECT_EQ(from_within.rate(start + 239 * 3600), 339);
  EXPECT_EQ(from_within.rate(start + 240 * 3600), 172);  // the last week again: 240 - 168 = 72
  EXPECT_EQ(from_within.rate(start + 240 * 3600 + 40 * 168 * 3600.0 + 5 * 3600), 177);
  // Long after the end the hour of the week still fits.
  const double late = start + 240 * 3600 + 150 * 168 * 3600.0 + 30 * 3600;
  EXPECT_EQ(intensity_schedule(series, late).value().rate(late + 10), 202);
  // Before the beginning the first value holds; a short series repeats as a whole.
  EXPECT_EQ(intensity_schedule(series, start - 1e6).value().rate(start - 5e5), 100);
  const auto shorter = intensity_schedule(series_of({1, 2, 3}, start), start).value();
  EXPECT_EQ(shorter.rate(start + 4 * 3600), 2);
  EXPECT_FALSE(intensity_schedule(series_of({}, 0), 0).ok());
}

TEST(Budgets, SayWhatTheyLack) {
  const CascadeSpec spec = SyntheticWorld::create({}).value().spec();
  BudgetOptions options;
  EXPECT_EQ(make_budgets(spec, options, 0)->table->n_resources(), 1);
  options.gco2e_per_h = 1;
  EXPECT_FALSE(make_budgets(spec, options, 0).ok());  // no intensity
  options.intensity = series_of({100}, 0);
  EXPECT_FALSE(make_budgets(spec, options, 0).ok());  // no costs
  options.costs = costs_of(spec);
  options.latency_s = 1e-3;
  const auto budgets = make_budgets(spec, options, 0);
  ASSERT_TRUE(budgets.ok()) << budgets.error().message;
  EXPECT_EQ(budgets->carbon, 1);
  EXPECT_EQ(budgets->latency, 2);
  options.gco2e_per_h = -1;
  EXPECT_FALSE(make_budgets(spec, options, 0).ok());
  options.gco2e_per_h = NAN;
  EXPECT_FALSE(make_budgets(spec, options, 0).ok());
}

class ServedBudgets : public testing::Test {
 protected:
  void SetUp() override {
    TrainOptions train;
    train.epochs = 2;
    path_ = testing::TempDir() + "budgets_" + testing::UnitTest::GetInstance()->current_test_info()->name() +
            ".frm";
    ASSERT_TRUE(RewardModel::train(world_.spec(), world_.logs(2000, 1), train).value().save(path_).ok());
    options_.model_path = path_;
    options_.governor.window_s = 60;
    options_.budgets.costs = costs_of(world_.spec());
  }
  void TearDown() override { std::filesystem::remove(path_); }

  // Requests for so many ticks of a second, from a second on; what was spent of a resource in the last
  // `last`.
  double spend(Sidecar& sidecar, double from_s, int ticks, int last, const char* resource) {
    double before = 0;
    for (int t = 0; t < ticks; ++t) {
      if (t == ticks - last) before = spent(sidecar, resource);
      sidecar.tick(from_s + t);
      for (int i = 0; i < 20; ++i) {
        nlohmann::json features = nlohmann::json::array();
        std::vector<float> x(static_cast<size_t>(world_.spec().n_features()));
        world_.features(world_.draw(rng_), x);
        for (const float f : x) features.push_back(f);
        EXPECT_EQ(sidecar.decide(nlohmann::json{{"features", features}}.dump()).status, 200);
      }
    }
    return spent(sidecar, resource) - before;
  }
  static double spent(const Sidecar& sidecar, const char* resource) {
    return nlohmann::json::parse(sidecar.state().body)["resources"][resource]["spent"];
  }

  SyntheticWorld world_ = SyntheticWorld::create({}).value();
  std::string path_;
  SidecarOptions options_;
  Rng rng_{5};
};

TEST_F(ServedBudgets, CarbonFollowsTheGridsIntensity) {
  // A clean hour and a dirty one, again and again, from long ago to long after now.
  const double now = clock_seconds(CLOCK_REALTIME), start = std::floor(now / 3600) * 3600;
  options_.budgets.intensity = series_of({100, 400, 100, 400}, start);
  // A little more than the dearest chain for everyone takes in a clean hour: it binds in the dirty one.
  const auto cpu_s = options_.budgets.costs->cpu_s(world_.spec(), 0);
  const double dearest = *std::max_element(cpu_s.begin(), cpu_s.end());
  options_.budgets.gco2e_per_h = 1.2 * 20 * 3600 * dearest / 3.6e6 * 100;
  auto sidecar = Sidecar::create(world_.spec(), options_).value();
  const double per_minute = options_.budgets.gco2e_per_h / 60;
  (void)spend(*sidecar, start + 1200, 121, 60, "gco2e");
  const auto state = nlohmann::json::parse(sidecar->state().body);
  EXPECT_EQ(state["resources"]["gco2e"]["price"], 0);  // there is enough for everyone
  EXPECT_EQ(state["exhausted"], 0);
  // Three minutes touch four windows of a minute, each of which keeps its budget; unpriced they would take
  // ten.
  const double dirty = spend(*sidecar, start + 3600, 241, 180, "gco2e");
  EXPECT_LE(dirty, 4.01 * per_minute);
  EXPECT_GT(dirty, 2 * per_minute);
  EXPECT_GT(nlohmann::json::parse(sidecar->state().body)["resources"]["gco2e"]["price"], 0);
  EXPECT_NE(sidecar->metrics().body.find("frugal_cascade_gco2e_total"), std::string::npos);
}

TEST_F(ServedBudgets, APriceOfCarbonMakesDirtyHoursCheaperInCompute) {
  const double now = clock_seconds(CLOCK_REALTIME), start = std::floor(now / 3600) * 3600;
  options_.budgets.intensity = series_of({100, 800, 100, 800}, start);
  const auto cpu_s = options_.budgets.costs->cpu_s(world_.spec(), 0);
  const double dearest_g = *std::max_element(cpu_s.begin(), cpu_s.end()) / 3.6e6 * 100;
  options_.budgets.carbon_price = 0.3 / dearest_g;  // in a clean hour
  auto sidecar = Sidecar::create(world_.spec(), options_).value();
  const double clean = spend(*sidecar, start + 1200, 61, 60, "flops");
  const double dirty = spend(*sidecar, start + 3600, 61, 60, "flops");
  EXPECT_LT(dirty, clean);
  EXPECT_EQ(nlohmann::json::parse(sidecar->state().body)["resources"]["gco2e"]["price"],
            options_.budgets.carbon_price);  // stays
}

TEST_F(ServedBudgets, LatencyIsKeptInTheMeanAndForARequest) {
  const auto latency = options_.budgets.costs->latency_s(world_.spec(), 0);
  const auto [least, most] = std::minmax_element(latency.begin(), latency.end());
  options_.budgets.latency_s = 0.5 * (*least + *most);
  auto sidecar = Sidecar::create(world_.spec(), options_).value();
  const double seconds = spend(*sidecar, 1e9, 181, 60, "latency_s");
  // The price is learned from a sample of 256 requests: a tenth is a good two standard errors of its mean.
  EXPECT_LE(seconds / (60 * 20), 1.1 * options_.budgets.latency_s);
  // A request with a limit gets a chain within it, and is told when there is none.
  const std::string features = "\"features\":[0.1,0.2,0.3,0,0,0,0,0,0,0,0,0]";
  const auto limited = [&](double limit_ms) {
    return sidecar->decide("{" + features + ",\"limit_ms\":" + std::to_string(limit_ms) + "}");
  };
  const auto answer = nlohmann::json::parse(limited(1.2e3 * *least).body);
  EXPECT_LE(latency[answer["index"].get<size_t>()], 1.2 * *least);
  EXPECT_EQ(nlohmann::json::parse(limited(1e-9 + 0.5e3 * *least).body)["kind"], "no_chain");
  EXPECT_EQ(limited(-1).status, 400);
  EXPECT_EQ(sidecar->decide("{" + features + ",\"limit_ms\":\"soon\"}").status, 400);
  options_.budgets.latency_s = 0;
  auto without = Sidecar::create(world_.spec(), options_).value();
  EXPECT_EQ(without->decide("{" + features + ",\"limit_ms\":5}").status, 400);
}

}  // namespace
}  // namespace frugal::cascade
