#include "cascade/evaluate.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <map>
#include <mutex>
#include <numeric>
#include <thread>

#include "base/clock.h"
#include "base/rng.h"
#include "base/text.h"
#include "cascade/pricing.h"

namespace frugal::cascade {
namespace {

// What the best static chain earns on requests that it was not chosen by: in each fold, the chain that is
// best on the others. On the requests that chose it, the best of
// many chains looks better than it is, and no policy that is judged on unseen requests could be asked to
// match that.
double static_reward_split(const Replayed& fit, const std::vector<size_t>& allowed, size_t m, uint64_t seed,
                           int folds) {
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
    size_t best = allowed[0];
    for (const size_t j : allowed) {
      if (all[j] - inside[j] > all[best] - inside[best]) best = j;
    }
    earned += inside[best];
  }
  return earned / fit.n;
}
// The mean of several ways of cutting folds.
double static_reward_across(const Replayed& fit, const std::vector<size_t>& allowed, size_t m, uint64_t seed,
                            int folds) {
  constexpr uint64_t kSplits = 16;
  double sum = 0;
  for (uint64_t s = 0; s < kSplits; ++s)
    sum += static_reward_split(fit, allowed, m, kSplits * seed + s, folds) / kSplits;
  return sum;
}

// Predictions for every request by models that never saw a request of the same user, one split into folds
// after the other: [splits * n, n_chains].
Result<std::vector<float>> predict_across(const CascadeSpec& spec, const Replayed& fit,
                                          const EvaluateOptions& options, const TrainOptions& train) {
  const auto d = static_cast<size_t>(spec.n_features()), m = static_cast<size_t>(spec.n_chains()),
             n = static_cast<size_t>(fit.n);
  std::vector<float> all(static_cast<size_t>(options.splits) * n * m);
  for (int split = 0; split < options.splits; ++split) {
    const auto cut = static_cast<uint64_t>(options.splits) * train.seed + static_cast<uint64_t>(split);
    const auto mine = std::span(all).subspan(static_cast<size_t>(split) * n * m, n * m);
    for (int fold = 0; fold < options.folds; ++fold) {
      std::vector<int> inside, outside;
      for (int i = 0; i < fit.n; ++i) {
        const bool in = fold_of(fit.user[static_cast<size_t>(i)], cut, options.folds) == fold;
        (in ? inside : outside).push_back(i);
      }
      if (inside.empty()) continue;
      const LoggedChains logs =
          sample_logs(fit, outside, spec.n_chains(), options.logs_per_request, train.seed);
      FRUGAL_TRY(const RewardModel model, RewardModel::train(spec, logs, train));
      for (const int i : inside) {
        const auto at = static_cast<size_t>(i);
        model.predict(std::span(fit.features).subspan(at * d, d), mine.subspan(at * m, m));
      }
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

double quantile(std::vector<double> values, double q) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(std::lround(q * static_cast<double>(values.size() - 1)))];
}

}  // namespace

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

class Evaluator {
 public:
  Evaluator(const CascadeSpec& spec, const Replayed& fit, const Replayed& test,
            std::span<const SeedModel> models, const EvaluateOptions& options, std::vector<double> flops,
            std::shared_ptr<const budget::ChainTable> table)
      : spec_(spec),
        fit_(fit),
        test_(test),
        models_(models),
        options_(options),
        flops_(std::move(flops)),
        table_(std::move(table)),
        m_(static_cast<size_t>(spec.n_chains())),
        fit_mean_(mean_rewards(fit)),
        test_mean_(mean_rewards(test)),
        bootstrap_(test),
        gains_(std::size(kKinds)),
        half_reward_(std::size(kKinds), 0) {
    for (int s = 0; s < options.splits; ++s)
      fit_rewards_.insert(fit_rewards_.end(), fit.rewards.begin(), fit.rewards.end());
  }

  Evaluation run() {
    choose_static();
    for (const SeedModel& model : models_) one_seed(model);
    finish();
    return std::move(result_);
  }

 private:
  int n_seeds() const { return static_cast<int>(models_.size()); }
  double cost(size_t j) const { return table_->costs(0)[j]; }
  double cpu_s(size_t j) const { return options_.cpu_s.empty() ? 0 : options_.cpu_s[j]; }

  std::vector<size_t> static_allowed() const {
    const double most = options_.static_share * cost(static_cast<size_t>(table_->dearest_in(0)));
    std::vector<size_t> allowed;
    for (size_t j = 0; j < m_; ++j) {
      if (cost(j) <= most) allowed.push_back(j);
    }
    if (allowed.empty()) allowed.push_back(static_cast<size_t>(table_->cheapest_in(0)));
    return allowed;
  }

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
    result_.seeds = n_seeds();
    const double dearest = cost(static_cast<size_t>(table_->dearest_in(0)));
    result_.static_chain = best_within(options_.static_share * dearest);
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

  struct Predictions {
    std::vector<float> fit, test;  // [splits * n, n_chains], [n, n_chains]
  };
  int n_fit() const { return options_.splits * fit_.n; }

