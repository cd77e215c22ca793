#include "meter/carbon.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/text.h"

namespace frugal::meter {
namespace {

using nlohmann::json;

constexpr size_t kMaxFileBytes = size_t{256} << 20;
constexpr double kMaxIntensity = 5000;  // g/kWh: brown coal in old plants stays below 1,500

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  return out;
}

// Days from 1970-01-01 of a date of the Gregorian calendar (H. Hinnant, "chrono-compatible low-level date
// algorithms").
int64_t days_from_civil(int64_t y, unsigned m, unsigned d) {
  y -= m <= 2;
  const int64_t era = (y >= 0 ? y : y - 399) / 400;
  const auto yoe = static_cast<unsigned>(y - era * 400);
  const unsigned doy = (153 * (m > 2 ? m - 3 : m + 9) + 2) / 5 + d - 1;
  const unsigned doe = yoe * 365 + yoe / 4 - yoe / 100 + doy;
  return era * 146097 + static_cast<int64_t>(doe) - 719468;
}

// Takes exactly `n` digits off the front; -1 when they are not there.
int take_digits(std::string_view& text, int n) {
  if (static_cast<int>(text.size()) < n) return -1;
  int value = 0;
  for (int i = 0; i < n; ++i) {
    if (text[0] < '0' || text[0] > '9') return -1;
    value = value * 10 + (text[0] - '0');
    text.remove_prefix(1);
  }
  return value;
}

bool take(std::string_view& text, char c) {
  if (text.empty() || text[0] != c) return false;
  text.remove_prefix(1);
  return true;
}

bool sound(double g) { return std::isfinite(g) && g >= 0 && g <= kMaxIntensity; }

Error corrupt(std::string_view origin, const std::string& what) {
  return {ErrorCode::kCorrupt, std::string(origin) + ": " + what};
}

// Sorts, drops duplicates (the last one of a time wins) and finds the step.
Result<IntensitySeries> finished(IntensitySeries series, std::string_view origin) {
  if (series.points.empty()) return corrupt(origin, "no carbon intensity in it");
  std::stable_sort(series.points.begin(), series.points.end(),
                   [](const IntensityPoint& a, const IntensityPoint& b) { return a.unix_s < b.unix_s; });
  std::vector<IntensityPoint> unique;
  for (const IntensityPoint& point : series.points) {
    if (!unique.empty() && unique.back().unix_s == point.unix_s) unique.pop_back();
    unique.push_back(point);
  }
  series.points = std::move(unique);
  if (series.points.size() > 1) {
    std::vector<double> steps;
    for (size_t i = 1; i < series.points.size(); ++i) {
      steps.push_back(series.points[i].unix_s - series.points[i - 1].unix_s);
    }
    std::nth_element(steps.begin(), steps.begin() + static_cast<ptrdiff_t>(steps.size() / 2), steps.end());
    series.step_s = std::clamp(steps[steps.size() / 2], 60.0, 86400.0);
  }
  return series;
}

// Splits one line of CSV, quotes honoured.
std::vector<std::string> csv_fields(std::string_view line) {
  std::vector<std::string> fields(1);
  bool quoted = false;
  for (size_t i = 0; i < line.size(); ++i) {
    const char c = line[i];
    if (c == '"') {
      if (quoted && i + 1 < line.size() && line[i + 1] == '"') {
        fields.back() += '"';
        ++i;
      } else {
        quoted = !quoted;
      }
    } else if (c == ',' && !quoted) {
      fields.emplace_back();
    } else {
      fields.back() += c;
    }
  }
  return fields;
}

Result<IntensitySeries> parse_csv(std::string_view contents, std::string_view origin, Accounting accounting) {
  IntensitySeries series;
  series.source = "Electricity Maps CSV, " + std::string(origin);
  const std::vector<std::string> lines = split(contents, '\n');
  const std::vector<std::string> header = csv_fields(trim(lines[0]));
  int time_column = -1, value_column = -1, zone_column = -1, estimated_column = -1, source_column = -1;
  for (size_t i = 0; i < header.size(); ++i) {
    const std::string name = lower(trim(header[i]));
    const int at = static_cast<int>(i);
    if (name.starts_with("datetime")) time_column = at;
    if (name == "zone id") zone_column = at;
    if (name == "source") source_column = at;
    if (name == "data estimated") estimated_column = at;
    if (name.starts_with("carbon intensity")) {
      const bool life_cycle =
          name.find("lca") != std::string::npos || name.find("life cycle") != std::string::npos;
      if (value_column < 0 || life_cycle == (accounting == Accounting::kLifeCycle)) value_column = at;
    }
  }
  if (time_column < 0 || value_column < 0) {
    return {ErrorCode::kUnsupported,
            std::string(origin) + ": its first line names no `Datetime` and no `Carbon Intensity` column"};
  }
  for (size_t i = 1; i < lines.size(); ++i) {
    const std::string_view line = trim(lines[i]);
    if (line.empty()) continue;
    const std::vector<std::string> fields = csv_fields(line);
    const auto field = [&](int column) {
      return column >= 0 && static_cast<size_t>(column) < fields.size() ? fields[static_cast<size_t>(column)]
                                                                        : "";
    };
    const auto time = parse_time(field(time_column));
    if (!time.ok()) return corrupt(origin, strf("line %zu: ", i + 1) + time.error().message);
    const std::string text = field(value_column);
    if (trim(text).empty()) continue;  // a gap in the record
    char* end = nullptr;
    const double g = std::strtod(text.c_str(), &end);
    if (end == text.c_str() || !sound(g)) {
      return corrupt(origin,
                     strf("line %zu: '%s' is no carbon intensity", i + 1, utf8_sanitized(text).c_str()));
    }
    series.points.push_back({*time, g, lower(field(estimated_column)) == "true"});
    if (series.region.empty()) series.region = field(zone_column);
    if (!field(source_column).empty()) series.source = field(source_column);  // a history that frugal keeps
  }
  return finished(std::move(series), origin);
}

// A point from fields of an object; errors name the entry.
Result<IntensityPoint> json_point(const json& at, const char* time_key, const json& value,
                                  std::string_view origin, size_t index) {
  if (!at.contains(time_key) || !at[time_key].is_string()) {
    return corrupt(origin, strf("entry %zu has no `%s`", index, time_key));
  }
  const auto time = parse_time(at[time_key].get_ref<const std::string&>());
  if (!time.ok()) return corrupt(origin, strf("entry %zu: ", index) + time.error().message);
  if (!value.is_number() || !sound(value.get<double>())) {
    return corrupt(origin, strf("entry %zu: its carbon intensity is missing or out of range", index));
  }
  return IntensityPoint{*time, value.get<double>(), false};
}

Result<IntensitySeries> parse_electricity_maps(const json& root, std::string_view origin) {
  IntensitySeries series;
  series.source = "Electricity Maps, " + std::string(origin);
  if (root.contains("zone") && root["zone"].is_string()) series.region = root["zone"].get<std::string>();
  const char* list = root.contains("history")    ? "history"
                     : root.contains("forecast") ? "forecast"
                     : root.contains("data")     ? "data"
                                                 : nullptr;
  const json one = list == nullptr ? json::array({root}) : root[list];
  if (!one.is_array()) return corrupt(origin, strf("`%s` is no list", list));
  for (size_t i = 0; i < one.size(); ++i) {
    if (!one[i].is_object()) return corrupt(origin, strf("entry %zu is no object", i));
    FRUGAL_TRY(IntensityPoint point,
               json_point(one[i], "datetime", one[i].value("carbonIntensity", json()), origin, i));
    point.estimated = one[i].value("isEstimated", json()) == json(true);
    series.points.push_back(point);
    if (series.region.empty() && one[i].value("zone", json()).is_string())
      series.region = one[i]["zone"].get<std::string>();
  }
  return finished(std::move(series), origin);
}

Result<IntensitySeries> parse_gb(const json& list, std::string_view origin) {
  IntensitySeries series;
  series.region = "GB";
  series.source = "GB Carbon Intensity, " + std::string(origin);
  for (size_t i = 0; i < list.size(); ++i) {
    const json& intensity = list[i]["intensity"];
    if (!intensity.is_object()) return corrupt(origin, strf("entry %zu: `intensity` is no object", i));
    const bool actual = intensity.value("actual", json()).is_number();
    FRUGAL_TRY(
        IntensityPoint point,
        json_point(list[i], "from", intensity.value(actual ? "actual" : "forecast", json()), origin, i));
    point.estimated = !actual;
    series.points.push_back(point);
  }
  return finished(std::move(series), origin);
}

Result<IntensitySeries> parse_carbon_aware(const json& list, std::string_view origin,
                                           std::string_view region) {
  IntensitySeries series;
  series.source = "Carbon Aware SDK, " + std::string(origin);
  series.region = region;
  for (size_t i = 0; i < list.size(); ++i) {
    if (!list[i].is_object()) return corrupt(origin, strf("entry %zu is no object", i));
    const json location = list[i].value("Location", json());
    if (!location.is_string()) return corrupt(origin, strf("entry %zu has no `Location`", i));
    const auto& name = location.get_ref<const std::string&>();
    if (series.region.empty()) series.region = name;
    if (name != series.region) {
      if (region.empty()) {
        return {ErrorCode::kInvalidArgument,
                strf("%s has several places (%s, %s, ...): name one with the region option",
                     std::string(origin).c_str(), series.region.c_str(), name.c_str())};
      }
      continue;
    }
    FRUGAL_TRY(const IntensityPoint point,
               json_point(list[i], "Time", list[i].value("Rating", json()), origin, i));
    series.points.push_back(point);
  }
  if (series.points.empty()) {
    return {ErrorCode::kNotFound,
            strf("%s has nothing for the region '%s'", std::string(origin).c_str(), series.region.c_str())};
  }
  return finished(std::move(series), origin);
}

}  // namespace

