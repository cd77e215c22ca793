#include "meter/export.h"

#include <array>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>

#include "base/text.h"
#include "meter/carbon.h"

namespace frugal::meter {
namespace {

using Json = nlohmann::ordered_json;

Json estimate_json(const Estimate& estimate) {
  if (!estimate.known()) return nullptr;
  return {{"value", estimate.value},
          {"low", estimate.low},
          {"high", estimate.high},
          {"provenance", provenance_name(estimate.provenance)}};
}

std::string dump(const Json& json) { return json.dump(2, ' ', false, Json::error_handler_t::replace); }

void add_known(Estimate& sum, const Estimate& part, bool first) {
  if (!part.known()) return;
  if (first || !sum.known()) {
    sum = part;
  } else {
    sum += part;
  }
}

// Sums over the entries of one set of labels.
struct Totals {
  double runs = 0, cpu_s = 0, wall_s = 0, units = 0;
  std::array<double, 3> energy{}, carbon{};  // value, low, high
};
struct Labels {
  std::string kind, project, model, provenance, unit;
  auto operator<=>(const Labels&) const = default;
};

std::map<Labels, Totals> totals_of(std::span<const LedgerEntry> entries) {
  std::map<Labels, Totals> totals;
  for (const LedgerEntry& entry : entries) {
    Totals& sum = totals[{entry.kind, entry.project, entry.model,
                          std::string(provenance_name(entry.usage.energy_j.provenance)), entry.unit}];
    sum.runs += 1;
    sum.cpu_s += entry.usage.cpu_seconds;
    sum.wall_s += entry.usage.wall_seconds;
    sum.units += entry.units;
    const auto add = [](std::array<double, 3>& to, const Estimate& part) {
      to[0] += part.value;
      to[1] += part.low;
      to[2] += part.high;
    };
    if (entry.usage.energy_j.known()) add(sum.energy, entry.usage.energy_j);
    if (entry.usage.carbon_gco2e.known()) add(sum.carbon, entry.usage.carbon_gco2e);
  }
  return totals;
}

// One metric: name, help, and how it is read off the totals.
struct Metric {
  const char* name;
  const char* unit;  // UCUM, for OTLP
  const char* help;
  double (*read)(const Totals&);
};
constexpr Metric kMetrics[] = {
    {"frugal_runs", "{run}", "Metered runs, requests and jobs.", [](const Totals& t) { return t.runs; }},
    {"frugal_energy_joules", "J", "Energy of the runs.", [](const Totals& t) { return t.energy[0]; }},
    {"frugal_energy_low_joules", "J", "Lower end of its 90 % band.",
     [](const Totals& t) { return t.energy[1]; }},
    {"frugal_energy_high_joules", "J", "Upper end of its 90 % band.",
     [](const Totals& t) { return t.energy[2]; }},
    {"frugal_carbon_grams", "g", "Operational gCO2e of the runs whose place is known.",
     [](const Totals& t) { return t.carbon[0]; }},
    {"frugal_cpu_seconds", "s", "CPU time.", [](const Totals& t) { return t.cpu_s; }},
    {"frugal_wall_seconds", "s", "Wall time.", [](const Totals& t) { return t.wall_s; }},
    {"frugal_units", "{unit}", "Functional units served, by the label unit.",
     [](const Totals& t) { return t.units; }},
};

// Label values: backslash, quote and newline are escaped, the rest is UTF-8.
std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : utf8_sanitized(text)) {
    if (c == '\\' || c == '"') out += '\\';
    if (c == '\n') {
      out += "\\n";
    } else {
      out += c;
    }
  }
  return out;
}

}  // namespace

std::vector<Group> group_entries(std::span<const LedgerEntry> entries, GroupBy by, const Embodied& embodied) {
  std::map<std::string, Group> groups;
  for (const LedgerEntry& entry : entries) {
    const std::string key = by == GroupBy::kDay       ? format_time(entry.unix_s).substr(0, 10)
                            : by == GroupBy::kProject ? entry.project
                            : by == GroupBy::kModel   ? entry.model
                                                      : entry.kind;
    Group& group = groups[key.empty() ? "(none)" : key];
    const bool first = group.n == 0;
    Estimate energy = group.usage.energy_j, carbon = group.usage.carbon_gco2e;
    add_known(energy, entry.usage.energy_j, first);
    add_known(carbon, entry.usage.carbon_gco2e, first);
    group.usage += entry.usage;
    group.usage.energy_j = energy;
    group.usage.carbon_gco2e = carbon;
    if (!entry.usage.carbon_gco2e.known()) ++group.n_unknown_carbon;
    if (first) {
      group.unit = entry.unit;
    } else if (group.unit != entry.unit) {
      group.unit.clear();
    }
    group.units += entry.units;
    ++group.n;
  }
  std::vector<Group> out;
  for (auto& [key, group] : groups) {
    group.key = key;
    constexpr double kYear_s = 365.25 * 86400;
    group.embodied_g = 1000 * embodied.total_kg * group.usage.cpu_seconds /
                       (embodied.threads * embodied.life_years * kYear_s);
    const bool one_unit = group.units > 0 && !group.unit.empty();
    group.energy_per_unit_j = Estimate::unknown();
    if (one_unit && group.usage.energy_j.known())
      group.energy_per_unit_j = group.usage.energy_j.scaled(1 / group.units);
    if (one_unit && group.n_unknown_carbon == 0 && group.usage.carbon_gco2e.known()) {
      Estimate total = group.usage.carbon_gco2e;
      total.value += group.embodied_g;
      total.low += group.embodied_g;
      total.high += group.embodied_g;
      if (group.embodied_g > 0) total.provenance = Provenance::kAssumed;
      group.sci_g = total.scaled(1 / group.units);
    }
    out.push_back(std::move(group));
  }
  return out;
}

