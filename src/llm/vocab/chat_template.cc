#include "llm/vocab/chat_template.h"

#include <exception>

#include <llama.h>

#include "base/text.h"

namespace frugal::llm {
namespace {

// What llama.cpp makes of `tmpl`, a family's name or a Jinja template; false when it knows neither.
bool render(const std::string& tmpl, std::span<const llama_chat_message> messages, bool add_generation_prompt,
            std::string* out) {
  out->resize(1024);
  for (int attempt = 0; attempt < 2; ++attempt) {
    const int size =
        llama_chat_apply_template(tmpl.c_str(), messages.data(), messages.size(), add_generation_prompt,
                                  out->data(), static_cast<int32_t>(out->size()));
    if (size < 0) return false;
    const bool fits = static_cast<size_t>(size) <= out->size();
    out->resize(static_cast<size_t>(size));
    if (fits) return true;
  }
  return false;
}

}  // namespace

std::vector<std::string> builtin_chat_templates() {
  std::vector<const char*> names(static_cast<size_t>(llama_chat_builtin_templates(nullptr, 0)));
  llama_chat_builtin_templates(names.data(), names.size());
  return {names.begin(), names.end()};
}

std::string recognise_chat_template(const std::string& jinja) {
  // llama.cpp does not tell which family it took a template for, but the rendering of a chat that has every
  // part does.
  const llama_chat_message probe[] = {
      {"system", "s y s"}, {"user", " u1 "}, {"assistant", " a1 "}, {"user", " u2 "}};
  std::string theirs;
  try {
    if (!render(jinja, probe, true, &theirs)) return {};
    for (const std::string& name : builtin_chat_templates()) {
      std::string ours;
      if (render(name, probe, true, &ours) && ours == theirs) return name;
    }
  } catch (const std::exception&) {  // a template that llama.cpp trips over is one that it does not know
  }
  return {};
}

std::string default_system_message(std::string_view jinja) {
  // Such templates hold it as a literal: '<|im_start|>system\nYou are ...<|im_end|>\n'. A literal that ends
  // before the end marker is one that something is appended to, and not a default.
  const std::string_view open = "<|im_start|>system", close = "<|im_end|>";
  for (size_t at = jinja.find(open); at != std::string_view::npos; at = jinja.find(open, at + 1)) {
    if (at == 0 || (jinja[at - 1] != '\'' && jinja[at - 1] != '"')) continue;
    const char quote = jinja[at - 1];
    std::string text;
    for (size_t i = at + open.size(); i < jinja.size() && jinja[i] != quote; ++i) {
      if (jinja.substr(i).starts_with(close)) return std::string(trim(text));
      if (jinja[i] == '\\' && i + 1 < jinja.size()) {
        ++i;
        text += jinja[i] == 'n' ? '\n' : jinja[i];
      } else {
        text += jinja[i];
      }
    }
  }
  return {};
}

Result<std::string> render_chat(const std::string& family, std::span<const ChatMessage> messages,
                                bool add_generation_prompt) {
  std::vector<std::string> texts;  // roles and contents as C strings
  texts.reserve(2 * messages.size());
  std::vector<llama_chat_message> chat;
  for (const ChatMessage& message : messages) {
    for (const std::string* part : {&message.role, &message.content}) {
      std::string text = utf8_sanitized(*part);
      // A zero byte would end the text early.
      for (size_t at = text.find('\0'); at != std::string::npos; at = text.find('\0', at)) {
        text.replace(at, 1, "\xEF\xBF\xBD");
      }
      texts.push_back(std::move(text));
    }
    chat.push_back({texts[texts.size() - 2].c_str(), texts.back().c_str()});
  }
  std::string out;
  try {
    if (render(family, chat, add_generation_prompt, &out)) return out;
  } catch (const std::exception& error) {
    return Error{ErrorCode::kInvalidArgument, strf("the chat template '%s' cannot render these messages: %s",
                                                   family.c_str(), error.what())};
  }
  return Error{ErrorCode::kInvalidArgument,
               strf("the chat template '%s' cannot render these messages", family.c_str())};
}

}  // namespace frugal::llm
