#include "cascade/evaluate.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <numeric>

#include "base/check.h"
#include "base/clock.h"
#include "base/text.h"
#include "cascade/npy.h"

namespace frugal::cascade {
namespace {

struct Outcome {
  double cost = 0, reward = 0;        // a request
  std::vector<float> request_reward;  // [n]
  std::vector<int> request_chain;     // [n]
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
    outcome.request_chain.push_back(static_cast<int>(j));
    outcome.request_reward.push_back(truth[i * n_chains + j]);
    outcome.cost += table.costs(0)[j];
    outcome.reward += static_cast<double>(truth[i * n_chains + j]);
  }
  outcome.cost /= n;
  outcome.reward /= n;
  return outcome;
}

// Clicks that the dearest chain is charged: beyond either nothing changes.
constexpr double kLowestCharge = 1e-7, kHighestCharge = 1e4;

double dearest_cost(const budget::ChainTable& table) {
  return table.costs(0)[static_cast<size_t>(table.dearest_in(0))];
}

// The price on the given requests at which a request costs `cost` in the mean, which falls with the price.
double price_for_cost(const budget::ChainTable& table, std::span<const float> predicted,
                      std::span<const float> truth, int n, double cost) {
  if (decide_all(table, predicted, truth, n, 0).cost <= cost) return 0;
  double low = std::log(kLowestCharge / dearest_cost(table)),
         high = std::log(kHighestCharge / dearest_cost(table));
  for (int step = 0; step < 36; ++step) {
    const double middle = 0.5 * (low + high);
    (decide_all(table, predicted, truth, n, std::exp(middle)).cost > cost ? low : high) = middle;
  }
  return std::exp(high);
}

constexpr int kGrid = 160;  // prices that are tried for equal reward

double grid_price(const budget::ChainTable& table, int g) {
  if (g == 0) return 0;
  return kLowestCharge * std::pow(kHighestCharge / kLowestCharge, static_cast<double>(g) / kGrid) /
         dearest_cost(table);
}

// What a request earns in the mean at each price of the grid. [kGrid + 1]
std::vector<double> rewards_by_price(const budget::ChainTable& table, std::span<const float> predicted,
                                     std::span<const float> truth, int n) {
  std::vector<double> rewards;
  for (int g = 0; g <= kGrid; ++g)
    rewards.push_back(decide_all(table, predicted, truth, n, grid_price(table, g)).reward);
  return rewards;
}

// The largest price of the grid at which a request still earns `target`; below 0: no price does. What is
// earned at a price is noisy, so it is first made to fall with the price (isotonic regression by pooling
// adjacent violators): a lucky point does not set the price.
double price_for_reward(const budget::ChainTable& table, std::span<const double> rewards, double target) {
  struct Block {
    double sum;
    int n;
    double mean() const { return sum / n; }
  };
  std::vector<Block> blocks;
  for (const double reward : rewards) {
    blocks.push_back({reward, 1});
    while (blocks.size() > 1 && blocks.back().mean() > blocks[blocks.size() - 2].mean()) {
      const Block last = blocks.back();
      blocks.pop_back();
      blocks.back().sum += last.sum;
      blocks.back().n += last.n;
    }
  }
  double price = -1;
  int g = 0;
  for (const Block& block : blocks) {
    if (block.mean() < target) break;
    g += block.n;
    price = grid_price(table, g - 1);
  }
  return price;
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

// The `most` chains that together are worth most to the requests at a price: greedily, each the one that adds
// most to the sum of the best reward - price * cost. Ascending.
std::vector<int> choose_menu(const budget::ChainTable& table, std::span<const float> predicted, int n,
                             double price, int most) {
  const auto m = static_cast<size_t>(table.size());
  std::vector<double> best(static_cast<size_t>(n), -INFINITY);
  std::vector<int> menu;
  while (static_cast<int>(menu.size()) < std::min(most, table.size())) {
    std::vector<double> gain(m, 0);
    for (size_t i = 0; i < best.size(); ++i) {
      for (size_t j = 0; j < m; ++j) {
        const double net = static_cast<double>(predicted[i * m + j]) - price * table.costs(0)[j];
        gain[j] += menu.empty() ? net : std::max(net - best[i], 0.0);
      }
    }
    const auto added = static_cast<size_t>(std::max_element(gain.begin(), gain.end()) - gain.begin());
    if (!menu.empty() && gain[added] <= 0) break;
    menu.push_back(static_cast<int>(added));
    for (size_t i = 0; i < best.size(); ++i)
      best[i] =
          std::max(best[i], static_cast<double>(predicted[i * m + added]) - price * table.costs(0)[added]);
  }
  std::sort(menu.begin(), menu.end());
  return menu;
}

// Leaves only the chains of a menu.
void keep_menu(std::vector<float>& predicted, size_t m, std::span<const int> menu) {
  for (size_t i = 0; i < predicted.size(); ++i) {
    if (!std::binary_search(menu.begin(), menu.end(), static_cast<int>(i % m))) predicted[i] = NAN;
  }
}

// A user's fold, drawn from its number alone.
int fold_of(int user, uint64_t seed, int folds) {
  return static_cast<int>(Rng(static_cast<uint64_t>(user), 71 + seed).below(static_cast<uint32_t>(folds)));
}

// What the best static chain earns on requests that it was not chosen by: in each fold, the chain that is
// best on the others. On the requests that chose it, the best of many chains looks better than it is, and no
// policy that is judged on unseen requests could be asked to match that.
double static_reward_across(const Replayed& fit, size_t m, uint64_t seed, int folds) {
  std::vector<std::vector<double>> sums(static_cast<size_t>(folds), std::vector<double>(m, 0));
  std::vector<double> all(m, 0);
  for (size_t i = 0; i < static_cast<size_t>(fit.n); ++i) {
    auto& sum = sums[static_cast<size_t>(fold_of(fit.user[i], seed, folds))];
    for (size_t j = 0; j < m; ++j) {
      const auto reward = static_cast<double>(fit.rewards[i * m + j]);
      sum[j] += reward;
      all[j] += reward;
    }
  }
  double earned = 0;
  for (const auto& inside : sums) {
    size_t best = 0;
    for (size_t j = 1; j < m; ++j) {
      if (all[j] - inside[j] > all[best] - inside[best]) best = j;
    }
    earned += inside[best];
  }
  return earned / fit.n;
}

// Predictions for every request by models that never saw a request of the same user.
Result<std::vector<float>> predict_across(const CascadeSpec& spec, const Replayed& fit, int folds,
                                          int logs_per_request, const TrainOptions& train) {
  const auto d = static_cast<size_t>(spec.n_features()), m = static_cast<size_t>(spec.n_chains());
  std::vector<float> all(static_cast<size_t>(fit.n) * m);
  for (int fold = 0; fold < folds; ++fold) {
    std::vector<int> inside, outside;
    for (int i = 0; i < fit.n; ++i)
      (fold_of(fit.user[static_cast<size_t>(i)], train.seed, folds) == fold ? inside : outside).push_back(i);
    if (inside.empty()) continue;
    FRUGAL_TRY(const RewardModel model,
               RewardModel::train(
                   spec, sample_logs(fit, outside, spec.n_chains(), logs_per_request, train.seed), train));
    for (const int i : inside) {
      const auto at = static_cast<size_t>(i);
      model.predict(std::span(fit.features).subspan(at * d, d), std::span(all).subspan(at * m, m));
    }
  }
  return all;
}

// Draws users with repetition: the requests of one user are alike, so that requests drawn alone would make
// the intervals too narrow.
class UserBootstrap {
 public:
  explicit UserBootstrap(const Replayed& requests) {
    std::map<int, std::vector<size_t>> by_user;
    for (size_t i = 0; i < requests.user.size(); ++i) by_user[requests.user[i]].push_back(i);
    for (auto& [user, rows] : by_user) users_.push_back(std::move(rows));
  }
  template <typename Visit>
  void draw(Rng& rng, Visit visit) const {
    for (size_t u = 0; u < users_.size(); ++u) {
      for (const size_t i : users_[rng.below(static_cast<uint32_t>(users_.size()))]) visit(i);
    }
  }

 private:
  std::vector<std::vector<size_t>> users_;
};

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
  FRUGAL_TRY(auto features, read_floats(folder + "/features_" + split + ".npy", spec.n_features()));
  FRUGAL_TRY(auto rewards, read_floats(folder + "/rewards_" + split + ".npy", spec.n_chains()));
  replayed.n = features.rows;
  replayed.user.resize(static_cast<size_t>(replayed.n));
  std::iota(replayed.user.begin(), replayed.user.end(), 0);
  const std::string users = folder + "/user_" + split + ".npy";
  if (std::filesystem::exists(users)) {
    FRUGAL_TRY(auto user, read_integers(users, 1));
    replayed.user = std::move(user.values);
  }
  if (rewards.rows != replayed.n || replayed.user.size() != static_cast<size_t>(replayed.n))
    return {ErrorCode::kCorrupt,
            strf("%s: %d rows of features, %d of rewards and %zu of users in split '%s'", folder.c_str(),
                 replayed.n, rewards.rows, replayed.user.size(), split.c_str())};
  replayed.features = std::move(features.values);
  replayed.rewards = std::move(rewards.values);
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

namespace {

constexpr PolicyKind kKinds[] = {PolicyKind::kStatic, PolicyKind::kDcaf, PolicyKind::kCras,
                                 PolicyKind::kGreenFlow, PolicyKind::kOracle};
constexpr size_t kGreen = 3;  // its place in kKinds

// What one seed gives each policy: predictions on the fitting requests (never by a model that saw the user)
// and on the test requests. [n, n_chains]
struct Predictions {
  std::vector<float> fit, test;
};

class Evaluator {
 public:
  Evaluator(const CascadeSpec& spec, const Replayed& fit, const Replayed& test,
            const EvaluateOptions& options, std::vector<double> flops,
            std::shared_ptr<const budget::ChainTable> table)
      : spec_(spec),
        fit_(fit),
        test_(test),
        options_(options),
        flops_(std::move(flops)),
        table_(std::move(table)),
        m_(static_cast<size_t>(spec.n_chains())),
        fit_mean_(mean_rewards(fit, m_)),
        test_mean_(mean_rewards(test, m_)),
        bootstrap_(test),
        gains_(std::size(kKinds)),
        half_reward_(std::size(kKinds), 0) {}

  Result<Evaluation> run() {
    choose_static();
    for (int seed = 1; seed <= options_.seeds; ++seed) {
      if (options_.progress) options_.progress(strf("seed %d of %d", seed, options_.seeds));
      FRUGAL_TRY_STATUS(one_seed(static_cast<uint64_t>(seed)));
    }
    finish();
    return std::move(result_);
  }

 private:
  double cost(size_t j) const { return table_->costs(0)[j]; }
  double cpu_s(size_t j) const { return options_.cpu_s.empty() ? 0 : options_.cpu_s[j]; }

  int best_within(double budget) const {
    int best = table_->cheapest_in(0);
    for (size_t j = 0; j < m_; ++j) {
      if (cost(j) > budget) continue;
      const auto b = static_cast<size_t>(best);
      if (fit_mean_[j] > fit_mean_[b] || (fit_mean_[j] == fit_mean_[b] && cost(j) < cost(b)))
        best = static_cast<int>(j);
    }
    return best;
  }

  void choose_static() {
    result_.seeds = options_.seeds;
    result_.static_chain = best_within(INFINITY);
    static_ = static_cast<size_t>(result_.static_chain);
    result_.static_flops = flops_[static_];
    result_.static_cpu_s = cpu_s(static_);
    result_.static_reward = test_mean_[static_];
    // Budgets from the cheapest to the dearest chain, evenly in the logarithm.
    constexpr int kPoints = 16;
    const double least = cost(static_cast<size_t>(table_->cheapest_in(0))),
                 most = cost(static_cast<size_t>(table_->dearest_in(0)));
    for (int b = 0; b < kPoints; ++b) budgets_.push_back(least * std::pow(most / least, (b + 0.5) / kPoints));
    for (const PolicyKind kind : kKinds)
      result_.curves.push_back({kind, std::vector<PolicyPoint>(budgets_.size())});
    for (size_t b = 0; b < budgets_.size(); ++b) {
      const auto j = static_cast<size_t>(best_within(budgets_[b]));
      result_.curves[0].points[b] = {budgets_[b], cost(j), test_mean_[j]};
    }
    // A plainer way to save: the cheapest chain for everyone that earns within 1 % of the best.
    size_t near = static_;
    for (size_t j = 0; j < m_; ++j) {
      if (fit_mean_[j] >= 0.99 * fit_mean_[static_] && cost(j) < cost(near)) near = j;
    }
    result_.near_chain = static_cast<int>(near);
    result_.near_flops = flops_[near];
    result_.near_cpu_s = cpu_s(near);
    result_.near_reward = test_mean_[near];
    half_ = 0.5 * cost(static_);
    half_static_ = static_cast<size_t>(best_within(half_));
    half_reward_[0] = test_mean_[half_static_];
  }

  Status one_seed(uint64_t seed) {
    std::vector<int> everyone(static_cast<size_t>(fit_.n));
    std::iota(everyone.begin(), everyone.end(), 0);
    TrainOptions train = options_.train;
    train.seed = seed;
    const LoggedChains logs = sample_logs(fit_, everyone, spec_.n_chains(), options_.logs_per_request, seed);
    const auto predictions = [&](const RewardModel& model) -> Result<Predictions> {
      FRUGAL_TRY(auto across, predict_across(spec_, fit_, options_.folds, options_.logs_per_request, train));
      return Predictions{std::move(across), predict_all(model, test_)};
    };
    FRUGAL_TRY(auto trained, RewardModel::train(spec_, logs, train));
    result_.model = std::make_shared<const RewardModel>(std::move(trained));
    FRUGAL_TRY(const Predictions whole, predictions(*result_.model));
    train.model.recursive = false;  // CRAS takes the stages for independent
    FRUGAL_TRY(const RewardModel independent, RewardModel::train(spec_, logs, train));
    FRUGAL_TRY(const Predictions apart, predictions(independent));

    Rng rng(seed, 61);
    std::vector<Outcome> at_half(std::size(kKinds));
    for (size_t k = 1; k < std::size(kKinds); ++k) {
      const PolicyKind kind = kKinds[k];
      Predictions mine = kind == PolicyKind::kOracle ? Predictions{fit_.rewards, test_.rewards}
                         : kind == PolicyKind::kCras ? apart
                                                     : whole;
      if (kind == PolicyKind::kDcaf || kind == PolicyKind::kCras) {
        restrict_chains(mine.fit, spec_, kind, result_.static_chain);
        restrict_chains(mine.test, spec_, kind, result_.static_chain);
      }
      for (size_t b = 0; b < budgets_.size(); ++b) {
        const Outcome outcome = at_budget(mine, budgets_[b]);
        PolicyPoint& point = result_.curves[k].points[b];
        point.budget = budgets_[b];
        point.cost += outcome.cost / options_.seeds;
        point.reward += outcome.reward / options_.seeds;
      }
      at_half[k] = at_budget(mine, half_);
      half_reward_[k] += at_half[k].reward / options_.seeds;
      if (k == kGreen) {
        // The price at which the fitting requests earn what the best static chain earns on them, both judged
        // on users that they were not fitted to. Each seed's own: a model's rewards are in its own
        // calibration.
        const double target = static_reward_across(fit_, m_, seed, options_.folds);
        const auto price_on = [&](std::span<const float> predicted) {
          return price_for_reward(*table_, rewards_by_price(*table_, predicted, fit_.rewards, fit_.n),
                                  target);
        };
        double price = price_on(mine.fit);
        std::vector<int> menu;
        if (options_.menu > 0) {
          menu = choose_menu(*table_, mine.fit, fit_.n, std::max(price, 0.0), options_.menu);
          keep_menu(mine.fit, m_, menu);
          price = price_on(mine.fit);
        }
        result_.reached = (seed == 1 || result_.reached) && price >= 0;
        result_.equal_price = std::max(price, 0.0);
        Rng resampling(seed, 62);
        equal_reward_of(std::move(menu), resampling);
      }
    }
    for (size_t k = 0; k < std::size(kKinds); ++k) {
      if (k == kGreen) continue;
      for (int r = 0; r < options_.resamples; ++r) {
        double ours = 0, theirs = 0;
        bootstrap_.draw(rng, [&](size_t i) {
          ours += static_cast<double>(at_half[kGreen].request_reward[i]);
          theirs += static_cast<double>(k == 0 ? test_.rewards[i * m_ + half_static_]
                                               : at_half[k].request_reward[i]);
        });
        gains_[k].push_back(ours / std::max(theirs, 1e-9) - 1);
      }
    }
    return {};
  }

  Outcome at_budget(const Predictions& mine, double budget) const {
    const double price = price_for_cost(*table_, mine.fit, fit_.rewards, fit_.n, budget);
    return decide_all(*table_, mine.test, test_.rewards, test_.n, price);
  }

  void equal_reward_of(std::vector<int> menu, Rng& rng) {
    const double start = process_cpu_seconds();
    auto again = predict_all(*result_.model, test_);  // as a server would, to know what it takes
    const double predicting_s = process_cpu_seconds() - start;
    if (!menu.empty()) keep_menu(again, m_, menu);
    const double restart = process_cpu_seconds();
    const Outcome equal = decide_all(*table_, again, test_.rewards, test_.n, result_.equal_price);
    // Deciding takes some, too.
    const double own_cpu_s = (predicting_s + process_cpu_seconds() - restart) / test_.n,
                 own_flops = result_.model->flops();
    result_.equal_reward += equal.reward / options_.seeds;
    double all_flops = 0, all_cpu_s = 0;
    for (const int j : equal.request_chain) {
      all_flops += flops_[static_cast<size_t>(j)];
      all_cpu_s += cpu_s(static_cast<size_t>(j));
    }
    result_.equal_flops += (all_flops / test_.n + own_flops) / options_.seeds;
    result_.equal_cpu_s += (all_cpu_s / test_.n + own_cpu_s) / options_.seeds;
    const auto saving = [&](double flops, double cpu, double reward, double fixed) {
      return Evaluation::Saving{1 - (flops + own_flops) / result_.static_flops,
                                options_.cpu_s.empty() ? 0 : 1 - (cpu + own_cpu_s) / result_.static_cpu_s,
                                reward / std::max(fixed, 1e-9)};
    };
    Evaluation::Policy policy{
        result_.model,
        result_.equal_price,
        saving(all_flops / test_.n, all_cpu_s / test_.n, equal.reward, result_.static_reward),
        {},
        std::move(menu)};
    for (int r = 0; r < options_.resamples; ++r) {
      double flops = 0, cpu = 0, reward = 0, fixed = 0, n = 0;
      bootstrap_.draw(rng, [&](size_t i) {
        const auto j = static_cast<size_t>(equal.request_chain[i]);
        flops += flops_[j];
        cpu += cpu_s(j);
        reward += static_cast<double>(equal.request_reward[i]);
        fixed += static_cast<double>(test_.rewards[i * m_ + static_]);
        n += 1;
      });
      policy.draws.push_back(saving(flops / n, cpu / n, reward, fixed));
    }
    draws_.insert(draws_.end(), policy.draws.begin(), policy.draws.end());
    result_.policies.push_back(std::move(policy));
    result_.chain_share.assign(m_, 0);
    for (const int j : equal.request_chain) result_.chain_share[static_cast<size_t>(j)] += 1.0 / test_.n;
  }

  void finish() {
    result_.flops_saved = 1 - result_.equal_flops / result_.static_flops;
    const auto band = [&](double Evaluation::Saving::*of, double& low, double& high) {
      std::vector<double> values;
      for (const auto& draw : draws_) values.push_back(draw.*of);
      low = quantile(values, 0.025);
      high = quantile(values, 0.975);
    };
    band(&Evaluation::Saving::flops, result_.saved_low, result_.saved_high);
    band(&Evaluation::Saving::reward_ratio, result_.ratio_low, result_.ratio_high);
    if (!options_.cpu_s.empty()) {
      result_.cpu_saved = 1 - result_.equal_cpu_s / result_.static_cpu_s;
      band(&Evaluation::Saving::cpu, result_.cpu_saved_low, result_.cpu_saved_high);
    }
    result_.reward_ratio = result_.equal_reward / result_.static_reward;
    for (size_t k = 0; k < std::size(kKinds); ++k) {
      if (gains_[k].empty()) continue;
      result_.at_equal_compute.push_back({kKinds[k], half_reward_[k],
                                          half_reward_[kGreen] / half_reward_[k] - 1,
                                          quantile(gains_[k], 0.025), quantile(gains_[k], 0.975)});
    }
  }

  const CascadeSpec& spec_;
  const Replayed& fit_;
  const Replayed& test_;
  const EvaluateOptions& options_;
  std::vector<double> flops_;                        // [n_chains]
  std::shared_ptr<const budget::ChainTable> table_;  // of the one resource that is priced
  size_t m_;
  std::vector<double> fit_mean_, test_mean_;
  UserBootstrap bootstrap_;
  Evaluation result_;
  size_t static_ = 0, half_static_ = 0;
  double half_ = 0;
  std::vector<double> budgets_;
  std::vector<Evaluation::Saving> draws_;  // of all seeds
  std::vector<std::vector<double>> gains_;
  std::vector<double> half_reward_;
};

}  // namespace

Result<Evaluation> evaluate(const CascadeSpec& spec, const Replayed& fit, const Replayed& test,
                            const EvaluateOptions& options) {
  if (options.seeds < 1 || options.logs_per_request < 1 || options.resamples < 10 || options.folds < 2) {
    return {ErrorCode::kInvalidArgument,
            "seeds and logs_per_request are at least 1, folds at least 2, resamples at least 10"};
  }
  for (const Replayed* set : {&fit, &test}) {
    const auto n = static_cast<size_t>(std::max(set->n, 0));
    if (n == 0 || set->user.size() != n || set->rewards.size() != n * static_cast<size_t>(spec.n_chains()) ||
        set->features.size() != n * static_cast<size_t>(spec.n_features()))
      return {ErrorCode::kInvalidArgument,
              strf("a replayed set of %d requests has %zu users, %zu rewards and %zu features", set->n,
                   set->user.size(), set->rewards.size(), set->features.size())};
  }
  const bool known = !options.cpu_s.empty();
  if ((known && options.cpu_s.size() != spec.chains.size()) || (options.price_cpu && !known)) {
    return {ErrorCode::kInvalidArgument,
            strf("processor times of %zu chains for a cascade of %d", options.cpu_s.size(), spec.n_chains())};
  }
  FRUGAL_TRY_STATUS(check_cascade(spec));
  std::vector<double> flops;
  std::vector<budget::Chain> chains;
  for (int j = 0; j < spec.n_chains(); ++j) {
    flops.push_back(chain_flops(spec, j));
    const double cost = options.price_cpu ? options.cpu_s[static_cast<size_t>(j)] : flops.back();
    chains.push_back({chain_name(spec, j), spec.chains[static_cast<size_t>(j)], {cost}});
  }
  FRUGAL_TRY(auto table,
             budget::ChainTable::create({options.price_cpu ? "cpu_s" : "flops"}, std::move(chains)));
  return Evaluator(spec, fit, test, options, std::move(flops), std::move(table)).run();
}

}  // namespace frugal::cascade
