// The cascade plane: recommenders of several stages (recall, pre-ranking, ranking), where each request is
// given the models and item counts that it is worth (GreenFlow, arXiv 2312.16176).
//
//   FRUGAL_TRY(CascadeSpec spec, load_cascade(folder));
//   FRUGAL_TRY(auto table, chain_table(spec, {}));                  // costs of every chain, for
//   budget::Governor FRUGAL_TRY(RewardModel model, RewardModel::load("reward.frm")); model.predict(features,
//   rewards);                               // of every chain, one request; then Decider::decide
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "frugal/budget.h"
#include "frugal/result.h"

namespace frugal::cascade {

// A trained instance of a stage. FLOPs by formula: fixed for each request, and for each item that it scores.
struct StageModel {
  std::string name;
  std::string file;  // ONNX, relative to the cascade's folder; may be empty (synthetic)
  double flops_fixed = 0;
  double flops_item = 0;
};

struct Stage {
  std::string name;
  std::vector<StageModel> models;
  std::vector<int> counts;  // items that it may pass on, ascending
};

// A chain by indices into the stages' models and counts: actions {model_0, count_0, model_1, count_1, ...}.
struct CascadeSpec {
  std::string source;                 // what it was trained on
  std::vector<std::string> features;  // names of the request's features
  std::vector<Stage> stages;
  std::vector<std::vector<int>> chains;
  int shown = 0;           // items shown in the end
  int history_length = 0;  // of the request's history, for stages that run
  int n_items = 0;         // catalogue

  int n_features() const { return static_cast<int>(features.size()); }
  int n_chains() const { return static_cast<int>(chains.size()); }
};

// Reads DIR/cascade.json (docs/cascade.md). kNotFound, kCorrupt with the field that is wrong.
Result<CascadeSpec> load_cascade(const std::string& folder);
// kInvalidArgument: chains whose indices lie outside the stages, counts that do not fall from stage to stage.
Status check_cascade(const CascadeSpec& spec);

// FLOPs of one request served by chain j: each stage scores what the one before passed on, the first its
// fixed part.
double chain_flops(const CascadeSpec& spec, int j);
std::string chain_name(const CascadeSpec& spec, int j);  // "recall_s:200 > prerank_l:60 > rank_l:20"

// Joules of one request; measured per chain, or modelled from FLOPs.
struct CostOptions {
  std::vector<double> joules;  // [n_chains]; empty: no such resource
};
Result<std::shared_ptr<const budget::ChainTable>> chain_table(const CascadeSpec& spec,
                                                              const CostOptions& options);

// --- The reward model
// ----------------------------------------------------------------------------------------

// What is left out, for ablations. All on is the model itself.
struct RewardOptions {
  bool recursive = true;    // off: the stages' gains are added up, none knows of the others
  bool multi_basis = true;  // off: the logarithm of the count alone
  bool monotone = true;     // off: weights may be negative
  int hidden = 8;           // units that mix features, 0 to 32; 0: linear
};

// Requests with the chain that served them, how likely that was, and the clicks.
struct LoggedChains {
  int n = 0, n_features = 0;
  std::vector<float> features;    // [n, n_features]
  std::vector<int> chains;        // [n]
  std::vector<float> propensity;  // [n], in (0, 1]: of that chain under the policy that chose
  std::vector<float> rewards;     // [n]
};

struct TrainOptions {
  RewardOptions model = {};
  int epochs = 15;
  int batch = 128;  // requests
  double rate = 0.01;
  double decay = 0.02;  // of what is personal, a step, relative to the rate
  double clip =
      10;  // largest weight of a log row relative to the mean: propensities near zero would drown the rest
  // Where several chains of one request were logged (rows that follow each other with the same features), the
  // weight of the error in their differences against the error in their mean. Differences decide between
  // chains.
  double contrast = 4;
  double holdout = 0.15;  // share of requests kept for calibration
  bool off_policy =
      true;  // weigh rows by 1 / propensity: the fit is then for chains chosen evenly, whatever the policy
  uint64_t seed = 1;
};

// Predicted reward of a chain for request x (recursion over the stages k, model m_k, count c_k):
//   z = [x, relu(A x)],  s_k = sum_b softplus(w_{k,m_k,b} z) phi_b(c_k),  a_k = softplus(v_{k,m_k} z),
//   h_0 = 1,  h_k = s_k h_{k-1} + a_k,  reward = scale softplus(u z) h_K + offset.
// The bases phi_b rise with the count and every factor is positive, so the reward rises with every count, for
// any weights. GreenFlow's own equations are not public; this follows its description. Immutable once
// trained, shared between threads; predict() is const and allocates nothing.
class RewardModel {
 public:
  // kInvalidArgument: no rows, features or rewards that are not finite, propensities outside (0, 1], unknown
  // chains.
  static Result<RewardModel> train(const CascadeSpec& spec, const LoggedChains& logs,
                                   const TrainOptions& options);
  // Goes on from an old model with new logs (online re-training); the old one keeps serving meanwhile.
  static Result<RewardModel> retrain(const RewardModel& from, const CascadeSpec& spec,
                                     const LoggedChains& logs, const TrainOptions& options);

  RewardModel(RewardModel&&) noexcept;
  RewardModel& operator=(RewardModel&&) noexcept;
  ~RewardModel();

  // kCorrupt: not a reward model, damaged, or of another cascade, with the reason. docs/formats/reward.md.
  static Result<RewardModel> load(const std::string& path, const CascadeSpec& spec);
  Status save(const std::string& path) const;

  // features [n_features] -> rewards [n_chains]. Features that are not finite give rewards that are not: the
  // allocator then serves the cheapest chain.
  void predict(std::span<const float> features, std::span<float> rewards) const;
  // The same by the formula, in double and without any table: the twin of tests.
  double predict_slowly(std::span<const float> features, int chain) const;

  int n_features() const;
  int n_chains() const;
  int n_parameters() const;
  double flops() const;  // of one predict()

  struct Impl;

 private:
  explicit RewardModel(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

struct Quality {
  double spearman = 0;         // rank correlation of prediction and truth over (request, chain) pairs
  double within_spearman = 0;  // mean over requests of the rank correlation over chains
  double rmse = 0;             // root mean square of prediction - truth, over the root mean square of truth
  double bias = 0;             // mean prediction / mean truth - 1
  double calibration = 0;      // mean over deciles of |mean prediction - mean truth| / overall mean truth
};
// truth [n, n_chains], expected or observed.
Quality judge(const RewardModel& model, std::span<const float> features, std::span<const float> truth, int n);

}  // namespace frugal::cascade
