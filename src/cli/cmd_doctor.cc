// frugal doctor: what this machine offers, and each fallback with its reason.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>

#include "base/team.h"
#include "cli/commands.h"

namespace frugal::cli {

Action add_doctor(CLI::App& app) {
  auto json = std::make_shared<bool>(false);
  app.add_flag("--json", *json, "print the findings as JSON");
  return [json] {
    if (*json) {
      std::printf("{\"processors\": %d}\n", usable_processors());
    } else {
      std::printf("processors  %d\n", usable_processors());
    }
    return kExitOk;
  };
}

}  // namespace frugal::cli
