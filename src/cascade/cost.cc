#include "cascade/cost.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <tuple>

#include "base/clock.h"
#include "base/file.h"
#include "base/rng.h"
#include "base/text.h"
#include "cascade/rank.h"
#include "cascade/requests.h"

namespace frugal::cascade {
namespace {

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2),
                   values.end());
  return values[values.size() / 2];
}

// The count by which a stage's cost goes: what a first stage passes on, what another one scores.
int cost_count(const CascadeSpec& spec, int chain, int stage) {
  const auto& actions = spec.chains[static_cast<size_t>(chain)];
  const size_t of = stage == 0 ? 0 : static_cast<size_t>(stage) - 1;
  return spec.stages[of].counts[static_cast<size_t>(actions[2 * of + 1])];
}

const StageCosts& costs_of(const std::vector<StageCosts>& stages, int stage, int model) {
  return *std::find_if(stages.begin(), stages.end(),
                       [&](const StageCosts& one) { return one.stage == stage && one.model == model; });
}

size_t place_of(const StageCosts& costs, int count) {
  return static_cast<size_t>(std::lower_bound(costs.counts.begin(), costs.counts.end(), count) -
                             costs.counts.begin());
}

std::vector<double> sum_stages(const CascadeCosts& costs, const CascadeSpec& spec, size_t batch,
                               double overhead_s, std::vector<double> StageCosts::*of) {
  std::vector<double> sums;
  for (int j = 0; j < spec.n_chains(); ++j) {
    double sum = overhead_s;
    for (int k = 0; k < static_cast<int>(spec.stages.size()); ++k) {
      const int model = spec.chains[static_cast<size_t>(j)][2 * static_cast<size_t>(k)];
      const StageCosts& stage = costs_of(costs.stages, k, model);
      sum += (stage.*of)[batch * stage.counts.size() + place_of(stage, cost_count(spec, j, k))];
    }
    sums.push_back(sum);
  }
  return sums;
}

// Rises with the count at every batch, falls (`per_request`) or rises with the batch at every count: both in
// turns, which ends where neither changes anything.
void make_monotone(std::vector<double>& values, size_t n_batches, size_t n, bool per_request) {
  std::vector<double> column(n_batches);
  for (int turn = 0; turn < 20; ++turn) {
    for (size_t c = 0; c < n; ++c) {
      for (size_t b = 0; b < n_batches; ++b)
        column[b] = values[(per_request ? n_batches - 1 - b : b) * n + c];
      make_rising(column);
      for (size_t b = 0; b < n_batches; ++b)
        values[(per_request ? n_batches - 1 - b : b) * n + c] = column[b];
    }
    for (size_t b = 0; b < n_batches; ++b) make_rising(std::span(values).subspan(b * n, n));
  }
}

class CostMeter {
 public:
  CostMeter(const CascadeSpec& spec, meter::PowerMeter& meter, const CostMeasureOptions& options)
      : spec_(spec), meter_(meter), options_(options) {}

  Result<CascadeCosts> run(const std::string& folder, const std::string& split) {
    FRUGAL_TRY(requests_, load_requests(folder, split, spec_));
    if (requests_.n == 0) return {ErrorCode::kCorrupt, folder + ": no requests in split '" + split + "'"};
    const int most = options_.batches.back();
    FRUGAL_TRY(runner_,
               CascadeRunner::load(folder, spec_, {.n_threads = options_.n_threads, .max_batch = most}));
    costs_.batches = options_.batches;
    lay_out();
    const meter::Snapshot start = meter_.snapshot();
    const double cpu = process_cpu_seconds(), wall = wall_seconds();
    for (size_t b = 0; b < options_.batches.size(); ++b) FRUGAL_TRY_STATUS(measure(b));
    Usage usage;
    usage.cpu_seconds = process_cpu_seconds() - cpu;
    usage.wall_seconds = wall_seconds() - wall;
    const meter::Charge charge = meter_.charge(start, usage);
    costs_.joules_per_cpu_s = charge.cpu_j.scaled(1 / usage.cpu_seconds);
    costs_.cpu_name = meter_.source().cpu_name;
    for (StageCosts& stage : costs_.stages) {
      stage.cpu_raw_s = stage.cpu_s;
      make_monotone(stage.cpu_s, costs_.batches.size(), stage.counts.size(), true);
      make_monotone(stage.wall_s, costs_.batches.size(), stage.counts.size(), false);
    }
    std::vector<double> errors;
    const auto whole = costs_.cpu_s(spec_, costs_.batches.size() - 1);
    for (size_t c = 0; c < chains_.size(); ++c)
      errors.push_back(std::fabs(whole[static_cast<size_t>(chains_[c])] / direct_s_[c] - 1));
    costs_.error = median(errors);
    return std::move(costs_);
  }

