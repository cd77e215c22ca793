#include "cascade/report.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/text.h"

namespace frugal::cascade {
namespace {

// Colours that stay apart for readers with any colour vision (Okabe and Ito 2008).
constexpr const char* kColours[] = {"#000000", "#E69F00", "#56B4E9", "#009E73",
                                    "#CC79A7", "#0072B2", "#D55E00"};
constexpr double kWidth = 660, kHeight = 300, kLeft = 64, kRight = 16, kTop = 16, kBottom = 44;

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : utf8_sanitized(text)) {
    if (c == '&')
      out += "&amp;";
    else if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (c == '"')
      out += "&quot;";
    else
      out += c;
  }
  return out;
}

struct Series {
  std::string name;
  std::vector<std::pair<double, double>> points;
};

struct Axis {
  std::string title;
  bool logarithmic = false;
  double low = 0, high = 1;
};

// A line chart as inline SVG.
class Chart {
 public:
  Chart(Axis x, Axis y) : x_(std::move(x)), y_(std::move(y)) {}

  std::string draw(const std::vector<Series>& series, bool dots) const {
    std::string svg = strf("<svg viewBox=\"0 0 %g %g\" role=\"img\" aria-label=\"%s against %s\">", kWidth,
                           kHeight, escaped(y_.title).c_str(), escaped(x_.title).c_str());
    for (const double tick : ticks(y_)) {
      svg += strf(
          "<line class=\"grid\" x1=\"%g\" x2=\"%g\" y1=\"%.1f\" y2=\"%.1f\"/><text class=\"tick\" "
          "text-anchor=\"end\" x=\"%g\" y=\"%.1f\">%s</text>",
          kLeft, kWidth - kRight, at_y(tick), at_y(tick), kLeft - 6, at_y(tick) + 4, label(tick).c_str());
    }
    for (const double tick : ticks(x_)) {
      svg += strf(
          "<line class=\"grid\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%g\" y2=\"%g\"/><text class=\"tick\" "
          "text-anchor=\"middle\" x=\"%.1f\" y=\"%g\">%s</text>",
          at_x(tick), at_x(tick), kTop, kHeight - kBottom, at_x(tick), kHeight - kBottom + 16,
          label(tick).c_str());
    }
    svg += strf("<text class=\"title\" text-anchor=\"middle\" x=\"%g\" y=\"%g\">%s</text>",
                kLeft + plot_width() / 2, kHeight - 8, escaped(x_.title).c_str());
    svg += strf(
        "<text class=\"title\" text-anchor=\"middle\" transform=\"translate(14 %g) rotate(-90)\">%s</text>",
        kTop + plot_height() / 2, escaped(y_.title).c_str());
    for (size_t s = 0; s < series.size(); ++s) {
      const char* colour = kColours[s % std::size(kColours)];
      std::string path;
      for (const auto& [x, y] : series[s].points)
        path += strf("%s%.1f %.1f", path.empty() ? "M" : "L", at_x(x), at_y(y));
      svg += strf("<path fill=\"none\" stroke=\"%s\" stroke-width=\"%s\" d=\"%s\"/>", colour,
                  dots ? "2" : "1.3", path.c_str());
      if (!dots) continue;
      for (const auto& [x, y] : series[s].points)
        svg += strf("<circle r=\"3\" fill=\"%s\" cx=\"%.1f\" cy=\"%.1f\"/>", colour, at_x(x), at_y(y));
    }
    svg += "</svg>";
    if (series.size() > 1) {
      svg += "<p class=\"legend\">";
      for (size_t s = 0; s < series.size(); ++s) {
        svg += strf("<span><i style=\"background:%s\"></i>%s</span> ", kColours[s % std::size(kColours)],
                    escaped(series[s].name).c_str());
      }
      svg += "</p>";
    }
    return svg;
  }

 private:
  static double plot_width() { return kWidth - kLeft - kRight; }
  static double plot_height() { return kHeight - kTop - kBottom; }
  static double share(const Axis& axis, double value) {
    if (axis.logarithmic) return std::log(value / axis.low) / std::log(axis.high / axis.low);
    return (value - axis.low) / (axis.high - axis.low);
  }
  double at_x(double value) const { return kLeft + std::clamp(share(x_, value), 0.0, 1.0) * plot_width(); }
  double at_y(double value) const {
    return kTop + (1 - std::clamp(share(y_, value), 0.0, 1.0)) * plot_height();
  }
  static std::string label(double value) {
    return std::fabs(value) >= 1000 ? human_count(value) : strf("%.3g", value);
  }

