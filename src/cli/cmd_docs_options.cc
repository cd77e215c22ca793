// frugal docs options: the options of every command as Markdown. scripts/update_docs.py puts it into
// docs/cli.md.
#include <CLI/CLI.hpp>

#include "cli/commands.h"
#include "cli/config.h"
#include "cli/console.h"

namespace frugal::cli {

Action add_docs_options(CLI::App& app) {
  return [&app] {
    const CLI::App* root = &app;
    while (root->get_parent() != nullptr) root = root->get_parent();
    return print(options_markdown(*root)) ? kExitOk : kExitNoResource;
  };
}

}  // namespace frugal::cli
