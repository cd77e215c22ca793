#include "dnn/plan/vsm.h"

#include <algorithm>
#include <array>
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
  Region reads;  // of the run's input
};

double bytes_of(const Tensor& tensor, const Region& region) {
  const Region whole = whole_region(tensor);
  return static_cast<double>(tensor.bytes) * static_cast<double>(region.area()) /
         static_cast<double>(std::max<int64_t>(1, whole.area()));
}

double seconds_per_flop(const Graph& graph, const Tier& tier) {
  double flops = 0, seconds = 0;
  for (size_t v = 0; v < graph.vertices.size(); ++v) {
    flops += graph.vertices[v].flops;
    seconds += tier.vertex_seconds[v];
  }
  return flops > 0 ? seconds / flops : 0;
}

// Adds what `region` of a segment's output costs to compute; cost.reads is then what it reads.
Status add_cost(const Graph& graph, const Tier& tier, double seconds_per_flop, const Segment& segment,
                const Region& region, TileCost& cost) {
  const auto add = [&](int v, const Region& made) {
    const Vertex& vertex = graph.vertices[static_cast<size_t>(v)];
    const double share =
        static_cast<double>(made.area()) /
        static_cast<double>(whole_region(graph.tensors[static_cast<size_t>(vertex.outputs[0])]).area());
    const double whole = tier.vertex_seconds[static_cast<size_t>(v)];
    // However small a tile, all weights are read for it (but of a dense layer's): unless it was measured, as
    // long as kFlopsPerByte operations take, for each byte.
    double fixed =
        vertex.is_dense ? 0 : kFlopsPerByte * static_cast<double>(vertex.weight_bytes) * seconds_per_flop;
    if (!tier.tile_fixed_seconds.empty()) fixed = tier.tile_fixed_seconds[static_cast<size_t>(v)];
    cost.seconds += share * whole + (1 - share) * std::min(whole, fixed);
  };
  const Tensor& input = graph.tensors[static_cast<size_t>(segment.inputs[0])];
  const Vertex& vertex = graph.vertices[static_cast<size_t>(segment.vertices[0])];
  if (segment.vertices.size() == 1 &&
      vertex.inputs.size() == 1) {  // most are so, and there are many to price
    cost.reads = read_of(vertex, 0, region, whole_region(input)).region;
    if (cost.reads.area() <= 0) return {ErrorCode::kOutOfRange, "a tile would read padding alone"};
    add(segment.vertices[0], region);
  } else {
    FRUGAL_TRY(const Tile tile, make_tile(graph, segment, region));
    for (const int v : tile.vertices) add(v, tile.held.at(graph.vertices[static_cast<size_t>(v)].outputs[0]));
    cost.reads = tile.held.at(segment.inputs[0]);
  }
  cost.in_bytes = bytes_of(input, cost.reads);
  return {};
}

