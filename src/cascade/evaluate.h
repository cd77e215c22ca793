// Allocation policies side by side on requests whose reward under every chain is known: reward against
// compute.
#pragma once

#include <functional>
#include <memory>

#include "cascade/replayed.h"

namespace frugal::cascade {

enum class PolicyKind {
  kStatic,  // the same chain for everyone, the best on the fitting requests that the budget allows
  kDcaf,    // DCAF: the best static chain's models and recall; the ranking queue's length by request
  kCras,    // CRAS: the best static chain's models; every count by request, stages independent of each other
  kGreenFlow,  // every chain by request
  kOracle,     // every chain by request with the true clicks: what no model can reach
};
std::string_view policy_name(PolicyKind kind);

struct PolicyPoint {
  double budget = 0;  // of the priced resource a request, on the fitting requests
  double cost = 0;    // a request, on the test requests
  double reward = 0;  // clicks a request, on the test requests
};
struct PolicyCurve {
  PolicyKind kind = PolicyKind::kStatic;
  std::vector<PolicyPoint> points;
};

struct Evaluation {
  std::vector<PolicyCurve> curves;
  // The best static chain, chosen on fitting requests, and the price at which GreenFlow earns as much there;
  // on test requests:
  int static_chain = 0;
  double static_flops = 0, static_cpu_s = 0, static_reward = 0;
  // The cheapest static chain within 1 % of the best's reward on the fitting requests.
  int near_chain = 0;
  double near_flops = 0, near_cpu_s = 0, near_reward = 0;
  double equal_flops = 0, equal_cpu_s = 0, equal_reward = 0;  // of GreenFlow, mean over seeds
  // False: for some seed no price let GreenFlow earn as much on the fitting requests. It then has the price
  // that earns most, and "at equal reward" is not what the figures say.
  bool reached = false;
  double flops_saved = 0;                // 1 - equal_flops / static_flops
  double saved_low = 0, saved_high = 0;  // 95 % over seeds and bootstrap resamples of users
  // The same of processor time by EvaluateOptions::cpu_s; 0 when that is not known.
  double cpu_saved = 0, cpu_saved_low = 0, cpu_saved_high = 0;
  double reward_ratio = 0, ratio_low = 0, ratio_high = 0;
  // At equal compute (half of what the best static chain takes of the priced resource): reward over that of
  // the best static chain of that cost, and of the peers.
  struct AtEqualCompute {
    PolicyKind kind;
    double reward = 0, gain = 0, gain_low = 0, gain_high = 0;  // of GreenFlow over `kind`
    std::vector<double> draws;                                 // of the gain, over seeds and resamples
  };
  std::vector<AtEqualCompute> at_equal_compute;
  std::vector<double> chain_share;  // [n_chains] of GreenFlow at equal reward, last seed
  int seeds = 0;
  std::shared_ptr<const RewardModel> model;  // of the last seed, and its price at equal reward
  double equal_price = 0;
  // What a price saves of the best static chain's FLOPs and processor time (by EvaluateOptions::cpu_s; 0 when
  // that is not known), and its clicks over that chain's.
  struct Saving {
    double flops = 0, cpu = 0, reward_ratio = 0;
  };
  struct Policy {
    std::shared_ptr<const RewardModel> model;
    double price = 0;  // of the priced resource, at equal reward
    Saving saving;
    std::vector<Saving> draws;  // bootstrap resamples of the users
    std::vector<int> menu;      // the chains on offer, ascending; empty: all
  };
  std::vector<Policy> policies;  // by seed
};

struct EvaluateOptions {
  int seeds = 5;
  int n_threads = 1;  // that train reward models; what comes out does not depend on it
  int logs_per_request = 64;
  // Of the fitting requests' users, for setting prices on predictions of others' models; so many ways of
  // cutting them into folds are pooled.
  int folds = 4, splits = 3;
  // A price is to earn so much more than the target on the requests that set it: on others it earns a little
  // less than there. Chosen by folds of `fit` among 0, 0.0025 and 0.005.
  double margin = 0.0025;
  int resamples = 200;
  // Few users: personal weights decay fast, features are not mixed, and differences between chains weigh all
  // but everything. Chosen by folds of `fit`.
  TrainOptions train = {.model = {.hidden = 0}, .epochs = 8, .decay = 5, .contrast = 16};
  // The best static chain is looked for among those that take at most this share of the dearest's cost, as
  // where a budget binds. 1: among all.
  double static_share = 1;
  // GreenFlow at equal reward chooses among so many chains, picked on the fitting requests; 0: all. Chains
  // that few requests go through are scored in small batches and find their models out of the caches.
  int menu = 0;
  // Processor time of a request, by chain [n_chains] (cascade/cost.h); empty: not known. With price_cpu
  // prices are on it, else on FLOPs.
  std::vector<double> cpu_s = {};
  bool price_cpu = false;
  std::function<void(const std::string&)> progress;  // may be empty
};
// What one seed knows: a reward model trained on logs of `fit`, and what is predicted.
struct SeedModel {
  uint64_t seed = 0;
  std::shared_ptr<const RewardModel> model;
  // [n, n_chains]; of `fit` by models that did not see a request of the same user, once for each split:
  // [splits * n, n_chains]. `apart`: by a model that takes the stages for independent.
  std::vector<float> fit, test, fit_apart, test_apart;
};
Result<std::vector<SeedModel>> train_seeds(const CascadeSpec& spec, const Replayed& fit, const Replayed& test,
                                           const EvaluateOptions& options);

// Sets prices on the predictions for `fit`, judges on `test`.
Result<Evaluation> evaluate(const CascadeSpec& spec, const Replayed& fit, const Replayed& test,
                            std::span<const SeedModel> models, const EvaluateOptions& options);
// Both.
Result<Evaluation> evaluate(const CascadeSpec& spec, const Replayed& fit, const Replayed& test,
                            const EvaluateOptions& options);

}  // namespace frugal::cascade
