// What a governor and its deciders share: the counters, and the terms that deciders decide by.
//
// A decider owns its counters (relaxed atomics that only it writes) and a copy of the priced costs, which it
// takes anew when the version has moved on; the governor adds the counters up at each tick. So a decision
// costs one atomic load, the argmax, and a few additions, whatever the number of threads.
#pragma once

#include <array>
#include <atomic>
#include <limits>
#include <memory>
#include <mutex>
#include <vector>

#include "frugal/budget.h"

namespace frugal::budget {

inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

// What deciders need to know, replaced as a whole at each tick.
struct Terms {
  std::vector<double> prices;
  Amounts scale{1, 1, 1, 1};
  // Of the window, each decider's share, less what the cheapest chains of the requests still to come will
  // take: what may be spent beyond the cheapest.
  Amounts left{kInfinity, kInfinity, kInfinity, kInfinity};
  Amounts alarm{kInfinity, kInfinity, kInfinity,
                kInfinity};  // spending since the tick that calls for another
  uint64_t tick = 0;         // `left` and `alarm` are of this tick; prices may change within it
};

// Counters of one decider since it was opened. One writer, any reader.
struct Counters {
  std::array<std::atomic<double>, kMaxResources> spent{};
  std::atomic<double> reward{0};
  std::array<std::atomic<uint64_t>, 4> kinds{};  // by DecisionKind
};

struct Shared {
  std::shared_ptr<const ChainTable> table;
  std::atomic<uint64_t> version{1};
  std::atomic<bool> tick_wanted{false};
  mutable std::mutex mutex;  // guards what follows
  Terms terms;
  std::vector<std::shared_ptr<Counters>> open, closed;  // `closed`: not yet added up for the last time
  std::vector<float> sample;                            // [sample_size, n_chains], a ring
  size_t sample_next = 0, sample_filled = 0, sample_size = 0;
  int sample_every = 1;
};

struct Totals {
  Amounts spent{};
  double reward = 0;
  std::array<uint64_t, 4> kinds{};
  double others = 0;  // requests of other allocators
  uint64_t own_requests() const { return kinds[0] + kinds[1] + kinds[2] + kinds[3]; }
  double requests() const { return static_cast<double>(own_requests()) + others; }
  void add(const Counters& counters) {
    for (size_t k = 0; k < spent.size(); ++k) spent[k] += counters.spent[k].load(std::memory_order_relaxed);
    for (size_t kind = 0; kind < kinds.size(); ++kind) {
      kinds[kind] += counters.kinds[kind].load(std::memory_order_relaxed);
    }
    reward += counters.reward.load(std::memory_order_relaxed);
  }
};

// Of one decider.
struct Decider::Impl {
  std::shared_ptr<Shared> shared;
  std::shared_ptr<Counters> counters = std::make_shared<Counters>();
  uint64_t version = 0;
  Terms terms;
  std::vector<float> priced;      // [n_chains]
  std::vector<double> scaled;     // [n_chains, n_resources]: cost as charged
  Amounts since_tick{}, extra{};  // spent, and spent beyond the cheapest chain's cost
  int until_sample = 0;

  size_t n_resources() const { return static_cast<size_t>(shared->table->n_resources()); }
  void refresh();
  void keep_sample(std::span<const float> rewards);
  // `cost`: [n_resources] of the chosen chain, `fallback_cost` of the cheapest.
  Decision settle(int chain, DecisionKind kind, std::span<const float> rewards, const double* cost,
                  const double* fallback_cost, double price_of_chain);
};

}  // namespace frugal::budget
