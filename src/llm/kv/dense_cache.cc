// Dense caches, [chunk of 256 tokens][layer][head], so that a sequence fills memory from its start, which
// huge pages suit, and attention to a chunk reads one stretch. Of a chunk of a head, first all its keys:
//   keys    panels of 16 tokens, [token / 16][head_dim][16], so that lanes are tokens and a score is a panel
//   product; values  [token][padded_dim], of which 16 channels are a panel and k runs over tokens.
// q8_0: keys as Q8_0 panels (16 tokens, blocks of 32 channels), values in blocks of int8 with a scale for 32
// channels of a token (llm/kernel/panel.h).
#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <type_traits>
#include <utility>

#include "base/text.h"
#include "llm/kernel/kernel.h"
#include "llm/kernel/panel.h"
#include "llm/kv/attention.h"
#include "llm/tensor/buffer.h"

namespace frugal::llm {
namespace {

enum class Narrow { kF32, kF16, kBF16 };
constexpr int kChunkBlocks = kKvChunk / kKvBlock;

// Memory of chunks: for each, layer and head, a few fields of kChunkBlocks blocks each; zero at first.
class Chunks {
 public:
  static constexpr int kMaxFields = 2;

  // `sizes`: bytes of a block of each field.
  Status reserve(const KvShape& shape, std::initializer_list<size_t> sizes) {
    size_t field = 0;
    for (const size_t size : sizes) {
      size_[field] = size;
      start_[field++] = bytes_;
      bytes_ += kChunkBlocks * size;
    }
    n_heads_ = size_t(shape.n_kv_heads);
    stride_ = size_t(shape.n_layers) * n_heads_ * bytes_;
    const size_t n_chunks = size_t(shape.max_blocks() + kChunkBlocks - 1) / kChunkBlocks;
    FRUGAL_TRY(memory_, Buffer::allocate(n_chunks * stride_, Pages::kHuge));
    memory_.use_small_pages(0, stride_);  // a short sequence should not pay for a whole chunk
    return {};
  }

  std::byte* at(int layer, int head, int block, int field) {
    return memory_.data() + offset(layer, head, block, field);
  }
  const std::byte* at(int layer, int head, int block, int field) const {
    return memory_.data() + offset(layer, head, block, field);
  }

 private:
  size_t offset(int layer, int head, int block, int field) const {
    return size_t(block / kChunkBlocks) * stride_ + (size_t(layer) * n_heads_ + size_t(head)) * bytes_ +
           start_[field] + size_t(block % kChunkBlocks) * size_[field];
  }

  Buffer memory_;
  size_t n_heads_ = 0, stride_ = 0, bytes_ = 0;  // of a chunk, and of one of its heads
  size_t size_[kMaxFields] = {}, start_[kMaxFields] = {};
};

template <typename F>
void for_each_head(const KvShape& shape, F f) {
  for (int layer = 0; layer < shape.n_layers; ++layer) {
    for (int head = 0; head < shape.n_kv_heads; ++head) f(layer, head);
  }
}

// Calls f(block, tokens of it) for the blocks of n_tokens tokens.
template <typename F>
void for_each_block(int n_tokens, F f) {
  for (int block = 0; block * kKvBlock < n_tokens; ++block)
    f(block, size_t(std::min(kKvBlock, n_tokens - block * kKvBlock)));
}

// Copies to a file image, and from one.
struct Writer {
  std::byte* image;
  void operator()(const void* from, size_t bytes) {
    std::memcpy(image, from, bytes);
    image += bytes;
  }
};
struct Reader {
  const std::byte* image;
  void operator()(void* to, size_t bytes) {
    std::memcpy(to, image, bytes);
    image += bytes;
  }
};

template <Narrow kNarrow>
class FloatCache final : public KvCache {
  using T = std::conditional_t<kNarrow == Narrow::kF32, float, uint16_t>;

 public:
  FloatCache(const KvShape& shape, KvFormat format) : KvCache(shape, format) {}

  Status reserve() { return chunks_.reserve(shape_, {key_bytes(kKvBlock), value_bytes(kKvBlock)}); }

  void store(int layer, int position, const float* k, const float* v) override {
    for (int head = 0; head < shape_.n_kv_heads; ++head, k += dim(), v += dim()) {
      const int block = position / kKvBlock, token = position % kKvBlock;
      T* key = keys_at(layer, head, block) + size_t(token / 16) * dim() * 16 + size_t(token % 16);
      T narrow[256];
      for (size_t first = 0; first < dim(); first += 256) {
        const size_t n = std::min<size_t>(256, dim() - first);
        convert(k + first, n, narrow);
        for (size_t i = 0; i < n; ++i) key[(first + i) * 16] = narrow[i];
      }
      convert(v, dim(), values_at(layer, head, block) + size_t(token) * padded());
    }
  }

