#include "cascade/pricing.h"

#include <algorithm>
#include <cmath>

#include "cascade/rank.h"

namespace frugal::cascade {
namespace {

// Clicks that the dearest chain is charged: beyond either nothing changes.
constexpr double kLowestCharge = 1e-7, kHighestCharge = 1e4;

double dearest_cost(const budget::ChainTable& table) {
  return table.costs(0)[static_cast<size_t>(table.dearest_in(0))];
}

constexpr int kGrid = 160;  // prices that are tried for equal reward

double grid_price(const budget::ChainTable& table, int g) {
  if (g == 0) return 0;
  return kLowestCharge * std::pow(kHighestCharge / kLowestCharge, static_cast<double>(g) / kGrid) /
         dearest_cost(table);
}

}  // namespace

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

EqualReward price_for_reward(const budget::ChainTable& table, std::span<const float> predicted,
                             std::span<const float> truth, int n, double target) {
  std::vector<double> earned;  // by price of the grid
  for (int g = 0; g <= kGrid; ++g)
    earned.push_back(decide_all(table, predicted, truth, n, grid_price(table, g)).reward);
  size_t g = make_unimodal(earned);
  const bool reached = earned[g] >= target;
  while (reached && g + 1 < earned.size() && earned[g + 1] >= target) ++g;
  return {grid_price(table, static_cast<int>(g)), reached};
}

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

Result<std::vector<int>> menu_of_fit(const std::string& folder, const CascadeSpec& spec,
                                     const RewardModel& model, int most) {
  FRUGAL_TRY(const auto fit, load_replayed(folder, "fit", spec));
  FRUGAL_TRY(const auto table, chain_table(spec, {}));
  const std::vector<double> earned = mean_rewards(fit);
  const double target = *std::max_element(earned.begin(), earned.end());
  const std::vector<float> predicted = predict_all(model, fit);
  const double price = price_for_reward(*table, predicted, fit.rewards, fit.n, target).price;
  return choose_menu(*table, predicted, fit.n, price, most);
}

std::vector<double> mean_rewards(const Replayed& requests) {
  const size_t m = requests.rewards.size() / static_cast<size_t>(requests.n);
  std::vector<double> mean(m, 0);
  for (size_t i = 0; i < requests.rewards.size(); ++i)
    mean[i % m] += static_cast<double>(requests.rewards[i]);
  for (double& reward : mean) reward /= requests.n;
  return mean;
}

std::vector<float> predict_all(const RewardModel& model, const Replayed& requests) {
  const auto d = static_cast<size_t>(model.n_features()), m = static_cast<size_t>(model.n_chains());
  std::vector<float> all(static_cast<size_t>(requests.n) * m);
  for (size_t i = 0; i < static_cast<size_t>(requests.n); ++i) {
    model.predict(std::span(requests.features).subspan(i * d, d), std::span(all).subspan(i * m, m));
  }
  return all;
}

void keep_menu(std::vector<float>& predicted, size_t m, std::span<const int> menu) {
  for (size_t i = 0; i < predicted.size(); ++i) {
    if (!std::binary_search(menu.begin(), menu.end(), static_cast<int>(i % m))) predicted[i] = NAN;
  }
}

}  // namespace frugal::cascade
