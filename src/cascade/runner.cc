#include "cascade/runner.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"
#include "base/clock.h"
#include "base/text.h"

namespace frugal::cascade {

Status check_request(const CascadeSpec& spec, const CascadeRequest& request) {
  if (request.chain < 0 || request.chain >= spec.n_chains())
    return {ErrorCode::kInvalidArgument, strf("there is no chain %d", request.chain)};
  if (request.history.size() != static_cast<size_t>(spec.history_length)) {
    return {ErrorCode::kInvalidArgument, strf("a history of %zu items; the cascade takes %d (0 fills up)",
                                              request.history.size(), spec.history_length)};
  }
  for (const int64_t item : request.history) {
    if (item < 0 || item > spec.n_items) {
      return {ErrorCode::kInvalidArgument,
              strf("history names item %lld; there are 1 to %d", static_cast<long long>(item), spec.n_items)};
    }
  }
  return {};
}

Result<std::unique_ptr<CascadeRunner>> CascadeRunner::load(const std::string& folder, CascadeSpec spec,
                                                           const RunnerOptions& options) {
  FRUGAL_TRY_STATUS(check_cascade(spec));
  if (options.max_batch < 1 || options.max_batch > 1024 || options.n_threads < 1)
    return {ErrorCode::kInvalidArgument, "max_batch lies in [1, 1024], n_threads is at least 1"};
  if (spec.history_length < 1 || spec.n_items < 1)
    return {ErrorCode::kInvalidArgument, "the cascade names no history_length or no n_items: it cannot run"};
  auto runner = std::unique_ptr<CascadeRunner>(new CascadeRunner());
  for (size_t k = 0; k < spec.stages.size(); ++k) {
    runner->scorers_.emplace_back();
    for (size_t m = 0; m < spec.stages[k].models.size(); ++m) {
      FRUGAL_TRY(auto scorer,
                 options.open(folder, spec, static_cast<int>(k), static_cast<int>(m), options.n_threads));
      runner->scorers_.back().push_back(std::move(scorer));
    }
  }
  runner->all_items_.resize(static_cast<size_t>(spec.n_items) + 1);
  std::iota(runner->all_items_.begin(), runner->all_items_.end(), int64_t{0});
  runner->spec_ = std::move(spec);
  runner->options_ = options;
  return runner;
}

Status CascadeRunner::run_group(int stage, int model, std::span<const CascadeRequest> requests,
                                std::span<const size_t> members) {
  const auto length = static_cast<size_t>(spec_.history_length);
  const bool first = stage == 0, last = static_cast<size_t>(stage) + 1 == spec_.stages.size();
  for (size_t start = 0; start < members.size(); start += static_cast<size_t>(options_.max_batch)) {
    const size_t batch = std::min(members.size() - start, static_cast<size_t>(options_.max_batch));
    const double cpu = process_cpu_seconds(), wall = wall_seconds();
    // Members come by the number of their items, so rows of a batch are nearly alike; item 0 fills up.
    const size_t width = first ? all_items_.size() : pools_[members[start + batch - 1]].size();
    histories_.resize(batch * length);
    items_.assign(first ? 0 : batch * width, 0);
    for (size_t b = 0; b < batch; ++b) {
      const size_t i = members[start + b];
      std::copy(requests[i].history.begin(), requests[i].history.end(),
                histories_.begin() + static_cast<std::ptrdiff_t>(b * length));
      if (!first)
        std::copy(pools_[i].begin(), pools_[i].end(),
                  items_.begin() + static_cast<std::ptrdiff_t>(b * width));
    }
    Scorer& scorer = *scorers_[static_cast<size_t>(stage)][static_cast<size_t>(model)];
    FRUGAL_TRY(const std::span<float> scores,
               scorer.score(histories_, items_, static_cast<int>(batch), static_cast<int>(width)));
    if (scores.size() != batch * width) {
      return {ErrorCode::kCorrupt,
              strf("stage '%s' gave %zu scores for %zu requests of %zu items",
                   spec_.stages[static_cast<size_t>(stage)].name.c_str(), scores.size(), batch, width)};
    }
    for (size_t b = 0; b < batch; ++b) {
      const size_t i = members[start + b];
      const auto row = scores.subspan(b * width, width);
      if (first) {
        row[0] = -INFINITY;  // no item
        for (const int32_t item : requests[i].seen) {
          if (item > 0 && item <= spec_.n_items) row[static_cast<size_t>(item)] = -INFINITY;
        }
      }
      const std::span<const int64_t> pool = first ? all_items_ : pools_[i];
      const int place =
          spec_.chains[static_cast<size_t>(requests[i].chain)][static_cast<size_t>(2 * stage + 1)];
      const int keep = spec_.stages[static_cast<size_t>(stage)].counts[static_cast<size_t>(place)];
      selector_.best_items(pool, row.first(pool.size()), keep, last, best_);
      pools_[i].swap(best_);
    }
    StageTime& time = times_[{stage, model, first ? 0 : static_cast<int>(width)}];
    time.requests += static_cast<double>(batch);
    time.calls += 1;
    time.cpu_s += process_cpu_seconds() - cpu;
    time.wall_s += wall_seconds() - wall;
  }
  return {};
}

Status CascadeRunner::serve(std::span<const CascadeRequest> requests, std::vector<std::vector<int>>& items) {
  for (const CascadeRequest& request : requests) FRUGAL_TRY_STATUS(check_request(spec_, request));
  if (pools_.size() < requests.size()) pools_.resize(requests.size());
  for (auto& pool : pools_) pool.clear();
  for (size_t k = 0; k < spec_.stages.size(); ++k) {
    // Requests that go through the same model are scored together.
    std::map<int, std::vector<size_t>> groups;
    for (size_t i = 0; i < requests.size(); ++i)
      groups[spec_.chains[static_cast<size_t>(requests[i].chain)][2 * k]].push_back(i);
    for (auto& [model, members] : groups) {
      std::stable_sort(members.begin(), members.end(),
                       [&](size_t a, size_t b) { return pools_[a].size() < pools_[b].size(); });
      FRUGAL_TRY_STATUS(run_group(static_cast<int>(k), model, requests, members));
    }
  }
  items.resize(requests.size());
  for (size_t i = 0; i < requests.size(); ++i) items[i].assign(pools_[i].begin(), pools_[i].end());
  return {};
}

}  // namespace frugal::cascade
