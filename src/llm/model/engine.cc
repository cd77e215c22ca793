// Engine: sequences, their caches, and the checks that stand before every forward pass.
#include <algorithm>
#include <cstring>
#include <vector>

#include "base/clock.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/team.h"
#include "base/text.h"
#include "frugal/llm.h"
#include "llm/kv/kv_cache.h"
#include "llm/model/forward.h"
#include "llm/model/weights.h"

namespace frugal::llm {
namespace {

constexpr int kMaxThreads = 256;

Error invalid(std::string message) { return {ErrorCode::kInvalidArgument, std::move(message)}; }

// The head of a cache file; layout in docs/formats/cache.md. Little-endian, like everything frugal writes.
struct CacheFileHead {
  char magic[8];
  uint32_t version;
  uint32_t format;
  uint64_t model_hash;
  uint32_t n_layers, n_kv_heads, head_dim, n_tokens;
  uint64_t image_bytes;
  uint64_t source_hash;  // of the dictionary; 0 without one
  uint64_t checksum;     // of tokens and image
};
constexpr char kCacheMagic[8] = {'F', 'R', 'G', 'L', 'K', 'V', 'C', '\n'};
constexpr uint32_t kCacheVersion = 2;

class EngineImpl final : public Engine {
 public:
  EngineImpl(std::shared_ptr<const Model> model, const EngineOptions& options)
      : model_(std::move(model)),
        options_(options),
        team_(options.n_threads),
        sequences_(static_cast<size_t>(options.max_sequences)) {
    options_.n_threads = team_.size();  // fewer when the host refuses threads
    tokens_.reserve(static_cast<size_t>(options_.max_rows));
    spans_.reserve(sequences_.size());
    logit_rows_.reserve(static_cast<size_t>(options_.max_logit_rows));
  }

  Status reserve() {
    FRUGAL_TRY(scratch_, ForwardScratch::allocate(config(), options_.max_rows, options_.max_logit_rows,
                                                  options_.n_ctx, team_.size()));
    return {};
  }

  const Model& model() const override { return *model_; }
  const EngineOptions& options() const override { return options_; }

  Result<SequenceId> open_sequence() override {
    for (size_t i = 0; i < sequences_.size(); ++i) {
      Sequence& sequence = sequences_[i];
      if (sequence.open) continue;
      if (sequence.cache == nullptr) {
        if (options_.kv_source != nullptr) {
          FRUGAL_TRY(sequence.cache, options_.kv_source->make(shape()));
        } else {
          FRUGAL_TRY(sequence.cache, make_kv_cache(options_.kv, shape()));
        }
        sequence.tokens.reserve(static_cast<size_t>(options_.n_ctx));
      }
      sequence.open = true;
      sequence.tokens.clear();
      return static_cast<SequenceId>(i);
    }
    return Error{
        ErrorCode::kOutOfRange,
        strf("%d sequences are open already; close one or raise max_sequences", options_.max_sequences)};
  }

  void close_sequence(SequenceId id) override {
    if (Sequence* sequence = find(id)) {
      sequence->open = false;
      sequence->cache.reset();
    }
  }

  int n_past(SequenceId id) const override {
    const Sequence* sequence = find(id);
    return sequence == nullptr ? 0 : static_cast<int>(sequence->tokens.size());
  }
  std::span<const Token> tokens(SequenceId id) const override {
    const Sequence* sequence = find(id);
    return sequence == nullptr ? std::span<const Token>() : std::span<const Token>(sequence->tokens);
  }

  Status truncate(SequenceId id, int n_past) override {
    Sequence* sequence = find(id);
    if (sequence == nullptr) return not_open(id);
    if (n_past < 0 || n_past > static_cast<int>(sequence->tokens.size())) {
      return invalid(strf("cannot truncate a sequence of %zu tokens to %d", sequence->tokens.size(), n_past));
    }
    const int held = static_cast<int>(sequence->tokens.size());
    if (sequence->cache->can_rewind(held, n_past)) {
      sequence->tokens.resize(static_cast<size_t>(n_past));
      return {};
    }
    // The whole forms of the tokens before n_past are gone: compute them again.
    std::vector<Token> kept(sequence->tokens.begin(), sequence->tokens.begin() + n_past);
    sequence->tokens.clear();
    for (size_t done = 0; done < kept.size();) {
      const size_t n = std::min(kept.size() - done, static_cast<size_t>(options_.max_rows));
      const BatchItem item{id, std::span<const Token>(kept).subspan(done, n), LogitRows::kNone};
      FRUGAL_TRY_STATUS(forward({&item, 1}));
      done += n;
    }
    return {};
  }