// From the first byte sent to the last tile back. Worker 0 sends one tile after the other over its one link
// and then computes its own; tiles come back over that link, too. `shared_bytes`: rows of the tiles that
// stayed before, which come from other workers first.
void price(const Tier& tier, std::span<const TileCost> costs, double shared_bytes, TiledRun& run) {
  const size_t n_workers = std::max<size_t>(1, tier.worker_speeds.size());
  std::vector<double> free(n_workers, shared_bytes / tier.peer_bytes_per_second);
  double sent = free[0], last = 0, back = 0, first_back = std::numeric_limits<double>::infinity();
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

Result<std::vector<TileCost>> costs_of(const Graph& graph, const Tier& tier, const Segment& segment,
                                       std::span<const TileBounds> tiles) {
  const double per_flop = seconds_per_flop(graph, tier);
  std::vector<TileCost> costs;
  for (const TileBounds& bounds : tiles) {
    TileCost cost;
    const Region region = region_of(bounds);
    FRUGAL_TRY_STATUS(add_cost(graph, tier, per_flop, segment, region, cost));
    cost.out_bytes = bytes_of(graph.tensors[static_cast<size_t>(segment.output)], region);
    costs.push_back(cost);
  }
  return costs;
}

std::vector<Range> rows_of(std::span<const TileBounds> tiles) {
  std::vector<Range> rows;
  for (const TileBounds& tile : tiles) rows.push_back({tile.row_begin, tile.row_end});
  return rows;
}

// Prices a run that reads tensor `input`; `before`: rows of it that its workers have already, none when it
// comes to worker 0 whole.
void price_with(const Tier& tier, const Tensor& input, std::span<const TileCost> whole_costs,
                std::span<const Range> before, TiledRun& run) {
  if (before.empty() && !run.stays) return price(tier, whole_costs, 0, run);
  std::vector<TileCost> costs(whole_costs.begin(), whole_costs.end());
  double shared_bytes = 0;
  if (!before.empty()) {
    const double row_bytes = static_cast<double>(input.bytes) / static_cast<double>(input.shape[2]);
    std::vector<Range> reads;
    for (const TileCost& cost : costs) reads.push_back(cost.reads.axes[0]);
    for (size_t i = 0; i < costs.size(); ++i) {
      costs[i].in_bytes = 0;
      for (const Range& rows : missing_rows(reads[i], before[i]))
        costs[i].in_bytes += row_bytes * static_cast<double>(rows.size());
      if (i == 0) continue;
      for (const Range& rows : shared_rows(before, reads, i))
        shared_bytes += row_bytes * static_cast<double>(rows.size());
    }
  }
  if (run.stays) {
    for (TileCost& cost : costs) cost.out_bytes = 0;  // what others need of it is paid for by the next run
  }
  price(tier, costs, shared_bytes, run);
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

bool goes_on(const Graph& graph, const Segment& run, std::span<const TileBounds> tiles, const Segment& next,
             std::span<const TileBounds> next_tiles) {
  const Tensor& between = graph.tensors[static_cast<size_t>(run.output)];
  if (next.inputs.size() != 1 || next.inputs[0] != run.output || between.is_output ||
      tiles.size() != next_tiles.size() || between.shape.size() != 4)
    return false;
  int64_t row = 0;  // full rows, one tile below the other
  for (const TileBounds& tile : tiles) {
    if (tile.row_begin != row || tile.row_end <= row || tile.column_begin != 0 ||
        tile.column_end != between.shape[3])
      return false;
    row = tile.row_end;
  }
  return row == between.shape[2] &&
         std::all_of(between.consumers.begin(), between.consumers.end(), [&](int v) {
           return std::binary_search(next.vertices.begin(), next.vertices.end(), v);
         });
}

Status price_run(const Graph& graph, const Tier& tier, const TiledRun* before, TiledRun& run) {
  FRUGAL_TRY(const Segment segment, make_segment(graph, run.vertices));
  if (segment.inputs.size() != 1) {
    return {ErrorCode::kInvalidArgument, "a tiled run reads one tensor; this one reads more"};
  }
  std::vector<Range> owned;
  if (before != nullptr) {
    FRUGAL_TRY(const Segment segment_before, make_segment(graph, before->vertices));
    if (!goes_on(graph, segment_before, before->tiles, segment, run.tiles))
      return {ErrorCode::kInvalidArgument, "a tiled run does not go on from the tiles that stayed before it"};
    owned = rows_of(before->tiles);
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
  FRUGAL_TRY(std::vector<TileCost> costs, costs_of(graph, tier, segment, run.tiles));
  price_with(tier, graph.tensors[static_cast<size_t>(segment.inputs[0])], costs, owned, run);
  if (area != whole.area()) return {ErrorCode::kInvalidArgument, "the tiles do not make up the whole output"};
  return {};
}

TilePlanner::TilePlanner(const Graph& graph, const Tier& tier, int k)
    : graph_(graph), tier_(tier), k_(k), seconds_per_flop_(seconds_per_flop(graph, tier)) {
  std::vector<int> all;
  for (size_t v = 0; v < graph.vertices.size(); ++v) {
    if (graph.vertices[v].kind != "Input") all.push_back(static_cast<int>(v));
  }
  segments_ = smallest_segments(graph, all);
  for (size_t s = 0; s < segments_.size(); ++s) {
    double seconds = 0;
    for (const int v : segments_[s].vertices) seconds += tier.vertex_seconds[static_cast<size_t>(v)];
    plain_.push_back(seconds);
    follows_.push_back(s > 0 && segments_[s].inputs[0] == segments_[s - 1].output);
  }
  stretches_.resize(segments_.size());
  if (tier.worker_speeds.size() < 2) return;
  for (const Segment& segment : segments_) rows_.push_back(rows_of(tilings(segment)[0]));
  for (size_t last = 0; last < segments_.size(); ++last) price_stretches(last);
}

std::vector<std::vector<TileBounds>> TilePlanner::tilings(const Segment& segment) const {
  const Tensor& output = graph_.tensors[static_cast<size_t>(segment.output)];
  const int n = static_cast<int>(tier_.worker_speeds.size());
  std::vector<std::vector<TileBounds>> all;
  for (int used = n; used >= 2; used /= 2)
    all.push_back(
        bounds_of_all(row_tiles(output, std::span(tier_.worker_speeds).first(static_cast<size_t>(used)))));
  const int side = static_cast<int>(std::sqrt(static_cast<double>(n)));
  if (side > 1 && n % side == 0 && output.shape.size() == 4)
    all.push_back(bounds_of_all(grid_tiles(output, side, n / side)));
  return all;
}

void TilePlanner::price_stretches(size_t last) {
  const size_t n = tier_.worker_speeds.size();
  const Tensor& output = graph_.tensors[static_cast<size_t>(segments_[last].output)];
  const auto is_dense = [&](size_t s) {
    return graph_.vertices[static_cast<size_t>(segments_[s].vertices[0])].is_dense;
  };
  size_t longest = 1;
  while (longest < kMaxSegments && longest <= last && follows_[last - longest + 1] && !is_dense(last) &&
         !is_dense(last - longest))
    ++longest;
  stretches_[last].resize(longest);
  const std::vector<std::vector<TileBounds>> ways = tilings(segments_[last]);
  for (size_t w = 0; w < ways.size(); ++w) {
    if (ways[w].size() < 2) continue;
    // Tile by tile from the last segment back, each reading what the one after it needs.
    std::vector<TileCost> costs(ways[w].size());
    for (size_t i = 0; i < costs.size(); ++i) {
      costs[i].reads = region_of(ways[w][i]);
      costs[i].out_bytes = bytes_of(output, costs[i].reads);
    }
    double plain = 0;
    for (size_t first = last + 1; first-- > 0 && last - first < longest;) {
      const Segment& segment = segments_[first];
      bool is_sound = true;
      for (TileCost& cost : costs)
        is_sound =
            is_sound && add_cost(graph_, tier_, seconds_per_flop_, segment, Region(cost.reads), cost).ok();
      if (!is_sound) break;
      plain += plain_[first];
      Stretch& stretch = stretches_[last][last - first];
      const Tensor& input = graph_.tensors[static_cast<size_t>(segment.inputs[0])];
      TiledRun run;
      price_with(tier_, input, costs, {}, run);
      if (run.seconds < std::min(plain, stretch.best.seconds))
        stretch.best = {run.seconds, run.work_seconds, w};
      if (w > 0 || costs.size() != n) continue;
      const std::span<const Range> before = follows_[first] ? rows_[first - 1] : std::span<const Range>();
      for (const bool comes : {false, true}) {
        if (comes && before.size() != n) continue;
        for (const bool stays : {false, true}) {
          run.stays = stays;
          price_with(tier_, input, costs, comes ? before : std::span<const Range>(), run);
          stretch.rows[comes][stays] = {run.seconds, run.work_seconds, w};
        }
      }
    }
  }
}

TiledRun TilePlanner::run_of(size_t first, size_t last, const Price& price, bool stays) const {
  TiledRun run;
  run.tier = k_;
  for (size_t s = first; s <= last; ++s)
    run.vertices.insert(run.vertices.end(), segments_[s].vertices.begin(), segments_[s].vertices.end());
  run.tiles = tilings(segments_[last])[price.tiling];
  run.seconds = price.seconds;
  run.work_seconds = price.work_seconds;
  run.stays = stays;
  return run;
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
        auto costs = costs_of(graph_, tier_, segment, trial.tiles);
        if (!costs.ok()) continue;
        price_with(tier_, graph_.tensors[static_cast<size_t>(segment.inputs[0])], *std::move(costs), {},
                   trial);
        if (trial.seconds >= run.seconds * (1 - 1e-9)) continue;
        run = std::move(trial);
        better = true;
      }
    }
  }
}

