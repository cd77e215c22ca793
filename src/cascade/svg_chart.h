// Line charts as inline SVG, for pages that need no scripts.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace frugal::cascade {

struct Series {
  std::string name;
  std::vector<std::pair<double, double>> points;
};

struct Axis {
  std::string title;
  bool logarithmic = false;
  double low = 0, high = 1;
};

// Lines in the order of `series`, `dots` on their points, with a legend below where there are several. Points
// outside the axes are drawn on the edge.
std::string line_chart(const Axis& x, const Axis& y, const std::vector<Series>& series, bool dots);

// Text for HTML: what is not UTF-8 is replaced, markup is quoted.
std::string escaped(std::string_view text);

}  // namespace frugal::cascade
