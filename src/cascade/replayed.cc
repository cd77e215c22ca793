#include "cascade/replayed.h"

#include <filesystem>
#include <numeric>

#include "base/rng.h"
#include "base/text.h"
#include "cascade/npy.h"

namespace frugal::cascade {

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

Replayed rows_of(const Replayed& replayed, std::span<const int> rows) {
  const auto n = static_cast<size_t>(replayed.n);
  const size_t d = replayed.features.size() / n, m = replayed.rewards.size() / n;
  Replayed some;
  some.n = static_cast<int>(rows.size());
  for (const int row : rows) {
    const auto i = static_cast<size_t>(row);
    const auto copy = [i](const std::vector<float>& from, size_t width, std::vector<float>& to) {
      const auto begin = from.begin() + static_cast<std::ptrdiff_t>(i * width);
      to.insert(to.end(), begin, begin + static_cast<std::ptrdiff_t>(width));
    };
    copy(replayed.features, d, some.features);
    copy(replayed.rewards, m, some.rewards);
    some.user.push_back(replayed.user[i]);
  }
  return some;
}

int fold_of(int user, uint64_t seed, int folds) {
  return static_cast<int>(Rng(static_cast<uint64_t>(user), 71 + seed).below(static_cast<uint32_t>(folds)));
}

}  // namespace frugal::cascade
