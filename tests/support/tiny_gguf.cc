#include "support/tiny_gguf.h"

#include <cmath>

#include <ggml.h>

#include "base/check.h"
#include "base/file.h"
#include "base/rng.h"
#include "support/gguf_bytes.h"
#include "support/tiny_vocab.h"

namespace frugal::llm::test {
namespace {

constexpr const char* kChatMl =
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + "
    "'\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
constexpr const char* kGemma =
    "{{ bos_token }}{% for message in messages %}{{ '<start_of_turn>' + message['role'] + '\n' + "
    "message['content'] + "
    "'<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}";
constexpr const char* kLlama2 =
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + "
    "message['content'] + ' "
    "[/INST]' }}{% else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}";

class Writer {
 public:
  explicit Writer(const TinyModel& model) : model_(model), rng_(model.seed) {}

  std::string build() {
    const bool gemma = model_.architecture == "gemma3";
    const bool qwen = model_.architecture.starts_with("qwen");
    add_metadata(gemma, qwen);
    const auto d = static_cast<uint64_t>(model_.n_embd);
    const auto n_vocab = static_cast<uint64_t>(model_.n_vocab);
    // After the last norm a row has an RMS of about 1, so logits get a standard deviation of `kLogitSpread`.
    const double logit_std = kLogitSpread / std::sqrt(static_cast<double>(d));
    matrix("token_embd.weight", d, n_vocab, model_.tied_output ? logit_std : 1.0);
    norm("output_norm.weight", d);
    if (!model_.tied_output) matrix("output.weight", d, n_vocab, logit_std);
    if (model_.rope_factors) add_rope_factors();
    for (int layer = 0; layer < model_.n_layers; ++layer) add_layer(layer, gemma);
    return file_.build();
  }

 private:
  // Wide enough that the best token stands out, narrow enough that others matter.
  static constexpr double kLogitSpread = 2.5;

  std::string key(const char* name) const { return model_.architecture + "." + name; }

  void add_metadata(bool gemma, bool qwen) {
    const auto u32 = [&](const char* name, int value) { file_.u32(key(name), static_cast<uint32_t>(value)); };
    if (model_.alignment != 32) file_.u32("general.alignment", file_.alignment = model_.alignment);
    file_.text("general.architecture", model_.architecture)
        .text("general.name", "tiny " + model_.architecture);
    u32("block_count", model_.n_layers);
    u32("context_length", model_.n_ctx);
    u32("embedding_length", model_.n_embd);
    u32("feed_forward_length", model_.n_ff);
    u32("attention.head_count", model_.n_heads);
    u32("attention.head_count_kv", model_.n_kv_heads);
    u32("attention.key_length", model_.head_dim);
    u32("attention.value_length", model_.head_dim);
    if (model_.architecture == "llama") {
      u32("rope.dimension_count", model_.head_dim);
      u32("vocab_size", model_.n_vocab);
    }
    file_.f32(key("attention.layer_norm_rms_epsilon"), model_.rms_epsilon);
    file_.f32(key("rope.freq_base"), model_.rope_freq_base);
    if (!model_.rope_scaling.empty()) {
      file_.text(key("rope.scaling.type"), model_.rope_scaling);
      file_.f32(key("rope.scaling.factor"), model_.rope_scaling_factor);
      if (model_.rope_scaling == "yarn") u32("rope.scaling.original_context_length", model_.n_ctx / 4);
    }
    if (gemma && model_.sliding_window > 0) {
      u32("attention.sliding_window", model_.sliding_window);
      u32("attention.sliding_window_pattern", model_.sliding_window_period);
      file_.f32(key("rope.freq_base_swa"), model_.rope_freq_base_swa);
    }
    if (gemma && model_.final_logit_softcap > 0) {
      file_.f32(key("final_logit_softcapping"), model_.final_logit_softcap);
    }
    add_tiny_vocab(&file_,
                   gemma  ? TinyVocab::kGemma
                   : qwen ? TinyVocab::kQwen
                          : TinyVocab::kLlama,
                   model_.n_vocab);
    const char* fitting = gemma ? kGemma : qwen ? kChatMl : kLlama2;
    file_.text("tokenizer.chat_template", model_.chat_template.empty() ? fitting : model_.chat_template);
  }

