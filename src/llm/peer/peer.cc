#include "llm/peer/peer.h"

#include <llama.h>

#include <algorithm>

#include "base/clock.h"
#include "base/log.h"
#include "base/team.h"
#include "base/text.h"

namespace frugal::llm::peer {

namespace {

// llama.cpp logs to stderr by itself; what it says of errors goes to our sink, the rest nowhere.
void forward_log(ggml_log_level level, const char* text, void*) {
  if (level == GGML_LOG_LEVEL_ERROR)
    log(LogLevel::kDebug, std::string("llama.cpp: ") + std::string(trim(text)));
}

void start_backend() {
  static const bool started = [] {
    llama_log_set(forward_log, nullptr);
    llama_backend_init();
    return true;
  }();
  static_cast<void>(started);
}

struct CacheType {
  const char* name;
  ggml_type type;
};
constexpr CacheType kCacheTypes[] = {{"f32", GGML_TYPE_F32},
                                     {"f16", GGML_TYPE_F16},
                                     {"bf16", GGML_TYPE_BF16},
                                     {"q8_0", GGML_TYPE_Q8_0},
                                     {"q4_0", GGML_TYPE_Q4_0}};

const CacheType* find_cache_type(const std::string& name) {
  for (const CacheType& type : kCacheTypes) {
    if (name == type.name) return &type;
  }
  return nullptr;
}

struct ModelDeleter {
  void operator()(llama_model* model) const { llama_model_free(model); }
};
struct ContextDeleter {
  void operator()(llama_context* context) const { llama_free(context); }
};

class LlamaPeer final : public Peer {
 public:
  ~LlamaPeer() override { llama_batch_free(batch_); }

  Status start(const std::string& path, const PeerOptions& options) {
    start_backend();
    const double begin = wall_seconds();
    llama_model_params model_params = llama_model_default_params();
    model_params.n_gpu_layers = 0;
    model_params.use_extra_bufts = !options.exact_weights;
    model_.reset(llama_model_load_from_file(path.c_str(), model_params));
    if (!model_) return {ErrorCode::kCorrupt, "llama.cpp cannot load " + path};
    llama_context_params params = llama_context_default_params();
    params.n_ctx = static_cast<uint32_t>(options.n_ctx);
    params.n_seq_max = static_cast<uint32_t>(options.n_sequences);
    params.n_batch = static_cast<uint32_t>(std::min(options.n_ctx, 2048));
    params.n_ubatch = std::min(params.n_batch, 512u);  // both as llama.cpp's own default
    params.n_threads = params.n_threads_batch =
        options.n_threads > 0 ? options.n_threads : usable_processors();
    params.type_k = params.type_v = find_cache_type(options.cache)->type;
    params.flash_attn_type = options.flash_attention == FlashAttention::kAuto ? LLAMA_FLASH_ATTN_TYPE_AUTO
                             : options.flash_attention == FlashAttention::kOff
                                 ? LLAMA_FLASH_ATTN_TYPE_DISABLED
                                 : LLAMA_FLASH_ATTN_TYPE_ENABLED;
    if (options.rope_scale != 1) {
      params.rope_scaling_type = LLAMA_ROPE_SCALING_TYPE_LINEAR;
      params.rope_freq_scale = 1 / options.rope_scale;
    }
    params.no_perf = true;
    context_.reset(llama_init_from_model(model_.get(), params));
    if (!context_) {
      return {ErrorCode::kNoMemory,
              strf("llama.cpp cannot make a context of %d tokens for ", options.n_ctx) + path};
    }
    vocab_ = llama_model_get_vocab(model_.get());
    n_ctx_ = options.n_ctx;
    positions_.assign(static_cast<size_t>(options.n_sequences), 0);
    n_batch_ = static_cast<int>(params.n_batch);
    batch_ = llama_batch_init(n_batch_, 0, 1);
    load_seconds_ = wall_seconds() - begin;
    return {};
  }

  Status forward(std::span<const Token> tokens) override {
    return run(
        tokens, [this, n = tokens.size()](size_t i) { return i + 1 == n; }, [](size_t, int) {});
  }

