// frugal doctor: what this machine offers, and each fallback with its reason.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/team.h"
#include "base/text.h"
#include "cli/bench_report.h"
#include "cli/bench_tools.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/llm_options.h"
#include "cli/meter_setup.h"

namespace frugal::cli {

namespace {

// Something that is done without, why, and what would bring it.
struct Fallback {
  std::string what, reason;
};

struct Memory {
  double total = 0, available = 0;  // bytes; 0 when the host does not tell
};

Memory host_memory() {
  Memory memory;
  const auto info = read_file("/proc/meminfo", size_t{1} << 20);
  if (!info.ok()) return memory;
  for (const std::string& line : split(*info, '\n')) {
    const auto kib = [&line] { return std::strtod(line.c_str() + line.find(':') + 1, nullptr) * 1024; };
    if (line.rfind("MemTotal:", 0) == 0) memory.total = kib();
    if (line.rfind("MemAvailable:", 0) == 0) memory.available = kib();
  }
  return memory;
}

// Whether the processor has what the AVX2 kernels need, as it says itself.
bool cpu_has_avx2() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

}  // namespace

Action add_doctor(CLI::App& app) {
  auto json = std::make_shared<bool>(false);
  auto setup = add_meter_options(app);
  app.add_flag("--json", *json, "print the findings as JSON");
  return [json, setup] {
    std::vector<Fallback> fallbacks;
    const std::string isa = kernel_isa();
    if (isa == "generic") {
      fallbacks.push_back({"kernels in plain C++, many times slower",
                           cpu_has_avx2() ? "this build has no kernels for this processor"
                                          : "this processor has no AVX2, FMA and F16C"});
    }
    const long all = sysconf(_SC_NPROCESSORS_ONLN);
    if (usable_processors() < all) {
      fallbacks.push_back({strf("%d of %ld processors", usable_processors(), all),
                           "the affinity mask or the container's quota leaves no more"});
    }
    const auto meter = open_meter(*setup);
    if (meter.ok()) {
      for (const std::string& note : (*meter)->source().notes)
        fallbacks.push_back({"a modelled power source", note});
    } else {
      fallbacks.push_back({"no energy figures", meter.error().message});
    }
    const auto model = resolve_model("");
    if (!model.ok()) fallbacks.push_back({"no default model", model.error().message});
    const Memory memory = host_memory();
    const std::vector<std::string> models = installed_models();

    if (*json) {
      nlohmann::ordered_json out = {{"version", FRUGAL_VERSION},
                                    {"cpu", cpu_name()},
                                    {"isa", isa},
                                    {"processors", usable_processors()},
                                    {"memory_bytes", memory.total},
                                    {"memory_available_bytes", memory.available},
                                    {"models", models}};
      out["default_model"] = model.ok() ? nlohmann::ordered_json(*model) : nullptr;
      out["power_source"] = meter.ok() ? nlohmann::ordered_json((*meter)->source().description) : nullptr;
      out["fallbacks"] = nlohmann::ordered_json::array();
      for (const Fallback& fallback : fallbacks) {
        out["fallbacks"].push_back({{"what", fallback.what}, {"reason", fallback.reason}});
      }
      return print(out.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n")
                 ? kExitOk
                 : kExitNoResource;
    }
    std::string out = strf("frugal      %s\nprocessor   %s, %d usable\nkernels     %s\n", FRUGAL_VERSION,
                           cpu_name().c_str(), usable_processors(), isa.c_str());
    out += strf("memory      %s, %s available\n", human_bytes(memory.total).c_str(),
                human_bytes(memory.available).c_str());
    out += "model       " + (model.ok() ? *model : std::string("none")) + "\n";
    for (const std::string& path : models) {
      std::error_code ignored;
      out += strf("installed   %s, %s\n", std::filesystem::path(path).stem().string().c_str(),
                  human_bytes(static_cast<double>(std::filesystem::file_size(path, ignored))).c_str());
    }
    if (meter.ok()) out += "power       " + (*meter)->source().description + "\n";
    for (const Fallback& fallback : fallbacks)
      out += "fallback    " + fallback.what + ": " + fallback.reason + "\n";
    return print(out) ? kExitOk : kExitNoResource;
  };
}

}  // namespace frugal::cli
