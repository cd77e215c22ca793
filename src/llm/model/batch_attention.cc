// Work is cut into tiles (a KV head times some query rows) and, where those are too few for the team, tiles
// into runs of chunks of the cache. How it is cut never changes a result: chunks are merged in order to
// segments, and those in order to the whole, whoever computes what.
#include "llm/model/batch_attention.h"

#include <algorithm>
#include <cstring>
#include <thread>

namespace frugal::llm {
namespace {

// Floats that a query's form for a codec may have.
constexpr size_t codec_floats(size_t dim) { return 2 * dim + 256; }
constexpr int kTileRows = 16;       // query rows of an attention tile
constexpr int kNarrowColumns = 12;  // of a tile over few chunks: as many as the widest kernel takes at once
constexpr size_t kMaxPartFloats = (16 << 20) / 4;  // 16 MiB of chunk states at the most
constexpr int kSegmentChunks = 4;
constexpr int kFinishedColumns = 6;  // of a shared tile, by one member at a time
static_assert(kSegmentChunks == kMaxSpan);

size_t padded_dim(const ModelConfig& config) {
  return (static_cast<size_t>(config.head_dim) + kPanelRows - 1) / kPanelRows * kPanelRows;
}
size_t max_columns(const ModelConfig& config) { return static_cast<size_t>(kTileRows * config.group()); }

int width_of(const AttentionTile& tile) { return tile.cache->sum_width(tile.layer, tile.kv_head); }

// Calls f(first, last) for the chunks of each run of `n` at fixed places.
template <typename F>
void for_each_run(ChunkRange chunks, int n, F f) {
  for (int first = chunks.first, last; first < chunks.last; first = last) {
    last = std::min(chunks.last, (first / n + 1) * n);
    f(first, last);
  }
}

// State number `run` within a tile's parts.
AttentionState part_state(float* parts, int run, int n_cols, int width) {
  float* at = parts + static_cast<size_t>(run) * static_cast<size_t>(n_cols * (width + 2));
  return {at, at + n_cols, at + 2 * n_cols};
}

}  // namespace

Result<AttentionScratch> AttentionScratch::allocate(const ModelConfig& config, int n_ctx, int n_threads) {
  AttentionScratch s;
  // Of a member: queries, states of total, segment and part, a codec's form of the queries, scores, where
  // finished values stand too.
  const auto threads = static_cast<size_t>(n_threads), n_chunks = static_cast<size_t>(n_ctx) / kKvChunk + 1;
  const size_t dim = padded_dim(config), n_cols = max_columns(config);
  s.member_stride_ = (n_cols * (dim * 4 + codec_floats(dim) + 3 * kMaxSumsBeyond + 6) +
                      std::max(attention_scratch_floats(static_cast<int>(n_cols)), n_cols * dim) + 1023) /
                     1024 * 1024;
  FRUGAL_TRY(s.members_, Buffer::allocate(threads * s.member_stride_ * sizeof(float)));
  s.part_capacity_ = std::min(kMaxPartFloats, 4 * threads * n_cols * n_chunks * (dim + kMaxSumsBeyond + 2));
  FRUGAL_TRY(s.parts_, Buffer::allocate(s.part_capacity_ * sizeof(float)));
  s.pieces_ = std::vector<PieceRange>(threads);
  s.progress_ = std::vector<Progress>(4 * threads);
  s.turns_.resize(threads);
  s.shared_.resize(threads);
  for (auto& list : s.shared_) list.reserve(s.progress_.size());
  s.query_stride_ = n_cols * (dim + codec_floats(dim));
  FRUGAL_TRY(s.queries_, Buffer::allocate(s.progress_.size() * s.query_stride_ * sizeof(float)));
  return s;
}

BatchAttention::BatchAttention(TeamMember member, const ModelConfig& config, std::span<const BatchSpan> spans,
                               const float* q, size_t q_stride, Activations& out, AttentionScratch& scratch)
    : member_(member),
      config_(config),
      spans_(spans),
      q_(q),
      q_stride_(q_stride),
      out_(out),
      s_(scratch),
      t_(tile_scratch()),
      shared_(scratch.shared_[static_cast<size_t>(member.idx)]) {}

BatchAttention::TileScratch BatchAttention::tile_scratch() const {
  const size_t dim = padded_dim(config_), width = dim + kMaxSumsBeyond, n_cols = max_columns(config_);
  float* at = s_.members_.as<float>() + static_cast<size_t>(member_.idx) * s_.member_stride_;
  const auto take = [&](size_t n) {
    float* taken = at;
    at += n;
    return taken;
  };
  TileScratch t;
  t.q = take(n_cols * dim);
  t.codec = reinterpret_cast<std::byte*>(take(n_cols * codec_floats(dim)));
  for (AttentionState* state : {&t.total, &t.segment, &t.part})
    *state = {take(n_cols), take(n_cols), take(n_cols * width)};
  t.scores = at;
  return t;
}

void BatchAttention::run(int layer, int begin, int end) {
  layer_ = layer, begin_ = begin, end_ = end, tile_rows_ = kTileRows;
  const auto size = static_cast<size_t>(member_.size);
  // Few chunks cannot be shared evenly: rows are cut up too.
  size_t n_chunks = 0;
  for_each_tile([&](const BatchSpan&, const AttentionTile& tile, int) {
    const ChunkRange chunks = visible_chunks(tile);
    n_chunks += static_cast<size_t>(chunks.last - chunks.first);
  });
  if (size > 1 && n_chunks < 8 * size) tile_rows_ = std::max(1, kNarrowColumns / config_.group());
  size_t n_tiles = 0, n_segments = 0, n_floats[2] = {};  // of states of chunks, of segments
  bool spans = false;
  for_each_tile([&](const BatchSpan&, const AttentionTile& tile, int) {
    ++n_tiles;
    spans = spans || tile.span() > 1;
    const auto state = static_cast<size_t>(tile.n_rows * tile.group * (width_of(tile) + 2));
    for_each_run(visible_chunks(tile), kSegmentChunks, [&](int first, int last) {
      ++n_segments;
      n_floats[0] += state * static_cast<size_t>(last - first);
      n_floats[1] += state;
    });
  });
  const bool even = tile_rows_ < kTileRows && spans_.size() == 1 && n_tiles % size == 0;
  const bool segments = spans || n_segments >= 4 * size;
  if (even || n_tiles >= 4 * size || size == 1 || n_floats[segments ? 1 : 0] > s_.part_capacity_)
    return deal_tiles();
  share_runs(segments ? kSegmentChunks : 1);
}

// Many tiles, or as many for each member: each is one member's. Later rows see more: dealing them out in turn
// balances the members.
void BatchAttention::deal_tiles() {
  int tile_idx = 0;
  for_each_tile([&](const BatchSpan& span, const AttentionTile& tile, int first_row) {
    if (tile_idx++ % member_.size != member_.idx) return;
    const KvQueries queries = queries_at(tile, t_.q, t_.codec);
    gather(span, tile, first_row, queries);
    bool begun = false;
    for_each_run(visible_chunks(tile), kSegmentChunks, [&](int first, int last) {
      attend(tile, queries, {first, last}, begun ? t_.segment : t_.total, t_.part, t_.scores);
      if (begun) merge_state(t_.total, t_.segment, 0, queries.n_cols, width_of(tile));
      begun = true;
    });
    finish(span, tile, first_row, t_.total, 0, queries.n_cols);
  });
}

// Few tiles: members take runs of `length` chunks, segments or single ones. Each goes through a range of all
// tiles' runs in order, so that what a cache asks for ahead is what comes next; who is done takes from the
// ends of the others' ranges, and then finishes tiles whose runs are all done, some columns at a time.
void BatchAttention::share_runs(int length) {
  shared_.clear();
  float* parts = s_.parts_.as<float>();
  int n_pieces = 0;
  for_each_tile([&](const BatchSpan& span, const AttentionTile& tile, int first_row) {
    const ChunkRange chunks = visible_chunks(tile);
    const int n_runs = (chunks.last - 1) / length - chunks.first / length + 1;
    float* q = s_.queries_.as<float>() + shared_.size() * s_.query_stride_;
    auto* codec = reinterpret_cast<std::byte*>(q + max_columns(config_) * padded_dim(config_));
    shared_.push_back({&span, tile, first_row, n_pieces, n_runs, chunks, parts, queries_at(tile, q, codec)});
    parts += static_cast<size_t>(n_runs * tile.n_rows * tile.group * (width_of(tile) + 2));
    n_pieces += n_runs;
  });
  const uint32_t turn = ++s_.turns_[static_cast<size_t>(member_.idx)];
  const auto attend_piece = [&](int piece) {
    size_t i = shared_.size() - 1;
    while (shared_[i].first_piece > piece) --i;
    const auto& of = shared_[i];
    prepare_once(i, turn);
    const int run = piece - of.first_piece, place = of.chunks.first / length + run;  // among all
    const ChunkRange chunks = {std::max(of.chunks.first, place * length),
                               std::min(of.chunks.last, (place + 1) * length)};
    attend(of.tile, of.queries, chunks, part_state(of.parts, run, of.queries.n_cols, width_of(of.tile)),
           t_.part, t_.scores);
    s_.progress_[i].runs.add(turn);
  };
  PieceRange& own = s_.pieces_[static_cast<size_t>(member_.idx)];
  own.set(n_pieces * member_.idx / member_.size, n_pieces * (member_.idx + 1) / member_.size);
  for (int piece; (piece = own.take_first()) >= 0;) attend_piece(piece);
  for (int spins = 0;; ++spins) {
    for (int i = 1; i < member_.size; ++i) {  // who comes late has its range taken too
      PieceRange& other = s_.pieces_[static_cast<size_t>((member_.idx + i) % member_.size)];
      for (int piece; (piece = other.take_last()) >= 0;) attend_piece(piece);
    }
    bool all = true;
    for (size_t i = 0; i < shared_.size(); ++i) {
      const auto& of = shared_[i];
      AttentionScratch::Progress& progress = s_.progress_[i];
      const int n_cols = of.queries.n_cols, n_shares = (n_cols + kFinishedColumns - 1) / kFinishedColumns;
      if (progress.shares.of(turn) >= n_shares) continue;
      all = false;
      if (progress.runs.of(turn) < of.n_runs) continue;
      for (int share; (share = progress.shares.add(turn)) < n_shares;)
        finish_share(of, length, n_cols * share / n_shares, n_cols * (share + 1) / n_shares);
    }
    if (all) return;
    if (spins > 1000) std::this_thread::yield();
  }
}

// Columns [begin, end) of a shared tile whose runs are done.
void BatchAttention::finish_share(const AttentionScratch::SharedTile& of, int length, int begin,
                                  int end) const {
  const int n_cols = of.queries.n_cols, width = width_of(of.tile);
  clear_state(t_.total, begin, end, width);
  int run = 0;
  for_each_run(of.chunks, kSegmentChunks, [&](int first, int last) {
    const bool merged = length == kSegmentChunks || last - first == 1;
    if (!merged) clear_state(t_.segment, begin, end, width);
    for_each_run({first, last}, length, [&](int, int) {
      merge_state(merged ? t_.total : t_.segment, part_state(of.parts, run++, n_cols, width), begin, end,
                  width);
    });
    if (!merged) merge_state(t_.total, t_.segment, begin, end, width);
  });
  finish(*of.span, of.tile, of.first_row, t_.total, begin, end);
}

// The queries of a shared tile are prepared by who wants them first; others wait.
void BatchAttention::prepare_once(size_t idx, uint32_t turn) const {
  AttentionScratch::Progress& progress = s_.progress_[idx];
  if (progress.prepared.of(turn) > 0) return;
  if (progress.preparing.add(turn) == 0) {
    const auto& of = shared_[idx];
    gather(*of.span, of.tile, of.first_row, of.queries);
    progress.prepared.add(turn);
  }
  for (int spins = 0; progress.prepared.of(turn) == 0; ++spins) {
    if (spins > 1000) std::this_thread::yield();
  }
}

// Calls f(span, tile, first_row) for every tile of the call's rows, in a fixed order. Tiles of a span are as
// large as each other, but for the last, and for one that ends where rows begin to see more at once.
template <typename F>
void BatchAttention::for_each_tile(F f) const {
  for (const BatchSpan& span : spans_) {
    const int end = std::min(span.n_rows, end_), n_rows = end - begin_;
    if (n_rows <= 0) continue;
    const int n_tiles = (n_rows + tile_rows_ - 1) / tile_rows_, step = (n_rows + n_tiles - 1) / n_tiles;
    for (int first_row = begin_, next; first_row < end; first_row = next) {
      next = std::min(first_row + step, end);
      const int turn = kSpanFrom - span.first_position;
      if (first_row < turn && turn < next) next = turn;
      for (int kv_head = 0; kv_head < config_.n_kv_heads; ++kv_head) {
        AttentionTile tile;
        tile.cache = span.cache;
        tile.layer = layer_;
        tile.kv_head = kv_head;
        tile.n_rows = next - first_row;
        tile.group = config_.group();
        tile.first_position = span.first_position + first_row;
        tile.window = config_.window_of(layer_);
        f(span, tile, first_row);
      }
    }
  }
}

KvQueries BatchAttention::queries_at(const AttentionTile& tile, float* q, std::byte* codec) const {
  return {tile.n_rows * tile.group, q, codec, tile.first_position, tile.group, tile.window};
}

// The queries of a tile, gathered to [col, padded_dim] and prepared for the cache's codec.
void BatchAttention::gather(const BatchSpan& span, const AttentionTile& tile, int first_row,
                            const KvQueries& queries) const {
  const auto head_dim = static_cast<size_t>(config_.head_dim);
  const size_t dim = padded_dim(config_);
  auto* to = const_cast<float*>(queries.q);
  for (int row = 0; row < tile.n_rows; ++row) {
    const float* q = q_ + static_cast<size_t>(span.first_row + first_row + row) * q_stride_;
    for (int head = 0; head < tile.group; ++head, to += dim) {
      std::memcpy(to, q + static_cast<size_t>(tile.kv_head * tile.group + head) * head_dim,
                  head_dim * sizeof(float));
      std::fill(to + head_dim, to + dim, 0.0f);
    }
  }
  tile.cache->prepare(tile.layer, tile.kv_head, queries);
}

// Writes a tile's finished columns [first, last) to their rows of the result.
void BatchAttention::finish(const BatchSpan& span, const AttentionTile& tile, int first_row,
                            const AttentionState& state, int first, int last) const {
  const float* values = t_.scores;
  finish_columns(tile, state, first, last, t_.scores);
  for (int col = first; col < last; ++col, values += config_.head_dim) {
    const int row = col / tile.group, head = tile.kv_head * tile.group + col % tile.group;
    std::copy_n(values, config_.head_dim,
                out_.row(static_cast<size_t>(span.first_row + first_row + row)) + head * config_.head_dim);
  }
}

}  // namespace frugal::llm