Result<double> parse_time(std::string_view text) {
  const std::string_view whole = text = trim(text);
  const auto bad = [&] {
    return Error{ErrorCode::kCorrupt,
                 "'" + utf8_sanitized(whole) + "' is not a time like 2022-01-31T05:00:00Z"};
  };
  const int year = take_digits(text, 4);
  if (year < 1970 || !take(text, '-')) return bad();
  const int month = take_digits(text, 2);
  if (month < 1 || month > 12 || !take(text, '-')) return bad();
  const int day = take_digits(text, 2);
  static constexpr int kDays[] = {31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
  if (day < 1 || day > kDays[month - 1]) return bad();
  double seconds = 86400.0 * static_cast<double>(days_from_civil(year, static_cast<unsigned>(month),
                                                                 static_cast<unsigned>(day)));
  if (text.empty()) return seconds;
  if (!take(text, 'T') && !take(text, ' ')) return bad();
  const int hour = take_digits(text, 2);
  if (hour < 0 || hour > 24 || !take(text, ':')) return bad();
  const int minute = take_digits(text, 2);
  if (minute < 0 || minute > 59) return bad();
  seconds += 3600.0 * hour + 60.0 * minute;
  if (take(text, ':')) {
    const int second = take_digits(text, 2);
    if (second < 0 || second > 60) return bad();
    seconds += second;
    if (take(text, '.')) {
      while (!text.empty() && text[0] >= '0' && text[0] <= '9') text.remove_prefix(1);
    }
  }
  if (text.empty() || text == "Z" || text == " UTC") return seconds;
  const int sign = take(text, '+') ? 1 : take(text, '-') ? -1 : 0;
  if (sign == 0) return bad();
  const int zone_hour = take_digits(text, 2);
  take(text, ':');
  const int zone_minute = text.empty() ? 0 : take_digits(text, 2);
  if (zone_hour < 0 || zone_hour > 14 || zone_minute < 0 || zone_minute > 59 || !text.empty()) return bad();
  return seconds - sign * (3600.0 * zone_hour + 60.0 * zone_minute);
}

std::string format_time(double unix_s) {
  const auto whole = static_cast<time_t>(std::floor(unix_s));
  tm parts{};
  gmtime_r(&whole, &parts);
  return strf("%04d-%02d-%02dT%02d:%02d:%02dZ", parts.tm_year + 1900, parts.tm_mon + 1, parts.tm_mday,
              parts.tm_hour, parts.tm_min, parts.tm_sec);
}

CarbonIntensity given_intensity(double g_per_kwh, std::string_view region) {
  return {{g_per_kwh, g_per_kwh, g_per_kwh, Provenance::kAssumed}, std::string(region), "given by the user"};
}

Result<CarbonIntensity> annual_intensity(const std::string& path, std::string_view region) {
  FRUGAL_TRY(const std::string text, read_file(path, kMaxFileBytes));
  const json root = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!root.is_object()) return corrupt(path, "not a JSON object of countries");
  const std::string wanted = lower(trim(region));
  std::string similar;
  for (const auto& [code, entry] : root.items()) {
    if (!entry.is_object()) continue;
    const std::string name =
        entry.value("country_name", json()).is_string() ? entry["country_name"].get<std::string>() : "";
    if (lower(code) != wanted && lower(name) != wanted) {
      if (wanted.size() >= 2 &&
          (lower(code).starts_with(wanted.substr(0, 2)) || lower(name).find(wanted) != std::string::npos)) {
        similar += (similar.empty() ? "" : ", ") + code + " (" + name + ")";
      }
      continue;
    }
    const json g = entry.value("carbon_intensity", json()), year = entry.value("year", json());
    if (!g.is_number() || !sound(g.get<double>()))
      return corrupt(path, code + " has no usable carbon_intensity");
    const double value = g.get<double>();
    // Half and one and a half times: the hours of a year lie mostly in there (ES and US-CAL-CISO 2021: 90 %
    // of the hours within 0.52 to 1.60 times their mean).
    CarbonIntensity found{{value, 0.5 * value, 1.5 * value, Provenance::kAssumed}, code, "annual average"};
    if (year.is_number_integer()) found.source += strf(" %d", year.get<int>());
    return found;
  }
  return {ErrorCode::kNotFound,
          strf("no annual carbon intensity for '%s'%s%s; give a three-letter country code, or a number "
               "of g/kWh",
               utf8_sanitized(region).c_str(), similar.empty() ? "" : "; did you mean ", similar.c_str())};
}

