#include "dnn/graph/svg.h"

#include <algorithm>
#include <map>

#include "base/text.h"

namespace frugal::dnn {
namespace {

std::string escaped(const std::string& text) {
  std::string out;
  for (const char c : utf8_sanitized(text)) {
    if (c == '<')
      out += "&lt;";
    else if (c == '>')
      out += "&gt;";
    else if (c == '&')
      out += "&amp;";
    else if (c == '"')
      out += "&quot;";
    else if (static_cast<unsigned char>(c) >= 0x20)
      out += c;
  }
  return out;
}

}  // namespace

std::string graph_svg(const Graph& graph, std::span<const int> tier) {
  constexpr int kWidth = 150, kHeight = 26, kGapX = 14, kGapY = 22, kMargin = 20;
  static constexpr const char* kColours[] = {"#4c78a8", "#f58518", "#54a24b", "#b279a2",
                                             "#e45756", "#72b7b2", "#9d755d"};
  const std::vector<int> layer = layers_of(graph);
  std::map<int, int> in_layer;
  std::vector<int> column(graph.vertices.size());
  int widest = 1;
  for (size_t v = 0; v < column.size(); ++v) {
    column[v] = in_layer[layer[v]]++;
    widest = std::max(widest, in_layer[layer[v]]);
  }
  const int n_layers = in_layer.empty() ? 0 : in_layer.rbegin()->first + 1;
  const int width = 2 * kMargin + widest * (kWidth + kGapX),
            height = 2 * kMargin + n_layers * (kHeight + kGapY);
  const auto x_of = [&](size_t v) {
    const int row = in_layer[layer[v]] * (kWidth + kGapX);
    return (width - row) / 2 + column[v] * (kWidth + kGapX);
  };
  const auto y_of = [&](size_t v) { return kMargin + layer[v] * (kHeight + kGapY); };
  std::map<std::string, size_t> colour_of;
  std::string svg = strf(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" font-family=\"sans-serif\" "
      "font-size=\"10\">\n",
      width, height);
  for (const Tensor& tensor : graph.tensors) {
    for (const int w : tensor.consumers) {
      const auto u = static_cast<size_t>(tensor.producer), c = static_cast<size_t>(w);
      const bool cut = !tier.empty() && tier[u] != tier[c];
      svg += strf("<line x1=\"%d\" y1=\"%d\" x2=\"%d\" y2=\"%d\" stroke=\"%s\" stroke-width=\"%s\"/>\n",
                  x_of(u) + kWidth / 2, y_of(u) + kHeight, x_of(c) + kWidth / 2, y_of(c),
                  cut ? "#d62728" : "#999", cut ? "2.5" : "1");
    }
  }
  for (size_t v = 0; v < graph.vertices.size(); ++v) {
    const Vertex& vertex = graph.vertices[v];
    const size_t colour = tier.empty() ? colour_of.emplace(vertex.kind, colour_of.size()).first->second
                                       : static_cast<size_t>(tier[v]);
    svg += strf(
        "<g><title>%s: %s, %s FLOP, %s of weights</title><rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" "
        "rx=\"4\" "
        "fill=\"%s\"/><text x=\"%d\" y=\"%d\" fill=\"white\" text-anchor=\"middle\">%s</text></g>\n",
        escaped(vertex.name).c_str(), escaped(vertex.kind).c_str(), human_count(vertex.flops).c_str(),
        human_bytes(static_cast<double>(vertex.weight_bytes)).c_str(), x_of(v), y_of(v), kWidth, kHeight,
        kColours[colour % std::size(kColours)], x_of(v) + kWidth / 2, y_of(v) + 17,
        escaped(vertex.name.substr(0, utf8_complete_prefix(vertex.name.substr(0, 22)))).c_str());
  }
  return svg + "</svg>\n";
}

}  // namespace frugal::dnn
