#include "cli/decode_options.h"

#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdlib>

#include "base/text.h"

namespace frugal::cli {

void add_decode_options(CLI::App& app, DecodeFlags& flags) {
  app.add_option("--decode", flags.mode,
                 "exact: several tokens a forward where drafts turn out right, the same answer as greedy bit "
                 "for bit; glance: draw the answer before the rationale ends, once it is stable, and say so; "
                 "greedy: one token a forward")
      ->capture_default_str();
  app.add_option("--window", flags.window, "longest draft of a forward, 0 to 16; does not change any answer")
      ->capture_default_str();
  app.add_flag("--show-glance", flags.show_glance,
               "on a terminal, show approximate tokens dimmed until they turn exact");
  app.add_option("--cot-budget", flags.budget,
                 "glance: draw the answer when the rationale has cost this: 200 (tokens), 50it (iterations, "
                 "which are forwards), 5s, 3J or 0.01g "
                 "(gCO2e, needs --region or the like)")
      ->type_name("AMOUNT");
  app.add_option("--answer-trigger", flags.trigger, "glance: the words after which the answer is read")
      ->capture_default_str()
      ->type_name("TEXT");
  app.add_option("--answer-tokens", flags.answer_tokens, "glance: longest answer")->capture_default_str();
  app.add_option("--confidence", flags.confidence,
                 "glance: least probability of an answer that may end the rationale; above 1 = never")
      ->capture_default_str();
  app.add_option("--agreeing", flags.agreeing, "glance: looks in a row that must give the same answer")
      ->capture_default_str();
  app.add_flag("--stats", flags.stats, "tokens per forward, and how many drafts of each kind were right");
}

Result<llm::DecodeOptions> decode_options(const DecodeFlags& flags) {
  if (flags.window < 0 || flags.window > llm::kLongestDraft) {
    return {ErrorCode::kInvalidArgument,
            strf("--window is %d, but must be from 0 (no drafts) to %d", flags.window, llm::kLongestDraft)};
  }
  llm::DecodeOptions options;
  if (flags.mode == "greedy") {
    options.max_draft = 0;
  } else if (flags.mode == "exact" || flags.mode == "glance") {
    options.max_draft = flags.window;
  } else {
    return {ErrorCode::kInvalidArgument,
            "--decode is '" + flags.mode + "', but must be exact, glance or greedy"};
  }
  if (flags.mode != "glance" && !flags.budget.empty())
    return {ErrorCode::kInvalidArgument, "--cot-budget is for --decode glance; -n limits other answers"};
  FRUGAL_TRY([[maybe_unused]] const CotBudget budget, parse_cot_budget(flags.budget));
  return options;
}

Result<CotBudget> parse_cot_budget(std::string_view text) {
  CotBudget budget;
  if (text.empty()) return budget;
  const std::string copy(text);
  char* end = nullptr;
  budget.amount = std::strtod(copy.c_str(), &end);
  const std::string_view unit = trim(std::string_view(end));
  if (unit.empty() || unit == "tokens") {
    budget.unit = CotBudget::kTokens;
  } else if (unit == "it") {
    budget.unit = CotBudget::kIterations;
  } else if (unit == "s") {
    budget.unit = CotBudget::kSeconds;
  } else if (unit == "J") {
    budget.unit = CotBudget::kJoules;
  } else if (unit == "g") {
    budget.unit = CotBudget::kGrams;
  }
  if (end == copy.c_str() || budget.unit == CotBudget::kNone || !(budget.amount > 0) ||
      !std::isfinite(budget.amount)) {
    return Error{ErrorCode::kInvalidArgument,
                 "--cot-budget is '" + copy +
                     "', but must be a number above 0 and one of nothing (tokens), "
                     "it (iterations), s, J, g"};
  }
  return budget;
}

}  // namespace frugal::cli
