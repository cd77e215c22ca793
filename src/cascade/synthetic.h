// A synthetic recommender whose true rewards are known: what ml-100k cannot give (the truth of every chain
// for every request), at any scale. A user is a function of its number, so 10^6 users and 10^8 requests need
// no memory.
#pragma once

#include "base/rng.h"
#include "frugal/cascade.h"

namespace frugal::cascade {

struct SyntheticOptions {
  int n_users = 1'000'000;
  int n_chains = 64;   // 64 or 1,000: grids of counts, two models a stage
  double noise = 0.3;  // of the observed features around what drives the rewards, in standard deviations
  uint64_t seed = 1;
};

class SyntheticWorld {
 public:
  // kInvalidArgument: a number of chains that has no grid, no users, noise that is negative.
  static Result<SyntheticWorld> create(const SyntheticOptions& options);

  const CascadeSpec& spec() const { return spec_; }

  struct Request {
    uint32_t user = 0;
    double context = 0;  // of this request alone, standard normal
  };
  // Users come back by a power law: a few are here often.
  Request draw(Rng& rng) const;
  // features [n_features]: what a model may see.
  void features(const Request& request, std::span<float> out) const;
  // rewards [n_chains]: expected clicks, the truth.
  void truth(const Request& request, std::span<float> out) const;
  // Clicks of one serving: Poisson around the truth.
  static int clicks(double expected, Rng& rng);

  // Logs of a policy that is not even: cheap chains more often, for eager users more than for others.
  LoggedChains logs(int n, uint64_t seed) const;

 private:
  struct Latent {
    double value, depth, subtlety, rarity;
  };
  Latent latent(const Request& request) const;
  SyntheticOptions options_;
  CascadeSpec spec_;
};

}  // namespace frugal::cascade
