#include "cascade/report.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/text.h"
#include "cascade/svg_chart.h"

namespace frugal::cascade {
namespace {

Estimate times(const Estimate& a, const Estimate& b) {
  if (!a.known() || !b.known()) return Estimate::unknown();
  return {a.value * b.value, a.low * b.low, a.high * b.high, std::max(a.provenance, b.provenance)};
}

std::string cell(const Estimate& estimate, const char* unit) {
  if (!estimate.known()) return "<td class=\"muted\">not known</td>";
  // What a request takes is small: 158 uJ says more than 1.58e-4 J.
  const char* prefix = "";
  double scale = 1;
  for (const char* smaller : {"m", "&micro;", "n"}) {
    if (*unit == 0 || std::fabs(estimate.value) / scale >= 0.1 || estimate.value == 0) break;
    prefix = smaller;
    scale *= 1e-3;
  }
  const auto number = [scale](double x) {
    return std::fabs(x / scale) >= 1000 ? human_count(x / scale) : strf("%.3g ", x / scale);
  };
  std::string band;
  if (estimate.low < estimate.value || estimate.high > estimate.value)
    band = strf(" <small>[%s.. %s]</small>", number(estimate.low).c_str(),
                std::string(trim(number(estimate.high))).c_str());
  return strf("<td>%s%s%s%s <small>%s</small></td>", number(estimate.value).c_str(), prefix, unit,
              band.c_str(), std::string(provenance_name(estimate.provenance)).c_str());
}

struct Arm {
  std::string name;
  Estimate reward, flops, energy, carbon;
};

// Joules of a request: metered while the real models served it (mean over the arms), else the processor time
// measured for its chain times the meter's joules for it, else FLOPs times an assumed energy.
Estimate energy_of(const ReportInput& input, std::span<const ReplayArm> served, double flops, double cpu_s) {
  if (served.empty()) {
    if (input.costs) return times(Estimate::exact(cpu_s), input.costs->joules_per_cpu_s);
    Estimate counted = Estimate::exact(flops);
    counted.provenance = Provenance::kModelled;
    return times(counted, input.joules_per_flop);
  }
  Estimate sum = served[0].joules;
  for (const ReplayArm& arm : served.subspan(1)) sum += arm.joules;
  return sum.scaled(1.0 / static_cast<double>(served.size()));
}

std::vector<Arm> arms(const ReportInput& input) {
  std::vector<Arm> all;
  const auto add = [&](const char* name, double reward, double flops, double cpu_s,
                       std::span<const ReplayArm> served) {
    Arm arm{name, Estimate::exact(reward), Estimate::exact(flops), {}, {}};
    arm.flops.provenance = Provenance::kModelled;  // counted by formula, not by a counter
    arm.energy = energy_of(input, served, flops, cpu_s);
    arm.carbon = times(arm.energy, input.gco2e_per_kwh).scaled(1 / 3.6e6);
    all.push_back(std::move(arm));
  };
  const Evaluation& e = input.evaluation;
  // Of `served`: the static chains, then each seed's price on FLOPs, then each seed's on processor time.
  const std::span<const ReplayArm> served = input.served;
  const size_t n = e.policies.size();
  const auto part = [&](size_t from, size_t count) {
    return served.empty() ? served : served.subspan(from, count);
  };
  add("best static chain", e.static_reward, e.static_flops, e.static_cpu_s, part(0, 1));
  const Evaluation& near = input.by_cpu ? *input.by_cpu : e;
  add("cheapest static chain within 1 % of it", near.near_reward, near.near_flops, near.near_cpu_s,
      part(1, 1));
  if (input.by_cpu) {
    add("allocator, price on processor time", input.by_cpu->equal_reward, input.by_cpu->equal_flops,
        input.by_cpu->equal_cpu_s, part(2 + n, n));
  }
  add("allocator, price on FLOPs", e.equal_reward, e.equal_flops, e.equal_cpu_s, part(2, n));
  return all;
}

// What the price of equal reward saves.
std::string headline(const ReportInput& input, const Evaluation& e, const char* priced) {
  std::string html = strf(
      "<p><b>A price on %s: %.1f %% fewer FLOPs</b> (95 %%: %.1f to %.1f) than the best static chain, %s, at "
      "%.3f times its clicks (95 %%: %.3f to %.3f)",
      priced, 100 * e.flops_saved, 100 * e.saved_low, 100 * e.saved_high,
      escaped(chain_name(input.spec, e.static_chain)).c_str(), e.reward_ratio, e.ratio_low, e.ratio_high);
  if (input.costs) {
    html += strf("; %.1f %% less processor time (95 %%: %.1f to %.1f) by the costs of its chains",
                 100 * e.cpu_saved, 100 * e.cpu_saved_low, 100 * e.cpu_saved_high);
  }
  html += ".</p>";
  if (!e.reached) {
    html +=
        "<p><b>Equal reward was not reached</b> for every seed: where no price lets the allocator earn as "
        "much "
        "on the fitting requests, it has the one that earns most.</p>";
  }
  return html;
}

const char* shown_name(PolicyKind kind) {
  switch (kind) {
    case PolicyKind::kStatic:
      return "one chain for all";
    case PolicyKind::kDcaf:
      return "DCAF: the ranking queue by request";
    case PolicyKind::kCras:
      return "CRAS: all counts, stages apart";
    case PolicyKind::kGreenFlow:
      return "GreenFlow-style: every chain";
    case PolicyKind::kOracle:
      return "clicks known beforehand";
  }
  return "";
}

// Where FLOPs and measured processor time put chains in different orders.
std::string rank_table(const ReportInput& input) {
  std::vector<double> flops;
  for (int j = 0; j < input.spec.n_chains(); ++j) flops.push_back(chain_flops(input.spec, j));
  const auto ranks = compare_ranks(flops, input.costs->cpu_s(input.spec, input.costs->batches.size() - 1), 6);
  std::string html = strf(
      "<h2>FLOPs and joules rank chains differently</h2><p>Rank correlation %.3f; %d of %d pairs of chains "
      "swap. "
      "Processor time was measured for each stage, model and item count with %d requests together, and made "
      "monotone in "
      "both; joules are processor time times %s.</p><table><tr><th>fewer FLOPs, yet more "
      "joules</th><th>than</th><th>FLOPs</th><th>joules</th></tr>",
      ranks.spearman, ranks.swapped, ranks.pairs, input.costs->batches.back(),
      escaped(strf("%.2f J a second, %s", input.costs->joules_per_cpu_s.value,
                   std::string(provenance_name(input.costs->joules_per_cpu_s.provenance)).c_str()))
          .c_str());
  for (const auto& pair : ranks.worst) {
    html += strf("<tr><td>%s</td><td>%s</td><td>x %.2f</td><td>x %.2f</td></tr>",
                 escaped(chain_name(input.spec, pair.cheap)).c_str(),
                 escaped(chain_name(input.spec, pair.dear)).c_str(), pair.flops_ratio, pair.cpu_ratio);
  }
  return html + "</table>";
}

// Without the oracle, whose clicks by luck would leave the others a tenth of the height.
std::string reward_chart(const Evaluation& evaluation, const char* cost, double scale) {
  Axis x{cost, true, 1e300, 0}, y{"clicks a request", false, 1e300, 0};
  std::vector<Series> series;
  for (const PolicyCurve& curve : evaluation.curves) {
    if (curve.kind == PolicyKind::kOracle) continue;
    Series one{shown_name(curve.kind), {}};
    for (const PolicyPoint& point : curve.points) {
      one.points.emplace_back(scale * point.cost, point.reward);
      x.low = std::min(x.low, scale * point.cost), x.high = std::max(x.high, scale * point.cost);
      y.low = std::min(y.low, point.reward), y.high = std::max(y.high, point.reward);
    }
    std::sort(one.points.begin(), one.points.end());
    series.push_back(std::move(one));
  }
  if (series.empty() || !(x.high > x.low) || !(y.high > y.low)) return "";
  y.low = std::max(0.0, y.low - 0.05 * (y.high - y.low));
  y.high += 0.05 * (y.high - y.low);
  return line_chart(x, y, series, true);
}

std::string day_chart(const DayResult& day, bool price) {
  Series one{price ? "price" : "use of the window's budget", {}}, load{"load (its peak is 1)", {}};
  double highest = 0, most_requests = 1;
  for (const WindowRow& row : day.rows) most_requests = std::max(most_requests, row.requests);
  for (const WindowRow& row : day.rows) {
    const double hour = row.start_s / 3600, value = price ? 1e9 * row.price : row.spent / row.budget;
    one.points.emplace_back(hour, value);
    highest = std::max(highest, value);
    load.points.emplace_back(hour, row.requests / most_requests);
  }
  if (one.points.empty()) return "";
  const double end = std::max(one.points.back().first, 0.1);
  const Axis x{"hour of the day", false, 0, end};
  if (price) return line_chart(x, {"clicks a GFLOP", false, 0, std::max(1.1 * highest, 1e-9)}, {one}, false);
  const Series all{"the whole budget", {{0, 1}, {end, 1}}};
  return line_chart(x, {"share", false, 0, std::max(1.1, highest)}, {load, one, all}, false);
}

std::string mix_chart(const ReportInput& input, const Evaluation& evaluation) {
  std::vector<size_t> order;
  for (size_t j = 0; j < evaluation.chain_share.size(); ++j) {
    if (evaluation.chain_share[j] > 0) order.push_back(j);
  }
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return evaluation.chain_share[a] > evaluation.chain_share[b]; });
  if (order.size() > 16) order.resize(16);
  std::string table =
      "<table><tr><th>chain (the items that each stage passes on)</th><th>FLOPs</th><th>share of "
      "requests</th></tr>";
  for (const size_t j : order) {
    const double share = evaluation.chain_share[j];
    table += strf(
        "<tr><td>%s</td><td>%s</td><td><div class=\"bar\" style=\"width:%.1fpx\"></div> %.1f %%</td></tr>",
        escaped(chain_name(input.spec, static_cast<int>(j))).c_str(),
        human_count(chain_flops(input.spec, static_cast<int>(j))).c_str(),
        200 * share / evaluation.chain_share[order[0]], 100 * share);
  }
  return table + "</table>";
}

}  // namespace

