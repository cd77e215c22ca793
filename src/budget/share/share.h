// Many allocators, one price: each keeps its own governor, and they share prices and accounts through a
// key-value bucket of NATS (JetStream).
//
//   leader        {"id", "prices"}: renewed at every sync by the one who leads, by compare-and-set on the
//                 revision. Whoever sees it unchanged for a lease by its own clock tries to take it: one
//                 wins.
//   use.<id>      {"at_s", "spent", "requests", "deciders"}: cumulative at that time of the wall clock, from
//                 each allocator at every sync.
//
// The leader's controller works on the accounts of all; the others follow its prices, and all count the whole
// use against the budget. Between reports, use is taken to go on at its last rate. When nothing has been
// heard from the bucket for `max_stale_s`, an allocator steers its own price, the others taken to go on as
// they were: until then the last good price holds.
#pragma once

#include <memory>
#include <string>

#include "frugal/budget.h"

namespace frugal::budget {

struct ShareOptions {
  std::string url = "nats://127.0.0.1:4222";
  std::string bucket = "frugal-price";  // letters, digits, '-' and '_'; one for each budget that is shared
  std::string id;                       // of this allocator, unique; empty: drawn at random
  double sync_s = 0.25;                 // between two syncs, > 0
  double lease_s = 1.5;                 // a leader silent for so long is taken for dead, > 2 sync_s
  double max_stale_s = 10;              // the last good price holds for so long, >= lease_s
};

struct ShareState {
  bool connected = false;
  bool leading = false;
  bool isolated = false;   // nothing heard for max_stale_s: this allocator steers its own price
  std::string id, leader;  // of this allocator and of who leads; empty: none heard of
  double price_age_s = 0;
  int allocators = 1;  // heard of within a lease, this one included
  uint64_t syncs = 0, failures = 0, elections = 0;
};

// Runs its own thread, which also ticks the governor at every sync: nobody else may tick it. A server that is
// not there is not an error: the allocator serves, tries again, and says so in the state.
class PriceShare {
 public:
  // kInvalidArgument: an option out of range. The governor's windows must be aligned
  // (GovernorOptions::align_windows). `now_s` gives the time that allocators share; default: the wall clock.
  static Result<std::unique_ptr<PriceShare>> start(std::shared_ptr<Governor> governor,
                                                   const ShareOptions& options);
  virtual ~PriceShare() = default;  // a leader's lease runs out by itself
  virtual ShareState state() const = 0;
};

}  // namespace frugal::budget
