// Training of the reward model from logged chains: Adam on the weighted squared error, then calibration.
#include <algorithm>
#include <numeric>

#include "base/check.h"
#include "base/rng.h"
#include "base/text.h"
#include "cascade/rank.h"
#include "cascade/reward_impl.h"

namespace frugal::cascade {
namespace {

using Impl = RewardModel::Impl;

struct Adam {
  explicit Adam(size_t n) : m(n, 0), v(n, 0) {}
  std::vector<double> m, v;
  int t = 0;

  // Parameters before `n_free` do not decay. Clears the gradient.
  void step(std::span<float> parameters, std::span<double> gradient, double rate, double decay,
            size_t n_free) {
    ++t;
    const double c1 = 1 - std::pow(0.9, t), c2 = 1 - std::pow(0.999, t);
    for (size_t i = 0; i < parameters.size(); ++i) {
      const double g = gradient[i];
      m[i] = 0.9 * m[i] + 0.1 * g;
      v[i] = 0.999 * v[i] + 0.001 * g * g;
      const double shrink = i < n_free ? 0 : decay * static_cast<double>(parameters[i]);
      parameters[i] -= static_cast<float>(rate * ((m[i] / c1) / (std::sqrt(v[i] / c2) + 1e-8) + shrink));
      gradient[i] = 0;
    }
  }
};

// Forward and backward for the rows of one request after another; gradients are added up. The heads are
// computed once for a request, however many chains were logged for it.
class Trainer {
 public:
  explicit Trainer(Impl& model)
      : m_(model),
        z_(static_cast<size_t>(model.z_dim())),
        dz_(z_.size()),
        logit_(static_cast<size_t>(model.n_heads)),
        active_(logit_.size()),
        d_active_(logit_.size()),
        known_(logit_.size()),
        g_weights_(model.weights.size(), 0.0),
        g_mix_(model.mix.size(), 0.0),
        weights_(model.weights.size()),
        mix_(model.mix.size()),
        shared_(static_cast<size_t>(model.padded_heads)) {}

  void begin_request(std::span<const float> x) {
    m_.embed(x, z_.data());
    std::fill(known_.begin(), known_.end(), false);
    std::fill(d_active_.begin(), d_active_.end(), 0.0);
  }

  // The mean request: what is personal is left out, z = [1, 0 ..].
  void begin_shared() {
    std::fill(z_.begin(), z_.end(), 0.0f);
    z_[0] = 1;
    std::fill(known_.begin(), known_.end(), false);
    std::fill(d_active_.begin(), d_active_.end(), 0.0);
  }

  // Unscaled prediction of a chain for the request: its value times h_K.
  double forward(int chain) { return active(m_.value_head) * state_of(chain); }

  double state_of(int chain) {
    double state = m_.options.recursive ? 1 : 0;
    for (size_t k = 0; k < static_cast<size_t>(m_.n_stages); ++k) {
      const double sum = stage_sum(chain, k);
      state = m_.options.recursive ? sum * state + active(alpha_of(chain, k)) : state + sum;
    }
    return state;
  }

  // `gradient`: of the loss by the unscaled prediction, for a chain of the request.
  void backward(int chain, double gradient) {
    const auto n = static_cast<size_t>(m_.n_stages);
    double before[kMaxStages], sums[kMaxStages], state = m_.options.recursive ? 1 : 0;
    for (size_t k = 0; k < n; ++k) {
      before[k] = state;
      sums[k] = stage_sum(chain, k);
      state = m_.options.recursive ? sums[k] * state + active(alpha_of(chain, k)) : state + sums[k];
    }
    d_active_[static_cast<size_t>(m_.value_head)] += gradient * state;
    gradient *= active(m_.value_head);
    for (size_t k = n; k-- > 0;) {
      const Impl::Gain& gain = gain_of(chain, k);
      double d_sum = gradient;
      if (m_.options.recursive) {
        d_sum *= before[k];
        d_active_[static_cast<size_t>(alpha_of(chain, k))] += gradient;
        gradient *= sums[k];
      }
      for (int b = 0; b < kBases; ++b)
        d_active_[static_cast<size_t>(gain.head + b)] += d_sum * static_cast<double>(gain.phi[b]);
    }
  }

