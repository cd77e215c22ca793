#include "cascade/replay.h"

#include <algorithm>
#include <cmath>

#include "base/clock.h"
#include "base/text.h"
#include "cascade/npy.h"
#include "cascade/runner.h"

namespace frugal::cascade {
namespace {

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return n % 2 == 1 ? values[n / 2] : 0.5 * (values[n / 2 - 1] + values[n / 2]);
}

class Replayer {
 public:
  Replayer(const CascadeSpec& spec, const Replayed& requests, const Evaluation& evaluation,
           meter::PowerMeter& meter, const ReplayOptions& options)
      : spec_(spec), requests_(requests), evaluation_(evaluation), meter_(meter), options_(options) {}

  Status load(const std::string& folder, const std::string& split) {
    const auto of = [&](const char* what) { return folder + "/" + what + "_" + split + ".npy"; };
    FRUGAL_TRY(auto history, read_integers(of("history"), spec_.history_length));
    FRUGAL_TRY(seen_, read_integers(of("seen"), 0));
    FRUGAL_TRY(clicked_, read_integers(of("clicked"), 0));
    if (history.rows != requests_.n || seen_.rows != requests_.n || clicked_.rows != requests_.n)
      return {ErrorCode::kCorrupt, folder + ": history, seen, clicked and features of split '" + split +
                                       "' have different numbers of rows"};
    history_.assign(history.values.begin(), history.values.end());
    FRUGAL_TRY(runner_,
               CascadeRunner::load(folder, spec_,
                                   {.n_threads = options_.n_threads, .max_batch = options_.max_batch}));
    FRUGAL_TRY(table_, chain_table(spec_, {}));
    n_ = options_.requests > 0 ? std::min(options_.requests, requests_.n) : requests_.n;
    return {};
  }

  Result<ReplayResult> run() {
    ReplayResult result;
    result.n = n_;
    result.rounds = options_.rounds;
    // One round that is not counted compiles every shape and warms the caches.
    for (int round = -1; round < options_.rounds; ++round) {
      if (options_.progress)
        options_.progress(round < 0 ? std::string("warming up")
                                    : strf("round %d of %d", round + 1, options_.rounds));
      if (round == 0) runner_->reset_times();
      // Who goes first changes from round to round.
      for (const bool priced : {round % 2 == 0, round % 2 != 0}) {
        ReplayArm& arm = priced ? result.priced : result.fixed;
        FRUGAL_TRY_STATUS(serve_all(priced, round < 0, arm, result));
      }
    }
    std::vector<double> saved;
    for (size_t r = 0; r < result.fixed.round_cpu_s.size(); ++r)
      saved.push_back(1 - result.priced.round_cpu_s[r] / result.fixed.round_cpu_s[r]);
    result.cpu_saved = median(saved);
    result.cpu_saved_low = *std::min_element(saved.begin(), saved.end());
    result.cpu_saved_high = *std::max_element(saved.begin(), saved.end());
    result.flops_saved = 1 - result.priced.flops / result.fixed.flops;
    for (ReplayArm* arm : {&result.fixed, &result.priced}) {
      arm->cpu_s = median(arm->round_cpu_s);
      arm->joules = arm->joules.scaled(1.0 / options_.rounds);
    }
    result.joules_saved = 1 - result.priced.joules.value / result.fixed.joules.value;
    cost_chains(result);
    return result;
  }

