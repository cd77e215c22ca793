// frugal bench cascade: the figures of the cascade plane, each with how it was obtained.
#include <sched.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/clock.h"
#include "base/file.h"
#include "base/text.h"
#include "cascade/evaluate.h"
#include "cascade/replay.h"
#include "cascade/serve/sidecar.h"
#include "cascade/simulate.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/meter_setup.h"

namespace frugal::cli {
namespace {

struct Options {
  std::string data = "../shared/data", cascade_folder;
  bool json = false, quick = false;
};

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

int bench(const Options& options) {
  nlohmann::json rows = nlohmann::json::array();
  const auto add = [&](const char* name, double value, const char* unit, const std::string& how) {
    rows.push_back({{"name", name}, {"value", value}, {"unit", unit}, {"how", how}});
    if (!options.json) std::printf("%-26s %12.6g %-8s %s\n", name, value, unit, how.c_str());
  };
  const auto world = cascade::SyntheticWorld::create({}).value();
  const auto model = cascade::RewardModel::train(world.spec(), world.logs(30000, 1), {});
  if (!model.ok()) {
    return fail(model.error());
  }
  cascade::DayOptions day;
  day.seconds = options.quick ? 21600 : 86400;
  day.stationary = true;
  const auto still = cascade::simulate_day(world, &*model, day);
  day.stationary = false;
  const auto busy = cascade::simulate_day(world, &*model, day);
  if (!still.ok()) return fail(still.error());
  if (!busy.ok()) return fail(busy.error());
  const std::string loop =
      strf("simulated, %.0f requests, windows of 60 s, ticks of 5 s, mpc with cap", busy->requests);
  add("regret", still->regret, "",
      "stationary load, against the LP optimum of each window in hindsight, predicted rewards");
  add("utilisation", busy->utilisation, "", "two-peak day with a 3x spike; " + loop);
  add("over_use", busy->over_use, "", "the same day");
  add("over_use_worst_window", busy->worst_over, "", "the same day");
  add("price_swing", busy->swing, "", "mean |log price step| between windows within the spike");
  for (const char* name : {"primal_dual", "bisection", "pid", "mpc"}) {
    cascade::DayOptions plain = day;
    plain.bound = false;
    plain.governor.hard_cap = false;
    plain.governor.controller.kind = budget::parse_controller(name).value();
    const auto peer = cascade::simulate_day(world, &*model, plain);
    if (!peer.ok()) return fail(peer.error());
    add(strf("utilisation_%s", name).c_str(), peer->utilisation, "",
        "the same day, price control alone, no cap");
    add(strf("over_use_%s", name).c_str(), peer->over_use, "", "the same day, price control alone, no cap");
  }
  const Rate small = decision_rate(64, options.quick ? 20 : 100),
             large = decision_rate(1000, options.quick ? 5 : 25);
  add("decisions_64", small.per_second, "1/s", "one core, reward inference included, best round");
  add("decisions_64_p99", small.p99_us, "us", "in process, timer calls included");
  add("decisions_1000", large.per_second, "1/s", "one core, reward inference included, best round");
  if (const auto load = sidecar_load(options.quick ? 3 : 10); load.ok()) {
    add("sidecar_p99_ms", load->p99_ms, "ms", "HTTP, wrk with 4 connections, the sidecar held to one core");
    add("sidecar_rate", load->per_second, "1/s", "the same run: the rate that saturates the core");
    if (!options.json) std::printf("%s", load->output.c_str());
  } else {
    std::fprintf(stderr, "frugal: sidecar_p99_ms is left out: %s\n", load.error().message.c_str());
  }
  if (options.cascade_folder.empty()) {
    if (!options.json) std::printf("flops_saved: give --cascade DIR (made by scripts/train_cascade.py)\n");
  } else {
    const auto spec = cascade::load_cascade(options.cascade_folder);
    if (!spec.ok()) {
      return fail(spec.error());
    }
    const auto fit = cascade::load_replayed(options.cascade_folder, "fit", *spec);
    const auto test = cascade::load_replayed(options.cascade_folder, "test", *spec);
    if (!fit.ok() || !test.ok()) {
      return fail(fit.ok() ? test.error() : fit.error());
    }
    cascade::EvaluateOptions judging;
    judging.progress = [](const std::string& what) { std::fprintf(stderr, "frugal: %s\n", what.c_str()); };
    const auto judged = cascade::evaluate(*spec, *fit, *test, judging);
    if (!judged.ok()) {
      return fail(judged.error());
    }
    add("flops_saved", judged->flops_saved, "",
        strf("%s; at the best static chain's reward (%s); 95 %% [%.3f, %.3f], %d seeds", spec->source.c_str(),
             cascade::chain_name(*spec, judged->static_chain).c_str(), judged->saved_low, judged->saved_high,
             judged->seeds));
    if (!judged->reached)
      add("equal_reward_not_reached", 1, "",
          "no price earns the static chain's reward on the fitting requests");
    add("flops_saved_static_within_1_percent", 1 - judged->near_flops / judged->static_flops, "",
        strf("the cheapest static chain within 1 %% of the best (%s), at %.4f times its clicks",
             cascade::chain_name(*spec, judged->near_chain).c_str(),
             judged->near_reward / judged->static_reward));
    auto meter = open_meter({});
    if (!meter.ok()) return fail(meter.error());
    cascade::ReplayOptions replaying;
    replaying.rounds = options.quick ? 3 : 5;
    const auto replayed =
        cascade::replay(options.cascade_folder, "test", *spec, *test, *judged, **meter, replaying);
    if (!replayed.ok()) return fail(replayed.error());
    const std::string real =
        strf("%d test requests by the real models, batched, %d rounds in turns; clicks %.4f against %.4f",
             replayed->n, replayed->rounds, replayed->priced.clicks, replayed->fixed.clicks);
    add("joules_saved", replayed->joules_saved, "",
        real + "; joules " + std::string(provenance_name(replayed->fixed.joules.provenance)) + ", " +
            estimate_text(replayed->priced.joules.scaled(1000), "mJ") + " against " +
            estimate_text(replayed->fixed.joules.scaled(1000), "mJ") + " a request");
    add("cpu_saved", replayed->cpu_saved, "",
        strf("processor time of the same, rounds %.3f to %.3f", replayed->cpu_saved_low,
             replayed->cpu_saved_high));
    add("reward_ratio", judged->reward_ratio, "",
        strf("clicks of greenflow over the best static chain's at that point; 95 %% [%.3f, %.3f]",
             judged->ratio_low, judged->ratio_high));
    for (const auto& peer : judged->at_equal_compute) {
      add(strf("reward_gain_over_%s", std::string(cascade::policy_name(peer.kind)).c_str()).c_str(),
          peer.gain, "",
          strf("at half the best static chain's FLOPs; 95 %% [%.3f, %.3f]", peer.gain_low, peer.gain_high));
    }
  }
  for (const char* zone : {"US-CAL-CISO", "ES"}) {
    const std::string stem = options.data + "/carbon/" + zone;
    if (!std::filesystem::exists(stem + "_2022_hourly.csv")) continue;
    const auto before = cascade::read_intensity(stem + "_2021_hourly.csv"),
               now = cascade::read_intensity(stem + "_2022_hourly.csv");
    if (!before.ok() || !now.ok()) {
      return fail(before.ok() ? now.error() : before.error());
    }
    const auto carbon = cascade::simulate_carbon_year(world, *now, *before, 1e-9, 0.1, 1);
    const std::string how = strf(
        "%s 2022, carbon price re-planned weekly from 2021, at the reward of a constant energy budget; "
        "joules modelled as 1 nJ a FLOP (assumed)",
        zone);
    add(strf("carbon_saved_%s", zone).c_str(), 1 - carbon.gco2e_causal / carbon.gco2e_constant, "", how);
    add(strf("carbon_saved_%s_oracle", zone).c_str(), 1 - carbon.gco2e_oracle / carbon.gco2e_constant, "",
        "one price, the year known beforehand");
    add(strf("carbon_saved_%s_vs_flat_carbon", zone).c_str(),
        1 - carbon.gco2e_causal / carbon.gco2e_flat_carbon, "", "against the same grams every hour");
  }
  if (options.json) std::printf("%s\n", nlohmann::json{{"bench", "cascade"}, {"rows", rows}}.dump(1).c_str());
  return kExitOk;
}

}  // namespace

Action add_bench_cascade(CLI::App& app) {
  auto options = std::make_shared<Options>();
  app.add_option("--data", options->data,
                 "folder with carbon/*.csv for the carbon year; left out when it is not there")
      ->capture_default_str();
  app.add_option("--cascade", options->cascade_folder,
                 "a trained cascade's folder (scripts/train_cascade.py), for flops_saved");
  app.add_flag("--quick", options->quick, "a quarter of the day, fewer rounds");
  app.add_flag("--json", options->json, "print JSON");
  return [options] { return bench(*options); };
}

}  // namespace frugal::cli