  Status forward_all(std::span<const Token> tokens,
                     const std::function<void(size_t, std::span<const float>)>& row) override {
    return run(
        tokens, [](size_t) { return true; },
        [&](size_t i, int batch_row) {
          row(i, {llama_get_logits_ith(context_.get(), batch_row), static_cast<size_t>(n_vocab())});
        });
  }

  Status prefill_sequence(int sequence, std::span<const Token> tokens) override {
    batch_.n_tokens = 0;
    for (const Token token : tokens) push(token, sequence, false);
    return decode();
  }
  Status step_sequences(std::span<const Token> next) override {
    batch_.n_tokens = 0;
    for (size_t i = 0; i < next.size(); ++i) push(next[i], static_cast<int>(i), true);
    return decode();
  }

  std::span<const float> logits() const override {
    return {llama_get_logits_ith(context_.get(), -1), static_cast<size_t>(n_vocab())};
  }

  void truncate(int n_past) override {
    llama_memory_seq_rm(llama_get_memory(context_.get()), 0, n_past, -1);
    n_past_ = std::min(n_past_, n_past);
  }
  int n_past() const override { return n_past_; }
  Status save(const std::string& path, std::span<const Token> tokens) const override {
    const size_t n = llama_state_seq_save_file(context_.get(), path.c_str(), 0, tokens.data(), tokens.size());
    return n > 0 ? Status{} : Status{ErrorCode::kIo, "llama.cpp could not write '" + path + "'"};
  }
  Result<std::vector<Token>> restore(const std::string& path) override {
    std::vector<Token> tokens(static_cast<size_t>(n_ctx_));
    size_t n = 0;
    if (llama_state_seq_load_file(context_.get(), path.c_str(), 0, tokens.data(), tokens.size(), &n) == 0)
      return Error{ErrorCode::kCorrupt, "llama.cpp cannot take up '" + path + "': remove it"};
    tokens.resize(n);
    n_past_ = static_cast<int>(n);
    return tokens;
  }

  std::vector<Token> encode(const std::string& text, bool add_special) const override {
    std::vector<Token> tokens(text.size() + 8);
    const auto size = static_cast<int32_t>(text.size());
    int32_t n = llama_tokenize(vocab_, text.data(), size, tokens.data(), static_cast<int32_t>(tokens.size()),
                               add_special, false);
    if (n < 0) {
      tokens.resize(static_cast<size_t>(-n));
      n = llama_tokenize(vocab_, text.data(), size, tokens.data(), -n, add_special, false);
    }
    tokens.resize(static_cast<size_t>(n));
    return tokens;
  }
  int n_vocab() const override { return llama_vocab_n_tokens(vocab_); }
  double load_seconds() const override { return load_seconds_; }

 private:
  void push(Token token, int sequence, bool logits) {
    const auto i = static_cast<size_t>(batch_.n_tokens++);
    batch_.token[i] = token;
    batch_.pos[i] = positions_[static_cast<size_t>(sequence)]++;
    batch_.n_seq_id[i] = 1;
    batch_.seq_id[i][0] = sequence;
    batch_.logits[i] = logits ? 1 : 0;
  }
  Status decode() {
    const int rc = llama_decode(context_.get(), batch_);
    return rc == 0 ? Status{} : Status{ErrorCode::kUnavailable, strf("llama_decode returned %d", rc)};
  }

