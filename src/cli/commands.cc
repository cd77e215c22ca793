#include "cli/commands.h"

namespace frugal::cli {

std::span<const Command> commands() {
  static constexpr Command kCommands[] = {
      {"docs options", "print the options of every command as Markdown", add_docs_options},
      {"doctor", "say what this machine offers, and what frugal does without", add_doctor},
  };
  return kCommands;
}

std::string_view group_summary(std::string_view group) {
  if (group == "bench") return "measure speed beside a peer";
  if (group == "docs") return "parts of the documentation that are generated";
  if (group == "eval") return "measure quality beside a reference";
  return "";
}

}  // namespace frugal::cli
