// Decoding: one request on its way through exact parallel decoding, a window at a time.
//
// A window is the last exact token and a draft of what follows. One forward computes the logits of all its
// rows; the sampler then reads them from the left, just as if the tokens had come one by one. As long as the
// token that it picks is the one that the draft has there, the next row's logits are those that the
// sequential loop would have computed, bit for bit, and are read too. The first pick that differs is exact as
// well, and ends the window: what stands after it in the cache is forgotten. So a forward yields 1 to 1 +
// draft tokens, and tokens, text, random numbers and cache are those of the sequential loop.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "llm/decode/drafts.h"
#include "llm/decode/generate.h"
#include "llm/vocab/stream_decoder.h"

namespace frugal::llm {

// What the work since `before` cost. Usage only ever grows, so parts are differences.
Usage usage_difference(const Usage& after, const Usage& before);

class Decoding {
 public:
  // Checks the request, keeps what the sequence holds of the prompt, and makes the drafter. The errors of
  // generate(). `prompt` and `options` must outlive this.
  static Result<Decoding> create(Engine& engine, SequenceId sequence, const Tokenizer& tokenizer,
                                 std::span<const Token> prompt, const GenerateOptions& options);

  // Runs the prompt and reads the first token. Stops by callback or flag make it done().
  Status prefill();

  bool done() const { return done_; }
  // A stop that came from outside; looked at between forwards.
  void cancel_if_asked();

  // Guesses for the next window, at most as many as there is room for in context, answer and one forward.
  DraftLine propose();
  // The window with the first `length` of them; valid until consume().
  BatchItem window(int length);
  // Reads the window's rows after the forward, logits from row `first_row` on.
  Status consume(int first_row);

  // Ends it here, if it has not ended; what is held back of the text comes.
  void end(StopReason reason);
  // What was decoded; call it once, when done.
  Generation finish();

  SequenceId sequence() const { return sequence_; }
  const std::vector<Token>& tokens() const { return out_.tokens; }
  // Hands the next window's guesses to on_window.
  void show();

 private:
  Decoding(Engine& engine, SequenceId sequence, const Tokenizer& tokenizer, std::span<const Token> prompt,
           const GenerateOptions& options, Sampler sampler, StreamDecoder decoder);
  void stop(StopReason reason);
  // Takes one token over: history, text, stops. True when the answer ends with it; `n_past` is what the
  // sequential loop would have in its cache now.
  bool take(Token token, int n_past);
  bool emit(std::string_view text);
  void learn(int first_row, int read);

  Engine* engine_;
  SequenceId sequence_;
  const Tokenizer* tokenizer_;
  std::span<const Token> prompt_;
  const GenerateOptions* options_;
  Sampler sampler_;
  StreamDecoder decoder_;
  std::optional<Drafts> drafts_;  // none when windows are one row
  std::vector<Token> window_;     // the last exact token and the draft
  std::vector<DraftToken> draft_;
  Token before_window_ = -1;  // the exact token before the window
  Generation out_;
  bool done_ = false;
  double begin_s_ = 0, prefill_end_s_ = 0;
};

}  // namespace frugal::llm
