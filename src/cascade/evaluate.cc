#include "cascade/evaluate.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "base/check.h"
#include "base/file.h"
#include "base/text.h"

namespace frugal::cascade {
namespace {

// The .npy format (NumPy enhancement proposal 1), versions 1 and 2, little-endian float32 in C order, two
// dimensions.
Result<std::vector<float>> read_npy(const std::string& path, size_t columns, int& rows) {
  FRUGAL_TRY(const std::string bytes, read_file(path, size_t{2} << 30));
  const auto corrupt = [&](const std::string& what) {
    return Error{ErrorCode::kCorrupt, path + ": " + what};
  };
  if (bytes.size() < 12 || std::memcmp(bytes.data(), "\x93NUMPY", 6) != 0) return corrupt("not an .npy file");
  const auto byte = [&](size_t i) { return static_cast<size_t>(static_cast<unsigned char>(bytes[i])); };
  const bool wide = byte(6) >= 2;
  const size_t length =
      wide ? byte(8) | byte(9) << 8 | byte(10) << 16 | byte(11) << 24 : byte(8) | byte(9) << 8;
  const size_t begin = (wide ? 12 : 10) + length;
  if (begin > bytes.size()) return corrupt("its header is cut off");
  const std::string header = bytes.substr(wide ? 12 : 10, length);
  if (header.find("'<f4'") == std::string::npos || header.find("False") == std::string::npos) {
    return corrupt("holds something other than float32 in C order");
  }
  const size_t open = header.find('(');
  if (open == std::string::npos) return corrupt("its header has no shape");
  char* end = nullptr;
  const unsigned long long n = std::strtoull(header.c_str() + open + 1, &end, 10);
  const unsigned long long m = *end == ',' ? std::strtoull(end + 1, &end, 10) : 0;
  if (m != columns) return corrupt(strf("has %llu columns, the cascade needs %zu", m, columns));
  if (n == 0 || n > (size_t{1} << 28) || bytes.size() - begin != n * m * sizeof(float))
    return corrupt("its size is not what its shape says: truncated?");
  std::vector<float> values(static_cast<size_t>(n * m));
  std::memcpy(values.data(), bytes.data() + begin, values.size() * sizeof(float));
  for (size_t i = 0; i < values.size(); ++i) {
    if (!std::isfinite(values[i]))
      return corrupt(strf("row %zu holds a value that is not finite", i / columns));
  }
  rows = static_cast<int>(n);
  return values;
}

struct Outcome {
  double flops = 0, reward = 0;
  std::vector<float> request_flops, request_reward;  // [n]
};

// Decides every request by `predicted` [n, n_chains] at a price, counts what it really earns.
Outcome decide_all(const budget::ChainTable& table, std::span<const float> predicted,
                   std::span<const float> truth, int n, double price) {
  const auto n_chains = static_cast<size_t>(table.size());
  std::vector<float> priced(n_chains);
  for (size_t j = 0; j < n_chains; ++j) priced[j] = static_cast<float>(price * table.costs(0)[j]);
  Outcome outcome;
  for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
    const int best = budget::argmax_net_reward(predicted.subspan(i * n_chains, n_chains), priced);
    const auto j = static_cast<size_t>(best < 0 ? table.cheapest() : best);
    outcome.request_flops.push_back(static_cast<float>(table.costs(0)[j]));
    outcome.request_reward.push_back(truth[i * n_chains + j]);
    outcome.flops += table.costs(0)[j];
    outcome.reward += static_cast<double>(truth[i * n_chains + j]);
  }
  outcome.flops /= n;
  outcome.reward /= n;
  return outcome;
}

// The price on the given requests at which `measure` of the outcome falls to `target`.
template <typename Measure>
double price_where(const budget::ChainTable& table, std::span<const float> predicted,
                   std::span<const float> truth, int n, double target, Measure measure) {
  double low = std::log(1e-14), high = std::log(1e-3);
  if (measure(decide_all(table, predicted, truth, n, 0)) <= target) return 0;
  for (int step = 0; step < 36; ++step) {
    const double middle = 0.5 * (low + high);
    (measure(decide_all(table, predicted, truth, n, std::exp(middle))) > target ? low : high) = middle;
  }
  return std::exp(low);
}

std::vector<float> predict_all(const RewardModel& model, const Replayed& requests) {
  const auto d = static_cast<size_t>(model.n_features()), m = static_cast<size_t>(model.n_chains());
  std::vector<float> all(static_cast<size_t>(requests.n) * m);
  for (size_t i = 0; i < static_cast<size_t>(requests.n); ++i) {
    model.predict(std::span(requests.features).subspan(i * d, d), std::span(all).subspan(i * m, m));
  }
  return all;
}

// Leaves only the chains that a policy may choose; the allocator skips what is not finite.
void restrict_chains(std::vector<float>& predicted, const CascadeSpec& spec, PolicyKind kind, int like) {
  const auto n_chains = static_cast<size_t>(spec.n_chains());
  const auto& fixed = spec.chains[static_cast<size_t>(like)];
  std::vector<bool> out(n_chains, false);
  for (size_t j = 0; j < n_chains; ++j) {
    const auto& chain = spec.chains[j];
    for (size_t a = 0; a < chain.size(); ++a) {
      const bool is_count = a % 2 == 1,
                 queue = a + 3 == chain.size();  // the count before the last stage: what ranking gets
      const bool free = kind == PolicyKind::kDcaf ? queue : is_count;
      if (!free && chain[a] != fixed[a]) out[j] = true;
    }
  }
  for (size_t i = 0; i < predicted.size(); ++i) {
    if (out[i % n_chains]) predicted[i] = NAN;
  }
}

Replayed take(const Replayed& from, std::span<const int> rows, size_t d, size_t m) {
  Replayed some;
  some.n = static_cast<int>(rows.size());
  for (const int row : rows) {
    const auto i = static_cast<std::ptrdiff_t>(row);
    const auto fd = static_cast<std::ptrdiff_t>(d), fm = static_cast<std::ptrdiff_t>(m);
    some.features.insert(some.features.end(), from.features.begin() + i * fd,
                         from.features.begin() + (i + 1) * fd);
    some.rewards.insert(some.rewards.end(), from.rewards.begin() + i * fm,
                        from.rewards.begin() + (i + 1) * fm);
  }
  return some;
}

std::vector<double> mean_rewards(const Replayed& requests, size_t m) {
  std::vector<double> mean(m, 0);
  for (size_t i = 0; i < requests.rewards.size(); ++i)
    mean[i % m] += static_cast<double>(requests.rewards[i]);
  for (double& x : mean) x /= requests.n;
  return mean;
}

double quantile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(std::lround(q * static_cast<double>(values.size() - 1)))];
}

}  // namespace