std::string report_html(const ReportInput& input) {
  const Evaluation& e = input.evaluation;
  std::string html =
      "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Cascade: performance, FLOPs, energy, "
      "carbon</title><style>"
      "body{font:15px/1.5 system-ui,sans-serif;max-width:760px;margin:2rem auto;padding:0 1rem;color:#1b1b1b}"
      "h1{font-size:1.4rem}h2{font-size:1.1rem;margin-top:2rem}table{border-collapse:collapse;width:100%}"
      "td,th{text-align:left;padding:.3rem .6rem;border-bottom:1px solid "
      "#ddd;vertical-align:top}small,.muted{color:#666}"
      "svg{width:100%;height:auto}.grid{stroke:#e4e4e4}.tick{font-size:11px;fill:#555}.title{font-size:12px;"
      "fill:#333}"
      ".legend span{margin-right:1.2em;white-space:nowrap}.legend "
      "i{display:inline-block;width:14px;height:4px;margin-right:.4em;vertical-align:middle}"
      ".bar{display:inline-block;height:10px;background:#0072B2}</style>";
  html += "<h1>Cascade: performance, FLOPs, energy, carbon</h1>";
  html += strf("<p>Trained on %s; %d chains; %d %s. %s</p>", escaped(input.spec.source).c_str(),
               input.spec.n_chains(), e.seeds, e.seeds == 1 ? "seed" : "seeds", escaped(input.made).c_str());
  if (input.by_cpu) html += headline(input, *input.by_cpu, "processor time");
  html += headline(input, e, "FLOPs");
  html +=
      "<h2>A request, side by side</h2><table><tr><th></th><th>performance "
      "(clicks)</th><th>FLOPs</th><th>energy</th><th>carbon</th></tr>";
  for (const Arm& arm : arms(input)) {
    html += strf("<tr><td>%s</td>", arm.name.c_str()) + cell(arm.reward, "") + cell(arm.flops, "") +
            cell(arm.energy, "J") + cell(arm.carbon, "gCO2e") + "</tr>";
  }
  html +=
      "</table><p><small>Clicks are counted on requests that were kept from training. FLOPs are by formula. "
      "Energy is " +
      std::string(
          !input.served.empty() ? "metered while the real models served these requests, batched and by turns"
          : input.costs
              ? "the processor time measured for each chain on this machine, times the joules that the "
                "meter charges for it"
              : "FLOPs times an energy per FLOP (the models of this cascade did not run here)") +
      ", carbon is energy times the grid's intensity; both carry the band of what they are made from, which "
      "all rows share.</small></p>";
  if (input.costs) html += rank_table(input);
  html += "<h2>Reward against compute</h2>" + reward_chart(e, "FLOPs a request", 1);
  if (input.by_cpu) html += reward_chart(*input.by_cpu, "processor time a request, us", 1e6);
  if (!e.at_equal_compute.empty()) {
    html +=
        "<h3>At half of the best static chain's FLOPs</h3><table><tr><th>against</th><th>its "
        "clicks</th><th>GreenFlow's gain</th><th>95 %</th></tr>";
    for (const auto& peer : e.at_equal_compute) {
      html += strf("<tr><td>%s</td><td>%.4f</td><td>%+.2f %%</td><td>%+.2f .. %+.2f %%</td></tr>",
                   shown_name(peer.kind), peer.reward, 100 * peer.gain, 100 * peer.gain_low,
                   100 * peer.gain_high);
    }
    html += "</table>";
  }
  html += "<h2>Chains chosen at equal reward (last seed)</h2>";
  if (input.by_cpu) html += "<h3>Price on processor time</h3>" + mix_chart(input, *input.by_cpu);
  html += "<h3>Price on FLOPs</h3>" + mix_chart(input, e);
  if (!input.days.empty()) {
    html += "<h2>A day with two peaks and a spike (synthetic load)</h2>";
    html +=
        "<table><tr><th>price controller</th><th>utilisation</th><th>over-use</th><th>worst "
        "window</th><th>regret</th></tr>";
    for (const auto& [name, day] : input.days) {
      html += strf("<tr><td>%s</td><td>%.2f %%</td><td>%.3f %%</td><td>%.2f %%</td><td>%s</td></tr>",
                   escaped(name).c_str(), 100 * day.utilisation, 100 * day.over_use, 100 * day.worst_over,
                   day.regret != 0 ? strf("%.2f %%", 100 * day.regret).c_str() : "-");
    }
    html += strf("</table><p>The day of %s:</p>", escaped(input.days[0].first).c_str()) +
            day_chart(input.days[0].second, false) + day_chart(input.days[0].second, true);
  }
  return html + "</html>\n";
}

