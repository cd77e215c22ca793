// Training a dictionary: keys, values and queries of a text are tapped from a forward pass, then each head
// gets the basis that codes its vectors best (Karhunen and Loeve, in the metric of what an error does to
// attention).
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "llm/kv/dictionary.h"

namespace frugal::llm {

// Taps the caches of an engine. Use one engine, one sequence at a time; the caches are f32 beneath.
class DictionaryTrainer {
 public:
  // `turns` [n_layers, n_rot / 2] as in Dictionary. Room for n_tokens tokens in all: about 4 bytes a channel.
  DictionaryTrainer(Dictionary empty, int n_tokens);

  std::shared_ptr<const KvSource> source();
  // The next tokens come from a new sequence that starts at position 0 and has n tokens.
  void begin_text(int n_tokens);
  int tokens_taken() const { return end_; }

  // The dictionary of what was tapped; the same for the same texts, at any number of threads.
  // `progress(share)` returns false to stop (kCancelled). kInvalidArgument for too little text, or numbers
  // that are not finite.
  Result<Dictionary> fit(int n_threads, const std::function<bool(double)>& progress) const;

 private:
  friend class TapCache;
  friend class TapSource;
  void tap(int layer, int position, const float* k, const float* v);
  void tap_queries(int layer, int head, const KvQueries& queries);
  void fit_layer(int layer, Dictionary& out) const;
  std::vector<float> rows(int layer, KvSide side, int head, std::vector<float>& mean) const;

  Dictionary empty_;
  int capacity_, begin_ = 0, end_ = 0;
  std::vector<uint16_t> samples_[2];        // keys, values: [n_layers, capacity, heads * dim], f16
  std::vector<int> positions_;              // [capacity]
  std::vector<int64_t> query_moments_;      // [n_layers * heads, dim, dim], in units of kQueryUnit^2
  std::vector<int64_t> query_counts_;       // [n_layers * heads]
  mutable std::vector<std::mutex> guards_;  // [n_layers * heads]
};

}  // namespace frugal::llm
