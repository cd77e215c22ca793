// Tiny seeded models for tests: a GGUF file of any architecture and weight type that frugal runs, with a
// vocabulary that tokenizes text, small enough to make in milliseconds and lively enough that the next token
// depends on every part of the forward pass. llama.cpp loads them too: logits can be compared with it.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "frugal/result.h"
#include "llm/tensor/type.h"

namespace frugal::llm::test {

struct TinyModel {
  std::string architecture = "llama";  // "llama", "qwen2", "qwen3", "gemma3"
  // Of the matrices; norms and biases are F32. A matrix whose rows are no whole number of blocks becomes
  // Q8_0, or F16 when they are no multiple of 32 either, as llama.cpp's quantiser does it.
  TensorType weights = TensorType::kF32;
  uint64_t seed = 1;

  int n_layers = 2;
  int n_embd = 64;
  int n_heads = 4;
  int n_kv_heads = 2;
  int head_dim = 16;  // even; n_heads * head_dim need not be n_embd, but for qwen2 in llama.cpp
  int n_ff = 96;
  int n_vocab = 512;        // at least 300
  int n_ctx = 512;          // trained context
  bool tied_output = true;  // false: a matrix output.weight of its own

  float rope_freq_base = 10000;
  float rms_epsilon = 1e-5f;
  // gemma3: every `sliding_window_period`-th layer sees all positions, the others the last `sliding_window`,
  // with a rope base of their own. sliding_window 0: no such keys, every layer sees all.
  int sliding_window = 16;
  int sliding_window_period = 2;
  float rope_freq_base_swa = 1000;
  float final_logit_softcap = 0;  // gemma3; 0 = none

  std::string rope_scaling;       // "", "linear", "yarn"
  float rope_scaling_factor = 4;  // with rope_scaling
  bool rope_factors = false;      // llama: a rope_freqs.weight tensor, as of Llama 3.1
  uint32_t alignment = 32;        // of tensors in the file, at least 8
  std::string chat_template;      // "": one that fits the architecture
};

// The bytes of the file. The same model, seed included, gives the same bytes.
std::string tiny_gguf(const TinyModel& model);

// Writes it to `path`.
Status write_tiny_gguf(const TinyModel& model, const std::string& path);

// The architectures and weight types that frugal runs.
const std::vector<std::string>& tiny_architectures();
const std::vector<TensorType>& tiny_weight_types();

}  // namespace frugal::llm::test
