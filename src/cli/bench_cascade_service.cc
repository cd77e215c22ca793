// bench cascade: decisions a second, in process and over HTTP.
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <filesystem>
#include <thread>

#include "base/clock.h"
#include "base/file.h"
#include "base/text.h"
#include "cascade/serve/sidecar.h"
#include "cascade/synthetic.h"
#include "cli/bench_cascade.h"

namespace frugal::cli {
namespace {

struct Rate {
  double per_second = 0, p99_us = 0;
};

// Features in, chain out: reward inference, pricing, accounts; one thread. The best of `rounds` rounds, since
// other work on the machine can only slow it down.
Rate decision_rate(int n_chains, int rounds) {
  const auto world = cascade::SyntheticWorld::create({.n_chains = n_chains}).value();
  cascade::TrainOptions train;
  train.epochs = 1;
  const auto model = cascade::RewardModel::train(world.spec(), world.logs(2000, 1), train).value();
  const auto table = cascade::chain_table(world.spec(), {}).value();
  budget::ResourceOptions flops;
  flops.budget = budget::Schedule::constant(1e12);
  flops.initial_price = 1e-8;
  auto governor = budget::Governor::create(table, {flops}, {}).value();
  auto decider = governor->open_decider();
  constexpr size_t kRequests = 4096;
  const auto d = static_cast<size_t>(world.spec().n_features());
  std::vector<float> features(kRequests * d), rewards(static_cast<size_t>(n_chains));
  Rng rng(1);
  for (size_t i = 0; i < kRequests; ++i)
    world.features(world.draw(rng), std::span(features).subspan(i * d, d));
  Rate rate;
  double p99 = 1e9;
  for (int round = 0; round < rounds; ++round) {
    const double start = wall_seconds();
    for (size_t i = 0; i < kRequests; ++i) {
      model.predict(std::span(features).subspan(i * d, d), rewards);
      (void)decider->decide(rewards);
    }
    rate.per_second = std::max(rate.per_second, kRequests / (wall_seconds() - start));
    std::vector<double> each;
    for (size_t i = 0; i < kRequests; ++i) {
      const double at = wall_seconds();
      model.predict(std::span(features).subspan(i * d, d), rewards);
      (void)decider->decide(rewards);
      each.push_back(wall_seconds() - at);
    }
    std::nth_element(each.begin(), each.begin() + kRequests * 99 / 100, each.end());
    p99 = std::min(p99, 1e6 * each[kRequests * 99 / 100]);
  }
  rate.p99_us = p99;
  return rate;
}

struct Load {
  double per_second = 0, p99_ms = 0;
  std::string output;  // of wrk
};

// The sidecar on one core, wrk on another, over loopback: closed loop, so the core is saturated.
Result<Load> sidecar_load(int seconds) {
  const std::string stem =
      (std::filesystem::temp_directory_path() / strf("frugal_bench_%d", getpid())).string();
  const auto world = cascade::SyntheticWorld::create({}).value();
  cascade::TrainOptions train;
  train.epochs = 1;
  FRUGAL_TRY(const auto model, cascade::RewardModel::train(world.spec(), world.logs(2000, 1), train));
  FRUGAL_TRY_STATUS(model.save(stem + ".frm"));
  FRUGAL_TRY_STATUS(write_file_atomically(
      stem + ".lua",
      "wrk.method = 'POST'\nwrk.headers['Content-Type'] = 'application/json'\n"
      "wrk.body = '{\"features\":[0.3,-1.2,0.7,0.1,0.4,-0.3,1.1,0.2,-0.6,0.9,0.05,-0.8]}'\n"));
  cascade::SidecarOptions sidecar_options;
  sidecar_options.model_path = stem + ".frm";
  sidecar_options.flops_per_s = 1e12;
  FRUGAL_TRY(auto sidecar, cascade::Sidecar::create(world.spec(), sidecar_options));
  std::atomic<bool> stop{false};
  std::atomic<int> port{0};
  std::thread server([&] {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(0, &one);
    sched_setaffinity(0, sizeof one, &one);  // threads that it starts stay there, too
    (void)cascade::serve_http(*sidecar, "127.0.0.1", 0, 4, stop, [&](int bound) { port = bound; });
    if (port == 0) port = -1;
  });
  while (port == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  Load load;
  const std::string command = strf(
      "%swrk -t1 -c4 -d%ds --latency -s %s.lua http://127.0.0.1:%d/v1/decide 2>&1",
      std::thread::hardware_concurrency() > 1 ? "taskset -c 1 " : "", seconds, stem.c_str(), port.load());
  if (FILE* pipe = port > 0 ? popen(command.c_str(), "r") : nullptr; pipe != nullptr) {
    char line[512];
    while (std::fgets(line, sizeof line, pipe) != nullptr) {
      load.output += line;
      double value = 0;
      char unit[8] = "";
      if (std::sscanf(line, " 99%% %lf%7s", &value, unit) == 2)
        load.p99_ms = value * (unit[0] == 'u' ? 1e-3 : (unit[0] == 's' ? 1e3 : 1));
      if (std::sscanf(line, "Requests/sec: %lf", &value) == 1) load.per_second = value;
    }
    pclose(pipe);
  }
  stop = true;
  server.join();
  for (const char* end : {".frm", ".lua"}) std::filesystem::remove(stem + end);
  if (load.per_second == 0)
    return {ErrorCode::kNotFound, "wrk gave no figures (apt-get install wrk): " + load.output};
  return load;
}

}  // namespace

Status bench_cascade_service(CascadeBench& bench) {
  const Rate small = decision_rate(64, bench.quick ? 20 : 100),
             large = decision_rate(1000, bench.quick ? 5 : 25);
  bench.add("decisions_64", small.per_second, "1/s", "one core, reward inference included, best round");
  bench.add("decisions_64_p99", small.p99_us, "us", "in process, timer calls included");
  bench.add("decisions_1000", large.per_second, "1/s", "one core, reward inference included, best round");
  if (const auto load = sidecar_load(bench.quick ? 3 : 10); load.ok()) {
    bench.add("sidecar_p99_ms", load->p99_ms, "ms",
              "HTTP, wrk with 4 connections, the sidecar held to one core");
    bench.add("sidecar_rate", load->per_second, "1/s", "the same run: the rate that saturates the core");
  } else {
    bench.say("sidecar_p99_ms is left out: " + load.error().message);
  }
  return {};
}

}  // namespace frugal::cli
