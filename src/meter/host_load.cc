#include "meter/host_load.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>

#include "base/text.h"
#include "meter/sysfs.h"

namespace frugal::meter {

Result<double> read_busy_seconds(const std::string& procfs) {
  const std::string path = procfs + "/stat";
  FRUGAL_TRY(const std::string line,
             read_line(path));  // "cpu  user nice system idle iowait irq softirq steal guest guest_nice"
  std::vector<uint64_t> fields;
  for (const std::string& word : split(line, ' ')) {
    if (word.empty() || word == "cpu") continue;
    uint64_t value = 0;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), value);
    if (error != std::errc() || end != word.data() + word.size()) break;
    fields.push_back(value);
  }
  if (!line.starts_with("cpu") || fields.size() < 7) {
    return {ErrorCode::kCorrupt, path + ": its first line is not the sum over processors"};
  }
  static const double kTicksPerSecond = static_cast<double>(::sysconf(_SC_CLK_TCK));
  // Guests' time is part of user time already.
  return static_cast<double>(fields[0] + fields[1] + fields[2] + fields[5] + fields[6]) / kTicksPerSecond;
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
  return FrequencyShare{mean / n, least / n};
}

}  // namespace frugal::meter
