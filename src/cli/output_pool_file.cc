#include "cli/output_pool_file.h"

#include <cinttypes>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/text.h"

namespace frugal::cli {

namespace {

using nlohmann::json;

// False when `value` is not a list of tokens of the vocabulary.
bool read_output(const json& value, int n_vocab, std::vector<llm::Token>* output) {
  if (!value.is_array()) return false;
  for (const json& token : value) {
    if (!token.is_number_unsigned() || token.get<uint64_t>() >= static_cast<uint64_t>(n_vocab)) return false;
    output->push_back(token.get<llm::Token>());
  }
  return true;
}

}  // namespace

Result<OutputPoolFile> OutputPoolFile::open(std::string path, uint64_t model_hash, int n_vocab) {
  OutputPoolFile file;
  file.path_ = std::move(path);
  file.model_hash_ = model_hash;
  file.pool_ = std::make_shared<llm::OutputPool>(kPooledTokens);
  std::error_code failed;
  if (!std::filesystem::exists(file.path_, failed) && !failed) return file;
  FRUGAL_TRY(const std::string text, read_file(file.path_, size_t{1} << 24));
  const json root = json::parse(text, nullptr, /*allow_exceptions=*/false);
  const auto corrupt = [&](const std::string& what) {
    return Error{ErrorCode::kCorrupt,
                 "'" + file.path_ + "' is no pool of outputs: " + what + "; delete it to begin anew"};
  };
  if (!root.is_object() || !root.contains("model") || !root["model"].is_string() ||
      !root.contains("outputs") || !root["outputs"].is_array())
    return corrupt("it must be a JSON object with \"model\" and \"outputs\"");
  if (root["model"].get<std::string>() != strf("%016" PRIx64, model_hash)) {
    return Error{ErrorCode::kInvalidArgument,
                 "'" + file.path_ + "' holds outputs of another model; give each model its own --pool file"};
  }
  for (const json& value : root["outputs"]) {
    std::vector<llm::Token> output;
    if (!read_output(value, n_vocab, &output))
      return corrupt(strf("output %zu is not a list of this model's tokens", file.outputs_.size()));
    file.pool_->add(output);
    file.outputs_.push_back(std::move(output));
  }
  return file;
}

Status OutputPoolFile::add(std::span<const llm::Token> output) {
  if (output.empty()) return {};
  outputs_.emplace_back(output.begin(), output.end());
  pool_->add(output);
  size_t n_tokens = 0, first = outputs_.size();
  while (first > 0 && n_tokens + outputs_[first - 1].size() <= kPooledTokens)
    n_tokens += outputs_[--first].size();
  outputs_.erase(outputs_.begin(), outputs_.begin() + static_cast<std::ptrdiff_t>(first));
  const json root = {{"model", strf("%016" PRIx64, model_hash_)}, {"outputs", outputs_}};
  return write_file_atomically(path_, root.dump() + "\n");
}

}  // namespace frugal::cli
