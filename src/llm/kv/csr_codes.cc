#include "llm/kv/csr_codes.h"

#include <algorithm>
#include <cstring>

#include "llm/kernel/codes.h"

namespace frugal::llm {
namespace {

static_assert(kKvChunk <= kMaxValueBlocks * kCodeBlock && kKvBlock == kCodeBlock);

void put_codes(const SidePlan& side, std::byte* panel, int token, const uint8_t* codes) {
  uint32_t words[kMaxStreamWords + 1] = {};
  for (int i = 0, at = 0; i < 4 * side.n_groups; at += side.bits[static_cast<size_t>(i / 4)], ++i) {
    const uint64_t code = static_cast<uint64_t>(codes[i]) << at % 32;
    words[at / 32] |= static_cast<uint32_t>(code);
    words[at / 32 + 1] |= static_cast<uint32_t>(code >> 32);
  }
  put_stream(panel, side.layout.n_bits, token, words);
}

// Whether all weights of a column are 0.
bool nothing(const float* weights, size_t stride, size_t n_blocks) {
  if (weights[0] != 0) return false;
  for (size_t i = 0; i < n_blocks; ++i, weights += stride) {
    if (weights[0] != 0 || std::memcmp(weights, weights + 1, (kKvBlock - 1) * sizeof(float)) != 0)
      return false;
  }
  return true;
}

}  // namespace

Status CsrCodes::reserve(const KvShape& shape, std::shared_ptr<const CsrPlan> plan) {
  plan_ = std::move(plan);
  n_blocks_ = shape.max_blocks();
  for (int code = 0; code < 16; ++code) scales_[static_cast<size_t>(code)] = token_scale(code);
  for (const SidePlan& side : plan_->sides) {
    origin_.push_back(span_bytes_);
    span_bytes_ += kSpanPanels * side.panel_bytes;
  }
  const size_t n_spans = (panels(n_blocks_ * kKvBlock) + kSpanPanels - 1) / kSpanPanels;
  FRUGAL_TRY(codes_, Buffer::allocate(n_spans * span_bytes_ + 64, Pages::kHuge));
  return {};
}

void CsrCodes::code(int layer, KvSide of, int head, int block, const CsrRing& ring) {
  const SidePlan& side = plan_->side(layer, of, head);
  const LevelPlan& levels = plan_->levels_of(layer, of);
  constexpr size_t kTile = kPathTokens;
  alignas(64) float x[kTile * kMaxCodedDim], y[kTile * kMaxCodedDim];
  TokenCode codes[kTile];
  for (int first = 0; first < kKvBlock; first += static_cast<int>(kTile)) {
    if (of == KvSide::kKeys) {
      ring.keys(layer, head, block, first, kTile, x);
      analyse(side, x, kTile, y);
    } else {
      ring.values(layer, head, block, first, kTile, y);
    }
    code_rows(side, levels, of == KvSide::kValues, y, codes);
    std::byte* panel = panel_at(layer, of, head, (block * kKvBlock + first) / 16);
    for (size_t t = 0; t < kTile; ++t) {
      const int at = first % 16 + static_cast<int>(t);
      if (!side.book.empty())
        panel[side.index_offset + static_cast<size_t>(at)] = static_cast<std::byte>(codes[t].entry);
      if (side.n_groups == 0) continue;
      if (of == KvSide::kValues) {
        auto& byte = reinterpret_cast<uint8_t*>(panel + side.scale_offset)[at / 2];
        byte = static_cast<uint8_t>(at % 2 == 0 ? (byte & 0xf0) | codes[t].scale
                                                : (byte & 0x0f) | codes[t].scale << 4);
      }
      put_codes(side, panel, at, codes[t].codes);
    }
  }
}

void CsrCodes::add_scores(int layer, int head, int block, const Queries& queries, int first, int end,
                          float* scores) const {
  if (first == end) return;
  const SidePlan& side = plan_->side(layer, KvSide::kKeys, head);
  const LevelPlan& levels = plan_->levels_of(layer, KvSide::kKeys);
  const std::byte* panel = panel_at(layer, KvSide::kKeys, head, block * 4);
  const auto from = static_cast<size_t>(first), n = static_cast<size_t>(end - first);
  if (!side.book.empty()) {
    code_kernels().add_products(panel + side.index_offset, side.panel_bytes, queries.book, from, n,
                                queries.book_scales + from, scores, kKvBlock);
  }
  code_kernels().dot_keys(panel, side.panel_bytes, side.layout, levels.table.data(),
                          queries.x + from * 4 * side.layout.n_groups, n, queries.zeros + from,
                          queries.scales + from, scores, kKvBlock);
}

void CsrCodes::add_values(int layer, int head, int block, int n_blocks, const float* weights, size_t stride,
                          int n_cols, float* out, size_t out_width, const float* rough) const {
  const SidePlan& side = plan_->side(layer, KvSide::kValues, head);
  constexpr int kTile = static_cast<int>(kMaxValueCols), kBlocks = kKvChunk / kKvBlock;
  constexpr size_t kBinTiles = (kMaxValueCols + kBinCols - 1) / kBinCols;
  alignas(64) float bins[kBinTiles * kBookEntries * kBinCols];
  for (; n_cols > 0; n_cols -= kTile, weights += kTile * kKvBlock, out += kTile * out_width,
                     rough += rough == nullptr ? 0 : kTile) {
    const int n = std::min(n_cols, kTile);
    if (!side.book.empty())
      std::fill_n(bins, (static_cast<size_t>(n) + kBinCols - 1) / kBinCols * kBookEntries * kBinCols, 0.0f);
    for (int i = 0; i < n_blocks; i += kBlocks) {
      add_chunk(layer, head, block + i, static_cast<size_t>(std::min(kBlocks, n_blocks - i)),
                weights + static_cast<size_t>(i) * stride, stride, n, out, out_width, bins, rough);
    }
    if (side.book.empty()) continue;
    float* to[kTile];
    for (int c = 0; c < n; ++c) to[c] = out + static_cast<size_t>(c) * out_width + dim();
    code_kernels().spread_bins(bins, static_cast<size_t>(n), to);
  }
}

// Of n blocks of a chunk, for up to kMaxValueCols columns; `bins` as add_to_bins() wants them.
void CsrCodes::add_chunk(int layer, int head, int block, size_t n, const float* weights, size_t stride,
                         int n_cols, float* out, size_t out_width, float* bins, const float* rough) const {
  const SidePlan& side = plan_->side(layer, KvSide::kValues, head);
  const LevelPlan& levels = plan_->levels_of(layer, KvSide::kValues);
  const std::byte* panel = panel_at(layer, KvSide::kValues, head, block * 4);
  const float *all[kMaxValueCols], *from[kMaxValueCols];
  float* sums[kMaxValueCols];
  size_t n_some = 0;  // columns that see something
  for (int col = 0; col < n_cols; ++col) {
    all[col] = weights + static_cast<size_t>(col) * kKvBlock;
    if (nothing(all[col], stride, n)) continue;
    from[n_some] = all[col];
    sums[n_some++] = out + static_cast<size_t>(col) * out_width;
  }
  if (n_some == 0) return;
  if (!side.book.empty()) {
    code_kernels().add_to_bins(panel + side.index_offset, side.panel_bytes, block == 0 ? CsrRing::kSinks : 0,
                               n, all, stride, static_cast<size_t>(n_cols), bins);
  }
  if (side.n_groups == 0) return;
  alignas(64) float token_scales[kKvChunk];
  for (size_t i = 0; i < n; ++i) {
    code_kernels().expand_scales(panel + side.scale_offset + 4 * i * side.panel_bytes, side.panel_bytes,
                                 scales_.data(), token_scales + i * kKvBlock);
  }
  if (block == 0) std::fill_n(token_scales, CsrRing::kSinks, 0.0f);
  uint8_t integers[kMaxValueCols * kKvChunk];
  const size_t width = n * kCodeBlock;
  float scales[kMaxValueCols];
  int32_t zeros[kMaxValueCols];
  const bool may_be_rough = rough != nullptr && !side.book.empty();
  const auto at =
      static_cast<size_t>(block % (kKvChunk / kKvBlock));  // in its chunk, wherever the span begins
  size_t n_left = 0;
  for (size_t c = 0; c < n_some; ++c) {
    int32_t sum;
    const float scale = code_kernels().quantize_weights(
        from[c], stride, token_scales, n, kDither.of + at * kCodeBlock, integers + n_left * width, &sum);
    // The squares sum to no more than the largest times the sum.
    const float squares = scale * kWeightMax * scale * static_cast<float>(sum);
    if (may_be_rough && squares < rough[(from[c] - weights) / kKvBlock]) continue;
    // Of weights that are no numbers the sum is anything: no overflow, and the scale is NaN.
    zeros[n_left] = static_cast<int32_t>(static_cast<uint32_t>(sum) * kLevelCentre);
    scales[n_left] = scale;
    sums[n_left++] = sums[c];
  }
  if (n_left == 0) return;
  code_kernels().dot_values(panel, side.panel_bytes, n, side.layout, levels.table.data(), levels.scale.data(),
                            integers, n_left, zeros, scales, sums);
}

uint64_t CsrCodes::bytes(int n_tokens) const {
  uint64_t bytes = 0;
  for (const SidePlan& side : plan_->sides) bytes += panels(n_tokens) * side.panel_bytes;
  return bytes;
}

// Calls f(first byte, bytes) for the panels of the first n_tokens: side after side, in each span after span.
template <typename F>
void CsrCodes::for_each_run(int n_tokens, F f) const {
  for (size_t side = 0; side < plan_->sides.size(); ++side) {
    for (size_t span = 0, left = panels(n_tokens); left > 0; ++span) {
      const size_t n = std::min(left, kSpanPanels);
      f(span * span_bytes_ + origin_[side], n * plan_->sides[side].panel_bytes);
      left -= n;
    }
  }
}

void CsrCodes::save(int n_tokens, std::byte* image) const {
  for_each_run(n_tokens, [&](size_t at, size_t n) {
    std::memcpy(image, codes_.data() + at, n);
    image += n;
  });
}
void CsrCodes::load(int n_tokens, const std::byte* image) {
  for_each_run(n_tokens, [&](size_t at, size_t n) {
    std::memcpy(codes_.data() + at, image, n);
    image += n;
  });
}

}  // namespace frugal::llm