  Status forward(std::span<const BatchItem> items) override {
    const double wall = wall_seconds(), cpu = process_cpu_seconds();
    FRUGAL_TRY_STATUS(assemble(items));
    run_forward(team_, config(), model_->impl().weights,
                Batch{spans_, tokens_, logit_rows_, options_.profile ? &step_times_ : nullptr}, scratch_);
    n_logit_rows_ = static_cast<int>(logit_rows_.size());
    for (const BatchItem& item : items) {
      std::vector<Token>& held = find(item.sequence)->tokens;
      held.insert(held.end(), item.tokens.begin(), item.tokens.end());
    }
    account();
    usage_.wall_seconds += wall_seconds() - wall;
    usage_.cpu_seconds += process_cpu_seconds() - cpu;
    return {};
  }

  std::span<const float> logits(int row) const override {
    if (row < 0 || row >= n_logit_rows_) return {};
    return {scratch_.logits(row), static_cast<size_t>(config().n_vocab)};
  }
  int n_logit_rows() const override { return n_logit_rows_; }

  Status prefill(SequenceId id, std::span<const Token> tokens,
                 const std::function<bool(int, int)>& progress) override {
    const int total = static_cast<int>(tokens.size());
    for (int done = 0; done < total;) {
      const int n = std::min(options_.max_rows, total - done);
      const bool last = done + n == total;
      const BatchItem item{id, tokens.subspan(static_cast<size_t>(done), static_cast<size_t>(n)),
                           last ? LogitRows::kLast : LogitRows::kNone};
      if (done == 0) FRUGAL_TRY_STATUS(check_room(id, total));  // refuse at once what cannot end well
      FRUGAL_TRY_STATUS(forward({&item, 1}));
      done += n;
      if (progress && !progress(done, total) && !last)
        return Error{ErrorCode::kCancelled, strf("stopped after %d of %d prompt tokens", done, total)};
    }
    return {};
  }

  Status save_sequence(SequenceId id, const std::string& path) const override {
    const Sequence* sequence = find(id);
    if (sequence == nullptr) return not_open(id);
    const int n = static_cast<int>(sequence->tokens.size());
    const auto token_bytes = std::as_bytes(std::span(sequence->tokens));
    FRUGAL_TRY(Buffer image, Buffer::allocate(std::max<size_t>(1, sequence->cache->save_bytes(n))));
    sequence->cache->save(n, image.data());
    CacheFileHead head = expected_head(n, sequence->cache->save_bytes(n));
    head.checksum = checksum(token_bytes, {image.data(), static_cast<size_t>(head.image_bytes)});
    FRUGAL_TRY(AtomicFileWriter writer, AtomicFileWriter::create(path));
    FRUGAL_TRY_STATUS(writer.write(&head, sizeof head));
    FRUGAL_TRY_STATUS(writer.write(token_bytes.data(), token_bytes.size()));
    FRUGAL_TRY_STATUS(writer.write(image.data(), static_cast<size_t>(head.image_bytes)));
    return writer.commit();
  }

