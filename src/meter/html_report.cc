#include "meter/html_report.h"

#include <algorithm>
#include <cmath>

#include "base/text.h"
#include "meter/carbon.h"

namespace frugal::meter {
namespace {

constexpr double kWidth = 760, kHeight = 220, kLeft = 64, kRight = 16, kTop = 26, kBottom = 34;

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : utf8_sanitized(text)) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

// A round number of ticks: the least step of 1, 2 or 5 times a power of ten that gives five at most.
double tick_step(double span) {
  if (!(span > 0)) return 1;
  const double power = std::pow(10, std::floor(std::log10(span / 5)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (span / (power * factor) <= 5) return power * factor;
  }
  return power * 10;
}

std::string short_number(double value) {
  if (value == 0) return "0";
  if (std::abs(value) >= 1000) return human_count(value);
  return strf("%.3g", value);
}

// A plot over time or categories: maps values to the page and draws axes.
class Plot {
 public:
  Plot(double x0, double x1, double y1) : x0_(x0), x1_(std::max(x1, x0 + 1e-9)), y1_(y1 > 0 ? y1 : 1) {}

  double x(double value) const { return kLeft + (kWidth - kLeft - kRight) * (value - x0_) / (x1_ - x0_); }
  double y(double value) const {
    return kHeight - kBottom - (kHeight - kTop - kBottom) * std::max(value, 0.0) / y1_;
  }

  void add(const std::string& svg) { body_ += svg; }
  void line(double xa, double ya, double xb, double yb, const char* style) {
    body_ +=
        strf("<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" class=\"%s\"/>", xa, ya, xb, yb, style);
  }
  void bar(double xa, double xb, double value, const char* style, const std::string& title) {
    body_ += strf("<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" class=\"%s\"><title>", xa,
                  y(value), std::max(xb - xa, 0.8), std::max(kHeight - kBottom - y(value), 0.0), style) +
             escaped(title) + "</title></rect>";
  }
  void whisker(double at, double low, double high) {
    line(at, y(low), at, y(high), "band");
    line(at - 5, y(low), at + 5, y(low), "band");
    line(at - 5, y(high), at + 5, y(high), "band");
  }
  void label(double at, double row, const char* anchor, const std::string& text) {
    body_ +=
        strf("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">", at, row, anchor) + escaped(text) + "</text>";
  }
  void value_axis(const char* unit) {
    const double step = tick_step(y1_);
    for (double v = 0; v <= y1_ * 1.0001; v += step) {
      line(kLeft, y(v), kWidth - kRight, y(v), "grid");
      label(kLeft - 6, y(v) + 4, "end", short_number(v));
    }
    label(4, 14, "start", unit);
  }
  void time_axis() {
    constexpr double kSteps[] = {1,        5,        15,        60,    300,       900,       3600,
                                 3 * 3600, 6 * 3600, 12 * 3600, 86400, 2 * 86400, 7 * 86400, 30 * 86400.0};
    double step = kSteps[13];
    for (const double s : kSteps) {
      if ((x1_ - x0_) / s <= 8) {
        step = s;
        break;
      }
    }
    for (double t = std::ceil(x0_ / step) * step; t <= x1_; t += step) {
      const std::string text = format_time(t);
      line(x(t), kHeight - kBottom, x(t), kHeight - kBottom + 4, "axis");
      // A label is some 80 wide: the outer ones stay on the page.
      const char* anchor = x(t) > kWidth - 40 ? "end" : "middle";
      label(std::min(x(t), kWidth - 2), kHeight - kBottom + 17, anchor,
            step >= 86400 ? text.substr(5, 5)
            : step >= 60  ? text.substr(5, 5) + " " + text.substr(11, 5)
                          : text.substr(11, 8));
    }
  }
  std::string svg(const std::string& title) const {
    return strf("<svg viewBox=\"0 0 %.0f %.0f\" role=\"img\" aria-label=\"", kWidth, kHeight) +
           escaped(title) + "\">" + body_ +
           strf("<line x1=\"%.0f\" y1=\"%.0f\" x2=\"%.0f\" y2=\"%.0f\" class=\"axis\"/></svg>", kLeft,
                kHeight - kBottom, kWidth - kRight, kHeight - kBottom);
  }

 private:
  double x0_, x1_, y1_;
  std::string body_;
};

std::string figure(const std::string& title, const std::string& svg, const std::string& caption) {
  return "<figure><h2>" + escaped(title) + "</h2>" + svg + "<figcaption>" + escaped(caption) +
         "</figcaption></figure>\n";
}

// When an entry used its energy: by its power over time where that was kept, else evenly.
std::vector<PowerStretch> stretches_of(const LedgerEntry& e) {
  double joules = 0;
  for (const PowerStretch& p : e.power) joules += p.watts * p.seconds;
  if (joules > 0) return e.power;
  const double length = std::max(e.usage.wall_seconds, 1e-6);
  return {{e.unix_s - length, length, e.usage.energy_j.value / length}};
}

// Mean power of everything in the ledger, over 120 stretches of the time that it spans.
std::string power_plot(std::span<const LedgerEntry> entries) {
  double begin = HUGE_VAL, end = 0;
  for (const LedgerEntry& e : entries) {
    if (!e.usage.energy_j.known()) continue;
    begin = std::min(begin, stretches_of(e).front().begin_unix_s);
    end = std::max(end, e.unix_s);
  }
  if (!(end > begin)) return "";
  constexpr size_t kBins = 120;
  const double width = (end - begin) / kBins;
  std::vector<double> joules(kBins, 0), low(kBins, 0), high(kBins, 0);
  for (const LedgerEntry& e : entries) {
    if (!e.usage.energy_j.known()) continue;
    const std::vector<PowerStretch> stretches = stretches_of(e);
    double sum = 0;
    for (const PowerStretch& p : stretches) sum += p.watts * p.seconds;
    for (const PowerStretch& p : stretches) {
      const double to = p.begin_unix_s + p.seconds;
      const auto first = static_cast<size_t>(std::clamp((p.begin_unix_s - begin) / width, 0.0, kBins - 1.0));
      const auto last = static_cast<size_t>(std::clamp((to - begin) / width, 0.0, kBins - 1.0));
      for (size_t i = first; i <= last; ++i) {
        const double a = begin + width * static_cast<double>(i);
        const double overlap =
            first == last ? p.seconds : std::max(0.0, std::min(a + width, to) - std::max(a, p.begin_unix_s));
        // The whole's energy (memory, GPU and PUE included) by the shape of the processors' power.
        const double part = sum > 0 ? p.watts * overlap / sum : 0;
        joules[i] += e.usage.energy_j.value * part;
        low[i] += e.usage.energy_j.low * part;
        high[i] += e.usage.energy_j.high * part;
      }
    }
  }
  Plot plot(begin, end, 1.05 * *std::max_element(high.begin(), high.end()) / width);
  plot.value_axis("W");
  plot.time_axis();
  for (size_t i = 0; i < kBins; ++i) {
    const double a = begin + width * static_cast<double>(i);
    if (joules[i] <= 0) continue;
    plot.bar(plot.x(a), plot.x(a + width), high[i] / width, "soft",
             strf("%s: %.3g W (%.3g to %.3g)", format_time(a).c_str(), joules[i] / width, low[i] / width,
                  high[i] / width));
    plot.bar(plot.x(a), plot.x(a + width), joules[i] / width, "main",
             strf("%s: %.3g W", format_time(a).c_str(), joules[i] / width));
  }
  return figure("Power over time", plot.svg("Power over time"),
                strf("mean over %s; light: upper end of the 90 %% band; UTC", human_seconds(width).c_str()));
}

std::string component_plot(std::span<const LedgerEntry> entries) {
  struct Part {
    const char* name;
    Estimate LedgerEntry::*member;
    Estimate sum;
    bool any = false;
  };
  Part parts[] = {{"processors", &LedgerEntry::cpu_j, {}, false},
                  {"memory", &LedgerEntry::memory_j, {}, false},
                  {"GPU", &LedgerEntry::gpu_j, {}, false}};
  double most = 0;
  for (Part& part : parts) {
    for (const LedgerEntry& e : entries) {
      const Estimate& x = e.*part.member;
      if (!x.known()) continue;
      if (part.any) {
        part.sum += x;
      } else {
        part.sum = x;
      }
      part.any = true;
    }
    most = std::max(most, part.sum.high);
  }
  if (most <= 0) return "";
  Plot plot(0, 3, 1.05 * most);
  plot.value_axis("J");
  for (int i = 0; i < 3; ++i) {
    const Part& part = parts[i];
    const double middle = plot.x(i + 0.5);
    plot.label(middle, kHeight - kBottom + 17, "middle",
               part.any
                   ? strf("%s (%s)", part.name, std::string(provenance_name(part.sum.provenance)).c_str())
                   : strf("%s: not read", part.name));
    if (!part.any) continue;
    plot.bar(middle - 50, middle + 50, part.sum.value, "main",
             strf("%s: %.4g J (%.3g to %.3g)", part.name, part.sum.value, part.sum.low, part.sum.high));
    plot.whisker(middle, part.sum.low, part.sum.high);
  }
  return figure("Energy by component", plot.svg("Energy by component"),
                "whiskers: 90 % band; the worst provenance of the sum");
}

std::string carbon_plot(const std::vector<Group>& days) {
  double most = 0;
  for (const Group& day : days) most = std::max(most, day.usage.carbon_gco2e.high);
  if (most <= 0) {
    return figure("Carbon by day", "",
                  "no entry has a place: give --region, --intensity or --carbon-file when you run");
  }
  Plot plot(0, static_cast<double>(days.size()), 1.05 * most);
  plot.value_axis("gCO2e");
  const double width = plot.x(1) - plot.x(0);
  const size_t every = (days.size() + 11) / 12;
  for (size_t i = 0; i < days.size(); ++i) {
    const Estimate& c = days[i].usage.carbon_gco2e;
    const double middle = plot.x(static_cast<double>(i) + 0.5);
    if (i % every == 0) plot.label(middle, kHeight - kBottom + 17, "middle", days[i].key.substr(5));
    if (!c.known()) continue;
    const double half = std::min(0.35 * width, 40.0);
    plot.bar(middle - half, middle + half, c.value, "main",
             strf("%s: %.4g g (%.3g to %.3g, %s)", days[i].key.c_str(), c.value, c.low, c.high,
                  std::string(provenance_name(c.provenance)).c_str()));
    plot.whisker(middle, c.low, c.high);
  }
  return figure("Carbon by day", plot.svg("Carbon by day"), "operational; whiskers: 90 % band");
}

std::string jobs_plot(const ReportPage& page) {
  if (page.intensity.size() < 2) return "";
  double most = 0;
  for (const auto& [at, g] : page.intensity) most = std::max(most, g);
  const double begin = page.intensity.front().first, end = page.intensity.back().first + 3600;
  Plot plot(begin, end, 1.1 * most);
  plot.value_axis("g/kWh");
  plot.time_axis();
  const auto intensity_at = [&](double t) {
    const auto after = std::upper_bound(page.intensity.begin(), page.intensity.end(), std::pair(t, HUGE_VAL));
    return after == page.intensity.begin() ? page.intensity.front().second : std::prev(after)->second;
  };
  // Under the curve hour by hour, so that the area is what was emitted.
  const auto fill = [&](const auto& runs, const char* style, const std::string& title) {
    for (const auto& [from, to] : runs) {
      for (double t = std::max(from, begin); t < std::min(to, end);) {
        const double next = std::min(std::min(to, end), (std::floor(t / 3600) + 1) * 3600);
        plot.bar(plot.x(t), plot.x(next), intensity_at(t), style, title);
        t = next;
      }
    }
  };
  for (const JobBar& job : page.jobs) {
    fill(job.runs, "job", job.label + ": " + job.outcome);
    fill(job.planned, "plan", job.label + ": planned");
    if (job.submitted_unix_s >= begin && job.submitted_unix_s <= end) {
      const double at = plot.x(job.submitted_unix_s);
      plot.line(at, kTop, at, kHeight - kBottom, "mark");
    }
    if (job.deadline_unix_s >= begin && job.deadline_unix_s <= end) {
      const double at = plot.x(job.deadline_unix_s);
      plot.line(at, kTop, at, kHeight - kBottom, "deadline");
    }
  }
  std::string path = "<path class=\"curve\" d=\"";
  for (size_t i = 0; i < page.intensity.size(); ++i) {
    const auto& [at, g] = page.intensity[i];
    path += strf("%s%.1f %.1fL%.1f %.1f", i == 0 ? "M" : "L", plot.x(at), plot.y(g), plot.x(at + 3600),
                 plot.y(g));
  }
  plot.add(path + "\"/>");
  return figure("Jobs on the intensity curve", plot.svg("Jobs on the intensity curve"),
                page.intensity_source +
                    "; filled: a job ran; light: planned; dotted: submitted; dashed: deadline; UTC");
}

std::string cell(const Estimate& e, const char* unit) {
  if (!e.known()) return "<td>unknown</td>";
  return strf("<td title=\"%.4g to %.4g, %s\">%.4g %s <small>%s</small></td>", e.low, e.high,
              std::string(provenance_name(e.provenance)).c_str(), e.value, unit,
              std::string(provenance_name(e.provenance)).c_str());
}

std::string group_table(const char* what, const std::vector<Group>& groups, double water, bool embodied) {
  std::string text = strf(
      "<h2>By %s</h2><table><tr><th>%s</th><th>entries</th><th>energy</th><th>carbon</th>%s<th>per unit</th>"
      "<th>SCI per unit</th><th>CPU time</th>%s</tr>\n",
      what, what, embodied ? "<th>embodied</th>" : "", water > 0 ? "<th>water</th>" : "");
  for (const Group& g : groups) {
    text += "<tr><td>" + escaped(g.key) + strf("</td><td>%lld</td>", static_cast<long long>(g.n)) +
            cell(g.usage.energy_j, "J") + cell(g.usage.carbon_gco2e, "g") +
            (embodied ? strf("<td>%.3g g</td>", g.embodied_g) : "") +
            (g.energy_per_unit_j.known()
                 ? strf("<td>%.3g J/", g.energy_per_unit_j.value) + escaped(g.unit) + "</td>"
                 : "<td>no common unit</td>") +
            (g.sci_g.known()
                 ? cell(g.sci_g, escaped("g/" + g.unit).c_str())
                 : strf("<td>%s</td>", g.n_unknown_carbon > 0 ? "some without carbon" : "no common unit")) +
            "<td>" + human_seconds(g.usage.cpu_seconds) + "</td>" +
            (water > 0 ? strf("<td>%.3g l</td>", water * g.usage.energy_j.value / 3.6e6) : "") + "</tr>\n";
  }
  return text + "</table>\n";
}

constexpr const char* kStyle =
    ":root{color-scheme:light "
    "dark;--ink:#1c2733;--soft:#9cc3e6;--main:#1f6fb2;--grid:#d9dfe5;--job:#2f9e5a;--warn:#c0392b;"
    "--paper:#fff}"
    "@media(prefers-color-scheme:dark){:root{--ink:#dfe6ec;--soft:#2c4a66;--main:#5aa9e6;--grid:#33404c;--"
    "job:#4cc27d;"
    "--warn:#ff7b6b;--paper:#12181e}}"
    "body{font:15px/1.5 "
    "system-ui,sans-serif;color:var(--ink);background:var(--paper);max-width:860px;margin:2rem auto;"
    "padding:0 1rem}h1{font-size:1.5rem}h2{font-size:1.1rem;margin:1.4rem 0 .4rem}figure{margin:0}"
    "svg{width:100%;height:auto}svg "
    "text{font-size:11px;fill:var(--ink)}figcaption,small{color:var(--ink);opacity:.7;"
    "font-size:.85rem}"
    ".grid{stroke:var(--grid)}.axis{stroke:var(--ink)}.main{fill:var(--main)}.soft{fill:var(--soft)}"
    ".job{fill:var(--job);opacity:.65}.plan{fill:var(--job);opacity:.25}.band{stroke:var(--ink);stroke-width:"
    "1.5}.curve{fill:none;stroke:var(--"
    "main);"
    "stroke-width:1.8}.mark{stroke:var(--ink);stroke-dasharray:2 "
    "3}.deadline{stroke:var(--warn);stroke-dasharray:6 4}"
    "table{border-collapse:collapse;width:100%;font-size:.9rem}td,th{text-align:left;padding:.25rem .6rem "
    ".25rem 0;"
    "border-bottom:1px solid var(--grid);vertical-align:top}";

}  // namespace

std::string html_report(const ReportPage& page) {
  const auto days = group_entries(page.entries, GroupBy::kDay, page.embodied);
  std::string text =
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
      "content=\"width=device-width, initial-scale=1\"><title>frugal: what runs cost</title><style>" +
      std::string(kStyle) + "</style></head><body>\n<h1>What runs cost</h1>\n";
  if (page.entries.empty()) {
    text +=
        "<p>The ledger holds nothing of that kind yet: <code>frugal meter run -- COMMAND</code> writes to "
        "it.</p>\n";
  } else {
    text += strf(
        "<p>%zu entries, %s to %s (UTC). Every figure says whether it is measured, modelled or assumed; "
        "hover over it "
        "for its 90 %% band.</p>\n",
        page.entries.size(), format_time(page.entries.front().unix_s).c_str(),
        format_time(page.entries.back().unix_s).c_str());
    text += power_plot(page.entries) + component_plot(page.entries) + carbon_plot(days);
  }
  text += jobs_plot(page);
  if (!page.entries.empty()) {
    for (const auto& [what, by] : {std::pair{"day", GroupBy::kDay},
                                   {"project", GroupBy::kProject},
                                   {"model", GroupBy::kModel},
                                   {"kind", GroupBy::kKind}}) {
      text += group_table(what, group_entries(page.entries, by, page.embodied), page.water_l_per_kwh,
                          page.embodied.total_kg > 0);
    }
    if (page.embodied.total_kg <= 0)
      text += "<p><small>Embodied emissions are not counted: --embodied-kg says them.</small></p>\n";
  }
  if (!page.jobs.empty()) {
    text += "<h2>Jobs</h2><table><tr><th>job</th><th>outcome</th><th>ran</th></tr>\n";
    for (const JobBar& job : page.jobs) {
      text += "<tr><td>" + escaped(job.label) + "</td><td>" + escaped(job.outcome) + "</td><td>";
      for (const auto& [from, to] : job.runs) {
        text += format_time(from).substr(0, 16) + " to " + format_time(to).substr(11, 5) + "<br>";
      }
      for (const auto& [from, to] : job.planned) {
        text +=
            "planned " + format_time(from).substr(0, 16) + " to " + format_time(to).substr(11, 5) + "<br>";
      }
      text += "</td></tr>\n";
    }
    text += "</table>\n";
  }
  text += strf(
      "<p><small>Made %s by frugal. SCI = ((E x I) + M) per R (ISO/IEC 21031:2024); I is location-based. "
      "Energy includes "
      "the PUE given when an entry was written.</small></p>\n</body></html>\n",
      format_time(page.now_unix_s).c_str());
  return text;
}

}  // namespace frugal::meter
