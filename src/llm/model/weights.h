// The weights of a model, repacked for the kernels (llm/tensor/matrix.h).
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "frugal/llm.h"
#include "llm/model/config.h"
#include "llm/tensor/matrix.h"

namespace frugal::llm {

struct LayerWeights {
  std::vector<float> attn_norm, ffn_norm;            // [n_embd]
  std::vector<float> attn_post_norm, ffn_post_norm;  // [n_embd], gemma3; else empty
  std::vector<float> q_norm, k_norm;                 // [head_dim], qwen3 and gemma3; else empty
  Matrix wq, wk, wv;                                 // [n_heads * head_dim or n_kv_heads * head_dim, n_embd]
  Matrix wo;                                         // [n_embd, n_heads * head_dim]
  Matrix gate, up;                                   // [n_ff, n_embd]
  Matrix down;                                       // [n_embd, n_ff]
  std::vector<float> bq, bk, bv, bo, gate_bias, up_bias, down_bias;  // empty when the model has none
};

struct ModelWeights {
  Buffer arena;                     // the panels of all matrices, one after the other
  Matrix embedding;                 // [n_vocab, n_embd]
  Matrix output;                    // [n_vocab, n_embd]; empty when the embedding serves for it
  std::vector<float> output_norm;   // [n_embd]
  std::vector<float> rope_factors;  // [n_rot / 2] divisors of the angles; empty when the model has none
  std::vector<LayerWeights> layers;

  const Matrix& output_matrix() const { return output.empty() ? embedding : output; }
  uint64_t bytes() const;
};

// Whether `file` has every tensor of the network, of the right shape and a type that frugal computes with:
// what load_weights() would answer, without reading their data. kCorrupt, kUnsupported, kNoMemory.
Status check_weights(const GgufFile& file, const ModelConfig& config);

// Checks every tensor's type and shape first, then repacks on `n_threads` threads, giving pages of the
// mapping back as it goes: at no time are two copies of the weights in memory. kCorrupt, kUnsupported,
// kNoMemory, kCancelled.
Result<ModelWeights> load_weights(const GgufFile& file, const ModelConfig& config,
                                  const ModelOptions& options);

// Everything behind a Model.
struct ModelImpl {
  ModelInfo info;
  ModelConfig config;
  ModelWeights weights;
  std::unique_ptr<Tokenizer> tokenizer;
  ModelImpl();
  ~ModelImpl();
};

}  // namespace frugal::llm
