#include "meter/html_report.h"

#include <gtest/gtest.h>

namespace frugal::meter {
namespace {

LedgerEntry entry(double unix_s, const std::string& name, bool carbon) {
  LedgerEntry e;
  e.unix_s = unix_s;
  e.kind = "command";
  e.name = name;
  e.project = "<b>&\"x\"";
  e.unit = "run";
  e.units = 1;
  e.usage.wall_seconds = 30;
  e.usage.cpu_seconds = 20;
  e.usage.energy_j = {100, 60, 150, Provenance::kModelled};
  e.cpu_j = {90, 55, 130, Provenance::kModelled};
  e.memory_j = {10, 5, 20, Provenance::kAssumed};
  if (carbon) e.usage.carbon_gco2e = {0.01, 0.005, 0.02, Provenance::kAssumed};
  return e;
}

size_t count(const std::string& text, const std::string& part) {
  size_t n = 0;
  for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++n;
  return n;
}

TEST(Html, IsSelfContainedAndEscaped) {
  const std::vector<LedgerEntry> entries = {entry(1000000, "a", true), entry(1090000, "b", true)};
  ReportPage page;
  page.entries = entries;
  page.embodied = {1200, 4, 8};
  page.water_l_per_kwh = 1.8;
  page.now_unix_s = 1100000;
  page.intensity_source = "test";
  for (int i = 0; i < 48; ++i) page.intensity.emplace_back(1000800 + 3600 * i, 100 + i);
  page.jobs.push_back({"1 <script>", 1003600, 1100000, {{1010000, 1020000}}, {{1030000, 1040000}}, "done"});
  const std::string html = html_report(page);
  EXPECT_EQ(count(html, "<svg"), 4u);  // power, components, carbon, jobs
  EXPECT_EQ(count(html, "<svg"), count(html, "</svg>"));
  EXPECT_EQ(count(html, "<table"), count(html, "</table>"));
  for (const char* outside :
       {"http://", "https://", "src=", "url(", "<script", "@import", " nan", "\"nan", " inf"}) {
    EXPECT_EQ(html.find(outside), std::string::npos) << outside;
  }
  EXPECT_NE(html.find("&lt;b&gt;&amp;&quot;x&quot;"), std::string::npos);
  EXPECT_NE(html.find("SCI"), std::string::npos);
  EXPECT_NE(html.find("100 J/run"), std::string::npos);
  EXPECT_GT(count(html, "class=\"plan\""), 1u);
  EXPECT_NE(html.find("water"), std::string::npos);
}

TEST(Html, AnEmptyLedgerAndUnknownCarbonAreSaid) {
  EXPECT_NE(html_report({}).find("holds nothing"), std::string::npos);
  const std::vector<LedgerEntry> entries = {entry(1000000, "a", false)};
  ReportPage page;
  page.entries = entries;
  const std::string html = html_report(page);
  EXPECT_NE(html.find("no entry has a place"), std::string::npos);
  EXPECT_NE(html.find("unknown"), std::string::npos);
}

}  // namespace
}  // namespace frugal::meter
