#include "cli/cot_plot.h"

#include <algorithm>
#include <cstdio>

#include "base/text.h"

namespace frugal::cli {

namespace {

struct Axis {
  double from = 0, to = 1, step = 0.2;
  const char* format = "%.1f";  // of a tick
  double scale = 1;             // of the number in it
};

struct Line {
  std::string name;
  const char* colour;
  std::vector<std::pair<double, double>> points;
};

std::string plot(const std::string& title, const Axis& x, const Axis& y, const std::vector<Line>& lines) {
  constexpr double kWidth = 560, kHeight = 360, kLeft = 60, kTop = 30, kPlotWidth = 460, kPlotHeight = 270;
  const auto at_x = [&](double v) {
    return kLeft + kPlotWidth * std::clamp((v - x.from) / (x.to - x.from), 0.0, 1.0);
  };
  const auto at_y = [&](double v) {
    return kTop + kPlotHeight * (1 - std::clamp((v - y.from) / (y.to - y.from), 0.0, 1.0));
  };
  const auto tick = [](const Axis& axis, double v) {
    char text[32];
    std::snprintf(text, sizeof text, axis.format, v * axis.scale);
    return std::string(text);
  };
  std::string out = strf(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%.0f\" height=\"%.0f\" font-family=\"sans-serif\" "
      "font-size=\"12\">\n<rect width=\"100%%\" height=\"100%%\" fill=\"white\"/>\n",
      kWidth, kHeight);
  for (double v = y.from; v < y.to + y.step / 2; v += y.step) {
    out += strf(
        "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" stroke=\"#ddd\"/>"
        "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">%s</text>\n",
        kLeft, at_y(v), kLeft + kPlotWidth, at_y(v), kLeft - 6, at_y(v) + 4, tick(y, v).c_str());
  }
  for (double v = x.from; v < x.to + x.step / 2; v += x.step) {
    out += strf("<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%s</text>\n", at_x(v),
                kTop + kPlotHeight + 18, tick(x, v).c_str());
  }
  out += strf("<text x=\"%.1f\" y=\"18\">%s:", kLeft, title.c_str());
  for (const Line& line : lines)
    out += strf(" <tspan fill=\"%s\">%s</tspan>", line.colour, line.name.c_str());
  out += "</text>\n";
  for (const Line& line : lines) {
    std::string points;
    for (const auto& [a, b] : line.points) {
      points += strf("%.1f,%.1f ", at_x(a), at_y(b));
      out += strf("<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" fill=\"%s\"/>", at_x(a), at_y(b), line.colour);
    }
    out += strf("<polyline points=\"%s\" fill=\"none\" stroke=\"%s\"/>\n", points.c_str(), line.colour);
  }
  return out + "</svg>\n";
}

}  // namespace

std::string glance_svg(const std::vector<CotPoint>& curve) {
  Line glance{"FastCoT", "#1f77b4", {}}, trunc{"Trunc-CoT", "#d62728", {}};
  for (const CotPoint& point : curve) {
    glance.points.emplace_back(point.glance.saved, point.glance.agreement);
    trunc.points.emplace_back(point.trunc.saved, point.trunc.agreement);
  }
  const Axis percent{0, 1, 0.2, "%.0f %%", 100};
  return plot("agreement with the whole chain over time saved", percent, percent, {glance, trunc});
}

std::string windows_svg(const std::vector<BenchRow>& rows) {
  Line adaptive{"adaptive", "#1f77b4", {{0, 1}}}, fixed{"fixed", "#d62728", {{0, 1}}};
  double most = 1;
  for (const BenchRow& row : rows) {
    int window = 0;
    if (std::sscanf(row.name.c_str(), "window %d", &window) != 1) continue;
    (row.name.ends_with("fixed") ? fixed : adaptive).points.emplace_back(window, row.ratio);
    most = std::max(most, row.ratio);
  }
  if (adaptive.points.size() + fixed.points.size() == 2) return "";
  return plot("speed over greedy decoding by longest draft", {0, 16, 2, "%.0f"},
              {0, 0.5 * static_cast<int>(2 * most + 1), 0.5, "%.1f x"}, {adaptive, fixed});
}

}  // namespace frugal::cli
