// Texts that have to be remembered exactly: facts that no text has by chance stand in an ordinary one, and
// are asked for at its end. What a cache loses of them, ordinary text hardly shows.
#pragma once

#include <span>
#include <vector>

#include "frugal/llm.h"
#include "llm/vocab/tokenizer.h"

namespace frugal::cli {

struct RecallText {
  std::vector<llm::Token> text;
  struct Question {
    std::vector<llm::Token> tokens;  // the answer's with them
    size_t answer = 0;               // the first token of it
  };
  std::vector<Question> questions;  // each asked after the text
};

// `n` facts evenly in a text's tokens: names and numbers of made-up syllables and digits, others for another
// seed, in sentences, assignments and records.
Result<RecallText> recall_text(const llm::Tokenizer& tokenizer, std::span<const llm::Token> text, int n,
                               uint64_t seed);

}  // namespace frugal::cli
