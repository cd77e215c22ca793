#include "llm/decode/glance.h"

#include <algorithm>
#include <cmath>

#include "base/clock.h"
#include "base/text.h"
#include "llm/vocab/tokenizer.h"

namespace frugal::llm {

namespace {

// Probability of `token` in a row of logits.
float probability(std::span<const float> logits, Token token) {
  const float most = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  for (const float logit : logits) sum += std::exp(static_cast<double>(logit - most));
  return static_cast<float>(std::exp(static_cast<double>(logits[static_cast<size_t>(token)] - most)) / sum);
}

// Guesses less likely than this to be the chain's own words are no approximation of it.
constexpr float kLeastChance = 0.2f;

}  // namespace

Glancer::Glancer(Engine& engine, const Tokenizer& tokenizer, const GenerateOptions& options,
                 const GlanceOptions& glance, Decoding decoding, std::vector<Token> trigger)
    : engine_(&engine),
      tokenizer_(&tokenizer),
      options_(&options),
      glance_(&glance),
      decoding_(std::move(decoding)),
      trigger_(std::move(trigger)),
      own_costs_(std::make_unique<StepCosts>()),
      costs_(options.decode.costs != nullptr ? options.decode.costs : own_costs_.get()) {}

Result<Glancer> Glancer::create(Engine& engine, SequenceId sequence, const Tokenizer& tokenizer,
                                std::span<const Token> prompt, const GenerateOptions& options,
                                const GlanceOptions& glance) {
  FRUGAL_TRY(std::vector<Token> trigger,
             tokenizer.encode(glance.trigger, /*add_special=*/false, /*parse_special=*/false));
  if (trigger.empty()) return {ErrorCode::kInvalidArgument, "the answer trigger is empty"};
  if (glance.answer_tokens < 1 || glance.every < 1 || glance.stable < 1) {
    return {ErrorCode::kInvalidArgument,
            strf("a glance with answers of %d tokens, every %d tokens, %d to agree: each must be 1 or more",
                 glance.answer_tokens, glance.every, glance.stable)};
  }
  FRUGAL_TRY(Decoding decoding, Decoding::create(engine, sequence, tokenizer, prompt, options));
  return Glancer(engine, tokenizer, options, glance, std::move(decoding), std::move(trigger));
}

Status Glancer::step(std::span<const Token> trigger, Look* look) {
  const DraftLine line = decoding_.propose();
  int length = static_cast<int>(line.size());
  if (!options_->decode.fixed) choose_lengths(*costs_, {&line, 1}, length + 1, {&length, 1});
  if (look != nullptr) *look = {};
  // An approximate end of the chain is no place to ask from: guesses from there on wait for another window.
  for (int i = 0; !trigger.empty() && i < length; ++i) {
    if (tokenizer_->is_end_of_generation(line[static_cast<size_t>(i)].token)) length = i;
  }
  BatchItem window = decoding_.window(length);
  const int n_rows = length + 1 + static_cast<int>(trigger.size());
  const EngineOptions& limits = engine_->options();
  const bool asks = !trigger.empty() && n_rows <= std::min(limits.max_rows, limits.max_logit_rows) &&
                    engine_->n_past(decoding_.sequence()) + n_rows < limits.n_ctx;
  std::vector<Token> asking;
  if (asks) {
    look->exact = static_cast<int>(decoding_.tokens().size());
    look->approximate = length;
    asking.assign(window.tokens.begin(), window.tokens.end());
    asking.insert(asking.end(), trigger.begin(), trigger.end());
    window.tokens = asking;
  }
  const double begin = wall_seconds();
  FRUGAL_TRY_STATUS(engine_->forward({&window, 1}));
  const double took = wall_seconds() - begin;
  costs_->add(asks ? n_rows : length + 1, took);
  if (asks) {
    look->confidence = 1;
    std::vector<Token> answer;
    FRUGAL_TRY([[maybe_unused]] const bool ended, read_answer(engine_->logits(n_rows - 1), &answer, look));
    look->seconds = took * (1 - costs_->cost(length + 1) / costs_->cost(n_rows));
    FRUGAL_TRY_STATUS(engine_->truncate(
        decoding_.sequence(), engine_->n_past(decoding_.sequence()) - static_cast<int>(trigger.size())));
  }
  FRUGAL_TRY_STATUS(decoding_.consume(0));
  decoding_.show();
  return {};
}

Result<bool> Glancer::read_answer(std::span<const float> logits, std::vector<Token>* answer,
                                  Look* look) const {
  const Token token = likeliest_token(logits);
  if (token < 0) return Error{ErrorCode::kCorrupt, "the model computed NaN after the answer trigger"};
  if (tokenizer_->is_end_of_generation(token)) return true;
  answer->push_back(token);
  FRUGAL_TRY(const std::string text, tokenizer_->decode(*answer));
  const size_t end = text.find_first_of(".\n)", 1);
  if (end != std::string::npos && !(end + 1 < text.size() && text[end] == '.')) {
    look->answer = std::string(trim(std::string_view(text).substr(0, end)));
    return true;
  }
  look->confidence *= probability(logits, token);
  look->answer = std::string(trim(text));
  return false;
}

Result<Look> Glancer::look(int approximate) {
  const double begin = wall_seconds();
  const SequenceId sequence = decoding_.sequence();
  const int held = engine_->n_past(sequence);
  Look look;
  look.exact = static_cast<int>(decoding_.tokens().size());
  std::vector<Token> tokens;
  // The last exact token is not in the cache yet, unless the chain has ended.
  if (!decoding_.done()) tokens.push_back(decoding_.tokens().back());
  const int room =
      engine_->options().n_ctx - held - static_cast<int>(trigger_.size()) - glance_->answer_tokens - 1;
  if (room < 0) return {ErrorCode::kOutOfRange, "the context has no room left for the answer trigger"};
  if (!decoding_.done() && approximate > 0) {
    float chance = 1;
    for (const DraftToken& guess : decoding_.propose()) {
      chance *= guess.confidence;
      if (chance < kLeastChance || look.approximate >= std::min(approximate, room) ||
          tokenizer_->is_end_of_generation(guess.token))
        break;
      tokens.push_back(guess.token);
      ++look.approximate;
    }
  }
  tokens.insert(tokens.end(), trigger_.begin(), trigger_.end());
  std::vector<Token> answer;
  look.confidence = 1;
  Status status;
  while (static_cast<int>(answer.size()) < glance_->answer_tokens) {
    const BatchItem item{sequence, tokens, LogitRows::kLast};
    status = engine_->forward({&item, 1});
    if (!status.ok()) break;
    const auto ended = read_answer(engine_->logits(0), &answer, &look);
    if (!ended.ok()) status = ended.error();
    if (!ended.ok() || *ended) break;
    tokens.assign(1, answer.back());
  }
  FRUGAL_TRY_STATUS(engine_->truncate(sequence, held));
  FRUGAL_TRY_STATUS(status);
  look.seconds = wall_seconds() - begin;
  return look;
}

bool agreed(std::span<const Look> looks, const GlanceOptions& glance) {
  const auto stable = static_cast<size_t>(glance.stable);
  if (looks.size() < stable) return false;
  for (const Look& look : looks.last(stable)) {
    if (look.answer.empty() || look.answer != looks.back().answer || look.confidence < glance.confidence)
      return false;
  }
  return true;
}

Result<GlanceResult> glance(Engine& engine, SequenceId sequence, const Tokenizer& tokenizer,
                            std::span<const Token> prompt, const GenerateOptions& options,
                            const GlanceOptions& rule) {
  GlanceResult out;
  const Usage before = engine.usage();
  FRUGAL_TRY(Glancer glancer, Glancer::create(engine, sequence, tokenizer, prompt, options, rule));
  FRUGAL_TRY_STATUS(glancer.prefill());
  const double begin = wall_seconds();
  int next = rule.first;
  while (!glancer.done()) {
    glancer.cancel_if_asked();
    if (glancer.done()) break;
    const int n = static_cast<int>(glancer.tokens().size());
    out.out_of_budget = (rule.most_tokens > 0 && n >= rule.most_tokens) ||
                        (rule.most_seconds > 0 && wall_seconds() - begin >= rule.most_seconds) ||
                        (rule.spent && rule.spent());
    if (n < next && !out.out_of_budget) {
      FRUGAL_TRY_STATUS(glancer.step());
      continue;
    }
    next = n + rule.every;
    Look look;
    const bool shared = rule.approximate > 0 && !out.out_of_budget;
    if (shared) FRUGAL_TRY_STATUS(glancer.step_and_look(&look));
    // The first token said enough where it is the whole answer, or is not sure enough for one.
    const bool whole =
        shared && (look.exact == 0 || rule.answer_tokens == 1 || look.confidence < rule.confidence);
    if (!whole && !glancer.done()) {
      auto full = glancer.look(rule.approximate);
      // Near the context's end there is no room for the trigger: the chain goes on to its own end.
      if (!full.ok() && full.error().code != ErrorCode::kOutOfRange) return full.error();
      if (full.ok()) look = std::move(full).value();
    }
    if (look.exact > 0) out.looks.push_back(std::move(look));
    if (!glancer.done() && (out.out_of_budget || (look.exact > 0 && agreed(out.looks, rule)))) {
      out.glanced = true;
      break;
    }
    if (!shared && !glancer.done()) FRUGAL_TRY_STATUS(glancer.step());
  }
  if (!out.glanced) {
    // The whole chain: its answer is drawn at its end, and is exact.
    auto last = glancer.look(0);
    if (last.ok()) out.looks.push_back(std::move(last).value());
  }
  if (!out.looks.empty()) out.answer = out.looks.back().answer;
  const auto stable = std::min(out.looks.size(), static_cast<size_t>(rule.stable));
  int same = 0;
  for (const Look& look : std::span(out.looks).last(stable)) same += look.answer == out.answer ? 1 : 0;
  out.agreement = stable > 0 ? static_cast<double>(same) / static_cast<double>(stable) : 0;
  out.rationale = glancer.finish();
  out.rationale.usage = usage_difference(engine.usage(), before);
  return out;
}

}  // namespace frugal::llm
