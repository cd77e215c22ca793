// Dense caches. For each layer and head:
//   keys    panels of 16 tokens, [token / 16][head_dim][16], so that lanes are tokens and a score is a panel
//   product; values  [token][padded_dim], of which 16 channels are a panel and k runs over tokens.
// q8_0: keys as Q8_0 panels (16 tokens, blocks of 32 channels), values as int8 with one scale for 32
// channels.
#include <algorithm>
#include <cstring>
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

template <Narrow kNarrow>
class FloatCache final : public KvCache {
  using T = std::conditional_t<kNarrow == Narrow::kF32, float, uint16_t>;

 public:
  FloatCache(const KvShape& shape, KvFormat format) : KvCache(shape, format) {}

  Status reserve() {
    const size_t n = size_t(shape_.n_layers) * heads();
    FRUGAL_TRY(keys_, Buffer::allocate(n * key_stride() * sizeof(T)));
    FRUGAL_TRY(values_, Buffer::allocate(n * value_stride() * sizeof(T)));
    return {};
  }

  void store(int layer, int position, const float* k, const float* v) override {
    for (int head = 0; head < shape_.n_kv_heads; ++head, k += dim(), v += dim()) {
      T* key = keys_at(layer, head) + size_t(position / 16) * dim() * 16 + size_t(position % 16);
      T narrow[256];
      for (size_t first = 0; first < dim(); first += 256) {
        const size_t n = std::min<size_t>(256, dim() - first);
        convert(k + first, n, narrow);
        for (size_t i = 0; i < n; ++i) key[(first + i) * 16] = narrow[i];
      }
      convert(v, dim(), values_at(layer, head) + size_t(position) * padded());
    }
  }

  size_t query_scratch_bytes(int) const override { return 0; }
  void prepare(int, int, const KvQueries&) const override {}

  void score_block(int layer, int head, int block, int n_tokens, const KvQueries& queries,
                   float* scores) const override {
    // What attention reads next: the keys of the next block, or after those of a chunk its values.
    const T* panel = keys_at(layer, head) + size_t(block) * kKvBlock * dim();
    const T* next = ends_chunk(block)
                        ? values_at(layer, head) + size_t(block - kChunkBlocks + 1) * kKvBlock * padded()
                        : panel + kKvBlock * dim();
    product({panel, 16, dim() * 16, size_t((n_tokens + 15) / 16), dim(), next}, queries.q, padded(),
            queries.n_cols, scores, kKvBlock, false);
  }

  void add_values(int layer, int head, int block, int n_tokens, const KvQueries& queries,
                  const float* weights, size_t stride, float* out, float*) const override {
    for (; n_tokens > 0; n_tokens -= kKvBlock, ++block, weights += stride) {
      const T* rows = values_at(layer, head) + size_t(block) * kKvBlock * padded();
      const T* next = ends_chunk(block) ? keys_at(layer, head) + size_t(block + 1) * kKvBlock * dim()
                                        : rows + kKvBlock * padded();
      product({rows, padded(), 16, padded() / 16, size_t(std::min(n_tokens, kKvBlock)), next}, weights,
              kKvBlock, queries.n_cols, out, padded(), true);
    }
  }

  uint64_t bytes_used(int n_tokens) const override {
    return uint64_t(n_tokens) * uint64_t(shape_.n_layers) * heads() * (dim() + padded()) * sizeof(T);
  }

  // A file image is, for each layer and head, the keys of whole 16-token panels, then the values.
  uint64_t save_bytes(int n_tokens) const override {
    return uint64_t(shape_.n_layers) * heads() * (key_bytes(n_tokens) + value_bytes(n_tokens));
  }
  void save(int n_tokens, std::byte* image) const override {
    for_each_head([&](int layer, int head) {
      std::memcpy(image, keys_at(layer, head), key_bytes(n_tokens));
      std::memcpy(image + key_bytes(n_tokens), values_at(layer, head), value_bytes(n_tokens));
      image += key_bytes(n_tokens) + value_bytes(n_tokens);
    });
  }
  void load(int n_tokens, const std::byte* image) override {
    for_each_head([&](int layer, int head) {
      std::memcpy(keys_at(layer, head), image, key_bytes(n_tokens));
      std::memcpy(values_at(layer, head), image + key_bytes(n_tokens), value_bytes(n_tokens));
      image += key_bytes(n_tokens) + value_bytes(n_tokens);
    });
  }

