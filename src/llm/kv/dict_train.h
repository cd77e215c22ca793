// Training a dictionary: keys, values and queries of a text are tapped from a forward pass, then each head
// gets the basis that codes its vectors best (Karhunen and Loeve, in the metric of what an error does to
// attention).
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "llm/kv/dictionary.h"

namespace frugal::llm {

// Taps the caches of an engine. Use one engine, one sequence at a time; the caches are f32 beneath.
class DictionaryTrainer {
 public:
  // `turns` [n_layers, n_rot / 2] as in Dictionary. Room for n_tokens tokens in all: about 4 bytes a channel.
  // Caches that use the dictionary hold positions below n_positions, whatever the texts' lengths.
  DictionaryTrainer(Dictionary empty, int n_tokens, int n_positions);

  std::shared_ptr<const KvSource> source();
  // The next tokens come from a new sequence that starts at position 0 and has n tokens.
  void begin_text(int n_tokens);
  int tokens_taken() const { return end_; }

  // The dictionary of what was tapped; the same for the same texts, at any number of threads.
  // `progress(share)` returns false to stop (kCancelled). kInvalidArgument for too little text, or numbers
  // that are not finite.
  Result<Dictionary> fit(int n_threads, const std::function<bool(double)>& progress) const;

  // What a basis is fitted to.
  struct Rows {
    // [n, dim], less the mean; the first tokens of a text are left out. Keys: where they stand in the text,
    // then the same keys turned to positions anywhere in the context.
    std::vector<float> x;
    std::vector<float> shares;  // [n], what a row counts in the covariance
    std::vector<float> mean;    // [dim]
  };
  Rows rows(int layer, KvSide side, int head) const;
  // The vectors of a head as they were tapped, [tokens_taken(), dim], and where in its text each stands.
  std::vector<float> vectors(int layer, KvSide side, int head) const;
  std::span<const int> positions() const { return {positions_.data(), static_cast<size_t>(end_)}; }

 private:
  friend class TapCache;
  friend class TapSource;
  void tap(int layer, int position, const float* k, const float* v);
  void tap_queries(int layer, int head, const KvQueries& queries);
  void fit_layer(int layer, Dictionary& out) const;
  struct Coefficients;  // a sample of them, for their quantisers
  void fit_head(int layer, KvSide side, int head, HeadBasis& basis, Coefficients& sample) const;

  // A position below n_positions for the idx-th vector.
  int spread_position(size_t idx) const;
  // What attention makes of a head's keys and values (dict_attention.cc): what each token counts, mean about
  // 1; the second moment of the queries, [dim, dim], empty when there was none.
  std::vector<double> shares_of(int layer, KvSide side, int head) const;
  std::vector<double> query_moment(int layer, int head) const;
  static size_t token_of(size_t place, int group);

  Dictionary empty_;
  int capacity_, n_positions_, begin_ = 0, end_ = 0;
  std::vector<uint16_t> samples_[2];  // keys, values: [n_layers, capacity, heads * dim], f16
  std::vector<int> positions_;        // [capacity]
  std::atomic<bool> finite_{true};    // all that was tapped
  static constexpr int kSkipped = 4;  // the first tokens of a text stay whole: they are no example
  static constexpr int kQueryStride = 11;
  static constexpr uint16_t kNoQuery = 0xffff;
  // Queries of every kQueryStride-th column (token x group), in its own place: [capacity * group /
  // kQueryStride, dim] for each layer and head; a place with nothing holds kNoQuery.
  std::vector<std::vector<uint16_t>> queries_;
  std::vector<int> groups_;                 // columns of a token, for each layer and head; 0 = none seen
  std::vector<int> windows_;                // positions that a query sees, of each; 0 = all
  mutable std::vector<std::mutex> guards_;  // [n_layers * heads]
};

}  // namespace frugal::llm
