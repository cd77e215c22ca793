// Deciding replayed requests at one price, and finding the price: what evaluate() does for each policy.
#pragma once

#include <span>
#include <vector>

#include "cascade/evaluate.h"

namespace frugal::cascade {

struct Outcome {
  double cost = 0, reward = 0;        // a request
  std::vector<float> request_reward;  // [n]
  std::vector<int> request_chain;     // [n]
};

// Decides every request by `predicted` [n, n_chains] at a price of the table's first resource, counts what it
// really earns by `truth` [n, n_chains].
Outcome decide_all(const budget::ChainTable& table, std::span<const float> predicted,
                   std::span<const float> truth, int n, double price);

// The price on the given requests at which a request costs `cost` in the mean, which falls with the price.
double price_for_cost(const budget::ChainTable& table, std::span<const float> predicted,
                      std::span<const float> truth, int n, double cost);

// The largest price of a grid at which a request still earns `target`. What is earned at a price is noisy,
// and without a price the most compute need not earn the most: it is first made to rise, then to fall with
// the price (least squares), so that a lucky point does not set the price. Where nothing earns enough, the
// price that earns most.
struct EqualReward {
  double price = 0;
  bool reached = false;
};
EqualReward price_for_reward(const budget::ChainTable& table, std::span<const float> predicted,
                             std::span<const float> truth, int n, double target);

// Leaves only the chains that a policy may choose (`like`: the chain whose models it keeps); the others
// become NaN, which the allocator skips.
void restrict_chains(std::vector<float>& predicted, const CascadeSpec& spec, PolicyKind kind, int like);

// The `most` chains that together are worth most to the requests at a price: greedily, each the one that adds
// most to the sum of the best reward - price * cost. Ascending.
std::vector<int> choose_menu(const budget::ChainTable& table, std::span<const float> predicted, int n,
                             double price, int most);
// The menu at the price of equal reward on the fitting requests of a cascade's folder: what these requests
// would earn by the best chain for everyone. kNotFound, kCorrupt: features_fit.npy, rewards_fit.npy.
Result<std::vector<int>> menu_of_fit(const std::string& folder, const CascadeSpec& spec,
                                     const RewardModel& model, int most);
// What each chain would earn a request, [n_chains]; of one request at least.
std::vector<double> mean_rewards(const Replayed& requests);
// Rewards of every chain for every request, [n, n_chains].
std::vector<float> predict_all(const RewardModel& model, const Replayed& requests);
// Leaves only the chains of a menu.
void keep_menu(std::vector<float>& predicted, size_t n_chains, std::span<const int> menu);

}  // namespace frugal::cascade
