#include "llm/kv/dict_train.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "base/team.h"
#include "base/text.h"
#include "llm/kernel/kernel.h"
#include "llm/kv/linear.h"

namespace frugal::llm {

namespace {

// Queries are summed as integers, so that the order of threads does not show.
constexpr float kQueryUnit = 1.0f / 1024;
constexpr int kSkipped = 4;      // the first tokens of a text stay whole: they are no example
constexpr int kQueryStride = 5;  // every fifth query column is taken
// What a relative error of values costs beside a score's, both squared. To first order they are alike, but
// errors of scores in part cancel in the softmax. Of 1, 2, 4, 8, 16 and 32 this gave the least KL on SmolLM2
// at 1 and 2 bits (a licence text, which no reported figure uses).
constexpr double kValueWeight = 8;

}  // namespace

class TapCache final : public KvCache {
 public:
  TapCache(const KvShape& shape, std::unique_ptr<KvCache> inner, DictionaryTrainer* trainer)
      : KvCache(shape, KvFormat::kF32), inner_(std::move(inner)), trainer_(trainer) {}
  void store(int layer, int position, const float* k, const float* v) override {
    trainer_->tap(layer, position, k, v);
    inner_->store(layer, position, k, v);
  }
  size_t query_scratch_bytes(int n) const override { return inner_->query_scratch_bytes(n); }
  void prepare(int layer, int head, const KvQueries& queries) const override {
    inner_->prepare(layer, head, queries);
  }
  void score_block(int layer, int head, int block, int n, const KvQueries& queries,
                   float* scores) const override {
    if (block == 0) trainer_->tap_queries(layer, head, queries);
    inner_->score_block(layer, head, block, n, queries, scores);
  }
  void add_values(int layer, int head, int block, int n, const KvQueries& queries, const float* weights,
                  float* out, float* scratch) const override {
    inner_->add_values(layer, head, block, n, queries, weights, out, scratch);
  }
  uint64_t bytes_used(int n) const override { return inner_->bytes_used(n); }
  uint64_t save_bytes(int n) const override { return inner_->save_bytes(n); }
  void save(int n, std::byte* image) const override { inner_->save(n, image); }
  void load(int n, const std::byte* image) override { inner_->load(n, image); }

 private:
  std::unique_ptr<KvCache> inner_;
  DictionaryTrainer* trainer_;
};

class TapSource final : public KvSource {
 public:
  explicit TapSource(DictionaryTrainer* trainer) : trainer_(trainer) {}
  std::string name() const override { return "tap"; }
  uint64_t content_hash() const override { return 0; }
  Result<std::unique_ptr<KvCache>> make(const KvShape& shape) const override {
    FRUGAL_TRY(auto inner, make_kv_cache(KvFormat::kF32, shape));
    return std::unique_ptr<KvCache>(std::make_unique<TapCache>(shape, std::move(inner), trainer_));
  }

