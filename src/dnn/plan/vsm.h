// Vertical separation (VSM): which stretches of a tier's vertices are worth tiling over its workers, how
// deep, and into which tiles: halos are computed twice and tiles travel, so neither the deepest nor the
// finest is best.
#pragma once

#include <limits>
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
  // What a stretch of segments costs in one of the ways to tile its output.
  struct Price {
    double seconds = std::numeric_limits<double>::infinity(), work_seconds = 0;
    size_t tiling = 0;  // of tilings()
  };
  // `best`: from a whole input to a whole output, by any tiles, where that is faster than without. `rows`:
  // every worker has its share of rows of the output, so that they can stay, and the run before may have left
  // its own: [whether it did][whether these stay].
  struct Stretch {
    Price best, rows[2][2];
  };
  // The ways to tile what a segment makes: the first gives every worker a share, if there is enough of it.
  std::vector<std::vector<TileBounds>> tilings(const Segment& segment) const;
  // Prices all stretches that end with segment `last`, from the shortest to the longest.
  void price_stretches(size_t last);
  TiledRun run_of(size_t first, size_t last, const Price& price, bool stays) const;
  void balance(const Segment& segment, TiledRun& run) const;

  const Graph& graph_;
  const Tier& tier_;
  int k_;
  double seconds_per_flop_;
  std::vector<Segment> segments_;
  std::vector<double> plain_;  // [n_segments]
  std::vector<char> follows_;  // [n_segments], this one reads what the one before made, and nobody else does
  std::vector<std::vector<Range>> rows_;         // [n_segments], of what it makes, by worker
  std::vector<std::vector<Stretch>> stretches_;  // [last][last - first]
};

}  // namespace frugal::dnn
