// Chat templates by family. A model file carries a Jinja program; llama.cpp recognises the common ones by
// their markers and renders them itself. docs/design/chat-templates.md says what that costs.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "frugal/result.h"
#include "llm/vocab/tokenizer.h"

namespace frugal::llm {

// Names of the families that can be rendered, as llama.cpp lists them.
std::vector<std::string> builtin_chat_templates();

// Family of a Jinja template, "" when it is not recognised.
std::string recognise_chat_template(const std::string& jinja);

// The system message that a ChatML template puts in front of a chat that has none; "" when it puts none.
std::string default_system_message(std::string_view jinja);

// Renders `messages` as `family` does. kInvalidArgument when the family cannot take them.
Result<std::string> render_chat(const std::string& family, std::span<const ChatMessage> messages,
                                bool add_generation_prompt);

}  // namespace frugal::llm
