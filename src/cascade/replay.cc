#include "cascade/replay.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>
#include <thread>
#include <utility>

#include "base/clock.h"
#include "base/rng.h"
#include "base/text.h"
#include "cascade/requests.h"

namespace frugal::cascade {
namespace {

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return n % 2 == 1 ? values[n / 2] : 0.5 * (values[n / 2 - 1] + values[n / 2]);
}

class Replayer {
 public:
  Replayer(const CascadeSpec& spec, const Replayed& requests, std::span<const ReplayPolicy> policies,
           meter::PowerMeter& meter, const ReplayOptions& options)
      : spec_(spec), requests_(requests), policies_(policies), meter_(meter), options_(options) {}

  Status load(const std::string& folder, const std::string& split) {
    FRUGAL_TRY(set_, load_requests(folder, split, spec_));
    FRUGAL_TRY(clicked_, read_integers(folder + "/clicked_" + split + ".npy", 0));
    if (set_.n != clicked_.rows || requests_.n > set_.n)
      return {ErrorCode::kCorrupt, folder + ": history, clicked and features of split '" + split +
                                       "' have different numbers of rows"};
    FRUGAL_TRY(runner_, CascadeRunner::load(folder, spec_,
                                            {.n_threads = options_.n_threads,
                                             .max_batch = options_.max_batch,
                                             .open = options_.open}));
    for (int j = 0; j < spec_.n_chains(); ++j) flops_.push_back(chain_flops(spec_, j));
    if (options_.rate > 0) draw_arrivals();
    return {};
  }

  Result<ReplayResult> run() {
    ReplayResult result;
    result.n = requests_.n;
    result.rounds = options_.rounds;
    for (const ReplayPolicy& policy : policies_) result.arms.emplace_back().name = policy.name;
    if (!arrivals_s_.empty()) FRUGAL_TRY_STATUS(warm_up_small_batches());
    // One round that is not counted compiles every shape and warms the caches.
    for (int round = -1; round < options_.rounds; ++round) {
      if (options_.progress)
        options_.progress(round < 0 ? std::string("warming up")
                                    : strf("round %d of %d", round + 1, options_.rounds));
      // Who goes first changes from round to round.
      for (size_t p = 0; p < policies_.size(); ++p) {
        const size_t at = (p + static_cast<size_t>(round + 1)) % policies_.size();
        FRUGAL_TRY_STATUS(serve_all(policies_[at], round < 0, result.arms[at], result));
      }
    }
    for (ReplayArm& arm : result.arms) {
      arm.cpu_s = median(arm.round_cpu_s);
      arm.joules = arm.joules.scaled(1.0 / options_.rounds);
    }
    return result;
  }

 private:
  // Requests that arrive by chance make batches of all sizes: their shapes are compiled beforehand.
  Status warm_up_small_batches() {
    const std::vector<double> arrivals_s = std::exchange(arrivals_s_, {});
    const ReplayOptions options = options_;
    for (options_.batch = 1; options_.batch <= options.max_batch; options_.batch *= 2) {
      for (const ReplayPolicy& policy : policies_) {
        ReplayArm arm;
        ReplayResult result;
        FRUGAL_TRY_STATUS(serve_all(policy, true, arm, result));
      }
    }
    options_ = options;
    arrivals_s_ = arrivals_s;
    return {};
  }

  // The same arrivals for every policy and round.
  void draw_arrivals() {
    Rng rng(1, 93);
    double at = 0;
    for (int i = 0; i < requests_.n; ++i)
      arrivals_s_.push_back(at += -std::log(1 - rng.uniform()) / options_.rate);
  }

  // The end of the batch that begins with request `begin`: who is here by now, after waiting for the first.
  int wait_for_batch(int begin, double start_s) const {
    const int most = std::min(requests_.n, begin + options_.batch);
    if (arrivals_s_.empty()) return most;
    const double idle = start_s + arrivals_s_[static_cast<size_t>(begin)] - wall_seconds();
    if (idle > 0) std::this_thread::sleep_for(std::chrono::duration<double>(idle));
    int end = begin + 1;
    const double now = wall_seconds() - start_s;
    while (end < most && arrivals_s_[static_cast<size_t>(end)] <= now) ++end;
    return end;
  }