Result<IntensitySeries> parse_intensity(std::string_view contents, std::string_view origin,
                                        std::string_view region, Accounting accounting) {
  if (contents.starts_with("\xEF\xBB\xBF")) contents.remove_prefix(3);
  const std::string_view start = trim(contents);
  if (start.empty()) return corrupt(origin, "empty");
  if (start[0] != '{' && start[0] != '[') return parse_csv(contents, origin, accounting);
  const json root = json::parse(start, nullptr, /*allow_exceptions=*/false);
  if (root.is_discarded()) return corrupt(origin, "broken JSON");
  const auto unknown = [&]() -> Error {
    return {ErrorCode::kUnsupported,
            std::string(origin) +
                ": none of Electricity Maps (carbonIntensity, history, forecast), GB Carbon Intensity "
                "(data[].intensity) and Carbon Aware SDK (Emissions)"};
  };
  if (!root.is_object()) return unknown();
  if (root.contains("Emissions")) {
    if (!root["Emissions"].is_array()) return corrupt(origin, "`Emissions` is no list");
    return parse_carbon_aware(root["Emissions"], origin, region);
  }
  if (root.contains("data") && root["data"].is_array() && !root["data"].empty() &&
      root["data"][0].is_object() && root["data"][0].contains("intensity")) {
    for (const json& entry : root["data"]) {
      if (!entry.is_object() || !entry.contains("intensity"))
        return corrupt(origin, "an entry has no `intensity`");
    }
    return parse_gb(root["data"], origin);
  }
  if (root.contains("carbonIntensity") || root.contains("history") || root.contains("forecast") ||
      root.contains("data")) {
    return parse_electricity_maps(root, origin);
  }
  return unknown();
}

