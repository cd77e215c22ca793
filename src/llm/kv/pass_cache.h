// A cache that hands everything on to another one: what a cache that only watches starts from.
#pragma once

#include <memory>
#include <utility>

#include "llm/kv/kv_cache.h"

namespace frugal::llm {

class PassCache : public KvCache {
 public:
  PassCache(const KvShape& shape, std::unique_ptr<KvCache> inner)
      : KvCache(shape, inner->format()), inner_(std::move(inner)) {}
  void store(int layer, int position, const float* k, const float* v) override {
    inner_->store(layer, position, k, v);
  }
  size_t query_scratch_bytes(int n) const override { return inner_->query_scratch_bytes(n); }
  void prepare(int layer, int head, const KvQueries& queries) const override {
    inner_->prepare(layer, head, queries);
  }
  const float* negligible(const KvQueries& queries) const override { return inner_->negligible(queries); }
  void score_chunk(int layer, int head, int block, int n, const KvQueries& queries, float* scores,
                   size_t stride) const override {
    inner_->score_chunk(layer, head, block, n, queries, scores, stride);
  }
  void add_values(int layer, int head, int block, int n, const KvQueries& queries, const KvWeights& weights,
                  float* out, float* scratch) const override {
    inner_->add_values(layer, head, block, n, queries, weights, out, scratch);
  }
  int max_rows_ahead() const override { return inner_->max_rows_ahead(); }
  bool can_rewind(int n_held, int n_past) const override { return inner_->can_rewind(n_held, n_past); }
  int sum_width(int layer, int head) const override { return inner_->sum_width(layer, head); }
  void restore(int layer, int head, const float* sums, int n_cols, float* out) const override {
    inner_->restore(layer, head, sums, n_cols, out);
  }
  uint64_t bytes_used(int n) const override { return inner_->bytes_used(n); }
  uint64_t save_bytes(int n) const override { return inner_->save_bytes(n); }
  void save(int n, std::byte* image) const override { inner_->save(n, image); }
  void load(int n, const std::byte* image) override { inner_->load(n, image); }

 protected:
  KvCache& inner() { return *inner_; }
  const KvCache& inner() const { return *inner_; }

 private:
  std::unique_ptr<KvCache> inner_;
};

}  // namespace frugal::llm
