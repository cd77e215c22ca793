#include "cli/bench_report.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace frugal::cli {
namespace {

TEST(BenchReport, MedianAndDeviation) {
  EXPECT_EQ(median({3, 1, 2}), 2);
  EXPECT_EQ(median({4, 1, 2, 3}), 2.5);
  EXPECT_EQ(median({}), 0);
  EXPECT_EQ(median_deviation({1, 2, 3, 4, 100}), 1);
}

TEST(BenchReport, RatioAboveOneIsOursBetter) {
  const BenchRow speed = bench_row("decode", "tokens/s", Better::kHigher, {20, 40, 30}, {10, 10, 10}, "peer");
  EXPECT_EQ(speed.ours, 30);
  EXPECT_EQ(speed.ratio, 3);  // of ratios 2, 4, 3
  EXPECT_NEAR(speed.spread, 1.0 / 3, 1e-12);
  EXPECT_EQ(speed.n, 3);
  const BenchRow time = bench_row("load", "ms", Better::kLower, {20, 20, 20}, {10, 10, 10}, "peer");
  EXPECT_EQ(time.ratio, 0.5);
  EXPECT_EQ(time.spread, 0);
  const BenchRow alone = bench_row("alone", "s", Better::kLower, {1, 2, 3});
  EXPECT_FALSE(alone.peer.has_value());
  EXPECT_EQ(alone.spread, 0.5);
}

TEST(BenchReport, JsonCarriesTheCircumstances) {
  BenchContext context;
  context.bench = "llm";
  context.threads = 2;
  context.command = "frugal bench llm --quick";
  BenchRow row = bench_row("decode", "tokens/s", Better::kHigher, {123.456, 123.456}, {100, 100}, "peer");
  row.more.emplace_back("roofline", 200.0);
  const auto json =
      nlohmann::json::parse(bench_json(context, {row, bench_row("x", "s", Better::kLower, {1})}));
  ASSERT_EQ(json.size(), 2u);
  EXPECT_EQ(json[0]["ours"], 123.5);
  EXPECT_EQ(json[0]["peer_name"], "peer");
  EXPECT_NEAR(json[0]["ratio"].get<double>(), 1.235, 1e-9);
  EXPECT_EQ(json[0]["roofline"], 200);
  EXPECT_TRUE(json[1]["peer"].is_null());
  for (const char* key :
       {"bench", "unit", "n", "spread", "threads", "cpu", "commit", "compiler", "flags", "command", "date"}) {
    EXPECT_EQ(json[0].count(key), 1u) << key;
  }
  EXPECT_NE(bench_table({row}).find("1.23"), std::string::npos) << bench_table({row});
}

TEST(BenchReport, CommandLineCanBePasted) {
  const char* argv[] = {"/a/b/frugal", "run", "-p", "it's a \"test\"", "--n", "1"};
  EXPECT_EQ(command_line(6, argv), "frugal run -p 'it'\\''s a \"test\"' --n 1");
}

}  // namespace
}  // namespace frugal::cli
