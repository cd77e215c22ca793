#include "cli/carbon_source.h"

#include <sys/stat.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <map>

#include "base/clock.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/text.h"
#include "cli/meter_setup.h"
#include "meter/carbon.h"
#include "meter/http/http.h"

namespace frugal::cli {
namespace {

constexpr double kFresh_s = 900;
constexpr double kRetry_s = 60;  // after a failure
constexpr double kKept_s = 3 * 366 * 86400.0;

std::string history_path(const std::string& url, const std::string& region) {
  const std::string key = url + "\n" + region;
  const size_t host = url.find("://") + 3;
  const std::string name = url.substr(host, url.find_first_of("/:?", host) - host);
  return strf("%s/carbon/%s-%016lx.csv", state_folder().c_str(), name.c_str(),
              static_cast<unsigned long>(fnv1a(std::as_bytes(std::span(key)))));
}

// In the form of Electricity Maps' export, which every reader of carbon data knows.
std::string history_text(const meter::IntensitySeries& series, const std::string& source, double now) {
  std::string text = "Datetime (UTC),Zone Id,Carbon Intensity gCO2eq/kWh (LCA),Data Estimated,Source\n";
  for (const meter::IntensityPoint& point : series.points) {
    if (point.unix_s < now - kKept_s) continue;
    text += strf("%s,%s,%.6g,%s,%s\n", meter::format_time(point.unix_s).c_str(), series.region.c_str(),
                 point.g_per_kwh, point.estimated ? "true" : "false", source.c_str());
  }
  return text;
}

Status fetch(const std::string& url, const std::string& region, const std::string& path) {
  meter::HttpOptions options;
  if (const char* token = std::getenv("FRUGAL_CARBON_TOKEN"); token != nullptr && *token != '\0')
    options.headers.emplace_back("auth-token", token);
  FRUGAL_TRY(const std::string body, meter::http_get(url, options));
  const std::string host = std::filesystem::path(path).stem().string();
  FRUGAL_TRY(meter::IntensitySeries fresh,
             meter::parse_intensity(body, host.substr(0, host.rfind('-')), region));
  for (char& c : fresh.region) c = c == ',' || c == '\n' || c == '"' ? ' ' : c;
  std::map<double, meter::IntensityPoint> points;
  const auto kept = meter::read_intensity(path);
  if (kept.ok()) {
    for (const meter::IntensityPoint& point : kept->points) points[point.unix_s] = point;
  }
  for (const meter::IntensityPoint& point : fresh.points) points[point.unix_s] = point;  // newer is better
  fresh.points.clear();
  for (const auto& [time, point] : points) fresh.points.push_back(point);
  std::string source = fresh.source;
  for (char& c : source) c = c == ',' || c == '\n' || c == '"' ? ' ' : c;
  std::error_code ignored;
  std::filesystem::create_directories(std::filesystem::path(path).parent_path(), ignored);
  return write_file_atomically(path, history_text(fresh, source, clock_seconds(CLOCK_REALTIME)));
}

}  // namespace

Result<std::string> carbon_path(const std::string& file_or_url, const std::string& region) {
  if (!meter::is_url(file_or_url)) return file_or_url;
  const std::string path = history_path(file_or_url, region);
  const double now = clock_seconds(CLOCK_REALTIME);
  struct stat info {};
  const bool known = ::stat(path.c_str(), &info) == 0;
  const double age = known ? now - static_cast<double>(info.st_mtim.tv_sec) : 1e18;
  if (age >= 0 && age < kFresh_s) return path;
  static std::map<std::string, double> failed;  // when each address was last tried in vain
  const auto last = failed.find(path);
  if (known && last != failed.end() && wall_seconds() - last->second < kRetry_s) return path;
  const Status fetched = fetch(file_or_url, region, path);
  if (fetched.ok()) {
    failed.erase(path);
    return path;
  }
  failed[path] = wall_seconds();
  if (!known) return Error(fetched.error()).in("carbon data");
  std::fprintf(stderr, "frugal: warning: %s; what was fetched %s before is used\n",
               fetched.error().message.c_str(), human_seconds(std::max(age, 0.0)).c_str());
  return path;
}

}  // namespace frugal::cli
