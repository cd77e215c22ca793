#include "llm/kv/attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "llm/kernel/kernel.h"

namespace frugal::llm {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// First position that a row at `position` sees.
int first_visible(const AttentionTile& tile, int position) {
  return tile.window > 0 ? std::max(0, position - tile.window + 1) : 0;
}

// Tokens [begin, end) of chunks that some row of the tile sees; begin is the start of a block.
struct Tokens {
  int begin, end;
  int n_blocks() const { return (end - begin + kKvBlock - 1) / kKvBlock; }
};
Tokens visible_tokens(const AttentionTile& tile, ChunkRange chunks) {
  return {std::max(chunks.first * kKvChunk, first_visible(tile, tile.first_position) / kKvBlock * kKvBlock),
          std::min(chunks.last * kKvChunk, tile.first_position + tile.n_rows)};
}

constexpr int kBlocks = kKvChunk / kKvBlock;
static_assert(kBlocks == kPiecesSummed);

// Scores outside [from, to) of a column become -inf. Blocks of scores begin `stride` floats apart.
void mask(float* scores, size_t stride, int n_blocks, int from, int to) {
  for (int block = 0; block < n_blocks; ++block, scores += stride) {
    const int begin = std::clamp(from - block * kKvBlock, 0, kKvBlock);
    const int end = std::clamp(to - block * kKvBlock, 0, kKvBlock);
    std::fill_n(scores, begin, kMinusInfinity);
    std::fill(scores + std::max(begin, end), scores + kKvBlock, kMinusInfinity);
  }
}

}  // namespace

size_t attention_scratch_floats(int n_cols) {
  // Scores, add_values()'s own, and what is negligible.
  return static_cast<size_t>(n_cols) * ((kMaxSpan * kBlocks + 1) * kKvBlock + 1);
}

ChunkRange visible_chunks(const AttentionTile& tile) {
  const int last_position = tile.first_position + tile.n_rows - 1;
  return {first_visible(tile, tile.first_position) / kKvChunk, last_position / kKvChunk + 1};
}

void clear_state(const AttentionState& state, int first, int last, int width) {
  const auto begin = static_cast<size_t>(first), n = static_cast<size_t>(last - first),
             dim = static_cast<size_t>(width);
  std::fill_n(state.max + begin, n, kMinusInfinity);
  std::fill_n(state.sum + begin, n, 0.0f);
  std::memset(state.out + begin * dim, 0, n * dim * sizeof(float));
}

