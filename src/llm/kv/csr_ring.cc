#include "llm/kv/csr_ring.h"

#include <cstring>

#include "llm/kernel/kernel.h"
#include "llm/kv/dictionary.h"

namespace frugal::llm {
namespace {

float dot(const float* a, const float* b, size_t n) {
  float lanes[8] = {};
  for (size_t i = 0; i < n; i += 8) {
    for (size_t lane = 0; lane < 8; ++lane) lanes[lane] += a[i + lane] * b[i + lane];
  }
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

}  // namespace

Status CsrRing::reserve(const KvShape& shape) {
  n_layers_ = static_cast<size_t>(shape.n_layers);
  n_heads_ = static_cast<size_t>(shape.n_kv_heads);
  dim_ = static_cast<size_t>(shape.head_dim);
  slots_ = std::vector<std::atomic<int>>(n_layers_ * kBlocks);
  for (auto& of : slots_) of.store(-1, std::memory_order_relaxed);
  FRUGAL_TRY(tokens_, Buffer::allocate(n_layers_ * n_heads_ * head_bytes()));
  return {};
}

CsrRing::Head CsrRing::at(int layer, int head) const {
  auto* first = const_cast<std::byte*>(tokens_.data()) +
                (static_cast<size_t>(layer) * n_heads_ + static_cast<size_t>(head)) * head_bytes();
  Head of;
  of.sink_keys = reinterpret_cast<float*>(first);
  of.keys = reinterpret_cast<int8_t*>(of.sink_keys + kSinks * dim_);
  of.values = of.keys + kTokens * dim_;
  of.sink_values = of.values + kTokens * dim_;
  of.key_scales = reinterpret_cast<uint16_t*>(of.sink_values + kSinks * dim_);
  of.value_scales = of.key_scales + kTokens * dim_ / 32;
  of.sink_scales = of.value_scales + kTokens * dim_ / 32;
  return of;
}

void CsrRing::store_key(int layer, int head, int position, const float* k, const float* less_mean) {
  const Head of = at(layer, head);
  int8_t q[kMaxCodedDim];
  float scale[kMaxCodedDim / 32];
  ActSum sum[kMaxCodedDim / 32];
  kernels().quantize_blocks(less_mean, dim_, q, scale, sum);
  const size_t first = first_of(position / kKvBlock), token = static_cast<size_t>(position % kKvBlock);
  int8_t* levels = of.keys + first * dim_ + token;
  uint16_t* scales = of.key_scales + first * dim_ / 32 + token;
  for (size_t i = 0; i < dim_; ++i) levels[i * kKvBlock] = q[i];
  for (size_t i = 0; i < dim_ / 32; ++i) scales[i * kKvBlock] = f32_to_f16(scale[i]);
  if (position < kSinks) std::copy_n(k, dim_, of.sink_keys + static_cast<size_t>(position) * dim_);
}

void CsrRing::store_value(int layer, int head, int position, const float* y) {
  const Head of = at(layer, head);
  const auto put = [&](int8_t* values, uint16_t* scales, size_t token) {
    float scale[kMaxCodedDim / 32];
    ActSum sum[kMaxCodedDim / 32];
    kernels().quantize_blocks(y, dim_, values + token * dim_, scale, sum);
    kernels().to_f16(scale, dim_ / 32, scales + token * dim_ / 32);
  };
  put(of.values, of.value_scales, static_cast<size_t>(position % kTokens));
  if (position < kSinks) put(of.sink_values, of.sink_scales, static_cast<size_t>(position));
}

void CsrRing::keys(int layer, int head, int block, int first, int n, float* rows) const {
  const Head of = at(layer, head);
  const int8_t* levels = of.keys + first_of(block) * dim_ + first;
  const uint16_t* scales = of.key_scales + first_of(block) * dim_ / 32 + first;
  for (size_t t = 0; t < static_cast<size_t>(n); ++t) {
    for (size_t i = 0; i < dim_; i += 32, rows += 32) {
      const float scale = f16_to_f32(scales[i / 32 * kKvBlock + t]);
      for (size_t k = 0; k < 32; ++k) rows[k] = static_cast<float>(levels[(i + k) * kKvBlock + t]) * scale;
    }
  }
}

void CsrRing::values(int layer, int head, int block, int first, int n, float* rows) const {
  const Head of = at(layer, head);
  const size_t begin = (first_of(block) + static_cast<size_t>(first)) * dim_;
  for (size_t i = begin; i < begin + static_cast<size_t>(n) * dim_; i += 32, rows += 32) {
    const float scale = f16_to_f32(of.value_scales[i / 32]);
    for (size_t k = 0; k < 32; ++k) rows[k] = static_cast<float>(of.values[i + k]) * scale;
  }
}

void CsrRing::add_scores(int layer, int head, int block, int n_tokens, const float* q, int n_cols,
                         float* scores) const {
  const size_t n_panels = static_cast<size_t>(n_tokens + 15) / 16, n = static_cast<size_t>(n_cols);
  if (n == 0) return;
  const Head of = at(layer, head);
  const int8_t* levels = of.keys + first_of(block) * dim_;
  const uint16_t* scales = of.key_scales + first_of(block) * dim_ / 32;
  alignas(64) float products[kMaxScored * kKvBlock];
  for (size_t i = 0; i < dim_ / 32; ++i) {
    kernels().panel_s8({levels + i * 32 * kKvBlock, kKvBlock, 16, n_panels, 32}, q + i * 32, dim_, n,
                       products, kKvBlock, false);
    for (size_t t = 0; t < 16 * n_panels; ++t) {
      const float scale = f16_to_f32(scales[i * kKvBlock + t]);
      for (size_t c = 0; c < n; ++c) scores[c * kKvBlock + t] += products[c * kKvBlock + t] * scale;
    }
  }
}

void CsrRing::score_sinks(int layer, int head, const float* q, float* scores) const {
  const Head of = at(layer, head);
  for (size_t t = 0; t < kSinks; ++t) scores[t] = dot(q, of.sink_keys + t * dim_, dim_);
}

void CsrRing::add_values(int layer, int head, int block, int n_tokens, const float* weights, int n_cols,
                         float* out, size_t out_width, float* scratch) const {
  const Head of = at(layer, head);
  const size_t first = first_of(block);
  add_rows(of.values + first * dim_, of.value_scales + first * dim_ / 32, n_tokens, weights, n_cols, out,
           out_width, scratch);
}
void CsrRing::add_sinks(int layer, int head, const float* weights, int n_cols, float* out, size_t out_width,
                        float* scratch) const {
  const Head of = at(layer, head);
  add_rows(of.sink_values, of.sink_scales, kSinks, weights, n_cols, out, out_width, scratch);
}
void CsrRing::add_rows(const int8_t* rows, const uint16_t* row_scales, int n_tokens, const float* weights,
                       int n_cols, float* out, size_t out_width, float* scratch) const {
  const size_t groups = dim_ / 32, n = static_cast<size_t>(n_tokens);
  for (size_t group = 0; group < groups; ++group) {
    float scale[kKvBlock];
    for (size_t t = 0; t < n; ++t) scale[t] = f16_to_f32(row_scales[t * groups + group]);
    for (size_t col = 0; col < static_cast<size_t>(n_cols); ++col) {
      for (size_t t = 0; t < n; ++t) scratch[col * kKvBlock + t] = weights[col * kKvBlock + t] * scale[t];
    }
    kernels().panel_s8({rows + group * 32, dim_, 16, 2, n}, scratch, kKvBlock, static_cast<size_t>(n_cols),
                       out + group * 32, out_width, true);
  }
}

uint64_t CsrRing::bytes_used(int n_tokens) const {
  return n_layers_ * n_heads_ *
         (static_cast<uint64_t>(std::min(n_tokens, kTokens)) * token_bytes() + sink_bytes());
}

void CsrRing::save(std::byte* image) const {
  int32_t slots[4] = {};
  for (int i = 0; i < kBlocks; ++i) slots[i] = slot(0, i).load(std::memory_order_relaxed);
  std::memcpy(image, slots, sizeof slots);
  std::memcpy(image + sizeof slots, tokens_.data(), tokens_.size());
}
void CsrRing::load(const std::byte* image) {
  int32_t slots[4];
  std::memcpy(slots, image, sizeof slots);
  for (size_t i = 0; i < slots_.size(); ++i) slots_[i].store(slots[i % kBlocks], std::memory_order_relaxed);
  std::memcpy(tokens_.data(), image + sizeof slots, tokens_.size());
}

}  // namespace frugal::llm
