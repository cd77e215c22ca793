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

// Factor by which sums relative to maximum `from` become relative to `to` >= from. Exactly 1 when they are
// equal.
float rescale(float from, float to) { return from == to ? 1.0f : std::exp(from - to); }

}  // namespace

size_t attention_scratch_floats(int n_cols) { return 2 * static_cast<size_t>(n_cols) * kKvBlock; }

ChunkRange visible_chunks(const AttentionTile& tile) {
  const int last_position = tile.first_position + tile.n_rows - 1;
  return {first_visible(tile, tile.first_position) / kKvChunk, last_position / kKvChunk + 1};
}

void clear_state(const AttentionState& state, int n_cols, int padded_dim) {
  std::fill_n(state.max, n_cols, kMinusInfinity);
  std::fill_n(state.sum, n_cols, 0.0f);
  std::memset(state.out, 0, static_cast<size_t>(n_cols) * static_cast<size_t>(padded_dim) * sizeof(float));
}

void attend_chunk(const AttentionTile& tile, const KvQueries& queries, int chunk, const AttentionState& state,
                  float* scratch) {
  const Kernels& set = kernels();
  const KvCache& cache = *tile.cache;
  const auto dim = static_cast<size_t>(cache.shape().padded_dim());
  const int n_cols = queries.n_cols;
  float* weights = scratch;
  float* spare = scratch + static_cast<size_t>(n_cols) * kKvBlock;
  const int last_position = tile.first_position + tile.n_rows - 1;
  const int begin =
      std::max(chunk * kKvChunk, first_visible(tile, tile.first_position) / kKvBlock * kKvBlock);
  const int end = std::min((chunk + 1) * kKvChunk, last_position + 1);
  for (int start = begin; start < end; start += kKvBlock) {
    const int block = start / kKvBlock;
    const int n_tokens = std::min(kKvBlock, end - start);
    cache.score_block(tile.layer, tile.kv_head, block, n_tokens, queries, weights);
    for (int col = 0; col < n_cols; ++col) {
      float* row = weights + static_cast<size_t>(col) * kKvBlock;
      // The part of the block that this row sees: [from, to).
      const int position = tile.first_position + col / tile.group;
      const int from = std::clamp(first_visible(tile, position) - start, 0, kKvBlock);
      const int to = std::clamp(position + 1 - start, 0, kKvBlock);
      if (from >= to) {  // nothing: weights of zero, and a state left as it is
        std::fill_n(row, kKvBlock, 0.0f);
        continue;
      }
      std::fill_n(row, from, kMinusInfinity);
      std::fill_n(row + to, kKvBlock - to, kMinusInfinity);
      const float largest = std::max(state.max[col], set.max(row, kKvBlock));
      const float factor = rescale(state.max[col], largest);
      if (factor != 1.0f) {
        set.scale(state.out + static_cast<size_t>(col) * dim, dim, factor);
        state.sum[col] *= factor;
      }
      state.max[col] = largest;
      float sums[16] = {};
      set.exp_sum(row, kKvBlock, largest, sums);
      float total = 0;
      for (const float sum : sums) total += sum;
      state.sum[col] += total;
    }
    cache.add_values(tile.layer, tile.kv_head, block, n_tokens, queries, weights, state.out, spare);
  }
}

void merge_state(const AttentionState& total, const AttentionState& part, int n_cols, int padded_dim) {
  const Kernels& set = kernels();
  const auto dim = static_cast<size_t>(padded_dim);
  for (int col = 0; col < n_cols; ++col) {
    if (part.max[col] == kMinusInfinity) continue;  // the chunk showed this row nothing
    const float largest = std::max(total.max[col], part.max[col]);
    const float keep = rescale(total.max[col], largest), take = rescale(part.max[col], largest);
    float* out = total.out + static_cast<size_t>(col) * dim;
    if (keep != 1.0f) set.scale(out, dim, keep);
    set.add_scaled(out, part.out + static_cast<size_t>(col) * dim, dim, take);
    total.sum[col] = total.sum[col] * keep + part.sum[col] * take;
    total.max[col] = largest;
  }
}

void finish_column(const AttentionState& state, int col, int padded_dim, int head_dim, float* result) {
  const float inverse = 1.0f / state.sum[col];
  const float* out = state.out + static_cast<size_t>(col) * static_cast<size_t>(padded_dim);
  for (int i = 0; i < head_dim; ++i) result[i] = out[i] * inverse;
}

}  // namespace frugal::llm
