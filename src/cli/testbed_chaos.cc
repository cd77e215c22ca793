#include "cli/testbed_chaos.h"

#include "dnn/plan/sample.h"

#include <atomic>
#include <mutex>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/clock.h"
#include "base/rng.h"
#include "cli/console.h"

namespace frugal::cli {
namespace {
constexpr double kFrameSeconds = 0.1;
}

// Frames in throughput mode while workers die, links are cut and rates step. Faults come from this thread:
// the processes that it starts end with it.
Result<ChaosResult> run_chaos(Bench& bench, TestbedHosts& hosts, const std::string& near_name, int n_frames,
                              std::string& log) {
  FRUGAL_TRY(const dnn::Link near, dnn::named_link(near_name));
  FRUGAL_TRY(const dnn::Link far, dnn::named_link("fibre"));
  FRUGAL_TRY_STATUS(hosts.set_links(near, far));
  FRUGAL_TRY(const dnn::Cluster cluster, bench.cluster(near, far));
  dnn::CoordinatorOptions coordinator_options;
  coordinator_options.adapt = true;
  coordinator_options.retry_seconds = 0.25;
  dnn::Coordinator coordinator(bench.device, bench.edge, cluster, coordinator_options);
  std::vector<dnn::Values> inputs, expected;
  for (uint64_t seed = 1; seed <= 3; ++seed) {
    inputs.push_back(dnn::sample_frame(bench.network->graph(), seed));
    FRUGAL_TRY(dnn::Values outputs, run_whole(*bench.network, inputs.back()));
    expected.push_back(std::move(outputs));
  }
  ChaosResult result;
  result.n_frames = n_frames;
  std::vector<int> n_answers(static_cast<size_t>(n_frames), 0);
  std::atomic<bool> done{false};
  std::mutex log_mutex;
  const double begin = wall_seconds();
  const auto note = [&](nlohmann::ordered_json line) {
    line["at_s"] = wall_seconds() - begin;
    const std::lock_guard lock(log_mutex);
    log += line.dump() + "\n";
  };
  double last = wall_seconds();
  std::thread source([&] {
    dnn::FrameStream stream(coordinator, 3, [&](size_t index, Result<dnn::Values> outputs, double) {
      if (outputs.ok()) {
        ++n_answers[index];
        result.n_different += n_different(*outputs, expected[index % 3]);
      }
      const double gap = wall_seconds() - last;
      if (gap > 0.5) note({{"event", "gap"}, {"frame", index}, {"seconds", gap}});
      result.longest_gap_seconds = std::max(result.longest_gap_seconds, gap);
      last = wall_seconds();
    });
    for (int i = 0; i < n_frames && !interrupted(); ++i) {
      // As from a camera: faults come about as often as ten frames.
      const double due = begin + kFrameSeconds * i - wall_seconds();
      if (due > 0) std::this_thread::sleep_for(std::chrono::duration<double>(due));
      stream.push(inputs[static_cast<size_t>(i) % 3]);
    }
    stream.finish();
    done = true;
  });
  Rng rng(7);
  const auto pause = [&](double least, double most) {
    std::this_thread::sleep_for(std::chrono::duration<double>(least + (most - least) * rng.uniform()));
  };
  Status fault;
  while (!done && fault.ok()) {
    pause(0.2, 1.0);
    const uint32_t kind = rng.below(4);
    if (kind == 0) {
      const int i = static_cast<int>(rng.below(static_cast<uint32_t>(hosts.n_workers())));
      note({{"event", "kill"}, {"worker", i}});
      hosts.kill_worker(i);
      ++result.n_kills;
      pause(0.2, 1.0);
      note({{"event", "start"}, {"worker", i}});
      fault = hosts.start_worker(i);
    } else if (kind < 3) {
      (kind == 1 ? hosts.cut_near(true) : hosts.cut_far(true));
      ++result.n_cuts;
      note({{"event", "cut"}, {"link", kind == 1 ? "near" : "far"}});
      pause(0.2, 1.0);
      note({{"event", "whole"}, {"link", kind == 1 ? "near" : "far"}});
      (kind == 1 ? hosts.cut_near(false) : hosts.cut_far(false));
    } else {
      dnn::Link slow = near, slow_far = far;
      const double factor = 0.1 + rng.uniform();
      slow.up_bytes_per_second *= factor;
      slow_far.up_bytes_per_second *= factor;
      note({{"event", "rate"}, {"factor", factor}});
      fault = hosts.set_links(slow, slow_far);
      ++result.n_rate_steps;
    }
  }
  source.join();
  FRUGAL_TRY_STATUS(fault);
  for (const int n : n_answers) {
    result.n_lost += n == 0;
    result.n_twice += n > 1;
  }
  result.n_replans = coordinator.n_replans();
  result.n_retries = coordinator.n_retries();
  return result;
}

}  // namespace frugal::cli
