// Carbon intensity of the grid: annual averages by country, and series by hour or half hour from files. No
// place is ever guessed.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "frugal/meter.h"
#include "frugal/result.h"

namespace frugal::meter {

// The annual average of a country ("ESP" or "Spain", any case) from a JSON object of the form
// {"ESP": {"carbon_intensity": 174.05, "country_name": "Spain", "year": 2023}, ...}. kAssumed, with a band
// that spans the hours of a year rather than the year's own error. kNotFound: no such country, with the
// nearest names; kCorrupt.
Result<CarbonIntensity> annual_intensity(const std::string& path, std::string_view region);

// One value from the user, taken as exact but assumed.
CarbonIntensity given_intensity(double g_per_kwh, std::string_view region);

// A value that holds from `unix_s` until the next.
struct IntensityPoint {
  double unix_s = 0;
  double g_per_kwh = 0;
  bool estimated = false;  // the source says so itself
};

// Which figure to take where a file has several.
enum class Accounting { kDirect, kLifeCycle };

// Sorted by time, without duplicates. `step_s` is the usual distance of two points.
struct IntensitySeries {
  std::string region;  // as the file names it; may be empty
  std::string source;  // "Electricity Maps CSV, US-CAL-CISO_2022_hourly.csv"
  double step_s = 3600;
  std::vector<IntensityPoint> points;

  // The mean over [from, to), unknown when more than a tenth of that time lies farther than two steps from
  // any point.
  Estimate mean(double from_unix_s, double to_unix_s) const;
};

// Reads any of: the CSV export and the API answers (latest, history, forecast) of Electricity Maps, the
// answers of the GB Carbon Intensity API, and the JSON file of the Carbon Aware SDK. The format is told from
// the contents. `region` picks a place where the file has several (Carbon Aware SDK); empty: there must be
// one only. kCorrupt: with the line or field that is wrong; kUnsupported: none of these formats.
Result<IntensitySeries> parse_intensity(std::string_view contents, std::string_view origin,
                                        std::string_view region = {},
                                        Accounting accounting = Accounting::kLifeCycle);
Result<IntensitySeries> read_intensity(const std::string& path, std::string_view region = {},
                                       Accounting accounting = Accounting::kLifeCycle);

// Seconds since 1970 of "2022-01-31 05:00:00", "2022-01-31T05:00Z", "2022-01-31T05:00:00.000+01:00". UTC when
// no zone is given.
Result<double> parse_time(std::string_view text);
// "2022-01-31T05:00:00Z"
std::string format_time(double unix_s);

}  // namespace frugal::meter