std::vector<TiledRun> TilePlanner::tile(std::span<const int> labels) const {
  const size_t n = segments_.size();
  if (tier_.worker_speeds.size() < 2) return {};
  std::vector<char> here(n + 1, 1);
  here[n] = 0;
  for (size_t s = 0; s < n; ++s) {
    for (const int v : segments_[s].vertices) here[s] = here[s] && labels[static_cast<size_t>(v)] == k_;
  }
  // What the segments before s take at least: when what they make is whole on worker 0, and when its tiles
  // are with the workers. The run that ended there, and which of the two it began from.
  struct Way {
    double seconds = std::numeric_limits<double>::infinity();
    const Price* price = nullptr;
    size_t first = 0;
    bool came = false;
  };
  std::vector<std::array<Way, 2>> ways(n + 1);
  ways[0][0].seconds = 0;
  const auto consider = [&](size_t first, size_t end, bool comes, bool stays, const Price& price) {
    const double seconds = ways[first][comes].seconds + price.seconds;
    if (seconds < ways[end][stays].seconds) ways[end][stays] = {seconds, &price, first, comes};
  };
  for (size_t s = 0; s < n; ++s) {
    ways[s + 1][0] = {ways[s][0].seconds + plain_[s], nullptr, s, false};
    const Tensor& made = graph_.tensors[static_cast<size_t>(segments_[s].output)];
    const bool may_stay = here[s + 1] && follows_[s + 1] && made.shape.size() == 4 && !made.is_output;
    for (size_t first = s + 1; first-- > 0 && s - first < stretches_[s].size() && here[first];) {
      const Stretch& stretch = stretches_[s][s - first];
      consider(first, s + 1, false, false, stretch.best);
      consider(first, s + 1, true, false, stretch.rows[1][0]);
      if (!may_stay) continue;
      consider(first, s + 1, false, true, stretch.rows[0][1]);
      consider(first, s + 1, true, true, stretch.rows[1][1]);
    }
  }
  std::vector<TiledRun> chosen;
  bool stays = false;
  for (size_t end = n; end > 0;) {
    const Way& way = ways[end][stays];
    if (way.price != nullptr) {
      chosen.push_back(run_of(way.first, end - 1, *way.price, stays));
      const auto segment = make_segment(graph_, chosen.back().vertices);
      if (segment.ok() && !way.came && !stays) balance(*segment, chosen.back());
    }
    end = way.first;
    stays = way.came;
  }
  std::reverse(chosen.begin(), chosen.end());
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
