// A drawing of a graph: a row a layer, a box a vertex as wide as its share of the work allows, coloured by
// kind or tier.
#pragma once

#include <span>
#include <string>

#include "frugal/dnn.h"

namespace frugal::dnn {

// Self-contained SVG. With `tier` [n_vertices], boxes are coloured by tier; without, by kind.
std::string graph_svg(const Graph& graph, std::span<const int> tier = {});

}  // namespace frugal::dnn
