// The CSR cache: every token is coded when it is stored, and the newest are kept whole beside their codes.
//
// Which form a query row sees is a matter of positions alone: a row in block c (of 64 tokens) sees blocks c
// and c - 1 whole, older ones coded, and the first 4 tokens always whole. So the last 65 to 128 tokens are
// whole, and a row sees the same whether it comes alone, in a verify window or in a prompt's chunk. Three
// blocks stand in the ring: a forward pass may store 64 rows ahead, and as many can be taken back.
//
// Whole tokens are held with 8 bits: keys less their mean, scored with queries in floats (with the mean and
// queries of 8 bits the newest 64 cost a KL of 0.001, a fifth of all that csr:2.6 costs), values in the
// coordinates of their atoms. Keys of the first 4 tokens, unlike all others, are floats.
// Scores of coded keys: the query is taken to the coordinates of the atoms once and multiplied with integer
// levels; the mean of the keys, which turns with the position, is a product of integers with a table of
// cosines. Values: weights of a chunk as 8-bit integers times levels, unless all of them are negligible
// beside those of whole tokens. docs/design/kv-codec.md.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "base/text.h"
#include "llm/kernel/codes.h"
#include "llm/kernel/kernel.h"
#include "llm/kv/csr_book.h"
#include "llm/kv/csr_mean.h"
#include "llm/kv/csr_plan.h"
#include "llm/tensor/buffer.h"

namespace frugal::llm {
namespace {

constexpr int kSinks = 4;
constexpr int kScoreTile = 12;        // columns that are scored together
constexpr float kNegligible = 0.01f;  // share of a query's weights that may be left out
constexpr int kRingBlocks = 3;
constexpr int kRingTokens = kRingBlocks * kKvBlock;
constexpr size_t kChunkPanels = kKvChunk / 16;
static_assert(kKvChunk <= kMaxValueBlocks * kCodeBlock && kKvBlock == kCodeBlock);

class CsrCache final : public KvCache {
 public:
  CsrCache(const KvShape& shape, std::shared_ptr<const CsrPlan> plan)
      : KvCache(shape, KvFormat::kCsr), plan_(std::move(plan)) {
    for (auto& slot : slots_) slot.store(-1, std::memory_order_relaxed);
    for (int code = 0; code < 16; ++code) scales_[static_cast<size_t>(code)] = token_scale(code);
  }

  Status reserve() {
    for (const SidePlan& side : plan_->sides) {
      code_origin_.push_back(chunk_bytes_);
      chunk_bytes_ += kChunkPanels * side.panel_bytes;
    }
    const size_t n_chunks = (panels(shape_.max_blocks() * kKvBlock) + kChunkPanels - 1) / kChunkPanels;
    FRUGAL_TRY(codes_, Buffer::allocate(n_chunks * chunk_bytes_ + 64, Pages::kHuge));
    const size_t n_heads = static_cast<size_t>(shape_.n_layers) * heads();
    FRUGAL_TRY(whole_, Buffer::allocate(n_heads * whole_bytes()));
    mean_ = TurnedMean(*plan_, shape_.max_blocks());
    return {};
  }

  int max_rows_ahead() const override { return kKvBlock; }
  bool can_rewind(int n_held, int n_past) const override {
    if (n_past == n_held || n_past == 0) return true;
    for (int b = std::max(0, n_past / kKvBlock - 1); b <= (n_past - 1) / kKvBlock; ++b) {
      if (slots_[b % kRingBlocks].load(std::memory_order_relaxed) != b) return false;
    }
    return true;
  }

  void store(int layer, int position, const float* k, const float* v) override {
    for (int head = 0; head < shape_.n_kv_heads; ++head, k += dim(), v += dim())
      store_part(layer, head, position, k, v);
  }
  bool stores_parts() const override { return true; }
  void store_part(int layer, int head, int position, const float* k, const float* v) override {
    slots_[position / kKvBlock % kRingBlocks].store(position / kKvBlock, std::memory_order_relaxed);
    const Whole whole = whole_of(layer, head);
    alignas(64) float x[kMaxCodedDim], y[kMaxCodedDim];
    if (k != nullptr) {
      const SidePlan& keys = plan_->side(layer, KvSide::kKeys, head);
      mean_.at(layer, keys.mean.data(), position, x);
      for (size_t i = 0; i < dim(); ++i) x[i] = k[i] - x[i];
      put_whole_key(whole.block_keys(position / kKvBlock, dim()), static_cast<size_t>(position % kKvBlock),
                    x);
      if (position < kSinks) std::copy_n(k, dim(), whole.sink_keys + static_cast<size_t>(position) * dim());
      analyse(keys, x, y);
      put_codes(layer, KvSide::kKeys, head, position, y);
    }
    if (v != nullptr) {
      const SidePlan& values = plan_->side(layer, KvSide::kValues, head);
      for (size_t i = 0; i < dim(); ++i) x[i] = v[i] - values.mean[i];
      analyse(values, x, y);
      put_whole_value(whole.values, whole.value_scales, position % kRingTokens, y);
      if (position < kSinks) put_whole_value(whole.sink_values, whole.sink_scales, position, y);
      put_codes(layer, KvSide::kValues, head, position, y);
    }
  }