  // One pass over all requests under one policy.
  Status serve_all(const ReplayPolicy& policy, bool warm_up, ReplayArm& arm, ReplayResult& result) {
    const auto d = static_cast<size_t>(spec_.n_features()), m = static_cast<size_t>(spec_.n_chains());
    const int n = requests_.n;
    std::vector<float> rewards(m);
    std::vector<std::vector<int>> items;
    std::vector<CascadeRequest> batch;
    std::vector<double> waited_s;
    double clicks = 0, flops = 0;
    int differing = 0, n_batches = 0;
    const meter::Snapshot start = meter_.snapshot();
    const double cpu = process_cpu_seconds(), wall = wall_seconds();
    for (int begin = 0, end = 0; begin < n; begin = end) {
      end = wait_for_batch(begin, wall);
      ++n_batches;
      batch.clear();
      for (int i = begin; i < end; ++i) {
        const auto at = static_cast<size_t>(i);
        int chain = policy.chain;
        if (policy.model != nullptr) {
          policy.model->predict(std::span(requests_.features).subspan(at * d, d), rewards);
          chain = budget::argmax_net_reward(rewards, policy.priced);
          if (chain < 0) chain = policy.chain;
        }
        batch.push_back(set_.request(at, chain));
      }
      FRUGAL_TRY_STATUS(runner_->serve(batch, items));
      for (int i = begin; i < end; ++i) {
        const auto at = static_cast<size_t>(i);
        const auto chain = static_cast<size_t>(batch[static_cast<size_t>(i - begin)].chain);
        const double earned = clicks_of(at, items[static_cast<size_t>(i - begin)]);
        clicks += earned;
        flops += flops_[chain] + (policy.model != nullptr ? policy.model->flops() : 0);
        differing += earned != static_cast<double>(requests_.rewards[at * m + chain]);
        if (!arrivals_s_.empty()) waited_s.push_back(wall_seconds() - wall - arrivals_s_[at]);
      }
    }
    Usage usage;
    usage.cpu_seconds = process_cpu_seconds() - cpu;
    usage.wall_seconds = wall_seconds() - wall;
    if (warm_up) return {};
    meter_.charge(start, usage);
    arm.clicks = clicks / n;
    arm.flops = flops / n;
    arm.batch = static_cast<double>(n) / n_batches;
    arm.round_cpu_s.push_back(usage.cpu_seconds / n);
    arm.wall_s = usage.wall_seconds / n;
    if (!waited_s.empty()) {
      std::sort(waited_s.begin(), waited_s.end());
      arm.latency_s = std::accumulate(waited_s.begin(), waited_s.end(), 0.0) / n;
      arm.latency_p99_s = waited_s[waited_s.size() * 99 / 100];
    }
    const Estimate joules = usage.energy_j.scaled(1.0 / n);
    if (arm.joules.known())
      arm.joules += joules;
    else
      arm.joules = joules;
    result.disagreeing = std::max(result.disagreeing, static_cast<double>(differing) / n);
    return {};
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
  std::span<const ReplayPolicy> policies_;
  meter::PowerMeter& meter_;
  ReplayOptions options_;
  RequestSet set_;
  Array2<int32_t> clicked_;
  std::unique_ptr<CascadeRunner> runner_;
  std::vector<double> flops_;       // [n_chains]
  std::vector<double> arrivals_s_;  // [n], or empty
};

}  // namespace

std::vector<ReplayPolicy> replay_policies(const Evaluation& evaluation, std::span<const double> costs,
                                          const std::string& name) {
  std::vector<ReplayPolicy> policies{{"static", evaluation.static_chain, nullptr, {}},
                                     {"static, 1 % less", evaluation.near_chain, nullptr, {}}};
  for (size_t s = 0; s < evaluation.policies.size(); ++s) {
    const Evaluation::Policy& of = evaluation.policies[s];
    ReplayPolicy policy{evaluation.policies.size() > 1 ? strf("%s, seed %zu", name.c_str(), s + 1) : name,
                        evaluation.static_chain,
                        of.model,
                        {}};
    for (const double cost : costs) policy.priced.push_back(static_cast<float>(of.price * cost));
    for (size_t j = 0; j < costs.size() && !of.menu.empty(); ++j) {
      if (!std::binary_search(of.menu.begin(), of.menu.end(), static_cast<int>(j)))
        policy.priced[j] = INFINITY;
    }
    policies.push_back(std::move(policy));
  }
  return policies;
}

Saved cpu_saved(const ReplayArm& of, const ReplayArm& beside) {
  std::vector<double> saved;
  for (size_t r = 0; r < of.round_cpu_s.size(); ++r)
    saved.push_back(1 - of.round_cpu_s[r] / beside.round_cpu_s[r]);
  return {median(saved), *std::min_element(saved.begin(), saved.end()),
          *std::max_element(saved.begin(), saved.end())};
}

Result<ReplayResult> replay(const std::string& folder, const std::string& split, const CascadeSpec& spec,
                            const Replayed& requests, std::span<const ReplayPolicy> policies,
                            meter::PowerMeter& meter, const ReplayOptions& options) {
  if (options.rounds < 1 || options.batch < 1 || !(options.rate >= 0) || policies.empty() || requests.n < 1) {
    return {ErrorCode::kInvalidArgument,
            "rounds and batch are at least 1, the rate is not negative, there are requests and a policy"};
  }
  Replayer replayer(spec, requests, policies, meter, options);
  FRUGAL_TRY_STATUS(replayer.load(folder, split));
  return replayer.run();
}

}  // namespace frugal::cascade