std::string groups_json(std::span<const Group> groups) {
  Json out = Json::array();
  for (const Group& group : groups) {
    out.push_back({{"key", group.key},
                   {"entries", group.n},
                   {"entries_without_carbon", group.n_unknown_carbon},
                   {"energy_j", estimate_json(group.usage.energy_j)},
                   {"carbon_g", estimate_json(group.usage.carbon_gco2e)},
                   {"embodied_g", group.embodied_g},
                   {"cpu_s", group.usage.cpu_seconds},
                   {"wall_s", group.usage.wall_seconds},
                   {"flops", group.usage.flops},
                   {"units", group.units},
                   {"unit", group.unit},
                   {"energy_j_per_unit", estimate_json(group.energy_per_unit_j)},
                   {"sci_g_per_unit", estimate_json(group.sci_g)}});
  }
  return dump(out);
}

std::string csv_text(std::span<const LedgerEntry> entries) {
  const auto quoted = [](const std::string& text) {
    std::string out = "\"";
    for (const char c : utf8_sanitized(text)) out += c == '"' ? std::string("\"\"") : std::string(1, c);
    return out + "\"";
  };
  const auto band = [](const Estimate& e) {
    return e.known() ? strf("%.9g,%.9g,%.9g,%s", e.value, e.low, e.high,
                            std::string(provenance_name(e.provenance)).c_str())
                     : std::string(",,,none");
  };
  std::string text =
      "id,time,kind,name,project,model,units,unit,cpu_s,wall_s,flops,bytes_moved,bytes_held,"
      "energy_j,energy_low_j,energy_high_j,energy_provenance,carbon_g,carbon_low_g,carbon_high_g,carbon_"
      "provenance,"
      "source,region,exit_code\r\n";
  for (const LedgerEntry& e : entries) {
    text += strf("%lld,%s,", static_cast<long long>(e.id), format_time(e.unix_s).c_str()) + quoted(e.kind) +
            "," + quoted(e.name) + "," + quoted(e.project) + "," + quoted(e.model) + strf(",%.9g,", e.units) +
            quoted(e.unit) +
            strf(",%.9g,%.9g,%.9g,%.9g,%.9g,", e.usage.cpu_seconds, e.usage.wall_seconds, e.usage.flops,
                 e.usage.bytes_moved, e.usage.bytes_held) +
            band(e.usage.energy_j) + "," + band(e.usage.carbon_gco2e) + "," + quoted(e.source) + "," +
            quoted(e.region) + strf(",%d\r\n", e.exit_code);
  }
  return text;
}

std::string prometheus_text(std::span<const LedgerEntry> entries) {
  const std::map<Labels, Totals> totals = totals_of(entries);
  std::string text;
  for (const Metric& metric : kMetrics) {
    text += strf("# HELP %s_total %s\n# TYPE %s_total counter\n", metric.name, metric.help, metric.name);
    for (const auto& [labels, sum] : totals) {
      text += strf("%s_total{kind=\"%s\",project=\"%s\",model=\"%s\",provenance=\"%s\",unit=\"%s\"} %.12g\n",
                   metric.name, escaped(labels.kind).c_str(), escaped(labels.project).c_str(),
                   escaped(labels.model).c_str(), labels.provenance.c_str(), escaped(labels.unit).c_str(),
                   metric.read(sum));
    }
  }
  return text;
}

std::string otlp_json(std::span<const LedgerEntry> entries, double now_unix_s) {
  const std::map<Labels, Totals> totals = totals_of(entries);
  const auto nanos = [](double seconds) {
    return strf("%.0f", seconds * 1e9);
  };  // 64-bit integers are strings in OTLP
  const std::string start = nanos(entries.empty() ? now_unix_s : entries.front().unix_s);
  Json metrics = Json::array();
  for (const Metric& metric : kMetrics) {
    Json points = Json::array();
    for (const auto& [labels, sum] : totals) {
      Json attributes = Json::array();
      for (const auto& [key, value] : {std::pair{"kind", labels.kind},
                                       {"project", labels.project},
                                       {"model", labels.model},
                                       {"provenance", labels.provenance},
                                       {"unit", labels.unit}}) {
        attributes.push_back({{"key", key}, {"value", {{"stringValue", value}}}});
      }
      points.push_back({{"attributes", attributes},
                        {"startTimeUnixNano", start},
                        {"timeUnixNano", nanos(now_unix_s)},
                        {"asDouble", metric.read(sum)}});
    }
    std::string name = metric.name;
    name.replace(name.find('_'), 1, ".");
    metrics.push_back(
        {{"name", name},
         {"unit", metric.unit},
         {"description", metric.help},
         {"sum", {{"aggregationTemporality", 2}, {"isMonotonic", true}, {"dataPoints", points}}}});
  }
  const Json service = {{"key", "service.name"}, {"value", {{"stringValue", "frugal"}}}};
  return dump(
      {{"resourceMetrics", Json::array({{{"resource", {{"attributes", Json::array({service})}}},
                                         {"scopeMetrics", Json::array({{{"scope", {{"name", "frugal.meter"}}},
                                                                        {"metrics", metrics}}})}}})}});
}

}  // namespace frugal::meter
