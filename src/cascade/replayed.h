// Requests whose reward under every chain is known, and logs drawn from them.
#pragma once

#include <string>
#include <vector>

#include "frugal/cascade.h"

namespace frugal::cascade {

// Requests with every chain replayed.
struct Replayed {
  int n = 0;
  std::vector<float> features;  // [n, n_features]
  std::vector<float> rewards;   // [n, n_chains], clicks
  std::vector<int> user;        // [n]: whose request it is
};
// DIR/features_<split>.npy, rewards_<split>.npy and, if it is there, user_<split>.npy (else each request is
// taken for another user's). kNotFound, kCorrupt: shapes, types, values that do not fit.
Result<Replayed> load_replayed(const std::string& folder, const std::string& split, const CascadeSpec& spec);

// Some requests of a set, in the order of `rows`.
Replayed rows_of(const Replayed& replayed, std::span<const int> rows);

// Logs as an even policy would have left them: `per_request` chains of each request of `rows`, drawn without
// regard to anything, propensity 1 / n_chains.
LoggedChains sample_logs(const Replayed& replayed, std::span<const int> rows, int n_chains, int per_request,
                         uint64_t seed);

// A user's fold, drawn from its number alone.
int fold_of(int user, uint64_t seed, int folds);

}  // namespace frugal::cascade
