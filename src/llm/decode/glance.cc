#include "llm/decode/glance.h"

#include <algorithm>
#include <cmath>

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
constexpr float kLeastChance = 0.4f;
// As far as this a guess of the trigger itself is looked for.
constexpr float kLeastTriggerChance = 0.1f;

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
  if (glance.answer_tokens < 1 || glance.every < 0 || glance.stable < 0) {
    return {ErrorCode::kInvalidArgument,
            strf("a glance with answers of %d tokens, every %d tokens, %d to agree: answers have 1 token or "
                 "more, and nothing is negative",
                 glance.answer_tokens, glance.every, glance.stable)};
  }
  FRUGAL_TRY(Decoding decoding, Decoding::create(engine, sequence, tokenizer, prompt, options));
  return Glancer(engine, tokenizer, options, glance, std::move(decoding), std::move(trigger));
}

Glancer::Reach Glancer::reach(DraftLine line, int most) const {
  bool end = ends_sentence(tokenizer_->piece(decoding_.tokens().back()));
  Reach out{0, end ? Place::kSentence : Place::kAnywhere};
  float chance = 1;
  int likely = 0;
  for (int i = 0; i <= most && i < static_cast<int>(line.size()); ++i) {
    const DraftToken& guess = line[static_cast<size_t>(i)];
    // The trigger itself is guessed: this is its place, and its rows are the guess.
    if (end && guess.token == trigger_.front()) return {i, Place::kTrigger};
    chance *= guess.confidence;
    if (i == most || chance < kLeastTriggerChance || tokenizer_->is_end_of_generation(guess.token)) break;
    end = ends_sentence(tokenizer_->piece(guess.token));
    if (chance < kLeastChance) continue;
    likely = i + 1;
    if (end) out = {likely, Place::kSentence};
  }
  if (out.place == Place::kAnywhere) out.length = likely;
  return out;
}

int Glancer::begun() const {
  const std::vector<Token>& tokens = decoding_.tokens();
  for (size_t n = std::min(trigger_.size() - 1, tokens.size()); n > 0; --n) {
    if (std::equal(tokens.end() - static_cast<ptrdiff_t>(n), tokens.end(), trigger_.begin()))
      return static_cast<int>(n);
  }
  return 0;
}

bool Glancer::said() const {
  const std::vector<Token>& tokens = decoding_.tokens();
  return begun() > 0 || std::ranges::search(tokens, trigger_).begin() != tokens.end();
}

Place Glancer::place(int approximate) {
  if (decoding_.done()) return Place::kAnywhere;
  const Reach reached = reach(decoding_.propose(), approximate);
  const bool asked = static_cast<int>(decoding_.tokens().size()) + reached.length == asked_;
  return asked ? Place::kAnywhere : reached.place;
}

Result<Look> Glancer::named_answer(Look look) {
  if (!look.named || look.accepted < look.approximate || decoding_.done()) return Look{};
  const double shared = look.seconds;
  FRUGAL_TRY(const Look whole, this->look(0));
  look.answer = whole.answer;
  look.confidence = whole.confidence;
  look.seconds = shared + whole.seconds;
  return look;
}

bool Glancer::is_named(int row) const {
  for (size_t i = 0; i < trigger_.size(); ++i) {
    if (likeliest_token(engine_->logits(row + static_cast<int>(i))) != trigger_[i]) return false;
  }
  return true;
}

int Glancer::accepted(const Look& look) const {
  const auto exact = static_cast<size_t>(look.exact);
  return exact <= decoding_.tokens().size()
             ? static_cast<int>(common_prefix(guesses_, std::span(decoding_.tokens()).subspan(exact)))
             : 0;
}

Status Glancer::step_and_look(Look* look) {
  FRUGAL_TRY_STATUS(step(trigger_, look));
  look->accepted = accepted(*look);
  return {};
}