 private:
  DictionaryTrainer* trainer_;
};

DictionaryTrainer::DictionaryTrainer(Dictionary empty, int n_tokens)
    : empty_(std::move(empty)),
      capacity_(n_tokens),
      guards_(static_cast<size_t>(empty_.n_layers) * static_cast<size_t>(empty_.n_kv_heads)) {
  const auto dim = static_cast<size_t>(empty_.head_dim);
  const size_t n = static_cast<size_t>(empty_.n_layers) * static_cast<size_t>(n_tokens) *
                   static_cast<size_t>(empty_.n_kv_heads) * dim;
  for (auto& side : samples_) side.resize(n);
  positions_.resize(static_cast<size_t>(n_tokens));
  query_moments_.resize(guards_.size() * dim * dim);
  query_counts_.resize(guards_.size());
}

std::shared_ptr<const KvSource> DictionaryTrainer::source() { return std::make_shared<TapSource>(this); }

void DictionaryTrainer::begin_text(int n_tokens) {
  begin_ = end_;
  end_ = std::min(capacity_, end_ + n_tokens);
  for (int i = begin_; i < end_; ++i) positions_[static_cast<size_t>(i)] = i - begin_;
}

void DictionaryTrainer::tap(int layer, int position, const float* k, const float* v) {
  if (begin_ + position >= end_) return;
  const size_t width = static_cast<size_t>(empty_.n_kv_heads) * static_cast<size_t>(empty_.head_dim);
  const size_t at =
      (static_cast<size_t>(layer) * static_cast<size_t>(capacity_) + static_cast<size_t>(begin_ + position)) *
      width;
  kernels().to_f16(k, width, &samples_[0][at]);
  kernels().to_f16(v, width, &samples_[1][at]);
}

void DictionaryTrainer::tap_queries(int layer, int head, const KvQueries& queries) {
  const auto dim = static_cast<size_t>(empty_.head_dim);
  const size_t idx =
      static_cast<size_t>(layer) * static_cast<size_t>(empty_.n_kv_heads) + static_cast<size_t>(head);
  int32_t q[kMaxCodedDim];
  for (int col = 0; col < queries.n_cols; ++col) {
    if ((queries.first_position * queries.group + col) % kQueryStride != 0) continue;
    const float* given = queries.q + static_cast<size_t>(col) * dim;
    for (size_t i = 0; i < dim; ++i) {
      const float scaled = given[i] / kQueryUnit;
      q[i] = std::isfinite(scaled) ? static_cast<int32_t>(std::clamp(scaled, -1e6f, 1e6f)) : 0;
    }
    const std::lock_guard lock(guards_[idx]);
    ++query_counts_[idx];
    int64_t* moments = &query_moments_[idx * dim * dim];
    for (size_t i = 0; i < dim; ++i) {
      for (size_t j = 0; j < dim; ++j) moments[i * dim + j] += static_cast<int64_t>(q[i]) * q[j];
    }
  }
}

// The vectors of a head less their mean, and that mean: [n, dim]. Keys: see HeadBasis.
std::vector<float> DictionaryTrainer::rows(int layer, KvSide side, int head, std::vector<float>& mean) const {
  const auto dim = static_cast<size_t>(empty_.head_dim), heads = static_cast<size_t>(empty_.n_kv_heads);
  std::vector<float> x;
  std::vector<int> at;
  std::vector<double> sum(dim, 0.0);
  std::vector<float> row(dim), turned(dim);
  for (int i = 0; i < end_; ++i) {
    const int position = positions_[static_cast<size_t>(i)];
    if (position < kSkipped) continue;
    const uint16_t* from =
        &samples_[side == KvSide::kValues ? 1 : 0]
                 [((static_cast<size_t>(layer) * static_cast<size_t>(capacity_) + static_cast<size_t>(i)) *
                       heads +
                   static_cast<size_t>(head)) *
                  dim];
    for (size_t j = 0; j < dim; ++j) row[j] = f16_to_f32(from[j]);
    x.insert(x.end(), row.begin(), row.end());
    at.push_back(position);
    if (side == KvSide::kKeys) {
      turn_to(empty_, layer, -position, row.data(), turned.data());
      row = turned;
    }
    for (size_t j = 0; j < dim; ++j) sum[j] += row[j];
  }
  mean.resize(dim);
  for (size_t j = 0; j < dim; ++j) mean[j] = static_cast<float>(sum[j] / static_cast<double>(at.size()));
  for (size_t i = 0; i < at.size(); ++i) {
    turned = mean;
    if (side == KvSide::kKeys) turn_to(empty_, layer, at[i], mean.data(), turned.data());
    for (size_t j = 0; j < dim; ++j) x[i * dim + j] -= turned[j];
  }
  return x;
}

namespace {

std::vector<double> covariance_of(const std::vector<float>& x, size_t dim) {
  std::vector<double> sum(dim * dim, 0.0);
  const size_t n = x.size() / dim;
  std::vector<float> part(dim * dim);
  for (size_t begin = 0; begin < n;
       begin += 64) {  // floats for 64 rows, doubles above: fast and exact enough
    std::fill(part.begin(), part.end(), 0.0f);
    for (size_t r = begin; r < std::min(n, begin + 64); ++r) {
      const float* row = &x[r * dim];
      for (size_t i = 0; i < dim; ++i) {
        for (size_t j = 0; j < dim; ++j) part[i * dim + j] += row[i] * row[j];
      }
    }
    for (size_t i = 0; i < dim * dim; ++i) sum[i] += part[i];
  }
  for (double& s : sum) s /= static_cast<double>(n);
  return sum;
}

// Lloyd's quantisers of the values given, 1 to 4 bits.
CoefficientLevels quantisers_of(std::vector<float> y) {
  std::sort(y.begin(), y.end());
  std::vector<double> sums(y.size() + 1, 0.0), squares(y.size() + 1, 0.0);
  for (size_t i = 0; i < y.size(); ++i) {
    sums[i + 1] = sums[i] + y[i];
    squares[i + 1] = squares[i] + static_cast<double>(y[i]) * y[i];
  }
  const double variance = std::max(1e-12, squares.back() / static_cast<double>(y.size()));
  CoefficientLevels out;
  out.error[0] = 1;
  for (size_t bits = 1; bits <= kMaxAtomBits; ++bits) {
    const size_t n = size_t{1} << bits;
    std::vector<double> levels(n);
    for (size_t i = 0; i < n; ++i)
      levels[i] = y[(2 * i + 1) * y.size() / (2 * n)] + 1e-6 * static_cast<double>(i);
    double error = 0;
    for (int round = 0; round < 100; ++round) {
      size_t begin = 0;
      error = 0;
      for (size_t i = 0; i < n; ++i) {
        const size_t end =
            i + 1 == n
                ? y.size()
                : static_cast<size_t>(std::upper_bound(y.begin(), y.end(),
                                                       static_cast<float>((levels[i] + levels[i + 1]) / 2)) -
                                      y.begin());
        const auto count = static_cast<double>(end - begin);
        if (end > begin) {
          const double sum = sums[end] - sums[begin];
          levels[i] = sum / count;
          error += squares[end] - squares[begin] - sum * sum / count;
        }
        begin = end;
      }
    }
    for (size_t i = 0; i < n; ++i) {
      out.levels[bits - 1][i] = static_cast<float>(levels[i]);
      if (i > 0)
        out.levels[bits - 1][i] =
            std::max(out.levels[bits - 1][i], std::nextafter(out.levels[bits - 1][i - 1], 1e9f));
    }
    out.error[bits] =
        std::min(out.error[bits - 1], static_cast<float>(error / static_cast<double>(y.size()) / variance));
  }
  return out;
}

}  // namespace

void DictionaryTrainer::fit_layer(int layer, Dictionary& out) const {
  const auto dim = static_cast<size_t>(empty_.head_dim);
  for (const KvSide side : {KvSide::kKeys, KvSide::kValues}) {
    std::vector<float> coefficients;
    for (int head = 0; head < empty_.n_kv_heads; ++head) {
      HeadBasis& basis = out.bases[out.basis_index(layer, side, head)];
      const std::vector<float> x = rows(layer, side, head, basis.mean);
      std::vector<double> covariance = covariance_of(x, dim);
      double trace = 0;
      for (size_t i = 0; i < dim; ++i) trace += covariance[i * dim + i];
      trace = std::max(trace, 1e-20);
      for (size_t i = 0; i < dim; ++i) covariance[i * dim + i] += 1e-5 * trace / static_cast<double>(dim);
      // The metric: an error e costs e^T m e. Keys: the variance of a score, in nats^2. Values: relative to
      // theirs.
      std::vector<double> metric(dim * dim, 0.0);
      const size_t idx =
          static_cast<size_t>(layer) * static_cast<size_t>(empty_.n_kv_heads) + static_cast<size_t>(head);
      const bool has_queries = side == KvSide::kKeys && query_counts_[idx] > 0;
      for (size_t i = 0; i < dim * dim; ++i) {
        if (has_queries) {
          metric[i] = static_cast<double>(query_moments_[idx * dim * dim + i]) * kQueryUnit * kQueryUnit /
                      static_cast<double>(query_counts_[idx]);
        } else if (i % (dim + 1) == 0) {
          metric[i] = kValueWeight / trace;
        }
      }
      const std::vector<double> root = root_of(metric, dim, false, 1e-4);
      const Eigen eigen = eigen_of(product_of(product_of(root, covariance, dim), root, dim), dim);
      std::vector<double> analysis = product_of(eigen.vectors, root, dim);
      basis.weight.resize(dim);
      basis.analysis.resize(dim * dim);
      for (size_t i = 0; i < dim; ++i) {
        const double value = std::max({eigen.values[i], eigen.values[0] * 1e-7, 1e-18});
        basis.weight[i] = static_cast<float>(value);
        for (size_t j = 0; j < dim; ++j) {
          // As the file holds it, so that a dictionary just trained and one read are the same.
          basis.analysis[i * dim + j] =
              f16_to_f32(f32_to_f16(static_cast<float>(analysis[i * dim + j] / std::sqrt(value))));
        }
      }
      basis.synthesis = basis.analysis;
      if (!invert(basis.synthesis, dim)) basis.synthesis.clear();
      // Coefficients that are likely to get bits: of the first half of the atoms.
      const size_t n = x.size() / dim, step = std::max<size_t>(1, n / 512);
      for (size_t r = 0; r < n; r += step) {
        for (size_t i = 0; i < dim / 2; ++i) {
          float y = 0;
          for (size_t j = 0; j < dim; ++j) y += basis.analysis[i * dim + j] * x[r * dim + j];
          coefficients.push_back(y);
        }
      }
    }
    out.levels[static_cast<size_t>(layer) * 2 + (side == KvSide::kValues ? 1 : 0)] =
        quantisers_of(std::move(coefficients));
  }
}

Result<Dictionary> DictionaryTrainer::fit(int n_threads, const std::function<bool(double)>& progress) const {
  if (end_ < 1024) {
    return Error{ErrorCode::kInvalidArgument,
                 strf("%d tokens of text are too few to train on: give 1024 or more, better 10,000", end_)};
  }
  for (const auto& side : samples_) {
    for (const uint16_t half : side) {
      if ((half & 0x7c00) == 0x7c00)
        return Error{ErrorCode::kInvalidArgument,
                     "the model gives keys or values that are not finite numbers"};
    }
  }
  Dictionary out = empty_;
  out.bases.resize(static_cast<size_t>(out.n_layers) * 2 * static_cast<size_t>(out.n_kv_heads));
  out.levels.resize(static_cast<size_t>(out.n_layers) * 2);
  std::atomic<int> next{0};
  std::atomic<bool> stop{false};
  ThreadTeam team(n_threads);
  team.run([&](TeamMember member) {
    while (!stop.load(std::memory_order_relaxed)) {
      const int layer = next.fetch_add(1, std::memory_order_relaxed);
      if (layer >= out.n_layers) break;
      fit_layer(layer, out);
      if (member.idx == 0 && progress && !progress(static_cast<double>(layer + 1) / out.n_layers))
        stop = true;
    }
  });
  if (stop) return Error{ErrorCode::kCancelled, "stopped while fitting"};
  for (const HeadBasis& basis : out.bases) {
    if (basis.synthesis.empty())
      return Error{ErrorCode::kInvalidArgument,
                   "the text is too uniform to train on: give more of it, and of more kinds"};
  }
  return out;
}

}  // namespace frugal::llm
