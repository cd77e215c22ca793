#include "dnn/link/tier.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <random>
#include <thread>

#include "base/clock.h"
#include "base/text.h"
#include "dnn/exec/check_bits.h"
#include "dnn/pack/pack.h"
#include "dnn/plan/vsm.h"

namespace frugal::dnn {
namespace {

double thread_cpu_seconds() { return clock_seconds(CLOCK_THREAD_CPUTIME_ID); }

// Whether a tensor is rows of one of the graph, over these columns.
bool is_rows_of(const Tensor& tensor, Range rows, Range columns, const HostTensor& value) {
  const std::vector<int64_t> shape = part_shape(tensor.shape, {{rows, columns}});
  size_t n_bytes = element_bytes(tensor.type);
  for (const int64_t n : shape) n_bytes *= static_cast<size_t>(n);
  return rows.size() > 0 && value.type == tensor.type && value.shape == shape &&
         value.bytes.size() == n_bytes;
}

// The rows `region` of a run's input, from those kept and the pieces that came; together they have to be all.
Result<HostTensor> join_rows(const Tensor& tensor, const Region& region, const TileJob& job,
                             const TileKept* kept) {
  const auto bad = [] {
    return Error{ErrorCode::kInvalidArgument, "the pieces of a tile's input do not make up what it reads"};
  };
  const Range need = region.axes[0];
  const int64_t columns = region.axes[1].size();
  HostTensor whole{tensor.type, part_shape(tensor.shape, region), {}};
  size_t n_bytes = element_bytes(tensor.type);
  for (const int64_t n : whole.shape) n_bytes *= static_cast<size_t>(n);
  whole.bytes.resize(n_bytes);
  std::vector<char> filled(static_cast<size_t>(need.size()), 0);
  const auto put = [&](Range rows, const HostTensor& from) {
    if (rows.begin < need.begin || rows.end > need.end || !is_rows_of(tensor, rows, region.axes[1], from))
      return false;
    paste(from, {{Range{rows.begin - need.begin, rows.end - need.begin}, Range{0, columns}}}, whole);
    std::fill_n(filled.begin() + (rows.begin - need.begin), rows.size(), 1);
    return true;
  };
  if (kept != nullptr) {
    const Range rows{std::max(need.begin, kept->region.axes[0].begin),
                     std::min(need.end, kept->region.axes[0].end)};
    if (kept->region.axes[1] != region.axes[1]) return bad();
    if (rows.size() > 0 && !put(rows, rows == kept->region.axes[0]
                                          ? kept->tensor
                                          : slice(kept->tensor, kept->region, {{rows, region.axes[1]}})))
      return bad();
  }
  for (const TileJob::Piece& piece : job.pieces) {
    if (!put(piece.rows, piece.tensor)) return bad();
  }
  if (std::find(filled.begin(), filled.end(), 0) != filled.end()) return bad();
  return whole;
}

}  // namespace

bool Division::uses_beyond(int k) const {
  return std::any_of(tier.begin(), tier.end(), [k](int at) { return at > k; });
}

Error beyond(Error error) {
  if (error.code == ErrorCode::kUnavailable && !error.message.starts_with(kBeyond))
    error.message = kBeyond + error.message;
  return error;
}

Division division_of(const Plan& plan) { return {plan.tier, plan.tiled_runs, plan.packed}; }

FrameCost& FrameCost::operator+=(const FrameCost& other) {
  for (size_t k = 0; k < tier_seconds.size() && k < other.tier_seconds.size(); ++k)
    tier_seconds[k] += other.tier_seconds[k];
  for (size_t k = 0; k < up_bytes.size() && k < other.up_bytes.size(); ++k) {
    up_bytes[k] += other.up_bytes[k];
    down_bytes[k] += other.down_bytes[k];
    link_seconds[k] += other.link_seconds[k];
  }
  return *this;
}

TierRunner::TierRunner(std::shared_ptr<const Network> network, int k, int n_threads, double slowdown)
    : network_(std::move(network)), k_(k), n_threads_(n_threads), slowdown_(std::max(1.0, slowdown)) {
  std::random_device random;
  chain_salt_ = static_cast<uint64_t>(random()) << 32 | random();
}

// In topological order: a chain of tiled runs is a stage of its own, what lies between two is one.
std::vector<TierRunner::Stage> TierRunner::stages_of(const Division& division) const {
  const Graph& graph = network_->graph();
  std::vector<const TiledRun*> run_of(graph.vertices.size(), nullptr);
  for (const TiledRun& run : division.runs) {
    if (run.tier != k_) continue;
    for (const int v : run.vertices) run_of[static_cast<size_t>(v)] = &run;
  }
  std::vector<Stage> stages;
  for (size_t v = 0; v < graph.vertices.size(); ++v) {
    if (division.tier[v] != k_ || graph.vertices[v].kind == "Input") continue;
    const TiledRun* run = run_of[v];
    const TiledRun* last =
        stages.empty() || stages.back().chain.empty() ? nullptr : stages.back().chain.back();
    if (stages.empty() || last != run) {
      const bool goes_on = run != nullptr && last != nullptr && last->stays;
      if (!goes_on) stages.emplace_back();
      if (run != nullptr) stages.back().chain.push_back(run);
    }
    stages.back().vertices.push_back(static_cast<int>(v));
  }
  return stages;
}

Result<std::shared_ptr<Part>> TierRunner::part_for(const std::vector<int>& vertices) {
  const std::lock_guard lock(cache_mutex_);
  if (const auto* part = parts_.find(vertices)) return *part;
  FRUGAL_TRY(std::unique_ptr<Part> compiled, network_->compile(vertices, n_threads_));
  return parts_.put(vertices, std::move(compiled));
}

Result<TierRunner::TilePart> TierRunner::tile_for(const std::vector<int>& vertices, const TileBounds& b) {
  std::vector<int64_t> key(vertices.begin(), vertices.end());
  key.insert(key.end(), {b.row_begin, b.row_end, b.column_begin, b.column_end});
  const std::lock_guard lock(cache_mutex_);
  if (const auto* tile = tiles_.find(key)) return *tile;
  FRUGAL_TRY(const Segment segment, make_segment(network_->graph(), vertices));
  if (segment.inputs.size() != 1) return Error{ErrorCode::kInvalidArgument, "a tiled run reads one tensor"};
  FRUGAL_TRY(const Tile tile, make_tile(network_->graph(), segment, region_of(b)));
  FRUGAL_TRY(std::unique_ptr<Part> compiled, network_->compile_tile(segment, tile, n_threads_));
  FRUGAL_TRY_STATUS(check_bits(*network_, segment, tile, n_threads_, *compiled));
  const int input = segment.inputs[0];
  return tiles_.put(std::move(key), {input, tile.held.at(input), region_of(b), std::move(compiled)});
}

Status TierRunner::prepare(const Division& division) {
  if (division.tier.size() != network_->graph().vertices.size()) {
    return {ErrorCode::kInvalidArgument, "the plan does not fit this model"};
  }
  for (const Stage& stage : stages_of(division)) {
    if (stage.chain.empty()) {
      if (const auto part = part_for(stage.vertices); !part.ok()) return part.error();
      continue;
    }
    FRUGAL_TRY(const std::shared_ptr<ChainShape> shape, shape_for(stage.chain));
    for (const TiledRun* run : stage.chain) {
      const auto tile = tile_for(run->vertices, run->tiles[0]);
      if (!tile.ok() && tile.error().code != ErrorCode::kUnsupported) return tile.error();
      if (!tile.ok()) shape->is_refused = true;
    }
    if (!shape->is_refused) continue;
    if (const auto part = part_for(stage.vertices); !part.ok()) return part.error();
  }
  return {};
}

Status TierRunner::at_pace(const std::function<Status()>& work) {
  const std::lock_guard lock(compute_mutex_);
  const double start = wall_seconds();
  double busy;
  {
    std::unique_lock<Turns> turn;
    if (turns_) turn = std::unique_lock(*turns_);
    const double cpu = thread_cpu_seconds();
    FRUGAL_TRY_STATUS(work());
    busy = thread_cpu_seconds() - cpu;
  }
  // Processor time, not wall time: neighbours on this host then do not make the emulated one slower.
  const double rest = slowdown_ * busy - (wall_seconds() - start);
  if (slowdown_ > 1 && rest > 0) std::this_thread::sleep_for(std::chrono::duration<double>(rest));
  return {};
}

Status TierRunner::run_part(Part& part, const std::vector<const HostTensor*>& inputs,
                            std::vector<HostTensor>& outputs) {
  return at_pace([&] { return part.run(inputs, outputs); });
}

Status TierRunner::pack(const Division& division, Values& values, FrameCost& cost) {
  const double start = wall_seconds();
  for (auto& [t, tensor] : values) {
    if (!division.packs(t, k_) || tensor.packed) continue;
    FRUGAL_TRY_STATUS(at_pace([&tensor = tensor]() -> Status {
      std::vector<std::byte> packed = pack_words(tensor.bytes, planes_of(tensor.shape));
      if (packed.empty()) return {};  // this frame's does not get smaller: it goes as it is
      tensor.bytes = std::move(packed);
      tensor.packed = true;
      return {};
    }));
  }
  if (const auto link = static_cast<size_t>(k_); link < cost.link_seconds.size())
    cost.link_seconds[link] += wall_seconds() - start;
  return {};
}

Status TierRunner::unpack(const Division& division, Values& values, FrameCost& cost) {
  const Graph& graph = network_->graph();
  const double start = wall_seconds();
  for (auto& [t, tensor] : values) {
    if (!tensor.packed) continue;
    if (t < 0 || static_cast<size_t>(t) >= graph.tensors.size())
      return {ErrorCode::kCorrupt, strf("there is no tensor %d", t)};
    const Tensor& known = graph.tensors[static_cast<size_t>(t)];
    const bool read_here = std::any_of(known.consumers.begin(), known.consumers.end(),
                                       [&](int v) { return division.tier[static_cast<size_t>(v)] == k_; });
    if (!read_here && division.packs(t, k_)) continue;
    FRUGAL_TRY_STATUS(at_pace([&known, &tensor = tensor] {
      std::vector<std::byte> words(known.bytes);
      const Status status = unpack_words(tensor.bytes, planes_of(known.shape), words);
      tensor.bytes = std::move(words);
      tensor.packed = false;
      return status;
    }));
  }
  if (const auto link = static_cast<size_t>(k_ - 1); k_ > 0 && link < cost.link_seconds.size())
    cost.link_seconds[link] += wall_seconds() - start;
  return {};
}

Status TierRunner::run_plain(const std::vector<int>& vertices, Values& values) {
  FRUGAL_TRY(const std::shared_ptr<Part> part, part_for(vertices));
  std::vector<const HostTensor*> inputs;
  for (const int t : part->inputs()) {
    const auto at = values.find(t);
    if (at == values.end()) {
      return {ErrorCode::kInvalidArgument,
              strf("tensor '%s' has not arrived",
                   network_->graph().tensors[static_cast<size_t>(t)].name.c_str())};
    }
    inputs.push_back(&at->second);
  }
  std::vector<HostTensor> outputs;
  FRUGAL_TRY_STATUS(run_part(*part, inputs, outputs));
  for (size_t i = 0; i < outputs.size(); ++i) values[part->outputs()[i]] = std::move(outputs[i]);
  return {};
}

Result<std::vector<HostTensor>> TierRunner::run_tile(const TileJob& job) {
  FRUGAL_TRY(const TilePart tile, tile_for(job.vertices, job.tile));
  std::optional<TileKept> before;
  if (job.goes_on) {
    const std::lock_guard lock(cache_mutex_);
    before = kept_.take(job.chain);
    if (!before) return Error{ErrorCode::kNotFound, "nothing of this chain of runs is kept here"};
  }
  HostTensor put_together;
  const HostTensor* input = job.pieces.size() == 1 && !job.goes_on ? &job.pieces[0].tensor : &put_together;
  if (input == &put_together) {
    FRUGAL_TRY(put_together, join_rows(network_->graph().tensors[static_cast<size_t>(tile.input_tensor)],
                                       tile.input, job, before ? &*before : nullptr));
  }
  std::vector<HostTensor> outputs;
  FRUGAL_TRY_STATUS(run_part(*tile.part, {input}, outputs));
  if (!job.stays) return outputs;
  std::vector<HostTensor> given;
  for (const Range& rows : job.gives) {
    if (rows.size() <= 0 || rows.begin < tile.output.axes[0].begin || rows.end > tile.output.axes[0].end)
      return Error{ErrorCode::kInvalidArgument, "rows are asked for that are not in the tile"};
    given.push_back(slice(outputs[0], tile.output, {{rows, tile.output.axes[1]}}));
  }
  const std::lock_guard lock(cache_mutex_);
  kept_.put(job.chain, {tile.output, std::move(outputs[0])});
  return given;
}

Result<std::shared_ptr<TierRunner::ChainShape>> TierRunner::shape_for(
    const std::vector<const TiledRun*>& chain) {
  std::vector<int64_t> key;
  for (const TiledRun* run : chain) {
    key.insert(key.end(), run->vertices.begin(), run->vertices.end());
    for (const TileBounds& b : run->tiles)
      key.insert(key.end(), {-1, b.row_begin, b.row_end, b.column_begin, b.column_end});
    key.push_back(run->stays ? -2 : -3);
  }
  const std::lock_guard lock(cache_mutex_);
  if (const auto* shape = shapes_.find(key)) return *shape;
  const Graph& graph = network_->graph();
  auto shape = std::make_shared<ChainShape>();
  std::vector<Segment> segments;
  for (size_t j = 0; j < chain.size(); ++j) {
    const TiledRun& run = *chain[j];
    FRUGAL_TRY(Segment segment, make_segment(graph, run.vertices));
    if (segment.inputs.size() != 1) return Error{ErrorCode::kInvalidArgument, "a tiled run reads one tensor"};
    if (run.tiles.empty()) return Error{ErrorCode::kInvalidArgument, "a tiled run has no tiles"};
    RunShape one;
    one.input = segment.inputs[0];
    one.output = segment.output;
    one.whole = whole_region(graph.tensors[static_cast<size_t>(one.input)]);
    for (const TileBounds& bounds : run.tiles) {
      FRUGAL_TRY(const Tile tile, make_tile(graph, segment, region_of(bounds)));
      one.reads.push_back(tile.held.at(one.input));
      one.writes.push_back(region_of(bounds));
    }
    if (j > 0) {
      if (!goes_on(graph, segments.back(), chain[j - 1]->tiles, segment, run.tiles))
        return Error{ErrorCode::kInvalidArgument, "a tiled run does not go on from the one before it"};
      std::vector<Range> owned, needed;
      for (const Region& region : shape->runs.back().writes) owned.push_back(region.axes[0]);
      for (const Region& region : one.reads) needed.push_back(region.axes[0]);
      for (size_t i = 0; i < owned.size(); ++i)
        shape->runs.back().gives.push_back(shared_rows(owned, needed, i));
    }
    segments.push_back(std::move(segment));
    shape->runs.push_back(std::move(one));
  }
  if (chain.back()->stays)
    return Error{ErrorCode::kInvalidArgument, "tiles stay with workers that have nothing more to do"};
  return shapes_.put(std::move(key), std::move(shape));
}

// Tiles of other workers go out first, each on a thread of the crew; then this one computes its own.
std::vector<Result<std::vector<HostTensor>>> TierRunner::run_tiles(const std::vector<TileJob>& jobs) {
  const size_t n = jobs.size(), n_away = peers_ && n > 0 ? n - 1 : 0;
  std::vector<Result<std::vector<HostTensor>>> tiles(
      n, Error{ErrorCode::kUnavailable, "there are no other workers"});
  std::mutex mutex;
  std::condition_variable changed;
  size_t n_back = 0;
  for (size_t i = 1; i <= n_away; ++i) {
    crew_.begin([&, i] {
      tiles[i] = peers_->run_tile(i, jobs[i]);
      const std::lock_guard lock(mutex);
      ++n_back;
      changed.notify_one();
    });
  }
  if (n > 0) tiles[0] = run_tile(jobs[0]);
  std::unique_lock lock(mutex);
  changed.wait(lock, [&] { return n_back == n_away; });
  return tiles;
}

// Run by run: between two, the rows that tiles of other workers reach into come here and go on from here.
// What a lost worker kept is lost, so a chain begins anew then, and needs no other worker at all: the same
// bits, later.
Status TierRunner::run_tiled(const std::vector<const TiledRun*>& chain, Values& values) {
  FRUGAL_TRY(const std::shared_ptr<ChainShape> shape, shape_for(chain));
  const auto at = values.find(shape->runs.front().input);
  if (at == values.end()) return {ErrorCode::kInvalidArgument, "the input of a tiled run has not arrived"};
  const HostTensor& input = at->second;
  const auto without_tiles = [&] {
    std::vector<int> vertices;
    for (const TiledRun* run : chain)
      vertices.insert(vertices.end(), run->vertices.begin(), run->vertices.end());
    return run_plain(vertices, values);
  };
  if (shape->is_refused) return without_tiles();
  const uint64_t name = next_chain_.fetch_add(1) ^ chain_salt_;
  const size_t n = chain.front()->tiles.size();
  std::vector<std::vector<TileJob::Piece>> shared(n);  // of the run before, by who computed them
  for (size_t j = 0; j < chain.size(); ++j) {
    const RunShape& here = shape->runs[j];
    std::vector<TileJob> jobs(n);
    for (size_t i = 0; i < n; ++i) {
      TileJob& job = jobs[i];
      job.vertices = chain[j]->vertices;
      job.tile = chain[j]->tiles[i];
      job.chain = name;
      job.goes_on = j > 0;
      job.stays = chain[j]->stays;
      if (job.stays) job.gives = here.gives[i];
      if (j == 0) {
        job.pieces.push_back({here.reads[i].axes[0], slice(input, here.whole, here.reads[i])});
        continue;
      }
      for (const Range& missing : missing_rows(here.reads[i].axes[0], shape->runs[j - 1].writes[i].axes[0])) {
        for (const auto& pieces : shared) {
          for (const TileJob::Piece& piece : pieces) {
            const Range rows{std::max(missing.begin, piece.rows.begin),
                             std::min(missing.end, piece.rows.end)};
            if (rows.size() <= 0) continue;
            const Range columns = here.whole.axes[1];
            job.pieces.push_back({rows, slice(piece.tensor, {{piece.rows, columns}}, {{rows, columns}})});
          }
        }
      }
    }
    std::vector<Result<std::vector<HostTensor>>> tiles = run_tiles(jobs);
    for (const auto& tile : tiles) {
      if (tile.ok() || tile.error().code != ErrorCode::kUnsupported) continue;
      shape->is_refused = true;
      return without_tiles();
    }
    for (size_t i = 0; i < n && chain.size() == 1; ++i) {
      if (!tiles[i].ok() && i > 0) tiles[i] = run_tile(jobs[i]);
      if (!tiles[i].ok() && tiles[i].error().code != ErrorCode::kUnsupported) return tiles[i].error();
    }
    const Tensor& output = network_->graph().tensors[static_cast<size_t>(here.output)];
    const auto is_sound = [&](size_t i) {
      const std::vector<Range> rows =
          jobs[i].stays ? jobs[i].gives : std::vector<Range>{here.writes[i].axes[0]};
      if (!tiles[i].ok() || tiles[i]->size() != rows.size()) return false;
      for (size_t r = 0; r < rows.size(); ++r) {
        if (!is_rows_of(output, rows[r], here.writes[i].axes[1], (*tiles[i])[r])) return false;
      }
      return true;
    };
    for (size_t i = 0; i < n; ++i) {
      if (!is_sound(i)) return without_tiles();
    }
    if (chain[j]->stays) {
      for (size_t i = 0; i < n; ++i) {
        shared[i].clear();
        for (size_t g = 0; g < jobs[i].gives.size(); ++g)
          shared[i].push_back({jobs[i].gives[g], std::move((*tiles[i])[g])});
      }
      continue;
    }
    HostTensor assembled{output.type, output.shape, std::vector<std::byte>(output.bytes)};
    for (size_t i = 0; i < n; ++i) paste((*tiles[i])[0], here.writes[i], assembled);  // tiles do not overlap
    values[here.output] = std::move(assembled);
  }
  return {};
}

Status TierRunner::run(const Division& division, Values& values, FrameCost& cost) {
  const double start = wall_seconds();
  for (const Stage& stage : stages_of(division)) {
    FRUGAL_TRY_STATUS(stage.chain.empty() ? run_plain(stage.vertices, values)
                                          : run_tiled(stage.chain, values));
  }
  if (static_cast<size_t>(k_) < cost.tier_seconds.size())
    cost.tier_seconds[static_cast<size_t>(k_)] += wall_seconds() - start;
  return {};
}

Values needed_beyond(const Graph& graph, const std::vector<int>& tier, int k, Values& values) {
  Values needed;
  for (auto& [t, tensor] : values) {
    const auto& consumers = graph.tensors[static_cast<size_t>(t)].consumers;
    if (std::any_of(consumers.begin(), consumers.end(),
                    [&](int w) { return tier[static_cast<size_t>(w)] > k; })) {
      needed[t] = std::move(tensor);
    }
  }
  return needed;
}

Result<Values> run_from(TierRunner& here, Hop* next, const Division& division, Values values,
                        FrameCost& cost) {
  const Graph& graph = here.network().graph();
  if (division.tier.size() != graph.vertices.size()) {
    return Error{ErrorCode::kInvalidArgument, strf("a plan for %zu vertices does not fit this model of %zu",
                                                   division.tier.size(), graph.vertices.size())};
  }
  FRUGAL_TRY_STATUS(here.unpack(division, values, cost));
  FRUGAL_TRY_STATUS(here.run(division, values, cost));
  Values results;
  for (auto& [t, tensor] : values) {
    // An output made here, or an input of the model that is its output too; one made below stays there.
    const Tensor& of = graph.tensors[static_cast<size_t>(t)];
    if (of.is_output && division.tier[static_cast<size_t>(of.producer)] == here.k()) results[t] = tensor;
  }
  if (division.uses_beyond(here.k())) {
    if (next == nullptr) return Error{ErrorCode::kUnavailable, strf("there is no tier beyond %d", here.k())};
    Values needed = needed_beyond(graph, division.tier, here.k(), values);
    FRUGAL_TRY_STATUS(here.pack(division, needed, cost));
    FRUGAL_TRY(Values rest, next->run(division, std::move(needed), cost));
    results.merge(rest);
  }
  return results;
}

}  // namespace frugal::dnn
