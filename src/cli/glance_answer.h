// Answers by glance at the terminal, and the view of approximate tokens.
#pragma once

#include <string>
#include <vector>

#include "cli/decode_options.h"
#include "cli/llm_options.h"
#include "frugal/meter.h"
#include "llm/decode/glance.h"

namespace frugal::cli {

// Prints text as it comes, and after it, dimmed, the tokens that may follow; what follows exactly takes their
// place. On a terminal only: elsewhere approximate tokens are not printed.
class GlanceView {
 public:
  GlanceView(const llm::Tokenizer& tokenizer, bool enabled);
  bool text(std::string_view exact);
  void approximate(std::span<const llm::Token> tokens);
  void clear();

 private:
  const llm::Tokenizer& tokenizer_;
  bool enabled_, shown_ = false;
};

// The rationale on stdout as it comes if `stream`, and the answer after it. kInvalidArgument for a bad flag,
// the errors of llm::glance().
Result<llm::GlanceResult> glance_prompt(llm::Engine& engine, llm::SequenceId sequence,
                                        const std::vector<llm::Token>& prompt, const SamplingFlags& sampling,
                                        const DecodeFlags& flags, meter::PowerMeter& meter, bool stream);

// "glance    42 (91 % sure; ...)": a line for people, and the object for --json.
std::string glance_text(const llm::GlanceResult& result);
std::string glance_json(const llm::GlanceResult& result);

}  // namespace frugal::cli