  size_t query_scratch_bytes(int n_cols) const override {
    const auto n = static_cast<size_t>(n_cols);
    return (n + kTurnCols - 1) / kTurnCols * TurnedMean::query_floats(dim()) * sizeof(float) +
           n * column_bytes();
  }

  void prepare(int layer, int head, const KvQueries& queries) const override {
    const Prepared p = prepared(queries);
    const SidePlan& side = plan_->side(layer, KvSide::kKeys, head);
    const LevelPlan& levels = plan_->levels_of(layer, KvSide::kKeys);
    constexpr size_t kTile = CodeBook::kMaxCols;
    alignas(64) float tile[kTile * kMaxCodedDim], products[kTile * kBookEntries];
    std::fill(p.turns, p.negligible, 0.0f);
    const auto n_cols = static_cast<size_t>(queries.n_cols), width = 4 * static_cast<size_t>(side.n_groups);
    for (size_t first = 0; first < n_cols; first += kTile) {
      const size_t n = std::min(kTile, n_cols - first);
      transform(side.synthesis, queries.q + first * dim(), n, tile);
      if (!side.book.empty()) side.book.products(tile, n, products);
      for (size_t c = 0; c < n; ++c) {
        const size_t col = first + c;
        float* y = tile + c * dim();
        if (!side.book.empty()) {
          p.book_scales[col] =
              code_kernels().quantize_products(products + c * kBookEntries, p.book + col * kBookEntries);
        }
        for (size_t i = 0; i < width; ++i) y[i] *= levels.scale[side.bits[i / 4]];
        p.code_scales[col] =
            quantize_column(y, static_cast<int>(width), p.codes + col * width, &p.code_zeros[col]);
        p.code_zeros[col] *= kLevelCentre;
        mean_.factors(layer, queries.q + col * dim(), side.mean.data(), col % kTurnCols,
                      p.turns_of(static_cast<int>(col / kTurnCols), dim()));
      }
    }
    if (queries.window == 0) find_negligible(layer, head, queries, p);
  }

  const float* negligible(const KvQueries& queries) const override {
    return queries.window > 0 ? nullptr : prepared(queries).negligible;
  }

  void score_chunk(int layer, int head, int block, int n_tokens, const KvQueries& queries, float* scores,
                   size_t stride) const override {
    const Prepared p = prepared(queries);
    const Whole whole = whole_of(layer, head);
    const int n_blocks = (n_tokens + kKvBlock - 1) / kKvBlock, n_cols = queries.n_cols;
    // Of the columns, those that see block i whole; never fewer than of the block before.
    int n_whole[kKvChunk / kKvBlock] = {};
    for (int i = 0; i < n_blocks; ++i) n_whole[i] = queries.first_col_at((block + i + 2) * kKvBlock);
    TurnedMean::Turned turned[kScoreTile / kTurnCols];
    for (int tile = 0; tile < n_cols; tile += kScoreTile) {
      const int end = std::min(n_cols, tile + kScoreTile);
      turn(layer, block, p, tile, end, turned);
      for (int i = 0; i < n_blocks; ++i) {
        if (tile == 0 && n_whole[i] < n_cols) prefetch_block(layer, KvSide::kKeys, head, block + i + 2);
        const int middle = std::clamp(n_whole[i], tile, end);
        float* rows = scores + static_cast<size_t>(i) * stride + static_cast<size_t>(tile) * kKvBlock;
        score_mean(layer, block + i, turned, end - tile, rows);
        add_whole_scores(whole.block_keys(block + i, dim()), std::min(kKvBlock, n_tokens - i * kKvBlock),
                         queries.q + static_cast<size_t>(tile) * dim(), middle - tile, rows);
        add_code_scores(layer, head, block + i, p, middle, end, rows + (middle - tile) * kKvBlock);
        if (tile == 0 && n_whole[i] < n_cols)
          prefetch_block(layer, KvSide::kValues, head, block + i);  // read once the chunk has its scores
      }
    }
    for (int col = 0; block == 0 && col < n_cols; ++col)
      score_sinks(whole, queries.q + static_cast<size_t>(col) * dim(), scores + col * kKvBlock);
  }

