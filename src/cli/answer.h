// From a question to an answer at the terminal, and what it cost: shared by `frugal run` and `frugal chat`.
#pragma once

#include <string>
#include <vector>

#include "cli/llm_options.h"
#include "frugal/meter.h"
#include "frugal/usage.h"
#include "llm/decode/generate.h"

namespace frugal::cli {

enum class PromptMode { kAuto, kChat, kRaw };  // auto: chat if the model has a template

struct Turn {
  std::string role;  // "user", "assistant"
  std::string text;
};

struct Question {
  std::string system, document, text;
  std::vector<Turn> history;  // before this question
  PromptMode mode = PromptMode::kAuto;
  bool cut_document = false;
};

struct Prompt {
  std::vector<llm::Token> tokens;
  bool chat = false;
  std::string note;  // for the user: what was cut
};

// Tokens of the question in the model's form. kOutOfRange when they leave no room for `room` tokens in a
// context of `n_ctx` (for any token at all, when the document may not be cut); kUnsupported for chat without
// a template.
Result<Prompt> make_prompt(const llm::Model& model, const Question& question, int n_ctx, int room);

// Answers on stdout as text comes if `stream`, with approximate tokens dimmed if `show_glance`; stops at
// Ctrl-C.
Result<llm::Generation> answer_prompt(llm::Engine& engine, llm::SequenceId sequence,
                                      const std::vector<llm::Token>& prompt, const SamplingFlags& flags,
                                      const llm::DecodeOptions& decode, bool show_glance, bool stream);

struct Summary {
  const LoadedEngine& loaded;
  const llm::Generation& answer;
  const meter::SourceInfo& power;  // where the joules are from
};
std::string summary_text(const Summary& summary);
// Tokens per forward, drafts accepted by source, forwards by length of draft: lines for people.
std::string stats_text(const llm::Generation& answer);
// `glance`: an object to stand under "glance"; empty: none.
std::string summary_json(const Summary& summary, const std::string& glance = "");

}  // namespace frugal::cli
