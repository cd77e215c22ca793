#include "llm/kv/dict_train.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>

#include "base/team.h"
#include "base/text.h"
#include "llm/kernel/kernel.h"
#include "llm/kv/book.h"
#include "llm/kv/linear.h"
#include "llm/kv/pass_cache.h"
#include "llm/kv/quantisers.h"

namespace frugal::llm {

namespace {

// What a relative error of values costs beside a score's, both squared: by KL on text that no reported figure
// uses.
constexpr double kValueWeight = 3;

}  // namespace

class TapCache final : public PassCache {
 public:
  TapCache(const KvShape& shape, std::unique_ptr<KvCache> inner, DictionaryTrainer* trainer)
      : PassCache(shape, std::move(inner)), trainer_(trainer) {}
  void store(int layer, int position, const float* k, const float* v) override {
    trainer_->tap(layer, position, k, v);
    PassCache::store(layer, position, k, v);
  }
  void prepare(int layer, int head, const KvQueries& queries) const override {
    trainer_->tap_queries(layer, head, queries);
    PassCache::prepare(layer, head, queries);
  }

 private:
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

DictionaryTrainer::DictionaryTrainer(Dictionary empty, int n_tokens, int n_positions)
    : empty_(std::move(empty)),
      capacity_(n_tokens),
      n_positions_(n_positions),
      guards_(static_cast<size_t>(empty_.n_layers) * static_cast<size_t>(empty_.n_kv_heads)) {
  const auto dim = static_cast<size_t>(empty_.head_dim);
  const size_t n = static_cast<size_t>(empty_.n_layers) * static_cast<size_t>(n_tokens) *
                   static_cast<size_t>(empty_.n_kv_heads) * dim;
  for (auto& side : samples_) side.resize(n);
  positions_.resize(static_cast<size_t>(n_tokens));
  queries_.resize(guards_.size());
  groups_.resize(guards_.size());
  windows_.resize(guards_.size());
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
  // Halves saturate and do not show it.
  const auto finite = [](float x) { return std::isfinite(x); };
  if (!std::all_of(k, k + width, finite) || !std::all_of(v, v + width, finite)) finite_ = false;
  kernels().to_f16(k, width, &samples_[0][at]);
  kernels().to_f16(v, width, &samples_[1][at]);
}

void DictionaryTrainer::tap_queries(int layer, int head, const KvQueries& queries) {
  const auto dim = static_cast<size_t>(empty_.head_dim);
  const size_t idx =
      static_cast<size_t>(layer) * static_cast<size_t>(empty_.n_kv_heads) + static_cast<size_t>(head);
  const std::lock_guard lock(guards_[idx]);
  if (groups_[idx] == 0) {
    groups_[idx] = queries.group;
    windows_[idx] = queries.window;
    queries_[idx].assign(static_cast<size_t>(capacity_ * queries.group / kQueryStride + 1) * dim, kNoQuery);
  }
  for (int col = 0; col < queries.n_cols; ++col) {
    const int place = (begin_ + queries.first_position) * queries.group + col;
    if (place % kQueryStride != 0 || place / queries.group >= end_) continue;
    kernels().to_f16(
        queries.q + static_cast<size_t>(col) * static_cast<size_t>((empty_.head_dim + 15) / 16 * 16), dim,
        &queries_[idx][static_cast<size_t>(place / kQueryStride) * dim]);
  }
}

std::vector<float> DictionaryTrainer::vectors(int layer, KvSide side, int head) const {
  const auto dim = static_cast<size_t>(empty_.head_dim), heads = static_cast<size_t>(empty_.n_kv_heads);
  std::vector<float> x;
  for (size_t i = 0; i < static_cast<size_t>(end_); ++i) {
    const size_t row = static_cast<size_t>(layer) * static_cast<size_t>(capacity_) + i;
    const uint16_t* from =
        &samples_[side == KvSide::kValues ? 1 : 0][(row * heads + static_cast<size_t>(head)) * dim];
    for (size_t j = 0; j < dim; ++j) x.push_back(f16_to_f32(from[j]));
  }
  return x;
}

// Keys: see HeadBasis; values have no mean.
DictionaryTrainer::Rows DictionaryTrainer::rows(int layer, KvSide side, int head) const {
  const auto dim = static_cast<size_t>(empty_.head_dim);
  const bool keys = side == KvSide::kKeys;
  const std::vector<double> shares = shares_of(layer, side, head);
  const std::vector<float> all = vectors(layer, side, head);
  std::vector<double> sum(dim, 0.0);
  std::vector<float> turned(dim);
  double total = 0;
  for (size_t i = 0; keys && i < static_cast<size_t>(end_); ++i) {
    if (positions_[i] < kSkipped) continue;
    turn_to(empty_, layer, -positions_[i], &all[i * dim], turned.data());
    for (size_t j = 0; j < dim; ++j) sum[j] += shares[i] * static_cast<double>(turned[j]);
    total += shares[i];
  }
  Rows out;
  out.mean.assign(dim, 0.0f);
  for (size_t j = 0; j < dim && total > 0; ++j) out.mean[j] = static_cast<float>(sum[j] / total);
  for (size_t i = 0; i < static_cast<size_t>(end_); ++i) {
    if (positions_[i] < kSkipped) continue;
    turned = out.mean;
    if (keys) turn_to(empty_, layer, positions_[i], out.mean.data(), turned.data());
    for (size_t j = 0; j < dim; ++j) out.x.push_back(all[i * dim + j] - turned[j]);
    out.shares.push_back(static_cast<float>(shares[i]));
  }
  // Texts of training are short beside a context. A key's position is known, so what is left of each key
  // counts once more, as it would be at a position anywhere in the context.
  for (size_t i = 0, row = 0; keys && i < static_cast<size_t>(end_); ++i) {
    if (positions_[i] < kSkipped) continue;
    turn_to(empty_, layer, spread_position(i) - positions_[i], &out.x[row * dim], turned.data());
    out.x.insert(out.x.end(), turned.begin(), turned.end());
    out.shares.push_back(static_cast<float>(shares[i]));
    ++row;
  }
  return out;
}

// By the golden ratio: evenly spread however many there are.
int DictionaryTrainer::spread_position(size_t idx) const {
  const double place = static_cast<double>(idx) * 0.6180339887498949;
  return static_cast<int>((place - std::floor(place)) * n_positions_);
}

namespace {

std::vector<double> covariance_of(const std::vector<float>& x, const std::vector<float>& shares, size_t dim) {
  std::vector<double> sum(dim * dim, 0.0);
  std::vector<float> part(dim * dim);
  double total = 0;
  for (size_t begin = 0; begin < shares.size();
       begin += 64) {  // floats for 64 rows, doubles above: fast and exact enough
    std::fill(part.begin(), part.end(), 0.0f);
    for (size_t r = begin; r < std::min(shares.size(), begin + 64); ++r) {
      const float* row = &x[r * dim];
      total += static_cast<double>(shares[r]);
      for (size_t i = 0; i < dim; ++i) {
        const float scaled = shares[r] * row[i];
        for (size_t j = 0; j < dim; ++j) part[i * dim + j] += scaled * row[j];
      }
    }
    for (size_t i = 0; i < dim * dim; ++i) sum[i] += static_cast<double>(part[i]);
  }
  for (double& s : sum) s /= total;
  return sum;
}

}  // namespace

struct DictionaryTrainer::Coefficients {
  std::vector<float> values;
  std::vector<CoefficientRow> rows;
};

namespace {

double mean_square(const std::vector<float>& x, size_t dim) {
  double sum = 0;
  for (const float value : x) sum += static_cast<double>(value * value);
  return sum * static_cast<double>(dim) / static_cast<double>(x.size());
}

// Rows [n, dim] times a [out, in] transposed.
std::vector<float> multiplied(const std::vector<double>& a, const std::vector<float>& rows, size_t dim) {
  std::vector<float> panels(dim * dim), out(rows.size());
  for (size_t i = 0; i < dim; ++i) {
    for (size_t j = 0; j < dim; ++j) panels[j * dim + i] = static_cast<float>(a[i * dim + j]);
  }
  kernels().panel_f32({panels.data(), dim, 16, dim / 16, dim}, rows.data(), dim, rows.size() / dim,
                      out.data(), dim, false);
  return out;
}

// Entries [kBookEntries, dim] as levels.
void put_book(const std::vector<float>& entries, HeadBasis& basis) {
  const size_t dim = entries.size() / kBookEntries;
  basis.book.resize(entries.size());
  basis.book_scale.assign(dim, 0.0f);
  for (size_t i = 0; i < entries.size(); ++i)
    basis.book_scale[i % dim] = std::max(basis.book_scale[i % dim], std::fabs(entries[i]) / kLevelCentre);
  for (size_t i = 0; i < entries.size(); ++i) {
    const float scale = basis.book_scale[i % dim];
    const long level = scale > 0 ? std::lround(entries[i] / scale) : 0;
    basis.book[i] = static_cast<uint8_t>(std::clamp(level + kLevelCentre, 0l, long{kLevelMax}));
  }
}

// Bits of a head's groups of atoms for a mean of `wanted` a channel, by reverse water-filling.
std::vector<int> filled_bits(const std::vector<float>& weights, double wanted) {
  std::vector<int> bits(weights.size() / kAtomGroup);
  double low = -60, high = 60;  // of the logarithm of the water's level
  for (int step = 0; step < 50; ++step) {
    const double level = (low + high) / 2;
    double sum = 0;
    for (size_t g = 0; g < bits.size(); ++g) {
      const double weight = static_cast<double>(weights[g * kAtomGroup]);
      bits[g] = static_cast<int>(std::clamp(std::lround(0.5 * (std::log2(weight + 1e-30) - level)), 0l, 6l));
      sum += bits[g];
    }
    (sum > wanted * static_cast<double>(bits.size()) ? low : high) = level;
  }
  return bits;
}

}  // namespace

// Mean, book, basis and weights of one head; appends a sample of its coefficients.
void DictionaryTrainer::fit_head(int layer, KvSide side, int head, HeadBasis& basis,
                                 Coefficients& sample) const {
  constexpr int kRounds = 8;
  const auto dim = static_cast<size_t>(empty_.head_dim);
  const Rows rows = this->rows(layer, side, head);
  const size_t n = rows.shares.size();
  basis.mean = rows.mean;
  const double trace = std::max(1e-20, mean_square(rows.x, dim));
  // The metric: an error e costs e^T m e. Keys: the variance of a score, in nats^2. Values: relative to
  // theirs.
  std::vector<double> metric;
  if (side == KvSide::kKeys) metric = query_moment(layer, head);
  if (metric.empty()) {
    metric.assign(dim * dim, 0.0);
    for (size_t i = 0; i < dim; ++i) metric[i * dim + i] = kValueWeight / trace;
  }
  const std::vector<double> root = root_of(metric, dim, false, 1e-4);
  // The book, where errors cost their squares; its entries are means of rows.
  std::vector<uint32_t> found(n);
  std::vector<float> left = rows.x, entries(kBookEntries * dim);
  {
    const std::vector<float> z = multiplied(root, rows.x, dim);
    const Book book =
        k_means(z, rows.shares, dim, kBookEntries, kRounds, empty_.basis_index(layer, side, head) + 1);
    book.nearest(z.data(), n, dim, found.data());
    std::vector<double> sums(entries.size(), 0.0), counts(kBookEntries, 1e-30);
    for (size_t r = 0; r < n; ++r) {
      counts[found[r]] += static_cast<double>(rows.shares[r]);
      for (size_t i = 0; i < dim; ++i)
        sums[found[r] * dim + i] += static_cast<double>(rows.shares[r] * rows.x[r * dim + i]);
    }
    for (size_t i = 0; i < sums.size(); ++i) entries[i] = static_cast<float>(sums[i] / counts[i / dim]);
    for (size_t i = 0; i < left.size(); ++i) left[i] -= entries[found[i / dim] * dim + i % dim];
  }
  std::vector<double> covariance = covariance_of(left, rows.shares, dim);
  for (size_t i = 0; i < dim; ++i) covariance[i * dim + i] += 1e-5 * trace / static_cast<double>(dim);
  const Eigen eigen = eigen_of(product_of(product_of(root, covariance, dim), root, dim), dim);
  const std::vector<double> analysis = product_of(eigen.vectors, root, dim);
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
  const std::vector<double> wide(basis.analysis.begin(), basis.analysis.end());
  put_book(multiplied(wide, entries, dim), basis);
  const std::vector<float> y = multiplied(wide, rows.x, dim);
  basis.spread.assign(dim, 0.0f);
  for (size_t i = 0; i < dim; ++i) {
    double sum = 0, total = 0;
    for (size_t r = 0; r < n; ++r) {
      sum += static_cast<double>(rows.shares[r] * y[r * dim + i] * y[r * dim + i]);
      total += static_cast<double>(rows.shares[r]);
    }
    basis.spread[i] = static_cast<float>(std::sqrt(std::max(1e-12, sum / total)));
  }
  // Coefficients that are likely to get bits: of the first half of the atoms, those of values over their
  // token's scale.
  constexpr std::array<double, 4> kBudgets = {1, 1.75, 2.5, 3.5};  // of the rows by turns
  std::array<std::vector<int>, kBudgets.size()> bits;
  for (size_t i = 0; i < bits.size(); ++i) bits[i] = filled_bits(basis.weight, kBudgets[i]);
  const size_t step = std::max<size_t>(1, n / 1024);
  std::vector<float> rest(dim);
  for (size_t r = 0; r < n; r += step) {
    float energy = 0;
    for (size_t i = 0; i < dim; ++i) {
      rest[i] = y[r * dim + i] -
                basis.book_scale[i] * static_cast<float>(basis.book[found[r] * dim + i] - kLevelCentre);
      energy += rest[i] * rest[i];
    }
    const float scale =
        side == KvSide::kValues ? token_scale(token_scale_code(energy / static_cast<float>(dim))) : 1.0f;
    CoefficientRow& row = sample.rows.emplace_back();
    for (size_t i = 0; i < dim; ++i) {
      const int own = bits[r / step % bits.size()][i / kAtomGroup];
      if (i < dim / 2) sample.values.push_back(rest[i] / scale);
      if (own < 1 || own > kMaxLevelBits) continue;
      row.y.push_back(rest[i] / scale);
      row.weights.push_back(basis.weight[i] / basis.weight[0]);
      row.bits.push_back(static_cast<uint8_t>(own));
    }
  }
}

void DictionaryTrainer::fit_layer(int layer, Dictionary& out) const {
  for (const KvSide side : {KvSide::kKeys, KvSide::kValues}) {
    Coefficients sample;
    for (int head = 0; head < empty_.n_kv_heads; ++head)
      fit_head(layer, side, head, out.bases[out.basis_index(layer, side, head)], sample);
    out.levels[static_cast<size_t>(layer) * 2 + (side == KvSide::kValues ? 1 : 0)] =
        quantisers_of(std::move(sample.values), sample.rows);
  }
}

Result<Dictionary> DictionaryTrainer::fit(int n_threads, const std::function<bool(double)>& progress) const {
  if (end_ < 1024) {
    return Error{ErrorCode::kInvalidArgument,
                 strf("%d tokens of text are too few to train on: give 1024 or more, better 10,000", end_)};
  }
  if (!finite_) {
    return Error{ErrorCode::kInvalidArgument, "the model gives keys or values that are not finite numbers"};
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
