// Attention over a KvCache, bit-identical however the work is cut up.
//
// Positions are cut into spans of one or four chunks of 256 tokens at fixed places. A span yields (m, l, o):
// maximum, sum of exponentials, weighted values; spans are merged in a fixed order (Milakov and Gimelshein
// 2018). A masked token has weight exactly 0 and adds exactly nothing, so a query's result is the same
// whether it is computed alone, in a verify window, or in a prefill tile, and whether chunks are spread over
// threads or not.
#pragma once

#include <cstddef>

#include "llm/kv/kv_cache.h"

namespace frugal::llm {

// Consecutive query rows of one sequence against one KV head.
struct AttentionTile {
  const KvCache* cache = nullptr;
  int layer = 0;
  int kv_head = 0;
  int n_rows = 0;          // query rows
  int group = 1;           // query heads that share the KV head
  int first_position = 0;  // of row 0; row i stands at first_position + i
  int window = 0;          // a row sees the last `window` positions, itself included; 0 = all

  // Chunks of a span: of all rows the same, or they may not be one tile.
  int span() const { return window == 0 && cache->spans() && first_position >= kSpanFrom ? kMaxSpan : 1; }
};

// State of a tile's columns (col = row * group + head): what a span yields, and what merging accumulates.
struct AttentionState {
  float* max = nullptr;  // [n_cols]
  float* sum = nullptr;  // [n_cols]
  float* out = nullptr;  // [n_cols, width], width as in KvCache::sum_width()
};

// Floats of scratch that attend wants for n_cols columns.
size_t attention_scratch_floats(int n_cols);

// Chunks [first, last) that the tile sees.
struct ChunkRange {
  int first, last;
};
ChunkRange visible_chunks(const AttentionTile& tile);

// Columns [first, last) as if they had seen nothing yet.
void clear_state(const AttentionState& state, int first, int last, int width);

// Attention of the tile over chunks, from the beginning of a span on; overwrites `state` and `part`.
void attend(const AttentionTile& tile, const KvQueries& queries, ChunkRange chunks,
            const AttentionState& state, const AttentionState& part, float* scratch);

// Columns [first, last) of total <- those of total merged with part, of later chunks.
void merge_state(const AttentionState& total, const AttentionState& part, int first, int last, int width);

// out / sum of columns [first, last), in place, as values [last - first, head_dim].
void finish_columns(const AttentionTile& tile, const AttentionState& state, int first, int last,
                    float* values);

}  // namespace frugal::llm
