// The reward model's tables and parameters, shared by inference and training.
#pragma once

#include <array>
#include <cmath>
#include <vector>

#include "cascade/predict.h"
#include "frugal/cascade.h"

namespace frugal::cascade {

// phi_b(c): rise with the count, saturate at different speeds, lie in [0, 1]. The constant lets a model be
// good whatever the count.
std::array<float, kBases> count_bases(double count, double least, double largest, bool multi_basis);

struct RewardModel::Impl {
  RewardOptions options;
  int n_features = 0, n_chains = 0, n_stages = 0;
  uint64_t spec_hash = 0;

  // Heads: for model m of stage k, kBases gains and one alpha, [first_head(k, m) + b].
  std::vector<std::vector<int>> first_head;  // [stage][model]
  int value_head = 0;                        // the request's own factor, after those
  int n_heads = 0, padded_heads = 0;         // padded to 8
  // Gains: one for each (stage, model, count).
  using Gain = PredictView::Gain;
  std::vector<Gain> gains;
  // Nodes of the tree of chains, a level for each stage: chains that begin alike share their prefix.
  using Node = PredictView::Node;
  std::vector<std::vector<Node>> levels;
  size_t widest_level = 0;
  std::vector<int> chain_of_leaf;              // [levels.back().size()]
  std::vector<std::vector<int>> chain_gains;   // [n_chains][n_stages]: index into gains
  std::vector<std::vector<int>> chain_alphas;  // [n_chains][n_stages]: head index

  // Parameters. z = [1, x standardised, relu(A [1, x])], z_dim = 1 + n_features + hidden.
  std::vector<float> mean, inverse_sd;  // [n_features]
  std::vector<float> mix;               // A [hidden, 1 + n_features]
  std::vector<float> weights;           // W [z_dim, padded_heads]
  float scale = 1, offset = 0;

  int z_dim() const { return 1 + n_features + options.hidden; }
  int n_parameters() const { return static_cast<int>(mix.size()) + z_dim() * n_heads; }

  // What the kernels read; valid while this is and stays as it is.
  PredictView view() const;
  // z [z_dim] of features x [n_features].
  void embed(std::span<const float> x, float* z) const;
  // Lays the tables out for a cascade; parameters stay empty.
  static std::unique_ptr<Impl> lay_out(const CascadeSpec& spec, const RewardOptions& options);
};

inline double softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::fabs(x))); }

}  // namespace frugal::cascade