  // Runs `tokens` in batches; `wants(i)` tells whether token i gets logits, `done(i, row)` is called for
  // those that do.
  template <typename Wants, typename Done>
  Status run(std::span<const Token> tokens, Wants wants, Done done) {
    if (n_past_ + static_cast<int>(tokens.size()) > n_ctx_) {
      return {ErrorCode::kOutOfRange,
              strf("%d + %zu tokens do not fit the peer's context of %d", n_past_, tokens.size(), n_ctx_)};
    }
    for (const Token token : tokens) {
      if (token < 0 || token >= n_vocab()) {
        return {ErrorCode::kInvalidArgument, strf("token %d is not in the peer's vocabulary", token)};
      }
    }
    for (size_t begin = 0; begin < tokens.size(); begin += static_cast<size_t>(n_batch_)) {
      const size_t n = std::min(tokens.size() - begin, static_cast<size_t>(n_batch_));
      batch_.n_tokens = static_cast<int32_t>(n);
      for (size_t i = 0; i < n; ++i) {
        batch_.token[i] = tokens[begin + i];
        batch_.pos[i] = n_past_ + static_cast<int>(i);
        batch_.n_seq_id[i] = 1;
        batch_.seq_id[i][0] = 0;
        batch_.logits[i] = wants(begin + i) ? 1 : 0;
      }
      if (const int rc = llama_decode(context_.get(), batch_); rc != 0) {
        return {ErrorCode::kUnavailable, strf("llama_decode returned %d at token %d", rc, n_past_)};
      }
      n_past_ += static_cast<int>(n);
      for (size_t i = 0; i < n; ++i) {
        if (wants(begin + i)) done(begin + i, static_cast<int>(i));
      }
    }
    return {};
  }

  std::unique_ptr<llama_model, ModelDeleter> model_;
  std::unique_ptr<llama_context, ContextDeleter> context_;
  const llama_vocab* vocab_ = nullptr;
  llama_batch batch_{};
  int n_ctx_ = 0, n_batch_ = 0, n_past_ = 0;
  std::vector<int> positions_;  // of prefill_sequence() and step_sequences()
  double load_seconds_ = 0;
};

}  // namespace

Result<std::unique_ptr<Peer>> Peer::load(const std::string& path, const PeerOptions& options) {
  if (options.n_ctx < 1 || options.n_threads < 0) {
    return {ErrorCode::kInvalidArgument,
            strf("a peer with a context of %d tokens and %d threads", options.n_ctx, options.n_threads)};
  }
  if (find_cache_type(options.cache) == nullptr) {
    return {ErrorCode::kInvalidArgument, "llama.cpp has no cache of type '" + utf8_sanitized(options.cache) +
                                             "' here; there are f32, f16, bf16, q8_0, q4_0"};
  }
  auto peer = std::make_unique<LlamaPeer>();
  FRUGAL_TRY_STATUS(peer->start(path, options));
  return std::unique_ptr<Peer>(std::move(peer));
}

Status requantize(const std::string& in, const std::string& out, const std::string& type) {
  llama_model_quantize_params params = llama_model_quantize_default_params();
  params.allow_requantize = true;
  if (type == "q4_0") {
    params.ftype = LLAMA_FTYPE_MOSTLY_Q4_0;
  } else if (type == "q4_1") {
    params.ftype = LLAMA_FTYPE_MOSTLY_Q4_1;
  } else if (type == "q4_k") {
    params.ftype = LLAMA_FTYPE_MOSTLY_Q4_K_M;
  } else if (type == "q8_0") {
    params.ftype = LLAMA_FTYPE_MOSTLY_Q8_0;
  } else if (type == "f16") {
    params.ftype = LLAMA_FTYPE_MOSTLY_F16;
  } else {
    return {ErrorCode::kInvalidArgument,
            "unknown weight type '" + utf8_sanitized(type) + "'; there are q4_0, q4_1, q4_k, q8_0, f16"};
  }
  start_backend();
  if (llama_model_quantize(in.c_str(), out.c_str(), &params) != 0)
    return {ErrorCode::kIo,
            strf("llama.cpp could not write '%s' as %s to '%s'", in.c_str(), type.c_str(), out.c_str())};
  return {};
}

bool needs_flash_attention(const std::string& cache) {
  const CacheType* type = find_cache_type(cache);
  return type != nullptr && ggml_is_quantized(type->type);
}

std::string description() {
  start_backend();
  return std::string("llama.cpp ") + llama_version() + " (" + std::string(trim(llama_print_system_info())) +
         ")";
}

}  // namespace frugal::llm::peer
