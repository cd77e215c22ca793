#include "dnn/graph/tiles.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "base/text.h"

namespace frugal::dnn {
namespace {

Range hull(Range a, Range b) { return {std::min(a.begin, b.begin), std::max(a.end, b.end)}; }

}  // namespace

Region whole_region(const Tensor& tensor) {
  const size_t rank = tensor.shape.size();
  if (rank != 4 && !(rank == 2 && tensor.shape[0] == 1)) return {};
  return {{Range{0, tensor.shape[rank - 2]}, Range{0, tensor.shape[rank - 1]}}};
}

AxisRead axis_read(const Window& window, int axis, Range out, int64_t input_size) {
  const auto a = static_cast<size_t>(axis);
  const int64_t first = out.begin * window.stride[a] - window.pad_begin[a];
  const int64_t last =
      (out.end - 1) * window.stride[a] - window.pad_begin[a] + (window.kernel[a] - 1) * window.dilation[a];
  AxisRead read;
  read.pad_begin = std::max<int64_t>(0, -first);
  read.pad_end = std::max<int64_t>(0, last - (input_size - 1));
  read.range = {std::max<int64_t>(0, first), std::min(input_size, last + 1)};
  return read;
}

TileRead read_of(const Vertex& vertex, size_t input, const Region& needed, const Region& plane) {
  TileRead read;
  if (vertex.is_dense) read.region = plane;
  for (size_t a = 0; a < 2 && !vertex.is_dense; ++a) {
    const AxisRead axis =
        axis_read(vertex.windows[input], static_cast<int>(a), needed.axes[a], plane.axes[a].end);
    if (axis.range.size() <= 0) return {};
    read.region.axes[a] = axis.range;
    read.pad_begin[a] = axis.pad_begin;
    read.pad_end[a] = axis.pad_end;
  }
  return read;
}

Result<Segment> make_segment(const Graph& graph, std::span<const int> vertices) {
  Segment segment;
  segment.vertices.assign(vertices.begin(), vertices.end());
  std::sort(segment.vertices.begin(), segment.vertices.end());
  const std::set<int> inside(segment.vertices.begin(), segment.vertices.end());
  for (const int v : segment.vertices) {
    if (v < 0 || static_cast<size_t>(v) >= graph.vertices.size()) {
      return Error{ErrorCode::kInvalidArgument, strf("there is no vertex %d", v)};
    }
    const Vertex& vertex = graph.vertices[static_cast<size_t>(v)];
    const bool is_dense_alone = vertex.is_dense && vertices.size() == 1 && vertex.inputs.size() == 1;
    if ((!is_dense_alone && (vertex.windows.empty() || vertex.windows.size() != vertex.inputs.size())) ||
        vertex.outputs.size() != 1) {
      return Error{ErrorCode::kInvalidArgument,
                   strf("vertex %d ('%s', %s) cannot be tiled", v, vertex.name.c_str(), vertex.kind.c_str())};
    }
    for (const int t : vertex.inputs) {
      const bool from_outside = !inside.count(graph.tensors[static_cast<size_t>(t)].producer);
      if (from_outside &&
          std::find(segment.inputs.begin(), segment.inputs.end(), t) == segment.inputs.end()) {
        segment.inputs.push_back(t);
      }
    }
    const Tensor& tensor = graph.tensors[static_cast<size_t>(vertex.outputs[0])];
    const bool leaves = tensor.is_output || std::any_of(tensor.consumers.begin(), tensor.consumers.end(),
                                                        [&](int w) { return !inside.count(w); });
    if (!leaves) continue;
    if (segment.output >= 0) {
      return Error{
          ErrorCode::kInvalidArgument,
          strf("both '%s' and '%s' leave the segment; a tile has one output",
               graph.tensors[static_cast<size_t>(segment.output)].name.c_str(), tensor.name.c_str())};
    }
    segment.output = vertex.outputs[0];
  }
  if (segment.output < 0) return Error{ErrorCode::kInvalidArgument, "nothing leaves the segment"};
  return segment;
}

Result<Tile> make_tile(const Graph& graph, const Segment& segment, const Region& output) {
  const Region whole = whole_region(graph.tensors[static_cast<size_t>(segment.output)]);
  for (size_t a = 0; a < 2; ++a) {
    if (output.axes[a].size() <= 0 || output.axes[a].begin < 0 || output.axes[a].end > whole.axes[a].end) {
      return Error{
          ErrorCode::kOutOfRange,
          strf("the tile [%ld, %ld) of %s is empty or outside the %ld that there are", output.axes[a].begin,
               output.axes[a].end, a == 0 ? "rows" : "columns", whole.axes[a].end)};
    }
  }
  Tile tile;
  tile.output = output;
  tile.vertices = segment.vertices;
  tile.reads.resize(segment.vertices.size());
  tile.held[segment.output] = output;
  for (size_t i = segment.vertices.size(); i-- > 0;) {
    const Vertex& vertex = graph.vertices[static_cast<size_t>(segment.vertices[i])];
    const auto held = tile.held.find(vertex.outputs[0]);
    if (held == tile.held.end()) {
      return Error{ErrorCode::kInvalidArgument,
                   strf("nobody in the segment reads '%s'", vertex.name.c_str())};
    }
    const Region needed = held->second;
    const Region full = whole_region(graph.tensors[static_cast<size_t>(vertex.outputs[0])]);
    tile.flops += vertex.flops * static_cast<double>(needed.area()) /
                  static_cast<double>(std::max<int64_t>(1, full.area()));
    for (size_t input = 0; input < vertex.inputs.size(); ++input) {
      const int t = vertex.inputs[input];
      const Region plane = whole_region(graph.tensors[static_cast<size_t>(t)]);
      const TileRead read = read_of(vertex, input, needed, plane);
      // A tile of nothing but padding has nothing to run on.
      if (read.region.area() <= 0) {
        return Error{ErrorCode::kOutOfRange,
                     strf("a tile of '%s' would read padding alone", vertex.name.c_str())};
      }
      tile.reads[i].push_back(read);
      const auto [at, is_new] = tile.held.emplace(t, read.region);
      if (!is_new) {
        for (size_t a = 0; a < 2; ++a) at->second.axes[a] = hull(at->second.axes[a], read.region.axes[a]);
      }
    }
  }
  return tile;
}

std::vector<Range> missing_rows(Range needed, Range owned) {
  std::vector<Range> missing = {{needed.begin, std::min(needed.end, owned.begin)},
                                {std::max(needed.begin, owned.end), needed.end}};
  std::erase_if(missing, [](const Range& range) { return range.size() <= 0; });
  return missing;
}

std::vector<Range> shared_rows(std::span<const Range> owned, std::span<const Range> needed, size_t i) {
  Range head{owned[i].begin, owned[i].begin}, tail{owned[i].end, owned[i].end};
  for (size_t j = 0; j < needed.size(); ++j) {
    if (j < i) head.end = std::clamp(needed[j].end, head.end, owned[i].end);
    if (j > i) tail.begin = std::clamp(needed[j].begin, owned[i].begin, tail.begin);
  }
  if (head.end >= tail.begin) return {owned[i]};
  std::vector<Range> shared = {head, tail};
  std::erase_if(shared, [](const Range& range) { return range.size() == 0; });
  return shared;
}

std::vector<Range> split_range(int64_t size, std::span<const double> weights) {
  double total = 0;
  for (const double weight : weights) total += weight;
  std::vector<Range> parts;
  double sum = 0;
  int64_t at = 0;
  for (size_t i = 0; i < weights.size() && at < size; ++i) {
    sum += weights[i];
    const auto left = static_cast<int64_t>(weights.size() - i - 1);
    int64_t end = i + 1 == weights.size() ? size : std::llround(static_cast<double>(size) * sum / total);
    end = std::max(at + 1, std::min(end, size - std::min(left, size - at - 1)));
    parts.push_back({at, end});
    at = end;
  }
  return parts;
}

std::vector<Region> row_tiles(const Tensor& tensor, std::span<const double> weights) {
  const Region whole = whole_region(tensor);
  std::vector<Region> tiles;
  if (tensor.shape.size() == 2) {
    // In whole blocks, so that a tile's last columns are taken by the same kernels as the whole's.
    constexpr int64_t kBlock = 64;
    const int64_t n = whole.axes[1].end;
    for (const Range blocks : split_range((n + kBlock - 1) / kBlock, weights))
      tiles.push_back({{whole.axes[0], {blocks.begin * kBlock, std::min(n, blocks.end * kBlock)}}});
    return tiles;
  }
  for (const Range rows : split_range(whole.axes[0].end, weights)) tiles.push_back({{rows, whole.axes[1]}});
  return tiles;
}

std::vector<Region> grid_tiles(const Tensor& tensor, int n_rows, int n_columns) {
  const Region whole = whole_region(tensor);
  const std::vector<double> even_rows(static_cast<size_t>(n_rows), 1),
      even_columns(static_cast<size_t>(n_columns), 1);
  std::vector<Region> tiles;
  for (const Range rows : split_range(whole.axes[0].end, even_rows)) {
    for (const Range columns : split_range(whole.axes[1].end, even_columns))
      tiles.push_back({{rows, columns}});
  }
  return tiles;
}

std::vector<Segment> smallest_segments(const Graph& graph, std::span<const int> among) {
  std::vector<Segment> segments;
  std::vector<int> run;
  // A run in topological order is complete when everything that vertices beyond it read of it, or of what it
  // reads, is the output of its last vertex.
  int furthest = -1;  // consumer of any tensor of the run but that output
  for (const int v : among) {
    const Vertex& vertex = graph.vertices[static_cast<size_t>(v)];
    if (vertex.windows.empty()) {
      run.clear();
      furthest = -1;
      if (!vertex.is_dense || graph.tensors[static_cast<size_t>(vertex.inputs[0])].consumers.size() != 1)
        continue;
      if (Result<Segment> alone = make_segment(graph, std::span(&v, 1)); alone.ok())
        segments.push_back(*std::move(alone));
      continue;
    }
    if (!run.empty()) {
      const int previous = graph.vertices[static_cast<size_t>(run.back())].outputs[0];
      for (const int w : graph.tensors[static_cast<size_t>(previous)].consumers)
        furthest = std::max(furthest, w);
    }
    run.push_back(v);
    for (const int t : vertex.inputs) {
      for (const int w : graph.tensors[static_cast<size_t>(t)].consumers) furthest = std::max(furthest, w);
    }
    if (furthest > v) continue;
    Result<Segment> segment = make_segment(graph, run);
    if (segment.ok() && segment->inputs.size() == 1) segments.push_back(*std::move(segment));
    run.clear();
    furthest = -1;
  }
  return segments;
}

}  // namespace frugal::dnn
