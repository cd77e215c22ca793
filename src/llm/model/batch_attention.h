// Attention of a batch's rows over their caches, by all members of a team: the part of the forward pass whose
// work has two shapes, many tiles of rows or few tiles over long caches.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

#include "base/team.h"
#include "llm/kv/attention.h"
#include "llm/model/config.h"
#include "llm/tensor/matrix.h"

namespace frugal::llm {

// Consecutive rows of one sequence within a batch.
struct BatchSpan {
  KvCache* cache = nullptr;
  int first_row = 0;
  int n_rows = 0;
  int first_position = 0;
};

// Numbers [first, end) that a member goes through from the first on, and others take from the end of.
class PieceRange {
 public:
  void set(int first, int end) { both_.store(pack(first, end), std::memory_order_relaxed); }
  int take_first() { return take(1, 0); }  // or -1
  int take_last() { return take(0, 1); }

 private:
  static uint64_t pack(int first, int end) {
    return static_cast<uint64_t>(first) << 32 | static_cast<uint32_t>(end);
  }
  int take(int from_first, int from_end) {
    uint64_t both = both_.load(std::memory_order_relaxed);
    for (;;) {
      const auto first = static_cast<int>(both >> 32), end = static_cast<int>(both & 0xffffffff);
      if (first >= end) return -1;
      if (both_.compare_exchange_weak(both, pack(first + from_first, end - from_end),
                                      std::memory_order_relaxed))
        return from_first > 0 ? first : end - 1;
    }
  }
  alignas(64) std::atomic<uint64_t> both_{0};
};

// A count that starts at 0 with each turn, without anybody setting it back.
class TurnCount {
 public:
  int add(uint32_t turn) {  // one; what it was before
    uint64_t now = now_.load(std::memory_order_relaxed), next;
    do {
      next = now >> 32 == turn ? now + 1 : static_cast<uint64_t>(turn) << 32 | 1;
    } while (!now_.compare_exchange_weak(now, next, std::memory_order_acq_rel));
    return static_cast<int>(next & 0xffffffff) - 1;
  }
  int of(uint32_t turn) const {
    const uint64_t now = now_.load(std::memory_order_acquire);
    return now >> 32 == turn ? static_cast<int>(now & 0xffffffff) : 0;
  }

 private:
  std::atomic<uint64_t> now_{0};
};

// The memory that it works in, taken once.
class AttentionScratch {
 public:
  static Result<AttentionScratch> allocate(const ModelConfig& config, int n_ctx, int n_threads);

 private:
  friend class BatchAttention;
  // A tile that members share; its runs of chunks are computed apart.
  struct SharedTile {
    const BatchSpan* span;
    AttentionTile tile;
    int first_row, first_piece, n_runs;
    ChunkRange chunks;
    float* parts;  // states of the runs
    KvQueries queries;
  };
  Buffer members_;  // of each: gathered queries, states, scores
  // How far a shared tile is: who prepares its queries, whether they are, runs done, shares of its columns
  // that are taken to be finished.
  struct alignas(64) Progress {
    TurnCount preparing, prepared, runs, shares;
  };
  // Of tiles that members share: states of segments or chunks computed apart, those that no member has taken,
  // and the prepared queries.
  Buffer parts_, queries_;
  std::vector<PieceRange> pieces_;  // [member]
  std::vector<Progress> progress_;
  std::vector<std::vector<SharedTile>> shared_;  // as each member lists them
  std::vector<uint32_t> turns_;                  // calls that shared, as each member counts
  size_t member_stride_ = 0, part_capacity_ = 0, query_stride_ = 0;  // floats
};

// One member's part in it.
class BatchAttention {
 public:
  // Queries as rows of floats `q_stride` apart, [n_heads, head_dim] after RoPE and scaling; results go to the
  // same rows of `out`.
  BatchAttention(TeamMember member, const ModelConfig& config, std::span<const BatchSpan> spans,
                 const float* q, size_t q_stride, Activations& out, AttentionScratch& scratch);

  // Rows [begin, end) of every span, those that it has, over what its cache holds up to each row's own
  // position. All members call it; results are whole after the next barrier.
  void run(int layer, int begin, int end);

 private:
  // This member's scratch, cut up for tiles of the largest size.
  struct TileScratch {
    float* q;
    std::byte* codec;
    AttentionState total, segment, part;
    float* scores;
  };
  TileScratch tile_scratch() const;
  template <typename F>
  void for_each_tile(F f) const;
  KvQueries queries_at(const AttentionTile& tile, float* q, std::byte* codec) const;
  void gather(const BatchSpan& span, const AttentionTile& tile, int first_row,
              const KvQueries& queries) const;
  void prepare_once(size_t idx, uint32_t turn) const;
  void finish(const BatchSpan& span, const AttentionTile& tile, int first_row, const AttentionState& state,
              int first, int last) const;
  void deal_tiles();
  void share_runs(int length);
  void finish_share(const AttentionScratch::SharedTile& of, int length, int begin, int end) const;

  TeamMember member_;
  const ModelConfig& config_;
  std::span<const BatchSpan> spans_;
  const float* q_;
  size_t q_stride_;
  Activations& out_;
  AttentionScratch& s_;
  TileScratch t_;
  std::vector<AttentionScratch::SharedTile>& shared_;
  int layer_ = 0, begin_ = 0, end_ = 0, tile_rows_ = 0;  // of the call
};

}  // namespace frugal::llm
