// Generation: prompt in, text out as it comes. Exact parallel decoding by default: as many tokens a forward
// as drafts turn out to be right (decoding.h), and never other tokens than one at a time would give.
//
//   GenerateOptions options;
//   options.max_tokens = 100;
//   options.on_text = [](std::string_view text) { ...; return true; };
//   FRUGAL_TRY(const Generation answer, generate(*engine, sequence, engine->model().tokenizer(), prompt,
//   options));
#pragma once

#include <array>
#include <atomic>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "frugal/llm.h"
#include "frugal/usage.h"
#include "llm/decode/drafts.h"
#include "llm/decode/sampler.h"
#include "llm/decode/window.h"

namespace frugal::llm {

enum class StopReason {
  kEndOfGeneration,  // the model said that it is done
  kStopString,
  kMaxTokens,
  kContextFull,
  kCallback,   // on_text returned false
  kCancelled,  // the cancel flag
  kGlance,     // the answer was drawn before the chain ended (glance.h)
};
// "end of generation", for people; "end_of_generation", for JSON, with underscores.
std::string_view stop_reason_name(StopReason reason);

// How many tokens a forward is given.
struct DecodeOptions {
  int max_draft = kLongestDraft;  // longest draft, 0 to kLongestDraft; 0 = one token a forward
  bool fixed = false;             // always drafts of max_draft tokens: to measure and to test, not to be fast
  DraftOptions drafts;
  // What forwards cost here, learnt from request to request; null: learnt anew. Changes speed and no answer.
  StepCosts* costs = nullptr;
};

struct GenerateOptions {
  SamplerOptions sampler;
  DecodeOptions decode;
  int max_tokens = 0;             // of the answer; 0 = until the model ends it or the context is full
  std::vector<std::string> stop;  // the answer ends before the first of these; empty strings are refused
  bool ignore_end = false;        // go on after an end-of-generation token
  // Receives whole UTF-8 characters as soon as no stop string can begin in them; false stops. May be empty.
  std::function<bool(std::string_view)> on_text;
  // Prompt tokens done, of those that the cache does not hold already; false stops. May be empty.
  std::function<bool(int done, int total)> on_prefill;
  // After each window: the approximate tokens that follow the exact ones, for people to see them turn exact.
  std::function<void(std::span<const Token> approximate)> on_window;
  // Looked at between forwards and between chunks of the prefill. May be null.
  const std::atomic<bool>* cancel = nullptr;
};

struct DraftStats {
  std::array<int, kDraftSources> drafted{}, accepted{};  // tokens by source
  std::array<int, kLongestDraft + 1> windows{};          // forwards by length of the draft
  int n_drafted() const;
  int n_accepted() const;
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
  DraftStats drafts;
  Usage usage;            // of this request: its share by rows where forwards were shared
  uint64_t kv_bytes = 0;  // cache in use at the end

  double prefill_tokens_per_s() const {
    return prefill_s > 0 ? (prompt_tokens - reused_tokens) / prefill_s : 0;
  }
  // The first token comes from the prefill.
  double decode_tokens_per_s() const {
    return decode_s > 0 && !tokens.empty() ? static_cast<double>(tokens.size() - 1) / decode_s : 0;
  }
  double tokens_per_forward() const {
    return decode_forwards > 0 ? static_cast<double>(tokens.size() - 1) / decode_forwards : 0;
  }
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

struct GenerateRequest {
  SequenceId sequence = 0;  // each its own
  std::span<const Token> prompt;
  GenerateOptions options;
};

// Answers several requests in shared forwards, each sequence accepting its own count of tokens in each. The
// answers are those of generate(). At most as many requests as a forward has logit rows (kOutOfRange); an
// error of one is the error of all.
Result<std::vector<Generation>> generate_batch(Engine& engine, const Tokenizer& tokenizer,
                                               std::span<const GenerateRequest> requests);

// Length of the common prefix.
size_t common_prefix(std::span<const Token> a, std::span<const Token> b);

}  // namespace frugal::llm