 private:
  void lay_out() {
    for (int k = 0; k < static_cast<int>(spec_.stages.size()); ++k) {
      for (int m = 0; m < static_cast<int>(spec_.stages[static_cast<size_t>(k)].models.size()); ++m) {
        StageCosts stage{k, m, {}, {}, {}, {}};
        for (int j = 0; j < spec_.n_chains(); ++j) {
          if (spec_.chains[static_cast<size_t>(j)][2 * static_cast<size_t>(k)] == m)
            stage.counts.push_back(cost_count(spec_, j, k));
        }
        std::sort(stage.counts.begin(), stage.counts.end());
        stage.counts.erase(std::unique(stage.counts.begin(), stage.counts.end()), stage.counts.end());
        stage.cpu_s.resize(stage.counts.size() * costs_.batches.size());
        stage.wall_s.resize(stage.cpu_s.size());
        if (!stage.counts.empty()) costs_.stages.push_back(std::move(stage));
      }
    }
    choose_chains();
  }

  // Drawn, until each model and count of a stage is met often enough: a stage costs what it costs in any
  // chain.
  void choose_chains() {
    std::vector<int> order(spec_.chains.size());
    std::iota(order.begin(), order.end(), 0);
    Rng rng(1, 92);
    for (size_t i = order.size(); i > 1; --i)
      std::swap(order[i - 1], order[rng.below(static_cast<uint32_t>(i))]);
    std::map<std::tuple<int, int, int>, int> met;  // by stage, model, count
    for (const int j : order) {
      bool wanted = false;
      std::vector<int*> cells;
      for (int k = 0; k < static_cast<int>(spec_.stages.size()); ++k) {
        const int model = spec_.chains[static_cast<size_t>(j)][2 * static_cast<size_t>(k)];
        cells.push_back(&met[{k, model, cost_count(spec_, j, k)}]);
        wanted |= *cells.back() < options_.covered;
      }
      if (!wanted) continue;
      for (int* cell : cells) ++*cell;
      chains_.push_back(j);
    }
  }

  // Every chosen chain serves `batch` requests at a time, other ones in every round; one round warms up.
  Status measure(size_t b) {
    const int batch = options_.batches[b];
    const int repeats = std::max(3, 16 / batch);
    struct Seen {
      std::vector<double> cpu_s, wall_s;
    };
    std::map<std::pair<size_t, size_t>, Seen> seen;  // by stage (of costs_) and count
    std::vector<std::vector<double>> direct(chains_.size());
    std::vector<double> overhead;
    std::vector<std::vector<int>> items;
    Rng rng(1, 91);
    for (int round = -1; round < options_.rounds; ++round) {
      if (options_.progress) {
        options_.progress(strf("costs, %d requests together, ", batch) +
                          (round < 0 ? "warming up" : strf("round %d of %d", round + 1, options_.rounds)));
      }
      std::map<std::pair<size_t, size_t>, StageTime> of_round;
      for (size_t c = 0; c < chains_.size(); ++c) {
        const int j = chains_[c];
        double cpu = 0;
        // As under load, where a chain in use is served time and again: the first one finds its models.
        for (int repeat = -1; repeat < repeats; ++repeat) {
          if (repeat <= 0) cpu = 0, runner_->reset_times();
          std::vector<CascadeRequest> together;
          for (int i = 0; i < batch; ++i)
            together.push_back(requests_.request(rng.below(static_cast<uint32_t>(requests_.n)), j));
          const double start = process_cpu_seconds();
          FRUGAL_TRY_STATUS(runner_->serve(together, items));
          cpu += process_cpu_seconds() - start;
        }
        if (round < 0) continue;
        double inside = 0;
        for (const auto& [key, time] : runner_->times()) {
          const StageCosts& stage = costs_of(costs_.stages, key.stage, key.model);
          StageTime& sum = of_round[{static_cast<size_t>(&stage - costs_.stages.data()),
                                     place_of(stage, cost_count(spec_, j, key.stage))}];
          sum.requests += time.requests;
          sum.calls += time.calls;
          sum.cpu_s += time.cpu_s;
          sum.wall_s += time.wall_s;
          inside += time.cpu_s;
        }
        direct[c].push_back(cpu / (repeats * batch));
        overhead.push_back((cpu - inside) / (repeats * batch));
      }
      for (const auto& [key, time] : of_round) {
        seen[key].cpu_s.push_back(time.cpu_s / time.requests);
        seen[key].wall_s.push_back(time.wall_s / time.calls);
      }
    }
    for (const auto& [key, times] : seen) {
      StageCosts& stage = costs_.stages[key.first];
      stage.cpu_s[b * stage.counts.size() + key.second] = median(times.cpu_s);
      stage.wall_s[b * stage.counts.size() + key.second] = median(times.wall_s);
    }
    if (b + 1 < options_.batches.size()) return {};
    for (const auto& times : direct) direct_s_.push_back(median(times));
    costs_.overhead_s = median(overhead);
    return {};
  }

