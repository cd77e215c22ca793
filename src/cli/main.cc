// The `frugal` command: finds the subcommand, lets it declare its options, parses, runs.
#include <CLI/CLI.hpp>
#include <map>
#include <string>
#include <vector>

#include "base/text.h"
#include "cli/commands.h"

int main(int argc, char** argv) {
  using namespace frugal;
  using namespace frugal::cli;
  CLI::App app(
      "frugal: AI inference that spends memory, time, joules and carbon only where they buy something",
      "frugal");
  app.set_version_flag("--version", std::string("frugal ") + FRUGAL_VERSION);
  app.require_subcommand(1);
  std::vector<std::pair<CLI::App*, Action>> leaves;
  std::map<std::string, CLI::App*> groups;  // "bench" -> its App, for nested commands
  for (const Command& command : commands()) {
    CLI::App* at = &app;
    const std::vector<std::string> words = split(command.name, ' ');
    for (size_t i = 0; i + 1 < words.size(); ++i) {
      CLI::App*& group = groups[words[i]];
      if (group == nullptr) {
        group = at->add_subcommand(words[i], "");
        group->require_subcommand(1);
      }
      at = group;
    }
    at = at->add_subcommand(words.back(), std::string(command.summary));
    leaves.emplace_back(at, command.add(*at));
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  for (const auto& [leaf, action] : leaves) {
    if (leaf->parsed()) return action();
  }
  return kExitUsage;
}