  void add_values(int layer, int head, int block, int n_tokens, const KvQueries& queries,
                  const float* weights, size_t stride, float* out, float* scratch) const override {
    const Whole whole = whole_of(layer, head);
    const int n_blocks = (n_tokens + kKvBlock - 1) / kKvBlock;
    const auto width = static_cast<size_t>(sum_width(layer, head));
    // Of the columns, those that see block i whole; never fewer than of the block before.
    int n_whole[kKvChunk / kKvBlock] = {};
    for (int i = 0; i < n_blocks; ++i) {
      n_whole[i] = queries.first_col_at((block + i + 2) * kKvBlock);
      const auto slot = static_cast<size_t>((block + i) % kRingBlocks) * kKvBlock;
      if (n_whole[i] > 0) {
        add_whole(whole.values + slot * dim(), whole.value_scales + slot * dim() / 32,
                  std::min(kKvBlock, n_tokens - i * kKvBlock), weights + static_cast<size_t>(i) * stride,
                  n_whole[i], out, width, scratch);
      }
    }
    for (size_t col = 0; col < static_cast<size_t>(n_whole[0]); ++col)
      std::fill(out + col * width + dim(), out + (col + 1) * width, 0.0f);
    if (block == 0 && n_whole[0] < queries.n_cols) {
      const auto first = static_cast<size_t>(n_whole[0]);
      add_whole(whole.sink_values, whole.sink_scales, kSinks, weights + first * kKvBlock,
                queries.n_cols - n_whole[0], out + first * width, width, scratch);
    }
    // Columns that see the first n of the blocks coded.
    for (int n = n_blocks; n > 0; --n) {
      const int first = n_whole[n - 1], last = n == n_blocks ? queries.n_cols : n_whole[n];
      if (first == last) continue;
      const auto skipped = static_cast<size_t>(first);
      add_codes(layer, head, block, n, weights + skipped * kKvBlock, stride, last - first,
                out + skipped * width, width);
    }
  }

  // Sums of a column: of coefficients [dim], then of the weights of each entry of a book.
  int sum_width(int layer, int head) const override {
    return shape_.head_dim +
           (plan_->side(layer, KvSide::kValues, head).book.empty() ? 0 : static_cast<int>(kBookEntries));
  }
  void restore(int layer, int head, const float* sums, float* out) const override {
    const SidePlan& side = plan_->side(layer, KvSide::kValues, head);
    alignas(64) float y[kMaxCodedDim], x[kMaxCodedDim];
    std::copy_n(sums, dim(), y);
    if (!side.book.empty()) side.book.add_sums(sums + dim(), y);
    transform(side.synthesis, y, 1, x);
    for (size_t i = 0; i < dim(); ++i) out[i] = x[i] + side.mean[i];
  }

  uint64_t bytes_used(int n_tokens) const override {
    const uint64_t n_heads = static_cast<uint64_t>(shape_.n_layers) * heads();
    const auto n_whole = static_cast<uint64_t>(std::min(n_tokens, kRingTokens));
    return code_bytes(n_tokens) + n_heads * (n_whole * whole_token_bytes() + sink_bytes());
  }

  // Image: the blocks that stand in the ring, the whole tokens, then for each layer, of keys, then of values,
  // the codes of each head in whole panels.
  uint64_t save_bytes(int n_tokens) const override {
    return sizeof(int32_t) * 4 + whole_.size() + code_bytes(n_tokens);
  }
  void save(int n_tokens, std::byte* image) const override {
    int32_t slots[4] = {};
    for (int i = 0; i < kRingBlocks; ++i) slots[i] = slots_[i].load(std::memory_order_relaxed);
    std::memcpy(image, slots, sizeof slots);
    image += sizeof slots;
    std::memcpy(image, whole_.data(), whole_.size());
    image += whole_.size();
    for_each_run(n_tokens, [&](size_t at, size_t n) {
      std::memcpy(image, codes_.data() + at, n);
      image += n;
    });
  }
  void load(int n_tokens, const std::byte* image) override {
    int32_t slots[4];
    std::memcpy(slots, image, sizeof slots);
    for (int i = 0; i < kRingBlocks; ++i) slots_[i].store(slots[i], std::memory_order_relaxed);
    image += sizeof slots;
    std::memcpy(whole_.data(), image, whole_.size());
    image += whole_.size();
    for_each_run(n_tokens, [&](size_t at, size_t n) {
      std::memcpy(codes_.data() + at, image, n);
      image += n;
    });
  }