  Result<SequenceId> load_sequence(const std::string& path) override {
    FRUGAL_TRY(const MappedFile file, MappedFile::open(path));
    const auto bytes = file.bytes();
    auto corrupt = [&](const char* what) {
      return Error{ErrorCode::kCorrupt, strf("cache file '%s' %s", path.c_str(), what)};
    };
    CacheFileHead head;
    if (bytes.size() < sizeof head) return corrupt("is too short to be one");
    std::memcpy(&head, bytes.data(), sizeof head);
    if (std::memcmp(head.magic, kCacheMagic, sizeof kCacheMagic) != 0)
      return corrupt("is not a frugal cache file");
    if (head.version != kCacheVersion) {
      return Error{ErrorCode::kUnsupported,
                   strf("cache file '%s' has version %u, and this frugal reads version %u; write it again",
                        path.c_str(), head.version, kCacheVersion)};
    }
    if (head.model_hash != model_->info().file_hash) {
      return invalid(
          strf("cache file '%s' belongs to another model (hash %016llx, not %016llx); load it with that "
               "model or write it again",
               path.c_str(), static_cast<unsigned long long>(head.model_hash),
               static_cast<unsigned long long>(model_->info().file_hash)));
    }
    const CacheFileHead wanted = expected_head(0, 0);
    if (head.format != wanted.format) {
      const std::string_view have = head.format <= static_cast<uint32_t>(KvFormat::kCsr)
                                        ? kv_format_name(static_cast<KvFormat>(head.format))
                                        : "unknown";
      return invalid(
          strf("cache file '%s' holds a %s cache, and this engine has a %s one; choose the same --kv",
               path.c_str(), std::string(have).c_str(), std::string(kv_format_name(options_.kv)).c_str()));
    }
    if (head.source_hash != wanted.source_hash) {
      return invalid(strf(
          "cache file '%s' was coded with another dictionary or recipe than %s; choose the same --kv, or "
          "write it again",
          path.c_str(), options_.kv_source ? options_.kv_source->name().c_str() : "none"));
    }
    if (head.n_tokens > static_cast<uint32_t>(options_.n_ctx)) {
      return Error{ErrorCode::kOutOfRange,
                   strf("cache file '%s' holds %u tokens, and the context is %d; raise --ctx", path.c_str(),
                        head.n_tokens, options_.n_ctx)};
    }
    const int n = static_cast<int>(head.n_tokens);
    FRUGAL_TRY(const SequenceId id, open_sequence());
    Sequence& sequence = *find(id);
    auto fail = [&](Error error) {
      close_sequence(id);
      return error;
    };
    const uint64_t image_bytes = sequence.cache->save_bytes(n);
    if (head.n_layers != static_cast<uint32_t>(config().n_layers) ||
        head.n_kv_heads != static_cast<uint32_t>(config().n_kv_heads) ||
        head.head_dim != static_cast<uint32_t>(config().head_dim) || head.image_bytes != image_bytes) {
      return fail(corrupt("contradicts itself: its sizes are not those of its model"));
    }
    const uint64_t token_bytes = uint64_t{head.n_tokens} * sizeof(Token);
    if (bytes.size() != sizeof head + token_bytes + image_bytes)
      return fail(corrupt("is truncated or has something after its end"));
    const auto tokens = bytes.subspan(sizeof head, token_bytes),
               image = bytes.subspan(sizeof head + token_bytes);
    if (checksum(tokens, image) != head.checksum)
      return fail(corrupt("is damaged: its checksum does not match"));
    sequence.tokens.resize(head.n_tokens);
    if (!tokens.empty()) std::memcpy(sequence.tokens.data(), tokens.data(), tokens.size());
    for (const Token token : sequence.tokens) {
      if (token < 0 || token >= config().n_vocab)
        return fail(corrupt("holds a token that its model does not have"));
    }
    sequence.cache->load(n, image.data());
    return id;
  }

  const Usage& usage() const override { return usage_; }
  const StepTimes& step_times() const override { return step_times_; }

  uint64_t kv_bytes(SequenceId id) const override {
    const Sequence* sequence = find(id);
    return sequence == nullptr ? 0 : sequence->cache->bytes_used(static_cast<int>(sequence->tokens.size()));
  }

 private:
  struct Sequence {
    bool open = false;
    std::unique_ptr<KvCache> cache;
    std::vector<Token> tokens;
  };

  const ModelConfig& config() const { return model_->impl().config; }
  KvShape shape() const {
    return {config().n_layers, config().n_kv_heads, config().head_dim, options_.n_ctx};
  }

  const Sequence* find(SequenceId id) const {
    if (id < 0 || static_cast<size_t>(id) >= sequences_.size() || !sequences_[static_cast<size_t>(id)].open)
      return nullptr;
    return &sequences_[static_cast<size_t>(id)];
  }
  Sequence* find(SequenceId id) { return const_cast<Sequence*>(std::as_const(*this).find(id)); }
  static Error not_open(SequenceId id) { return invalid(strf("sequence %d is not open", id)); }

  Status check_room(SequenceId id, int n) const {
    const Sequence* sequence = find(id);
    if (sequence == nullptr) return not_open(id);
    const int held = static_cast<int>(sequence->tokens.size());
    if (n > options_.n_ctx - held) {
      return Error{ErrorCode::kOutOfRange, strf("%d tokens do not fit: the context holds %d and %d of it are "
                                                "taken; shorten the prompt or raise --ctx "
                                                "(the model was trained for %d)",
                                                n, options_.n_ctx, held, config().n_ctx_train)};
    }
    return {};
  }

