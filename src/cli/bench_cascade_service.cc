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
#include "cascade/serve/http.h"
#include "cascade/synthetic.h"
#include "cli/bench_cascade.h"
#include "cli/child_process.h"

namespace frugal::cli {
namespace {

struct Rates {
  std::vector<double> per_second, p99_us;  // by round
};

// Features in, chain out: reward inference, pricing, accounts; one thread.
Rates decision_rates(int n_chains, int rounds) {
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
  Rates rates;
  for (int round = 0; round <= rounds; ++round) {
    const double start = wall_seconds();
    for (size_t i = 0; i < kRequests; ++i) {
      model.predict(std::span(features).subspan(i * d, d), rewards);
      (void)decider->decide(rewards);
    }
    const double rate = kRequests / (wall_seconds() - start);
    std::vector<double> each;
    for (size_t i = 0; i < kRequests; ++i) {
      const double at = wall_seconds();
      model.predict(std::span(features).subspan(i * d, d), rewards);
      (void)decider->decide(rewards);
      each.push_back(wall_seconds() - at);
    }
    std::nth_element(each.begin(), each.begin() + kRequests * 99 / 100, each.end());
    if (round == 0) continue;  // warms up
    rates.per_second.push_back(rate);
    rates.p99_us.push_back(1e6 * each[kRequests * 99 / 100]);
  }
  return rates;
}

struct Load {
  double per_second = 0, p99_ms = 0, core_use = 0;
};

// What `wrk` says of a closed loop of `connections`, and how busy this process was meanwhile.
Result<Load> run_wrk(int port, const std::string& script, int connections, int seconds, std::string& said) {
  const double cpu = process_cpu_seconds(), start = wall_seconds();
  std::vector<std::string> words{"wrk",
                                 "-t1",
                                 strf("-c%d", connections),
                                 strf("-d%ds", seconds),
                                 "--latency",
                                 "-s",
                                 script,
                                 strf("http://127.0.0.1:%d/v1/decide", port)};
  if (std::thread::hardware_concurrency() > 1) words.insert(words.begin(), {"taskset", "-c", "1"});
  FRUGAL_TRY(const ChildOutput out, run_command(words, /*with_stderr=*/true));
  Load load;
  load.core_use = (process_cpu_seconds() - cpu) / (wall_seconds() - start);
  said = out.text;
  bool failed = false;
  for (const std::string& line : split(out.text, '\n')) {
    double value = 0;
    char unit[8] = "";
    if (std::sscanf(line.c_str(), " 99%% %lf%7s", &value, unit) == 2)
      load.p99_ms = value * (unit[0] == 'u' ? 1e-3 : (unit[0] == 's' ? 1e3 : 1));
    if (std::sscanf(line.c_str(), "Requests/sec: %lf", &value) == 1) load.per_second = value;
    failed |= line.find("Non-2xx") != std::string::npos || line.find("Socket errors") != std::string::npos;
  }
  if (load.per_second == 0 || failed)
    return {ErrorCode::kUnavailable, "wrk gave no clean figures (apt-get install wrk): " + out.text};
  return load;
}

// The sidecar on one core, wrk on another, over loopback: closed loops, so the core is saturated.
Status bench_sidecar(CascadeBench& bench) {
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
  sidecar_options.budgets.flops_per_s = 1e12;
  FRUGAL_TRY(auto sidecar, cascade::Sidecar::create(world.spec(), sidecar_options));
  std::atomic<bool> stop{false};
  std::atomic<int> port{0};
  std::thread server([&] {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(0, &one);
    sched_setaffinity(0, sizeof one, &one);  // threads that it starts stay there, too
    (void)cascade::serve_http(*sidecar, {}, stop, [&](int bound) { port = bound; });
    if (port == 0) port = -1;
  });
  while (port == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  Status status;
  std::string said;
  for (const int connections : {4, 16, 64}) {
    std::vector<double> p99, rate, core;
    for (int run = 0; run < (bench.quick ? 2 : 5) && status.ok(); ++run) {
      const auto load = run_wrk(port, stem + ".lua", connections, 3, said);
      if (!load.ok()) {
        status = load.error();
        break;
      }
      p99.push_back(load->p99_ms), rate.push_back(load->per_second), core.push_back(load->core_use);
    }
    if (!status.ok()) break;
    bench.say(strf("wrk with %d connections, last run:\n", connections) + said);
    const std::string suffix = connections == 4 ? "" : strf("_%d_connections", connections);
    const std::vector<double> bar(p99.size(), 2.0);
    BenchRow row = bench_row("sidecar_p99_ms" + suffix, "ms", Better::kLower, p99, bar, "bar");
    row.more = {{"requests_per_s", median(rate)},
                {"core_use", median(core)},
                {"worst_run", *std::max_element(p99.begin(), p99.end())}};
    row.how = strf("HTTP on one core, saturated by wrk with %d connections from the other", connections);
    bench.rows.push_back(row);
  }
  stop = true;
  server.join();
  for (const char* end : {".frm", ".lua"}) std::filesystem::remove(stem + end);
  return status;
}

}  // namespace

Status bench_cascade_service(CascadeBench& bench) {
  const Rates small = decision_rates(64, bench.quick ? 20 : 100),
              large = decision_rates(1000, bench.quick ? 5 : 25);
  const auto add = [&](const char* name, const char* unit, Better better, const std::vector<double>& ours,
                       double bar, const char* how) {
    BenchRow row = bench_row(name, unit, better, ours, std::vector<double>(ours.size(), bar), "bar");
    row.how = how;
    bench.rows.push_back(row);
  };
  add("decisions_64", "1/s", Better::kHigher, small.per_second, 1e6,
      "one core, reward inference, price and accounts; rounds of 4,096 requests");
  add("decisions_64_p99", "us", Better::kLower, small.p99_us, 50, "in process, timer calls included");
  add("decisions_1000", "1/s", Better::kHigher, large.per_second, 1e5, "the same, 1,000 chains");
  add("decisions_1000_p99", "us", Better::kLower, large.p99_us, 50, "in process, timer calls included");
  if (const Status status = bench_sidecar(bench); !status.ok())
    bench.say("sidecar_p99_ms is left out: " + status.error().message);
  return {};
}

}  // namespace frugal::cli