 private:
  size_t heads() const { return static_cast<size_t>(shape_.n_kv_heads); }
  size_t dim() const { return static_cast<size_t>(shape_.head_dim); }
  static size_t panels(int n_tokens) { return static_cast<size_t>((n_tokens + 15) / 16); }
  uint64_t code_bytes(int n_tokens) const {
    uint64_t bytes = 0;
    for (const SidePlan& side : plan_->sides) bytes += panels(n_tokens) * side.panel_bytes;
    return bytes;
  }

  // ---- whole tokens: for each layer and head a ring of keys and values, and the sinks ----

  // Keys of a block, side by side: less the mean they are scales [dim / 32, token] * levels [dim, token].
  struct WholeKeys {
    int8_t* levels;
    uint16_t* scales;
  };
  struct Whole {
    float* sink_keys;        // [kSinks, dim]
    int8_t* keys;            // [kRingBlocks, dim, kKvBlock]
    int8_t* values;          // [kRingTokens, dim]
    int8_t* sink_values;     // [kSinks, dim]
    uint16_t* key_scales;    // [kRingBlocks, dim / 32, kKvBlock]
    uint16_t* value_scales;  // [kRingTokens, dim / 32]
    uint16_t* sink_scales;   // [kSinks, dim / 32]

    WholeKeys block_keys(int block, size_t dim) const {
      const auto first = static_cast<size_t>(block % kRingBlocks) * kKvBlock;
      return {keys + first * dim, key_scales + first * dim / 32};
    }
  };
  size_t whole_token_bytes() const { return 2 * (dim() + dim() / 16); }
  size_t sink_bytes() const { return kSinks * (dim() * sizeof(float) + dim() + dim() / 16); }
  size_t whole_bytes() const { return kRingTokens * whole_token_bytes() + sink_bytes(); }
  Whole whole_of(int layer, int head) const {
    auto* at = const_cast<std::byte*>(whole_.data()) +
               (static_cast<size_t>(layer) * heads() + static_cast<size_t>(head)) * whole_bytes();
    Whole w;
    w.sink_keys = reinterpret_cast<float*>(at);
    w.keys = reinterpret_cast<int8_t*>(w.sink_keys + kSinks * dim());
    w.values = w.keys + kRingTokens * dim();
    w.sink_values = w.values + kRingTokens * dim();
    w.key_scales = reinterpret_cast<uint16_t*>(w.sink_values + kSinks * dim());
    w.value_scales = w.key_scales + kRingTokens * dim() / 32;
    w.sink_scales = w.value_scales + kRingTokens * dim() / 32;
    return w;
  }

  void put_whole_key(const WholeKeys& keys, size_t token, const float* x) const {
    int8_t q[kMaxCodedDim];
    float scale[kMaxCodedDim / 32];
    ActSum sum[kMaxCodedDim / 32];
    kernels().quantize_blocks(x, dim(), q, scale, sum);
    for (size_t i = 0; i < dim(); ++i) keys.levels[i * kKvBlock + token] = q[i];
    for (size_t i = 0; i < dim() / 32; ++i) keys.scales[i * kKvBlock + token] = f32_to_f16(scale[i]);
  }
  void put_whole_value(int8_t* values, uint16_t* scales, int slot, const float* y) const {
    float scale[kMaxCodedDim / 32];
    ActSum sum[kMaxCodedDim / 32];
    const auto token = static_cast<size_t>(slot);
    kernels().quantize_blocks(y, dim(), values + token * dim(), scale, sum);
    kernels().to_f16(scale, dim() / 32, scales + token * dim() / 32);
  }

