// The `frugal` command: finds the subcommand, lets it declare its options, parses, runs.
#include <CLI/CLI.hpp>
#include <csignal>
#include <map>
#include <new>
#include <string>
#include <vector>

#include "base/text.h"
#include "cli/commands.h"
#include "cli/config.h"
#include "cli/console.h"

namespace frugal::cli {
namespace {

struct Leaf {
  CLI::App* app;
  Action action;
};

std::vector<Leaf> add_commands(CLI::App& root) {
  std::vector<Leaf> leaves;
  std::map<std::string, CLI::App*> groups;  // "bench" -> its App, for nested commands
  for (const Command& command : commands()) {
    CLI::App* at = &root;
    const std::vector<std::string> words = split(command.name, ' ');
    for (size_t i = 0; i + 1 < words.size(); ++i) {
      CLI::App*& group = groups[words[i]];
      if (group == nullptr) {
        group = at->add_subcommand(words[i], std::string(group_summary(words[i])));
        group->require_subcommand(1);
      }
      at = group;
    }
    at = at->add_subcommand(words.back(), std::string(command.summary));
    Action action = command.add(*at);
    add_config_options(*at);
    leaves.push_back({at, std::move(action)});
  }
  return leaves;
}

// The command as typed, for hints: "frugal bench llm".
std::string command_path(const CLI::App& root) {
  std::string path = root.get_name();
  for (const CLI::App* at = &root; !at->get_subcommands().empty();) {
    at = at->get_subcommands().front();
    path += " " + at->get_name();
  }
  return path;
}

int run(int argc, char** argv) {
  CLI::App root(
      "frugal: AI inference that spends memory, time, joules and carbon only where they buy something",
      "frugal");
  root.set_version_flag("--version", std::string("frugal ") + FRUGAL_VERSION);
  root.require_subcommand(1);
  // An option given twice takes its last value, so that a habit in a shell alias can be overruled.
  root.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  const std::vector<Leaf> leaves = add_commands(root);
  try {
    root.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == 0) return root.exit(error);  // --help, --version
    if (root.get_subcommands().empty() && argc > 1 && argv[1][0] != '-') {
      return fail({ErrorCode::kInvalidArgument, strf("there is no command `%s` (`frugal --help`)", argv[1])});
    }
    return fail(
        {ErrorCode::kInvalidArgument, std::string(error.what()) + " (`" + command_path(root) + " --help`)"});
  }
  for (const Leaf& leaf : leaves) {
    if (!leaf.app->parsed()) continue;
    if (const Status status = apply_config_file(*leaf.app); !status.ok()) return fail(status.error());
    if (wants_config_dump(*leaf.app)) return print(config_json(*leaf.app)) ? kExitOk : kExitNoResource;
    return leaf.action();
  }
  return kExitUsage;
}

}  // namespace
}  // namespace frugal::cli

int main(int argc, char** argv) {
  using namespace frugal;
  using namespace frugal::cli;
  // A reader that closes the pipe, or a file at its size limit, is a failed write with a message, not a
  // sudden death.
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
  install_log_sink();
  try {
    return run(argc, argv);
  } catch (const std::bad_alloc&) {
    return fail(
        {ErrorCode::kNoMemory, "out of memory; close other programs, or take a smaller model or --ctx"});
  } catch (const std::exception& error) {
    return fail({ErrorCode::kIo, std::string("unexpected: ") + error.what()});
  }
}