  void one_seed(const SeedModel& seed_model) {
    const uint64_t seed = seed_model.seed;
    result_.model = seed_model.model;
    Rng rng(seed, 61);
    std::vector<Outcome> at_half(std::size(kKinds));
    for (size_t k = 1; k < std::size(kKinds); ++k) {
      const PolicyKind kind = kKinds[k];
      Predictions mine = kind == PolicyKind::kOracle ? Predictions{fit_rewards_, test_.rewards}
                         : kind == PolicyKind::kCras
                             ? Predictions{seed_model.fit_apart, seed_model.test_apart}
                             : Predictions{seed_model.fit, seed_model.test};
      if (kind == PolicyKind::kDcaf || kind == PolicyKind::kCras) {
        restrict_chains(mine.fit, spec_, kind, result_.static_chain);
        restrict_chains(mine.test, spec_, kind, result_.static_chain);
      }
      for (size_t b = 0; b < budgets_.size(); ++b) {
        const Outcome outcome = at_budget(mine, budgets_[b]);
        PolicyPoint& point = result_.curves[k].points[b];
        point.budget = budgets_[b];
        point.cost += outcome.cost / n_seeds();
        point.reward += outcome.reward / n_seeds();
      }
      at_half[k] = at_budget(mine, half_);
      half_reward_[k] += at_half[k].reward / n_seeds();
      if (k == kGreen) {
        // The price at which the fitting requests earn what the best static chain earns on them, both judged
        // on users that they were not fitted to. Each seed's own: a model's rewards are in its own
        // calibration.
        const double target =
            (1 + options_.margin) * static_reward_across(fit_, static_allowed(), m_, seed, options_.folds);
        EqualReward equal = price_for_reward(*table_, mine.fit, fit_rewards_, n_fit(), target);
        std::vector<int> menu;
        if (options_.menu > 0) {
          menu = choose_menu(*table_, mine.fit, n_fit(), equal.price, options_.menu);
          keep_menu(mine.fit, m_, menu);
          equal = price_for_reward(*table_, mine.fit, fit_rewards_, n_fit(), target);
        }
        result_.reached = (&seed_model == models_.data() || result_.reached) && equal.reached;
        result_.equal_price = equal.price;
        Rng resampling(seed, 62);
        equal_reward_of(seed_model, std::move(menu), resampling);
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
  }

  Outcome at_budget(const Predictions& mine, double budget) const {
    // One split tells what requests cost at a price; what they earn is what takes several.
    const auto once = std::span(mine.fit).first(fit_.rewards.size());
    const double price = price_for_cost(*table_, once, fit_.rewards, fit_.n, budget);
    return decide_all(*table_, mine.test, test_.rewards, test_.n, price);
  }

  void equal_reward_of(const SeedModel& seed_model, std::vector<int> menu, Rng& rng) {
    const double start = process_cpu_seconds();
    auto again = predict_all(*seed_model.model, test_);  // as a server would, to know what it takes
    const double predicting_s = process_cpu_seconds() - start;
    if (!menu.empty()) keep_menu(again, m_, menu);
    const double restart = process_cpu_seconds();
    const Outcome equal = decide_all(*table_, again, test_.rewards, test_.n, result_.equal_price);
    // Deciding takes some, too.
    const double own_cpu_s = (predicting_s + process_cpu_seconds() - restart) / test_.n,
                 own_flops = seed_model.model->flops();
    result_.equal_reward += equal.reward / n_seeds();
    double all_flops = 0, all_cpu_s = 0;
    for (const int j : equal.request_chain) {
      all_flops += flops_[static_cast<size_t>(j)];
      all_cpu_s += cpu_s(static_cast<size_t>(j));
    }
    result_.equal_flops += (all_flops / test_.n + own_flops) / n_seeds();
    result_.equal_cpu_s += (all_cpu_s / test_.n + own_cpu_s) / n_seeds();
    const auto saving = [&](double flops, double cpu, double reward, double fixed) {
      return Evaluation::Saving{1 - (flops + own_flops) / result_.static_flops,
                                options_.cpu_s.empty() ? 0 : 1 - (cpu + own_cpu_s) / result_.static_cpu_s,
                                reward / std::max(fixed, 1e-9)};
    };
    Evaluation::Policy policy{
        seed_model.model,
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
                                          quantile(gains_[k], 0.025), quantile(gains_[k], 0.975), gains_[k]});
    }
  }

