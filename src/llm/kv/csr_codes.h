// The coded tokens of a CSR cache: span after span of 1,024 tokens, in each all sides of the plan, so that
// pages fill one after the other; of a side panels of 16 tokens (llm/kernel/codes.h).
#pragma once

#include <array>
#include <memory>
#include <vector>

#include "llm/kv/csr_plan.h"
#include "llm/kv/csr_ring.h"
#include "llm/kv/kv_cache.h"
#include "llm/tensor/buffer.h"

namespace frugal::llm {

class CsrCodes {
 public:
  Status reserve(const KvShape& shape, std::shared_ptr<const CsrPlan> plan);

  // Codes a block's keys or values as the ring holds them.
  void code(int layer, KvSide of, int head, int block, const CsrRing& ring);

  // Queries as codes of keys are scored with.
  struct Queries {
    float* scales;       // [n_cols]
    float* book_scales;  // [n_cols]
    int32_t* zeros;      // [n_cols]: what levels at the centre add
    int16_t* book;       // product_tables(n_cols): products with the entries
    int8_t* x;           // [n_cols, 4 n_groups]
  };
  // scores [end - first, kKvBlock] += what a block's codes are beside the mean, for columns [first, end).
  void add_scores(int layer, int head, int block, const Queries& queries, int first, int end,
                  float* scores) const;
  // Sums of n_blocks blocks of a span, chunk by chunk, as KvCache::add_values() has them: those of
  // coefficients are added to, those by entry of a book are set. Where the squares of a chunk's weights sum
  // to less than rough [n_cols] (or null), the entries alone are what its values are taken for.
  void add_values(int layer, int head, int block, int n_blocks, const float* weights, size_t stride,
                  int n_cols, float* out, size_t out_width, const float* rough) const;

  // Asks for a block into the second-level cache, every line of it, few at a time: the processor waits when
  // too many are under way. Inlined, or GCC 12 takes a function that only prefetches for one that does
  // nothing.
  [[gnu::always_inline]] void prefetch(int layer, KvSide of, int head, int block) const {
    if (block >= n_blocks_) return;
    const std::byte* at = panel_at(layer, of, head, block * 4);
    const size_t n = 4 * plan_->side(layer, of, head).panel_bytes;
    for (size_t i = 0; i < n; i += 64) __builtin_prefetch(at + i, 0, 2);
  }

  uint64_t bytes(int n_tokens) const;
  // Image: for each layer, of keys, then of values, the codes of each head in whole panels. Of tokens that
  // are not coded yet they are nothing.
  void save(int n_tokens, std::byte* image) const;
  void load(int n_tokens, const std::byte* image);

 private:
  static constexpr int kSpanBlocks = kMaxSpan * kKvChunk / kKvBlock;
  static constexpr size_t kSpanPanels = 4 * kSpanBlocks;

  size_t dim() const { return static_cast<size_t>(plan_->dim); }
  static size_t panels(int n_tokens) { return static_cast<size_t>((n_tokens + 15) / 16); }
  std::byte* panel_at(int layer, KvSide of, int head, int panel) const {
    const auto idx =
        static_cast<size_t>((layer * 2 + (of == KvSide::kValues ? 1 : 0)) * plan_->n_kv_heads + head);
    const auto at = static_cast<size_t>(panel);
    return const_cast<std::byte*>(codes_.data()) + at / kSpanPanels * span_bytes_ + origin_[idx] +
           at % kSpanPanels * plan_->sides[idx].panel_bytes;
  }
  template <typename F>
  void for_each_run(int n_tokens, F f) const;
  void add_chunk(int layer, int head, int block, size_t n, const float* weights, size_t stride, int n_cols,
                 float* out, size_t out_width, float* bins, const float* rough) const;

  std::shared_ptr<const CsrPlan> plan_;
  int n_blocks_ = 0;
  size_t span_bytes_ = 0;
  std::vector<size_t> origin_;      // of each side of the plan, in a span
  std::array<float, 16> scales_{};  // of tokens' values, by code
  Buffer codes_;
};

}  // namespace frugal::llm
