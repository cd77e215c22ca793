// bench cascade: what a trained cascade saves, and a year of a carbon budget.
#include <algorithm>
#include <cmath>
#include <filesystem>

#include "base/text.h"
#include "cascade/simulate.h"
#include "cli/bench_cascade.h"
#include "cli/cascade_judge.h"
#include "cli/meter_setup.h"

namespace frugal::cli {

namespace {

// Chosen on `fit` (docs/design/cascade-quality.md).
constexpr int kMenu = 3;

// A share and its 95 % interval over trainings, seeds and resamples of users, and that of each training.
std::string banded(std::vector<double> draws, const std::vector<double>& each) {
  std::sort(draws.begin(), draws.end());
  const auto at = [&](double q) {
    return draws[static_cast<size_t>(std::lround(q * static_cast<double>(draws.size() - 1)))];
  };
  std::string text = strf("95 %% [%.3f, %.3f]", at(0.025), at(0.975));
  if (each.size() > 1) {
    text += "; by training of the stages";
    for (const double value : each) text += strf(" %.3f", value);
  }
  return text;
}

double mean(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return sum / static_cast<double>(values.size());
}

// What one price saves, over all trainings.
void add_savings(CascadeBench& bench, const std::vector<JudgedCascade>& all, bool price_cpu) {
  const char* suffix = price_cpu ? "_by_time_price" : "_by_flops_price";
  std::vector<double> flops, ratio, joules, cpu, flops_draws, ratio_draws, joules_draws, cpu_draws;
  std::string provenance, clicks;
  bool reached = true;
  for (const JudgedCascade& judged : all) {
    const cascade::Evaluation& evaluation = price_cpu ? judged.by_cpu : judged.by_flops;
    reached &= evaluation.reached;
    flops.push_back(evaluation.flops_saved);
    ratio.push_back(evaluation.reward_ratio);
    for (const auto& policy : evaluation.policies) {
      for (const auto& draw : policy.draws) {
        flops_draws.push_back(draw.flops);
        ratio_draws.push_back(draw.reward_ratio);
      }
    }
    const auto joules_of = joules_saved(judged, price_cpu), cpu_of = cpu_saved(judged, price_cpu);
    joules.push_back(joules_of.value);
    cpu.push_back(cpu_of.value);
    joules_draws.insert(joules_draws.end(), joules_of.draws.begin(), joules_of.draws.end());
    cpu_draws.insert(cpu_draws.end(), cpu_of.draws.begin(), cpu_of.draws.end());
    const auto& fixed = judged.replayed.arms[0];
    provenance = std::string(provenance_name(fixed.joules.provenance)) + ", the static chain " +
                 estimate_text(fixed.joules.scaled(1000), "mJ") + " a request";
    clicks = strf("%d test requests by the real models, batched, %d rounds in turns", judged.replayed.n,
                  judged.replayed.rounds);
  }
  const std::string how = strf("at the best static chain's reward%s, %d seeds",
                               reached ? "" : " (NOT reached on the fitting requests)", all[0].by_cpu.seeds);
  const auto name = [&](const char* what) { return std::string(what) + suffix; };
  bench.add(name("flops_saved"), mean(flops), "", how + "; " + banded(flops_draws, flops));
  bench.add(name("joules_saved"), mean(joules), "",
            how + "; " + banded(joules_draws, joules) + "; joules " + provenance + "; " + clicks);
  bench.add(name("cpu_saved"), mean(cpu), "", "processor time measured; " + banded(cpu_draws, cpu));
  bench.add(name("reward_ratio"), mean(ratio), "",
            "clicks over the best static chain's; " + banded(ratio_draws, ratio));
}

// What the report shows of one training: how the measures rank chains, and the static chains.
void add_costs(CascadeBench& bench, const JudgedCascade& judged) {
  bench.add(
      "max_batch", judged.max_batch, "requests",
      "that a model scores in one call: the fastest for the static chain that earns most on the fitting "
      "requests, first training; processor time of a request there by batch: " +
          judged.batches);
  const auto ranks = cascade::compare_ranks(judged.flops, judged.cpu_s, 3);
  std::string worst;
  for (const auto& pair : ranks.worst) {
    worst += strf("; %s has %.2f times the FLOPs of %s and takes %.2f times as long",
                  cascade::chain_name(judged.spec, pair.cheap).c_str(), pair.flops_ratio,
                  cascade::chain_name(judged.spec, pair.dear).c_str(), pair.cpu_ratio);
  }
  bench.add("flops_cpu_rank_correlation", ranks.spearman, "",
            strf("Spearman, %d chains, processor time measured and made monotone", judged.spec.n_chains()));
  bench.add("flops_cpu_swapped_pairs", static_cast<double>(ranks.swapped) / std::max(ranks.pairs, 1), "",
            strf("%d of %d pairs of chains", ranks.swapped, ranks.pairs) + worst);
  bench.add("cost_model_error", judged.costs.error, "",
            "median over chains: a chain measured as a whole beside the sum of its stages");
  const auto batch1 = judged.costs.cpu_s(judged.spec, 0);
  std::vector<double> dearer;
  for (size_t j = 0; j < batch1.size(); ++j) dearer.push_back(batch1[j] / judged.cpu_s[j]);
  bench.add("cpu_alone_over_batched", mean(dearer), "times",
            strf("processor time of a request alone over that of one among %d, mean of all chains",
                 judged.costs.batches.back()));
  const auto& near = judged.replayed.arms[1];
  bench.add(
      "joules_saved_static_within_1_percent", 1 - near.joules.value / judged.replayed.arms[0].joules.value,
      "",
      strf("the static chain of least processor time within 1 %% of the best on the fitting requests (%s), "
           "at %.4f times its clicks; %.3f of its FLOPs saved",
           cascade::chain_name(judged.spec, judged.by_cpu.near_chain).c_str(),
           judged.by_cpu.near_reward / judged.by_cpu.static_reward,
           1 - judged.by_cpu.near_flops / judged.by_cpu.static_flops));
}

// GreenFlow at half the best static chain's cost, beside the others, over all trainings.
void add_equal_compute(CascadeBench& bench, const std::vector<JudgedCascade>& all, bool price_cpu) {
  const auto& peers = (price_cpu ? all[0].by_cpu : all[0].by_flops).at_equal_compute;
  for (size_t p = 0; p < peers.size(); ++p) {
    std::vector<double> gains, draws;
    for (const JudgedCascade& judged : all) {
      const auto& peer = (price_cpu ? judged.by_cpu : judged.by_flops).at_equal_compute[p];
      gains.push_back(peer.gain);
      draws.insert(draws.end(), peer.draws.begin(), peer.draws.end());
    }
    bench.add(strf("reward_gain_over_%s%s", std::string(cascade::policy_name(peers[p].kind)).c_str(),
                   price_cpu ? "_by_time_price" : ""),
              mean(gains), "",
              strf("at half the best static chain's %s; ", price_cpu ? "processor time" : "FLOPs") +
                  banded(std::move(draws), gains));
  }
}

// Joules of a request where requests arrive by chance, so that batches are as large as the load makes them.
Status add_under_load(CascadeBench& bench, const std::string& folder, const JudgedCascade& judged,
                      meter::PowerMeter& meter, const JudgeOptions& options) {
  const size_t first_seed = 2 + judged.by_flops.policies.size();  // of the price on processor time
  const cascade::ReplayPolicy policies[] = {judged.policies[0], judged.policies[first_seed]};
  for (const double load : {0.2, 0.5, 0.8}) {
    cascade::ReplayOptions replay = options.replay;
    replay.rate = load / judged.replayed.arms[0].cpu_s;
    replay.rounds = 2;
    replay.max_batch = judged.max_batch;
    bench.say(strf("requests that arrive by chance, %.0f a second", replay.rate));
    FRUGAL_TRY(const auto served,
               cascade::replay(folder, options.split, judged.spec, judged.served, policies, meter, replay));
    const auto &fixed = served.arms[0], &priced = served.arms[1];
    BenchRow row;
    row.name = strf("joules_saved_at_load_%.1f", load);
    row.unit = "";
    row.ours = 1 - priced.joules.value / fixed.joules.value;
    row.n = replay.rounds;
    row.more = {{"requests_a_second", replay.rate},
                {"static_cpu_us", 1e6 * fixed.cpu_s},
                {"cpu_us", 1e6 * priced.cpu_s},
                {"static_batch", fixed.batch},
                {"batch", priced.batch},
                {"static_p99_ms", 1e3 * fixed.latency_p99_s},
                {"p99_ms", 1e3 * priced.latency_p99_s}};
    row.how = strf(
        "Poisson arrivals at %.1f of what one core serves by the static chain in full batches, price on "
        "processor time, one seed; joules %s",
        load, std::string(provenance_name(fixed.joules.provenance)).c_str());
    bench.rows.push_back(row);
  }
  return {};
}

Status bench_trained(CascadeBench& bench) {
  std::vector<JudgedCascade> all;
  auto meter = open_meter({});
  if (!meter.ok()) return meter.error();
  JudgeOptions options;
  options.progress = bench.say;
  options.evaluate.seeds = 5;
  options.replay.rounds = options.costs.rounds = bench.quick ? 3 : 5;
  options.evaluate.menu = kMenu;
  options.replay.max_batch = 0;
  for (const std::string& folder : bench.cascade_folders) {
    FRUGAL_TRY(auto judged, judge_cascade(folder, **meter, options));
    bench.say(strf("%s: best static chain %s", judged.spec.source.c_str(),
                   cascade::chain_name(judged.spec, judged.by_cpu.static_chain).c_str()));
    all.push_back(std::move(judged));
  }
  for (const bool price_cpu : {false, true}) add_savings(bench, all, price_cpu);
  // The names of the proof: both of one policy, that of a price on processor time.
  for (auto& row : std::vector(bench.rows)) {
    if (row.name == "flops_saved_by_time_price" || row.name == "joules_saved_by_time_price") {
      row.name = row.name.substr(0, row.name.find("_by_"));
      bench.rows.push_back(row);
    }
  }
  add_costs(bench, all[0]);
  for (const bool price_cpu : {false, true}) add_equal_compute(bench, all, price_cpu);
  return add_under_load(bench, bench.cascade_folders[0], all[0], **meter, options);
}

}  // namespace

Status bench_cascade_quality(CascadeBench& bench) {
  const auto world = cascade::SyntheticWorld::create({}).value();
  if (bench.cascade_folders.empty()) {
    bench.say("flops_saved: give --cascade DIR (made by scripts/train_cascade.py)");
  } else {
    FRUGAL_TRY_STATUS(bench_trained(bench));
  }
  for (const char* zone : {"US-CAL-CISO", "ES"}) {
    const std::string stem = bench.data + "/carbon/" + zone;
    if (!std::filesystem::exists(stem + "_2022_hourly.csv")) continue;
    const auto before = cascade::read_intensity(stem + "_2021_hourly.csv"),
               now = cascade::read_intensity(stem + "_2022_hourly.csv");
    if (!before.ok() || !now.ok()) {
      return before.ok() ? now.error() : before.error();
    }
    const auto carbon = cascade::simulate_carbon_year(world, *now, *before, 1e-9, 0.1, 1);
    const std::string how = strf(
        "%s 2022, carbon price re-planned weekly from 2021, at the reward of a constant energy budget; "
        "joules modelled as 1 nJ a FLOP (assumed)",
        zone);
    bench.add(strf("carbon_saved_%s", zone).c_str(), 1 - carbon.gco2e_causal / carbon.gco2e_constant, "",
              how);
    bench.add(strf("carbon_saved_%s_oracle", zone).c_str(), 1 - carbon.gco2e_oracle / carbon.gco2e_constant,
              "", "one price, the year known beforehand");
    bench.add(strf("carbon_saved_%s_vs_flat_carbon", zone).c_str(),
              1 - carbon.gco2e_causal / carbon.gco2e_flat_carbon, "", "against the same grams every hour");
  }
  return {};
}

}  // namespace frugal::cli
