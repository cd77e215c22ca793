#include "llm/model/config.h"

#include <algorithm>
#include <cmath>

#include "base/text.h"

namespace frugal::llm {
namespace {

// Bounds that no real model exceeds and that keep every later product of sizes inside 63 bits.
constexpr uint32_t kMaxDim = 1 << 20;
constexpr uint32_t kMaxLayers = 1024;
constexpr uint32_t kMaxContext = 1 << 26;

Error corrupt(const GgufFile& file, const std::string& what) {
  return {ErrorCode::kCorrupt,
          strf("'%s': %s; the file is damaged or was converted wrongly", file.label().c_str(), what.c_str())};
}
Error unsupported(const GgufFile& file, const std::string& what) {
  return {ErrorCode::kUnsupported, strf("'%s': %s", file.label().c_str(), what.c_str())};
}

// Reads keys below the architecture's prefix.
class Reader {
 public:
  Reader(const GgufFile& file, std::string prefix) : file_(file), prefix_(std::move(prefix)) {}

  // A size that has to be there, in [1, limit].
  Result<int> size(const char* key, uint32_t limit) const {
    return checked(key, file_.require_u32(prefix_ + key), limit);
  }
  Result<int> size_or(const char* key, int missing, uint32_t limit) const {
    if (file_.find_value(prefix_ + key) == nullptr) return missing;
    return size(key, limit);
  }
  Result<float> number_or(const char* key, float missing) const {
    FRUGAL_TRY(const float value, file_.find_f32_or(prefix_ + key, missing));
    if (!std::isfinite(value)) return corrupt(file_, prefix_ + key + " is not a finite number");
    return value;
  }
  std::string key(const char* name) const { return prefix_ + name; }

 private:
  Result<int> checked(const char* key, Result<uint32_t> value, uint32_t limit) const {
    if (!value.ok()) return std::move(value).error();
    if (*value < 1 || *value > limit) {
      return corrupt(file_, strf("%s%s is %u, outside 1 to %u", prefix_.c_str(), key, *value, limit));
    }
    return static_cast<int>(*value);
  }

