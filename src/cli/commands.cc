#include "cli/commands.h"

namespace frugal::cli {

std::span<const Command> commands() {
  static constexpr Command kCommands[] = {
      {"doctor", "say what this machine offers, and what frugal does without", add_doctor},
      {"meter doctor", "say where power figures come from here, and how to get better ones",
       add_meter_doctor},
  };
  return kCommands;
}

}  // namespace frugal::cli
