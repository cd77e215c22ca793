// The CSR cache: tokens are held whole when they are stored, and coded a block at a time when they have to
// be.
//
// Which form a query row sees is a matter of positions alone: a row in block c (of 64 tokens) sees blocks c
// and c - 1 whole, older ones coded, and the first 4 tokens always whole. So the last 65 to 128 tokens are
// whole, and a row sees the same whether it comes alone, in a verify window or in a prompt's chunk. Three
// blocks stand in the ring: a forward pass may store 64 rows ahead, and as many can be taken back.
//
// Block c - 2 is coded when the first token of block c is stored: what coding reads (a matrix and a book a
// head, 24 KiB) then comes from memory once for 64 tokens.
// Scores of coded keys: the query is taken to the coordinates of the atoms once and multiplied with integer
// levels; the mean of the keys, which turns with the position, is a product of integers with a table of
// cosines. Values: weights of a chunk as 8-bit integers times levels, unless all of them are negligible
// beside those of whole tokens. docs/design/kv-codec.md.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/text.h"
#include "llm/kernel/codes.h"
#include "llm/kernel/kernel.h"
#include "llm/kv/csr_book.h"
#include "llm/kv/csr_codes.h"
#include "llm/kv/csr_mean.h"
#include "llm/kv/csr_plan.h"
#include "llm/kv/csr_ring.h"

namespace frugal::llm {
namespace {

constexpr int kSinks = CsrRing::kSinks;
constexpr int kScoreTile = CsrRing::kMaxScored;  // columns that are scored together
constexpr float kNegligible = 0.01f;             // share of a query's weights that may be left out
// And of them, as the root of the sum of their squares, that may be of values known roughly: what codes would
// add to those has no one direction.
constexpr float kRough = 0.02f;

class CsrCache final : public KvCache {
 public:
  CsrCache(const KvShape& shape, std::shared_ptr<const CsrPlan> plan)
      : KvCache(shape, KvFormat::kCsr), plan_(std::move(plan)) {}

  Status reserve() {
    FRUGAL_TRY_STATUS(codes_.reserve(shape_, plan_));
    FRUGAL_TRY_STATUS(ring_.reserve(shape_));
    mean_ = TurnedMean(*plan_, shape_.max_blocks());
    return {};
  }

  int max_rows_ahead() const override { return kKvBlock; }
  bool can_rewind(int n_held, int n_past) const override {
    if (n_past == n_held || n_past == 0) return true;
    for (int b = std::max(0, n_past / kKvBlock - 1); b <= (n_past - 1) / kKvBlock; ++b) {
      if (!ring_.holds(0, b)) return false;
    }
    return true;
  }

  void store(int layer, int position, const float* k, const float* v) override {
    for (int head = 0; head < shape_.n_kv_heads; ++head, k += dim(), v += dim())
      store_part(layer, head, position, k, v);
    for (int part = 0; part < 2 * shape_.n_kv_heads; ++part) settle(layer, part, position, position + 1);
  }
  bool stores_parts() const override { return true; }
  void store_part(int layer, int head, int position, const float* k, const float* v) override {
    ring_.enter(layer, position / kKvBlock);
    alignas(64) float x[kMaxCodedDim], y[kMaxCodedDim];
    if (k != nullptr) {
      mean_.at(layer, plan_->side(layer, KvSide::kKeys, head).mean.data(), position, x);
      for (size_t i = 0; i < dim(); ++i) x[i] = k[i] - x[i];
      ring_.store_key(layer, head, position, k, x);
    }
    if (v != nullptr) {
      const SidePlan& values = plan_->side(layer, KvSide::kValues, head);
      for (size_t i = 0; i < dim(); ++i) x[i] = v[i] - values.mean[i];
      analyse(values, x, 1, y);
      ring_.store_value(layer, head, position, y);
    }
  }
  void settle(int layer, int part, int first, int last) override {
    for (int block = (first + kKvBlock - 1) / kKvBlock; block * kKvBlock < last; ++block) {
      // Where tokens were taken back it may have been coded, and have left the ring, before.
      if (block >= 2 && ring_.holds(layer, block - 2))
        codes_.code(layer, part % 2 == 0 ? KvSide::kKeys : KvSide::kValues, part / 2, block - 2, ring_);
    }
  }

