#include "meter/cpu_info.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>
#include <set>

#include "base/file.h"
#include "base/text.h"

namespace frugal::meter {
namespace {

int to_int(std::string_view text) {
  int value = 0;
  std::from_chars(text.data(), text.data() + text.size(), value);
  return value;
}

}  // namespace

CpuInfo read_cpu_info(const std::string& procfs) {
  CpuInfo cpu;
  const auto contents = read_file(procfs + "/cpuinfo", size_t{64} << 20);
  if (!contents.ok()) return cpu;
  std::set<std::string> packages;
  int threads = 0;
  for (const std::string& line : split(*contents, '\n')) {
    const size_t colon = line.find(':');
    if (colon == std::string::npos) continue;
    const std::string_view key = trim(std::string_view(line).substr(0, colon));
    const std::string_view value = trim(std::string_view(line).substr(colon + 1));
    if (key == "processor") {
      ++threads;
    } else if (key == "physical id") {
      packages.emplace(value);
    } else if (key == "model name" && cpu.name.empty()) {
      cpu.name = utf8_sanitized(value);
    } else if (key == "vendor_id" && cpu.vendor.empty()) {
      cpu.vendor = value;
    } else if (key == "CPU implementer" && cpu.vendor.empty()) {
      cpu.vendor = value == "0x41" ? "ARM" : "ARM-compatible";
    } else if (key == "cpu family") {
      cpu.family = to_int(value);
    } else if (key == "model") {
      cpu.model = to_int(value);
    } else if (key == "flags" && !cpu.virtual_machine) {
      for (const std::string& flag : split(value, ' ')) {
        if (flag == "hypervisor") cpu.virtual_machine = true;
      }
    }
  }
  cpu.threads = std::max(threads, 1);
  cpu.sockets = std::max(static_cast<int>(packages.size()), 1);
  return cpu;
}

std::string normalised_cpu_name(std::string_view name) {
  std::string text(name);
  for (char& c : text) c = static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
  for (const char* mark : {"(r)", "(tm)"}) {
    for (size_t at; (at = text.find(mark)) != std::string::npos;)
      text.replace(at, std::string_view(mark).size(), " ");
  }
  text = text.substr(0, text.find('@'));
  text = text.substr(0, text.find(" with "));  // "... with Radeon Graphics"
  std::string out;
  for (const std::string& word : split(text, ' ')) {
    if (word.empty() || word == "cpu" || word == "processor" || word.ends_with("-core")) continue;
    if (!out.empty()) out += ' ';
    out += word;
  }
  return out;
}

Result<double> find_tdp_in(std::string_view table, std::string_view origin, std::string_view name) {
  const std::string wanted = normalised_cpu_name(name);
  if (wanted.empty()) return {ErrorCode::kNotFound, "the processor has no name"};
  double found = 0;
  size_t line_number = 0, n_parts = 0;
  for (const std::string& raw : split(table, '\n')) {
    ++line_number;
    const std::string_view line = trim(raw);
    if (line.empty() || line_number == 1) continue;  // the header
    const size_t comma = line.rfind(',');
    char* end = nullptr;
    const std::string watts_text(comma == std::string_view::npos ? "" : trim(line.substr(comma + 1)));
    const double watts = std::strtod(watts_text.c_str(), &end);
    // A damaged line (the public table has some) costs that part only.
    if (comma == std::string_view::npos || end == watts_text.c_str() || *end != '\0' ||
        !(watts > 0 && watts < 10000)) {
      continue;
    }
    ++n_parts;
    std::string_view entry = trim(line.substr(0, comma));
    if (entry.size() >= 2 && entry.front() == '"' && entry.back() == '"')
      entry = entry.substr(1, entry.size() - 2);
    if (normalised_cpu_name(entry) != wanted) continue;
    if (found != 0 && found != watts) {
      return {ErrorCode::kNotFound,
              strf("'%s' is listed with %g W and with %g W", wanted.c_str(), found, watts)};
    }
    found = watts;
  }
  if (n_parts == 0) {
    return {ErrorCode::kCorrupt,
            strf("%s holds no line of a name and its watts", std::string(origin).c_str())};
  }
  if (found == 0)
    return {ErrorCode::kNotFound, strf("'%s' is not in %s", wanted.c_str(), std::string(origin).c_str())};
  return found;
}

Result<double> find_tdp(const std::string& table_path, std::string_view name) {
  FRUGAL_TRY(const std::string table, read_file(table_path, size_t{16} << 20));
  return find_tdp_in(table, table_path, name);
}

WattsPerThread watts_per_thread(const CpuInfo& cpu) {
  // Rated watts over threads of the families' server parts, from the makers' data sheets: the value is a part
  // that clouds rent out, low and high are the family's extremes apart from its few-core frequency parts.
  struct Row {
    const char* vendor;
    int family, model_low, model_high;
    WattsPerThread watts;
  };
  static const Row kRows[] = {
      {"AuthenticAMD", 23, 0x00, 0x0f, {2.8, 2.2, 5.6, "AMD EPYC 7001 (Zen)"}},
      {"AuthenticAMD", 23, 0x30, 0x3f, {1.9, 1.6, 4.7, "AMD EPYC 7002 (Zen 2)"}},
      {"AuthenticAMD", 25, 0x00, 0x0f, {2.2, 1.8, 4.9, "AMD EPYC 7003 (Zen 3)"}},
      {"AuthenticAMD", 25, 0x10, 0x1f, {1.9, 1.6, 5.0, "AMD EPYC 9004 (Zen 4)"}},
      {"AuthenticAMD", 25, 0xa0, 0xaf, {1.4, 1.2, 2.8, "AMD EPYC 97x4 and 8004 (Zen 4c)"}},
      {"AuthenticAMD", 26, 0x00, 0x1f, {1.7, 1.2, 4.0, "AMD EPYC 9005 (Zen 5)"}},
      {"GenuineIntel", 6, 63, 63, {4.9, 3.9, 7.1, "Intel Xeon v3 (Haswell)"}},
      {"GenuineIntel", 6, 79, 79, {4.0, 3.2, 6.9, "Intel Xeon v4 (Broadwell)"}},
      {"GenuineIntel", 6, 85, 85, {4.5, 3.4, 6.6, "Intel Xeon Scalable (Skylake, Cascade Lake)"}},
      {"GenuineIntel", 6, 106, 106, {4.4, 3.4, 6.5, "Intel Xeon Scalable 3 (Ice Lake)"}},
      {"GenuineIntel", 6, 143, 143, {3.3, 2.8, 6.0, "Intel Xeon Scalable 4 (Sapphire Rapids)"}},
      {"GenuineIntel", 6, 207, 207, {2.9, 2.6, 6.0, "Intel Xeon Scalable 5 (Emerald Rapids)"}},
      {"GenuineIntel", 6, 173, 175, {2.5, 1.2, 4.0, "Intel Xeon 6"}},
  };
  for (const Row& row : kRows) {
    if (cpu.vendor == row.vendor && cpu.family == row.family && cpu.model >= row.model_low &&
        cpu.model <= row.model_high) {
      return row.watts;
    }
  }
  if (cpu.vendor.starts_with("ARM")) return {1.8, 1.0, 3.5, "Arm server"};
  return {4.0, 1.5, 10.0, "a processor of unknown family"};
}

}  // namespace frugal::meter