  const GgufFile& file_;
  std::string prefix_;
};

// Pair at which a wavelength turns `rotations` times within the original context (Peng et al. 2023,
// section 3.2).
float yarn_pair(int n_rot, int n_ctx_original, float rotations, float base) {
  return static_cast<float>(n_rot) *
         std::log(static_cast<float>(n_ctx_original) / (rotations * 2 * static_cast<float>(M_PI))) /
         (2 * std::log(base));
}

Status read_rope(const GgufFile& file, const Reader& reader, ModelConfig& config) {
  FRUGAL_TRY(config.rope.base, reader.number_or("rope.freq_base", 10000));
  if (config.rope.base <= 1) return corrupt(file, reader.key("rope.freq_base") + " is not above 1");
  FRUGAL_TRY(const std::string_view scaling, file.find_string_or(reader.key("rope.scaling.type"), "linear"));
  const char* factor_key =
      file.find_value(reader.key("rope.scaling.factor")) ? "rope.scaling.factor" : "rope.scale_linear";
  FRUGAL_TRY(const float factor, reader.number_or(factor_key, 0));
  if (factor < 0) return corrupt(file, reader.key(factor_key) + " is negative");
  if (scaling == "linear" || scaling == "yarn")
    config.rope.scale = factor == 0 ? 1 : 1 / factor;
  else if (scaling != "none") {
    return unsupported(file, strf("RoPE scaling '%s' is not supported (linear and yarn are)",
                                  utf8_sanitized(scaling).c_str()));
  }
  FRUGAL_TRY(const float attention_factor, reader.number_or("rope.scaling.attn_factor", 1));
  config.rope.magnitude = attention_factor;
  if (scaling == "yarn") {
    FRUGAL_TRY(const int original,
               reader.size_or("rope.scaling.original_context_length", config.n_ctx_train, kMaxContext));
    FRUGAL_TRY(const float beta_fast, reader.number_or("rope.scaling.yarn_beta_fast", 32));
    FRUGAL_TRY(const float beta_slow, reader.number_or("rope.scaling.yarn_beta_slow", 1));
    FRUGAL_TRY(config.rope.yarn_mix, reader.number_or("rope.scaling.yarn_ext_factor", 1));
    config.rope.ramp_low =
        std::max(0.0f, std::floor(yarn_pair(config.n_rot, original, beta_fast, config.rope.base)));
    config.rope.ramp_high =
        std::min(static_cast<float>(config.n_rot - 1),
                 std::ceil(yarn_pair(config.n_rot, original, beta_slow, config.rope.base)));
    // Magnitude 1 + 0.1 ln(factor) (Peng et al. 2023, equation 22, as a temperature on cos and sin).
    if (config.rope.yarn_mix != 0) config.rope.magnitude *= 1 + 0.1f * std::log(1 / config.rope.scale);
  }
  return {};
}

Status read_window(const GgufFile& file, const Reader& reader, ModelConfig& config) {
  const auto n_layers = static_cast<size_t>(config.n_layers);
  config.layer_is_windowed.assign(n_layers, false);
  FRUGAL_TRY(const uint32_t window, file.find_u32_or(reader.key("attention.sliding_window"), 0));
  if (config.architecture != "gemma3" || window == 0) return {};
  if (window > kMaxContext) return corrupt(file, reader.key("attention.sliding_window") + " is too large");
  config.sliding_window = static_cast<int>(window);
  config.rope_window = {};
  FRUGAL_TRY(config.rope_window.base, reader.number_or("rope.freq_base_swa", 10000));
  const std::string key = reader.key("attention.sliding_window_pattern");
  const GgufValue* pattern = file.find_value(key);
  if (pattern != nullptr && pattern->type == GgufValueType::kArray) {
    FRUGAL_TRY(const std::vector<uint8_t> flags, file.require_array<uint8_t>(key));
    if (flags.size() < n_layers) return corrupt(file, key + " has fewer entries than the model has layers");
    for (size_t i = 0; i < n_layers; ++i) config.layer_is_windowed[i] = flags[i] != 0;
    return {};
  }
  FRUGAL_TRY(const uint32_t period, file.find_u32_or(key, 6));  // every sixth layer sees all
  for (size_t i = 0; i < n_layers; ++i) config.layer_is_windowed[i] = period == 0 || i % period + 1 < period;
  return {};
}

}  // namespace

Result<ModelConfig> parse_model_config(const GgufFile& file) {
  ModelConfig config;
  FRUGAL_TRY(const std::string_view architecture, file.require_string("general.architecture"));
  config.architecture = utf8_sanitized(architecture);
  const std::string& arch = config.architecture;
  if (arch != "llama" && arch != "qwen2" && arch != "qwen3" && arch != "gemma3") {
    return unsupported(file,
                       strf("architecture '%s' is not supported; frugal runs llama, qwen2, qwen3 and gemma3",
                            printable_name(arch).c_str()));
  }
  FRUGAL_TRY(const std::string_view name, file.find_string_or("general.name", ""));
  config.name = utf8_sanitized(name);
  const Reader reader(file, arch + ".");
  FRUGAL_TRY(const uint32_t n_experts, file.find_u32_or(reader.key("expert_count"), 0));
  if (n_experts > 0) return unsupported(file, "mixtures of experts are not supported");

  FRUGAL_TRY(config.n_layers, reader.size("block_count", kMaxLayers));
  FRUGAL_TRY(config.n_embd, reader.size("embedding_length", kMaxDim));
  FRUGAL_TRY(config.n_ctx_train, reader.size("context_length", kMaxContext));
  const auto n_layers = static_cast<size_t>(config.n_layers);
  // One value for all layers, or one each; frugal wants them equal.
  auto same_for_all = [&](const char* key, uint32_t limit) -> Result<int> {
    FRUGAL_TRY(const std::vector<uint32_t> each, file.require_u32_each(reader.key(key), n_layers));
    for (const uint32_t value : each) {
      if (value != each[0])
        return unsupported(file, reader.key(key) + " differs between layers, which is not supported");
      if (value < 1 || value > limit)
        return corrupt(file, strf("%s is %u, outside 1 to %u", reader.key(key).c_str(), value, limit));
    }
    return static_cast<int>(each[0]);
  };
  FRUGAL_TRY(config.n_heads, same_for_all("attention.head_count", 4096));
  FRUGAL_TRY(config.n_ff, same_for_all("feed_forward_length", kMaxDim));
  config.n_kv_heads = config.n_heads;
  if (file.find_value(reader.key("attention.head_count_kv")) != nullptr) {
    FRUGAL_TRY(config.n_kv_heads, same_for_all("attention.head_count_kv", 4096));
  }
  if (config.n_heads % config.n_kv_heads != 0) {
    return corrupt(file, strf("%d query heads are no multiple of %d key-value heads", config.n_heads,
                              config.n_kv_heads));
  }
  FRUGAL_TRY(config.head_dim,
             reader.size_or("attention.key_length", std::max(1, config.n_embd / config.n_heads), 4096));
  FRUGAL_TRY(const int value_dim,
             reader.size_or("attention.value_length", std::max(1, config.n_embd / config.n_heads), 4096));
  if (value_dim != config.head_dim)
    return unsupported(file, "heads whose keys and values differ in size are not supported");
  FRUGAL_TRY(config.n_rot, reader.size_or("rope.dimension_count", config.head_dim, 4096));
  if (config.n_rot > config.head_dim || config.n_rot % 2 != 0) {
    return corrupt(file, strf("%s is %d, which is odd or above the head size of %d",
                              reader.key("rope.dimension_count").c_str(), config.n_rot, config.head_dim));
  }
  FRUGAL_TRY(config.norm_eps, reader.number_or("attention.layer_norm_rms_epsilon", -1));
  if (config.norm_eps <= 0)
    return corrupt(file, reader.key("attention.layer_norm_rms_epsilon") + " is missing or not above 0");
  FRUGAL_TRY(config.final_logit_softcap, reader.number_or("final_logit_softcapping", 0));

  // Sizes that the tensors decide: rows of the embedding are the vocabulary.
  const GgufTensor* embedding = file.find_tensor("token_embd.weight");
  if (embedding == nullptr || embedding->shape.size() < 2 || embedding->shape[1] > (1u << 24)) {
    return corrupt(file, "tensor token_embd.weight is missing or has no sensible number of rows");
  }
  config.n_vocab = static_cast<int>(embedding->shape[1]);

  config.attention_scale = 1 / std::sqrt(static_cast<float>(config.head_dim));
  if (arch == "llama") {
    FRUGAL_TRY(const float scale, reader.number_or("attention.scale", 0));
    if (scale != 0) config.attention_scale = scale;
  } else {
    config.rope_layout = RopeLayout::kHalves;
  }
  if (arch == "gemma3") {
    config.activation = Activation::kGelu;
    config.embedding_scale = std::sqrt(static_cast<float>(config.n_embd));
    // The 27B model alone scales by its width over heads (gemma_pytorch, config of 27B).
    if (config.n_layers == 62)
      config.attention_scale = 1 / std::sqrt(static_cast<float>(config.n_embd / config.n_heads));
  }
  FRUGAL_TRY_STATUS(read_rope(file, reader, config));
  FRUGAL_TRY_STATUS(read_window(file, reader, config));
  return config;
}

}  // namespace frugal::llm
