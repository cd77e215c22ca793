#include "dnn/link/local.h"

#include <chrono>
#include <thread>

#include "base/clock.h"
#include "base/text.h"

namespace frugal::dnn {
namespace {

void sleep_seconds(double seconds) {
  if (seconds > 0) std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
}

uint64_t bytes_of(const Values& values) {
  uint64_t bytes = 0;
  for (const auto& [t, tensor] : values) bytes += tensor.bytes.size();
  return bytes;
}

}  // namespace

LocalHop::LocalHop(std::shared_ptr<TierRunner> runner, std::shared_ptr<Hop> next, const Link& link)
    : runner_(std::move(runner)), next_(std::move(next)), link_(link) {}

void LocalHop::set_link(const Link& link) {
  const std::lock_guard lock(mutex_);
  link_ = link;
}

Status LocalHop::prepare(const Division& division) {
  FRUGAL_TRY_STATUS(runner_->prepare(division));
  return next_ ? next_->prepare(division) : Status();
}

// The wire carries one frame at a time; latency overlaps.
void LocalHop::cross(double latency, double seconds) {
  {
    const std::lock_guard lock(wire_mutex_);
    sleep_seconds(seconds);
  }
  sleep_seconds(latency);
}

Result<Values> LocalHop::run(const Division& division, Values inputs, FrameCost& cost) {
  Link link;
  {
    const std::lock_guard lock(mutex_);
    link = link_;
  }
  const Error down{ErrorCode::kUnavailable, strf("tier %d does not answer", runner_->k())};
  if (!up_) return down;
  const auto wire = static_cast<size_t>(runner_->k() - 1);
  const uint64_t up = bytes_of(inputs);
  const double start = wall_seconds();
  cross(link.latency_seconds, link.tensor_seconds * static_cast<double>(inputs.size()) +
                                  static_cast<double>(up) / link.up_bytes_per_second);
  const double there = wall_seconds();
  auto ran = run_from(*runner_, next_.get(), division, std::move(inputs), cost);
  if (!ran.ok()) return beyond(ran.error());
  Values outputs = *std::move(ran);
  const double done = wall_seconds();
  if (!up_) return down;
  const uint64_t back = bytes_of(outputs);
  cross(link.latency_seconds, link.tensor_seconds * static_cast<double>(outputs.size()) +
                                  static_cast<double>(back) / link.down_bytes_per_second);
  if (wire < cost.up_bytes.size()) {
    cost.up_bytes[wire] += up;
    cost.down_bytes[wire] += back;
    cost.link_seconds[wire] += there - start + wall_seconds() - done;
  }
  return outputs;
}

LocalPeers::LocalPeers(std::vector<std::shared_ptr<TierRunner>> peers, double latency_seconds,
                       double bytes_per_second)
    : peers_(std::move(peers)), latency_seconds_(latency_seconds), bytes_per_second_(bytes_per_second) {}

Result<std::vector<HostTensor>> LocalPeers::run_tile(size_t worker, const TileJob& job) {
  if (worker == 0 || worker > peers_.size()) {
    return Error{ErrorCode::kUnavailable, strf("there is no worker %zu", worker)};
  }
  const auto carry = [&](std::mutex& wire, size_t bytes) {
    const std::lock_guard lock(wire);
    sleep_seconds(static_cast<double>(bytes) / bytes_per_second_);
  };
  size_t n_in = 0, n_out = 0;
  for (const TileJob::Piece& piece : job.pieces) n_in += piece.tensor.bytes.size();
  carry(out_mutex_, n_in);
  sleep_seconds(latency_seconds_);
  FRUGAL_TRY(std::vector<HostTensor> outputs, peers_[worker - 1]->run_tile(job));
  for (const HostTensor& output : outputs) n_out += output.bytes.size();
  sleep_seconds(latency_seconds_);
  carry(in_mutex_, n_out);
  return outputs;
}

}  // namespace frugal::dnn