 private:
  size_t heads() const { return size_t(shape_.n_kv_heads); }
  size_t dim() const { return size_t(shape_.head_dim); }
  size_t padded() const { return size_t(shape_.padded_dim()); }
  size_t key_stride() const { return size_t(shape_.max_blocks()) * kKvBlock * dim(); }
  size_t value_stride() const { return size_t(shape_.max_blocks()) * kKvBlock * padded(); }
  static bool ends_chunk(int block) { return block % kChunkBlocks == kChunkBlocks - 1; }
  size_t key_bytes(int n_tokens) const { return size_t((n_tokens + 15) / 16) * 16 * dim() * sizeof(T); }
  size_t value_bytes(int n_tokens) const { return size_t(n_tokens) * padded() * sizeof(T); }
  size_t part(int layer, int head) const { return size_t(layer) * heads() + size_t(head); }
  T* keys_at(int layer, int head) { return keys_.as<T>() + part(layer, head) * key_stride(); }
  const T* keys_at(int layer, int head) const { return keys_.as<T>() + part(layer, head) * key_stride(); }
  T* values_at(int layer, int head) { return values_.as<T>() + part(layer, head) * value_stride(); }
  const T* values_at(int layer, int head) const {
    return values_.as<T>() + part(layer, head) * value_stride();
  }

  template <typename F>
  void for_each_head(F f) const {
    for (int layer = 0; layer < shape_.n_layers; ++layer) {
      for (int head = 0; head < shape_.n_kv_heads; ++head) f(layer, head);
    }
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

  Buffer keys_, values_;
};

class Q8Cache final : public KvCache {
 public:
  static constexpr int kMaxDim = 1024;

  explicit Q8Cache(const KvShape& shape) : KvCache(shape, KvFormat::kQ8_0) {}

  Status reserve() {
    const size_t n = size_t(shape_.n_layers) * heads() * size_t(shape_.max_blocks());
    FRUGAL_TRY(keys_, Buffer::allocate(n * (kKvBlock / 16) * panel_size()));
    FRUGAL_TRY(values_, Buffer::allocate(n * kKvBlock * dim()));
    FRUGAL_TRY(scales_, Buffer::allocate(n * kKvBlock * groups() * sizeof(uint16_t)));
    return {};
  }

