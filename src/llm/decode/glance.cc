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

Status Glancer::step() {
  const DraftLine line = decoding_.propose();
  int length = static_cast<int>(line.size());
  if (!options_->decode.fixed) choose_lengths(*costs_, {&line, 1}, length + 1, {&length, 1});
  const BatchItem window = decoding_.window(length);
  const double begin = wall_seconds();
  FRUGAL_TRY_STATUS(engine_->forward({&window, 1}));
  costs_->add(length + 1, wall_seconds() - begin);
  FRUGAL_TRY_STATUS(decoding_.consume(0));
  decoding_.show();
  return {};
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
    for (const DraftToken& guess : decoding_.propose()) {
      if (look.approximate >= std::min(approximate, room) || tokenizer_->is_end_of_generation(guess.token))
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
    const Token token = likeliest_token(engine_->logits(0));
    if (token < 0) {
      status = {ErrorCode::kCorrupt, "the model computed NaN after the answer trigger"};
      break;
    }
    if (tokenizer_->is_end_of_generation(token)) break;
    answer.push_back(token);
    auto text = tokenizer_->decode(answer);
    if (!text.ok()) {
      status = text.error();
      break;
    }
    const float chance = probability(engine_->logits(0), token);
    const size_t end = text->find_first_of(".\n)", 1);
    if (end != std::string::npos && !(end + 1 < text->size() && (*text)[end] == '.')) {
      look.answer = std::string(trim(text->substr(0, end)));
      break;
    }
    look.confidence *= chance;
    look.answer = std::string(trim(*text));
    tokens.assign(1, token);
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
    if (n >= next || out.out_of_budget) {
      next = n + rule.every;
      auto look = glancer.look(rule.approximate);
      // Near the context's end there is no room for the trigger: the chain goes on to its own end.
      if (!look.ok() && look.error().code != ErrorCode::kOutOfRange) return look.error();
      if (look.ok()) out.looks.push_back(std::move(look).value());
      if (out.out_of_budget || agreed(out.looks, rule)) {
        out.glanced = true;
        break;
      }
    }
    FRUGAL_TRY_STATUS(glancer.step());
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
