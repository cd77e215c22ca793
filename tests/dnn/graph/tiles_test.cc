// The tile arithmetic against a naive twin: a network of windowed sums evaluated on the whole plane, and on
// tiles with just the region and pads that the arithmetic gives. Integers, so equality is exact.
#include "dnn/graph/tiles.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>

#include "base/rng.h"
#include "base/text.h"

namespace frugal::dnn {
namespace {

// A plane of integers: part of a tensor, placed at `region`.
struct Plane {
  Region region;
  std::vector<int64_t> values;
  int64_t columns() const { return region.axes[1].size(); }
  int64_t at(int64_t row, int64_t column) const {
    const int64_t r = row - region.axes[0].begin, c = column - region.axes[1].begin;
    EXPECT_TRUE(r >= 0 && c >= 0 && r < region.axes[0].size() && c < columns())
        << "a read outside what is held";
    return values[static_cast<size_t>(r * columns() + c)];
  }
};

Plane part_of(const Plane& plane, const Region& region) {
  Plane part{region, {}};
  for (int64_t r = region.axes[0].begin; r < region.axes[0].end; ++r) {
    for (int64_t c = region.axes[1].begin; c < region.axes[1].end; ++c) part.values.push_back(plane.at(r, c));
  }
  return part;
}

// A weighted sum over a window with explicit pads, like a convolution: knows nothing of absolute positions.
std::vector<int64_t> windowed_sum(const Plane& in, const Window& w, std::array<int64_t, 2> pad_begin,
                                  std::array<int64_t, 2> pad_end, std::array<int64_t, 2>* out_size) {
  const int64_t rows = in.region.axes[0].size(), columns = in.columns();
  const int64_t padded[2] = {rows + pad_begin[0] + pad_end[0], columns + pad_begin[1] + pad_end[1]};
  for (size_t a = 0; a < 2; ++a) {
    (*out_size)[a] = (padded[a] - (w.kernel[a] - 1) * w.dilation[a] - 1) / w.stride[a] + 1;
  }
  std::vector<int64_t> out;
  for (int64_t i = 0; i < (*out_size)[0]; ++i) {
    for (int64_t j = 0; j < (*out_size)[1]; ++j) {
      int64_t sum = 0;
      for (int64_t u = 0; u < w.kernel[0]; ++u) {
        for (int64_t v = 0; v < w.kernel[1]; ++v) {
          const int64_t r = i * w.stride[0] - pad_begin[0] + u * w.dilation[0];
          const int64_t c = j * w.stride[1] - pad_begin[1] + v * w.dilation[1];
          if (r < 0 || c < 0 || r >= rows || c >= columns) continue;
          sum += (3 * u + 5 * v + 1) * in.values[static_cast<size_t>(r * columns + c)];
        }
      }
      out.push_back(sum % 1000003);
    }
  }
  return out;
}

// A random segment of windowed vertices with branches that join by addition; vertex 0 is the input.
struct Case {
  Graph graph;
  std::vector<std::array<int64_t, 2>> pad_end;  // of each vertex's first input
  Segment segment;
};

Case random_case(Rng& rng) {
  Case c;
  const auto add_vertex = [&](std::vector<int> inputs, const Window& window, std::array<int64_t, 2> pad_end,
                              int64_t rows, int64_t columns) {
    const int v = static_cast<int>(c.graph.vertices.size());
    Vertex vertex;
    vertex.name = strf("v%d", v);
    vertex.kind = v == 0 ? "Input" : "Convolution";
    vertex.inputs = inputs;
    vertex.outputs = {v};
    for (size_t i = 0; v > 0 && i < inputs.size(); ++i) vertex.windows.push_back(i == 0 ? window : Window{});
    c.graph.vertices.push_back(vertex);
    for (const int t : inputs) c.graph.tensors[static_cast<size_t>(t)].consumers.push_back(v);
    Tensor tensor;
    tensor.name = strf("t%d", v);
    tensor.shape = {1, 1, rows, columns};
    tensor.producer = v;
    c.graph.tensors.push_back(tensor);
    c.pad_end.push_back(pad_end);
    return v;
  };
  const auto shape = [&](int t, size_t a) { return c.graph.tensors[static_cast<size_t>(t)].shape[2 + a]; };
  int last = add_vertex({}, {}, {0, 0}, 20 + rng.below(20), 20 + rng.below(20));
  const auto random_window = [&](int input, bool keeps_size, std::array<int64_t, 2>* pad_end,
                                 std::array<int64_t, 2>* out) {
    Window w;
    for (size_t a = 0; a < 2; ++a) {
      w.kernel[a] = 1 + rng.below(4);
      w.dilation[a] = 1 + rng.below(2);
      const int64_t reach = (w.kernel[a] - 1) * w.dilation[a];
      if (keeps_size) {
        w.pad_begin[a] = rng.below(static_cast<uint32_t>(reach + 1));
        (*pad_end)[a] = reach - w.pad_begin[a];
      } else {
        w.stride[a] = 1 + rng.below(3);
        w.pad_begin[a] = rng.below(static_cast<uint32_t>(reach + 1));
        (*pad_end)[a] = rng.below(static_cast<uint32_t>(reach + 1));
      }
      (*out)[a] = (shape(input, a) + w.pad_begin[a] + (*pad_end)[a] - reach - 1) / w.stride[a] + 1;
    }
    return w;
  };
  const uint32_t n_blocks = 1 + rng.below(3);
  for (uint32_t block = 0; block < n_blocks; ++block) {
    std::array<int64_t, 2> pad_end{}, out{};
    if (rng.below(2) == 0) {  // plain
      const Window w = random_window(last, false, &pad_end, &out);
      if (out[0] < 4 || out[1] < 4) continue;
      last = add_vertex({last}, w, pad_end, out[0], out[1]);
    } else {  // a residual pair of branches
      const int start = last;
      Window w = random_window(start, true, &pad_end, &out);
      const int branch = add_vertex({start}, w, pad_end, out[0], out[1]);
      w = random_window(branch, true, &pad_end, &out);
      last = add_vertex({branch, start}, w, pad_end, out[0], out[1]);
    }
  }
  if (last == 0) {
    std::array<int64_t, 2> pad_end{}, out{};
    const Window w = random_window(0, true, &pad_end, &out);
    last = add_vertex({0}, w, pad_end, out[0], out[1]);
  }
  c.graph.tensors[static_cast<size_t>(last)].is_output = true;
  std::vector<int> vertices;
  for (int v = 1; v <= last; ++v) vertices.push_back(v);
  c.segment = make_segment(c.graph, vertices).value();
  return c;
}

Plane whole_output(const Case& c, const Plane& input, std::vector<Plane>* planes) {
  planes->assign(1, input);
  for (size_t v = 1; v < c.graph.vertices.size(); ++v) {
    const Vertex& vertex = c.graph.vertices[v];
    std::array<int64_t, 2> size{};
    Plane out{whole_region(c.graph.tensors[v]), {}};
    out.values = windowed_sum((*planes)[static_cast<size_t>(vertex.inputs[0])], vertex.windows[0],
                              vertex.windows[0].pad_begin, c.pad_end[v], &size);
    EXPECT_EQ(size[0], c.graph.tensors[v].shape[2]);
    for (size_t i = 1; i < vertex.inputs.size(); ++i) {
      const Plane& other = (*planes)[static_cast<size_t>(vertex.inputs[i])];
      for (size_t k = 0; k < out.values.size(); ++k) out.values[k] += other.values[k];
    }
    planes->push_back(std::move(out));
  }
  return planes->back();
}

// Evaluates a tile from its input region alone, slicing what each vertex reads. `slip` moves every read by
// that many rows: a seeded bug.
bool tile_matches(const Case& c, const Tile& tile, const Plane& input, const Plane& expected, int slip = 0) {
  std::map<int, Plane> planes;
  planes[0] = part_of(input, tile.held.at(0));
  for (size_t i = 0; i < tile.vertices.size(); ++i) {
    const auto v = static_cast<size_t>(tile.vertices[i]);
    const Vertex& vertex = c.graph.vertices[v];
    TileRead read = tile.reads[i][0];
    Plane in = part_of(planes.at(vertex.inputs[0]), read.region);
    if (slip != 0) {
      read.pad_begin[0] += slip;
      read.pad_end[0] -= slip;
      if (read.pad_end[0] < 0) return true;  // nothing to slip into here
    }
    std::array<int64_t, 2> size{};
    Plane out{tile.held.at(vertex.outputs[0]), {}};
    out.values = windowed_sum(in, vertex.windows[0], read.pad_begin, read.pad_end, &size);
    if (size[0] != out.region.axes[0].size() || size[1] != out.region.axes[1].size()) return false;
    for (size_t k = 1; k < vertex.inputs.size(); ++k) {
      const Plane other = part_of(planes.at(vertex.inputs[k]), tile.reads[i][k].region);
      for (size_t e = 0; e < out.values.size(); ++e) out.values[e] += other.values[e];
    }
    planes[vertex.outputs[0]] = std::move(out);
  }
  return planes.at(c.segment.output).values == part_of(expected, tile.output).values;
}

TEST(Tiles, RowAndGridTilesOfRandomSegmentsEqualTheWhole) {
  Rng rng(99);
  int n_tiles = 0, n_padding_only = 0, n_caught = 0;
  for (int trial = 0; trial < 400; ++trial) {
    const Case c = random_case(rng);
    Plane input{whole_region(c.graph.tensors[0]), {}};
    for (int64_t i = 0; i < input.region.area(); ++i) input.values.push_back(1 + rng.below(1000));
    std::vector<Plane> planes;
    const Plane expected = whole_output(c, input, &planes);
    const Tensor& output = c.graph.tensors[static_cast<size_t>(c.segment.output)];
    std::vector<double> weights(1 + rng.below(5));
    for (double& weight : weights) weight = 0.1 + rng.uniform();
    const std::vector<Region> tiles =
        rng.below(2) == 0
            ? row_tiles(output, weights)
            : grid_tiles(output, 1 + static_cast<int>(rng.below(4)), 1 + static_cast<int>(rng.below(4)));
    int64_t area = 0;
    for (const Region& region : tiles) {
      area += region.area();
      const Result<Tile> tile = make_tile(c.graph, c.segment, region);
      if (!tile.ok()) {
        EXPECT_NE(tile.error().message.find("padding alone"), std::string::npos);
        ++n_padding_only;
        continue;
      }
      ++n_tiles;
      ASSERT_TRUE(tile_matches(c, *tile, input, expected)) << "trial " << trial;
      n_caught += !tile_matches(c, *tile, input, expected, 1);
    }
    EXPECT_EQ(area, whole_region(output).area());
  }
  EXPECT_GT(n_tiles, 1000);
  EXPECT_LT(n_padding_only, n_tiles / 20);
  EXPECT_GT(n_caught, 50);  // a read that slips by one row shows
}

TEST(Tiles, AxisReadGivesAsymmetricPadsAtTheBorders) {
  Window w;
  w.kernel = {3, 3};
  w.pad_begin = {1, 1};
  const AxisRead top = axis_read(w, 0, {0, 5}, 20), middle = axis_read(w, 0, {5, 10}, 20),
                 bottom = axis_read(w, 0, {15, 20}, 20);
  EXPECT_EQ(top.range, (Range{0, 6}));
  EXPECT_EQ(top.pad_begin, 1);
  EXPECT_EQ(top.pad_end, 0);
  EXPECT_EQ(middle.range, (Range{4, 11}));
  EXPECT_EQ(middle.pad_begin + middle.pad_end, 0);
  EXPECT_EQ(bottom.range, (Range{14, 20}));
  EXPECT_EQ(bottom.pad_end, 1);
}

TEST(Tiles, SplitIsProportionalAndLeavesNothingOut) {
  const double unequal[] = {3, 1};
  EXPECT_EQ(split_range(8, unequal), (std::vector<Range>{{0, 6}, {6, 8}}));
  const double many[] = {1, 1, 1, 1, 1};
  EXPECT_EQ(split_range(3, many), (std::vector<Range>{{0, 1}, {1, 2}, {2, 3}}));
  const double tiny[] = {1e-9, 1, 1e-9};
  EXPECT_EQ(split_range(10, tiny), (std::vector<Range>{{0, 1}, {1, 9}, {9, 10}}));
  Rng rng(5);
  for (int trial = 0; trial < 1000; ++trial) {
    std::vector<double> weights(1 + rng.below(8));
    for (double& weight : weights) weight = 0.01 + rng.uniform();
    const int64_t size = 1 + rng.below(40);
    int64_t at = 0;
    for (const Range part : split_range(size, weights)) {
      EXPECT_EQ(part.begin, at);
      EXPECT_GT(part.end, part.begin);
      at = part.end;
    }
    EXPECT_EQ(at, size);
  }
}

TEST(Tiles, WhatCannotBeTiledIsRefused) {
  Rng rng(3);
  Case c = random_case(rng);
  EXPECT_FALSE(make_tile(c.graph, c.segment, {{Range{0, 0}, Range{0, 1}}}).ok());
  EXPECT_FALSE(make_tile(c.graph, c.segment, {{Range{0, 1000}, Range{0, 1}}}).ok());
  c.graph.vertices[1].windows.clear();
  EXPECT_FALSE(make_segment(c.graph, c.segment.vertices).ok());
  EXPECT_FALSE(make_segment(c.graph, std::vector<int>{999}).ok());
}

TEST(Tiles, SmallestSegmentsEndWhereOneTensorCarriesAll) {
  Rng rng(21);
  for (int trial = 0; trial < 100; ++trial) {
    const Case c = random_case(rng);
    const std::vector<Segment> segments = smallest_segments(c.graph, c.segment.vertices);
    ASSERT_FALSE(segments.empty());
    int input = 0;
    std::vector<int> joined;
    for (const Segment& segment : segments) {
      EXPECT_EQ(segment.inputs, std::vector<int>{input});
      input = segment.output;
      joined.insert(joined.end(), segment.vertices.begin(), segment.vertices.end());
    }
    EXPECT_EQ(joined, c.segment.vertices);
  }
}

TEST(Tiles, SharedAndMissingRowsAreThoseThatCountingFinds) {
  Rng rng(11);
  for (int trial = 0; trial < 2000; ++trial) {
    const size_t n = 1 + rng.below(5);
    std::vector<Range> owned, needed;
    int64_t row = 0;
    for (size_t i = 0; i < n; ++i) {
      owned.push_back({row, row + 1 + rng.below(6)});
      row = owned.back().end;
    }
    // As tiles read: further begins and ends for further tiles, anything within.
    int64_t begin = 0, end = 0;
    for (size_t i = 0; i < n; ++i) {
      begin = std::min<int64_t>(row - 1, begin + rng.below(5));
      end = std::max<int64_t>(begin + 1, std::min<int64_t>(row, end + rng.below(9)));
      needed.push_back({begin, end});
    }
    for (size_t i = 0; i < n; ++i) {
      const std::vector<Range> shared = shared_rows(owned, needed, i),
                               missing = missing_rows(needed[i], owned[i]);
      EXPECT_LE(shared.size(), 2u);
      const auto in = [](const std::vector<Range>& ranges, int64_t at) {
        return std::count_if(ranges.begin(), ranges.end(),
                             [at](const Range& r) { return r.begin <= at && at < r.end; });
      };
      for (int64_t at = 0; at < row; ++at) {
        bool others = false;
        for (size_t j = 0; j < n; ++j) others = others || (j != i && in({needed[j]}, at) > 0);
        // Never twice, all that others need; between what the ones above and the ones below need nothing
        // else.
        EXPECT_LE(in(shared, at), 1);
        const auto mine = in({owned[i]}, at);
        EXPECT_GE(in(shared, at), others ? mine : 0);
        EXPECT_LE(in(shared, at), mine);
        EXPECT_EQ(in(missing, at), in({needed[i]}, at) > 0 && in({owned[i]}, at) == 0 ? 1 : 0);
      }
    }
  }
}

}  // namespace
}  // namespace frugal::dnn