  size_t query_scratch_bytes(int) const override { return 0; }
  void prepare(int, int, const KvQueries&) const override {}

  void score_chunk(int layer, int head, int block, int n_tokens, const KvQueries& queries, float* scores,
                   size_t stride) const override {
    for (; n_tokens > 0; n_tokens -= kKvBlock, ++block, scores += stride) {
      const T* wanted = next_after(layer, head, block, block % kChunkBlocks);
      const auto n_panels = size_t((std::min(n_tokens, kKvBlock) + 15) / 16);
      product({keys_at(layer, head, block), 16, dim() * 16, n_panels, dim(), wanted}, queries.q, padded(),
              queries.n_cols, scores, kKvBlock, false);
    }
  }

  void add_values(int layer, int head, int block, int n_tokens, const KvQueries& queries,
                  const KvWeights& weights, float* out, float*) const override {
    for (const float* at = weights.at; n_tokens > 0; n_tokens -= kKvBlock, ++block, at += weights.stride) {
      const T* wanted = next_after(layer, head, block, kChunkBlocks + block % kChunkBlocks);
      product({values_at(layer, head, block), padded(), 16, padded() / 16,
               size_t(std::min(n_tokens, kKvBlock)), wanted},
              at, kKvBlock, queries.n_cols, out, padded(), true);
    }
  }

  uint64_t bytes_used(int n_tokens) const override {
    return uint64_t(n_tokens) * uint64_t(shape_.n_layers) * heads() * (dim() + padded()) * sizeof(T);
  }

  // A file image is, for each layer and head, the keys of whole 16-token panels, then the values.
  uint64_t save_bytes(int n_tokens) const override {
    return uint64_t(shape_.n_layers) * heads() *
           (key_bytes(size_t(n_tokens)) + value_bytes(size_t(n_tokens)));
  }
  void save(int n_tokens, std::byte* image) const override { copy(*this, n_tokens, Writer{image}); }
  void load(int n_tokens, const std::byte* image) override { copy(*this, n_tokens, Reader{image}); }

 private:
  size_t heads() const { return size_t(shape_.n_kv_heads); }
  size_t dim() const { return size_t(shape_.head_dim); }
  size_t padded() const { return size_t(shape_.padded_dim()); }
  // Attention reads a chunk's blocks of keys, those of values, and goes on to the next chunk. What it reads
  // two blocks after the `i`th in this order, for the chunk of `block`.
  const T* next_after(int layer, int head, int block, int i) const {
    const int first = block / kChunkBlocks * kChunkBlocks, last = shape_.max_blocks() - 1, at = i + 2;
    if (at < kChunkBlocks) return keys_at(layer, head, std::min(first + at, last));
    if (at < 2 * kChunkBlocks) return values_at(layer, head, std::min(first + at - kChunkBlocks, last));
    return keys_at(layer, head, std::min(first + at - kChunkBlocks, last));
  }
  size_t key_bytes(size_t n_tokens) const { return (n_tokens + 15) / 16 * 16 * dim() * sizeof(T); }
  size_t value_bytes(size_t n_tokens) const { return n_tokens * padded() * sizeof(T); }
  T* keys_at(int layer, int head, int block) {
    return reinterpret_cast<T*>(chunks_.at(layer, head, block, 0));
  }
  const T* keys_at(int layer, int head, int block) const {
    return reinterpret_cast<const T*>(chunks_.at(layer, head, block, 0));
  }
  T* values_at(int layer, int head, int block) {
    return reinterpret_cast<T*>(chunks_.at(layer, head, block, 1));
  }
  const T* values_at(int layer, int head, int block) const {
    return reinterpret_cast<const T*>(chunks_.at(layer, head, block, 1));
  }

  // Between a cache and its file image, in the image's order.
  template <typename Cache, typename Copy>
  static void copy(Cache& cache, int n_tokens, Copy bytes) {
    for_each_head(cache.shape_, [&](int layer, int head) {
      for_each_block(n_tokens, [&](int block, size_t n) {
        bytes(cache.keys_at(layer, head, block), cache.key_bytes(n));
      });
      for_each_block(n_tokens, [&](int block, size_t n) {
        bytes(cache.values_at(layer, head, block), cache.value_bytes(n));
      });
    });
  }

