// Peer: llama.cpp's own engine in this process, to compare answers and times with. Used by benches,
// evaluations and tests, never by the product's own path (docs/design/peer.md). llama.cpp ends the process on
// faults that it holds impossible; load a model with frugal first, which refuses broken files with a message.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "frugal/llm.h"
#include "frugal/result.h"

namespace frugal::llm::peer {

enum class FlashAttention { kAuto, kOff, kOn };  // auto is llama.cpp's default

struct PeerOptions {
  int n_threads = 0;    // 0 = one for each usable processor
  int n_ctx = 2048;     // of all sequences together
  int n_sequences = 1;  // that prefill_sequence() and step_sequences() may run
  FlashAttention flash_attention = FlashAttention::kAuto;
  float rope_scale = 1;        // as ModelOptions::rope_scale
  std::string cache = "f16";   // keys and values: f32, f16, bf16, q8_0, q4_0
  bool exact_weights = false;  // true: no repacking of the weights for speed; for comparisons of logits
};

// One context. Not thread-safe. Without another word a call means sequence 0.
class Peer {
 public:
  // kCorrupt when llama.cpp cannot load the file, kNoMemory, kInvalidArgument (an unknown cache among them).
  static Result<std::unique_ptr<Peer>> load(const std::string& path, const PeerOptions& options);
  virtual ~Peer() = default;

  // Appends tokens to the sequence; afterwards logits() are those of the last one.
  virtual Status forward(std::span<const Token> tokens) = 0;
  // The same, handing on the logits of every token: `row(i, logits)`.
  virtual Status forward_all(std::span<const Token> tokens,
                             const std::function<void(size_t, std::span<const float>)>& row) = 0;
  virtual std::span<const float> logits() const = 0;  // [n_vocab], valid until the next forward
  virtual void truncate(int n_past) = 0;
  virtual int n_past() const = 0;
  // Writes the sequence and its tokens; takes it up again in a context of the same model and options, and
  // gives the tokens. kIo, kCorrupt.
  virtual Status save(const std::string& path, std::span<const Token> tokens) const = 0;
  virtual Result<std::vector<Token>> restore(const std::string& path) = 0;

  // Several sequences, as llama.cpp's batched bench runs them: a prompt into one of them, and a step of one
  // token for each of the first next.size(), with logits. Not to be mixed with the calls above.
  virtual Status prefill_sequence(int sequence, std::span<const Token> tokens) = 0;
  virtual Status step_sequences(std::span<const Token> next) = 0;

  virtual std::vector<Token> encode(const std::string& text, bool add_special) const = 0;
  virtual int n_vocab() const = 0;
  virtual double load_seconds() const = 0;  // model and context
};

// Writes `in` to `out` with its large weights as `type` ("q4_0", "q4_1", "q4_k", "q8_0", "f16"), by
// llama.cpp's own quantiser. kInvalidArgument for another type, kIo when it fails.
Status requantize(const std::string& in, const std::string& out, const std::string& type);

// Whether llama.cpp holds values as `cache` with flash attention only.
bool needs_flash_attention(const std::string& cache);

// "llama.cpp 0.5.0 (AVX2 = 1 | ...)": what the peer was built from and for.
std::string description();

}  // namespace frugal::llm::peer
