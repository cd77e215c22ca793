// frugal meter doctor: the power sources of this host, best first, and what would enable a better one.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/text.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/meter_setup.h"

namespace frugal::cli {

Action add_meter_doctor(CLI::App& app) {
  auto setup = add_meter_options(app);
  auto json = std::make_shared<bool>(false);
  app.add_flag("--json", *json, "print the findings as JSON");
  return [setup, json] {
    const auto meter = open_meter(*setup);
    if (!meter.ok()) {
      std::fprintf(stderr, "frugal meter doctor: %s\n", meter.error().message.c_str());
      return kExitBadInput;
    }
    const meter::SourceInfo& source = (*meter)->source();
    const meter::CarbonIntensity& carbon = (*meter)->options().intensity;
    if (*json) {
      nlohmann::ordered_json out = {{"source", meter::source_kind_name(source.kind)},
                                    {"description", source.description},
                                    {"cpu", source.cpu_name},
                                    {"sockets", source.sockets},
                                    {"threads", source.threads},
                                    {"virtual_machine", source.virtual_machine},
                                    {"memory_counter", source.memory_counter},
                                    {"gpu_counter", source.gpu_counter},
                                    {"shared_sampler", source.shared},
                                    {"model_idle_w", source.idle_watts},
                                    {"model_full_w", source.max_watts},
                                    {"notes", source.notes}};
      out["carbon_g_per_kwh"] =
          carbon.g_per_kwh.known() ? nlohmann::ordered_json(carbon.g_per_kwh.value) : nullptr;
      out["region"] =
          carbon.region.empty() ? nlohmann::ordered_json("unknown") : nlohmann::ordered_json(carbon.region);
      return print(out.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n") ? kExitOk
                                                                                             : kExitFailure;
    }
    std::string text =
        strf("processor   %s\n", source.cpu_name.empty() ? "(no name)" : source.cpu_name.c_str());
    text += strf("            %d socket(s), %d threads%s\n", source.sockets, source.threads,
                 source.virtual_machine ? ", virtual machine" : "");
    text += "power from  " + source.description + "\n";
    text +=
        strf("sampler     %s\n", source.shared ? "one for all of this user's meters" : "this process's own");
    text += strf("model       %.3g W idle, %.3g W at full load\n", source.idle_watts, source.max_watts);
    text += "carbon      " + estimate_text(carbon.g_per_kwh, "gCO2e/kWh") +
            (carbon.source.empty() ? "; give --region, --intensity or --carbon-file" : ", " + carbon.source) +
            "\n";
    for (const std::string& note : source.notes) text += "note        " + note + "\n";
    return print(text) ? kExitOk : kExitFailure;
  };
}

}  // namespace frugal::cli