  // Round values: 1, 2 or 5 times a power of ten, about five of them.
  static std::vector<double> ticks(const Axis& axis) {
    std::vector<double> at;
    if (axis.logarithmic) {
      for (double decade = std::pow(10, std::floor(std::log10(axis.low))); decade <= axis.high;
           decade *= 10) {
        for (const double step : {1.0, 3.0}) {
          if (decade * step >= axis.low && decade * step <= axis.high) at.push_back(decade * step);
        }
      }
      return at;
    }
    const double rough = (axis.high - axis.low) / 5, power = std::pow(10, std::floor(std::log10(rough)));
    const double step =
        rough / power < 1.5
            ? power
            : (rough / power < 3.5 ? 2 * power : (rough / power < 7.5 ? 5 * power : 10 * power));
    for (double tick = std::ceil(axis.low / step) * step; tick <= axis.high + 1e-9 * step; tick += step)
      at.push_back(std::fabs(tick) < 1e-9 * step ? 0 : tick);
    return at;
  }

  Axis x_, y_;
};

Estimate times(const Estimate& a, const Estimate& b) {
  if (!a.known() || !b.known()) return Estimate::unknown();
  return {a.value * b.value, a.low * b.low, a.high * b.high, std::max(a.provenance, b.provenance)};
}

std::string cell(const Estimate& estimate, const char* unit) {
  if (!estimate.known()) return "<td class=\"muted\">not known</td>";
  const auto number = [](double x) { return std::fabs(x) >= 1000 ? human_count(x) : strf("%.3g ", x); };
  std::string band;
  if (estimate.low < estimate.value || estimate.high > estimate.value)
    band = strf(" <small>[%s.. %s]</small>", number(estimate.low).c_str(), number(estimate.high).c_str());
  return strf("<td>%s%s%s <small>%s</small></td>", number(estimate.value).c_str(), unit, band.c_str(),
              std::string(provenance_name(estimate.provenance)).c_str());
}

struct Arm {
  std::string name;
  Estimate reward, flops, energy, carbon;
};

