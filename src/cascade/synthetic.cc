#include "cascade/synthetic.h"

#include <algorithm>
#include <cmath>

#include "base/text.h"

namespace frugal::cascade {
namespace {

constexpr int kFeatures = 12;

double logistic(double x) { return 1 / (1 + std::exp(-x)); }

}  // namespace

Result<SyntheticWorld> SyntheticWorld::create(const SyntheticOptions& options) {
  if (options.n_users < 1) return {ErrorCode::kInvalidArgument, "a synthetic world needs at least one user"};
  if (!(options.noise >= 0) || !std::isfinite(options.noise))
    return {ErrorCode::kInvalidArgument, "noise is finite and not negative"};
  SyntheticWorld world;
  world.options_ = options;
  CascadeSpec& spec = world.spec_;
  spec.source = "synthetic";
  for (int i = 0; i < kFeatures; ++i) spec.features.push_back(strf("x%d", i));
  std::vector<int> recall{200, 800}, prerank{20, 50, 100, 200};
  if (options.n_chains == 1000) {
    recall = {200, 350, 500, 650, 800};
    prerank.clear();
    for (int i = 1; i <= 25; ++i) prerank.push_back(8 * i);
  } else if (options.n_chains != 64) {
    return {ErrorCode::kInvalidArgument, strf("%d chains: there are grids of 64 and 1000", options.n_chains)};
  }
  spec.shown = prerank[0];
  // FLOPs as of a two-tower recall, an MLP and an attention ranker of the sizes in scripts/train_cascade.py.
  spec.stages = {{"recall", {{"recall_s", "", 2.8e4, 0}, {"recall_l", "", 1.2e5, 0}}, recall},
                 {"prerank", {{"prerank_s", "", 480, 8e2}, {"prerank_l", "", 1920, 1.2e4}}, prerank},
                 {"rank", {{"rank_s", "", 0, 6.5e3}, {"rank_l", "", 0, 3.4e5}}, {spec.shown}}};
  for (int r = 0; r < 2; ++r) {
    for (int i = 0; i < static_cast<int>(recall.size()); ++i) {
      for (int p = 0; p < 2; ++p) {
        for (int j = 0; j < static_cast<int>(prerank.size()); ++j) {
          for (int k = 0; k < 2; ++k) {
            spec.chains.push_back({r, i, p, j, k, 0});
          }
        }
      }
    }
  }
  FRUGAL_TRY_STATUS(check_cascade(spec));
  return world;
}

SyntheticWorld::Request SyntheticWorld::draw(Rng& rng) const {
  // Density ~ u^-0.5 over ranks: the first hundredth of the users makes a tenth of the requests.
  const double u = rng.uniform();
  Request request;
  request.user = static_cast<uint32_t>(std::min<double>(u * u * options_.n_users, options_.n_users - 1));
  request.context = rng.normal();
  return request;
}

SyntheticWorld::Latent SyntheticWorld::latent(const Request& request) const {
  Rng user(options_.seed, request.user);
  Latent latent;
  latent.value = std::exp(0.7 * user.normal() + 0.4 * request.context);
  latent.depth = std::exp(0.6 * user.normal());
  latent.subtlety = logistic(1.5 * user.normal() - 0.5);
  latent.rarity = std::exp(0.5 * user.normal());
  return latent;
}

void SyntheticWorld::features(const Request& request, std::span<float> out) const {
  const Latent latent = this->latent(request);
  Rng noise(options_.seed + 1, request.user);
  const double seen[] = {std::log(latent.value) / 0.8, std::log(latent.depth) / 0.6, 4 * latent.subtlety - 2,
                         std::log(latent.rarity) / 0.5};
  for (size_t i = 0; i < 4; ++i) out[i] = static_cast<float>(seen[i] + options_.noise * noise.normal());
  out[4] = static_cast<float>(latent.value + options_.noise * noise.normal());
  out[5] = static_cast<float>(seen[1] * seen[1] + options_.noise * noise.normal());
  out[6] = static_cast<float>(seen[0] * seen[2] + options_.noise * noise.normal());
  out[7] = static_cast<float>(request.context);
  for (size_t i = 8; i < kFeatures; ++i) out[i] = static_cast<float>(noise.normal());  // says nothing
}

void SyntheticWorld::truth(const Request& request, std::span<float> out) const {
  const Latent latent = this->latent(request);
  // Survival of a relevant item: recall saturates in its count over what the user's taste needs, pre-ranking
  // likewise and slower after a recall that let more chaff through, ranking by the model. Not in the reward
  // model's family, on purpose.
  const auto& recall_counts = spec_.stages[0].counts;
  const auto& prerank_counts = spec_.stages[1].counts;
  const double recall_need[] = {320 * latent.rarity, 180 * latent.rarity},
               prerank_need[] = {60 * latent.depth, 25 * latent.depth};
  const double rank[] = {0.72 - 0.42 * latent.subtlety, 0.78};
  std::vector<double> recall, prerank;
  for (int m = 0; m < 2; ++m) {
    for (const int count : recall_counts)
      recall.push_back(1 - std::exp(-std::pow(count / recall_need[m], 0.8)));
    for (const int count : prerank_counts)
      prerank.push_back(1 - std::exp(-std::pow(count / prerank_need[m], 0.9)));
  }
  for (size_t j = 0; j < out.size(); ++j) {
    const auto& a = spec_.chains[j];
    const double r = recall[static_cast<size_t>(a[0]) * recall_counts.size() + static_cast<size_t>(a[1])];
    const double p = prerank[static_cast<size_t>(a[2]) * prerank_counts.size() + static_cast<size_t>(a[3])];
    out[j] = static_cast<float>(2 * latent.value * rank[a[4]] * r * p * (1.25 - 0.25 * p));
  }
}

int SyntheticWorld::clicks(double expected, Rng& rng) {
  // Knuth's method: few clicks are expected. Beyond 30 a normal one does.
  if (expected > 30)
    return std::max(0, static_cast<int>(std::lround(expected + std::sqrt(expected) * rng.normal())));
  const double limit = std::exp(-expected);
  int n = 0;
  for (double product = rng.uniform(); product > limit; product *= rng.uniform()) ++n;
  return n;
}

LoggedChains SyntheticWorld::logs(int n, uint64_t seed) const {
  LoggedChains logs;
  logs.n = n;
  logs.n_features = kFeatures;
  Rng rng(seed, 5);
  const auto n_chains = static_cast<size_t>(spec_.n_chains());
  std::vector<float> features(kFeatures), truth_row(n_chains);
  std::vector<double> log_flops(n_chains), share(n_chains);
  for (size_t j = 0; j < n_chains; ++j) log_flops[j] = std::log(chain_flops(spec_, static_cast<int>(j)));
  for (int i = 0; i < n; ++i) {
    const Request request = draw(rng);
    this->features(request, features);
    truth(request, truth_row);
    double sum = 0;
    const double lean = 0.5 * std::clamp(static_cast<double>(features[0]), -2.0, 2.0) - 0.4;
    for (size_t j = 0; j < n_chains; ++j) sum += share[j] = std::exp(lean * (log_flops[j] - log_flops[0]));
    // A tenth of the requests is served evenly, so every chain stands a chance.
    const double u = rng.uniform();
    size_t chosen = n_chains - 1;
    double below = 0;
    for (size_t j = 0; j < n_chains; ++j) {
      share[j] = 0.9 * share[j] / sum + 0.1 / static_cast<double>(n_chains);
      if (u >= below && u < below + share[j]) chosen = j;
      below += share[j];
    }
    logs.features.insert(logs.features.end(), features.begin(), features.end());
    logs.chains.push_back(static_cast<int>(chosen));
    logs.propensity.push_back(static_cast<float>(share[chosen]));
    logs.rewards.push_back(static_cast<float>(clicks(static_cast<double>(truth_row[chosen]), rng)));
  }
  return logs;
}

}  // namespace frugal::cascade