Status Glancer::step(std::span<const Token> trigger, Look* look) {
  const DraftLine line = decoding_.propose();
  int length = static_cast<int>(line.size());
  if (!options_->decode.fixed) choose_lengths(*costs_, {&line, 1}, length + 1, {&length, 1});
  const EngineOptions& limits = engine_->options();
  const int n_trigger = static_cast<int>(trigger.size());
  const Reach reached = reach(line, glance_->approximate);
  const bool asks = !trigger.empty() &&
                    reached.length + 1 + n_trigger <= std::min(limits.max_rows, limits.max_logit_rows) &&
                    engine_->n_past(decoding_.sequence()) + reached.length + 1 + n_trigger < limits.n_ctx;
  if (look != nullptr) *look = {};
  if (asks) length = reached.length;
  const int n_rows = length + 1 + (asks ? n_trigger : 0);
  BatchItem window = decoding_.window(length);
  std::vector<Token> asking;
  if (asks) {
    look->exact = static_cast<int>(decoding_.tokens().size());
    look->approximate = length;
    look->place = reached.place;
    if (reached.place != Place::kAnywhere) asked_ = look->exact + length;
    asking.assign(window.tokens.begin(), window.tokens.end());
    guesses_.assign(asking.begin() + 1, asking.end());
    asking.insert(asking.end(), trigger.begin(), trigger.end());
    window.tokens = asking;
  }
  const double begin = glance_->clock();
  FRUGAL_TRY_STATUS(engine_->forward({&window, 1}));
  const double took = glance_->clock() - begin;
  costs_->add(n_rows, took);
  if (asks) {
    look->confidence = 1;
    look->named = is_named(length);
    std::vector<Token> answer;
    FRUGAL_TRY([[maybe_unused]] const bool ended, read_answer(engine_->logits(n_rows - 1), &answer, look));
    look->seconds = took * (1 - costs_->cost(length + 1) / costs_->cost(n_rows));
    FRUGAL_TRY_STATUS(
        engine_->truncate(decoding_.sequence(), engine_->n_past(decoding_.sequence()) - n_trigger));
  }
  FRUGAL_TRY_STATUS(decoding_.consume(0));
  // Where guesses were wrong, the same place is another one now.
  if (asked_ >= 0) {
    const size_t from = static_cast<size_t>(asked_) - guesses_.size();
    if (common_prefix(guesses_, std::span(decoding_.tokens()).subspan(from)) < guesses_.size()) asked_ = -1;
  }
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

Result<Look> Glancer::look(int approximate, float least) {
  const double begin = glance_->clock();
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
  guesses_.clear();
  if (!decoding_.done()) {
    const DraftLine line = decoding_.propose();
    const Reach reached = reach(line, begun() > 0 ? 0 : std::min(approximate, room));
    for (const DraftToken& guess : line.first(static_cast<size_t>(reached.length)))
      guesses_.push_back(guess.token);
    look.approximate = reached.length;
    look.place = reached.place;
    if (reached.place != Place::kAnywhere && approximate > 0) asked_ = look.exact + reached.length;
  }
  tokens.insert(tokens.end(), guesses_.begin(), guesses_.end());
  const auto trigger = std::span(trigger_).subspan(static_cast<size_t>(guesses_.empty() ? begun() : 0));
  tokens.insert(tokens.end(), trigger.begin(), trigger.end());
  std::vector<Token> answer;
  look.confidence = 1;
  Status status;
  while (static_cast<int>(answer.size()) < glance_->answer_tokens) {
    const bool asks = answer.empty();
    const BatchItem item{sequence, tokens, asks ? LogitRows::kAll : LogitRows::kLast};
    status = engine_->forward({&item, 1});
    if (!status.ok()) break;
    const int last = engine_->n_logit_rows() - 1;
    if (asks && last >= static_cast<int>(trigger_.size()))  // the whole trigger, behind an exact token
      look.named = is_named(last - static_cast<int>(trigger_.size()));
    const auto ended = read_answer(engine_->logits(last), &answer, &look);
    if (!ended.ok()) status = ended.error();
    if (!ended.ok() || *ended || look.confidence < least) break;
    tokens.assign(1, answer.back());
  }
  FRUGAL_TRY_STATUS(engine_->truncate(sequence, held));
  FRUGAL_TRY_STATUS(status);
  look.seconds = glance_->clock() - begin;
  return look;
}

bool ends_sentence(std::string_view text) {
  const std::string_view end = trim(text);
  return text.find('\n') != std::string_view::npos ||
         (!end.empty() && std::string_view(".!?").find(end.back()) != std::string_view::npos);
}

bool agreed(std::span<const Look> looks, const GlanceOptions& glance) {
  if (looks.empty() || looks.back().answer.empty()) return false;
  const Look& last = looks.back();
  const auto counts = [&](const Look& look) { return glance.wrong || look.accepted == look.approximate; };
  if (!counts(last)) return false;
  if (last.named && last.accepted == last.approximate) return true;
  if (glance.stable == 0) return false;
  int same = 0;
  for (size_t i = looks.size(); i-- > 0 && same < glance.stable;) {
    if (!counts(looks[i])) continue;
    if (looks[i].answer != last.answer || looks[i].confidence < glance.confidence) return false;
    ++same;
  }
  return same == glance.stable;
}

Result<GlanceResult> glance(Engine& engine, SequenceId sequence, const Tokenizer& tokenizer,
                            std::span<const Token> prompt, const GenerateOptions& options,
                            const GlanceOptions& rule) {
  GlanceResult out;
  const Usage before = engine.usage();
  FRUGAL_TRY(Glancer glancer, Glancer::create(engine, sequence, tokenizer, prompt, options, rule));
  FRUGAL_TRY_STATUS(glancer.prefill());
  const double begin = wall_seconds(), begin_timing = rule.clock();
  int next = rule.first;
  for (int iterations = 0; !glancer.done(); ++iterations) {
    glancer.cancel_if_asked();
    if (glancer.done()) break;
    const int n = static_cast<int>(glancer.tokens().size());
    out.out_of_budget = (rule.most_tokens > 0 && n >= rule.most_tokens) ||
                        (rule.most_iterations > 0 && iterations >= rule.most_iterations) ||
                        (rule.most_seconds > 0 && wall_seconds() - begin >= rule.most_seconds) ||
                        (rule.spent && rule.spent());
    const bool asks = n >= rule.first && !glancer.said();
    const Place place = asks ? glancer.place(rule.approximate) : Place::kAnywhere;
    const bool due = asks && ((rule.every > 0 && n >= next) || place == Place::kTrigger ||
                              (rule.sentences && place == Place::kSentence));
    if (!due && !out.out_of_budget) {
      FRUGAL_TRY_STATUS(glancer.step());
      continue;
    }
    next = n + rule.every;
    Look look;
    // One forward does both, unless there is no draft (Trunc-CoT), or an answer of several tokens is to be
    // seen before the chain is about to name it.
    const bool shared =
        rule.approximate > 0 && !out.out_of_budget && (rule.answer_tokens == 1 || place == Place::kTrigger);
    if (shared) {
      FRUGAL_TRY_STATUS(glancer.step_and_look(&look));
      if (rule.answer_tokens > 1) {
        FRUGAL_TRY(look, glancer.named_answer(std::move(look)));
      }
    } else {
      auto asked = glancer.look(rule.approximate, out.out_of_budget ? 0 : rule.confidence);
      // Near the context's end there is no room for the trigger: the chain goes on to its own end.
      if (!asked.ok() && asked.error().code != ErrorCode::kOutOfRange) return asked.error();
      if (asked.ok()) look = std::move(asked).value();
      if (!out.out_of_budget) {
        FRUGAL_TRY_STATUS(glancer.step());
        look.accepted = glancer.accepted(look);
      }
    }
    if (look.exact > 0) out.looks.push_back(std::move(look));
    if (!glancer.done() && (out.out_of_budget || (look.exact > 0 && agreed(out.looks, rule)))) {
      out.glanced = true;
      break;
    }
  }
  if (!out.glanced) {
    // The whole chain: its answer is drawn at its end, and is exact.
    auto last = glancer.look(0);
    if (last.ok()) out.looks.push_back(std::move(last).value());
  }
  out.seconds = rule.clock() - begin_timing;
  if (!out.looks.empty()) out.answer = out.looks.back().answer;
  const auto stable = std::min(out.looks.size(), static_cast<size_t>(std::max(1, rule.stable)));
  int same = 0;
  for (const Look& look : std::span(out.looks).last(stable)) same += look.answer == out.answer ? 1 : 0;
  out.agreement = stable > 0 ? static_cast<double>(same) / static_cast<double>(stable) : 0;
  out.rationale = glancer.finish();
  out.rationale.usage = usage_difference(engine.usage(), before);
  return out;
}

}  // namespace frugal::llm
