#include "cli/commands.h"

namespace frugal::cli {

std::span<const Command> commands() {
  static constexpr Command kCommands[] = {
      {"docs options", "print the options of every command as Markdown", add_docs_options},
      {"doctor", "say what this machine offers, and what frugal does without", add_doctor},
      {"meter doctor", "say where power figures come from here, and how to get better ones",
       add_meter_doctor},
  };
  return kCommands;
}

std::string_view group_summary(std::string_view group) {
  if (group == "bench") return "measure speed beside a peer";
  if (group == "docs") return "parts of the documentation that are generated";
  if (group == "meter") return "what runs cost, and where the figures come from";
  if (group == "eval") return "measure quality beside a reference";
  return "";
}

}  // namespace frugal::cli