Result<Replayed> load_replayed(const std::string& folder, const std::string& split, const CascadeSpec& spec) {
  Replayed replayed;
  int rows = 0;
  FRUGAL_TRY(replayed.features,
             read_npy(folder + "/features_" + split + ".npy", spec.features.size(), replayed.n));
  FRUGAL_TRY(replayed.rewards, read_npy(folder + "/rewards_" + split + ".npy", spec.chains.size(), rows));
  if (rows != replayed.n)
    return {ErrorCode::kCorrupt, strf("%s: %d rows of features and %d of rewards in split '%s'",
                                      folder.c_str(), replayed.n, rows, split.c_str())};
  return replayed;
}

LoggedChains sample_logs(const Replayed& replayed, std::span<const int> rows, int n_chains, int per_request,
                         uint64_t seed) {
  LoggedChains logs;
  const size_t d = replayed.features.size() / static_cast<size_t>(replayed.n);
  logs.n_features = static_cast<int>(d);
  Rng rng(seed, 51);
  for (const int row : rows) {
    for (int l = 0; l < per_request; ++l) {
      const auto i = static_cast<size_t>(row);
      const auto j = rng.below(static_cast<uint32_t>(n_chains));
      const auto begin = replayed.features.begin() + static_cast<std::ptrdiff_t>(i * d);
      logs.features.insert(logs.features.end(), begin, begin + static_cast<std::ptrdiff_t>(d));
      logs.chains.push_back(static_cast<int>(j));
      logs.propensity.push_back(1.0f / static_cast<float>(n_chains));
      logs.rewards.push_back(replayed.rewards[i * static_cast<size_t>(n_chains) + j]);
      ++logs.n;
    }
  }
  return logs;
}

