// One declaration of an option, four uses: CLI11 parses and helps; this layer reads the same options from a
// JSON file
// (--config), writes them as one (--dump-config), and lists them for docs/cli.md. All of it by asking the
// CLI11 objects.
//
// The key of `--top-k` in JSON is "top_k". The command line wins over the file, the file over the default.
#pragma once

#include <string>
#include <string_view>

#include "frugal/result.h"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace frugal::cli {

// "top_k" for --top-k,-k; the positional's name for an option without dashes.
std::string option_key(const CLI::Option& option);

// Declares --config and --dump-config on `app`.
void add_config_options(CLI::App& app);

// Gives every option of `app` that the command line left alone the value that `json`, an object, has for it.
// kInvalidArgument with `origin`, key and reason: not an object, an unknown key, a value that the option
// refuses.
Status apply_config(CLI::App& app, std::string_view json, std::string_view origin);

// After the command line is parsed: applies the file of --config, if there is one. kNotFound,
// kInvalidArgument.
Status apply_config_file(CLI::App& app);
bool wants_config_dump(const CLI::App& app);

// The options of `app` with their values or defaults, as a JSON object that apply_config() takes.
std::string config_json(const CLI::App& app);

// Markdown: a section for each command below `root`, with a table of its options.
std::string options_markdown(const CLI::App& root);

}  // namespace frugal::cli