  void add_layer(int layer, bool gemma) {
    const std::string prefix = "blk." + std::to_string(layer) + ".";
    const auto d = static_cast<uint64_t>(model_.n_embd), ff = static_cast<uint64_t>(model_.n_ff);
    const auto q = static_cast<uint64_t>(model_.n_heads * model_.head_dim);
    const auto kv = static_cast<uint64_t>(model_.n_kv_heads * model_.head_dim);
    const auto gain = [](uint64_t n_in, double scale) {
      return scale / std::sqrt(static_cast<double>(n_in));
    };
    norm(prefix + "attn_norm.weight", d);
    // Queries and keys a little large: attention that is nearly uniform would hide errors in rope and masks.
    matrix(prefix + "attn_q.weight", d, q, gain(d, 1.5));
    matrix(prefix + "attn_k.weight", d, kv, gain(d, 1.5));
    matrix(prefix + "attn_v.weight", d, kv, gain(d, 1));
    matrix(prefix + "attn_output.weight", q, d, gain(q, 1));
    if (model_.architecture == "qwen2") {
      vector(prefix + "attn_q.bias", q, 0, 0.5);
      vector(prefix + "attn_k.bias", kv, 0, 0.5);
      vector(prefix + "attn_v.bias", kv, 0, 0.5);
    }
    if (gemma || model_.architecture == "qwen3") {
      norm(prefix + "attn_q_norm.weight", static_cast<uint64_t>(model_.head_dim));
      norm(prefix + "attn_k_norm.weight", static_cast<uint64_t>(model_.head_dim));
    }
    if (gemma) norm(prefix + "post_attention_norm.weight", d);
    norm(prefix + "ffn_norm.weight", d);
    matrix(prefix + "ffn_gate.weight", d, ff, gain(d, 1));
    matrix(prefix + "ffn_up.weight", d, ff, gain(d, 1));
    matrix(prefix + "ffn_down.weight", ff, d, gain(ff, 2));  // the gate halves the spread
    if (gemma) norm(prefix + "post_ffw_norm.weight", d);
  }

  // Llama 3.1 divides slow rotations by up to 8 and leaves fast ones alone.
  void add_rope_factors() {
    std::vector<float> factors(static_cast<size_t>(model_.head_dim / 2));
    for (size_t i = 0; i < factors.size(); ++i) {
      factors[i] = 1 + 7 * static_cast<float>(i) / static_cast<float>(factors.size());
    }
    add_f32("rope_freqs.weight", {factors.size()}, factors);
  }

  void norm(const std::string& name, uint64_t size) { vector(name, size, 1, 0.2); }

  void vector(const std::string& name, uint64_t size, double mean, double deviation) {
    add_f32(name, {size}, random(size, mean, deviation));
  }

  std::vector<float> random(uint64_t count, double mean, double deviation) {
    std::vector<float> values(count);
    for (float& value : values) value = static_cast<float>(mean + deviation * rng_.normal());
    return values;
  }

  void add_f32(const std::string& name, std::vector<uint64_t> shape, const std::vector<float>& values) {
    const auto bytes = std::as_bytes(std::span(values));
    file_.tensor(name, std::move(shape), TensorType::kF32,
                 {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  }

  // [n_rows x n_cols], n_cols being the row length.
  void matrix(const std::string& name, uint64_t n_cols, uint64_t n_rows, double deviation) {
    const std::vector<float> values = random(n_cols * n_rows, 0, deviation);
    TensorType type = model_.weights;
    const auto divides = [&](TensorType t) {
      return n_cols % static_cast<uint64_t>(type_layout(t)->block_size) == 0;
    };
    if (!divides(type)) type = divides(TensorType::kQ8_0) ? TensorType::kQ8_0 : TensorType::kF16;
    if (type == TensorType::kF32) return add_f32(name, {n_cols, n_rows}, values);
    const auto layout = *type_layout(type);
    std::string packed(n_rows * n_cols / static_cast<uint64_t>(layout.block_size) *
                           static_cast<uint64_t>(layout.block_bytes),
                       '\0');
    const size_t written =
        ggml_quantize_chunk(static_cast<ggml_type>(type), values.data(), packed.data(), 0,
                            static_cast<int64_t>(n_rows), static_cast<int64_t>(n_cols), nullptr);
    FRUGAL_CHECK(written == packed.size());
    file_.tensor(name, {n_cols, n_rows}, type, packed);
  }

  const TinyModel& model_;
  Rng rng_;
  GgufBuilder file_;
};

}  // namespace

std::string tiny_gguf(const TinyModel& model) { return Writer(model).build(); }

Status write_tiny_gguf(const TinyModel& model, const std::string& path) {
  return write_file_atomically(path, tiny_gguf(model));
}

const std::vector<std::string>& tiny_architectures() {
  static const std::vector<std::string> kAll = {"llama", "qwen2", "qwen3", "gemma3"};
  return kAll;
}

const std::vector<TensorType>& tiny_weight_types() {
  static const std::vector<TensorType> kAll = {
      TensorType::kF32,  TensorType::kF16,  TensorType::kBF16, TensorType::kQ8_0, TensorType::kQ4_0,
      TensorType::kQ4_1, TensorType::kQ5_0, TensorType::kQ4_K, TensorType::kQ5_K, TensorType::kQ6_K};
  return kAll;
}

}  // namespace frugal::llm::test