 private:
  // One pass over all requests under one policy.
  Status serve_all(bool priced, bool warm_up, ReplayArm& arm, ReplayResult& result) {
    const auto d = static_cast<size_t>(spec_.n_features()), m = static_cast<size_t>(spec_.n_chains());
    std::vector<float> rewards(m), price(m);
    for (size_t j = 0; j < m; ++j)
      price[j] = static_cast<float>(evaluation_.equal_price * table_->costs(0)[j]);
    std::vector<std::vector<int>> items;
    std::vector<CascadeRequest> batch;
    double clicks = 0, flops = 0;
    int differing = 0;
    const meter::Snapshot start = meter_.snapshot();
    const double cpu = process_cpu_seconds(), wall = wall_seconds();
    for (int begin = 0; begin < n_; begin += options_.batch) {
      const int end = std::min(n_, begin + options_.batch);
      batch.clear();
      for (int i = begin; i < end; ++i) {
        const auto at = static_cast<size_t>(i);
        int chain = evaluation_.static_chain;
        if (priced) {
          evaluation_.model->predict(std::span(requests_.features).subspan(at * d, d), rewards);
          chain = budget::argmax_net_reward(rewards, price);
          if (chain < 0) chain = table_->cheapest();
        }
        batch.push_back({history_of(at), seen_of(at), chain});
      }
      FRUGAL_TRY_STATUS(runner_->serve(batch, items));
      for (int i = begin; i < end; ++i) {
        const auto at = static_cast<size_t>(i);
        const int chain = batch[static_cast<size_t>(i - begin)].chain;
        const double earned = clicks_of(at, items[static_cast<size_t>(i - begin)]);
        clicks += earned;
        flops += table_->costs(0)[static_cast<size_t>(chain)] + (priced ? evaluation_.model->flops() : 0);
        differing += earned != static_cast<double>(requests_.rewards[at * m + static_cast<size_t>(chain)]);
      }
    }
    Usage usage;
    usage.cpu_seconds = process_cpu_seconds() - cpu;
    usage.wall_seconds = wall_seconds() - wall;
    if (warm_up) return {};
    meter_.charge(start, usage);
    arm.clicks = clicks / n_;
    arm.flops = flops / n_;
    arm.round_cpu_s.push_back(usage.cpu_seconds / n_);
    arm.wall_s = usage.wall_seconds / n_;
    const Estimate joules = usage.energy_j.scaled(1.0 / n_);
    if (arm.joules.known())
      arm.joules += joules;
    else
      arm.joules = joules;
    result.disagreeing = std::max(result.disagreeing, static_cast<double>(differing) / n_);
    return {};
  }

  void cost_chains(ReplayResult& result) const {
    for (int j = 0; j < spec_.n_chains(); ++j) {
      const auto& actions = spec_.chains[static_cast<size_t>(j)];
      double sum = 0;
      int n = spec_.n_items + 1;
      for (size_t k = 0; k < spec_.stages.size(); ++k) {
        const auto found = runner_->times().find({static_cast<int>(k), actions[2 * k], k == 0 ? 0 : n});
        sum += found == runner_->times().end() ? NAN : found->second.cpu_s / found->second.requests;
        n = spec_.stages[k].counts[static_cast<size_t>(actions[2 * k + 1])];
      }
      result.chain_cpu_s.push_back(sum);
    }
  }

  std::span<const int64_t> history_of(size_t i) const {
    const auto length = static_cast<size_t>(spec_.history_length);
    return std::span(history_).subspan(i * length, length);
  }
  std::span<const int32_t> seen_of(size_t i) const {
    const auto width = static_cast<size_t>(seen_.columns);
    const auto row = std::span(seen_.values).subspan(i * width, width);
    return row.first(static_cast<size_t>(std::find(row.begin(), row.end(), 0) - row.begin()));
  }
  double clicks_of(size_t i, const std::vector<int>& shown) const {
    const auto width = static_cast<size_t>(clicked_.columns);
    const auto clicked = std::span(clicked_.values).subspan(i * width, width);
    return static_cast<double>(std::count_if(shown.begin(), shown.end(), [&](int item) {
      return std::find(clicked.begin(), clicked.end(), item) != clicked.end();
    }));
  }

  const CascadeSpec& spec_;
  const Replayed& requests_;
  const Evaluation& evaluation_;
  meter::PowerMeter& meter_;
  const ReplayOptions& options_;
  std::vector<int64_t> history_;
  Array2<int32_t> seen_, clicked_;
  std::unique_ptr<CascadeRunner> runner_;
  std::shared_ptr<const budget::ChainTable> table_;
  int n_ = 0;
};

}  // namespace

Result<ReplayResult> replay(const std::string& folder, const std::string& split, const CascadeSpec& spec,
                            const Replayed& requests, const Evaluation& evaluation, meter::PowerMeter& meter,
                            const ReplayOptions& options) {
  if (options.rounds < 1 || options.batch < 1 || evaluation.model == nullptr)
    return {ErrorCode::kInvalidArgument, "rounds and batch are at least 1, and the evaluation has a model"};
  Replayer replayer(spec, requests, evaluation, meter, options);
  FRUGAL_TRY_STATUS(replayer.load(folder, split));
  return replayer.run();
}

}  // namespace frugal::cascade
