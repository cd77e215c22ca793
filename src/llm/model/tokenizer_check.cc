#include "llm/model/tokenizer_check.h"

#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <functional>
#include <new>

#include "base/text.h"

namespace frugal::llm {
namespace {

constexpr const char* kConvertAgain = "convert the model again with a current llama.cpp";
// The largest vocabulary that we know has 262,144 tokens; 16 times that still leaves int32 ids and memory in
// peace.
constexpr uint64_t kMaxTokens = 1 << 22;

Error corrupt(const GgufFile& file, const std::string& what) {
  return {ErrorCode::kCorrupt, strf("'%s': %s; %s", file.label().c_str(), what.c_str(), kConvertAgain)};
}

// The array `key`, of an element type in `allowed`. nullptr when the key is missing.
Result<const GgufValue*> find_array(const GgufFile& file, const char* key,
                                    std::initializer_list<GgufValueType> allowed, const char* expected) {
  const GgufValue* value = file.find_value(key);
  if (value == nullptr) return value;
  if (value->type != GgufValueType::kArray ||
      std::find(allowed.begin(), allowed.end(), value->element_type) == allowed.end()) {
    return corrupt(file, strf("metadata key '%s' must be an array of %s, but is %s", key, expected,
                              value->type_label().c_str()));
  }
  return value;
}

// First pair of equal tokens, by sorting: slow and sure.
std::string_view find_twin_sorted(std::vector<std::string_view> tokens) {
  std::sort(tokens.begin(), tokens.end());
  const auto twin = std::adjacent_find(tokens.begin(), tokens.end());
  return twin == tokens.end() ? std::string_view() : *twin;
}

// A token that stands twice, "" when there is none (llama.cpp renames empty tokens, and so do we).
std::string_view find_twin(const std::vector<std::string_view>& tokens) {
  size_t n_slots = 64;
  while (n_slots < 2 * tokens.size()) n_slots *= 2;
  struct Slot {
    uint32_t token = 0;  // index plus 1, 0 = free
    uint32_t tag = 0;    // high half of the hash: most unequal tokens are told apart without reading them
  };
  std::vector<Slot> slots(n_slots);
  size_t n_probes = 0;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const uint64_t hash = std::hash<std::string_view>()(tokens[i]);
    const auto tag = static_cast<uint32_t>(hash >> 32);
    size_t at = hash & (n_slots - 1);
    for (; slots[at].token != 0; at = (at + 1) & (n_slots - 1)) {
      if (slots[at].tag == tag && tokens[slots[at].token - 1] == tokens[i]) return tokens[i];
      // At most half full, a table needs about one probe each; one that needs many is fed with collisions.
      if (++n_probes > 64 * (tokens.size() + 1024)) return find_twin_sorted(tokens);
    }
    slots[at] = {static_cast<uint32_t>(i + 1), tag};
  }
  return {};
}

Status check_tokens(const GgufFile& file, uint64_t* n_tokens) {
  FRUGAL_TRY(std::vector<std::string_view> tokens,
             file.require_array<std::string_view>("tokenizer.ggml.tokens"));
  *n_tokens = tokens.size();
  if (tokens.empty() || tokens.size() > kMaxTokens) {
    return corrupt(file, strf("its vocabulary has %zu tokens (1 to %" PRIu64 " are allowed)", tokens.size(),
                              kMaxTokens));
  }
  std::vector<std::string> names;  // what llama.cpp calls empty tokens: names that another token might have
  names.reserve(static_cast<size_t>(std::count(tokens.begin(), tokens.end(), std::string_view())));
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i].size() > 1 << 16)
      return corrupt(file, strf("token %zu has %zu bytes", i, tokens[i].size()));
    tokens[i] = tokens[i].substr(0, tokens[i].find('\0'));  // where llama.cpp ends it too
    if (!tokens[i].empty()) continue;
    names.push_back(strf("[EMPTY_%zu]", i));
    tokens[i] = names.back();
  }
  const std::string_view twin = find_twin(tokens);
  if (!twin.empty()) {
    return corrupt(file, strf("the token '%s' stands in its vocabulary twice", printable_name(twin).c_str()));
  }
  return {};
}

}  // namespace

Status check_tokenizer(const GgufFile& file) {
  try {
    FRUGAL_TRY(const uint32_t n_files, file.find_u32_or("split.count", 0));
    if (n_files > 1) {
      return Error{ErrorCode::kUnsupported, strf("'%s' is one of %u files of a model; join them with "
                                                 "llama-gguf-split --merge and give the result",
                                                 file.label().c_str(), n_files)};
    }
    FRUGAL_TRY(const std::string_view kind, file.require_string("tokenizer.ggml.model"));
    const bool sentencepiece = kind == "llama";
    if (!sentencepiece && kind != "gpt2") {
      return Error{ErrorCode::kUnsupported,
                   strf("'%s': the tokenizer '%s' is not supported ('llama' and 'gpt2' are)",
                        file.label().c_str(), printable_name(kind).c_str())};
    }
    uint64_t n_tokens = 0;
    FRUGAL_TRY_STATUS(check_tokens(file, &n_tokens));
    FRUGAL_TRY(const GgufValue* scores, find_array(file, "tokenizer.ggml.scores",
                                                   {GgufValueType::kF32, GgufValueType::kI32}, "f32 or i32"));
    FRUGAL_TRY(const GgufValue* types,
               find_array(file, "tokenizer.ggml.token_type", {GgufValueType::kI32}, "i32"));
    for (const GgufValue* list : {scores, types}) {
      if (list != nullptr && list->count != n_tokens) {
        return corrupt(
            file, strf("metadata key '%s' has %" PRIu64 " entries for a vocabulary of %" PRIu64 " tokens",
                       std::string(list->key).c_str(), list->count, n_tokens));
      }
    }
    if (scores != nullptr && scores->element_type == GgufValueType::kF32) {
      // Refuses what is not a finite number.
      FRUGAL_TRY_STATUS(file.require_array<float>("tokenizer.ggml.scores"));
    }
    FRUGAL_TRY(const GgufValue* merges,
               find_array(file, "tokenizer.ggml.merges", {GgufValueType::kString}, "string"));
    if (!sentencepiece && merges == nullptr) {
      return corrupt(
          file, "metadata key 'tokenizer.ggml.merges' is missing, which a byte-level BPE vocabulary needs");
    }
    for (const GgufValue& value : file.metadata()) {
      // The ids of special tokens. One outside of the vocabulary would be ignored, and answers never end.
      if (!value.key.starts_with("tokenizer.ggml.") || !value.key.ends_with("_token_id")) continue;
      FRUGAL_TRY(const uint32_t id, file.require_u32(value.key));
      if (id >= n_tokens) {
        return corrupt(file, strf("metadata key '%s' names token %u of a vocabulary of %" PRIu64,
                                  printable_name(value.key).c_str(), id, n_tokens));
      }
    }
    FRUGAL_TRY_STATUS(file.find_string_or("tokenizer.ggml.pre", ""));
    FRUGAL_TRY_STATUS(file.find_string_or("tokenizer.chat_template", ""));
    return {};
  } catch (const std::bad_alloc&) {
    return Error{ErrorCode::kNoMemory, strf("'%s': no memory for its vocabulary", file.label().c_str())};
  }
}

Result<std::unique_ptr<Tokenizer>> load_tokenizer(const GgufFile& file) {
  FRUGAL_TRY_STATUS(check_tokenizer(file));
  return Tokenizer::open_checked(file.label());
}

}  // namespace frugal::llm
