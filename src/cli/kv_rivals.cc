#include "cli/kv_rivals.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <functional>
#include <span>

#include "llm/kernel/kernel.h"
#include "llm/kv/kv_cache.h"

namespace frugal::cli {
namespace {

using llm::kKvBlock;
using llm::KvCache;
using llm::KvFormat;
using llm::KvQueries;
using llm::KvShape;
using llm::KvWeights;

float as_half(float x) { return llm::f16_to_f32(llm::f32_to_f16(x)); }

// ggml's q8_0 and q4_0: blocks of 32 with an f16 scale.
void q8_0(std::span<float> x) {
  for (size_t b = 0; b < x.size(); b += 32) {
    float largest = 0;
    for (size_t i = b; i < b + 32; ++i) largest = std::max(largest, std::fabs(x[i]));
    const float scale = largest / 127, half = as_half(scale);
    for (size_t i = b; i < b + 32; ++i) x[i] = scale > 0 ? std::round(x[i] / scale) * half : 0;
  }
}
void q4_0(std::span<float> x) {
  for (size_t b = 0; b < x.size(); b += 32) {
    float extreme = 0;
    for (size_t i = b; i < b + 32; ++i) {
      if (std::fabs(x[i]) > std::fabs(extreme)) extreme = x[i];
    }
    const float scale = extreme / -8, half = as_half(scale);
    for (size_t i = b; i < b + 32; ++i) {
      x[i] = scale != 0 ? (std::min(15.0f, std::floor(x[i] / scale + 8.5f)) - 8) * half : 0;
    }
  }
}

// Walsh and Hadamard, orthonormal, on the largest power of two that divides the size: its own inverse.
void rotate(std::span<float> x) {
  const size_t n = x.size() & (~x.size() + 1);
  for (size_t begin = 0; begin < x.size(); begin += n) {
    for (size_t half = 1; half < n; half *= 2) {
      for (size_t i = begin; i < begin + n; i += 2 * half) {
        for (size_t j = i; j < i + half; ++j) {
          const float a = x[j], b = x[j + half];
          x[j] = a + b;
          x[j + half] = a - b;
        }
      }
    }
    for (size_t i = begin; i < begin + n; ++i) x[i] /= std::sqrt(static_cast<float>(n));
  }
}

// Levels of Lloyd and Max for a normal variable, the positive half (Max 1960).
constexpr std::array<float, 2> kTwoBits = {0.4528f, 1.510f};
constexpr std::array<float, 4> kThreeBits = {0.2451f, 0.7560f, 1.344f, 2.152f};

void normal_levels(std::span<float> x, std::span<const float> levels) {
  double sum = 0;
  for (const float v : x) sum += static_cast<double>(v) * v;
  const float scale = as_half(static_cast<float>(std::sqrt(sum / static_cast<double>(x.size()))));
  if (scale == 0) return;
  for (float& v : x) {
    float best = levels[0];
    for (const float level : levels) {
      if (std::fabs(std::fabs(v) / scale - level) < std::fabs(std::fabs(v) / scale - best)) best = level;
    }
    v = (v < 0 ? -best : best) * scale;
  }
}

// Two bits between the least and the largest of a group, both as f16.
void between(float* x, size_t n, size_t stride) {
  float least = x[0], largest = x[0];
  for (size_t i = 0; i < n; ++i) {
    least = std::min(least, x[i * stride]);
    largest = std::max(largest, x[i * stride]);
  }
  const float zero = as_half(least), scale = as_half((largest - least) / 3);
  for (size_t i = 0; i < n; ++i)
    x[i * stride] =
        scale > 0 ? zero + std::clamp(std::round((x[i * stride] - zero) / scale), 0.0f, 3.0f) * scale : zero;
}

using HeadCodec = std::function<void(float* block, size_t dim, bool values)>;
HeadCodec each_vector(std::function<void(std::span<float>)> codec) {
  return [codec = std::move(codec)](float* block, size_t dim, bool) {
    for (size_t t = 0; t < kKvBlock; ++t) codec({block + t * dim, dim});
  };
}

// What the coded caches of a source have in common.
struct Coding {
  BlockCodec codec;       // from the first token on; or
  PromptCodec make;       // from a prompt of
  int prompt_tokens = 0;  // tokens
};

class RivalCache final : public KvCache {
 public:
  RivalCache(const KvShape& shape, std::unique_ptr<KvCache> whole, std::unique_ptr<KvCache> coded,
             const Coding& coding)
      : KvCache(shape, KvFormat::kF32),
        whole_(std::move(whole)),
        coded_(std::move(coded)),
        coding_(coding),
        width_(static_cast<size_t>(shape.n_kv_heads * shape.head_dim)),
        k_(static_cast<size_t>(shape.n_layers * shape.max_blocks()) * kKvBlock * width_),
        v_(k_.size()),
        stored_(static_cast<size_t>(shape.n_layers * shape.max_blocks())),
        read_(static_cast<size_t>(shape.n_layers)),
        own_(2 * read_.size()) {}

