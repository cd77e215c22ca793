// frugal report: what the ledger holds, by day, project or model: energy, carbon, and the SCI of ISO/IEC
// 21031.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "base/file.h"
#include "base/text.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/meter_setup.h"
#include "meter/export.h"

namespace frugal::cli {
namespace {

struct ReportOptions {
  std::string ledger;
  std::string by = "day";
  double days = 30;
  std::string project, model, kind;
  std::string format = "text";
  std::string output;
  meter::Embodied embodied;
};

int report(const ReportOptions& options) {
  auto ledger = meter::Ledger::open(options.ledger.empty() ? ledger_path() : options.ledger);
  if (!ledger.ok()) return fail(ledger.error());
  meter::LedgerFilter filter;
  filter.since_unix_s = clock_seconds(CLOCK_REALTIME) - 86400 * options.days;
  filter.project = options.project;
  filter.model = options.model;
  filter.kind = options.kind;
  const auto entries = (*ledger)->read(filter);
  if (!entries.ok()) return fail(entries.error());
  const meter::GroupBy by = options.by == "project" ? meter::GroupBy::kProject
                            : options.by == "model" ? meter::GroupBy::kModel
                            : options.by == "kind"  ? meter::GroupBy::kKind
                                                    : meter::GroupBy::kDay;
  const std::vector<meter::Group> groups = meter::group_entries(*entries, by, options.embodied);
  std::string text;
  if (options.format == "csv") {
    text = meter::csv_text(*entries);
  } else if (options.format == "prometheus") {
    text = meter::prometheus_text(*entries);
  } else if (options.format == "otlp") {
    text = meter::otlp_json(*entries, clock_seconds(CLOCK_REALTIME)) + "\n";
  } else if (options.format == "json") {
    text = meter::groups_json(groups) + "\n";
  } else if (groups.empty()) {
    text = "the ledger holds nothing of that kind yet\n";
  } else {
    for (const meter::Group& group : groups) {
      text += strf("%-12s %5lld entries  %s  carbon %s", group.key.c_str(), static_cast<long long>(group.n),
                   estimate_text(group.usage.energy_j, "J").c_str(),
                   estimate_text(group.usage.carbon_gco2e, "g").c_str());
      if (group.sci_g.known()) text += "  SCI " + estimate_text(group.sci_g, ("g/" + group.unit).c_str());
      if (group.n_unknown_carbon > 0)
        text += strf("  (%lld without carbon)", static_cast<long long>(group.n_unknown_carbon));
      text += "\n";
    }
  }
  if (options.output.empty()) return print(text) ? kExitOk : kExitFailure;
  const Status written = write_file_atomically(options.output, text);
  return written.ok() ? static_cast<int>(kExitOk) : fail(written.error());
}

}  // namespace

Action add_report(CLI::App& app) {
  auto options = std::make_shared<ReportOptions>();
  app.add_option("--ledger", options->ledger, "the ledger's file (default: the user's own)");
  app.add_option("--by", options->by, "group by day, project, model or kind")
      ->check(CLI::IsMember({"day", "project", "model", "kind"}));
  app.add_option("--days", options->days, "how far back")->check(CLI::PositiveNumber);
  app.add_option("--project", options->project, "this project only");
  app.add_option("--model", options->model, "this model only");
  app.add_option("--kind", options->kind, "this kind only: run, dnn, cascade, command, job");
  app.add_option("--format", options->format,
                 "text, json, csv, prometheus (text exposition) or otlp (OTLP/HTTP JSON)")
      ->check(CLI::IsMember({"text", "json", "csv", "prometheus", "otlp"}));
  app.add_option("-o,--output", options->output, "write to this file instead of stdout");
  app.add_option(
         "--embodied-kg", options->embodied.total_kg,
         "emissions of making this host, kgCO2e, for the SCI's M; without it the SCI is operational only")
      ->check(CLI::PositiveNumber);
  app.add_option("--life-years", options->embodied.life_years, "expected life of the host")
      ->check(CLI::PositiveNumber);
  app.add_option("--threads", options->embodied.threads, "hardware threads of the host")
      ->check(CLI::PositiveNumber);
  return [options] { return report(*options); };
}

}  // namespace frugal::cli
