#include "cli/jobs_setup.h"

#include <sys/stat.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <ctime>

#include "base/text.h"
#include "cli/carbon_source.h"
#include "cli/meter_setup.h"

namespace frugal::cli {

std::string JobsSetup::path() const {
  if (!queue.empty()) return queue;
  if (const char* path = std::getenv("FRUGAL_QUEUE"); path != nullptr && *path != '\0') return path;
  return state_folder() + "/jobs.db";
}

std::shared_ptr<JobsSetup> add_jobs_options(CLI::App& app, bool carbon) {
  auto setup = std::make_shared<JobsSetup>();
  app.add_option("--queue", setup->queue, "the queue's file (default: the user's own)");
  if (carbon) {
    app.add_option(
           "--carbon-file", setup->carbon_file,
           "intensity by the hour, a file or an http(s) address: Electricity Maps (CSV, JSON), GB Carbon "
           "Intensity or Carbon Aware SDK; one of another year stands in with the same weeks (default: that "
           "of "
           "the newest job of this queue that names one: a host is in one place)")
        ->group("Carbon");
    app.add_option("--region", setup->region, "the place within --carbon-file, where it has several")
        ->group("Carbon");
  }
  return setup;
}

Result<double> parse_duration(const std::string& text) {
  const auto bad = [&] {
    return Error{ErrorCode::kInvalidArgument,
                 strf("'%s' is no length of time: write 2h, 1h30m, 90min or 45s", text.c_str())};
  };
  double sum = 0;
  const char* at = text.c_str();
  bool any = false;
  while (*at != '\0') {
    char* end = nullptr;
    while (*at == ' ') ++at;
    const double value = std::strtod(at, &end);
    if (end == at || !(value >= 0) || !std::isfinite(value)) return bad();
    at = end;
    while (*at == ' ') ++at;
    const char* word = at;
    while ((*at >= 'a' && *at <= 'z')) ++at;
    const std::string unit(word, at);
    const double scale = unit == "s" || unit == "sec"                             ? 1
                         : unit == "m" || unit == "min" || (unit.empty() && !any) ? 60
                         : unit == "h" || unit == "hour" || unit == "hours"       ? 3600
                         : unit == "d" || unit == "day" || unit == "days"         ? 86400
                                                                                  : 0;
    if (scale == 0) return bad();
    sum += scale * value;
    any = true;
  }
  if (!any || !(sum > 0)) return bad();
  return sum;
}

Result<double> parse_deadline(const std::string& text, double now) {
  const std::string trimmed(trim(text));
  tm local{};
  const auto seconds = static_cast<time_t>(now);
  localtime_r(&seconds, &local);
  int hour = 0, minute = 0, used = 0;
  if (std::sscanf(trimmed.c_str(), "%2d:%2d%n", &hour, &minute, &used) == 2 &&
      static_cast<size_t>(used) == trimmed.size()) {
    if (hour < 0 || hour > 23 || minute < 0 || minute > 59) {
      return {ErrorCode::kInvalidArgument, strf("'%s' is no time of day", trimmed.c_str())};
    }
    local.tm_hour = hour;
    local.tm_min = minute;
    local.tm_sec = 0;
    local.tm_isdst = -1;
    tm tomorrow = local;
    double at = static_cast<double>(mktime(&local));
    if (at <= now) {
      ++tomorrow.tm_mday;
      tomorrow.tm_isdst = -1;
      at = static_cast<double>(mktime(&tomorrow));
    }
    return at;
  }
  if (trimmed.size() >= 10 && trimmed[4] == '-') {
    const bool zone = trimmed.back() == 'Z' || trimmed.find('+') != std::string::npos ||
                      trimmed.find('-', 10) != std::string::npos;
    FRUGAL_TRY(const double utc, meter::parse_time(trimmed));
    if (zone) return utc;
    // parse_time() took the digits as UTC; the user means local time.
    const auto as_utc = static_cast<time_t>(utc);
    tm fields{};
    gmtime_r(&as_utc, &fields);
    fields.tm_isdst = -1;
    return static_cast<double>(mktime(&fields));
  }
  const auto length = parse_duration(trimmed.starts_with('+') ? trimmed.substr(1) : trimmed);
  if (!length.ok()) {
    return {ErrorCode::kInvalidArgument,
            strf("'%s' is no deadline: write 18:00, \"2026-12-24 18:00\", or 6h for six hours from now",
                 trimmed.c_str())};
  }
  return now + *length;
}

std::string local_time(double unix_s) {
  const auto seconds = static_cast<time_t>(std::floor(unix_s + 0.5));
  tm local{};
  localtime_r(&seconds, &local);
  char text[64];
  std::strftime(text, sizeof text, "%a %H:%M", &local);
  return text;
}

Result<std::optional<meter::IntensitySeries>> CarbonData::series() {
  if (file_.empty()) return std::optional<meter::IntensitySeries>();
  FRUGAL_TRY(const std::string path, carbon_path(file_, region_));
  struct stat info {};
  const int64_t stamp = ::stat(path.c_str(), &info) == 0
                            ? static_cast<int64_t>(info.st_mtim.tv_sec) * 1000000000 + info.st_mtim.tv_nsec
                            : -1;
  if (!series_ || stamp != stamp_) {
    // The history kept of an address is of one place.
    FRUGAL_TRY(series_, meter::read_intensity(path, path == file_ ? region_ : ""));
    stamp_ = stamp;
    outlook_.reset();
  }
  return series_;
}

Result<std::optional<jobs::Outlook>> CarbonData::outlook(double now, size_t n_hours) {
  FRUGAL_TRY(const auto known, series());
  if (!known) return std::optional<jobs::Outlook>();
  const double hour = std::floor(now / 3600);
  if (!outlook_ || outlook_hour_ != hour || outlook_n_ < n_hours) {
    FRUGAL_TRY(outlook_, jobs::make_outlook(*known, now, n_hours));
    outlook_hour_ = hour;
    outlook_n_ = n_hours;
  }
  return outlook_;
}

CarbonData carbon_data(const JobsSetup& setup, const std::vector<jobs::Job>& jobs) {
  if (!setup.carbon_file.empty()) return {setup.carbon_file, setup.region};
  for (auto job = jobs.rbegin(); job != jobs.rend(); ++job) {
    if (!job->carbon_file.empty()) return {job->carbon_file, job->region};
  }
  return {"", ""};
}

Saving saving_of(const jobs::Job& job, const std::vector<jobs::Run>& runs,
                 const meter::IntensitySeries* series, double now) {
  Saving saving;
  if (series == nullptr || runs.empty()) return saving;
  double weight = 0, length = 0;
  for (const jobs::Run& run : runs) {
    const Estimate mean = jobs::recorded_mean(*series, run.begin_unix_s, run.end_unix_s, now);
    if (!mean.known()) return saving;
    const double seconds = std::max(run.end_unix_s - run.begin_unix_s, 1e-3);
    const double part = seconds * run.workers;
    Estimate scaled = mean.scaled(part);
    if (weight == 0) {
      saving.actual_g = scaled;
    } else {
      saving.actual_g += scaled;
    }
    weight += part;
    length += seconds;
  }
  saving.actual_g = saving.actual_g.scaled(1 / weight);
  saving.at_once_g = jobs::recorded_mean(*series, job.submitted_unix_s, job.submitted_unix_s + length, now);
  if (!saving.at_once_g.known()) return saving;
  if (saving.at_once_g.value > 0) saving.percent = 100 * (1 - saving.actual_g.value / saving.at_once_g.value);
  saving.saved_g = job.energy_j / 3.6e6 * (saving.at_once_g.value - saving.actual_g.value);
  return saving;
}

}  // namespace frugal::cli
