#include "llm/vocab/tokenizer.h"

#include <algorithm>
#include <exception>
#include <mutex>

#include <llama.h>

#include "base/log.h"
#include "base/text.h"
#include "llm/vocab/chat_template.h"

namespace frugal::llm {
namespace {

constexpr size_t kMaxTextBytes = size_t{1} << 30;

// The last errors that llama.cpp logged on this thread: its calls return a null pointer and say why only
// there.
thread_local std::string* collected_errors = nullptr;

void on_llama_log(ggml_log_level level, const char* text, void*) {
  const std::string_view line = trim(text);
  if (line.empty()) return;
  if (level == GGML_LOG_LEVEL_ERROR && collected_errors != nullptr) {
    if (!collected_errors->empty()) *collected_errors += "; ";
    *collected_errors += line;
  }
  // Its warnings repeat what the metadata says (control tokens that are not marked so) on every load: not
  // news to the user of a model, so they count as debugging.
  log(level == GGML_LOG_LEVEL_ERROR ? LogLevel::kWarning : LogLevel::kDebug, line);
}

void set_up_llama() {
  static std::once_flag once;
  std::call_once(once, [] { llama_log_set(on_llama_log, nullptr); });
}

Token token_or_none(llama_token token) { return token == LLAMA_TOKEN_NULL ? kNoToken : token; }

size_t first_invalid_byte(std::string_view text) {
  // Validity of prefixes is monotone: bisect with the checker that there is.
  size_t low = 0, high = text.size();
  while (low + 1 < high) {
    const size_t middle = low + (high - low) / 2;
    const std::string_view head = text.substr(0, middle);
    (utf8_valid(head.substr(0, utf8_complete_prefix(head))) ? low : high) = middle;
  }
  return low;
}

}  // namespace

struct Tokenizer::Impl {
  llama_model* model = nullptr;
  const llama_vocab* vocab = nullptr;
  ~Impl() { llama_model_free(model); }
};

Tokenizer::~Tokenizer() = default;

Result<std::unique_ptr<Tokenizer>> Tokenizer::open_checked(const std::string& path) {
  set_up_llama();
  std::unique_ptr<Tokenizer> tokenizer(new Tokenizer());
  tokenizer->impl_ = std::make_unique<Impl>();
  Impl& impl = *tokenizer->impl_;
  std::string errors;
  collected_errors = &errors;
  try {
    llama_model_params params = llama_model_default_params();
    params.vocab_only = true;
    params.n_gpu_layers = 0;
    impl.model = llama_model_load_from_file(path.c_str(), params);
  } catch (const std::exception& error) {
    errors = error.what();
  }
  collected_errors = nullptr;
  if (impl.model == nullptr) {
    return Error{ErrorCode::kCorrupt,
                 strf("'%s': its vocabulary cannot be read: %s; convert the model again with a "
                      "current llama.cpp",
                      path.c_str(), errors.empty() ? "llama.cpp gives no reason" : errors.c_str())};
  }
  impl.vocab = llama_model_get_vocab(impl.model);
  tokenizer->n_vocab_ = llama_vocab_n_tokens(impl.vocab);
  tokenizer->bos_ = token_or_none(llama_vocab_bos(impl.vocab));
  tokenizer->eos_ = token_or_none(llama_vocab_eos(impl.vocab));
  tokenizer->eot_ = token_or_none(llama_vocab_eot(impl.vocab));
  tokenizer->adds_bos_ = llama_vocab_get_add_bos(impl.vocab);
  // llama.cpp would end the process when it adds a token that is not there.
  if ((tokenizer->adds_bos_ && tokenizer->bos_ == kNoToken) ||
      (llama_vocab_get_add_eos(impl.vocab) && tokenizer->eos_ == kNoToken)) {
    return Error{ErrorCode::kCorrupt,
                 strf("'%s': its vocabulary wants a token at the start or end of each text, but "
                      "does not have it; convert the model again with a current llama.cpp",
                      path.c_str())};
  }
  if (const char* source = llama_model_chat_template(impl.model, nullptr)) {
    tokenizer->chat_template_source_ = source;
    tokenizer->chat_template_kind_ = recognise_chat_template(source);
  }
  return tokenizer;
}

bool Tokenizer::is_end_of_generation(Token token) const {
  return token >= 0 && token < n_vocab_ && llama_vocab_is_eog(impl_->vocab, token);
}

Result<std::vector<Token>> Tokenizer::encode(std::string_view text, bool add_special,
                                             bool parse_special) const {
  if (text.size() > kMaxTextBytes) {
    return Error{ErrorCode::kOutOfRange, strf("the text has %s; at most %s can be encoded at once",
                                              human_bytes(static_cast<double>(text.size())).c_str(),
                                              human_bytes(static_cast<double>(kMaxTextBytes)).c_str())};
  }
  std::string sanitised;
  if (!utf8_valid(text)) {
    log(LogLevel::kWarning,
        strf("the text is not valid UTF-8 from byte %zu on; such bytes are read as U+FFFD",
             first_invalid_byte(text)));
    sanitised = utf8_sanitized(text);
    text = sanitised;
  }
  try {
    // No token stands for less than a byte, but for bos, eos and the blank that some vocabularies put in
    // front.
    std::vector<Token> tokens(text.size() + 4);
    const int n_tokens =
        llama_tokenize(impl_->vocab, text.data(), static_cast<int32_t>(text.size()), tokens.data(),
                       static_cast<int32_t>(tokens.size()), add_special, parse_special);
    if (n_tokens < 0) {
      return Error{ErrorCode::kOutOfRange,
                   strf("the text of %zu bytes gives more tokens than bytes", text.size())};
    }
    tokens.resize(static_cast<size_t>(n_tokens));
    tokens.shrink_to_fit();
    return tokens;
  } catch (const std::bad_alloc&) {
    return Error{ErrorCode::kNoMemory, strf("no memory to encode a text of %zu bytes", text.size())};
  } catch (const std::exception& error) {
    // A vocabulary without tokens for all bytes throws on the first text that needs one.
    return Error{ErrorCode::kCorrupt,
                 strf("the model's vocabulary cannot encode this text: %s", error.what())};
  }
}

Result<std::string> Tokenizer::decode(std::span<const Token> tokens) const {
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0 || tokens[i] >= n_vocab_) {
      return Error{ErrorCode::kInvalidArgument,
                   strf("token %d at position %zu is not in the vocabulary of %d", tokens[i], i, n_vocab_)};
    }
  }
  if (tokens.empty()) return std::string();
  try {
    std::string text(tokens.size() * 8 + 16, '\0');
    for (int attempt = 0; attempt < 2; ++attempt) {
      const int size =
          llama_detokenize(impl_->vocab, tokens.data(), static_cast<int32_t>(tokens.size()), text.data(),
                           static_cast<int32_t>(text.size()), /*remove_special=*/false,
                           /*unparse_special=*/false);
      text.resize(static_cast<size_t>(size < 0 ? -size : size));
      if (size >= 0) return text;
    }
    return Error{ErrorCode::kCorrupt, "the model's vocabulary gives no stable text for these tokens"};
  } catch (const std::exception& error) {
    return Error{ErrorCode::kCorrupt,
                 strf("the model's vocabulary cannot decode these tokens: %s", error.what())};
  }
}