  // Checks the items and lays them out as spans, tokens and logit rows. Changes no sequence.
  Status assemble(std::span<const BatchItem> items) {
    spans_.clear();
    tokens_.clear();
    logit_rows_.clear();
    size_t n_rows = 0, n_logits = 0;
    for (size_t i = 0; i < items.size(); ++i) {
      const BatchItem& item = items[i];
      if (item.tokens.empty()) return invalid("an item of the batch has no tokens");
      for (size_t j = 0; j < i; ++j) {
        if (items[j].sequence == item.sequence)
          return invalid(strf("sequence %d stands in the batch twice", item.sequence));
      }
      if (item.tokens.size() > static_cast<size_t>(options_.max_rows) - n_rows) {
        return Error{ErrorCode::kOutOfRange,
                     strf("a batch has at most %d rows (max_rows)", options_.max_rows)};
      }
      FRUGAL_TRY_STATUS(check_room(item.sequence, static_cast<int>(item.tokens.size())));
      for (const Token token : item.tokens) {
        if (token < 0 || token >= config().n_vocab)
          return invalid(strf("token %d is not in the vocabulary of %d", token, config().n_vocab));
      }
      n_rows += item.tokens.size();
      n_logits += item.logits == LogitRows::kAll    ? item.tokens.size()
                  : item.logits == LogitRows::kLast ? 1
                                                    : 0;
      if (n_logits > static_cast<size_t>(options_.max_logit_rows)) {
        return Error{ErrorCode::kOutOfRange, strf("logits were asked for more than %d rows (max_logit_rows)",
                                                  options_.max_logit_rows)};
      }
    }
    if (n_rows == 0) return invalid("the batch is empty");
    for (const BatchItem& item : items) {
      const Sequence& sequence = *find(item.sequence);
      const int first = static_cast<int>(tokens_.size()), n = static_cast<int>(item.tokens.size());
      spans_.push_back({sequence.cache.get(), first, n, static_cast<int>(sequence.tokens.size())});
      tokens_.insert(tokens_.end(), item.tokens.begin(), item.tokens.end());
      const int first_logit = item.logits == LogitRows::kAll    ? 0
                              : item.logits == LogitRows::kLast ? n - 1
                                                                : n;
      for (int row = first_logit; row < n; ++row) logit_rows_.push_back(first + row);
    }
    return {};
  }

  // FLOPs and bytes of the batch that just ran, by formula.
  void account() {
    const ModelWeights& weights = model_->impl().weights;
    const LayerWeights& layer = weights.layers[0];
    auto macs = [](std::initializer_list<const Matrix*> matrices) {  // of one row through them
      double sum = 0;
      for (const Matrix* m : matrices) sum += static_cast<double>(m->n_rows) * static_cast<double>(m->k);
      return sum;
    };
    const double qkv_macs = macs({&layer.wq, &layer.wk, &layer.wv});
    const double rest_macs = macs({&layer.wo, &layer.gate, &layer.up, &layer.down});
    const double per_score = 4.0 * config().n_heads * config().head_dim;
    // Without logits the last layer stops when its keys and values are stored.
    const int n_whole_layers = config().n_layers - (logit_rows_.empty() ? 1 : 0);
    usage_.flops += 2 * static_cast<double>(tokens_.size()) *
                        (config().n_layers * qkv_macs + n_whole_layers * rest_macs) +
                    2 * static_cast<double>(logit_rows_.size()) * macs({&weights.output_matrix()});
    double bytes = static_cast<double>(weights.bytes());
    double held = bytes;
    for (const BatchSpan& span : spans_) {
      for (int layer_idx = 0; layer_idx < n_whole_layers; ++layer_idx) {
        const int window = config().window_of(layer_idx);
        for (int row = 0; row < span.n_rows; ++row) {
          const int seen = span.first_position + row + 1;
          usage_.flops += per_score * (window > 0 ? std::min(seen, window) : seen);
        }
      }
      bytes += static_cast<double>(span.cache->bytes_used(span.first_position + span.n_rows));
    }
    for (const Sequence& sequence : sequences_) {
      if (sequence.open)
        held += static_cast<double>(sequence.cache->bytes_used(static_cast<int>(sequence.tokens.size())));
    }
    if (options_.profile) account_steps(bytes - static_cast<double>(weights.bytes()));
    usage_.bytes_moved += bytes;
    usage_.bytes_held = std::max(usage_.bytes_held, held);
  }

