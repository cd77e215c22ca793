// Vertical separation (VSM): which stretches of a tier's vertices are worth tiling over its workers, how
// deep, and into which tiles: halos are computed twice and tiles travel, so neither the deepest nor the
// finest is best.
#pragma once

#include <span>
#include <vector>

#include "dnn/graph/tiles.h"
#include "frugal/dnn.h"

namespace frugal::dnn {

Region region_of(const TileBounds& bounds);
TileBounds bounds_of(const Region& region);

// Fills run.seconds and run.work_seconds for this tier. `before`: the run whose tiles stayed, when this one
// goes on from them, else null. kInvalidArgument: vertices that cannot be tiled, tiles that do not make up
// the whole output, or that cannot stay, or a run that does not go on from `before`.
Status price_run(const Graph& graph, const Tier& tier, const TiledRun* before, TiledRun& run);

// Whether `next` can go on from tiles of `run` that stay with their workers.
bool goes_on(const Graph& graph, const Segment& run, std::span<const TileBounds> tiles, const Segment& next,
             std::span<const TileBounds> next_tiles);

// Knows for one tier what every stretch of consecutive segments would cost tiled. Built once for a graph and
// a tier; links play no part in it.
class TilePlanner {
 public:
  TilePlanner(const Graph& graph, const Tier& tier, int k);

  // The best set of disjoint runs among vertices with label k, by dynamic programming over the segments. A
  // run is kept only when it saves time.
  std::vector<TiledRun> tile(std::span<const int> labels) const;

  // Segments in order; every cut of the graph right after one of them crosses one tensor.
  const std::vector<Segment>& segments() const { return segments_; }
  // The tier's vertex_seconds as they would be if all of the graph were tiled: what a cut should reckon with.
  std::vector<double> tiled_vertex_seconds() const;

 private:
  // One stretch of segments, tiled. In `rows` every worker has its share of rows of the output, so that they
  // can stay, and the run before may have left its own: [whether it did][whether these stay] is what it
  // costs.
  struct Stretch {
    TiledRun
        best;  // from a whole input to a whole output, by any tiles; without tiles where tiling does not pay
    TiledRun rows[2][2];  // without tiles when the workers cannot all have some
  };
  Stretch stretch(size_t first, size_t last) const;
  std::vector<TileBounds> rows_of(const Segment& segment) const;
  void balance(const Segment& segment, TiledRun& run) const;

  const Graph& graph_;
  const Tier& tier_;
  int k_;
  std::vector<Segment> segments_;
  std::vector<double> plain_;  // [n_segments]
  std::vector<char> follows_;  // [n_segments], this one reads what the one before made, and nobody else does
  std::vector<std::vector<Stretch>> stretches_;  // [first][last - first]
};

}  // namespace frugal::dnn