namespace {

// Chunks of one span.
void attend_span(const AttentionTile& tile, const KvQueries& queries, ChunkRange chunks,
                 const AttentionState& state, float* scratch) {
  const KvCache& cache = *tile.cache;
  const int n_cols = queries.n_cols;
  const size_t stride = static_cast<size_t>(n_cols) * kKvBlock;  // from block to block of the scores
  const Tokens tokens = visible_tokens(tile, chunks);
  const int n_blocks = tokens.n_blocks(), first_block = tokens.begin / kKvBlock;
  const auto width = static_cast<size_t>(cache.sum_width(tile.layer, tile.kv_head));
  for (int begin = tokens.begin, end; begin < tokens.end; begin = end) {
    end = std::min(tokens.end, (begin / kKvChunk + 1) * kKvChunk);
    const int block = begin / kKvBlock;
    cache.score_chunk(tile.layer, tile.kv_head, block, end - begin, queries,
                      scratch + static_cast<size_t>(block - first_block) * stride, stride);
  }
  float* own = scratch + kMaxSpan * kBlocks * stride;
  const float* negligible = cache.negligible(queries);
  float* least = negligible != nullptr ? own + stride : nullptr;  // that of these weights
  if (least != nullptr) std::fill_n(least, n_cols, 0.0f);
  bool any = false;
  for (int col = 0; col < n_cols; ++col) {
    float* scores = scratch + static_cast<size_t>(col) * kKvBlock;
    const auto zero = [&](int from, int to) {
      for (int i = from; i < to; ++i) std::fill_n(scores + static_cast<size_t>(i) * stride, kKvBlock, 0.0f);
    };
    // The part of the span that this row sees: [from, to).
    const int position = tile.first_position + col / tile.group;
    const int from = std::max(first_visible(tile, position) - tokens.begin, 0);
    const int to = std::min(position + 1, tokens.end) - tokens.begin;
    float sums[kMaxSpan] = {}, sum = 0;
    if (from < to) {
      if (from > 0 || to < n_blocks * kKvBlock) mask(scores, stride, n_blocks, from, to);
      kernels().softmax(scores, stride, static_cast<size_t>(n_blocks), state.max + col, sums);
      if (least != nullptr) least[col] = std::exp(negligible[col] - state.max[col]);
      for (int i = 0; i * kBlocks < n_blocks; ++i) {
        if (least != nullptr && sums[i] < least[col]) {
          zero(i * kBlocks, std::min((i + 1) * kBlocks, n_blocks));
        } else {
          sum += sums[i];
        }
      }
    } else {
      zero(0, n_blocks);
    }
    if (sum == 0) {  // as if the span showed nothing
      clear_state(state, col, col + 1, static_cast<int>(width));
      continue;
    }
    state.sum[col] = sum;
    std::fill_n(state.out + static_cast<size_t>(col) * width, cache.shape().padded_dim(), 0.0f);
    any = true;
  }
  if (!any) return;
  cache.add_values(tile.layer, tile.kv_head, first_block, tokens.end - tokens.begin, queries,
                   {scratch, stride, least}, state.out, own);
}

}  // namespace

void attend(const AttentionTile& tile, const KvQueries& queries, ChunkRange chunks,
            const AttentionState& state, const AttentionState& part, float* scratch) {
  const int span = tile.span(), width = tile.cache->sum_width(tile.layer, tile.kv_head);
  for (int first = chunks.first, last; first < chunks.last; first = last) {
    last = std::min(chunks.last, first + span);
    attend_span(tile, queries, {first, last}, first == chunks.first ? state : part, scratch);
    if (first != chunks.first) merge_state(state, part, 0, queries.n_cols, width);
  }
}

void merge_state(const AttentionState& total, const AttentionState& part, int first, int last, int width) {
  const Kernels& set = kernels();
  const auto dim = static_cast<size_t>(width);
  constexpr int kAtOnce = 16;
  for (; first < last; first += kAtOnce) {
    const int n = std::min(kAtOnce, last - first);
    // Factors by which sums relative to their own maximum become relative to the larger one.
    float keep[kAtOnce] = {}, take[kAtOnce] = {};
    for (int i = 0; i < n; ++i) {
      const float before = total.max[first + i], now = part.max[first + i];
      if (now == kMinusInfinity) continue;  // the chunk showed this row nothing: both factors become 1
      total.max[first + i] = std::max(before, now);
      (now > before ? keep : take)[i] = now > before ? before - now : now - before;
    }
    set.exp(keep, kAtOnce);
    set.exp(take, kAtOnce);
    for (int i = 0; i < n; ++i) {
      const auto col = static_cast<size_t>(first + i);
      if (part.max[col] == kMinusInfinity) continue;
      set.blend(total.out + col * dim, part.out + col * dim, dim, keep[i], take[i]);
      total.sum[col] = total.sum[col] * keep[i] + part.sum[col] * take[i];
    }
  }
}

void finish_columns(const AttentionTile& tile, const AttentionState& state, int first, int last,
                    float* values) {
  const auto width = static_cast<size_t>(tile.cache->sum_width(tile.layer, tile.kv_head));
  for (int col = first; col < last; ++col) {
    const float inverse = 1.0f / state.sum[col];
    float* out = state.out + static_cast<size_t>(col) * width;
    for (size_t i = 0; i < width; ++i) out[i] *= inverse;
  }
  tile.cache->restore(tile.layer, tile.kv_head, state.out + static_cast<size_t>(first) * width, last - first,
                      values);
}

}  // namespace frugal::llm