  const CascadeSpec& spec_;
  meter::PowerMeter& meter_;
  const CostMeasureOptions& options_;
  RequestSet requests_;
  std::unique_ptr<CascadeRunner> runner_;
  CascadeCosts costs_;
  std::vector<int> chains_;       // that are served
  std::vector<double> direct_s_;  // of those, at the largest batch
};

}  // namespace

std::vector<double> CascadeCosts::cpu_s(const CascadeSpec& spec, size_t batch) const {
  return sum_stages(*this, spec, batch, overhead_s, &StageCosts::cpu_s);
}

std::vector<double> CascadeCosts::latency_s(const CascadeSpec& spec, size_t batch) const {
  return sum_stages(*this, spec, batch, 0, &StageCosts::wall_s);
}

Result<CascadeCosts> measure_costs(const std::string& folder, const std::string& split,
                                   const CascadeSpec& spec, meter::PowerMeter& meter,
                                   const CostMeasureOptions& options) {
  if (options.batches.empty() || options.batches.front() < 1 || options.batches.back() > 1024 ||
      !std::is_sorted(options.batches.begin(), options.batches.end()) || options.rounds < 1 ||
      options.covered < 1) {
    return {ErrorCode::kInvalidArgument,
            "batches ascend and lie in [1, 1024], rounds and covered are at least 1"};
  }
  return CostMeter(spec, meter, options).run(folder, split);
}