  // Whoever stores a block's last token codes the block; whoever stores the prompt's last, the prompt.
  void store(int layer, int position, const float* k, const float* v) override {
    whole_->store(layer, position, k, v);
    const size_t block = static_cast<size_t>(layer * shape_.max_blocks() + position / kKvBlock);
    const size_t at = (block * kKvBlock + static_cast<size_t>(position % kKvBlock)) * width_;
    std::copy_n(k, width_, &k_[at]);
    std::copy_n(v, width_, &v_[at]);
    const bool block_is_whole = stored_[block].fetch_add(1) + 1 == kKvBlock;
    if (coding_.prompt_tokens == 0 || position >= coding_.prompt_tokens) {
      if (block_is_whole) code_block(layer, position / kKvBlock, block);
    } else if (read_[static_cast<size_t>(layer)].fetch_add(1) + 1 == coding_.prompt_tokens) {
      code_prompt(layer);
    }
  }
  size_t query_scratch_bytes(int) const override { return 0; }
  void prepare(int, int, const KvQueries&) const override {}
  void score_chunk(int layer, int head, int block, int n, const KvQueries& queries, float* scores,
                   size_t stride) const override {
    for (; n > 0; n -= kKvBlock, ++block, scores += stride) {
      split(layer, block, queries, [&](const KvCache& cache, const KvQueries& part, size_t first) {
        cache.score_chunk(layer, head, block, std::min(n, kKvBlock), part, scores + first * kKvBlock, stride);
      });
    }
  }
  void add_values(int layer, int head, int block, int n, const KvQueries& queries, const KvWeights& weights,
                  float* out, float* scratch) const override {
    for (const float* at = weights.at; n > 0; n -= kKvBlock, ++block, at += weights.stride) {
      split(layer, block, queries, [&](const KvCache& cache, const KvQueries& part, size_t first) {
        cache.add_values(layer, head, block, std::min(n, kKvBlock), part,
                         {at + first * kKvBlock, weights.stride, nullptr},
                         out + first * static_cast<size_t>(shape_.padded_dim()), scratch);
      });
    }
  }
  uint64_t bytes_used(int n) const override { return whole_->bytes_used(n); }
  uint64_t save_bytes(int) const override { return 0; }
  void save(int, std::byte*) const override {}
  void load(int, const std::byte*) override {}

 private:
  void code_prompt(int layer) {
    const size_t first = static_cast<size_t>(layer * shape_.max_blocks()) * kKvBlock * width_,
                 n = static_cast<size_t>(coding_.prompt_tokens) * width_;
    for (const bool values : {false, true}) {
      const auto from = (values ? v_ : k_).begin() + static_cast<ptrdiff_t>(first);
      own_[static_cast<size_t>(2 * layer + (values ? 1 : 0))] =
          coding_.make(layer, values, std::vector<float>(from, from + static_cast<ptrdiff_t>(n)));
    }
    for (int block = 0; block < coding_.prompt_tokens / kKvBlock; ++block)
      code_block(layer, block, static_cast<size_t>(layer * shape_.max_blocks() + block));
  }