namespace {

std::string piece_of(const llama_vocab* vocab, Token token, bool special) {
  char small[64];
  try {
    int size = llama_token_to_piece(vocab, token, small, sizeof small, /*lstrip=*/0, special);
    if (size >= 0) return std::string(small, static_cast<size_t>(size));
    std::string large(static_cast<size_t>(-size), '\0');
    size = llama_token_to_piece(vocab, token, large.data(), static_cast<int32_t>(large.size()), 0, special);
    large.resize(static_cast<size_t>(std::max(size, 0)));
    return large;
  } catch (const std::exception&) {  // a byte token that spells no byte adds nothing
    return {};
  }
}

}  // namespace

std::string Tokenizer::piece(Token token) const {
  return token < 0 || token >= n_vocab_ ? std::string() : piece_of(impl_->vocab, token, false);
}

std::string Tokenizer::spelling(Token token) const {
  return token < 0 || token >= n_vocab_ ? std::string() : piece_of(impl_->vocab, token, true);
}

std::vector<std::string> Tokenizer::chat_template_names() { return builtin_chat_templates(); }

Result<std::string> Tokenizer::apply_chat_template(std::span<const ChatMessage> messages,
                                                   bool add_generation_prompt, std::string_view name) const {
  const auto listed = [] {
    std::string all;
    for (const std::string& known : chat_template_names()) all += (all.empty() ? "" : ", ") + known;
    return all;
  };
  if (messages.empty()) return Error{ErrorCode::kInvalidArgument, "a chat needs at least one message"};
  std::string family(name);
  if (!family.empty()) {
    const auto names = chat_template_names();
    if (std::find(names.begin(), names.end(), family) == names.end()) {
      return Error{ErrorCode::kInvalidArgument, strf("there is no chat template '%s'; choose one of: %s",
                                                     family.c_str(), listed().c_str())};
    }
    return render_chat(family, messages, add_generation_prompt);
  }
  if (chat_template_source_.empty()) {
    return Error{ErrorCode::kNotFound,
                 strf("the model has no chat template, so it is likely not trained for chats; give it "
                      "plain text to continue, or name a template with --chat-template (%s)",
                      listed().c_str())};
  }
  if (chat_template_kind_.empty()) {
    return Error{ErrorCode::kUnsupported,
                 strf("the model's chat template is none of those that frugal can render; name "
                      "the closest with --chat-template (%s)",
                      listed().c_str())};
  }
  if (chat_template_kind_ == "chatml" && messages.front().role != "system") {
    // These models were tuned with a system message of their own in front of each chat without one.
    const std::string system = default_system_message(chat_template_source_);
    if (!system.empty()) {
      std::vector<ChatMessage> with_default{{"system", system}};
      with_default.insert(with_default.end(), messages.begin(), messages.end());
      return render_chat(chat_template_kind_, with_default, add_generation_prompt);
    }
  }
  return render_chat(chat_template_kind_, messages, add_generation_prompt);
}

}  // namespace frugal::llm
