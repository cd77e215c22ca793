#include "cli/bench_report.h"

#include <algorithm>
#include <cmath>
#include <ctime>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/text.h"
#include "build_info.h"

namespace frugal::cli {

namespace {

std::string utc_now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts = {};
  gmtime_r(&now, &parts);
  return strf("%04d-%02d-%02dT%02d:%02d:%02dZ", parts.tm_year + 1900, parts.tm_mon + 1, parts.tm_mday,
              parts.tm_hour, parts.tm_min, parts.tm_sec);
}

// Four significant digits: more would be noise, and the files are kept.
double rounded(double value) {
  if (value == 0 || !std::isfinite(value)) return 0;
  const double scale = std::pow(10, 3 - std::floor(std::log10(std::fabs(value))));
  return std::round(value * scale) / scale;
}

std::string shown(double value) {
  if (value == 0) return "0";
  if (value >= 1000) return strf("%.0f", value);
  if (value >= 100) return strf("%.1f", value);
  return strf("%.3g", value);
}

}  // namespace

double median(std::vector<double> values) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

double median_deviation(const std::vector<double>& values) {
  const double middle = median(values);
  std::vector<double> deviations;
  for (const double value : values) deviations.push_back(std::fabs(value - middle));
  return median(deviations);
}

BenchRow bench_row(std::string name, std::string unit, Better better, const std::vector<double>& ours,
                   const std::vector<double>& peer, std::string peer_name) {
  BenchRow row;
  row.name = std::move(name);
  row.unit = std::move(unit);
  row.ours = median(ours);
  row.n = static_cast<int>(ours.size());
  if (peer.empty()) {
    row.spread = row.ours != 0 ? median_deviation(ours) / row.ours : 0;
    return row;
  }
  row.peer = median(peer);
  row.peer_name = std::move(peer_name);
  std::vector<double> ratios;
  for (size_t i = 0; i < std::min(ours.size(), peer.size()); ++i) {
    if (ours[i] > 0 && peer[i] > 0)
      ratios.push_back(better == Better::kHigher ? ours[i] / peer[i] : peer[i] / ours[i]);
  }
  row.ratio = median(ratios);
  row.spread = row.ratio != 0 ? median_deviation(ratios) / row.ratio : 0;
  return row;
}

std::string made_here() {
  return strf("Made %s on %s by frugal at commit %s.", utc_now().c_str(), cpu_name().c_str(), FRUGAL_COMMIT);
}

std::string bench_json(const BenchContext& context, const std::vector<BenchRow>& rows) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  const std::string date = utc_now(), cpu = cpu_name();
  for (const BenchRow& row : rows) {
    nlohmann::ordered_json out = {
        {"bench", context.bench}, {"name", row.name}, {"unit", row.unit}, {"ours", rounded(row.ours)}};
    if (row.peer) {
      out["peer"] = rounded(*row.peer);
      out["peer_name"] = row.peer_name;
      out["ratio"] = rounded(row.ratio);
    } else {
      out["peer"] = out["peer_name"] = out["ratio"] = nullptr;
    }
    out["spread"] = rounded(row.spread);
    out["n"] = row.n;
    for (const auto& [key, value] : row.more) out[key] = rounded(value);
    if (!row.how.empty()) out["how"] = row.how;
    if (!context.model.empty()) out["model"] = context.model;
    if (!context.model_hash.empty()) out["model_hash"] = context.model_hash;
    if (context.threads > 0) out["threads"] = context.threads;
    out["cpu"] = cpu;
    if (!context.isa.empty()) out["isa"] = context.isa;
    out["commit"] = FRUGAL_COMMIT;
    out["compiler"] = FRUGAL_COMPILER;
    out["flags"] = FRUGAL_FLAGS;
    out["command"] = context.command;
    if (!context.note.empty()) out["note"] = context.note;
    out["date"] = date;
    list.push_back(std::move(out));
  }
  return list.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

std::string bench_table(const std::vector<BenchRow>& rows) {
  size_t widest = 4;
  for (const BenchRow& row : rows) widest = std::max(widest, row.name.size());
  std::string out = strf("%-*s  %10s  %10s  %7s  %7s  %s\n", static_cast<int>(widest), "", "ours", "peer",
                         "ratio", "spread", "unit, peer");
  for (const BenchRow& row : rows) {
    out += strf("%-*s  %10s  %10s  %7s  %6.1f%%  %s", static_cast<int>(widest), row.name.c_str(),
                shown(row.ours).c_str(), row.peer ? shown(*row.peer).c_str() : "-",
                row.peer ? strf("%.2f", row.ratio).c_str() : "-", 100 * row.spread, row.unit.c_str());
    if (row.peer) out += ", " + row.peer_name;
    for (const auto& [key, value] : row.more) out += strf(", %s %s", key.c_str(), shown(value).c_str());
    if (!row.how.empty()) out += "; " + row.how;
    out += "\n";
  }
  return out;
}

Status write_bench(const std::string& path, const BenchContext& context, const std::vector<BenchRow>& rows) {
  return write_file_atomically(path, bench_json(context, rows));
}

std::string cpu_name() {
  const auto info = read_file("/proc/cpuinfo", size_t{1} << 24);
  if (!info.ok()) return "unknown";
  for (const std::string& line : split(*info, '\n')) {
    if (line.rfind("model name", 0) == 0) return std::string(trim(line.substr(line.find(':') + 1)));
  }
  return "unknown";
}

std::string command_line(int argc, const char* const* argv) {
  std::string line;
  for (int i = 0; i < argc; ++i) {
    std::string word = argv[i];
    if (i == 0) word = word.substr(word.rfind('/') + 1);
    const bool plain = !word.empty() && word.find_first_of(" \t\n\"'\\$`*?;&|<>()#") == std::string::npos;
    if (!plain) {
      std::string quoted = "'";
      for (const char c : word) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
      word = quoted + "'";
    }
    line += (i > 0 ? " " : "") + word;
  }
  return line;
}

std::string this_command_line() {
  const auto words = read_file("/proc/self/cmdline", size_t{1} << 20);
  if (!words.ok()) return "frugal";
  std::vector<std::string> argv = split(*words, '\0');
  if (!argv.empty() && argv.back().empty()) argv.pop_back();
  std::vector<const char*> pointers;
  for (const std::string& word : argv) pointers.push_back(word.c_str());
  return command_line(static_cast<int>(pointers.size()), pointers.data());
}

}  // namespace frugal::cli
