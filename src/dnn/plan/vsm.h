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

// Fills run.seconds and run.work_seconds for this tier. kInvalidArgument: vertices that cannot be tiled,
// tiles that do not make up the whole output.
Status price_run(const Graph& graph, const Tier& tier, TiledRun& run);

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
  double plain_seconds(size_t segment) const { return plain_[segment]; }
  TiledRun best_run(size_t first, size_t last) const;
  void balance(const Segment& segment, TiledRun& run) const;

  const Graph& graph_;
  const Tier& tier_;
  int k_;
  std::vector<Segment> segments_;
  std::vector<double> plain_;                // [n_segments]
  std::vector<std::vector<TiledRun>> runs_;  // [first][last - first]; without tiles where tiling does not pay
};

}  // namespace frugal::dnn
