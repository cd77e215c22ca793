#include "meter/carbon.h"

#include <gtest/gtest.h>

#include "meter/fake_host.h"

namespace frugal::meter {
namespace {

TEST(Carbon, Times) {
  EXPECT_EQ(parse_time("1970-01-01 00:00:00").value(), 0);
  EXPECT_EQ(parse_time("2022-01-31T05:00Z").value(), 1643605200);
  EXPECT_EQ(parse_time("2022-01-31T05:00:00.000+01:00").value(), 1643601600);
  EXPECT_EQ(parse_time("2024-02-29").value(), 1709164800);
  EXPECT_EQ(format_time(1643605200), "2022-01-31T05:00:00Z");
  for (const char* bad : {"", "2022", "2022-13-01", "2022-01-32", "2022-01-01T25:00", "2022-01-01T05:00:00+",
                          "x", "2022-01-01T05:00:00+99:00", "2022-01-01T05:00:00 CET"}) {
    EXPECT_FALSE(parse_time(bad).ok()) << bad;
  }
}

TEST(Carbon, ElectricityMapsCsvTakesTheAccountingAskedFor) {
  const std::string csv =
      "Datetime (UTC),Country,Zone Name,Zone Id,Carbon Intensity gCO\xE2\x82\x82"
      "eq/kWh (direct),Carbon Intensity "
      "gCO\xE2\x82\x82"
      "eq/kWh (LCA),Low Carbon Percentage,Renewable Percentage,Data Source,Data Estimated,Data Estimation "
      "Method\n"
      "2021-01-01 00:00:00,Spain,\"Spain, all\",ES,100,140,77,51,x,false,\n"
      "2021-01-01 01:00:00,Spain,\"Spain, all\",ES,200,,77,51,x,false,\n"
      "2021-01-01 02:00:00,Spain,\"Spain, all\",ES,300,340,77,51,x,true,\n";
  const auto lca = parse_intensity(csv, "f.csv");
  ASSERT_TRUE(lca.ok()) << lca.error().message;
  EXPECT_EQ(lca->region, "ES");
  ASSERT_EQ(lca->points.size(), 2u);  // the gap is a gap, not a zero
  EXPECT_EQ(lca->points[0].g_per_kwh, 140);
  EXPECT_TRUE(lca->points[1].estimated);
  EXPECT_EQ(parse_intensity(csv, "f.csv", "", Accounting::kDirect)->points[1].g_per_kwh, 200);
  const auto broken = parse_intensity("Datetime,Carbon Intensity\nnot a time,5\n", "f.csv");
  EXPECT_EQ(broken.error().code, ErrorCode::kCorrupt);
  EXPECT_NE(broken.error().message.find("line 2"), std::string::npos);
  EXPECT_EQ(parse_intensity("Datetime,Carbon Intensity\n2021-01-01,-5\n", "f").error().code,
            ErrorCode::kCorrupt);
  EXPECT_EQ(parse_intensity("Datetime,Carbon Intensity\n2021-01-01,nan\n", "f").error().code,
            ErrorCode::kCorrupt);
  EXPECT_EQ(parse_intensity("a,b\n1,2\n", "f").error().code, ErrorCode::kUnsupported);
}

TEST(Carbon, ElectricityMapsApi) {
  const auto latest = parse_intensity(
      R"({"zone":"DE","carbonIntensity":302,"datetime":"2024-04-01T12:00:00.000Z","isEstimated":true})",
      "api");
  ASSERT_TRUE(latest.ok()) << latest.error().message;
  EXPECT_EQ(latest->region, "DE");
  EXPECT_EQ(latest->points[0].g_per_kwh, 302);
  EXPECT_TRUE(latest->points[0].estimated);
  const auto history = parse_intensity(
      R"({"zone":"DE","history":[{"carbonIntensity":2,"datetime":"2024-04-01T13:00:00Z"},{"carbonIntensity":1,"datetime":"2024-04-01T12:00:00Z"}]})",
      "api");
  ASSERT_EQ(history->points.size(), 2u);
  EXPECT_EQ(history->points[0].g_per_kwh, 1);
  EXPECT_EQ(history->step_s, 3600);
  EXPECT_FALSE(parse_intensity(R"({"zone":"DE","history":[{"carbonIntensity":"2"}]})", "api").ok());
  EXPECT_FALSE(parse_intensity(R"({"zone":"DE","history":7})", "api").ok());
  EXPECT_FALSE(parse_intensity(R"({"history":[3]})", "api").ok());
  EXPECT_FALSE(parse_intensity("{", "api").ok());
}

TEST(Carbon, GbAndCarbonAware) {
  const auto gb = parse_intensity(
      R"({"data":[{"from":"2018-01-20T12:00Z","to":"2018-01-20T12:30Z","intensity":{"forecast":266,"actual":263,"index":"moderate"}},{"from":"2018-01-20T12:30Z","to":"2018-01-20T13:00Z","intensity":{"forecast":270,"actual":null}}]})",
      "gb");
  ASSERT_TRUE(gb.ok()) << gb.error().message;
  EXPECT_EQ(gb->step_s, 1800);
  EXPECT_EQ(gb->points[0].g_per_kwh, 263);
  EXPECT_EQ(gb->points[1].g_per_kwh, 270);
  EXPECT_TRUE(gb->points[1].estimated);
  const char* sdk =
      R"({"Emissions":[{"Location":"eastus","Rating":80,"Time":"2022-01-01T00:00:00+00:00","Duration":"08:00:00"},{"Location":"westus","Rating":20,"Time":"2022-01-01T00:00:00+00:00"}]})";
  EXPECT_EQ(parse_intensity(sdk, "sdk").error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(parse_intensity(sdk, "sdk", "westus")->points[0].g_per_kwh, 20);
  EXPECT_EQ(parse_intensity(sdk, "sdk", "mars").error().code, ErrorCode::kNotFound);
}

TEST(Carbon, StaleDataIsNotThePresent) {
  const auto series =
      parse_intensity("Datetime,Carbon Intensity\n2021-01-01 00:00:00,100\n2021-01-01 01:00:00,200\n", "f");
  const double start = series->points[0].unix_s;
  EXPECT_NEAR(series->mean(start, start + 7200).value, 150, 1e-9);
  EXPECT_NEAR(series->mean(start + 1800, start + 5400).value, 150, 1e-9);
  EXPECT_TRUE(series->mean(start + 7200, start + 9000).known());  // within two steps
  EXPECT_FALSE(series->mean(start + 86400, start + 90000).known());
  EXPECT_FALSE(series->mean(start - 86400, start).known());
}

TEST(Carbon, AnnualAverageByCodeOrNameAndNeverAGuess) {
  FakeHost folder;
  folder.write(
      "mix.json",
      R"({"ESP":{"carbon_intensity":174.05,"country_name":"Spain","year":2023},"BAD":{"country_name":"Bad"}})");
  const std::string path = folder.root() + "/mix.json";
  const auto spain = annual_intensity(path, "esp");
  ASSERT_TRUE(spain.ok());
  EXPECT_EQ(spain->g_per_kwh.value, 174.05);
  EXPECT_EQ(spain->g_per_kwh.provenance, Provenance::kAssumed);
  EXPECT_EQ(spain->source, "annual average 2023");
  EXPECT_TRUE(annual_intensity(path, "Spain").ok());
  EXPECT_EQ(annual_intensity(path, "Atlantis").error().code, ErrorCode::kNotFound);
  EXPECT_EQ(annual_intensity(path, "BAD").error().code, ErrorCode::kCorrupt);
}

}  // namespace
}  // namespace frugal::meter
