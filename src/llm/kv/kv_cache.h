// KvCache: the keys and values of one sequence, all layers, behind the one interface that attention reads.
//
// Attention never asks for keys or values: it asks a cache for scores of a block of tokens, and for a
// weighted sum of their values. A codec so computes in its own domain (panels, integers, dictionary
// look-ups), and reads each row once for all heads of a group and all query rows. Tokens come in blocks of 64
// at fixed positions, one reason why results do not depend on who asks for how many.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "frugal/llm.h"
#include "frugal/result.h"

namespace frugal::llm {

inline constexpr int kKvBlock = 64;         // tokens
inline constexpr int kMaxSumsBeyond = 256;  // see KvCache::sum_width()
inline constexpr int kKvChunk = 256;        // tokens; a multiple of kKvBlock
// Chunks whose softmax is computed together: one, or for rows at kSpanFrom and later kMaxSpan where a cache
// gains by it (KvCache::spans()).
inline constexpr int kMaxSpan = 4, kSpanFrom = 2048;

struct KvShape {
  int n_layers = 0;
  int n_kv_heads = 0;
  int head_dim = 0;
  int max_tokens = 0;

  // Channels of a head rounded up to whole panels.
  int padded_dim() const { return (head_dim + 15) / 16 * 16; }
  // Blocks that hold max_tokens.
  int max_blocks() const { return (max_tokens + kKvBlock - 1) / kKvBlock; }
};

// Query rows of one KV head, prepared once and then scored against many blocks. All memory is the caller's.
struct KvQueries {
  int n_cols = 0;            // query rows x heads of the group: col = row * group + head
  const float* q = nullptr;  // [n_cols, padded_dim], scaled by the attention scale, padding zero
  std::byte* scratch =
      nullptr;  // query_scratch_bytes() for the codec's own form of the queries, filled by prepare()
  int first_position = 0;  // of row 0; row i stands at first_position + i
  int group = 1;
  int window = 0;  // a row sees the last `window` positions, itself included; 0 = all

  // First column whose row stands at `position` or later.
  int first_col_at(int position) const { return std::clamp((position - first_position) * group, 0, n_cols); }
};

// Weights of a span's tokens, and what it takes for them to count.
struct KvWeights {
  const float* at;    // block after block [n_cols, kKvBlock]
  size_t stride = 0;  // from block to block
  // [n_cols]: what negligible() says of a chunk's sum, in these weights' own unit; or null.
  const float* negligible = nullptr;
};

class KvCache {
 public:
  virtual ~KvCache() = default;

  const KvShape& shape() const { return shape_; }
  KvFormat format() const { return format_; }

  // Stores the keys and values of one token for one layer: k and v [n_kv_heads, head_dim], keys after RoPE.
  // Different layers, and positions in different panels of 16, may be stored from different threads.
  virtual void store(int layer, int position, const float* k, const float* v) = 0;
  // Where storing costs much: whether keys and values of each head may be stored from different threads too,
  // k or v [head_dim], the other null.
  virtual bool stores_parts() const { return false; }
  virtual void store_part(int layer, int head, int position, const float* k, const float* v) {
    (void)layer, (void)head, (void)position, (void)k, (void)v;
  }
  // What else is due before rows at positions [first, last) are attended, for the keys (part 2 * head) or the
  // values (and 1) of a head; once all earlier tokens are stored, from any thread, even while these are.
  // store() does it itself.
  virtual void settle(int layer, int part, int first, int last) {
    (void)layer, (void)part, (void)first, (void)last;
  }

  virtual size_t query_scratch_bytes(int n_cols) const = 0;
  virtual void prepare(int layer, int head, const KvQueries& queries) const = 0;

  // Of the blocks of one chunk, from `block` on: scores[t / 64 * stride + col * kKvBlock + t % 64] = q[col] .
  // k[block * 64 + t] for t < n_tokens; what it leaves behind up to the end of the last block is unspecified
  // and has to be masked.
  virtual void score_chunk(int layer, int head, int block, int n_tokens, const KvQueries& queries,
                           float* scores, size_t stride) const = 0;
  // Logarithms, a column each, of what a chunk's weights e^score have to sum to for its values to count; a
  // function of the query and of its own position's past. Null: they always do.
  virtual const float* negligible(const KvQueries& queries) const {
    (void)queries;
    return nullptr;
  }

  // Whether rows at kSpanFrom and later without a window see kMaxSpan chunks at once. A span begins at a
  // multiple of it.
  virtual bool spans() const { return false; }

  // Floats of a column's sums, at most padded_dim() + kMaxSumsBeyond: values in a codec's own coordinates.
  virtual int sum_width(int layer, int head) const {
    (void)layer;
    (void)head;
    return shape_.padded_dim();
  }

  // Of the blocks of one chunk, or of one span, from `block` on: out[col * sum_width + d] = sum over t <
  // n_tokens of weight(col, t) * v[block * 64 + t][d], in the order of t; weight(col, t) = weights.at[t / 64
  // * stride + col * kKvBlock + t % 64]. The first padded_dim() sums of a column are 0 before. A weight of 0
  // adds exactly nothing. Overwrites `scratch` [n_cols * kKvBlock].
  virtual void add_values(int layer, int head, int block, int n_tokens, const KvQueries& queries,
                          const KvWeights& weights, float* out, float* scratch) const = 0;

  // Rows of one sequence that a forward pass may store ahead of the attention that reads them; a cache that
  // keeps only the newest tokens whole has a limit. 0 = any number.
  virtual int max_rows_ahead() const { return 0; }
  // Whether a sequence of n_held tokens, cut to n_past, goes on as if the others had never been there.
  virtual bool can_rewind(int n_held, int n_past) const {
    (void)n_held;
    (void)n_past;
    return true;
  }

  // What add_values() accumulated, divided by the sum of the weights, sums [n_cols, sum_width], as values,
  // out [n_cols, head_dim].
  virtual void restore(int layer, int head, const float* sums, int n_cols, float* out) const {
    const auto width = static_cast<size_t>(sum_width(layer, head));
    for (; n_cols > 0; --n_cols, sums += width, out += shape_.head_dim)
      std::copy_n(sums, shape_.head_dim, out);
  }

  // Bytes in use for n_tokens tokens, all layers.
  virtual uint64_t bytes_used(int n_tokens) const = 0;

  // The raw cache of n tokens as a file image of save_bytes(n) bytes, and back.
  virtual uint64_t save_bytes(int n_tokens) const = 0;
  virtual void save(int n_tokens, std::byte* image) const = 0;
  virtual void load(int n_tokens, const std::byte* image) = 0;

 protected:
  KvCache(const KvShape& shape, KvFormat format) : shape_(shape), format_(format) {}
  KvShape shape_;
  KvFormat format_;
};

// kNoMemory; kUnsupported when the format does not fit the head size (q8_0 wants multiples of 32).
Result<std::unique_ptr<KvCache>> make_kv_cache(KvFormat format, const KvShape& shape);

}  // namespace frugal::llm