  // Bytes that each step of the batch that just ran has read.
  void account_steps(double kv_bytes) {
    const ModelWeights& weights = model_->impl().weights;
    auto read = [&](ForwardStep step, std::initializer_list<const Matrix*> matrices) {
      for (const Matrix* m : matrices)
        step_times_.bytes[static_cast<size_t>(step)] += static_cast<double>(m->bytes());
    };
    for (const LayerWeights& layer : weights.layers) {
      read(ForwardStep::kQkv, {&layer.wq, &layer.wk, &layer.wv});
      if (&layer == &weights.layers.back() && logit_rows_.empty()) return;
      read(ForwardStep::kAttentionOut, {&layer.wo});
      read(ForwardStep::kGateUp, {&layer.gate, &layer.up});
      read(ForwardStep::kDown, {&layer.down});
    }
    step_times_.bytes[static_cast<size_t>(ForwardStep::kAttention)] += kv_bytes;
    read(ForwardStep::kLogits, {&weights.output_matrix()});
  }

  CacheFileHead expected_head(int n_tokens, uint64_t image_bytes) const {
    CacheFileHead head{};
    std::memcpy(head.magic, kCacheMagic, sizeof kCacheMagic);
    head.version = kCacheVersion;
    head.format = static_cast<uint32_t>(options_.kv);
    head.source_hash = options_.kv_source ? options_.kv_source->content_hash() : 0;
    head.model_hash = model_->info().file_hash;
    head.n_layers = static_cast<uint32_t>(config().n_layers);
    head.n_kv_heads = static_cast<uint32_t>(config().n_kv_heads);
    head.head_dim = static_cast<uint32_t>(config().head_dim);
    head.n_tokens = static_cast<uint32_t>(n_tokens);
    head.image_bytes = image_bytes;
    return head;
  }
  static uint64_t checksum(std::span<const std::byte> tokens, std::span<const std::byte> image) {
    return checksum64(tokens) * 31 + checksum64(image);
  }

  std::shared_ptr<const Model> model_;
  EngineOptions options_;
  ThreadTeam team_;
  std::vector<Sequence> sequences_;
  ForwardScratch scratch_;
  // The batch of the current forward; reserved once.
  std::vector<BatchSpan> spans_;
  std::vector<Token> tokens_;
  std::vector<int> logit_rows_;
  int n_logit_rows_ = 0;
  Usage usage_;
  StepTimes step_times_;
};

}  // namespace

const char* forward_step_name(ForwardStep step) {
  constexpr const char* kNames[kForwardSteps] = {
      "embed",         "queries, keys, values", "store K/V", "attention",
      "attention out", "gate and up",           "down",      "logits"};
  return kNames[static_cast<size_t>(step)];
}

Result<std::unique_ptr<Engine>> Engine::create(std::shared_ptr<const Model> model,
                                               const EngineOptions& given) {
  if (model == nullptr) return invalid("an engine needs a model");
  EngineOptions options = given;
  if (options.n_threads == 0) options.n_threads = std::min(kMaxThreads, usable_processors());
  if (options.n_threads < 1 || options.n_threads > kMaxThreads) {
    return invalid(strf("%d threads: give a number from 1 to %d, or 0 for one on each processor",
                        given.n_threads, kMaxThreads));
  }
  const ModelConfig& config = model->impl().config;
  if (options.n_ctx == 0) options.n_ctx = config.n_ctx_train;
  if (options.n_ctx < 1 || options.n_ctx > (1 << 26))
    return invalid(strf("a context of %d tokens: give a number from 1 to %d", given.n_ctx, 1 << 26));
  if (options.kv == KvFormat::kCsr && options.kv_source == nullptr)
    return invalid("a csr cache needs a dictionary (kv_source)");
  if (options.kv_source != nullptr) options.kv = KvFormat::kCsr;
  if (options.max_sequences < 1 || options.max_sequences > 65536)
    return invalid("max_sequences has to lie in 1 to 65536");
  if (options.max_rows < 1 || options.max_rows > 65536) return invalid("max_rows has to lie in 1 to 65536");
  if (options.max_logit_rows < 1 || options.max_logit_rows > 65536)
    return invalid("max_logit_rows has to lie in 1 to 65536");
  auto engine = std::make_unique<EngineImpl>(std::move(model), options);
  FRUGAL_TRY_STATUS(engine->reserve());
  return std::unique_ptr<Engine>(std::move(engine));
}

}  // namespace frugal::llm
