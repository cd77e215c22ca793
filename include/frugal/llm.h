// The LLM plane: load a GGUF model, run forward passes over ragged batches of sequences.
//
// Exactness is the default and not a mode: the logits of a token depend on the model, the tokens before it
// and the cache format alone, bit for bit. Thread count, batch composition, chunk sizes and verify widths do
// not matter.
//
//   FRUGAL_TRY(auto model, Model::load("model.gguf"));
//   FRUGAL_TRY(auto engine, Engine::create(model));
//   FRUGAL_TRY(SequenceId seq, engine->open_sequence());
//   BatchItem item{seq, tokens, LogitRows::kLast};
//   FRUGAL_TRY_STATUS(engine->forward({&item, 1}));
//   std::span<const float> logits = engine->logits(0);
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "frugal/result.h"
#include "frugal/usage.h"

namespace frugal::llm {

using Token = int32_t;
using SequenceId = int32_t;

struct ModelInfo {
  std::string path;
  std::string architecture;  // "llama", "qwen2", "qwen3", "gemma3"
  std::string name;          // general.name, may be empty
  std::string weight_types;  // share of parameters by type, largest first: "Q4_1 99 %, F32 1 %"
  int n_layers = 0;
  int n_embd = 0;
  int n_heads = 0;
  int n_kv_heads = 0;
  int head_dim = 0;
  int n_ff = 0;
  int n_vocab = 0;
  int n_ctx_train = 0;     // context length that the model was trained for, times rope_scale
  float rope_scale = 1;    // ModelOptions::rope_scale
  int sliding_window = 0;  // positions that a windowed layer sees; 0 = every layer sees all
  uint64_t n_parameters = 0;
  uint64_t weight_bytes = 0;  // as held in memory
  uint64_t file_hash = 0;     // of metadata, tensor table and a sample of the data: tells models apart
};

struct ModelOptions {
  int n_threads = 0;  // threads that unpack weights; 0 = one for each usable processor
  // Called with the share done in [0, 1]; returning false cancels the load (kCancelled). May be empty.
  std::function<bool(double)> progress;
  // Hold quantised weights as 32-bit floats and so round no activation: what exact arithmetic makes of the
  // same weights. For comparisons; four to eight times the memory.
  bool widen = false;
  // How many times longer contexts get than the file says: positions are divided by it (linear RoPE scaling,
  // Chen et al. 2023, position interpolation). Such a model counts as another one: it has its own file_hash.
  // From 1 to 64.
  float rope_scale = 1;
};

class Tokenizer;  // llm/vocab
struct ModelImpl;

// Immutable once loaded; shared between engines and threads.
class Model {
 public:
  // kNotFound, kPermission, kCorrupt (not a sound GGUF file: what and where), kUnsupported (architecture or
  // tensor type), kNoMemory, kCancelled.
  static Result<std::shared_ptr<const Model>> load(const std::string& path, const ModelOptions& options = {});
  ~Model();

  const ModelInfo& info() const;
  const Tokenizer& tokenizer() const;
  const ModelImpl& impl() const { return *impl_; }