  void store(int layer, int position, const float* k, const float* v) override {
    int8_t q[kMaxDim];
    float scale[kMaxDim / 32];
    ActSum sum[kMaxDim / 32];
    for (int head = 0; head < shape_.n_kv_heads; ++head, k += dim(), v += dim()) {
      kernels().quantize_blocks(k, dim(), q, scale, sum);
      std::byte* panel = keys_at(layer, head) + size_t(position / 16) * panel_size();
      const auto token = size_t(position % 16);
      for (size_t block = 0; block < groups(); ++block, panel += panel_block_bytes(PanelType::kQ8_0)) {
        const uint16_t half = f32_to_f16(scale[block]);
        std::memcpy(panel + 2 * token, &half, 2);
        for (size_t i = 0; i < 8; ++i)
          std::memcpy(panel + 32 + i * 64 + 4 * token, q + block * 32 + 4 * i, 4);
      }
      kernels().quantize_blocks(v, dim(), values_at(layer, head) + size_t(position) * dim(), scale, sum);
      kernels().to_f16(scale, groups(), scales_at(layer, head) + size_t(position) * groups());
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

  void score_block(int layer, int head, int block, int n_tokens, const KvQueries& queries,
                   float* scores) const override {
    const Quantised x = quantised(queries);
    const ActColumns columns{x.q, x.scales, x.sums, nullptr, dim(), groups(), groups()};
    const std::byte* panel = keys_at(layer, head) + size_t(block) * (kKvBlock / 16) * panel_size();
    for (int first = 0; first < n_tokens; first += 16, panel += panel_size()) {
      kernels().panel_q8_0(panel, dim(), columns, size_t(queries.n_cols), scores + first, kKvBlock);
    }
  }

  void add_values(int layer, int head, int block, int n_tokens, const KvQueries& queries,
                  const float* weights, size_t stride, float* out, float* scratch) const override {
    for (; n_tokens > 0; n_tokens -= kKvBlock, ++block, weights += stride)
      add_block(layer, head, block, std::min(n_tokens, kKvBlock), queries.n_cols, weights, out, scratch);
  }
  void add_block(int layer, int head, int block, int n_tokens, int n_cols, const float* weights, float* out,
                 float* scratch) const {
    const int8_t* rows = values_at(layer, head) + size_t(block) * kKvBlock * dim();
    const uint16_t* row_scales = scales_at(layer, head) + size_t(block) * kKvBlock * groups();
    for (size_t group = 0; group < groups();
         ++group) {  // the scale of a token's 32 channels joins its weight
      float scale[kKvBlock];
      for (size_t t = 0; t < size_t(n_tokens); ++t) scale[t] = f16_to_f32(row_scales[t * groups() + group]);
      for (size_t col = 0; col < size_t(n_cols); ++col) {
        for (size_t t = 0; t < size_t(n_tokens); ++t) {
          scratch[col * kKvBlock + t] = weights[col * kKvBlock + t] * scale[t];
        }
      }
      kernels().panel_s8({rows + group * 32, dim(), 16, 2, size_t(n_tokens)}, scratch, kKvBlock,
                         size_t(n_cols), out + group * 32, dim(), true);
    }
  }

  uint64_t bytes_used(int n_tokens) const override {
    return uint64_t(n_tokens) * uint64_t(shape_.n_layers) * heads() * groups() * 2 * 34;
  }

  // A file image is, for each layer and head: key panels, values, value scales.
  uint64_t save_bytes(int n_tokens) const override {
    return uint64_t(shape_.n_layers) * heads() *
           (key_bytes(n_tokens) + value_bytes(n_tokens) + scale_bytes(n_tokens));
  }
  void save(int n_tokens, std::byte* image) const override {
    auto put = [&](const void* from, size_t bytes) {
      std::memcpy(image, from, bytes);
      image += bytes;
    };
    for_each_head([&](int layer, int head) {
      put(keys_at(layer, head), key_bytes(n_tokens));
      put(values_at(layer, head), value_bytes(n_tokens));
      put(scales_at(layer, head), scale_bytes(n_tokens));
    });
  }
  void load(int n_tokens, const std::byte* image) override {
    auto get = [&](void* to, size_t bytes) {
      std::memcpy(to, image, bytes);
      image += bytes;
    };
    for_each_head([&](int layer, int head) {
      get(keys_at(layer, head), key_bytes(n_tokens));
      get(values_at(layer, head), value_bytes(n_tokens));
      get(scales_at(layer, head), scale_bytes(n_tokens));
    });
  }

 private:
  size_t heads() const { return size_t(shape_.n_kv_heads); }
  size_t dim() const { return size_t(shape_.head_dim); }
  size_t groups() const { return dim() / 32; }
  size_t panel_size() const { return panel_bytes(PanelType::kQ8_0, dim()); }
  size_t key_bytes(int n_tokens) const { return size_t((n_tokens + 15) / 16) * panel_size(); }
  size_t value_bytes(int n_tokens) const { return size_t(n_tokens) * dim(); }
  size_t scale_bytes(int n_tokens) const { return size_t(n_tokens) * groups() * sizeof(uint16_t); }
  // First token of a (layer, head) among all tokens of the buffers.
  size_t origin(int layer, int head) const {
    return (size_t(layer) * heads() + size_t(head)) * size_t(shape_.max_blocks()) * kKvBlock;
  }
  std::byte* keys_at(int layer, int head) { return keys_.data() + origin(layer, head) / 16 * panel_size(); }
  const std::byte* keys_at(int layer, int head) const {
    return keys_.data() + origin(layer, head) / 16 * panel_size();
  }
  int8_t* values_at(int layer, int head) { return values_.as<int8_t>() + origin(layer, head) * dim(); }
  const int8_t* values_at(int layer, int head) const {
    return values_.as<int8_t>() + origin(layer, head) * dim();
  }
  uint16_t* scales_at(int layer, int head) { return scales_.as<uint16_t>() + origin(layer, head) * groups(); }
  const uint16_t* scales_at(int layer, int head) const {
    return scales_.as<uint16_t>() + origin(layer, head) * groups();
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

  template <typename F>
  void for_each_head(F f) const {
    for (int layer = 0; layer < shape_.n_layers; ++layer) {
      for (int head = 0; head < shape_.n_kv_heads; ++head) f(layer, head);
    }
  }

  Buffer keys_, values_, scales_;
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
