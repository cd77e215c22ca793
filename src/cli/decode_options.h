// The options of how answers are decoded, shared by the commands that answer.
#pragma once

#include <string>

#include "llm/decode/generate.h"

namespace CLI {
class App;
}

namespace frugal::cli {

struct DecodeFlags {
  std::string mode = "exact";  // "exact", "glance", "greedy"
  int window = llm::kLongestDraft;
  bool stats = false, show_glance = false;
  std::string budget;  // "200", "50it", "5s", "3J", "0.01g"
  std::string trigger = " Therefore, the answer is";
  int answer_tokens = 16;
  float confidence = 0.8f;
  int agreeing = 2;
};
void add_decode_options(CLI::App& app, DecodeFlags& flags);

// kInvalidArgument for an unknown mode or a window out of range.
Result<llm::DecodeOptions> decode_options(const DecodeFlags& flags);

// What a rationale may cost.
struct CotBudget {
  enum Unit { kNone, kTokens, kIterations, kSeconds, kJoules, kGrams } unit = kNone;
  double amount = 0;
};
// "200" (tokens), "50it" (iterations: forwards after the prompt's), "5s", "3J", "0.01g" (gCO2e); empty: none.
// kInvalidArgument.
Result<CotBudget> parse_cot_budget(std::string_view text);

}  // namespace frugal::cli