  const CascadeSpec& spec_;
  const Replayed& fit_;
  const Replayed& test_;
  std::span<const SeedModel> models_;
  const EvaluateOptions& options_;
  std::vector<double> flops_;                        // [n_chains]
  std::shared_ptr<const budget::ChainTable> table_;  // of the one resource that is priced
  size_t m_;
  std::vector<float> fit_rewards_;  // of `fit`, once for each split
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

Status check_sets(const CascadeSpec& spec, const Replayed& fit, const Replayed& test) {
  for (const Replayed* set : {&fit, &test}) {
    const auto n = static_cast<size_t>(std::max(set->n, 0));
    if (n == 0 || set->user.size() != n || set->rewards.size() != n * static_cast<size_t>(spec.n_chains()) ||
        set->features.size() != n * static_cast<size_t>(spec.n_features()))
      return {ErrorCode::kInvalidArgument,
              strf("a replayed set of %d requests has %zu users, %zu rewards and %zu features", set->n,
                   set->user.size(), set->rewards.size(), set->features.size())};
  }
  return check_cascade(spec);
}

}  // namespace

Result<std::vector<SeedModel>> train_seeds(const CascadeSpec& spec, const Replayed& fit, const Replayed& test,
                                           const EvaluateOptions& options) {
  FRUGAL_TRY_STATUS(check_sets(spec, fit, test));
  if (options.seeds < 1 || options.logs_per_request < 1 || options.folds < 2 || options.splits < 1) {
    return {ErrorCode::kInvalidArgument,
            "seeds, logs_per_request and splits are at least 1, folds at least 2"};
  }
  std::vector<int> everyone(static_cast<size_t>(fit.n));
  std::iota(everyone.begin(), everyone.end(), 0);
  std::vector<SeedModel> models(static_cast<size_t>(options.seeds));
  std::vector<Status> statuses(models.size());
  std::atomic<size_t> next{0};
  const auto one = [&](size_t s) -> Status {
    SeedModel& seed_model = models[s];
    TrainOptions train = options.train;
    train.seed = seed_model.seed = s + 1;
    const LoggedChains logs =
        sample_logs(fit, everyone, spec.n_chains(), options.logs_per_request, train.seed);
    FRUGAL_TRY(auto model, RewardModel::train(spec, logs, train));
    seed_model.model = std::make_shared<const RewardModel>(std::move(model));
    FRUGAL_TRY(seed_model.fit, predict_across(spec, fit, options, train));
    seed_model.test = predict_all(*seed_model.model, test);
    train.model.recursive = false;  // CRAS takes the stages for independent
    FRUGAL_TRY(const auto apart, RewardModel::train(spec, logs, train));
    FRUGAL_TRY(seed_model.fit_apart, predict_across(spec, fit, options, train));
    seed_model.test_apart = predict_all(apart, test);
    return {};
  };
  std::mutex saying;
  const auto work = [&] {
    for (size_t s = next++; s < models.size(); s = next++) {
      if (options.progress) {
        const std::lock_guard lock(saying);
        options.progress(strf("reward models, seed %zu of %zu", s + 1, models.size()));
      }
      statuses[s] = one(s);
    }
  };
  std::vector<std::thread> threads;
  for (int t = 1; t < std::min(options.n_threads, options.seeds); ++t) threads.emplace_back(work);
  work();
  for (std::thread& thread : threads) thread.join();
  for (const Status& status : statuses) FRUGAL_TRY_STATUS(status);
  return models;
}

Result<Evaluation> evaluate(const CascadeSpec& spec, const Replayed& fit, const Replayed& test,
                            std::span<const SeedModel> models, const EvaluateOptions& options) {
  FRUGAL_TRY_STATUS(check_sets(spec, fit, test));
  const auto m = spec.chains.size();
  for (const SeedModel& model : models) {
    if (model.fit.size() != static_cast<size_t>(options.splits) * static_cast<size_t>(fit.n) * m ||
        model.test.size() != static_cast<size_t>(test.n) * m)
      return {ErrorCode::kInvalidArgument, "models trained for other requests"};
  }
  if (models.empty() || options.resamples < 10)
    return {ErrorCode::kInvalidArgument, "there is a model, and resamples are at least 10"};
  const bool known = !options.cpu_s.empty();
  if ((known && options.cpu_s.size() != m) || (options.price_cpu && !known)) {
    return {ErrorCode::kInvalidArgument,
            strf("processor times of %zu chains for a cascade of %d", options.cpu_s.size(), spec.n_chains())};
  }
  std::vector<double> flops;
  std::vector<budget::Chain> chains;
  for (int j = 0; j < spec.n_chains(); ++j) {
    flops.push_back(chain_flops(spec, j));
    const double cost = options.price_cpu ? options.cpu_s[static_cast<size_t>(j)] : flops.back();
    chains.push_back({chain_name(spec, j), spec.chains[static_cast<size_t>(j)], {cost}});
  }
  FRUGAL_TRY(auto table,
             budget::ChainTable::create({options.price_cpu ? "cpu_s" : "flops"}, std::move(chains)));
  return Evaluator(spec, fit, test, models, options, std::move(flops), std::move(table)).run();
}

Result<Evaluation> evaluate(const CascadeSpec& spec, const Replayed& fit, const Replayed& test,
                            const EvaluateOptions& options) {
  FRUGAL_TRY(const auto models, train_seeds(spec, fit, test, options));
  return evaluate(spec, fit, test, models, options);
}

}  // namespace frugal::cascade