  void end_request() {
    std::fill(dz_.begin(), dz_.end(), 0.0);
    const auto stride = static_cast<size_t>(m_.padded_heads);
    for (size_t head = 0; head < d_active_.size(); ++head) {
      if (d_active_[head] == 0) continue;
      const double d_logit = d_active_[head] * (m_.options.monotone ? 1 / (1 + std::exp(-logit_[head])) : 1);
      for (size_t i = 0; i < z_.size(); ++i) {
        g_weights_[i * stride + head] += d_logit * static_cast<double>(z_[i]);
        dz_[i] += d_logit * static_cast<double>(m_.weights[i * stride + head]);
      }
    }
    const auto d = static_cast<size_t>(m_.n_features);
    for (size_t h = 0; h < static_cast<size_t>(m_.options.hidden); ++h) {
      if (z_[1 + d + h] <= 0) continue;
      for (size_t i = 0; i < 1 + d; ++i)
        g_mix_[h * (1 + d) + i] += dz_[1 + d + h] * static_cast<double>(z_[i]);
    }
  }

  void step(double rate, double decay) {
    // The first row is what all requests share.
    weights_.step(m_.weights, g_weights_, rate, decay, static_cast<size_t>(m_.padded_heads));
    mix_.step(m_.mix, g_mix_, rate, 0, 0);
  }
  void step_shared(double rate) {
    const auto n = static_cast<size_t>(m_.padded_heads);
    shared_.step(std::span(m_.weights).first(n), std::span(g_weights_).first(n), rate, 0, n);
  }

 private:
  const Impl::Gain& gain_of(int chain, size_t k) const {
    return m_.gains[static_cast<size_t>(m_.chain_gains[static_cast<size_t>(chain)][k])];
  }
  int alpha_of(int chain, size_t k) const { return m_.chain_alphas[static_cast<size_t>(chain)][k]; }
  double stage_sum(int chain, size_t k) {
    const Impl::Gain& gain = gain_of(chain, k);
    double sum = 0;
    for (int b = 0; b < kBases; ++b) sum += active(gain.head + b) * static_cast<double>(gain.phi[b]);
    return sum;
  }
  double active(int head) {
    const auto at = static_cast<size_t>(head);
    if (!known_[at]) {
      double sum = 0;
      for (size_t i = 0; i < z_.size(); ++i)
        sum += static_cast<double>(z_[i]) *
               static_cast<double>(m_.weights[i * static_cast<size_t>(m_.padded_heads) + at]);
      logit_[at] = sum;
      active_[at] = m_.options.monotone ? softplus(sum) : sum;
      known_[at] = true;
    }
    return active_[at];
  }