  struct Prepared;
  // Queries [tile, end) turned for the chunk of `block`; then the mean's part of a block's scores.
  void turn(int layer, int block, const Prepared& p, int tile, int end, TurnedMean::Turned* turned) const {
    for (int col = tile; col < end; col += kTurnCols, ++turned)
      mean_.turn(layer, block * kKvBlock / kKvChunk, p.turns_of(col / kTurnCols, dim()), turned);
  }
  void score_mean(int layer, int block, const TurnedMean::Turned* turned, int n_cols, float* scores) const {
    for (; n_cols > 0; n_cols -= kTurnCols, ++turned, scores += kTurnCols * kKvBlock)
      mean_.scores(layer, block, *turned, static_cast<size_t>(std::min(n_cols, int{kTurnCols})), scores);
  }
  // Of the first n_tokens of a block, what they are beside the mean, for n_cols <= kScoreTile columns.
  void add_whole_scores(const WholeKeys& keys, int n_tokens, const float* q, int n_cols,
                        float* scores) const {
    const size_t n_panels = static_cast<size_t>(n_tokens + 15) / 16, n = static_cast<size_t>(n_cols);
    if (n == 0) return;
    alignas(64) float products[kScoreTile * kKvBlock];
    for (size_t i = 0; i < dim() / 32; ++i) {
      kernels().panel_s8({keys.levels + i * 32 * kKvBlock, kKvBlock, 16, n_panels, 32}, q + i * 32, dim(), n,
                         products, kKvBlock, false);
      for (size_t t = 0; t < 16 * n_panels; ++t) {
        const float scale = f16_to_f32(keys.scales[i * kKvBlock + t]);
        for (size_t c = 0; c < n; ++c) scores[c * kKvBlock + t] += products[c * kKvBlock + t] * scale;
      }
    }
  }
  void score_sinks(const Whole& whole, const float* q, float* scores) const {
    for (size_t t = 0; t < kSinks; ++t) scores[t] = dot(q, whole.sink_keys + t * dim());
  }

  // What is too little to count: a share of what the weights of the first and the newest tokens, which are
  // whole, sum to. All weights sum to no less, and so what is left out to no more than kNegligible of them.
  void find_negligible(int layer, int head, const KvQueries& queries, const Prepared& p) const {
    constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
    const Whole whole = whole_of(layer, head);
    const auto position_of = [&](int col) { return queries.first_position + col / queries.group; };
    alignas(64) float scores[kScoreTile * kKvBlock];
    TurnedMean::Turned turned[kScoreTile / kTurnCols];
    for (int tile = 0; tile < queries.n_cols; tile += kScoreTile) {
      const int n = std::min(kScoreTile, queries.n_cols - tile);
      const float* q = queries.q + static_cast<size_t>(tile) * dim();
      float max[kScoreTile], sum[kScoreTile] = {};
      std::fill_n(max, kScoreTile, kMinusInfinity);
      // The first `seen` scores of a column.
      const auto add = [&](int c, int seen) {
        if (seen <= 0) return;
        float *row = scores + c * kKvBlock, most, part;
        std::fill(row + seen, row + kKvBlock, kMinusInfinity);
        kernels().softmax(row, 0, 1, &most, &part);
        const float larger = std::max(max[c], most);
        sum[c] = sum[c] * std::exp(max[c] - larger) + part * std::exp(most - larger);
        max[c] = larger;
      };
      for (int c = 0; c < n; ++c) {
        score_sinks(whole, q + static_cast<size_t>(c) * dim(), scores + c * kKvBlock);
        add(c, std::min(kSinks, position_of(tile + c) + 1));
      }
      const int last_block = position_of(tile + n - 1) / kKvBlock;
      for (int block = std::max(0, position_of(tile) / kKvBlock - 1); block <= last_block; ++block) {
        turn(layer, block, p, tile, tile + n, turned);
        score_mean(layer, block, turned, n, scores);
        add_whole_scores(whole.block_keys(block, dim()), kKvBlock, q, n, scores);
        for (int c = 0; c < n; ++c) {
          const int position = position_of(tile + c);
          if (block >= position / kKvBlock - 1) add(c, std::min(kKvBlock, position + 1 - block * kKvBlock));
        }
      }
      for (int c = 0; c < n; ++c) {
        const int n_tokens = std::max(kKvChunk, position_of(tile + c) + 1);
        p.negligible[tile + c] =
            max[c] + std::log(sum[c] * (kNegligible * kKvChunk / static_cast<float>(n_tokens)));
      }
    }
  }
  float dot(const float* a, const float* b) const {
    float lanes[8] = {};
    for (size_t i = 0; i < dim(); i += 8) {
      for (size_t lane = 0; lane < 8; ++lane) lanes[lane] += a[i + lane] * b[i + lane];
    }
    return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
  }