  size_t query_scratch_bytes(int n_cols) const override {
    const auto n = static_cast<size_t>(n_cols);
    return (n + kTurnCols - 1) / kTurnCols * TurnedMean::query_floats(dim()) * sizeof(float) +
           product_tables(n) * sizeof(int16_t) + n * column_bytes();
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
          p.codes.book_scales[col] =
              code_kernels().quantize_products(products + c * kBookEntries, p.codes.book, col);
        }
        for (size_t i = 0; i < width; ++i) y[i] *= levels.scale[side.bits[i / 4]];
        p.codes.scales[col] =
            quantize_column(y, static_cast<int>(width), p.codes.x + col * width, &p.codes.zeros[col]);
        p.codes.zeros[col] *= kLevelCentre;
        mean_.factors(layer, queries.q + col * dim(), side.mean.data(), col % kTurnCols,
                      p.turns_of(static_cast<int>(col / kTurnCols), dim()));
      }
    }
    if (queries.window == 0) find_negligible(layer, head, queries, p);
  }

  bool spans() const override { return true; }
  const float* negligible(const KvQueries& queries) const override {
    return queries.window > 0 ? nullptr : prepared(queries).negligible;
  }

  void score_chunk(int layer, int head, int block, int n_tokens, const KvQueries& queries, float* scores,
                   size_t stride) const override {
    const Prepared p = prepared(queries);
    const int n_blocks = (n_tokens + kKvBlock - 1) / kKvBlock, n_cols = queries.n_cols;
    // Of the columns, those that see block i whole; never fewer than of the block before.
    int n_whole[kKvChunk / kKvBlock] = {};
    for (int i = 0; i < n_blocks; ++i) n_whole[i] = queries.first_col_at((block + i + 2) * kKvBlock);
    TurnedMean::Turned turned[kScoreTile / kTurnCols];
    for (int tile = 0; tile < n_cols; tile += kScoreTile) {
      const int end = std::min(n_cols, tile + kScoreTile);
      turn(layer, block, p, tile, end, turned);
      for (int i = 0; i < n_blocks; ++i) {
        if (tile == 0 && n_whole[i] < n_cols) {
          codes_.prefetch(layer, KvSide::kKeys, head, block + i + 2);
          prefetch_restoring(plan_->side(layer, KvSide::kValues, head), block + i);
        }
        const int middle = std::clamp(n_whole[i], tile, end);
        float* rows = scores + static_cast<size_t>(i) * stride + static_cast<size_t>(tile) * kKvBlock;
        score_mean(layer, block + i, turned, end - tile, rows);
        ring_.add_scores(layer, head, block + i, std::min(kKvBlock, n_tokens - i * kKvBlock),
                         queries.q + static_cast<size_t>(tile) * dim(), middle - tile, rows);
        codes_.add_scores(layer, head, block + i, p.codes, middle, end, rows + (middle - tile) * kKvBlock);
        if (tile == 0 && n_whole[i] < n_cols)
          codes_.prefetch(layer, KvSide::kValues, head, block + i);  // read once the chunk has its scores
      }
    }
    for (int col = 0; block == 0 && col < n_cols; ++col)
      ring_.score_sinks(layer, head, queries.q + static_cast<size_t>(col) * dim(), scores + col * kKvBlock);
  }

  void add_values(int layer, int head, int block, int n_tokens, const KvQueries& queries, const KvWeights& w,
                  float* out, float* scratch) const override {
    const float* weights = w.at;
    const size_t stride = w.stride;
    const int n_blocks = (n_tokens + kKvBlock - 1) / kKvBlock;
    const auto width = static_cast<size_t>(sum_width(layer, head));
    // Of the columns, those that see block i whole; never fewer than of the block before.
    int n_whole[kMaxSpan * kKvChunk / kKvBlock] = {};
    for (int i = 0; i < n_blocks; ++i) {
      n_whole[i] = queries.first_col_at((block + i + 2) * kKvBlock);
      if (n_whole[i] > 0) {
        ring_.add_values(layer, head, block + i, std::min(kKvBlock, n_tokens - i * kKvBlock),
                         weights + static_cast<size_t>(i) * stride, n_whole[i], out, width, scratch);
      }
    }
    for (size_t col = 0; col < static_cast<size_t>(n_whole[0]); ++col)
      std::fill(out + col * width + dim(), out + (col + 1) * width, 0.0f);
    if (block == 0 && n_whole[0] < queries.n_cols) {
      const auto first = static_cast<size_t>(n_whole[0]);
      ring_.add_sinks(layer, head, weights + first * kKvBlock, queries.n_cols - n_whole[0],
                      out + first * width, width, scratch);
    }
    float* rough = w.negligible != nullptr ? scratch : nullptr;
    for (int col = 0; rough != nullptr && col < queries.n_cols; ++col) {
      const float part = w.negligible[col] * (kRough / kNegligible);
      rough[col] = part * part / chunk_share(position_of(queries, col));
    }
    // Columns that see the first n of the blocks coded.
    for (int n = n_blocks; n > 0; --n) {
      const int first = n_whole[n - 1], last = n == n_blocks ? queries.n_cols : n_whole[n];
      if (first == last) continue;
      const auto skipped = static_cast<size_t>(first);
      codes_.add_values(layer, head, block, n, weights + skipped * kKvBlock, stride, last - first,
                        out + skipped * width, width, rough == nullptr ? nullptr : rough + skipped);
    }
  }

  // Sums of a column: of coefficients [dim], then of the weights of each entry of a book.
  int sum_width(int layer, int head) const override {
    return shape_.head_dim +
           (plan_->side(layer, KvSide::kValues, head).book.empty() ? 0 : static_cast<int>(kBookEntries));
  }
  void restore(int layer, int head, const float* sums, int n_cols, float* out) const override {
    const SidePlan& side = plan_->side(layer, KvSide::kValues, head);
    const auto width = static_cast<size_t>(sum_width(layer, head));
    constexpr int kTile = CodeBook::kMaxSums;
    alignas(64) float y[kTile * kMaxCodedDim];
    for (; n_cols > 0; n_cols -= kTile, sums += kTile * width, out += kTile * dim()) {
      const auto n = static_cast<size_t>(std::min(n_cols, kTile));
      for (size_t c = 0; c < n; ++c) std::copy_n(sums + c * width, dim(), y + c * dim());
      if (!side.book.empty()) side.book.add_sums(sums + dim(), width, n, y);
      transform(side.synthesis, y, n, out);
      for (size_t c = 0; c < n; ++c) {
        for (size_t i = 0; i < dim(); ++i) out[c * dim() + i] += side.mean[i];
      }
    }
  }

  uint64_t bytes_used(int n_tokens) const override {
    return codes_.bytes(n_tokens) + ring_.bytes_used(n_tokens);
  }

  // Image: the ring's, then that of the codes.
  uint64_t save_bytes(int n_tokens) const override { return ring_.save_bytes() + codes_.bytes(n_tokens); }
  void save(int n_tokens, std::byte* image) const override {
    ring_.save(image);
    codes_.save(n_tokens, image + ring_.save_bytes());
  }
  void load(int n_tokens, const std::byte* image) override {
    ring_.load(image);
    codes_.load(n_tokens, image + ring_.save_bytes());
  }

 private:
  size_t dim() const { return static_cast<size_t>(shape_.head_dim); }

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
  static int position_of(const KvQueries& queries, int col) {
    return queries.first_position + col / queries.group;
  }
  // A chunk's among the tokens up to a position.
  static float chunk_share(int position) {
    return kKvChunk / static_cast<float>(std::max(kKvChunk, position + 1));
  }
  // What is too little to count: a share of what the weights of the first and the newest tokens, which are
  // whole, sum to. All weights sum to no less, and so what is left out to no more than kNegligible of them.
  void find_negligible(int layer, int head, const KvQueries& queries, const Prepared& p) const {
    constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();
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
        ring_.score_sinks(layer, head, q + static_cast<size_t>(c) * dim(), scores + c * kKvBlock);
        add(c, std::min(kSinks, position_of(queries, tile + c) + 1));
      }
      const int last_block = position_of(queries, tile + n - 1) / kKvBlock;
      for (int block = std::max(0, position_of(queries, tile) / kKvBlock - 1); block <= last_block; ++block) {
        turn(layer, block, p, tile, tile + n, turned);
        score_mean(layer, block, turned, n, scores);
        ring_.add_scores(layer, head, block, kKvBlock, q, n, scores);
        for (int c = 0; c < n; ++c) {
          const int position = position_of(queries, tile + c);
          if (block >= position / kKvBlock - 1) add(c, std::min(kKvBlock, position + 1 - block * kKvBlock));
        }
      }
      for (int c = 0; c < n; ++c) {
        const float share = kNegligible * chunk_share(position_of(queries, tile + c));
        p.negligible[tile + c] = max[c] + std::log(sum[c] * share);
      }
    }
  }
  // And a part of what restore() is going to read, which is not at hand after a pass over the layers'
  // weights.
  [[gnu::always_inline]] static void prefetch_restoring(const SidePlan& side, int block) {
    constexpr size_t kParts = 32;
    const auto part = static_cast<size_t>(block) % kParts;
    const auto ask = [&](const void* first, size_t n) __attribute__((always_inline)) {
      const auto* at = static_cast<const std::byte*>(first);
      for (size_t i = n / kParts * part; i < n / kParts * (part + 1); i += 64)
        __builtin_prefetch(at + i, 0, 2);
    };
    ask(side.synthesis.data(), side.synthesis.size() * sizeof(uint16_t));
    ask(side.book.data(), side.book.size());
  }

  // ---- queries ----

  struct Prepared {
    float* turns;       // [n_cols / kTurnCols, TurnedMean::query_floats()]
    float* negligible;  // [n_cols]
    CsrCodes::Queries codes;

    float* turns_of(int part, size_t dim) const {
      return turns + static_cast<size_t>(part) * TurnedMean::query_floats(dim);
    }
  };
  size_t column_bytes() const { return 16 + dim(); }
  Prepared prepared(const KvQueries& queries) const {
    const auto n = static_cast<size_t>(queries.n_cols);
    Prepared p;
    p.turns = reinterpret_cast<float*>(queries.scratch);
    p.negligible = p.turns_of(static_cast<int>((n + kTurnCols - 1) / kTurnCols), dim());
    p.codes.scales = p.negligible + n;
    p.codes.book_scales = p.codes.scales + n;
    p.codes.zeros = reinterpret_cast<int32_t*>(p.codes.book_scales + n);
    p.codes.book = reinterpret_cast<int16_t*>(p.codes.zeros + n);
    p.codes.x = reinterpret_cast<int8_t*>(p.codes.book + product_tables(n));
    return p;
  }

  // y [n, dim] = x [n, dim] times a [dim, dim].
  void transform(const std::vector<uint16_t>& a, const float* x, size_t n, float* y) const {
    kernels().panel_f16({a.data(), dim(), 16, dim() / 16, dim()}, x, dim(), n, y, dim(), false);
  }

  std::shared_ptr<const CsrPlan> plan_;
  CsrCodes codes_;
  CsrRing ring_;
  TurnedMean mean_;
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