 private:
  explicit Model(std::unique_ptr<ModelImpl> impl);
  std::unique_ptr<ModelImpl> impl_;
};

// How keys and values are held.
enum class KvFormat { kF32, kF16, kBF16, kQ8_0, kCsr };

// "f16" -> kF16. Unknown names: kInvalidArgument, with the list of those that there are.
Result<KvFormat> parse_kv_format(std::string_view name);
std::string_view kv_format_name(KvFormat format);

class KvCache;  // llm/kv
struct KvShape;

// Makes the caches of an engine whose format needs more than its name: a dictionary, or a codec under test.
class KvSource {
 public:
  virtual ~KvSource() = default;
  virtual std::string name() const = 0;       // as a user would write it: "csr:2"
  virtual uint64_t content_hash() const = 0;  // of all that decoding needs; stands in cache files
  virtual Result<std::unique_ptr<KvCache>> make(const KvShape& shape) const = 0;
};

struct EngineOptions {
  int n_threads = 0;  // 0 = one for each usable processor; at most 256
  int n_ctx = 0;      // positions a sequence can hold; 0 = the model's training context
  KvFormat kv = KvFormat::kF16;
  std::shared_ptr<const KvSource> kv_source;  // makes the caches in place of `kv`; null = the format `kv`
  int max_sequences = 8;                      // open at once
  int max_rows = 512;       // rows (tokens) of one forward; longer inputs are run in chunks of this size
  int max_logit_rows = 64;  // rows of one forward whose logits can be asked for
  bool profile = false;     // fill step_times()
};

// The steps of a forward pass, in the order in which a layer takes them.
enum class ForwardStep { kEmbed, kQkv, kStoreKv, kAttention, kAttentionOut, kGateUp, kDown, kLogits };
inline constexpr int kForwardSteps = 8;
const char* forward_step_name(ForwardStep step);  // "gate and up"

// Where forwards spend their time, as one thread sees it: waiting for the others counts to the step that all
// are in. Sums over layers and forwards.
struct StepTimes {
  double seconds[kForwardSteps] = {};
  double bytes[kForwardSteps] = {};  // of weights and of K/V, that the step reads
};

// Which rows of an item get logits.
enum class LogitRows { kNone, kLast, kAll };

// Tokens to append to one sequence in a forward. A sequence stands in a batch at most once.
struct BatchItem {
  SequenceId sequence = 0;
  std::span<const Token> tokens;
  LogitRows logits = LogitRows::kLast;
};

// Threads, scratch memory and the KV caches of the open sequences. One forward at a time; not thread-safe.
class Engine {
 public:
  // kInvalidArgument, kNoMemory.
  static Result<std::unique_ptr<Engine>> create(std::shared_ptr<const Model> model,
                                                const EngineOptions& options = {});
  virtual ~Engine() = default;

  virtual const Model& model() const = 0;
  virtual const EngineOptions& options() const = 0;  // with every 0 replaced by what it stands for

  // kOutOfRange when max_sequences are open.
  virtual Result<SequenceId> open_sequence() = 0;
  virtual void close_sequence(SequenceId sequence) = 0;

  // Tokens held by a sequence.
  virtual int n_past(SequenceId sequence) const = 0;
  // Forgets all tokens from position `n_past` on: rejected drafts, a new question after a shared prompt. What
  // follows is what would have followed had they never been there; a coded cache, which keeps only its newest
  // tokens whole, computes the kept tokens again for that when more than 64 are forgotten.
  virtual Status truncate(SequenceId sequence, int n_past) = 0;

  // One pass over all items: appends their tokens, computes the logits asked for. At most max_rows tokens in
  // all (kOutOfRange; nothing is changed then, as on every error). kOutOfRange also when a context would
  // overflow. Allocates nothing.
  virtual Status forward(std::span<const BatchItem> items) = 0;

  // Logits [n_vocab] of the last forward, in the order of the rows that asked for them. Valid until the next
  // one.
  virtual std::span<const float> logits(int row) const = 0;
  virtual int n_logit_rows() const = 0;

  // Appends tokens of any number in chunks of max_rows; logits of the last one. `progress(done, total)`
  // returns false to stop (kCancelled; the sequence keeps what was done).
  virtual Status prefill(SequenceId sequence, std::span<const Token> tokens,
                         const std::function<bool(int, int)>& progress = {}) = 0;

  // Writes the sequence's tokens and K/V to a file; reads them into a new sequence. A file of another model
  // or cache format is refused (kCorrupt, kInvalidArgument) with the reason. docs/formats/cache.md.
  virtual Status save_sequence(SequenceId sequence, const std::string& path) const = 0;
  virtual Result<SequenceId> load_sequence(const std::string& path) = 0;
  virtual std::span<const Token> tokens(SequenceId sequence) const = 0;

  // Work done since the engine was made: FLOPs and bytes by formula, CPU and wall time of forwards.
  virtual const Usage& usage() const = 0;
  // By step, since the engine was made; zeros without EngineOptions::profile.
  virtual const StepTimes& step_times() const = 0;
  // Bytes of K/V in use by a sequence, and reserved for each token.
  virtual uint64_t kv_bytes(SequenceId sequence) const = 0;
};

}  // namespace frugal::llm
