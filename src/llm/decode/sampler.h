// Sampler: picks the next token from a row of logits.
//
// The stages run in the order of llama.cpp's default chain, on the tokens that the stage before has left:
//
//   1. penalties    over the last `penalty_last_n` tokens, prompt included
//   2. top-k        the k largest logits
//   3. top-p        the smallest set of largest probabilities that sums to at least p (Holtzman et al. 2020)
//   4. min-p        probabilities of at least p times the largest (Nguyen et al. 2024)
//   5. temperature  logits divided by it
//   6. draw         one uniform number against the cumulative probabilities
//
// Temperature 0 is greedy: stage 1, then the largest logit. Equal logits rank by token id, lower first.
//
// The same logits, options, seed and history give the same token on every platform: the generator is
// base/rng.h, exponentials are computed with additions and products alone, in double, and every sum has one
// order.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/rng.h"
#include "frugal/llm.h"

namespace frugal::llm {

struct SamplerOptions {
  float temperature = 0;  // >= 0; 0 = greedy
  int top_k = 40;         // >= 0; 0 = off
  float top_p = 0.95f;    // (0, 1]; 1 = off
  float min_p = 0.05f;    // [0, 1]; 0 = off
  float repeat_penalty =
      1;  // [0.01, 100]; divides positive logits of seen tokens, multiplies others; 1 = off
  float frequency_penalty = 0;  // [-100, 100]; subtracted once for each time that a token was seen; 0 = off
  float presence_penalty = 0;   // [-100, 100]; subtracted from the logits of all seen tokens; 0 = off
  int penalty_last_n = 64;      // [0, 65536]; how many of the last tokens count as seen; 0 = no penalties
  uint64_t seed = 0;            // of the draws

  bool greedy() const { return temperature == 0; }
  bool penalises() const {
    return penalty_last_n > 0 && (repeat_penalty != 1 || frequency_penalty != 0 || presence_penalty != 0);
  }
};

// kInvalidArgument, naming the option, its value and its range.
Status validate(const SamplerOptions& options);

// The state of one sequence: penalty window and generator. Copyable. Not thread-safe.
class Sampler {
 public:
  // kInvalidArgument. `n_vocab` >= 1 is the length of every row of logits to come.
  static Result<Sampler> create(const SamplerOptions& options, int n_vocab);

  // The next token. Does not accept it. kCorrupt when the row holds a NaN or +infinity, or nothing but
  // -infinity: the model or its file is broken, and every token would be noise. kInvalidArgument when the row
  // has another length. Allocates nothing. O(n_vocab).
  Result<Token> sample(std::span<const float> logits);

  // Counts `token` as seen, for the penalties. Call it for the tokens of the prompt too. Allocates nothing.
  void accept(Token token);

  // Forgets the tokens seen and starts the generator again from the seed.
  void reset();

  const SamplerOptions& options() const { return options_; }

 private:
  struct Candidate {
    float logit;
    Token id;
  };

  Sampler(const SamplerOptions& options, int n_vocab);
  Status check(std::span<const float> logits) const;
  std::span<const float> penalised(std::span<const float> logits);
  void keep_top_k(std::span<const float> logits);
  void keep_top_p();
  void keep_min_p();
  Token draw();
  static bool ranks_before(const Candidate& a, const Candidate& b);
  float largest_logit() const;

  SamplerOptions options_;
  int n_vocab_;
  Rng rng_;
  std::vector<Candidate> candidates_;  // reserved [n_vocab]
  size_t n_sorted_ = 0;  // this many of candidates_, from the first, are in rank order and lead the rest
  std::vector<double> weights_;   // reserved [n_vocab]
  std::vector<float> penalised_;  // [n_vocab] when penalties are on
  std::vector<Token> window_;     // ring [penalty_last_n] of the tokens seen
  std::vector<int> seen_;         // [n_vocab] times that a token stands in the window
  size_t window_next_ = 0, window_size_ = 0;
};

// The token of the largest logit, the first of equals; -1 when the row holds a NaN.
Token likeliest_token(std::span<const float> logits);

// e^x for x <= 0, the same bits wherever IEEE doubles are; relative error below 1e-15. 0 below -708.
double portable_exp(double x);

}  // namespace frugal::llm
