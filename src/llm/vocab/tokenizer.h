// The vocabulary of a model: text to tokens and back, special tokens, and chats rendered as the model was
// trained to read them. The work is llama.cpp's (vocab_only); what this class adds is that bad input comes
// back as an error.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "frugal/llm.h"
#include "frugal/result.h"

namespace frugal::llm {

inline constexpr Token kNoToken = -1;

struct ChatMessage {
  std::string role;     // "system", "user", "assistant"
  std::string content;  // UTF-8
};

// Immutable once made; safe to share between threads.
class Tokenizer {
 public:
  // Reads the vocabulary of the GGUF file `path`. llama.cpp ends the process on some broken vocabularies, so
  // the file must have passed check_tokenizer() of llm/model; load_tokenizer() there does both. kCorrupt,
  // kUnsupported with llama.cpp's reason. The messages of llama.cpp go to the log sink (frugal/log.h) from
  // the first call on.
  static Result<std::unique_ptr<Tokenizer>> open_checked(const std::string& path);
  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  int n_vocab() const { return n_vocab_; }

  // Special tokens; kNoToken where the vocabulary has none.
  Token bos() const { return bos_; }  // opens a text
  Token eos() const { return eos_; }  // ends a text
  Token eot() const { return eot_; }  // ends a turn of a chat
  // Ends an answer: eos, eot and their like.
  bool is_end_of_generation(Token token) const;
  // Whether encode() with add_special puts bos() before the text.
  bool adds_bos() const { return adds_bos_; }

  // Tokens of `text`. `add_special` puts bos and eos where the model wants them; `parse_special` reads the
  // spelling of a special token ("<|im_end|>") as that token and not as text: on for rendered chats, off for
  // text of strangers. Bytes that are not valid UTF-8 are read as U+FFFD, and a warning in the log says
  // where. kOutOfRange above 1 GiB.
  Result<std::vector<Token>> encode(std::string_view text, bool add_special, bool parse_special) const;

  // Text of `tokens`, the inverse of encode(); special tokens are left out. May end inside a UTF-8 sequence,
  // as tokens do: StreamDecoder takes care of that. kInvalidArgument for a number that is no token.
  Result<std::string> decode(std::span<const Token> tokens) const;

  // Bytes that `token` adds to a text; "" for special tokens and for numbers that are no token.
  std::string piece(Token token) const;
  // Its spelling, special tokens included: "<|im_end|>". For people and logs.
  std::string spelling(Token token) const;

  // The template in the model file (Jinja), "" when it has none.
  const std::string& chat_template_source() const { return chat_template_source_; }
  // The known template that renders as the model's does: "chatml", "gemma", "llama3", ...; "" when the model
  // has none, or one that is not known.
  const std::string& chat_template_kind() const { return chat_template_kind_; }
  // Those that there are.
  static std::vector<std::string> chat_template_names();

  // The chat as one text, to be encoded with add_special and parse_special. `add_generation_prompt` ends it
  // with the opening of an answer. `name` (--chat-template) overrides the model's own template. kNotFound:
  // the model has none and none is named; kUnsupported: its own is not known; kInvalidArgument: no such name,
  // or no messages.
  Result<std::string> apply_chat_template(std::span<const ChatMessage> messages, bool add_generation_prompt,
                                          std::string_view name = {}) const;

 private:
  Tokenizer() = default;
  struct Impl;
  std::unique_ptr<Impl> impl_;
  int n_vocab_ = 0;
  Token bos_ = kNoToken, eos_ = kNoToken, eot_ = kNoToken;
  bool adds_bos_ = false;
  std::string chat_template_source_, chat_template_kind_;
};

}  // namespace frugal::llm
