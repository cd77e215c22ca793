#include "dnn/plan/vsm.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/text.h"

namespace frugal::dnn {
namespace {

constexpr size_t kMaxSegments = 20;  // in one run: deeper ones are nearly all halo

constexpr double kFlopsPerByte = 8;  // of a core's arithmetic and memory: some 80 GFLOP/s and 10 GB/s

// What tile i of a run costs: computing on a worker of speed 1, and bytes in and out.
struct TileCost {
  double seconds = 0, in_bytes = 0, out_bytes = 0;
};

double bytes_of(const Tensor& tensor, const Region& region) {
  const Region whole = whole_region(tensor);
  return static_cast<double>(tensor.bytes) * static_cast<double>(region.area()) /
         static_cast<double>(std::max<int64_t>(1, whole.area()));
}

Result<TileCost> cost_of(const Graph& graph, const Tier& tier, const Segment& segment, const Region& region) {
  FRUGAL_TRY(const Tile tile, make_tile(graph, segment, region));
  TileCost cost;
  double flops = 0, seconds = 0;
  for (const int v : tile.vertices) {
    flops += graph.vertices[static_cast<size_t>(v)].flops;
    seconds += tier.vertex_seconds[static_cast<size_t>(v)];
  }
  for (const int v : tile.vertices) {
    const Vertex& vertex = graph.vertices[static_cast<size_t>(v)];
    const auto t = static_cast<size_t>(vertex.outputs[0]);
    const double share = static_cast<double>(tile.held.at(vertex.outputs[0]).area()) /
                         static_cast<double>(whole_region(graph.tensors[t]).area());
    const double whole = tier.vertex_seconds[static_cast<size_t>(v)];
    // However small a tile, all weights are read for it: unless it was measured, as long as kFlopsPerByte
    // operations take, for each byte.
    double fixed = flops > 0 ? kFlopsPerByte * static_cast<double>(vertex.weight_bytes) * seconds / flops : 0;
    if (!tier.tile_fixed_seconds.empty()) fixed = tier.tile_fixed_seconds[static_cast<size_t>(v)];
    cost.seconds += share * whole + (1 - share) * std::min(whole, fixed);
  }
  for (const int t : segment.inputs)
    cost.in_bytes += bytes_of(graph.tensors[static_cast<size_t>(t)], tile.held.at(t));
  cost.out_bytes = bytes_of(graph.tensors[static_cast<size_t>(segment.output)], region);
  return cost;
}

// From the first byte sent to the last tile back. Worker 0 sends one tile after the other over its one link
// and then computes its own; tiles come back over that link, too.
void price(const Tier& tier, std::span<const TileCost> costs, TiledRun& run) {
  const size_t n_workers = std::max<size_t>(1, tier.worker_speeds.size());
  std::vector<double> free(n_workers, 0);
  double sent = 0, last = 0, back = 0, first_back = std::numeric_limits<double>::infinity();
  run.work_seconds = 0;
  for (size_t i = 0; i < costs.size(); ++i) {
    const size_t w = i % n_workers;
    const double speed = tier.worker_speeds.empty() ? 1 : tier.worker_speeds[w];
    const double seconds = costs[i].seconds / speed + tier.call_seconds;
    run.work_seconds += seconds;
    if (w == 0) {
      free[0] += seconds;
      continue;
    }
    sent += costs[i].in_bytes / tier.peer_bytes_per_second;
    free[w] = std::max(free[w], tier.peer_latency_seconds + sent) + seconds;
    const double out = costs[i].out_bytes / tier.peer_bytes_per_second;
    first_back = std::min(first_back, free[w] + tier.peer_latency_seconds);
    back += out;
    last = std::max(last, free[w] + tier.peer_latency_seconds + out);
  }
  run.seconds = std::max({free[0], last, back > 0 ? first_back + back : 0.0});
}

Status price_with(const Graph& graph, const Tier& tier, const Segment& segment, TiledRun& run) {
  std::vector<TileCost> costs;
  for (const TileBounds& bounds : run.tiles) {
    FRUGAL_TRY(const TileCost cost, cost_of(graph, tier, segment, region_of(bounds)));
    costs.push_back(cost);
  }
  price(tier, costs, run);
  return {};
}

std::vector<TileBounds> bounds_of_all(const std::vector<Region>& regions) {
  std::vector<TileBounds> bounds;
  for (const Region& region : regions) bounds.push_back(bounds_of(region));
  return bounds;
}

}  // namespace

Region region_of(const TileBounds& b) {
  return {{Range{b.row_begin, b.row_end}, Range{b.column_begin, b.column_end}}};
}

TileBounds bounds_of(const Region& region) {
  return {region.axes[0].begin, region.axes[0].end, region.axes[1].begin, region.axes[1].end};
}

Status price_run(const Graph& graph, const Tier& tier, TiledRun& run) {
  FRUGAL_TRY(const Segment segment, make_segment(graph, run.vertices));
  if (segment.inputs.size() != 1) {
    return {ErrorCode::kInvalidArgument, "a tiled run reads one tensor; this one reads more"};
  }
  const Region whole = whole_region(graph.tensors[static_cast<size_t>(segment.output)]);
  int64_t area = 0;
  for (size_t i = 0; i < run.tiles.size(); ++i) {
    const Region region = region_of(run.tiles[i]);
    area += region.area();
    for (size_t j = 0; j < i; ++j) {
      const TileBounds &a = run.tiles[i], &b = run.tiles[j];
      if (a.row_begin < b.row_end && b.row_begin < a.row_end && a.column_begin < b.column_end &&
          b.column_begin < a.column_end) {
        return {ErrorCode::kInvalidArgument, strf("tiles %zu and %zu overlap", j, i)};
      }
    }
  }
  FRUGAL_TRY_STATUS(price_with(graph, tier, segment, run));
  if (area != whole.area()) return {ErrorCode::kInvalidArgument, "the tiles do not make up the whole output"};
  return {};
}

TilePlanner::TilePlanner(const Graph& graph, const Tier& tier, int k) : graph_(graph), tier_(tier), k_(k) {
  std::vector<int> all;
  for (size_t v = 0; v < graph.vertices.size(); ++v) {
    if (graph.vertices[v].kind != "Input") all.push_back(static_cast<int>(v));
  }
  segments_ = smallest_segments(graph, all);
  for (const Segment& segment : segments_) {
    double seconds = 0;
    for (const int v : segment.vertices) seconds += tier.vertex_seconds[static_cast<size_t>(v)];
    plain_.push_back(seconds);
  }
  runs_.resize(segments_.size());
  if (tier.worker_speeds.size() < 2) return;
  for (size_t first = 0; first < segments_.size(); ++first) {
    for (size_t last = first; last < segments_.size() && last - first < kMaxSegments; ++last) {
      if (last > first && segments_[last].inputs[0] != segments_[last - 1].output) break;
      runs_[first].push_back(best_run(first, last));
    }
  }
}

TiledRun TilePlanner::best_run(size_t first, size_t last) const {
  TiledRun best;
  best.tier = k_;
  double plain = 0;
  for (size_t i = first; i <= last; ++i) {
    best.vertices.insert(best.vertices.end(), segments_[i].vertices.begin(), segments_[i].vertices.end());
    plain += plain_[i];
  }
  best.seconds = plain;
  const auto segment = make_segment(graph_, best.vertices);
  if (!segment.ok()) return best;
  const Tensor& output = graph_.tensors[static_cast<size_t>(segment->output)];
  const int n = static_cast<int>(tier_.worker_speeds.size());
  std::vector<std::vector<Region>> tilings;
  for (int used = n; used >= 2; used /= 2)
    tilings.push_back(row_tiles(output, std::span(tier_.worker_speeds).first(static_cast<size_t>(used))));
  const int side = static_cast<int>(std::sqrt(static_cast<double>(n)));
  if (side > 1 && n % side == 0) tilings.push_back(grid_tiles(output, side, n / side));
  for (const std::vector<Region>& regions : tilings) {
    TiledRun run = best;
    run.tiles = bounds_of_all(regions);
    if (run.tiles.size() < 2 || !price_with(graph_, tier_, *segment, run).ok()) continue;
    if (run.seconds < best.seconds) best = std::move(run);
  }
  return best;
}

// Rows from slow tiles to fast ones, while the run gets faster.
void TilePlanner::balance(const Segment& segment, TiledRun& run) const {
  if (run.tiles.size() < 2 || run.tiles[0].column_end != run.tiles[1].column_end)
    return;  // a grid stays even
  const Tensor& output = graph_.tensors[static_cast<size_t>(segment.output)];
  for (bool better = true; better;) {
    better = false;
    for (size_t from = 0; from < run.tiles.size(); ++from) {
      for (size_t to = 0; to < run.tiles.size(); ++to) {
        if (from == to) continue;
        std::vector<int64_t> rows;
        for (const TileBounds& tile : run.tiles) rows.push_back(tile.row_end - tile.row_begin);
        if (rows[from] < 2) continue;
        --rows[from];
        ++rows[to];
        TiledRun trial = run;
        int64_t at = 0;
        for (size_t i = 0; i < rows.size(); ++i) {
          trial.tiles[i] = {at, at + rows[i], 0, output.shape[3]};
          at += rows[i];
        }
        if (!price_with(graph_, tier_, segment, trial).ok() || trial.seconds >= run.seconds * (1 - 1e-9))
          continue;
        run = std::move(trial);
        better = true;
      }
    }
  }
}

std::vector<TiledRun> TilePlanner::tile(std::span<const int> labels) const {
  const size_t n = segments_.size();
  if (tier_.worker_speeds.size() < 2) return {};
  std::vector<char> here(n, 1);
  for (size_t s = 0; s < n; ++s) {
    for (const int v : segments_[s].vertices) here[s] = here[s] && labels[static_cast<size_t>(v)] == k_;
  }
  std::vector<double> best(n + 1, 0);  // seconds of segments before s
  std::vector<size_t> from(n + 1, 0);
  for (size_t s = 0; s < n; ++s) {
    best[s + 1] = best[s] + plain_[s];
    from[s + 1] = s;
    for (size_t first = s + 1; first-- > 0 && s - first < kMaxSegments && here[first];) {
      if (s - first >= runs_[first].size()) break;
      const TiledRun& run = runs_[first][s - first];
      if (run.tiles.empty() || best[first] + run.seconds >= best[s + 1]) continue;
      best[s + 1] = best[first] + run.seconds;
      from[s + 1] = first;
    }
  }
  std::vector<TiledRun> chosen;
  for (size_t end = n; end > 0; end = from[end]) {
    const size_t first = from[end];
    if (!here[end - 1] || end - 1 - first >= runs_[first].size()) continue;
    const TiledRun& run = runs_[first][end - 1 - first];
    const double plain = [&] {
      double sum = 0;
      for (size_t s = first; s < end; ++s) sum += plain_[s];
      return sum;
    }();
    if (!run.tiles.empty() && run.seconds < plain) chosen.push_back(run);
  }
  std::reverse(chosen.begin(), chosen.end());
  for (TiledRun& run : chosen) {
    const auto segment = make_segment(graph_, run.vertices);
    if (segment.ok()) balance(*segment, run);
  }
  return chosen;
}

std::vector<double> TilePlanner::tiled_vertex_seconds() const {
  std::vector<double> seconds = tier_.vertex_seconds;
  const std::vector<int> all(graph_.vertices.size(), k_);
  for (const TiledRun& run : tile(all)) {
    double plain = 0;
    for (const int v : run.vertices) plain += seconds[static_cast<size_t>(v)];
    for (const int v : run.vertices) seconds[static_cast<size_t>(v)] *= run.seconds / plain;
  }
  return seconds;
}

}  // namespace frugal::dnn
