#include "cascade/svg_chart.h"

#include <algorithm>
#include <cmath>

#include "base/text.h"

namespace frugal::cascade {
namespace {

// Colours that stay apart for readers with any colour vision (Okabe and Ito 2008).
constexpr const char* kColours[] = {"#000000", "#E69F00", "#56B4E9", "#009E73",
                                    "#CC79A7", "#0072B2", "#D55E00"};
constexpr double kWidth = 660, kHeight = 300, kLeft = 64, kRight = 16, kTop = 16, kBottom = 44;

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
        for (const double step : {1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0}) {
          if (axis.high / axis.low > 30 && step != 1 && step != 3) continue;
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

}  // namespace

std::string line_chart(const Axis& x, const Axis& y, const std::vector<Series>& series, bool dots) {
  return Chart(x, y).draw(series, dots);
}

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

}  // namespace frugal::cascade
