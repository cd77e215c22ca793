#include "cascade/runner.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cfloat>
#include <cmath>
#include <numeric>

#include "base/check.h"
#include "base/clock.h"
#include "base/text.h"

namespace frugal::cascade {

namespace {

// Ascending keys are descending scores, equals by their place; what is not finite comes last.
uint64_t rank_key(float score, size_t place) {
  if (!std::isfinite(score)) score = -INFINITY;
  score += 0.0f;  // of two zeros neither comes first
  uint32_t bits = std::bit_cast<uint32_t>(score);
  bits = (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;  // the order of floats as one of integers
  return (uint64_t{~bits} << 32) | place;
}

// Marks the `keep` best of the scores. Counted into buckets by score, all is decided but for the one bucket
// that the last place falls into, and only that is looked at closely: a third of the time of nth_element
// over a catalogue.
void mark_best(std::span<const float> scores, size_t keep, std::vector<uint8_t>& chosen) {
  constexpr int kBuckets = 512;
  float least = INFINITY, most = -INFINITY;
  for (const float score : scores) {
    const bool finite = std::fabs(score) <= FLT_MAX;
    least = std::min(least, finite ? score : least);
    most = std::max(most, finite ? score : most);
  }
  const float scale = most > least ? static_cast<float>(kBuckets - 2) / (most - least) : 0;
  // Buckets rise as scores fall (subtraction, product and rounding keep the order); the last is for what is
  // not finite.
  std::vector<uint16_t> bucket(scores.size());
  for (size_t i = 0; i < scores.size(); ++i) {
    const bool finite = std::fabs(scores[i]) <= FLT_MAX;
    const float place = finite ? std::min((most - scores[i]) * scale, static_cast<float>(kBuckets - 2)) : 0;
    bucket[i] = static_cast<uint16_t>(finite ? static_cast<int>(place) : kBuckets - 1);
  }
  std::array<uint32_t, kBuckets> count{};
  for (const uint16_t b : bucket) ++count[b];
  size_t above = 0, last = 0;
  while (last + 1 < kBuckets && above + count[last] < keep) above += count[last++];
  std::vector<uint64_t> close;
  chosen.resize(scores.size());
  for (size_t i = 0; i < scores.size(); ++i) {
    chosen[i] = bucket[i] < last;
    if (bucket[i] == last) close.push_back(rank_key(scores[i], i));
  }
  const size_t wanted = keep - above;
  if (wanted < close.size())
    std::nth_element(close.begin(), close.begin() + static_cast<std::ptrdiff_t>(wanted), close.end());
  for (size_t i = 0; i < wanted; ++i) chosen[static_cast<uint32_t>(close[i])] = 1;
}

}  // namespace

std::vector<int64_t> best_items(std::span<const int64_t> pool, std::span<const float> scores, int keep,
                                bool ordered) {
  FRUGAL_CHECK(pool.size() == scores.size());
  const size_t n = std::min(pool.size(), static_cast<size_t>(std::max(keep, 0)));
  std::vector<int64_t> best;
  best.reserve(n + 1);
  if (ordered) {
    std::vector<uint64_t> keys(pool.size());
    for (size_t i = 0; i < keys.size(); ++i) keys[i] = rank_key(scores[i], i);
    std::partial_sort(keys.begin(), keys.begin() + static_cast<std::ptrdiff_t>(n), keys.end());
    for (size_t i = 0; i < n; ++i) best.push_back(pool[static_cast<uint32_t>(keys[i])]);
    return best;
  }
  if (n == pool.size()) return {pool.begin(), pool.end()};
  std::vector<uint8_t> chosen;
  mark_best(scores, n, chosen);
  best.resize(n + 1);
  size_t to = 0;
  for (size_t i = 0; i < chosen.size() && to < n; ++i) {
    best[to] = pool[i];
    to += chosen[i];
  }
  best.resize(n);
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
  runner->all_items_.resize(static_cast<size_t>(spec.n_items) + 1);
  std::iota(runner->all_items_.begin(), runner->all_items_.end(), int64_t{0});
  runner->spec_ = std::move(spec);
  runner->options_ = options;
  return runner;
}

Status CascadeRunner::run_group(int stage, int model, std::span<const CascadeRequest> requests,
                                std::span<const size_t> members, std::vector<Pool>& pools) {
  const auto length = static_cast<size_t>(spec_.history_length);
  const bool first = stage == 0, last = static_cast<size_t>(stage) + 1 == spec_.stages.size();
  for (size_t start = 0; start < members.size(); start += static_cast<size_t>(options_.max_batch)) {
    const size_t batch = std::min(members.size() - start, static_cast<size_t>(options_.max_batch));
    const double cpu = process_cpu_seconds(), wall = wall_seconds();
    // Members come by the number of their items, so rows of a batch are nearly alike; item 0 fills up.
    const size_t width = first ? all_items_.size() : pools[members[start + batch - 1]].items.size();
    histories_.resize(batch * length);
    items_.assign(first ? 0 : batch * width, 0);
    for (size_t b = 0; b < batch; ++b) {
      const size_t i = members[start + b];
      std::copy(requests[i].history.begin(), requests[i].history.end(),
                histories_.begin() + static_cast<std::ptrdiff_t>(b * length));
      if (!first)
        std::copy(pools[i].items.begin(), pools[i].items.end(),
                  items_.begin() + static_cast<std::ptrdiff_t>(b * width));
    }
    Scorer& scorer = *scorers_[static_cast<size_t>(stage)][static_cast<size_t>(model)];
    FRUGAL_TRY_STATUS(
        scorer.score(histories_, items_, static_cast<int>(batch), static_cast<int>(width), scores_));
    if (scores_.size() != batch * width) {
      return {ErrorCode::kCorrupt,
              strf("stage '%s' gave %zu scores for %zu requests of %zu items",
                   spec_.stages[static_cast<size_t>(stage)].name.c_str(), scores_.size(), batch, width)};
    }
    for (size_t b = 0; b < batch; ++b) {
      const size_t i = members[start + b];
      const auto row = std::span(scores_).subspan(b * width, width);
      if (first) {
        row[0] = -INFINITY;  // no item
        for (const int32_t item : requests[i].seen) {
          if (item > 0 && item <= spec_.n_items) row[static_cast<size_t>(item)] = -INFINITY;
        }
      }
      const auto& pool = first ? all_items_ : pools[i].items;
      const int place =
          spec_.chains[static_cast<size_t>(requests[i].chain)][static_cast<size_t>(2 * stage + 1)];
      pools[i].items =
          best_items(pool, row.first(pool.size()),
                     spec_.stages[static_cast<size_t>(stage)].counts[static_cast<size_t>(place)], last);
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
  std::vector<Pool> pools(requests.size());
  for (size_t k = 0; k < spec_.stages.size(); ++k) {
    // Requests that go through the same model are scored together.
    std::map<int, std::vector<size_t>> groups;
    for (size_t i = 0; i < requests.size(); ++i)
      groups[spec_.chains[static_cast<size_t>(requests[i].chain)][2 * k]].push_back(i);
    for (auto& [model, members] : groups) {
      std::stable_sort(members.begin(), members.end(),
                       [&](size_t a, size_t b) { return pools[a].items.size() < pools[b].items.size(); });
      FRUGAL_TRY_STATUS(run_group(static_cast<int>(k), model, requests, members, pools));
    }
  }
  items.resize(requests.size());
  for (size_t i = 0; i < requests.size(); ++i) items[i].assign(pools[i].items.begin(), pools[i].items.end());
  return {};
}

}  // namespace frugal::cascade
