// Jobs for several hosts: a work queue of JetStream, from which each host's runner takes what its own queue
// can bear.
//
// A message of the stream is a job, and stays there until the job is over: whoever took it holds a lease and
// extends it. A host that falls silent loses its leases, and the server offers its jobs to the others. What
// became of each job stands in a key-value bucket, written by compare-and-set, so that of two hosts that
// believe to hold a job one is told that it does not. A job that had begun on a lost host is begun again only
// if it may be (restartable, or with checkpoints); else it is interrupted, as on a single host.
// docs/formats/jobs.md has the layout.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "frugal/result.h"
#include "jobs/queue.h"

namespace frugal::jobs {

struct PoolOptions {
  std::string url = "nats://127.0.0.1:4222";
  std::string credentials;           // a .creds file
  std::string name = "frugal_jobs";  // of stream and bucket
  std::string host;                  // this host's name, for the others to read
  double lease_s = 60;               // of the stream: fixed by whoever makes it
};

// A job of the pool as everybody sees it.
struct PooledJob {
  std::string id;
  Job job;                // command, deadline, length, state, exit code, energy, times
  std::string host;       // that has it; empty: none yet
  std::vector<Run> runs;  // that took place, of a job that is over
  bool cancel = false;    // somebody asked for its end
  uint64_t revision = 0;
};

// A job that this host may take.
struct Offer {
  PooledJob pooled;
  std::string lease;  // to be kept beside the job
};

// Thread-safe for one thread at a time.
class Pool {
 public:
  // Makes stream and bucket when they are missing. kUnavailable: no server; kUnsupported: without JetStream.
  static Result<std::unique_ptr<Pool>> open(const PoolOptions& options);
  virtual ~Pool() = default;

  // Acknowledged: it is on the server's disk. Returns its id. kInvalidArgument as Queue::submit().
  virtual Result<std::string> submit(const Job& job) = 0;
  // Every job that is known, newest last.
  virtual Result<std::vector<PooledJob>> list() = 0;
  // False: over already. kNotFound.
  virtual Result<bool> cancel(const std::string& id) = 0;
  // Submits a job anew that is over and not done, and returns its new id: the old one stays as it ended.
  // kInvalidArgument: it is not over, done, or was retried already; kNotFound.
  virtual Result<std::string> retry(const std::string& id) = 0;

  // The next job that waits; nothing: none does.
  virtual Result<std::optional<Offer>> next() = 0;
  // Makes it this host's. False: another one's meanwhile.
  virtual Result<bool> take(const Offer& offer) = 0;
  // Leaves it to the others, who are offered it after `delay_s`.
  virtual Status leave(const Offer& offer, double delay_s) = 0;

  // What a holder finds when it extends its lease.
  enum class Held { kYes, kCancel, kNo };
  virtual Result<Held> extend(const std::string& id, const std::string& lease) = 0;
  // Tells state, times, energy and runs of `job`; one that is over leaves the stream. False: it is not this
  // host's any more.
  virtual Result<bool> tell(const std::string& id, const std::string& lease, const Job& job,
                            const std::vector<Run>& runs = {}) = 0;

  virtual double lease_s() const = 0;  // as the stream has it
};

}  // namespace frugal::jobs
