#include "cli/glance_answer.h"

#include <unistd.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/text.h"
#include "cli/console.h"
#include "llm/vocab/tokenizer.h"

namespace frugal::cli {

GlanceView::GlanceView(const llm::Tokenizer& tokenizer, bool enabled)
    : tokenizer_(tokenizer), enabled_(enabled && isatty(STDOUT_FILENO) == 1) {}

void GlanceView::clear() {
  if (shown_) print("\0338\033[J");  // back to where the cursor was kept, and clear from there
  shown_ = false;
}

bool GlanceView::text(std::string_view exact) {
  clear();
  return print(exact);
}

void GlanceView::approximate(std::span<const llm::Token> tokens) {
  if (!enabled_ || tokens.empty()) return;
  clear();
  auto text = tokenizer_.decode(tokens);
  if (!text.ok() || !utf8_valid(*text)) return;
  // A guess with line ends could scroll the place away that the cursor returns to.
  const std::string line = text->substr(0, text->find('\n'));
  print("\0337\033[2m" + line + "\033[0m");
  shown_ = true;
}

Result<llm::GlanceResult> glance_prompt(llm::Engine& engine, llm::SequenceId sequence,
                                        const std::vector<llm::Token>& prompt, const SamplingFlags& sampling,
                                        const DecodeFlags& flags, meter::PowerMeter& meter, bool stream) {
  FRUGAL_TRY(const CotBudget budget, parse_cot_budget(flags.budget));
  llm::GenerateOptions options;
  FRUGAL_TRY(options.decode, decode_options(flags));
  options.sampler = sampling.sampler;
  options.max_tokens = sampling.max_tokens;
  options.stop = sampling.stop;
  options.ignore_end = sampling.ignore_end;
  options.cancel = &interrupted();
  llm::GlanceOptions rule;
  rule.trigger = flags.trigger;
  rule.answer_tokens = flags.answer_tokens;
  rule.confidence = flags.confidence;
  rule.stable = flags.agreeing;
  if (budget.unit == CotBudget::kTokens) rule.most_tokens = static_cast<int>(std::min(budget.amount, 1e9));
  if (budget.unit == CotBudget::kIterations)
    rule.most_iterations = static_cast<int>(std::min(std::ceil(budget.amount), 1e9));
  if (budget.unit == CotBudget::kSeconds) rule.most_seconds = budget.amount;
  const meter::Snapshot before = meter.snapshot();
  const Usage begun = engine.usage();
  if (budget.unit == CotBudget::kJoules || budget.unit == CotBudget::kGrams) {
    rule.spent = [&] {
      Usage usage = llm::usage_difference(engine.usage(), begun);
      meter.charge(before, usage);
      const Estimate& cost = budget.unit == CotBudget::kJoules ? usage.energy_j : usage.carbon_gco2e;
      return cost.known() && cost.value >= budget.amount;
    };
    Usage usage;
    meter.charge(before, usage);
    if (budget.unit == CotBudget::kGrams && !usage.carbon_gco2e.known()) {
      return Error{ErrorCode::kInvalidArgument,
                   "--cot-budget in grams needs the carbon intensity of the place: --region or --intensity"};
    }
  }
  GlanceView view(engine.model().tokenizer(), stream && flags.show_glance);
  if (stream) {
    options.on_text = [&](std::string_view text) { return view.text(text); };
    if (flags.show_glance) options.on_window = [&](auto tokens) { view.approximate(tokens); };
  }
  auto result = llm::glance(engine, sequence, engine.model().tokenizer(), prompt, options, rule);
  view.clear();
  if (result.ok() && stream && result->glanced) print("\n[glance]" + rule.trigger + " " + result->answer);
  return result;
}

std::string glance_text(const llm::GlanceResult& result) {
  if (result.looks.empty()) return "glance    none: stopped before the first look\n";
  const llm::Look& last = result.looks.back();
  const char* why = result.out_of_budget ? "the budget was spent"
                    : result.glanced     ? "the answer was stable: it may differ from the whole chain's"
                                         : "the chain ended by itself: no glance was needed";
  return strf(
      "glance    %s (%.0f %% sure; %d exact and %d approximate tokens of rationale; %.0f %% of the last "
      "looks "
      "agree; %zu looks); %s\n",
      result.answer.c_str(), 100.0 * static_cast<double>(last.confidence), last.exact, last.approximate,
      100 * result.agreement, result.looks.size(), why);
}

std::string glance_json(const llm::GlanceResult& result) {
  nlohmann::ordered_json out = {{"glanced", result.glanced},
                                {"answer", result.answer},
                                {"out_of_budget", result.out_of_budget},
                                {"agreement", result.agreement},
                                {"looks", result.looks.size()}};
  if (!result.looks.empty()) {
    out["confidence"] = result.looks.back().confidence;
    out["exact_tokens"] = result.looks.back().exact;
    out["approximate_tokens"] = result.looks.back().approximate;
  }
  return out.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace frugal::cli