  void code_block(int layer, int block, size_t idx) {
    const auto dim = static_cast<size_t>(shape_.head_dim);
    std::vector<float> all[2] = {std::vector<float>(kKvBlock * width_),
                                 std::vector<float>(kKvBlock * width_)};
    std::vector<float> head(kKvBlock * dim);
    for (size_t side = 0; side < 2; ++side) {
      const float* from = &(side == 0 ? k_ : v_)[idx * kKvBlock * width_];
      const BlockCodec& codec =
          coding_.prompt_tokens > 0 ? own_[static_cast<size_t>(2 * layer) + side] : coding_.codec;
      for (size_t h = 0; h < width_; h += dim) {
        for (size_t t = 0; t < kKvBlock; ++t) std::copy_n(from + t * width_ + h, dim, &head[t * dim]);
        codec(head.data(), {layer, static_cast<int>(h / dim), block * kKvBlock, side == 1});
        for (size_t t = 0; t < kKvBlock; ++t) std::copy_n(&head[t * dim], dim, &all[side][t * width_ + h]);
      }
      if (block == 0) std::copy_n(from, 4 * width_, all[side].begin());  // the first four stay whole
    }
    for (size_t t = 0; t < kKvBlock; ++t)
      coded_->store(layer, block * kKvBlock + static_cast<int>(t), &all[0][t * width_], &all[1][t * width_]);
  }

  template <typename F>
  void split(int layer, int block, const KvQueries& queries, F f) const {
    const bool coded = read_[static_cast<size_t>(layer)] == coding_.prompt_tokens;  // else all is whole
    const int n_whole = coded ? queries.first_col_at((block + 2) * kKvBlock) : queries.n_cols;
    if (n_whole > 0) f(*whole_, KvQueries{n_whole, queries.q, nullptr}, 0);
    if (n_whole < queries.n_cols) {
      f(*coded_, KvQueries{queries.n_cols - n_whole, queries.q + n_whole * shape_.padded_dim(), nullptr},
        static_cast<size_t>(n_whole));
    }
  }

  std::unique_ptr<KvCache> whole_, coded_;
  const Coding& coding_;
  size_t width_;
  std::vector<float> k_, v_;
  std::vector<std::atomic<int>> stored_;
  std::vector<std::atomic<int>> read_;  // [n_layers]: tokens of the prompt
  std::vector<BlockCodec> own_;         // [n_layers, 2], from the prompt
};

class RivalSource final : public llm::KvSource {
 public:
  RivalSource(std::string name, Coding coding) : name_(std::move(name)), coding_(std::move(coding)) {}
  std::string name() const override { return name_; }
  uint64_t content_hash() const override { return 0; }
  Result<std::unique_ptr<KvCache>> make(const KvShape& shape) const override {
    FRUGAL_TRY(auto whole, llm::make_kv_cache(KvFormat::kF32, shape));
    FRUGAL_TRY(auto coded, llm::make_kv_cache(KvFormat::kF32, shape));
    return std::unique_ptr<KvCache>(
        std::make_unique<RivalCache>(shape, std::move(whole), std::move(coded), coding_));
  }

 private:
  std::string name_;
  Coding coding_;
};

}  // namespace

std::shared_ptr<const llm::KvSource> rival_source(std::string name, BlockCodec codec) {
  return std::make_shared<RivalSource>(std::move(name), Coding{std::move(codec), {}, 0});
}

std::shared_ptr<const llm::KvSource> prompt_rival_source(std::string name, int n_tokens, PromptCodec make) {
  return std::make_shared<RivalSource>(std::move(name), Coding{{}, std::move(make), n_tokens});
}

std::vector<KvRival> kv_rivals(int head_dim) {
  const auto rotated = [](auto codec) {
    return each_vector([codec](std::span<float> x) {
      rotate(x);
      codec(x);
      rotate(x);
    });
  };
  std::vector<KvRival> rivals;
  const auto add = [&](const char* name, double bits, HeadCodec codec) {
    rivals.push_back(
        {name, bits,
         rival_source(name, [codec = std::move(codec), head_dim](float* block, const CodedBlock& at) {
           codec(block, static_cast<size_t>(head_dim), at.values);
         })});
  };
  add("q8_0", 8.5, each_vector(q8_0));
  add("q4_0", 4.5, each_vector(q4_0));
  add("rotated q4_0", 4.5, rotated(q4_0));
  add("rotated 3-bit", 3.25, rotated([](std::span<float> x) { normal_levels(x, kThreeBits); }));
  add("rotated 2-bit", 2.25, rotated([](std::span<float> x) { normal_levels(x, kTwoBits); }));
  // Keys by channel over 64 tokens, values by token over the channels of a head.
  add("KIVI-like 2-bit", 2.5, [](float* block, size_t dim, bool values) {
    for (size_t i = 0; i < (values ? size_t{kKvBlock} : dim); ++i)
      between(values ? block + i * dim : block + i, values ? dim : size_t{kKvBlock}, values ? 1 : dim);
  });
  return rivals;
}

}  // namespace frugal::cli