  static void convert(const float* x, size_t n, T* y) {
    if constexpr (kNarrow == Narrow::kF32) {
      std::memcpy(y, x, n * sizeof(float));
    } else if constexpr (kNarrow == Narrow::kF16) {
      kernels().to_f16(x, n, y);
    } else {
      kernels().to_bf16(x, n, y);
    }
  }
  static void product(const FloatPanels<T>& panels, const float* x, size_t x_stride, int n_cols, float* y,
                      size_t y_stride, bool accumulate) {
    const Kernels& set = kernels();
    FloatPanelFn<T> kernel;
    if constexpr (kNarrow == Narrow::kF32) {
      kernel = set.panel_f32;
    } else {
      kernel = kNarrow == Narrow::kF16 ? set.panel_f16 : set.panel_bf16;
    }
    kernel(panels, x, x_stride, size_t(n_cols), y, y_stride, accumulate);
  }

  Chunks chunks_;
};

class Q8Cache final : public KvCache {
 public:
  static constexpr int kMaxDim = 1024;

  explicit Q8Cache(const KvShape& shape) : KvCache(shape, KvFormat::kQ8_0) {}

  Status reserve() {
    return chunks_.reserve(shape_, {key_bytes(kKvBlock), groups() * kValueGroupBytes / kChunkBlocks});
  }

  void store(int layer, int position, const float* k, const float* v) override {
    int8_t q[kMaxDim];
    float scale[kMaxDim / 32];
    ActSum sum[kMaxDim / 32];
    const int block = position / kKvBlock;
    const auto row = size_t(position % kKvBlock), token = row % 16;
    for (int head = 0; head < shape_.n_kv_heads; ++head, k += dim(), v += dim()) {
      kernels().quantize_blocks(k, dim(), q, scale, sum);
      std::byte* panel = keys_at(layer, head, block) + row / 16 * panel_size();
      for (size_t group = 0; group < groups(); ++group, panel += panel_block_bytes(PanelType::kQ8_0)) {
        const uint16_t half = f32_to_f16(scale[group]);
        std::memcpy(panel + 2 * token, &half, 2);
        for (size_t i = 0; i < 8; ++i)
          std::memcpy(panel + 32 + i * 64 + 4 * token, q + group * 32 + 4 * i, 4);
      }
      kernels().quantize_blocks(v, dim(), q, scale, sum);
      std::byte* values = values_at(layer, head, block);
      const auto of_chunk = size_t(position % kKvChunk);
      for (size_t i = 0; i < dim(); ++i) std::memcpy(values + value_at(i, of_chunk), q + i, 1);
      for (size_t group = 0; group < groups(); ++group) {
        const uint16_t half = f32_to_f16(scale[group]);
        std::memcpy(values + value_scale_at(group, of_chunk), &half, 2);
      }
    }
  }

  // int8 queries, their scales, and the sums that the kernel interface carries.
  size_t query_scratch_bytes(int n_cols) const override {
    return size_t(n_cols) * (dim() + groups() * (sizeof(float) + sizeof(ActSum)));
  }
  void prepare(int, int, const KvQueries& queries) const override {
    const Quantised x = quantised(queries);
    for (size_t col = 0; col < size_t(queries.n_cols); ++col) {
      kernels().quantize_blocks(queries.q + col * dim(), dim(), x.q + col * dim(), x.scales + col * groups(),
                                x.sums + col * groups());
    }
  }

  void score_chunk(int layer, int head, int block, int n_tokens, const KvQueries& queries, float* scores,
                   size_t stride) const override {
    const Quantised x = quantised(queries);
    const ActColumns columns{x.q, x.scales, x.sums, nullptr, dim(), groups(), groups()};
    const std::byte* panel = keys_at(layer, head, block);  // those of the chunk stand one after the other
    constexpr size_t kAhead = 6144;                        // of keys of the chunk, and then of its values
    for (int first = 0; first < n_tokens; first += 16, panel += panel_size()) {
      for (size_t byte = 0; byte < panel_size(); byte += 64) __builtin_prefetch(panel + kAhead + byte);
      kernels().panel_q8_0(panel, dim(), columns, size_t(queries.n_cols),
                           scores + size_t(first / kKvBlock) * stride + first % kKvBlock, kKvBlock);
    }
  }

  void add_values(int layer, int head, int block, int n_tokens, const KvQueries& queries,
                  const KvWeights& weights, float* out, float*) const override {
    const std::byte* next = keys_at(layer, head, std::min(block + kChunkBlocks, shape_.max_blocks() - 1));
    kernels().values_q8_0(values_at(layer, head, block) + size_t(block % kChunkBlocks) * kValueBlockBytes,
                          groups(), size_t(n_tokens), weights.at, weights.stride, size_t(queries.n_cols), out,
                          dim(), next);
  }

