#include "cli/config.h"

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/text.h"

namespace frugal::cli {

namespace {

using Json = nlohmann::ordered_json;

bool is_flag(const CLI::Option& option) { return option.get_expected_max() == 0; }
bool is_list(const CLI::Option& option) { return option.get_items_expected_max() > 1; }

// Options that steer the parsing itself have no place in a file.
bool is_meta(const CLI::Option& option) {
  const std::string key = option_key(option);
  return key == "help" || key == "version" || key == "config" || key == "dump_config";
}

// The text that the command line would have carried for a JSON scalar; false when it could carry none.
bool scalar_text(const Json& value, std::string* text) {
  if (value.is_string()) {
    *text = value.get<std::string>();
  } else if (value.is_boolean() || value.is_number()) {
    *text = value.dump();
  } else {
    return false;
  }
  return true;
}

// The JSON value of a word of the command line: a number or boolean where the option takes such, else a
// string.
Json scalar_json(const CLI::Option& option, const std::string& text) {
  const std::string type = option.get_type_name();
  const bool numeric = type.rfind("INT", 0) == 0 || type.rfind("UINT", 0) == 0 || type.rfind("FLOAT", 0) == 0;
  if (numeric || is_flag(option)) {
    Json parsed = Json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (parsed.is_number() || parsed.is_boolean()) return parsed;
  }
  return text;
}

const CLI::Option* find_option(const CLI::App& app, const std::string& key) {
  for (const CLI::Option* option : app.get_options()) {
    if (option_key(*option) == key && !is_meta(*option)) return option;
  }
  return nullptr;
}

// Default of a list as CLI11 keeps it, "[a,b]", taken apart.
std::vector<std::string> list_items(std::string text) {
  if (text.size() >= 2 && text.front() == '[' && text.back() == ']') text = text.substr(1, text.size() - 2);
  if (text.empty()) return {};
  return split(text, ',');
}

Json value_of(const CLI::Option& option) {
  if (is_flag(option)) return option.count() > 0 && option.results().back() != "false";
  if (is_list(option)) {
    Json list = Json::array();
    for (const std::string& item :
         option.count() > 0 ? option.results() : list_items(option.get_default_str())) {
      list.push_back(scalar_json(option, item));
    }
    return list;
  }
  return scalar_json(option, option.count() > 0 ? option.results().back() : option.get_default_str());
}

std::string markdown_escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '|') out += '\\';
    out += c == '\n' ? ' ' : c;
  }
  return out;
}

void append_command(const CLI::App& app, const std::string& path, std::string* out) {
  const auto subcommands = app.get_subcommands([](const CLI::App*) { return true; });
  if (subcommands.empty()) {
    *out += "### `" + path + "`\n\n" + app.get_description() + "\n\n";
    *out += "| option | type | default | config key | meaning |\n|---|---|---|---|---|\n";
    for (const CLI::Option* option : app.get_options()) {
      if (option_key(*option) == "help") continue;
      std::string names =
          option->get_name(/*positional=*/option->get_lnames().empty() && option->get_snames().empty(),
                           /*all_options=*/true);
      const std::string type = is_flag(*option) ? "flag" : option->get_type_name();
      const std::string fallback = is_flag(*option) ? "off" : option->get_default_str();
      const std::string key = is_meta(*option) ? "" : "`" + option_key(*option) + "`";
      *out += "| `" + markdown_escaped(names) + "` | " + markdown_escaped(type) + " | " +
              (fallback.empty() ? "" : "`" + markdown_escaped(fallback) + "`") + " | " + key + " | " +
              markdown_escaped(option->get_description()) + " |\n";
    }
    *out += "\n";
    return;
  }
  for (const CLI::App* subcommand : subcommands)
    append_command(*subcommand, path + " " + subcommand->get_name(), out);
}

}  // namespace

std::string option_key(const CLI::Option& option) {
  std::string key = !option.get_lnames().empty()   ? option.get_lnames().front()
                    : !option.get_snames().empty() ? option.get_snames().front()
                                                   : option.get_name(true);
  for (char& c : key) c = c == '-' ? '_' : c;
  return key;
}

void add_config_options(CLI::App& app) {
  app.add_option("--config", "read options from this JSON file; the command line wins over it")
      ->type_name("FILE");
  app.add_flag("--dump-config")
      ->description("print all options with their values as JSON, for --config, and stop");
}

Status apply_config(CLI::App& app, std::string_view json, std::string_view origin) {
  const std::string where(origin);
  const Json config = Json::parse(json, nullptr, /*allow_exceptions=*/false, /*ignore_comments=*/true);
  if (config.is_discarded()) return {ErrorCode::kInvalidArgument, where + " is not valid JSON"};
  if (!config.is_object()) {
    return {ErrorCode::kInvalidArgument, where + " must hold one JSON object, {\"option\": value}"};
  }
  for (const auto& [name, value] : config.items()) {
    std::string key = name;
    for (char& c : key) c = c == '-' ? '_' : c;
    auto* option = const_cast<CLI::Option*>(find_option(app, key));
    if (option == nullptr) {
      return {ErrorCode::kInvalidArgument, where + ": `" + app.get_name() + "` has no option \"" + name +
                                               "\"; --dump-config shows those that there are"};
    }
    if (option->count() > 0 || value.is_null()) continue;
    if (value.is_array() != is_list(*option)) {
      return {ErrorCode::kInvalidArgument,
              where + ": \"" + name + "\" takes " + (is_list(*option) ? "a list" : "one value, not a list")};
    }
    std::vector<std::string> words;
    for (const Json& item : value.is_array() ? value : Json::array({value})) {
      words.emplace_back();
      if (!scalar_text(item, &words.back()) || (is_flag(*option) && !item.is_boolean())) {
        return {ErrorCode::kInvalidArgument,
                where + ": \"" + name + "\" cannot be " + item.dump() + "; it is a " +
                    (is_flag(*option) ? "flag: true or false" : option->get_type_name())};
      }
    }
    if (words.empty()) continue;
    try {
      // With an empty string as its only word, CLI11 keeps the default; that is what an empty default dumps
      // as.
      if (words.size() == 1 && words[0].empty()) continue;
      for (std::string& word : words) option->add_result(std::move(word));
      option->run_callback();
    } catch (const CLI::Error& error) {
      option->clear();
      return {ErrorCode::kInvalidArgument, where + ": " + error.what()};
    }
  }
  return {};
}

Status apply_config_file(CLI::App& app) {
  const CLI::Option* option = app.get_option_no_throw("--config");
  if (option == nullptr || option->count() == 0) return {};
  const std::string path = option->results().back();
  FRUGAL_TRY(const std::string text, read_file(path, size_t{1} << 24));
  return apply_config(app, text, path);
}

bool wants_config_dump(const CLI::App& app) {
  const CLI::Option* option = app.get_option_no_throw("--dump-config");
  return option != nullptr && option->count() > 0;
}

std::string config_json(const CLI::App& app) {
  Json config = Json::object();
  for (const CLI::Option* option : app.get_options()) {
    if (!is_meta(*option)) config[option_key(*option)] = value_of(*option);
  }
  return config.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string options_markdown(const CLI::App& root) {
  std::string out;
  append_command(root, root.get_name(), &out);
  return out;
}

}  // namespace frugal::cli
