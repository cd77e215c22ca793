// frugal meter run -- COMMAND: what a command and its children cost. Its output and exit code pass through;
// the figures go to stderr, as `time` does it.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/text.h"
#include "cli/commands.h"
#include "cli/meter_setup.h"
#include "meter/command.h"

namespace frugal::cli {
namespace {

struct RunOptions {
  std::shared_ptr<MeterSetup> meter;
  std::shared_ptr<LedgerSetup> ledger;
  std::vector<std::string> command;
  bool json = false;
  bool quiet = false;
  std::string output;
  std::string model;
  double units = 0;
  std::string unit = "run";
};

nlohmann::ordered_json estimate_json(const Estimate& estimate) {
  if (!estimate.known()) return nullptr;
  return {{"value", estimate.value},
          {"low", estimate.low},
          {"high", estimate.high},
          {"provenance", provenance_name(estimate.provenance)}};
}

nlohmann::ordered_json count_json(uint64_t count) {
  return count > 0 ? nlohmann::ordered_json(count) : nlohmann::ordered_json(nullptr);
}

std::string joined(const std::vector<std::string>& words) {
  std::string text;
  for (const std::string& word : words) text += (text.empty() ? "" : " ") + word;
  return text;
}

int run(const RunOptions& options) {
  const auto complain = [](const Error& error) {
    std::fprintf(stderr, "frugal meter run: %s\n", error.message.c_str());
  };
  const auto opened = open_meter(*options.meter);
  if (!opened.ok()) {
    complain(opened.error());
    return kExitBadInput;
  }
  meter::PowerMeter& meter = **opened;
  const meter::Snapshot start = meter.snapshot();
  auto done = meter::run_command(options.command);
  if (!done.ok()) {
    complain(done.error());
    return kExitFailure;
  }
  if (!done->started) {
    complain(Error{ErrorCode::kNotFound, done->failure});
    return done->exit_code;
  }
  Usage& usage = done->usage;
  const meter::Charge charge = meter.charge(start, usage);
  const std::vector<meter::PowerSample> samples = meter.samples(start);
  Estimate average = charge.total_j;
  average = usage.wall_seconds > 0 ? average.scaled(1 / usage.wall_seconds) : Estimate::unknown();
  Estimate host_peak = Estimate::unknown();  // of the processors, over a second or so
  for (const meter::PowerSample& sample : samples) {
    if (!host_peak.known() || sample.watts.value > host_peak.value) host_peak = sample.watts;
  }
  Estimate peak = host_peak.scaled(charge.share);
  if (charge.share < 0.9) peak.provenance = std::max(peak.provenance, Provenance::kModelled);

  meter::LedgerEntry entry;
  entry.kind = "command";
  entry.name = joined(options.command);
  entry.model = options.model;
  entry.unit = options.unit;
  entry.units = options.units > 0 ? options.units : 1;
  entry.usage = usage;
  entry.exit_code = done->exit_code;
  record(*options.ledger, meter, start, charge, entry);

  std::string text;
  if (options.json) {
    nlohmann::ordered_json out = {{"command", options.command},
                                  {"exit_code", done->exit_code},
                                  {"wall_s", usage.wall_seconds},
                                  {"cpu_s", usage.cpu_seconds},
                                  {"user_s", done->user_seconds},
                                  {"system_s", done->system_seconds},
                                  {"peak_memory_bytes", usage.bytes_held},
                                  {"instructions", count_json(done->instructions)},
                                  {"energy_j", estimate_json(usage.energy_j)},
                                  {"cpu_j", estimate_json(charge.cpu_j)},
                                  {"memory_j", estimate_json(charge.memory_j)},
                                  {"gpu_j", estimate_json(charge.gpu_j)},
                                  {"gpu_is_own", charge.gpu_is_own},
                                  {"average_w", estimate_json(average)},
                                  {"peak_w", estimate_json(peak)},
                                  {"host_peak_w", estimate_json(host_peak)},
                                  {"host_cpu_j", estimate_json(charge.host_cpu_j)},
                                  {"share_of_host_cpu_time", charge.share},
                                  {"carbon_g", estimate_json(usage.carbon_gco2e)},
                                  {"g_per_kwh", estimate_json(charge.g_per_kwh)},
                                  {"water_l", meter.options().water_l_per_kwh * usage.energy_j.value / 3.6e6},
                                  {"region", meter.options().intensity.region},
                                  {"source", meter::source_kind_name(meter.source().kind)},
                                  {"source_description", meter.source().description},
                                  {"orphans_left", done->orphans_left}};
    if (out["region"] == "") out["region"] = "unknown";
    text = out.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
  } else if (!options.quiet) {
    const auto row = [&](const char* name, const std::string& value) {
      text += strf("  %-10s %s\n", name, value.c_str());
    };
    text = "\n";
    row("energy", estimate_text(usage.energy_j, "J"));
    row("  cpu", estimate_text(charge.cpu_j, "J"));
    row("  memory", estimate_text(charge.memory_j, "J"));
    row("  gpu", charge.gpu_j.known()
                     ? estimate_text(charge.gpu_j, "J") + (charge.gpu_is_own ? "" : ", whole device")
                     : "none that can be read");
    row("power", estimate_text(average, "W") + " on average");
    row("  peak", peak.known() ? estimate_text(peak, "W") + ", processors"
                               : "not sampled: the run was shorter than a sample");
    const meter::CarbonIntensity& place = meter.options().intensity;
    row("carbon", usage.carbon_gco2e.known()
                      ? estimate_text(usage.carbon_gco2e, "gCO2e") + ", " +
                            (place.region.empty() ? place.source : place.region + ", " + place.source)
                      : "unknown: no --region, --intensity or --carbon-file");
    if (meter.options().water_l_per_kwh > 0) {
      row("water", strf("%.3g l", meter.options().water_l_per_kwh * usage.energy_j.value / 3.6e6));
    }
    row("time", strf("%s wall, %s cpu (%.0f %% of the host's)", human_seconds(usage.wall_seconds).c_str(),
                     human_seconds(usage.cpu_seconds).c_str(), 100 * charge.share));
    row("memory", human_bytes(usage.bytes_held) + " at most, all processes");
    row("work", done->instructions > 0
                    ? human_count(static_cast<double>(done->instructions)) + " instructions"
                    : "instructions are not counted here");
    row("meter", meter.source().description);
    if (done->orphans_left > 0)
      row("note", strf("%d child process(es) still run; counted up to now", done->orphans_left));
  }
  if (!options.output.empty()) {
    const Status saved = write_file_atomically(options.output, text);
    if (!saved.ok()) complain(saved.error());
  } else {
    std::fputs(text.c_str(), stderr);
  }
  return done->exit_code;
}

}  // namespace

Action add_meter_run(CLI::App& app) {
  auto options = std::make_shared<RunOptions>();
  app.add_option("command", options->command, "the command and its arguments, after `--`")->required();
  app.add_flag("--json", options->json, "print the figures as JSON");
  app.add_flag("-q,--quiet", options->quiet, "print nothing, only write to the ledger");
  app.add_option("-o,--output", options->output, "write the figures to this file instead of stderr");
  app.add_option("--model", options->model, "model that the ledger files this under");
  app.add_option("--units", options->units, "functional units that the command serves, for the SCI")
      ->check(CLI::PositiveNumber);
  app.add_option("--unit", options->unit, "what a functional unit is: run, request, token");
  options->meter = add_meter_options(app);
  options->ledger = add_ledger_options(app);
  app.positionals_at_end();
  return [options] { return run(*options); };
}

}  // namespace frugal::cli