  uint64_t bytes_used(int n_tokens) const override {
    return uint64_t(n_tokens) * uint64_t(shape_.n_layers) * heads() * groups() * 2 * 34;
  }

  // A file image is, for each layer and head: key panels, values, value scales.
  uint64_t save_bytes(int n_tokens) const override {
    return uint64_t(shape_.n_layers) * heads() *
           (key_bytes(size_t(n_tokens)) + size_t(n_tokens) * groups() * (32 + sizeof(uint16_t)));
  }
  void save(int n_tokens, std::byte* image) const override { copy(*this, n_tokens, Writer{image}); }
  void load(int n_tokens, const std::byte* image) override { copy(*this, n_tokens, Reader{image}); }

 private:
  size_t heads() const { return size_t(shape_.n_kv_heads); }
  size_t dim() const { return size_t(shape_.head_dim); }
  size_t groups() const { return dim() / 32; }
  size_t panel_size() const { return panel_bytes(PanelType::kQ8_0, dim()); }
  size_t key_bytes(size_t n_tokens) const { return (n_tokens + 15) / 16 * panel_size(); }
  std::byte* keys_at(int layer, int head, int block) { return chunks_.at(layer, head, block, 0); }
  const std::byte* keys_at(int layer, int head, int block) const { return chunks_.at(layer, head, block, 0); }
  // Of the block's chunk.
  std::byte* values_at(int layer, int head, int block) {
    return chunks_.at(layer, head, block / kChunkBlocks * kChunkBlocks, 1);
  }
  const std::byte* values_at(int layer, int head, int block) const {
    return chunks_.at(layer, head, block / kChunkBlocks * kChunkBlocks, 1);
  }

  // Between a cache and its file image, in the image's order.
  template <typename Cache, typename Copy>
  static void copy(Cache& cache, int n_tokens, Copy bytes) {
    for_each_head(cache.shape_, [&](int layer, int head) {
      const auto of_tokens = [&](auto f) {
        for (int t = 0; t < n_tokens; ++t)
          f(cache.values_at(layer, head, t / kKvBlock), size_t(t % kKvChunk));
      };
      for_each_block(n_tokens, [&](int block, size_t n) {
        bytes(cache.keys_at(layer, head, block), cache.key_bytes(n));
      });
      of_tokens([&](auto* values, size_t token) {
        for (size_t i = 0; i < cache.dim(); ++i) bytes(values + value_at(i, token), 1);
      });
      of_tokens([&](auto* values, size_t token) {
        for (size_t group = 0; group < cache.groups(); ++group)
          bytes(values + value_scale_at(group, token), sizeof(uint16_t));
      });
    });
  }

  struct Quantised {
    int8_t* q;
    float* scales;
    ActSum* sums;
  };
  Quantised quantised(const KvQueries& queries) const {
    const auto n = size_t(queries.n_cols);
    auto* scales = reinterpret_cast<float*>(queries.scratch + n * dim());
    return {reinterpret_cast<int8_t*>(queries.scratch), scales,
            reinterpret_cast<ActSum*>(scales + n * groups())};
  }

  Chunks chunks_;
};

template <typename Cache, typename... Args>
Result<std::unique_ptr<KvCache>> make(Args&&... args) {
  auto cache = std::make_unique<Cache>(std::forward<Args>(args)...);
  FRUGAL_TRY_STATUS(cache->reserve());
  return std::unique_ptr<KvCache>(std::move(cache));
}

}  // namespace

Result<std::unique_ptr<KvCache>> make_kv_cache(KvFormat format, const KvShape& shape) {
  switch (format) {
    case KvFormat::kF32:
      return make<FloatCache<Narrow::kF32>>(shape, format);
    case KvFormat::kF16:
      return make<FloatCache<Narrow::kF16>>(shape, format);
    case KvFormat::kBF16:
      return make<FloatCache<Narrow::kBF16>>(shape, format);
    case KvFormat::kQ8_0:
      if (shape.head_dim % 32 != 0 || shape.head_dim > Q8Cache::kMaxDim) {
        return Error{
            ErrorCode::kUnsupported,
            strf("a q8_0 cache wants a head size that is a multiple of 32 up to %d, and this model's is %d; "
                 "use f16",
                 Q8Cache::kMaxDim, shape.head_dim)};
      }
      return make<Q8Cache>(shape);
    case KvFormat::kCsr:
      break;  // made from a dictionary (KvSource)
  }
  return Error{ErrorCode::kInvalidArgument, "this cache format needs a dictionary"};
}

}  // namespace frugal::llm