std::string report_json(const ReportInput& input) {
  const Evaluation& e = input.evaluation;
  const auto estimate = [](const Estimate& x) -> nlohmann::json {
    if (!x.known()) return nullptr;
    return {
        {"value", x.value}, {"low", x.low}, {"high", x.high}, {"provenance", provenance_name(x.provenance)}};
  };
  nlohmann::json out = {
      {"source", input.spec.source},
      {"n_chains", input.spec.n_chains()},
      {"seeds", e.seeds},
      {"flops_saved", {{"value", e.flops_saved}, {"low", e.saved_low}, {"high", e.saved_high}}},
      {"reward_ratio", {{"value", e.reward_ratio}, {"low", e.ratio_low}, {"high", e.ratio_high}}},
      {"equal_reward_reached", e.reached},
      {"static_chain", chain_name(input.spec, e.static_chain)},
      {"static_chain_within_1_percent",
       {{"chain", chain_name(input.spec, e.near_chain)},
        {"flops_saved", 1 - e.near_flops / e.static_flops},
        {"reward_ratio", e.near_reward / e.static_reward}}}};
  if (input.by_cpu) {
    out["cpu_saved"] = {{"value", input.by_cpu->cpu_saved},
                        {"low", input.by_cpu->cpu_saved_low},
                        {"high", input.by_cpu->cpu_saved_high}};
    out["reward_ratio_by_time_price"] = {{"value", input.by_cpu->reward_ratio},
                                         {"low", input.by_cpu->ratio_low},
                                         {"high", input.by_cpu->ratio_high}};
    out["equal_reward_reached_by_time_price"] = input.by_cpu->reached;
  }
  out["made"] = input.made;
  for (const Arm& arm : arms(input)) {
    out["pfec"].push_back({{"arm", arm.name},
                           {"performance", estimate(arm.reward)},
                           {"flops", estimate(arm.flops)},
                           {"energy_j", estimate(arm.energy)},
                           {"carbon_gco2e", estimate(arm.carbon)}});
  }
  for (const PolicyCurve& curve : e.curves) {
    nlohmann::json points = nlohmann::json::array();
    for (const PolicyPoint& point : curve.points)
      points.push_back({{"budget", point.budget}, {"flops", point.cost}, {"reward", point.reward}});
    out["curves"][std::string(policy_name(curve.kind))] = std::move(points);
  }
  for (const auto& peer : e.at_equal_compute) {
    out["at_equal_compute"].push_back({{"against", policy_name(peer.kind)},
                                       {"reward", peer.reward},
                                       {"gain", peer.gain},
                                       {"low", peer.gain_low},
                                       {"high", peer.gain_high}});
  }
  for (const auto& [name, day] : input.days) {
    out["days"].push_back({{"controller", name},
                           {"utilisation", day.utilisation},
                           {"over_use", day.over_use},
                           {"worst_over_use", day.worst_over},
                           {"regret", day.regret},
                           {"requests", day.requests}});
  }
  return out.dump(1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

}  // namespace frugal::cascade