  void add_whole(const int8_t* rows, const uint16_t* row_scales, int n_tokens, const float* weights,
                 int n_cols, float* out, size_t width, float* scratch) const {
    const size_t groups = dim() / 32;
    for (size_t group = 0; group < groups; ++group) {
      float scale[kKvBlock];
      for (size_t t = 0; t < static_cast<size_t>(n_tokens); ++t)
        scale[t] = f16_to_f32(row_scales[t * groups + group]);
      for (size_t col = 0; col < static_cast<size_t>(n_cols); ++col) {
        for (size_t t = 0; t < static_cast<size_t>(n_tokens); ++t)
          scratch[col * kKvBlock + t] = weights[col * kKvBlock + t] * scale[t];
      }
      kernels().panel_s8({rows + group * 32, dim(), 16, 2, static_cast<size_t>(n_tokens)}, scratch, kKvBlock,
                         static_cast<size_t>(n_cols), out + group * 32, width, true);
    }
  }

  // ---- codes: chunk after chunk, in each the sides of the plan, so that pages fill one after the other ----

  std::byte* panel_at(int layer, KvSide of, int head, int panel) const {
    const size_t idx =
        static_cast<size_t>((layer * 2 + (of == KvSide::kValues ? 1 : 0)) * shape_.n_kv_heads + head);
    const auto at = static_cast<size_t>(panel);
    return const_cast<std::byte*>(codes_.data()) + at / kChunkPanels * chunk_bytes_ + code_origin_[idx] +
           at % kChunkPanels * plan_->sides[idx].panel_bytes;
  }
  // Calls f(first byte, bytes) for the panels of the first n_tokens: side after side, in each chunk after
  // chunk.
  template <typename F>
  void for_each_run(int n_tokens, F f) const {
    for (size_t side = 0; side < plan_->sides.size(); ++side) {
      for (size_t chunk = 0, left = panels(n_tokens); left > 0; ++chunk) {
        const size_t n = std::min(left, kChunkPanels);
        f(chunk * chunk_bytes_ + code_origin_[side], n * plan_->sides[side].panel_bytes);
        left -= n;
      }
    }
  }

  // Asks for a block into the second-level cache, every line of it, few at a time: the processor waits when
  // too many are under way. Inlined, or GCC 12 takes a function that only prefetches for one that does
  // nothing.
  [[gnu::always_inline]] void prefetch_block(int layer, KvSide of, int head, int block) const {
    if (block >= shape_.max_blocks()) return;
    const std::byte* at = panel_at(layer, of, head, block * 4);
    const size_t n = 4 * plan_->side(layer, of, head).panel_bytes;
    for (size_t i = 0; i < n; i += 64) __builtin_prefetch(at + i, 0, 2);
  }

  // Of the coefficients that have bits.
  static float mean_square(const SidePlan& side, const float* y) {
    float sum = 0;
    int n = 0;
    for (int g = 0; g < side.n_groups; ++g) {
      if (side.bits[static_cast<size_t>(g)] == 0) continue;
      for (int i = 0; i < kAtomGroup; ++i) sum += y[4 * g + i] * y[4 * g + i];
      n += kAtomGroup;
    }
    return sum / static_cast<float>(n);
  }

  // Of y [dim], which becomes what the book leaves of it.
  void put_codes(int layer, KvSide of, int head, int position, float* y) {
    const SidePlan& side = plan_->side(layer, of, head);
    const LevelPlan& levels = plan_->levels_of(layer, of);
    std::byte* panel = panel_at(layer, of, head, position / 16);
    const int token = position % 16;
    if (!side.book.empty()) {
      const int entry = side.book.nearest(y);
      panel[side.index_offset + static_cast<size_t>(token)] = static_cast<std::byte>(entry);
      side.book.subtract(entry, y);
    }
    if (side.n_groups == 0) return;
    alignas(64) float scaled[kMaxCodedDim];
    uint8_t codes[kMaxCodedDim];
    if (of == KvSide::kValues) {
      const int code = token_scale_code(mean_square(side, y));
      auto& byte = reinterpret_cast<uint8_t*>(panel + side.scale_offset)[token / 2];
      byte = static_cast<uint8_t>(token % 2 == 0 ? (byte & 0xf0) | code : (byte & 0x0f) | code << 4);
      for (int i = 0; i < 4 * side.n_groups; ++i) scaled[i] = y[i] * (1 / token_scale(code));
      y = scaled;
    }
    code_token(side, levels, y, codes);
    uint32_t words[kMaxStreamWords + 1] = {};
    for (int i = 0, at = 0; i < 4 * side.n_groups; at += side.bits[static_cast<size_t>(i / 4)], ++i) {
      const uint64_t code = static_cast<uint64_t>(codes[i]) << at % 32;
      words[at / 32] |= static_cast<uint32_t>(code);
      words[at / 32 + 1] |= static_cast<uint32_t>(code >> 32);
    }
    put_stream(panel, side.layout.n_bits, token, words);
  }

