// frugal inspect: what is in a model file, whether frugal runs it, and if not, why. Reads metadata and the
// tensor table only, so it is quick on any file, and safe on a hostile one.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cinttypes>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/text.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "llm/kv/kv_cache.h"
#include "llm/model/config.h"
#include "llm/model/gguf.h"
#include "llm/model/tokenizer_check.h"
#include "llm/model/weights.h"
#include "llm/vocab/chat_template.h"

namespace frugal::cli {
namespace {

using Json = nlohmann::ordered_json;
using llm::GgufFile;
using llm::GgufTensor;
using llm::GgufValue;

struct InspectOptions {
  std::string model;
  bool json = false, tensors = false, metadata = false;
};

struct TypeShare {
  std::string type;
  uint64_t n_tensors = 0, n_parameters = 0, bytes = 0;
};

struct Findings {
  std::string architecture, name, tokenizer, pre_tokenizer, chat_template;  // "" = the file does not say
  uint64_t n_parameters = 0, tensor_bytes = 0, n_vocab = 0;
  std::vector<TypeShare> types;  // most parameters first
  Result<llm::ModelConfig> config = Error{};
  Status runs;  // why frugal does not run the model, if it does not
};

std::string text_of(const GgufFile& file, std::string_view key) {
  const GgufValue* value = file.find_value(key);
  return value != nullptr && value->string() ? utf8_sanitized(*value->string()) : std::string();
}

Status runs_here(const GgufFile& file, const Result<llm::ModelConfig>& config) {
  if (!config.ok()) return config.error();
  FRUGAL_TRY_STATUS(llm::check_weights(file, *config));
  return llm::check_tokenizer(file);
}

Findings look_at(const GgufFile& file) {
  Findings found;
  found.architecture = llm::printable_name(text_of(file, "general.architecture"));
  found.name = llm::printable_name(text_of(file, "general.name"));
  found.tokenizer = llm::printable_name(text_of(file, "tokenizer.ggml.model"));
  found.pre_tokenizer = llm::printable_name(text_of(file, "tokenizer.ggml.pre"));
  if (const GgufValue* tokens = file.find_value("tokenizer.ggml.tokens")) found.n_vocab = tokens->count;
  const std::string jinja = text_of(file, "tokenizer.chat_template");
  if (!jinja.empty()) {
    found.chat_template = llm::recognise_chat_template(jinja);
    if (found.chat_template.empty()) found.chat_template = "not recognised";
  }
  std::map<std::string, TypeShare> by_type;
  for (const GgufTensor& tensor : file.tensors()) {
    TypeShare& share = by_type[llm::tensor_type_label(tensor.type)];
    ++share.n_tensors;
    share.n_parameters += tensor.n_elements();
    share.bytes += tensor.bytes;
    found.n_parameters += tensor.n_elements();
    found.tensor_bytes += tensor.bytes;
  }
  for (auto& [type, share] : by_type) {
    share.type = type;
    found.types.push_back(share);
  }
  std::sort(found.types.begin(), found.types.end(),
            [](const TypeShare& a, const TypeShare& b) { return a.n_parameters > b.n_parameters; });
  found.config = llm::parse_model_config(file);
  found.runs = runs_here(file, found.config);
  return found;
}

// Bytes that a token adds to the cache of a sequence: keys and values of every layer, heads rounded up to
// whole panels.
double kv_bytes_per_token(const llm::ModelConfig& config, double bytes_per_value) {
  llm::KvShape shape;
  shape.head_dim = config.head_dim;
  return 2.0 * config.n_layers * config.n_kv_heads * shape.padded_dim() * bytes_per_value;
}

// q8_0 adds a 2-byte scale to every 32 values of a byte each.
constexpr struct {
  const char* name;
  double bytes_per_value;
} kKvFormats[] = {{"f32", 4}, {"f16", 2}, {"bf16", 2}, {"q8_0", 34.0 / 32}};

Json metadata_json(const GgufFile& file) {
  Json all = Json::object();
  for (const GgufValue& value : file.metadata()) {
    all[utf8_sanitized(value.key)] = {{"type", value.type_label()}, {"value", value.display(2000)}};
    if (value.type == llm::GgufValueType::kArray) all[utf8_sanitized(value.key)]["count"] = value.count;
  }
  return all;
}

std::string report_json(const GgufFile& file, const Findings& found, const InspectOptions& options) {
  Json out = {{"path", utf8_sanitized(file.label())},
              {"file_bytes", file.bytes().size()},
              {"gguf_version", file.version()},
              {"architecture", found.architecture},
              {"name", found.name},
              {"parameters", found.n_parameters},
              {"tensor_bytes", found.tensor_bytes},
              {"tensors", file.tensors().size()}};
  for (const TypeShare& share : found.types) {
    out["types"].push_back({{"type", share.type},
                            {"tensors", share.n_tensors},
                            {"parameters", share.n_parameters},
                            {"bytes", share.bytes}});
  }
  if (found.config.ok()) {
    const llm::ModelConfig& config = *found.config;
    out["config"] = {{"layers", config.n_layers},
                     {"embedding", config.n_embd},
                     {"heads", config.n_heads},
                     {"kv_heads", config.n_kv_heads},
                     {"head_dim", config.head_dim},
                     {"feed_forward", config.n_ff},
                     {"vocabulary", config.n_vocab},
                     {"context", config.n_ctx_train},
                     {"sliding_window", config.sliding_window},
                     {"rope_base", config.rope.base},
                     {"rope_scale", config.rope.scale}};
    for (const auto& format : kKvFormats) {
      out["kv_bytes_per_token"][format.name] = kv_bytes_per_token(config, format.bytes_per_value);
    }
  }
  out["tokenizer"] = {{"kind", found.tokenizer}, {"pre", found.pre_tokenizer}, {"tokens", found.n_vocab}};
  out["chat_template"] = found.chat_template;
  out["runs"] = found.runs.ok();
  if (!found.runs.ok()) out["reason"] = found.runs.error().message;
  if (options.metadata) out["metadata"] = metadata_json(file);
  if (options.tensors) {
    out["tensor_table"] = Json::array();
    for (const GgufTensor& tensor : file.tensors()) {
      out["tensor_table"].push_back({{"name", utf8_sanitized(tensor.name)},
                                     {"type", llm::tensor_type_label(tensor.type)},
                                     {"shape", tensor.shape},
                                     {"offset", tensor.offset},
                                     {"bytes", tensor.bytes}});
    }
  }
  return out.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string config_text(const llm::ModelConfig& config) {
  std::string out;
  out += strf("layers       %d, width %d, feed-forward %d\n", config.n_layers, config.n_embd, config.n_ff);
  out += strf("attention    %d heads of %d, %d for keys and values", config.n_heads, config.head_dim,
              config.n_kv_heads);
  if (config.sliding_window > 0) {
    const auto n_windowed =
        std::count(config.layer_is_windowed.begin(), config.layer_is_windowed.end(), true);
    out += strf("; %d of %d layers see the last %d tokens", static_cast<int>(n_windowed), config.n_layers,
                config.sliding_window);
  }
  out += strf("\ncontext      %d tokens, rope base %g", config.n_ctx_train,
              static_cast<double>(config.rope.base));
  if (config.rope.scale != 1) {
    out += strf(", stretched %g times (%s)", 1.0 / static_cast<double>(config.rope.scale),
                config.rope.yarn_mix != 0 ? "yarn" : "linear");
  }
  out += "\nKV cache     ";
  for (const auto& format : kKvFormats) {
    const double bytes = kv_bytes_per_token(config, format.bytes_per_value);
    out += strf("%s%s %s", &format == kKvFormats ? "" : ", ", human_bytes(bytes).c_str(), format.name);
  }
  return out + " a token\n";
}

std::string report_text(const GgufFile& file, const Findings& found, const InspectOptions& options) {
  const auto or_unknown = [](const std::string& text) { return text.empty() ? "(not given)" : text.c_str(); };
  std::string out = strf("model        %s\n", or_unknown(found.name));
  out += strf("architecture %s\n", or_unknown(found.architecture));
  out += strf("file         %s, GGUF version %u, %zu tensors\n",
              human_bytes(static_cast<double>(file.bytes().size())).c_str(), file.version(),
              file.tensors().size());
  out += strf("parameters   %s\n", human_count(static_cast<double>(found.n_parameters)).c_str());
  const double all = static_cast<double>(std::max<uint64_t>(1, found.n_parameters));
  for (const TypeShare& share : found.types) {
    out += strf("  %-10s %5.1f %%, %s in %" PRIu64 " tensors\n", share.type.c_str(),
                100 * static_cast<double>(share.n_parameters) / all,
                human_bytes(static_cast<double>(share.bytes)).c_str(), share.n_tensors);
  }
  if (found.config.ok()) out += config_text(*found.config);
  out += strf("tokenizer    %s%s%s, %" PRIu64 " tokens\n", or_unknown(found.tokenizer),
              found.pre_tokenizer.empty() ? "" : "/", found.pre_tokenizer.c_str(), found.n_vocab);
  out += strf("chat         %s\n", found.chat_template.empty()
                                       ? "no template: not trained for chats, or not said"
                                       : found.chat_template.c_str());
  out += found.runs.ok() ? "runs here    yes\n"
                         : strf("runs here    no: %s\n", found.runs.error().message.c_str());
  if (options.metadata) {
    out += "\n";
    for (const GgufValue& value : file.metadata()) {
      out += strf("%s (%s) = %s\n", llm::printable_name(value.key).c_str(), value.type_label().c_str(),
                  value.display().c_str());
    }
  }
  if (options.tensors) {
    out += "\n";
    for (const GgufTensor& tensor : file.tensors()) {
      out += strf("%-36s %-6s %s\n", llm::printable_name(tensor.name).c_str(),
                  llm::tensor_type_label(tensor.type).c_str(), tensor.shape_label().c_str());
    }
  }
  return out;
}

int inspect(const InspectOptions& options) {
  const Result<GgufFile> file = GgufFile::open(options.model);
  if (!file.ok()) return fail(file.error());
  const Findings found = look_at(*file);
  if (!print(options.json ? report_json(*file, found, options) : report_text(*file, found, options))) {
    return kExitNoResource;
  }
  // A file that frugal cannot run is shown as far as it can be read, and still is a failure for scripts.
  return found.runs.ok() ? kExitOk : fail(found.runs.error());
}

}  // namespace

Action add_inspect(CLI::App& app) {
  auto options = std::make_shared<InspectOptions>();
  app.add_option("model", options->model, "a GGUF file")->required();
  app.add_flag("--metadata", options->metadata, "list all metadata");
  app.add_flag("--tensors", options->tensors, "list all tensors with type and shape");
  app.add_flag("--json", options->json, "print the findings as JSON");
  return [options] { return inspect(*options); };
}

}  // namespace frugal::cli
