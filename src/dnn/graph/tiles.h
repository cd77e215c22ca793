// Vertical separation (VSM): which rows and columns of every tensor of a segment a tile of its output needs.
// Pure arithmetic, from the last vertex back to the first.
#pragma once

#include <array>
#include <map>
#include <span>
#include <vector>

#include "frugal/dnn.h"

namespace frugal::dnn {

// [begin, end), in rows or columns of the whole tensor.
struct Range {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
  bool operator==(const Range&) const = default;
};

// Rows and columns of a feature map, over all channels.
struct Region {
  std::array<Range, 2> axes;
  int64_t area() const { return axes[0].size() * axes[1].size(); }
  bool operator==(const Region&) const = default;
};

// The whole plane of a tensor [n, channels, rows, columns], or of [1, columns].
Region whole_region(const Tensor& tensor);

// What computing outputs `out` along one axis reads: inputs clipped to [0, input_size), and the zeros that
// stand for those that fall outside. Border tiles get asymmetric pads, inner ones none.
struct AxisRead {
  Range range;
  int64_t pad_begin = 0, pad_end = 0;
};
AxisRead axis_read(const Window& window, int axis, Range out, int64_t input_size);

// One input of one vertex of a tile.
struct TileRead {
  Region region;  // of the input tensor, absolute
  std::array<int64_t, 2> pad_begin{}, pad_end{};
};

// What a vertex reads of one of its inputs, whose plane is `plane`, to compute `needed` of its output; an
// empty region where that would be padding alone.
TileRead read_of(const Vertex& vertex, size_t input, const Region& needed, const Region& plane);

// A tile of a segment.
struct Tile {
  Region output;               // of the segment's output tensor
  std::vector<int> vertices;   // ascending
  std::map<int, Region> held;  // tensor -> what the tile computes of it, or is given (segment inputs)
  std::vector<std::vector<TileRead>> reads;  // [vertex in `vertices`][its input]
  double flops = 0;                          // by area, halos counted
};

// A run of vertices that can be tiled: all have windows, and one tensor leaves it. Or one dense layer.
struct Segment {
  std::vector<int> vertices;  // ascending
  std::vector<int> inputs;    // tensors that come from outside
  int output = -1;            // tensor
};

// kInvalidArgument when a vertex cannot be tiled, or not exactly one tensor leaves.
Result<Segment> make_segment(const Graph& graph, std::span<const int> vertices);

// kOutOfRange when the region is empty or outside the output. A tensor that several vertices read is held for
// the union of what they need.
Result<Tile> make_tile(const Graph& graph, const Segment& segment, const Region& output);

// Rows of `needed` that are not in `owned`: at most two ranges.
std::vector<Range> missing_rows(Range needed, Range owned);
// Rows of owned[i] that others need: at most two ranges. Parts lie one after the other, [n_parts] both.
std::vector<Range> shared_rows(std::span<const Range> owned, std::span<const Range> needed, size_t i);

// Splits [0, size) into parts proportional to `weights` (> 0), each at least one long while there are enough;
// parts that would be empty are left out at the end.
std::vector<Range> split_range(int64_t size, std::span<const double> weights);

// Row tiles, unequal for unequal workers; grid tiles, n_rows x n_columns of about equal size. Of what a dense
// layer makes: ranges of columns.
std::vector<Region> row_tiles(const Tensor& tensor, std::span<const double> weights);
std::vector<Region> grid_tiles(const Tensor& tensor, int n_rows, int n_columns);

// Runs of vertices among `among` (ascending) between tensors through which everything flows, the smallest
// that can be tiled: each may be tiled alone, and neighbours may be joined. In order.
std::vector<Segment> smallest_segments(const Graph& graph, std::span<const int> among);

}  // namespace frugal::dnn
