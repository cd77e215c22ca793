// Text of an answer as its tokens come: never half a UTF-8 sequence, and never a part of a stop string.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "frugal/result.h"
#include "llm/vocab/tokenizer.h"

namespace frugal::llm {

// What comes out, joined, depends on the bytes alone and not on how tokens cut them: the text up to the first
// place where a stop string is complete (without it; of those that end there the longest), invalid bytes
// replaced by U+FFFD. Not thread-safe; the tokenizer outlives it.
class StreamDecoder {
 public:
  // kInvalidArgument for a stop string that is empty or not valid UTF-8.
  static Result<StreamDecoder> create(const Tokenizer& tokenizer, std::vector<std::string> stop_strings = {});

  // The text that can be shown now, "" while it must be held back. Nothing comes any more once stopped().
  std::string push(Token token);
  // The same for bytes that are no token's.
  std::string push_bytes(std::string_view bytes);
  // The answer is over: what is still held back.
  std::string finish();

  bool stopped() const { return stopped_by_ >= 0; }
  // Index of the stop string that was met, -1 before.
  int stopped_by() const { return stopped_by_; }

 private:
  StreamDecoder(const Tokenizer& tokenizer, std::vector<std::string> stop_strings)
      : tokenizer_(&tokenizer), stop_strings_(std::move(stop_strings)) {}

  const Tokenizer* tokenizer_;
  std::vector<std::string> stop_strings_;
  std::string held_;  // bytes that came and were not shown; shorter than the longest stop string plus a piece
  int stopped_by_ = -1;
};

}  // namespace frugal::llm
