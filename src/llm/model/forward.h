// The forward pass over a ragged batch, and the memory that it works in.
#pragma once

#include <span>
#include <vector>

#include "base/team.h"
#include "llm/model/batch_attention.h"
#include "llm/model/weights.h"

namespace frugal::llm {

// A batch as the forward pass sees it. Rows of a span stand together.
struct Batch {
  std::span<const BatchSpan> spans;
  std::span<const Token> tokens;    // [n_rows]
  std::span<const int> logit_rows;  // rows whose logits are wanted, ascending
  StepTimes* times = nullptr;       // if given, the seconds of each step are added here
};

// All scratch memory of a forward pass, taken once for the largest batch.
class ForwardScratch {
 public:
  static Result<ForwardScratch> allocate(const ModelConfig& config, int max_rows, int max_logit_rows,
                                         int n_ctx, int n_threads);

  const float* logits(int idx) const {
    return logits_.as<float>() + static_cast<size_t>(idx) * logit_stride_;
  }

 private:
  friend class ForwardPass;
  Activations x_, attn_, ffn_;  // inputs of the products: normed residual, attention output, gated hidden
  Buffer residual_, q_, k_, v_, up_, projected_, logits_;
  Buffer angles_, angles_window_;  // [max_rows, n_rot]: cos and sin of each pair, by kind of layer
  AttentionScratch attention_;
  size_t hidden_stride_ = 0, q_stride_ = 0, kv_stride_ = 0, up_stride_ = 0, logit_stride_ = 0;
};

// Radians that each pair of a layer's keys turns by from a position to the next: [n_rot / 2].
std::vector<float> rope_turns(const ModelConfig& config, const ModelWeights& weights, int layer);

// Computes the batch: stores K/V of every row in its cache and leaves logits in the scratch. Allocates
// nothing.
void run_forward(ThreadTeam& team, const ModelConfig& config, const ModelWeights& weights, const Batch& batch,
                 ForwardScratch& scratch);

}  // namespace frugal::llm
