#include "llm/decode/decoding.h"

#include <algorithm>

#include "base/check.h"
#include "base/clock.h"
#include "base/text.h"
#include "llm/vocab/tokenizer.h"

namespace frugal::llm {

namespace {

Status check_request(const Engine& engine, std::span<const Token> prompt, const GenerateOptions& options) {
  if (prompt.empty()) {
    return {ErrorCode::kInvalidArgument, "the prompt is empty: there is nothing to continue"};
  }
  const int n_vocab = engine.model().info().n_vocab;
  for (size_t i = 0; i < prompt.size(); ++i) {
    if (prompt[i] < 0 || prompt[i] >= n_vocab) {
      return {
          ErrorCode::kInvalidArgument,
          strf("token %zu of the prompt is %d; this model's run from 0 to %d", i, prompt[i], n_vocab - 1)};
    }
  }
  const auto n_ctx = static_cast<size_t>(engine.options().n_ctx);
  if (prompt.size() >= n_ctx) {
    return {ErrorCode::kOutOfRange, strf("the prompt has %zu tokens, and with one for the answer the context "
                                         "of %zu is too short; shorten the "
                                         "prompt, or raise the context (--ctx; the model was trained for %d)",
                                         prompt.size(), n_ctx, engine.model().info().n_ctx_train)};
  }
  if (options.max_tokens < 0) {
    return {ErrorCode::kInvalidArgument,
            strf("max_tokens is %d, but must be 0 (no limit) or more", options.max_tokens)};
  }
  if (options.decode.max_draft < 0 || options.decode.max_draft > kLongestDraft) {
    return {ErrorCode::kInvalidArgument, strf("drafts of %d tokens: give a length from 0 (none) to %d",
                                              options.decode.max_draft, kLongestDraft)};
  }
  return {};
}

bool cancelled(const GenerateOptions& options) { return options.cancel != nullptr && options.cancel->load(); }

// Tokens that the drafter may have to learn.
size_t most_tokens(const Engine& engine, std::span<const Token> prompt, const GenerateOptions& options) {
  const auto n_ctx = static_cast<size_t>(engine.options().n_ctx) + 1;
  if (options.max_tokens == 0) return n_ctx;
  return std::min(n_ctx, prompt.size() + static_cast<size_t>(options.max_tokens));
}

}  // namespace

Usage usage_difference(const Usage& after, const Usage& before) {
  Usage part = after;
  part.flops -= before.flops;
  part.bytes_moved -= before.bytes_moved;
  part.cpu_seconds -= before.cpu_seconds;
  part.wall_seconds -= before.wall_seconds;
  return part;
}

Decoding::Decoding(Engine& engine, SequenceId sequence, const Tokenizer& tokenizer,
                   std::span<const Token> prompt, const GenerateOptions& options, Sampler sampler,
                   StreamDecoder decoder)
    : engine_(&engine),
      sequence_(sequence),
      tokenizer_(&tokenizer),
      prompt_(prompt),
      options_(&options),
      sampler_(std::move(sampler)),
      decoder_(std::move(decoder)),
      begin_s_(wall_seconds()) {
  if (options.decode.max_draft > 0)
    drafts_.emplace(options.decode.drafts, most_tokens(engine, prompt, options));
  for (const Token token : prompt) {
    sampler_.accept(token);
    if (drafts_) drafts_->push(token);
  }
  window_.reserve(kLongestDraft + 1);
  draft_.reserve(kLongestDraft);
  before_window_ = prompt.back();
}

Result<Decoding> Decoding::create(Engine& engine, SequenceId sequence, const Tokenizer& tokenizer,
                                  std::span<const Token> prompt, const GenerateOptions& options) {
  FRUGAL_TRY_STATUS(check_request(engine, prompt, options));
  FRUGAL_TRY(Sampler sampler, Sampler::create(options.sampler, engine.model().info().n_vocab));
  FRUGAL_TRY(StreamDecoder decoder, StreamDecoder::create(tokenizer, options.stop));
  Decoding made(engine, sequence, tokenizer, prompt, options, std::move(sampler), std::move(decoder));
  made.out_.prompt_tokens = static_cast<int>(prompt.size());
  // The last token is always run: its logits are not kept with the cache.
  const size_t reused = std::min(common_prefix(engine.tokens(sequence), prompt), prompt.size() - 1);
  made.out_.reused_tokens = static_cast<int>(reused);
  FRUGAL_TRY_STATUS(engine.truncate(sequence, made.out_.reused_tokens));
  return made;
}

Status Decoding::prefill() {
  bool stopped_by_callback = false;
  const auto fresh = prompt_.subspan(static_cast<size_t>(out_.reused_tokens));
  begin_s_ = wall_seconds();
  const Status prefilled = engine_->prefill(sequence_, fresh, [&](int done, int total) {
    if (cancelled(*options_)) return false;
    stopped_by_callback = options_->on_prefill && !options_->on_prefill(done, total);
    return !stopped_by_callback;
  });
  prefill_end_s_ = wall_seconds();
  if (!prefilled.ok()) {
    if (prefilled.error().code != ErrorCode::kCancelled) return prefilled.error();
    stop(stopped_by_callback ? StopReason::kCallback : StopReason::kCancelled);
    return {};
  }
  // A stop that came with the last chunk: the prompt is done, and nothing is to follow.
  if (stopped_by_callback) {
    stop(StopReason::kCallback);
    return {};
  }
  cancel_if_asked();
  if (done_) return {};
  FRUGAL_TRY(const Token token, sampler_.sample(engine_->logits(0)));
  take(token, engine_->n_past(sequence_));
  return {};
}

void Decoding::cancel_if_asked() {
  if (!done_ && cancelled(*options_)) stop(StopReason::kCancelled);
}

void Decoding::stop(StopReason reason) {
  out_.stop = reason;
  done_ = true;
}

void Decoding::end(StopReason reason) {
  if (done_) return;
  emit(decoder_.finish());
  stop(reason);
}

bool Decoding::emit(std::string_view text) {
  out_.text += text;
  return text.empty() || !options_->on_text || options_->on_text(text);
}

bool Decoding::take(Token token, int n_past) {
  sampler_.accept(token);
  if (drafts_) drafts_->push(token);
  if (!out_.tokens.empty()) before_window_ = out_.tokens.back();
  out_.tokens.push_back(token);
  if (!options_->ignore_end && tokenizer_->is_end_of_generation(token)) {
    emit(decoder_.finish());
    stop(StopReason::kEndOfGeneration);
  } else if (!emit(decoder_.push(token))) {
    stop(StopReason::kCallback);
  } else if (decoder_.stopped()) {
    out_.stop_string = options_->stop[static_cast<size_t>(decoder_.stopped_by())];
    stop(StopReason::kStopString);
  } else if (options_->max_tokens > 0 && static_cast<int>(out_.tokens.size()) >= options_->max_tokens) {
    emit(decoder_.finish());
    stop(StopReason::kMaxTokens);
  } else if (n_past >= engine_->options().n_ctx) {
    emit(decoder_.finish());
    stop(StopReason::kContextFull);
  }
  return done_;
}

DraftLine Decoding::propose() {
  draft_.clear();
  const DecodeOptions& decode = options_->decode;
  const EngineOptions& engine = engine_->options();
  int room = std::min(decode.max_draft, engine.n_ctx - engine_->n_past(sequence_) - 1);
  if (options_->max_tokens > 0)  // the window's last row yields a token that needs no guess
    room = std::min(room, options_->max_tokens - static_cast<int>(out_.tokens.size()) - 1);
  room = std::min({room, engine.max_rows - 1, engine.max_logit_rows - 1});
  if (!drafts_ || room <= 0) return draft_;
  const DraftLine line = drafts_->propose(room);
  draft_.assign(line.begin(), line.end());
  // A fixed window is filled up with the last token: a guess like another.
  while (decode.fixed && static_cast<int>(draft_.size()) < room)
    draft_.push_back({out_.tokens.back(), 0, DraftSource::kRecycled, kRecycledBucket});
  return draft_;
}

BatchItem Decoding::window(int length) {
  FRUGAL_DCHECK(!done_ && length <= static_cast<int>(draft_.size()));
  draft_.resize(static_cast<size_t>(length));
  window_.assign(1, out_.tokens.back());
  for (const DraftToken& guess : draft_) window_.push_back(guess.token);
  return {sequence_, window_, LogitRows::kAll};
}

Status Decoding::consume(int first_row) {
  ++out_.decode_forwards;
  ++out_.drafts.windows[draft_.size()];
  const int base = engine_->n_past(sequence_) - static_cast<int>(window_.size());
  const Token before = before_window_;
  int read = 0;  // rows read, whose picks are exact
  while (true) {
    FRUGAL_TRY(const Token token, sampler_.sample(engine_->logits(first_row + read)));
    ++read;
    const bool ended = take(token, base + read);
    const auto at = static_cast<size_t>(read);
    if (ended || at >= window_.size() || token != window_[at]) break;
  }
  const int accepted = read - 1;
  for (size_t i = 0; i < draft_.size(); ++i) {
    const auto source = static_cast<size_t>(draft_[i].source);
    ++out_.drafts.drafted[source];
    out_.drafts.accepted[source] += static_cast<int>(i) < accepted ? 1 : 0;
  }
  if (drafts_ && !done_) {
    drafts_->judge(draft_, accepted, accepted < static_cast<int>(draft_.size()));
    before_window_ = before;
    learn(first_row, read);
    before_window_ = window_[static_cast<size_t>(accepted)];
  }
  return engine_->truncate(sequence_, base + read);
}

// What the rows show about the model beyond the tokens that were exact.
void Decoding::learn(int first_row, int read) {
  for (size_t row = 0; row < window_.size(); ++row) {
    const bool exact = static_cast<int>(row) < read;
    const Token chosen = exact ? out_.tokens[out_.tokens.size() - static_cast<size_t>(read) + row]
                               : likeliest_token(engine_->logits(first_row + static_cast<int>(row)));
    if (chosen < 0) continue;
    drafts_->observe(row > 0 ? window_[row - 1] : before_window_, window_[row], chosen, exact);
  }
}

void Decoding::show() {
  if (done_ || !options_->on_window) return;
  std::vector<Token> guesses;
  for (const DraftToken& guess : propose()) guesses.push_back(guess.token);
  options_->on_window(guesses);
}

Generation Decoding::finish() {
  FRUGAL_DCHECK(done_);
  out_.prefill_s = prefill_end_s_ - begin_s_;
  out_.decode_s = wall_seconds() - prefill_end_s_;
  out_.kv_bytes = engine_->kv_bytes(sequence_);
  return std::move(out_);
}

}  // namespace frugal::llm