std::vector<Arm> arms(const ReportInput& input) {
  std::vector<Arm> all;
  const auto add = [&](const char* name, double reward, double flops, double cpu_s) {
    Arm arm{name, Estimate::exact(reward), Estimate::exact(flops), {}, {}};
    arm.flops.provenance = Provenance::kModelled;  // counted by formula, not by a counter
    arm.energy = input.costs ? times(Estimate::exact(cpu_s), input.costs->joules_per_cpu_s)
                             : times(arm.flops, input.joules_per_flop);
    arm.carbon = times(arm.energy, input.gco2e_per_kwh).scaled(1 / 3.6e6);
    all.push_back(std::move(arm));
  };
  const Evaluation& e = input.evaluation;
  add("best static chain", e.static_reward, e.static_flops, e.static_cpu_s);
  add("GreenFlow, equal reward, price on FLOPs", e.equal_reward, e.equal_flops, e.equal_cpu_s);
  if (input.by_cpu) {
    add("GreenFlow, equal reward, price on processor time", input.by_cpu->equal_reward,
        input.by_cpu->equal_flops, input.by_cpu->equal_cpu_s);
  }
  return all;
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

std::string reward_chart(const ReportInput& input) {
  Axis x{"FLOPs a request", true, 1e300, 0}, y{"clicks a request", false, 1e300, 0};
  std::vector<Series> series;
  for (const PolicyCurve& curve : input.evaluation.curves) {
    Series one{std::string(policy_name(curve.kind)), {}};
    for (const PolicyPoint& point : curve.points) {
      one.points.emplace_back(point.cost, point.reward);
      x.low = std::min(x.low, point.cost), x.high = std::max(x.high, point.cost);
      y.low = std::min(y.low, point.reward), y.high = std::max(y.high, point.reward);
    }
    std::sort(one.points.begin(), one.points.end());
    series.push_back(std::move(one));
  }
  if (series.empty() || !(x.high > x.low) || !(y.high > y.low)) return "";
  y.low = std::max(0.0, y.low - 0.05 * (y.high - y.low));
  y.high += 0.05 * (y.high - y.low);
  return Chart(x, y).draw(series, true);
}

std::string day_chart(const DayResult& day, bool price) {
  Series one, load;
  double highest = 0, most_requests = 1;
  for (const WindowRow& row : day.rows) most_requests = std::max(most_requests, row.requests);
  for (const WindowRow& row : day.rows) {
    const double hour = row.start_s / 3600, value = price ? 1e9 * row.price : row.spent / row.budget;
    one.points.emplace_back(hour, value);
    highest = std::max(highest, value);
    load.points.emplace_back(hour, row.requests / most_requests);
  }
  if (one.points.empty()) return "";
  one.name = price ? "price" : "use of the window's budget";
  load.name = "load (its peak is 1)";
  const Axis x{"hour of the day", false, 0, std::max(one.points.back().first, 0.1)};
  if (price) return Chart(x, {"clicks a GFLOP", false, 0, std::max(1.1 * highest, 1e-9)}).draw({one}, false);
  return Chart(x, {"share", false, 0, std::max(1.1, highest)}).draw({one, load}, false);
}

std::string mix_chart(const ReportInput& input) {
  std::vector<size_t> order;
  for (size_t j = 0; j < input.evaluation.chain_share.size(); ++j) {
    if (input.evaluation.chain_share[j] > 0) order.push_back(j);
  }
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return input.evaluation.chain_share[a] > input.evaluation.chain_share[b];
  });
  if (order.size() > 16) order.resize(16);
  std::string table =
      "<table><tr><th>chain (the items that each stage passes on)</th><th>FLOPs</th><th>share of "
      "requests</th></tr>";
  for (const size_t j : order) {
    const double share = input.evaluation.chain_share[j];
    table += strf(
        "<tr><td>%s</td><td>%s</td><td><div class=\"bar\" style=\"width:%.1fpx\"></div> %.1f %%</td></tr>",
        escaped(chain_name(input.spec, static_cast<int>(j))).c_str(),
        human_count(chain_flops(input.spec, static_cast<int>(j))).c_str(),
        200 * share / input.evaluation.chain_share[order[0]], 100 * share);
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
  html += strf("<p>Trained on %s; %d chains; %d seeds.</p>", escaped(input.spec.source).c_str(),
               input.spec.n_chains(), e.seeds);
  html += strf(
      "<p><b>%.1f %% fewer FLOPs</b> (95 %%: %.1f to %.1f) than the best static chain, %s, at %.3f times its "
      "clicks (95 %%: %.3f to %.3f).</p>",
      100 * e.flops_saved, 100 * e.saved_low, 100 * e.saved_high,
      escaped(chain_name(input.spec, e.static_chain)).c_str(), e.reward_ratio, e.ratio_low, e.ratio_high);
  if (!e.reached) {
    html +=
        "<p><b>Equal reward was not reached</b>: no price lets the allocator earn as much on the fitting "
        "requests, so the figures above are those without a price.</p>";
  }
  html += strf(
      "<p>For comparison: the cheapest static chain within 1 %% of the best on the fitting requests, %s, "
      "takes %.1f %% fewer FLOPs and earns %.3f times the clicks.</p>",
      escaped(chain_name(input.spec, e.near_chain)).c_str(), 100 * (1 - e.near_flops / e.static_flops),
      e.near_reward / e.static_reward);
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
          input.costs
              ? "the processor time measured for each chain on this machine, times the joules that the "
                "meter charges for it"
              : "FLOPs times an energy per FLOP (the models of this cascade did not run here)") +
      ", carbon is energy times the grid's intensity; both carry the band of what they are made from. "
      "<code>frugal "
      "cascade replay</code> meters both policies on the real models.</small></p>";
  if (input.costs) html += rank_table(input);
  html += "<h2>Reward against compute</h2>" + reward_chart(input);
  if (!e.at_equal_compute.empty()) {
    html +=
        "<h3>At half of the best static chain's FLOPs</h3><table><tr><th>against</th><th>its "
        "clicks</th><th>GreenFlow's gain</th><th>95 %</th></tr>";
    for (const auto& peer : e.at_equal_compute) {
      html += strf("<tr><td>%s</td><td>%.4f</td><td>%+.2f %%</td><td>%+.2f .. %+.2f %%</td></tr>",
                   std::string(policy_name(peer.kind)).c_str(), peer.reward, 100 * peer.gain,
                   100 * peer.gain_low, 100 * peer.gain_high);
    }
    html += "</table>";
  }
  html += "<h2>Chains chosen at equal reward</h2>" + mix_chart(input);
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
    html += "</table>" + day_chart(input.days[0].second, false) + day_chart(input.days[0].second, true);
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