std::string_view policy_name(PolicyKind kind) {
  switch (kind) {
    case PolicyKind::kStatic:
      return "static";
    case PolicyKind::kDcaf:
      return "dcaf";
    case PolicyKind::kCras:
      return "cras";
    case PolicyKind::kGreenFlow:
      return "greenflow";
    case PolicyKind::kOracle:
      return "oracle";
  }
  return "";
}

Result<Evaluation> evaluate(const CascadeSpec& spec, const Replayed& fit, const Replayed& test,
                            const EvaluateOptions& options) {
  if (options.seeds < 1 || options.logs_per_request < 1 || options.resamples < 10) {
    return {ErrorCode::kInvalidArgument, "seeds and logs_per_request are at least 1, resamples at least 10"};
  }
  FRUGAL_TRY(const auto table, chain_table(spec, {}));
  const auto d = static_cast<size_t>(spec.n_features()), m = static_cast<size_t>(spec.n_chains());
  Evaluation result;
  result.seeds = options.seeds;
  const std::vector<double> fit_mean = mean_rewards(fit, m), test_mean = mean_rewards(test, m);
  const auto cost = table->costs(0);
  const auto best_within = [&](double budget) {
    int best = table->cheapest_in(0);
    for (size_t j = 0; j < m; ++j) {
      if (cost[j] > budget) continue;
      const auto b = static_cast<size_t>(best);
      if (fit_mean[j] > fit_mean[b] || (fit_mean[j] == fit_mean[b] && cost[j] < cost[b]))
        best = static_cast<int>(j);
    }
    return best;
  };
  result.static_chain = best_within(INFINITY);
  const auto s = static_cast<size_t>(result.static_chain);
  result.static_flops = cost[s];
  result.static_reward = test_mean[s];
  // Budgets from the cheapest to the dearest chain, evenly in the logarithm.
  constexpr int kPoints = 16;
  std::vector<double> budgets;
  const double least = cost[static_cast<size_t>(table->cheapest_in(0))],
               most = cost[static_cast<size_t>(table->dearest_in(0))];
  for (int b = 0; b < kPoints; ++b) budgets.push_back(least * std::pow(most / least, (b + 0.5) / kPoints));
  const std::vector<PolicyKind> kinds{PolicyKind::kStatic, PolicyKind::kDcaf, PolicyKind::kCras,
                                      PolicyKind::kGreenFlow, PolicyKind::kOracle};
  for (const PolicyKind kind : kinds)
    result.curves.push_back({kind, std::vector<PolicyPoint>(budgets.size())});
  for (size_t b = 0; b < budgets.size(); ++b) {
    const auto j = static_cast<size_t>(best_within(budgets[b]));
    result.curves[0].points[b] = {budgets[b], cost[j], test_mean[j]};
  }

  const auto flops_of = [](const Outcome& o) { return o.flops; };
  const auto reward_of = [](const Outcome& o) { return o.reward; };
  const double half = 0.5 * result.static_flops;
  const auto half_static = static_cast<size_t>(best_within(half));
  std::vector<double> saved, ratio;
  std::vector<std::vector<double>> gains(kinds.size());
  std::vector<double> half_reward(kinds.size(), 0);
  for (int seed = 1; seed <= options.seeds; ++seed) {
    Rng rng(static_cast<uint64_t>(seed), 61);
    std::vector<int> order(static_cast<size_t>(fit.n));
    std::iota(order.begin(), order.end(), 0);
    for (size_t i = order.size(); i > 1; --i)
      std::swap(order[i - 1], order[rng.below(static_cast<uint32_t>(i))]);
    const size_t n_train = order.size() * 7 / 10;
    const Replayed pricing = take(fit, std::span(order).subspan(n_train), d, m);
    const LoggedChains logs = sample_logs(fit, std::span(order).first(n_train), spec.n_chains(),
                                          options.logs_per_request, static_cast<uint64_t>(seed));
    TrainOptions train = options.train;
    train.seed = static_cast<uint64_t>(seed);
    FRUGAL_TRY(const RewardModel model, RewardModel::train(spec, logs, train));
    train.model.recursive = false;  // CRAS takes the stages for independent
    FRUGAL_TRY(const RewardModel independent, RewardModel::train(spec, logs, train));

    std::vector<Outcome> at_half(kinds.size());
    for (size_t k = 1; k < kinds.size(); ++k) {
      const PolicyKind kind = kinds[k];
      std::vector<float> on_pricing =
          kind == PolicyKind::kOracle ? pricing.rewards
                                      : predict_all(kind == PolicyKind::kCras ? independent : model, pricing);
      std::vector<float> on_test = kind == PolicyKind::kOracle
                                       ? test.rewards
                                       : predict_all(kind == PolicyKind::kCras ? independent : model, test);
      if (kind == PolicyKind::kDcaf || kind == PolicyKind::kCras) {
        restrict_chains(on_pricing, spec, kind, result.static_chain);
        restrict_chains(on_test, spec, kind, result.static_chain);
      }
      for (size_t b = 0; b < budgets.size(); ++b) {
        const double price =
            price_where(*table, on_pricing, pricing.rewards, pricing.n, budgets[b], flops_of);
        const Outcome outcome = decide_all(*table, on_test, test.rewards, test.n, price);
        PolicyPoint& point = result.curves[k].points[b];
        point.budget = budgets[b];
        point.flops += outcome.flops / options.seeds;
        point.reward += outcome.reward / options.seeds;
      }
      const double half_price = price_where(*table, on_pricing, pricing.rewards, pricing.n, half, flops_of);
      at_half[k] = decide_all(*table, on_test, test.rewards, test.n, half_price);
      half_reward[k] += at_half[k].reward / options.seeds;
      if (kind != PolicyKind::kGreenFlow) continue;
      // Equal reward: the price at which the pricing requests would have earned what the best static chain
      // earns on them.
      const double target = mean_rewards(pricing, m)[s];
      const double price = price_where(*table, on_pricing, pricing.rewards, pricing.n, target, reward_of);
      const Outcome equal = decide_all(*table, on_test, test.rewards, test.n, price);
      result.equal_flops += equal.flops / options.seeds;
      result.equal_reward += equal.reward / options.seeds;
      for (int r = 0; r < options.resamples; ++r) {
        double flops = 0, reward = 0, fixed = 0;
        for (int i = 0; i < test.n; ++i) {
          const size_t at = rng.below(static_cast<uint32_t>(test.n));
          flops += static_cast<double>(equal.request_flops[at]);
          reward += static_cast<double>(equal.request_reward[at]);
          fixed += static_cast<double>(test.rewards[at * m + s]);
        }
        saved.push_back(1 - flops / test.n / result.static_flops);
        ratio.push_back(reward / std::max(fixed, 1e-9));
      }
      result.chain_share.assign(m, 0);
      for (const float flops : equal.request_flops) {
        // Several chains never cost the very same float here unless they are the same chain.
        for (size_t j = 0; j < m; ++j) {
          if (static_cast<float>(cost[j]) == flops) {
            result.chain_share[j] += 1.0 / test.n;
            break;
          }
        }
      }
    }
    const Outcome& green = at_half[3];
    for (size_t k = 0; k < kinds.size(); ++k) {
      if (kinds[k] == PolicyKind::kGreenFlow) continue;
      for (int r = 0; r < options.resamples; ++r) {
        double ours = 0, theirs = 0;
        for (int i = 0; i < test.n; ++i) {
          const size_t at = rng.below(static_cast<uint32_t>(test.n));
          ours += static_cast<double>(green.request_reward[at]);
          theirs += static_cast<double>(k == 0 ? test.rewards[at * m + half_static]
                                               : at_half[k].request_reward[at]);
        }
        gains[k].push_back(ours / std::max(theirs, 1e-9) - 1);
      }
    }
  }
  half_reward[0] = test_mean[half_static];
  result.flops_saved = 1 - result.equal_flops / result.static_flops;
  result.saved_low = quantile(saved, 0.025);
  result.saved_high = quantile(saved, 0.975);
  result.reward_ratio = result.equal_reward / result.static_reward;
  result.ratio_low = quantile(ratio, 0.025);
  result.ratio_high = quantile(ratio, 0.975);
  for (size_t k = 0; k < kinds.size(); ++k) {
    if (gains[k].empty()) continue;
    result.at_equal_compute.push_back({kinds[k], half_reward[k], half_reward[3] / half_reward[k] - 1,
                                       quantile(gains[k], 0.025), quantile(gains[k], 0.975)});
  }
  return result;
}

}  // namespace frugal::cascade