  // Of a block's codes, what they are beside the mean, for columns [first, end), not many.
  void add_code_scores(int layer, int head, int block, const Prepared& p, int first, int end,
                       float* scores) const {
    if (first == end) return;
    const SidePlan& side = plan_->side(layer, KvSide::kKeys, head);
    const LevelPlan& levels = plan_->levels_of(layer, KvSide::kKeys);
    const std::byte* panel = panel_at(layer, KvSide::kKeys, head, block * 4);
    const auto from = static_cast<size_t>(first), n = static_cast<size_t>(end - first);
    if (!side.book.empty()) {
      code_kernels().add_products(panel + side.index_offset, side.panel_bytes, p.book + from * kBookEntries,
                                  n, p.book_scales + from, scores, kKvBlock);
    }
    code_kernels().dot_keys(panel, side.panel_bytes, side.layout, levels.table.data(),
                            p.codes + from * 4 * side.layout.n_groups, n, p.code_zeros + from,
                            p.code_scales + from, scores, kKvBlock);
  }

  // Of n_blocks coded blocks.
  void add_codes(int layer, int head, int block, int n_blocks, const float* weights, size_t stride,
                 int n_cols, float* out, size_t out_width) const {
    const SidePlan& side = plan_->side(layer, KvSide::kValues, head);
    const LevelPlan& levels = plan_->levels_of(layer, KvSide::kValues);
    const std::byte* panel = panel_at(layer, KvSide::kValues, head, block * 4);
    const auto n = static_cast<size_t>(n_blocks);
    alignas(64) float token_scales[kKvChunk];
    for (size_t i = 0; side.n_groups > 0 && i < n; ++i) {
      code_kernels().expand_scales(panel + side.scale_offset + 4 * i * side.panel_bytes, side.panel_bytes,
                                   scales_.data(), token_scales + i * kKvBlock);
    }
    if (block == 0) std::fill_n(token_scales, kSinks, 0.0f);
    constexpr size_t kTile = kMaxValueCols;
    uint8_t integers[kTile * kMaxValueBlocks * kCodeBlock];
    const size_t width = n * kCodeBlock;
    for (int col = 0; col < n_cols;) {
      const float* from[kTile];
      float *sums[kTile], *bins[kTile];
      size_t n_tile = 0;
      for (; col < n_cols && n_tile < kTile; ++col) {
        from[n_tile] = weights + static_cast<size_t>(col) * kKvBlock;
        sums[n_tile] = out + static_cast<size_t>(col) * out_width;
        bins[n_tile] = sums[n_tile] + dim();
        if (nothing(from[n_tile], stride, n)) {
          std::fill(bins[n_tile], sums[n_tile] + out_width, 0.0f);
        } else {
          ++n_tile;
        }
      }
      if (!side.book.empty()) {
        code_kernels().add_to_bins(panel + side.index_offset, side.panel_bytes, block == 0 ? kSinks : 0, n,
                                   from, stride, n_tile, bins);
      }
      if (side.n_groups == 0) continue;
      float scales[kTile];
      int32_t zeros[kTile];
      for (size_t c = 0; c < n_tile; ++c) {
        scales[c] = code_kernels().quantize_weights(from[c], stride, token_scales, n, integers + c * width,
                                                    &zeros[c]);
        // Of weights that are no numbers the sum is anything: no overflow, and the scale is NaN.
        zeros[c] = static_cast<int32_t>(static_cast<uint32_t>(zeros[c]) * kLevelCentre);
      }
      code_kernels().dot_values(panel, side.panel_bytes, n, side.layout, levels.table.data(),
                                levels.scale.data(), integers, n_tile, zeros, scales, sums);
    }
  }
  // Whether all weights of a column are 0.
  static bool nothing(const float* weights, size_t stride, size_t n_blocks) {
    if (weights[0] != 0) return false;
    for (size_t i = 0; i < n_blocks; ++i, weights += stride) {
      if (weights[0] != 0 || std::memcmp(weights, weights + 1, (kKvBlock - 1) * sizeof(float)) != 0)
        return false;
    }
    return true;
  }