  Impl& m_;
  std::vector<float> z_;
  std::vector<double> dz_, logit_, active_, d_active_;
  std::vector<char> known_;
  std::vector<double> g_weights_, g_mix_;
  Adam weights_, mix_, shared_;
};

// Rows [begin, end) of the logs that belong to one request: they follow each other and have the same
// features.
struct Group {
  size_t begin, end;
};
std::vector<Group> group_rows(const LoggedChains& logs) {
  const auto d = static_cast<size_t>(logs.n_features);
  std::vector<Group> groups;
  for (size_t i = 0; i < static_cast<size_t>(logs.n); ++i) {
    const auto row = logs.features.begin() + static_cast<std::ptrdiff_t>(i * d);
    if (!groups.empty() && std::equal(row - static_cast<std::ptrdiff_t>(d), row, row))
      groups.back().end = i + 1;
    else
      groups.push_back({i, i + 1});
  }
  return groups;
}

Status check_logs(const CascadeSpec& spec, const LoggedChains& logs) {
  const auto bad = [](std::string message) {
    return Status(ErrorCode::kInvalidArgument, std::move(message));
  };
  const auto n = static_cast<size_t>(std::max(logs.n, 0));
  if (logs.n < 100) return bad(strf("%d logged requests are too few to train on (at least 100)", logs.n));
  if (logs.n_features != spec.n_features() ||
      logs.features.size() != n * static_cast<size_t>(logs.n_features) || logs.chains.size() != n ||
      logs.propensity.size() != n || logs.rewards.size() != n) {
    return bad("the logged arrays do not have the sizes that their counts say");
  }
  for (size_t i = 0; i < n; ++i) {
    if (logs.chains[i] < 0 || logs.chains[i] >= spec.n_chains())
      return bad(strf("log row %zu: there is no chain %d", i, logs.chains[i]));
    if (!(logs.propensity[i] > 0) || logs.propensity[i] > 1)
      return bad(
          strf("log row %zu: propensity %g is not in (0, 1]", i, static_cast<double>(logs.propensity[i])));
    if (!std::isfinite(logs.rewards[i])) return bad(strf("log row %zu: its reward is not finite", i));
  }
  for (size_t i = 0; i < logs.features.size(); ++i) {
    if (!std::isfinite(logs.features[i])) {
      return bad(strf("log row %zu: feature '%s' is not finite", i / static_cast<size_t>(logs.n_features),
                      spec.features[i % static_cast<size_t>(logs.n_features)].c_str()));
    }
  }
  return {};
}

void standardise(Impl& m, const LoggedChains& logs) {
  const auto d = static_cast<size_t>(logs.n_features);
  m.mean.assign(d, 0);
  m.inverse_sd.assign(d, 0);
  for (size_t f = 0; f < d; ++f) {
    double sum = 0, squares = 0;
    for (size_t i = 0; i < static_cast<size_t>(logs.n); ++i)
      sum += static_cast<double>(logs.features[i * d + f]);
    const double mean = sum / logs.n;
    for (size_t i = 0; i < static_cast<size_t>(logs.n); ++i)
      squares += std::pow(static_cast<double>(logs.features[i * d + f]) - mean, 2);
    const double sd = std::sqrt(squares / logs.n);
    m.mean[f] = static_cast<float>(mean);
    m.inverse_sd[f] = sd > 1e-9 ? static_cast<float>(1 / sd) : 0;  // a constant feature says nothing
  }
}

void initialise(Impl& m, uint64_t seed) {
  Rng rng(seed, 77);
  m.mix.resize(static_cast<size_t>(m.options.hidden * (1 + m.n_features)));
  for (float& a : m.mix) a = static_cast<float>(rng.normal() * std::sqrt(1.0 / (1 + m.n_features)));
  m.weights.assign(static_cast<size_t>(m.z_dim() * m.padded_heads), 0);
  for (int i = 0; i < m.z_dim(); ++i) {
    for (int p = 0; p < m.n_heads; ++p) {
      // Gains start small and alike (softplus(-1.5) = 0.2, five of them make one), personal parts near
      // nothing.
      const double start = i > 0               ? 0.0
                           : p == m.value_head ? (m.options.monotone ? 0.5413 : 1.0)  // softplus(0.5413) = 1
                           : p % (kBases + 1) == kBases ? (m.options.monotone ? -2.0 : 0.1)
                                                        : (m.options.monotone ? -1.5 : 0.2);
      m.weights[static_cast<size_t>(i * m.padded_heads + p)] =
          static_cast<float>(start + (i == 0 ? 0.02 : 0.002) * rng.normal());
    }
  }
  m.scale = 1;
  m.offset = 0;
}

// What all requests share, fitted to the mean reward of each chain before anything personal: started
// together, the noise of single requests is what the gains learn, and the chains' order is lost.
void fit_shared(Impl& m, const CascadeSpec& spec, const LoggedChains& logs, std::span<const double> weight) {
  const auto n = static_cast<size_t>(spec.n_chains());
  std::vector<double> sum(n, 0), seen(n, 0);
  double total = 0, all = 0;
  for (size_t i = 0; i < static_cast<size_t>(logs.n); ++i) {
    const auto j = static_cast<size_t>(logs.chains[i]);
    sum[j] += weight[i] * static_cast<double>(logs.rewards[i]);
    seen[j] += weight[i];
    total += weight[i] * static_cast<double>(logs.rewards[i]);
    all += weight[i];
  }
  const double mean = std::max(total / all, 1e-9);
  m.scale = static_cast<float>(mean);
  Trainer trainer(m);
  constexpr int kSteps = 4000;
  for (int step = 0; step < kSteps; ++step) {
    trainer.begin_shared();
    for (size_t j = 0; j < n; ++j) {
      if (seen[j] == 0) continue;
      const int chain = static_cast<int>(j);
      trainer.backward(chain, (trainer.forward(chain) - sum[j] / seen[j] / mean) * seen[j] / all);
    }
    trainer.end_request();
    trainer.step_shared(0.1 * (1 - 0.95 * step / kSteps));
  }
}

// 1 / propensity, relative to its mean, clipped: self-normalised inverse propensity weights.
std::vector<double> row_weights(const LoggedChains& logs, const TrainOptions& options) {
  const auto n = static_cast<size_t>(logs.n);
  std::vector<double> weight(n, 1.0);
  if (!options.off_policy) return weight;
  double sum = 0;
  for (size_t i = 0; i < n; ++i) sum += weight[i] = 1 / static_cast<double>(logs.propensity[i]);
  for (double& w : weight) w = std::min(w * static_cast<double>(n) / sum, options.clip);
  return weight;
}

}  // namespace

Result<RewardModel> RewardModel::retrain(const RewardModel& from, const CascadeSpec& spec,
                                         const LoggedChains& logs, const TrainOptions& options) {
  FRUGAL_TRY_STATUS(check_cascade(spec));
  FRUGAL_TRY_STATUS(check_logs(spec, logs));
  auto fresh = Impl::lay_out(spec, from.impl_->options);
  if (fresh->spec_hash != from.impl_->spec_hash)
    return {ErrorCode::kInvalidArgument, "the model to go on from is of another cascade"};
  if (options.epochs < 1 || options.batch < 1 || !(options.rate > 0) || !(options.clip >= 1) ||
      !(options.contrast >= 0) || !(options.holdout >= 0 && options.holdout < 0.9)) {
    return {ErrorCode::kInvalidArgument,
            "training: epochs and batch are at least 1, rate positive, clip at least 1, holdout in [0, 0.9)"};
  }
  auto impl = std::make_unique<Impl>(*from.impl_);
  const auto d = static_cast<size_t>(logs.n_features);
  Rng rng(options.seed);
  std::vector<Group> groups = group_rows(logs);
  const auto shuffle = [&](size_t count) {
    for (size_t i = count; i > 1; --i) std::swap(groups[i - 1], groups[rng.below(static_cast<uint32_t>(i))]);
  };
  shuffle(groups.size());
  const size_t n_fit =
      groups.size() - static_cast<size_t>(options.holdout * static_cast<double>(groups.size()));
  const std::vector<double> weight = row_weights(logs, options);
  const auto row = [&](size_t i) { return std::span(logs.features).subspan(i * d, d); };
  Trainer trainer(*impl);
  const double scale = static_cast<double>(impl->scale) > 0 ? static_cast<double>(impl->scale) : 1;
  const double offset = static_cast<double>(impl->offset);
  std::vector<double> errors;
  for (int epoch = 0; epoch < options.epochs; ++epoch) {
    shuffle(n_fit);
    const double rate = options.rate * (1 - 0.9 * epoch / options.epochs);  // down to a tenth
    for (size_t start = 0; start < n_fit; start += static_cast<size_t>(options.batch)) {
      const size_t end = std::min(n_fit, start + static_cast<size_t>(options.batch));
      size_t rows = 0;
      for (size_t at = start; at < end; ++at) rows += groups[at].end - groups[at].begin;
      for (size_t at = start; at < end; ++at) {
        const Group& group = groups[at];
        trainer.begin_request(row(group.begin));
        errors.clear();
        double mean = 0, weights = 0;
        for (size_t i = group.begin; i < group.end; ++i) {
          const double target = (static_cast<double>(logs.rewards[i]) - offset) / scale;  // in units of h_K
          errors.push_back(trainer.forward(logs.chains[i]) - target);
          mean += weight[i] * errors.back();
          weights += weight[i];
        }
        mean /= weights;
        // What all chains of a request have in common is mostly chance; what tells them apart decides.
        for (size_t i = group.begin; i < group.end; ++i) {
          const double error = mean + options.contrast * (errors[i - group.begin] - mean);
          trainer.backward(logs.chains[i], weight[i] * error / static_cast<double>(rows));
        }
        trainer.end_request();
      }
      trainer.step(rate, options.decay);
    }
  }
  // Calibration on requests that were held out: reward = scale h + offset by weighted least squares, the
  // scale kept positive so that the order of chains stays. Holding out too little to tell leaves things as
  // they are.
  if (groups.size() - n_fit >= 50) {
    double sw = 0, sh = 0, sy = 0, shh = 0, shy = 0;
    for (size_t at = n_fit; at < groups.size(); ++at) {
      trainer.begin_request(row(groups[at].begin));
      for (size_t i = groups[at].begin; i < groups[at].end; ++i) {
        const double h = trainer.forward(logs.chains[i]), y = static_cast<double>(logs.rewards[i]),
                     w = weight[i];
        sw += w, sh += w * h, sy += w * y, shh += w * h * h, shy += w * h * y;
      }
    }
    const double variance = shh - sh * sh / sw;
    const double slope = variance > 1e-12 ? (shy - sh * sy / sw) / variance : 0;
    if (slope > 0.2 * scale && slope < 5 * scale) {
      impl->scale = static_cast<float>(slope);
      impl->offset = static_cast<float>((sy - slope * sh) / sw);
    }
  }
  for (const float value : impl->weights) {
    if (!std::isfinite(value)) return {ErrorCode::kInvalidArgument, "training diverged: use a smaller rate"};
  }
  return RewardModel(std::move(impl));
}

Result<RewardModel> RewardModel::train(const CascadeSpec& spec, const LoggedChains& logs,
                                       const TrainOptions& options) {
  FRUGAL_TRY_STATUS(check_cascade(spec));
  FRUGAL_TRY_STATUS(check_logs(spec, logs));
  if (options.model.hidden < 0 || options.model.hidden > 32)
    return {ErrorCode::kInvalidArgument, "hidden lies in [0, 32]"};
  auto impl = Impl::lay_out(spec, options.model);
  standardise(*impl, logs);
  initialise(*impl, options.seed);
  fit_shared(*impl, spec, logs, row_weights(logs, options));
  return retrain(RewardModel(std::move(impl)), spec, logs, options);
}

Quality judge(const RewardModel& model, std::span<const float> features, std::span<const float> truth,
              int n) {
  const auto d = static_cast<size_t>(model.n_features()), m = static_cast<size_t>(model.n_chains());
  FRUGAL_CHECK(features.size() == static_cast<size_t>(n) * d && truth.size() == static_cast<size_t>(n) * m);
  std::vector<float> predicted(m);
  std::vector<double> all_predicted, all_truth, row_predicted(m), row_truth(m);
  Quality quality;
  double sum_predicted = 0, sum_truth = 0, squares = 0, truth_squares = 0;
  int ranked = 0;
  for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
    model.predict(features.subspan(i * d, d), predicted);
    for (size_t j = 0; j < m; ++j) {
      row_predicted[j] = static_cast<double>(predicted[j]);
      row_truth[j] = static_cast<double>(truth[i * m + j]);
      sum_predicted += row_predicted[j];
      sum_truth += row_truth[j];
      squares += (row_predicted[j] - row_truth[j]) * (row_predicted[j] - row_truth[j]);
      truth_squares += row_truth[j] * row_truth[j];
    }
    all_predicted.insert(all_predicted.end(), row_predicted.begin(), row_predicted.end());
    all_truth.insert(all_truth.end(), row_truth.begin(), row_truth.end());
    const auto [low, high] = std::minmax_element(row_truth.begin(), row_truth.end());
    if (*high > *low) {
      quality.within_spearman += spearman(row_predicted, row_truth);
      ++ranked;
    }
  }
  if (ranked > 0) quality.within_spearman /= ranked;
  if (all_truth.empty() || sum_truth == 0) return quality;
  quality.rmse = std::sqrt(squares / truth_squares);
  quality.spearman = spearman(all_predicted, all_truth);
  quality.bias = sum_predicted / sum_truth - 1;
  std::vector<size_t> order(all_truth.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return all_predicted[a] < all_predicted[b]; });
  constexpr size_t kDeciles = 10;
  double off = 0;
  for (size_t decile = 0; decile < kDeciles; ++decile) {
    double p = 0, t = 0;
    for (size_t i = decile * order.size() / kDeciles; i < (decile + 1) * order.size() / kDeciles; ++i) {
      p += all_predicted[order[i]];
      t += all_truth[order[i]];
    }
    off += std::fabs(p - t);
  }
  quality.calibration = off / sum_truth;
  return quality;
}

}  // namespace frugal::cascade
