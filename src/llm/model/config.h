// ModelConfig: what the metadata of a GGUF file says about the network, checked.
#pragma once

#include <string>
#include <vector>

#include "frugal/result.h"
#include "llm/model/gguf.h"

namespace frugal::llm {

// Which channels of a head form the pairs that RoPE rotates.
enum class RopeLayout {
  kInterleaved,  // (0, 1), (2, 3), ...: llama
  kHalves,       // (i, i + n_rot / 2): qwen2, qwen3, gemma3
};

// Rotary embedding: angle of pair i at position p is p * base^(-2i / n_rot), stretched for longer contexts.
struct RopeConfig {
  float base = 10000;
  float scale = 1;  // of positions: 1 / context extension factor
  // YaRN (Peng et al. 2023): 0 = off (linear scaling), 1 = on.
  float yarn_mix = 0;
  float magnitude = 1;  // of cos and sin
  float ramp_low = 0,
        ramp_high = 0;  // pairs between which YaRN goes over from extrapolation to interpolation
};

enum class Activation { kSilu, kGelu };

struct ModelConfig {
  std::string architecture, name;
  int n_layers = 0;
  int n_embd = 0;
  int n_heads = 0;
  int n_kv_heads = 0;
  int head_dim = 0;
  int n_ff = 0;
  int n_vocab = 0;
  int n_ctx_train = 0;
  int n_rot = 0;  // channels of a head that RoPE turns
  RopeLayout rope_layout = RopeLayout::kInterleaved;
  RopeConfig rope;         // of layers that see everything
  RopeConfig rope_window;  // of windowed layers
  float norm_eps = 1e-5f;
  float attention_scale = 0;
  float embedding_scale = 1;
  int sliding_window = 0;               // 0 = none
  std::vector<bool> layer_is_windowed;  // [n_layers]
  Activation activation = Activation::kSilu;
  float final_logit_softcap = 0;  // 0 = off

  int group() const { return n_heads / n_kv_heads; }
  int window_of(int layer) const {
    return layer_is_windowed[static_cast<size_t>(layer)] ? sliding_window : 0;
  }
};

// kUnsupported for architectures and features that frugal does not run, kCorrupt for sizes that contradict
// each other; the message names the key.
Result<ModelConfig> parse_model_config(const GgufFile& file);

}  // namespace frugal::llm