  // ---- queries ----

  struct Prepared {
    float* turns;         // [n_cols / kTurnCols, TurnedMean::query_floats()]
    float* negligible;    // [n_cols]
    float* code_scales;   // [n_cols]
    float* book_scales;   // [n_cols]
    int32_t* code_zeros;  // [n_cols]: what levels at the centre add
    int16_t* book;        // [n_cols, kBookEntries]: products with the entries
    int8_t* codes;        // [n_cols, 4 n_groups]

    float* turns_of(int part, size_t dim) const {
      return turns + static_cast<size_t>(part) * TurnedMean::query_floats(dim);
    }
  };
  size_t column_bytes() const { return 16 + 2 * kBookEntries + dim(); }
  Prepared prepared(const KvQueries& queries) const {
    const auto n = static_cast<size_t>(queries.n_cols);
    Prepared p;
    p.turns = reinterpret_cast<float*>(queries.scratch);
    p.negligible = p.turns_of(static_cast<int>((n + kTurnCols - 1) / kTurnCols), dim());
    p.code_scales = p.negligible + n;
    p.book_scales = p.code_scales + n;
    p.code_zeros = reinterpret_cast<int32_t*>(p.book_scales + n);
    p.book = reinterpret_cast<int16_t*>(p.code_zeros + n);
    p.codes = reinterpret_cast<int8_t*>(p.book + n * kBookEntries);
    return p;
  }

  // y [n, dim] = x [n, dim] times a [dim, dim].
  void transform(const std::vector<float>& a, const float* x, size_t n, float* y) const {
    kernels().panel_f32({a.data(), dim(), 16, dim() / 16, dim()}, x, dim(), n, y, dim(), false);
  }
  // Coefficients y [dim] of x [dim].
  void analyse(const SidePlan& side, const float* x, float* y) const {
    kernels().panel_f16({side.analysis.data(), dim(), 16, dim() / 16, dim()}, x, dim(), 1, y, dim(), false);
    for (size_t i = 0; i < side.scale.size(); ++i) y[i] *= side.scale[i];
  }

  std::shared_ptr<const CsrPlan> plan_;
  std::vector<size_t> code_origin_;  // of each side of the plan, in a chunk
  size_t chunk_bytes_ = 0;
  std::array<float, 16> scales_;  // of tokens' values, by code
  Buffer codes_, whole_;
  TurnedMean mean_;
  std::atomic<int> slots_[kRingBlocks];  // the block that stands in each part of the ring
};

class CsrSource final : public KvSource {
 public:
  explicit CsrSource(std::shared_ptr<const CsrPlan> plan) : plan_(std::move(plan)) {}
  std::string name() const override { return plan_->name; }
  uint64_t content_hash() const override { return plan_->hash; }
  Result<std::unique_ptr<KvCache>> make(const KvShape& shape) const override {
    if (shape.n_layers != plan_->n_layers || shape.n_kv_heads != plan_->n_kv_heads ||
        shape.head_dim != plan_->dim)
      return Error{ErrorCode::kInvalidArgument, "the dictionary belongs to a model of another shape"};
    auto cache = std::make_unique<CsrCache>(shape, plan_);
    FRUGAL_TRY_STATUS(cache->reserve());
    return std::unique_ptr<KvCache>(std::move(cache));
  }

 private:
  std::shared_ptr<const CsrPlan> plan_;
};

}  // namespace

Result<std::shared_ptr<const KvSource>> make_csr_source(std::shared_ptr<const Dictionary> dictionary,
                                                        double bits) {
  if (!(bits >= 0.25 && bits <= 4))
    return Error{ErrorCode::kInvalidArgument, strf("csr:%g: bits a channel have to lie in 0.25 to 4", bits)};
  if (dictionary->head_dim % 32 != 0 || dictionary->head_dim > kMaxCodedDim) {
    return Error{
        ErrorCode::kUnsupported,
        strf("a csr cache wants a head size that is a multiple of 32 up to %d, and this model's is %d; use "
             "f16",
             kMaxCodedDim, dictionary->head_dim)};
  }
  return std::shared_ptr<const KvSource>(
      std::make_shared<CsrSource>(std::make_shared<const CsrPlan>(*dictionary, bits)));
}

}  // namespace frugal::llm
