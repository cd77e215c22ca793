// frugal report: what the ledger holds, by day, project or model: energy, carbon, and the SCI of ISO/IEC
// 21031.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "base/file.h"
#include "base/text.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/jobs_setup.h"
#include "cli/meter_setup.h"
#include "jobs/schedule.h"
#include "meter/html_report.h"
#include "meter/http/http.h"

namespace frugal::cli {
namespace {

struct ReportOptions {
  std::string ledger;
  std::string by = "day";
  double days = 0;
  std::string project, model, kind;
  std::string format = "text";
  std::string output, html, push;
  double water_l_per_kwh = 0;
  std::shared_ptr<JobsSetup> jobs;
  meter::Embodied embodied;
};

// When the jobs that are not over will run, by the present forecast. `page.jobs` are those of `found`.
Status add_plans_to(meter::ReportPage& page, const std::vector<jobs::Job>& found, CarbonData& carbon,
                    double now) {
  std::vector<jobs::Job> active;
  std::vector<meter::JobBar*> bars;
  double latest = now;
  for (size_t i = 0; i < found.size(); ++i) {
    if (jobs::is_over(found[i].state)) continue;
    active.push_back(found[i]);
    bars.push_back(&page.jobs[i]);
    latest = std::max(latest, found[i].deadline_unix_s);
  }
  if (active.empty()) return {};
  const double hours = std::clamp((latest - now) / 3600 + 2, 2.0, 336.0);
  FRUGAL_TRY(const auto outlook, carbon.outlook(now, static_cast<size_t>(hours)));
  if (!outlook) return {};
  const auto plans =
      jobs::schedule(active, &outlook->hourly, now, {static_cast<int>(::sysconf(_SC_NPROCESSORS_ONLN))});
  for (size_t i = 0; i < plans.size(); ++i) {
    for (const jobs::Run& run : plans[i].plan.runs)
      bars[i]->planned.emplace_back(run.begin_unix_s, run.end_unix_s);
  }
  return {};
}

// The jobs that ended, run or wait, and the intensity around them.
Status add_jobs_to(meter::ReportPage& page, const JobsSetup& setup, double now) {
  const std::string path = setup.path();
  if (::access(path.c_str(), R_OK) != 0) return {};
  FRUGAL_TRY(auto queue, jobs::Queue::open(path));
  FRUGAL_TRY(auto found, queue->jobs(true));
  constexpr size_t kNewest = 40;
  if (found.size() > kNewest) found.erase(found.begin(), found.end() - kNewest);
  CarbonData carbon = carbon_data(setup, found);
  const auto series = carbon.series();
  const meter::IntensitySeries* known = series.ok() && *series ? &**series : nullptr;
  double begin = now - 86400, end = now + 86400;
  for (const jobs::Job& job : found) {
    FRUGAL_TRY(const auto runs, queue->runs(job.id));
    meter::JobBar bar;
    bar.label = std::to_string(job.id);
    for (const std::string& word : job.command) bar.label += " " + word;
    bar.submitted_unix_s = job.submitted_unix_s;
    bar.deadline_unix_s = job.deadline_unix_s;
    for (const jobs::Run& run : runs) bar.runs.emplace_back(run.begin_unix_s, run.end_unix_s);
    bar.outcome = jobs::job_state_name(job.state);
    const Saving saving = saving_of(job, runs, known, now);
    if (!jobs::is_over(job.state) && job.at_once_g > 0)
      bar.outcome += strf(", %.0f %% less expected", 100 * (1 - job.expected_g / job.at_once_g));
    if (saving.at_once_g.known()) bar.outcome += strf(", %.0f %% less carbon than at once", saving.percent);
    begin = std::min(begin, std::max(job.submitted_unix_s - 3600, now - 7 * 86400));
    end = std::max(end, std::min(job.deadline_unix_s + 3600, now + 3 * 86400));
    page.jobs.push_back(std::move(bar));
  }
  if (known == nullptr) return {};
  FRUGAL_TRY_STATUS(add_plans_to(page, found, carbon, now));
  page.intensity_source = known->source;
  for (double hour = std::floor(begin / 3600) * 3600; hour < end; hour += 3600) {
    const Estimate mean = jobs::recorded_mean(*known, hour, hour + 3600, now);
    if (mean.known()) {
      page.intensity.emplace_back(hour, mean.value);
      if (mean.provenance == Provenance::kAssumed && page.intensity.size() == 1) {
        page.intensity_source += " (the same weeks of its year stand in)";
      }
    }
  }
  return {};
}

int write_html(const ReportOptions& options, const std::vector<meter::LedgerEntry>& entries) {
  meter::ReportPage page;
  page.entries = entries;
  page.embodied = options.embodied;
  page.water_l_per_kwh = options.water_l_per_kwh;
  page.now_unix_s = clock_seconds(CLOCK_REALTIME);
  const Status jobs = add_jobs_to(page, *options.jobs, page.now_unix_s);
  if (!jobs.ok())
    std::fprintf(stderr, "frugal: warning: %s; the page is without jobs\n", jobs.error().message.c_str());
  const Status written = write_file_atomically(options.html, meter::html_report(page));
  if (!written.ok()) return fail(written.error());
  return print("wrote " + options.html + "\n") ? kExitOk : kExitFailure;
}

int report(const ReportOptions& options) {
  auto ledger = meter::Ledger::open(options.ledger.empty() ? ledger_path() : options.ledger);
  if (!ledger.ok()) return fail(ledger.error());
  meter::LedgerFilter filter;
  // What other programs read are counters: they go back to the beginning, and never shrink with the window.
  const bool counters = !options.push.empty() || options.format == "prometheus" || options.format == "otlp";
  const double days = options.days > 0 ? options.days : counters ? 36525 : 30;
  filter.since_unix_s = clock_seconds(CLOCK_REALTIME) - 86400 * days;
  filter.project = options.project;
  filter.model = options.model;
  filter.kind = options.kind;
  const auto entries = (*ledger)->read(filter);
  if (!entries.ok()) return fail(entries.error());
  if (!options.html.empty()) return write_html(options, *entries);
  if (!options.push.empty()) {
    const auto sent = meter::http_post(
        options.push, meter::otlp_json(*entries, clock_seconds(CLOCK_REALTIME)), "application/json");
    if (!sent.ok()) return fail(sent.error());
    return print(strf("sent the sums of %zu entries to %s\n", entries->size(), options.push.c_str()))
               ? kExitOk
               : kExitFailure;
  }
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
      if (group.energy_per_unit_j.known())
        text += strf("  %.4g J/%s", group.energy_per_unit_j.value, group.unit.c_str());
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
  app.add_option("--days", options->days,
                 "how far back (default: 30; everything for prometheus, otlp and --push)")
      ->check(CLI::PositiveNumber);
  app.add_option("--project", options->project, "this project only");
  app.add_option("--model", options->model, "this model only");
  app.add_option("--kind", options->kind, "this kind only: run, dnn, cascade, command, job");
  app.add_option("--format", options->format,
                 "text, json, csv, prometheus (text exposition) or otlp (OTLP/HTTP JSON)")
      ->check(CLI::IsMember({"text", "json", "csv", "prometheus", "otlp"}));
  app.add_option("--html", options->html, "write a page with plots to this file, jobs of the queue included");
  app.add_option("--push", options->push,
                 "send the sums to an OpenTelemetry collector: the address of its OTLP/HTTP metrics endpoint "
                 "(http://127.0.0.1:4318/v1/metrics)");
  app.add_option("--water", options->water_l_per_kwh, "litres of water per kWh, for the page")
      ->check(CLI::Range(0.0, 100.0));
  options->jobs = add_jobs_options(app, true);
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
