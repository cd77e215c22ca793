// The options of how answers are decoded, shared by the commands that answer.
#pragma once

#include <string>

#include "llm/decode/generate.h"

namespace CLI {
class App;
}

namespace frugal::cli {

struct DecodeFlags {
  std::string mode = "exact";  // "exact", "greedy"
  int window = llm::kLongestDraft;
  bool stats = false;
};
void add_decode_options(CLI::App& app, DecodeFlags& flags);

// kInvalidArgument for an unknown mode or a window out of range.
Result<llm::DecodeOptions> decode_options(const DecodeFlags& flags);

}  // namespace frugal::cli
