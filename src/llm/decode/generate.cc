#include "llm/decode/generate.h"

#include <algorithm>

#include "base/clock.h"
#include "base/text.h"
#include "llm/vocab/stream_decoder.h"
#include "llm/vocab/tokenizer.h"

namespace frugal::llm {

namespace {

// What the work since `before` cost. Usage only ever grows, so parts are differences.
Usage difference(const Usage& after, const Usage& before) {
  Usage part = after;
  part.flops -= before.flops;
  part.bytes_moved -= before.bytes_moved;
  part.cpu_seconds -= before.cpu_seconds;
  part.wall_seconds -= before.wall_seconds;
  return part;
}

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
  return {};
}

bool cancelled(const GenerateOptions& options) { return options.cancel != nullptr && options.cancel->load(); }

}  // namespace

std::string_view stop_reason_name(StopReason reason) {
  switch (reason) {
    case StopReason::kEndOfGeneration:
      return "end_of_generation";
    case StopReason::kStopString:
      return "stop_string";
    case StopReason::kMaxTokens:
      return "max_tokens";
    case StopReason::kContextFull:
      return "context_full";
    case StopReason::kCallback:
      return "callback";
    case StopReason::kCancelled:
      return "cancelled";
  }
  return "unknown";
}

size_t common_prefix(std::span<const Token> a, std::span<const Token> b) {
  const size_t n = std::min(a.size(), b.size());
  return static_cast<size_t>(
      std::mismatch(a.begin(), a.begin() + static_cast<ptrdiff_t>(n), b.begin()).first - a.begin());
}

Result<Generation> generate(Engine& engine, SequenceId sequence, const Tokenizer& tokenizer,
                            std::span<const Token> prompt, const GenerateOptions& options) {
  FRUGAL_TRY_STATUS(check_request(engine, prompt, options));
  FRUGAL_TRY(Sampler sampler, Sampler::create(options.sampler, engine.model().info().n_vocab));
  FRUGAL_TRY(StreamDecoder decoder, StreamDecoder::create(tokenizer, options.stop));
  for (const Token token : prompt) sampler.accept(token);

  const Usage usage_before = engine.usage();
  const double begin = wall_seconds();
  Generation out;
  out.prompt_tokens = static_cast<int>(prompt.size());
  // The last token is always run: its logits are not kept with the cache.
  const size_t reused = std::min(common_prefix(engine.tokens(sequence), prompt), prompt.size() - 1);
  out.reused_tokens = static_cast<int>(reused);
  FRUGAL_TRY_STATUS(engine.truncate(sequence, out.reused_tokens));

  const auto finish = [&](StopReason reason, double prefill_end) -> Generation {
    out.stop = reason;
    out.prefill_s = prefill_end - begin;
    out.decode_s = wall_seconds() - prefill_end;
    out.usage = difference(engine.usage(), usage_before);
    out.kv_bytes = engine.kv_bytes(sequence);
    return std::move(out);
  };

  bool stopped_by_callback = false;
  const Status prefilled = engine.prefill(sequence, prompt.subspan(reused), [&](int done, int total) {
    if (cancelled(options)) return false;
    stopped_by_callback = options.on_prefill && !options.on_prefill(done, total);
    return !stopped_by_callback;
  });
  const double prefill_end = wall_seconds();
  if (!prefilled.ok()) {
    if (prefilled.error().code != ErrorCode::kCancelled) return prefilled.error();
    return finish(stopped_by_callback ? StopReason::kCallback : StopReason::kCancelled, prefill_end);
  }
  // A stop that came with the last chunk: the prompt is done, and nothing is to follow.
  if (stopped_by_callback) return finish(StopReason::kCallback, prefill_end);

  // Hands on what is safe to show; false when the callback has had enough.
  const auto emit = [&](std::string_view text) {
    out.text += text;
    return text.empty() || !options.on_text || options.on_text(text);
  };
  while (true) {
    if (cancelled(options)) return finish(StopReason::kCancelled, prefill_end);
    FRUGAL_TRY(const Token token, sampler.sample(engine.logits(0)));
    sampler.accept(token);
    out.tokens.push_back(token);
    if (!options.ignore_end && tokenizer.is_end_of_generation(token)) {
      emit(decoder.finish());
      return finish(StopReason::kEndOfGeneration, prefill_end);
    }
    if (!emit(decoder.push(token))) return finish(StopReason::kCallback, prefill_end);
    if (decoder.stopped()) {
      out.stop_string = options.stop[static_cast<size_t>(decoder.stopped_by())];
      return finish(StopReason::kStopString, prefill_end);
    }
    if (options.max_tokens > 0 && static_cast<int>(out.tokens.size()) >= options.max_tokens) {
      emit(decoder.finish());
      return finish(StopReason::kMaxTokens, prefill_end);
    }
    if (engine.n_past(sequence) >= engine.options().n_ctx) {
      emit(decoder.finish());
      return finish(StopReason::kContextFull, prefill_end);
    }
    const BatchItem step{sequence, {&token, 1}, LogitRows::kLast};
    FRUGAL_TRY_STATUS(engine.forward({&step, 1}));
    ++out.decode_forwards;
  }
}

}  // namespace frugal::llm