Status save_costs(const std::string& path, const CascadeCosts& costs) {
  nlohmann::json json = {{"format", "frugal-cascade-costs"},
                         {"version", 1},
                         {"cpu", costs.cpu_name},
                         {"batches", costs.batches},
                         {"overhead_s", costs.overhead_s},
                         {"error", costs.error},
                         {"joules_per_cpu_s",
                          {{"value", costs.joules_per_cpu_s.value},
                           {"low", costs.joules_per_cpu_s.low},
                           {"high", costs.joules_per_cpu_s.high},
                           {"provenance", static_cast<int>(costs.joules_per_cpu_s.provenance)}}}};
  for (const StageCosts& stage : costs.stages) {
    json["stages"].push_back({{"stage", stage.stage},
                              {"model", stage.model},
                              {"counts", stage.counts},
                              {"cpu_s", stage.cpu_s},
                              {"wall_s", stage.wall_s},
                              {"cpu_raw_s", stage.cpu_raw_s}});
  }
  return write_file_atomically(path,
                               json.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

Result<CascadeCosts> load_costs(const std::string& path, const CascadeSpec& spec) {
  FRUGAL_TRY(const std::string text, read_file(path, size_t{16} << 20));
  CascadeCosts costs;
  const auto corrupt = [&](const std::string& why) { return Error{ErrorCode::kCorrupt, path + ": " + why}; };
  try {
    const auto json = nlohmann::json::parse(text);
    if (json.at("format") != "frugal-cascade-costs" || json.at("version") != 1)
      return Error{ErrorCode::kUnsupported, path + ": not frugal-cascade-costs of version 1"};
    costs.cpu_name = json.at("cpu").get<std::string>();
    costs.batches = json.at("batches").get<std::vector<int>>();
    costs.overhead_s = json.at("overhead_s").get<double>();
    costs.error = json.at("error").get<double>();
    const auto& joules = json.at("joules_per_cpu_s");
    const int provenance = joules.at("provenance").get<int>();
    if (provenance < 0 || provenance > static_cast<int>(Provenance::kAssumed))
      return corrupt("an unknown provenance");
    costs.joules_per_cpu_s = {joules.at("value").get<double>(), joules.at("low").get<double>(),
                              joules.at("high").get<double>(), static_cast<Provenance>(provenance)};
    for (const auto& one : json.at("stages")) {
      costs.stages.push_back(
          {one.at("stage").get<int>(), one.at("model").get<int>(), one.at("counts").get<std::vector<int>>(),
           one.at("cpu_s").get<std::vector<double>>(), one.at("wall_s").get<std::vector<double>>(),
           one.at("cpu_raw_s").get<std::vector<double>>()});
    }
  } catch (const nlohmann::json::exception& error) {
    return corrupt(error.what());
  }
  if (costs.batches.empty()) return corrupt("no batches");
  const auto sound = [](double x) { return std::isfinite(x) && x >= 0; };
  if (!sound(costs.overhead_s) || !sound(costs.joules_per_cpu_s.value))
    return corrupt("overhead and joules are finite and not negative");
  for (const StageCosts& stage : costs.stages) {
    for (const auto* values : {&stage.cpu_s, &stage.wall_s, &stage.cpu_raw_s}) {
      if (values->size() != stage.counts.size() * costs.batches.size() ||
          !std::all_of(values->begin(), values->end(), sound))
        return corrupt("a stage's times are finite, not negative, and one for each batch and count");
    }
  }
  for (int j = 0; j < spec.n_chains(); ++j) {
    for (int k = 0; k < static_cast<int>(spec.stages.size()); ++k) {
      const int model = spec.chains[static_cast<size_t>(j)][2 * static_cast<size_t>(k)];
      const auto found = std::find_if(costs.stages.begin(), costs.stages.end(), [&](const StageCosts& one) {
        return one.stage == k && one.model == model &&
               std::binary_search(one.counts.begin(), one.counts.end(), cost_count(spec, j, k));
      });
      if (found == costs.stages.end())
        return corrupt("of another cascade: nothing is said of " + chain_name(spec, j));
    }
  }
  return costs;
}

RankComparison compare_ranks(std::span<const double> flops, std::span<const double> cpu_s, int n_worst) {
  RankComparison result;
  result.spearman = spearman(flops, cpu_s);
  for (size_t i = 0; i < flops.size(); ++i) {
    for (size_t j = 0; j < flops.size(); ++j) {
      if (!(flops[i] < flops[j]) || cpu_s[i] == cpu_s[j]) continue;
      ++result.pairs;
      if (cpu_s[i] < cpu_s[j]) continue;
      ++result.swapped;
      result.worst.push_back(
          {static_cast<int>(i), static_cast<int>(j), flops[i] / flops[j], cpu_s[i] / cpu_s[j]});
    }
  }
  const auto distance = [](const RankComparison::Pair& pair) { return pair.cpu_ratio / pair.flops_ratio; };
  std::sort(result.worst.begin(), result.worst.end(),
            [&](const auto& a, const auto& b) { return distance(a) > distance(b); });
  // A pair for each chain, or one chain would fill the list.
  std::vector<RankComparison::Pair> kept;
  for (const auto& pair : result.worst) {
    const bool known = std::any_of(kept.begin(), kept.end(), [&](const auto& one) {
      return one.cheap == pair.cheap || one.dear == pair.dear;
    });
    if (!known && static_cast<int>(kept.size()) < n_worst) kept.push_back(pair);
  }
  result.worst = std::move(kept);
  return result;
}

}  // namespace frugal::cascade
