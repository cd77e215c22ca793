#include "meter/host_load.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>

#include "base/file.h"
#include "base/text.h"
#include "meter/sysfs.h"

namespace frugal::meter {

namespace {

// Busy ticks of a line of /proc/stat, "cpu  user nice system idle iowait irq softirq steal guest guest_nice".
// Guests' time is part of user time already. Negative when it is no such line.
double busy_ticks(std::string_view line) {
  double fields[7];
  int n = 0;
  const char* at = line.data();
  const char* end = at + line.size();
  while (at < end && *at != ' ') ++at;  // the name
  while (n < 7) {
    while (at < end && *at == ' ') ++at;
    uint64_t value = 0;
    const auto [next, error] = std::from_chars(at, end, value);
    if (error != std::errc()) return -1;
    fields[n++] = static_cast<double>(value);
    at = next;
  }
  return fields[0] + fields[1] + fields[2] + fields[5] + fields[6];
}

double ticks_per_second() {
  static const double kTicks = static_cast<double>(::sysconf(_SC_CLK_TCK));
  return kTicks;
}

}  // namespace

Result<double> read_busy_seconds(const std::string& procfs) {
  const std::string path = procfs + "/stat";
  FRUGAL_TRY(const std::string line, read_line(path));
  const double ticks = line.starts_with("cpu") ? busy_ticks(line) : -1;
  if (ticks < 0) return {ErrorCode::kCorrupt, path + ": its first line is not the sum over processors"};
  return ticks / ticks_per_second();
}

Result<std::vector<double>> read_busy_by_cpu(const std::string& procfs) {
  const std::string path = procfs + "/stat";
  FRUGAL_TRY(const std::string text, read_file(path, size_t{16} << 20));
  std::vector<double> busy;
  std::string_view rest = text;
  while (rest.starts_with("cpu")) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(rest.size(), line.size() + 1));
    if (line.size() < 4 || line[3] == ' ') continue;  // the sum
    const double ticks = busy_ticks(line);
    if (ticks < 0) return {ErrorCode::kCorrupt, path + ": a processor's line is not of seven numbers"};
    busy.push_back(ticks / ticks_per_second());
  }
  if (busy.empty()) return {ErrorCode::kCorrupt, path + ": no line of a processor"};
  return busy;
}

double packing_of(const std::vector<double>& before, const std::vector<double>& now, double seconds) {
  // A processor came or went, or the time is a handful of ticks.
  if (before.size() != now.size() || seconds < 0.2) return 1;
  double sum = 0, squares = 0;
  for (size_t i = 0; i < now.size(); ++i) {
    const double u = std::clamp((now[i] - before[i]) / seconds, 0.0, 1.0);
    sum += u;
    squares += u * u;
  }
  return sum > 0 ? squares / sum : 1;
}

std::optional<FrequencyShare> read_frequency_share(const std::string& sysfs, int max_cpus) {
  const std::string root = sysfs + "/devices/system/cpu/cpufreq";
  const std::vector<std::string> policies = list_directory(root);
  const size_t step = policies.size() / static_cast<size_t>(std::max(max_cpus, 1)) + 1;
  double mean = 0, least = 0;
  int n = 0;
  for (size_t i = 0; i < policies.size(); i += step) {
    const std::string folder = root + "/" + policies[i];
    const auto now = read_number(folder + "/scaling_cur_freq");
    const auto max = read_number(folder + "/cpuinfo_max_freq");
    const auto min = read_number(folder + "/cpuinfo_min_freq");
    if (!now.ok() || !max.ok() || *max == 0 || *now == 0) continue;
    const double share = std::min(1.0, static_cast<double>(*now) / static_cast<double>(*max));
    mean += share;
    least += min.ok() && *min > 0 ? std::min(1.0, static_cast<double>(*min) / static_cast<double>(*max))
                                  : std::min(share, 0.5);
    ++n;
  }
  if (n == 0) return std::nullopt;
  return FrequencyShare{mean / n, least / n, 1};
}

}  // namespace frugal::meter