Result<IntensitySeries> read_intensity(const std::string& path, std::string_view region,
                                       Accounting accounting) {
  FRUGAL_TRY(const std::string contents, read_file(path, kMaxFileBytes));
  const size_t slash = path.rfind('/');
  return parse_intensity(contents, slash == std::string::npos ? path : path.substr(slash + 1), region,
                         accounting);
}

Estimate IntensitySeries::mean(double from, double to) const {
  if (points.empty()) return Estimate::unknown();
  if (to <= from) to = from + 1;
  double sum = 0, covered = 0;
  auto at = std::upper_bound(points.begin(), points.end(), from,
                             [](double time, const IntensityPoint& point) { return time < point.unix_s; });
  if (at != points.begin()) --at;
  double low = HUGE_VAL, high = 0;
  for (; at != points.end() && at->unix_s < to; ++at) {
    // A point holds until the next, but for two steps at most: older data is stale, not the present.
    double end = at->unix_s + 2 * step_s;
    if (at + 1 != points.end()) end = std::min(end, (at + 1)->unix_s);
    const double span = std::min(end, to) - std::max(at->unix_s, from);
    if (span <= 0) continue;
    sum += span * at->g_per_kwh;
    covered += span;
    low = std::min(low, at->g_per_kwh);
    high = std::max(high, at->g_per_kwh);
  }
  if (covered < 0.9 * (to - from)) return Estimate::unknown();
  // Average intensities differ between sources and accountings by a tenth and more.
  return {sum / covered, 0.9 * low, 1.1 * high, Provenance::kModelled};
}

}  // namespace frugal::meter
