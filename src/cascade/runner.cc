#include "cascade/runner.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "base/check.h"
#include "base/clock.h"
#include "base/text.h"

namespace frugal::cascade {

std::vector<int64_t> best_items(std::span<const int64_t> pool, std::span<const float> scores, int keep) {
  FRUGAL_CHECK(pool.size() == scores.size());
  std::vector<int> order(pool.size());
  std::iota(order.begin(), order.end(), 0);
  const auto value = [&](int i) {
    const float score = scores[static_cast<size_t>(i)];
    return std::isfinite(score) ? score : -INFINITY;
  };
  const size_t n = std::min(pool.size(), static_cast<size_t>(std::max(keep, 0)));
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(n), order.end(),
                    [&](int a, int b) {
                      const float x = value(a), y = value(b);
                      return x > y || (x == y && a < b);
                    });
  std::vector<int64_t> best(n);
  for (size_t i = 0; i < n; ++i) best[i] = pool[static_cast<size_t>(order[i])];
  return best;
}

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
  runner->spec_ = std::move(spec);
  runner->options_ = options;
  return runner;
}

Status CascadeRunner::run_group(const StageKey& key, int keep_count, std::span<const CascadeRequest> requests,
                                std::span<const size_t> members, std::vector<Pool>& pools) {
  const auto length = static_cast<size_t>(spec_.history_length);
  const bool first = key.stage == 0;
  const size_t width = first ? static_cast<size_t>(spec_.n_items) + 1 : static_cast<size_t>(key.n);
  for (size_t start = 0; start < members.size(); start += static_cast<size_t>(options_.max_batch)) {
    const size_t batch = std::min(members.size() - start, static_cast<size_t>(options_.max_batch));
    const double cpu = process_cpu_seconds(), wall = wall_seconds();
    histories_.resize(batch * length);
    items_.resize(first ? 0 : batch * width);
    for (size_t b = 0; b < batch; ++b) {
      const size_t i = members[start + b];
      std::copy(requests[i].history.begin(), requests[i].history.end(),
                histories_.begin() + static_cast<std::ptrdiff_t>(b * length));
      if (!first)
        std::copy(pools[i].items.begin(), pools[i].items.end(),
                  items_.begin() + static_cast<std::ptrdiff_t>(b * width));
    }
    Scorer& scorer = *scorers_[static_cast<size_t>(key.stage)][static_cast<size_t>(key.model)];
    FRUGAL_TRY_STATUS(
        scorer.score(histories_, items_, static_cast<int>(batch), static_cast<int>(width), scores_));
    if (scores_.size() != batch * width) {
      return {ErrorCode::kCorrupt,
              strf("stage '%s' gave %zu scores for %zu requests of %zu items",
                   spec_.stages[static_cast<size_t>(key.stage)].name.c_str(), scores_.size(), batch, width)};
    }
    for (size_t b = 0; b < batch; ++b) {
      const size_t i = members[start + b];
      const auto row = std::span(scores_).subspan(b * width, width);
      if (first) {
        row[0] = -INFINITY;  // no item
        for (const int32_t item : requests[i].seen) {
          if (item > 0 && item <= spec_.n_items) row[static_cast<size_t>(item)] = -INFINITY;
        }
        pools[i].items.resize(width);
        std::iota(pools[i].items.begin(), pools[i].items.end(), int64_t{0});
      }
      pools[i].items = best_items(pools[i].items, row, keep_count);
    }
    StageTime& time = times_[key];
    time.requests += static_cast<double>(batch);
    time.calls += 1;
    time.cpu_s += process_cpu_seconds() - cpu;
    time.wall_s += wall_seconds() - wall;
  }
  return {};
}

Status CascadeRunner::serve(std::span<const CascadeRequest> requests, std::vector<std::vector<int>>& items) {
  for (const CascadeRequest& request : requests) FRUGAL_TRY_STATUS(check_request(spec_, request));
  std::vector<Pool> pools(requests.size());
  for (size_t k = 0; k < spec_.stages.size(); ++k) {
    // Requests that go through the same model with as many items are scored together.
    std::map<std::pair<StageKey, int>, std::vector<size_t>> groups;
    for (size_t i = 0; i < requests.size(); ++i) {
      const auto& actions = spec_.chains[static_cast<size_t>(requests[i].chain)];
      const int keep = spec_.stages[k].counts[static_cast<size_t>(actions[2 * k + 1])];
      groups[{{static_cast<int>(k), actions[2 * k], static_cast<int>(pools[i].items.size())}, keep}]
          .push_back(i);
    }
    for (const auto& [key, members] : groups)
      FRUGAL_TRY_STATUS(run_group(key.first, key.second, requests, members, pools));
  }
  items.resize(requests.size());
  for (size_t i = 0; i < requests.size(); ++i) items[i].assign(pools[i].items.begin(), pools[i].items.end());
  return {};
}

}  // namespace frugal::cascade
