// The sequential generation loop: prompt in, text out as it comes, one token a forward.
//
//   GenerateOptions options;
//   options.max_tokens = 100;
//   options.on_text = [](std::string_view text) { ...; return true; };
//   FRUGAL_TRY(const Generation answer, generate(*engine, sequence, engine->model().tokenizer(), prompt,
//   options));
#pragma once

#include <atomic>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "frugal/llm.h"
#include "frugal/usage.h"
#include "llm/decode/sampler.h"

namespace frugal::llm {

enum class StopReason {
  kEndOfGeneration,  // the model said that it is done
  kStopString,
  kMaxTokens,
  kContextFull,
  kCallback,   // on_text returned false
  kCancelled,  // the cancel flag
};
// "end of generation", for people; "end_of_generation", for JSON, with underscores.
std::string_view stop_reason_name(StopReason reason);

struct GenerateOptions {
  SamplerOptions sampler;
  int max_tokens = 0;             // of the answer; 0 = until the model ends it or the context is full
  std::vector<std::string> stop;  // the answer ends before the first of these; empty strings are refused
  bool ignore_end = false;        // go on after an end-of-generation token
  // Receives whole UTF-8 characters as soon as no stop string can begin in them; false stops. May be empty.
  std::function<bool(std::string_view)> on_text;
  // Prompt tokens done, of those that the cache does not hold already; false stops. May be empty.
  std::function<bool(int done, int total)> on_prefill;
  // Looked at between forwards and between chunks of the prefill. May be null.
  const std::atomic<bool>* cancel = nullptr;
};

struct Generation {
  std::string text;           // without the stop string
  std::vector<Token> tokens;  // sampled, with the end-of-generation token if there was one
  StopReason stop = StopReason::kMaxTokens;
  std::string stop_string;  // the one that ended the answer
  int prompt_tokens = 0;
  int reused_tokens = 0;    // of the prompt, that the sequence held already
  double prefill_s = 0;     // wall time until the first token's logits
  double decode_s = 0;      // wall time after that
  int decode_forwards = 0;  // forwards in decode_s
  Usage usage;              // of this call
  uint64_t kv_bytes = 0;    // cache in use at the end

  double prefill_tokens_per_s() const {
    return prefill_s > 0 ? (prompt_tokens - reused_tokens) / prefill_s : 0;
  }
  double decode_tokens_per_s() const { return decode_s > 0 ? decode_forwards / decode_s : 0; }
};

// Answers `prompt`. The tokens that `sequence` holds are kept as far as they are a prefix of the prompt and
// forgotten from there on, so a conversation costs only what is new in it. Greedy answers do not depend on
// what was kept.
//
// Errors: kInvalidArgument (empty prompt, token outside the vocabulary, sampler or stop strings), kOutOfRange
// (the prompt leaves no room in the context), kCorrupt (the model computes NaN), and those of
// Engine::forward. A stop by callback or cancel flag is no error: what there is comes back, with the reason.
Result<Generation> generate(Engine& engine, SequenceId sequence, const Tokenizer& tokenizer,
                            std::span<const Token> prompt, const GenerateOptions& options);

// Length of the common prefix.
size_t common_prefix(std::span<const Token> a, std::span<const Token> b);

}  // namespace frugal::llm
