#include "dnn/link/tier.h"

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <thread>

#include "base/clock.h"
#include "base/text.h"
#include "dnn/pack/pack.h"
#include "dnn/plan/vsm.h"

namespace frugal::dnn {
namespace {

constexpr size_t kMaxParts = 8;   // compiled parts kept: each holds a copy of its weights
constexpr size_t kMaxTiles = 40;  // compiled tiles, likewise

void sleep_seconds(double seconds) {
  if (seconds > 0) std::this_thread::sleep_for(std::chrono::duration<double>(seconds));
}

uint64_t bytes_of(const Values& values) {
  uint64_t bytes = 0;
  for (const auto& [t, tensor] : values) bytes += tensor.bytes.size();
  return bytes;
}

double thread_cpu_seconds() { return clock_seconds(CLOCK_THREAD_CPUTIME_ID); }

// The cached value under `key`, moved to the front; null when there is none.
template <typename List, typename Key>
auto* find_recent(List& list, const Key& key) {
  for (auto at = list.begin(); at != list.end(); ++at) {
    if (at->first != key) continue;
    list.splice(list.begin(), list, at);
    return &list.front().second;
  }
  return static_cast<decltype(&list.front().second)>(nullptr);
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
    : network_(std::move(network)), k_(k), n_threads_(n_threads), slowdown_(std::max(1.0, slowdown)) {}

// In topological order: a tiled run is a stage of its own, what lies between two runs is one.
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
    if (stages.empty() || stages.back().run != run_of[v]) stages.push_back({{}, run_of[v]});
    stages.back().vertices.push_back(static_cast<int>(v));
  }
  return stages;
}

Result<std::shared_ptr<Part>> TierRunner::part_for(const std::vector<int>& vertices) {
  const std::lock_guard lock(cache_mutex_);
  if (const auto* part = find_recent(parts_, vertices)) return *part;
  FRUGAL_TRY(std::unique_ptr<Part> compiled, network_->compile(vertices, n_threads_));
  parts_.emplace_front(vertices, std::move(compiled));
  if (parts_.size() > kMaxParts) parts_.pop_back();
  return parts_.front().second;
}

Result<TierRunner::TilePart> TierRunner::tile_for(const TiledRun& run, size_t i) {
  if (i >= run.tiles.size()) return Error{ErrorCode::kInvalidArgument, strf("there is no tile %zu", i)};
  const TileBounds& b = run.tiles[i];
  std::vector<int64_t> key(run.vertices.begin(), run.vertices.end());
  key.insert(key.end(), {b.row_begin, b.row_end, b.column_begin, b.column_end});
  const std::lock_guard lock(cache_mutex_);
  if (const auto* tile = find_recent(tiles_, key)) return *tile;
  FRUGAL_TRY(const Segment segment, make_segment(network_->graph(), run.vertices));
  if (segment.inputs.size() != 1) return Error{ErrorCode::kInvalidArgument, "a tiled run reads one tensor"};
  FRUGAL_TRY(const Tile tile, make_tile(network_->graph(), segment, region_of(b)));
  FRUGAL_TRY(std::unique_ptr<Part> compiled, network_->compile_tile(segment, tile, n_threads_));
  tiles_.emplace_front(std::move(key), TilePart{tile.held.at(segment.inputs[0]), std::move(compiled)});
  if (tiles_.size() > kMaxTiles) tiles_.pop_back();
  return tiles_.front().second;
}

Status TierRunner::prepare(const Division& division) {
  if (division.tier.size() != network_->graph().vertices.size()) {
    return {ErrorCode::kInvalidArgument, "the plan does not fit this model"};
  }
  for (const Stage& stage : stages_of(division)) {
    if (stage.run == nullptr) {
      if (const auto part = part_for(stage.vertices); !part.ok()) return part.error();
    } else {
      if (const auto tile = tile_for(*stage.run, 0); !tile.ok()) return tile.error();
    }
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
  if (slowdown_ > 1) sleep_seconds(slowdown_ * busy - (wall_seconds() - start));
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

Result<HostTensor> TierRunner::run_tile(const TiledRun& run, size_t i, const HostTensor& input) {
  FRUGAL_TRY(const TilePart tile, tile_for(run, i));
  std::vector<HostTensor> outputs;
  FRUGAL_TRY_STATUS(run_part(*tile.part, {&input}, outputs));
  return std::move(outputs[0]);
}

Result<std::shared_ptr<const TierRunner::RunShape>> TierRunner::shape_for(const TiledRun& run) {
  std::vector<int64_t> key(run.vertices.begin(), run.vertices.end());
  for (const TileBounds& b : run.tiles)
    key.insert(key.end(), {-1, b.row_begin, b.row_end, b.column_begin, b.column_end});
  const std::lock_guard lock(cache_mutex_);
  if (const auto* shape = find_recent(shapes_, key)) return *shape;
  const Graph& graph = network_->graph();
  FRUGAL_TRY(const Segment segment, make_segment(graph, run.vertices));
  if (segment.inputs.size() != 1) return Error{ErrorCode::kInvalidArgument, "a tiled run reads one tensor"};
  auto shape = std::make_shared<RunShape>();
  shape->input = segment.inputs[0];
  shape->output = segment.output;
  shape->whole = whole_region(graph.tensors[static_cast<size_t>(shape->input)]);
  for (const TileBounds& bounds : run.tiles) {
    FRUGAL_TRY(const Tile tile, make_tile(graph, segment, region_of(bounds)));
    shape->reads.push_back(tile.held.at(shape->input));
    shape->writes.push_back(region_of(bounds));
  }
  shapes_.emplace_front(std::move(key), std::move(shape));
  if (shapes_.size() > kMaxTiles) shapes_.pop_back();
  return shapes_.front().second;
}

// Tiles of other workers go out first, each on a thread of the crew; then this one computes its own, and any
// that did not come back.
Status TierRunner::run_tiled(const TiledRun& run, Values& values) {
  FRUGAL_TRY(const std::shared_ptr<const RunShape> shape, shape_for(run));
  const auto at = values.find(shape->input);
  if (at == values.end()) return {ErrorCode::kInvalidArgument, "the input of a tiled run has not arrived"};
  const HostTensor& input = at->second;
  const size_t n = run.tiles.size(), n_away = peers_ && n > 0 ? n - 1 : 0;
  const Tensor& output = network_->graph().tensors[static_cast<size_t>(shape->output)];
  HostTensor assembled{output.type, output.shape, std::vector<std::byte>(output.bytes)};
  std::vector<char> missing(n, 1);
  const auto take = [&](size_t i, const Result<HostTensor>& tile) {
    if (!tile.ok()) return;
    paste(*tile, shape->writes[i], assembled);  // tiles do not overlap
    missing[i] = 0;
  };
  std::mutex mutex;
  std::condition_variable changed;
  size_t n_back = 0;
  for (size_t i = 1; i <= n_away; ++i) {
    crew_.begin([&, i] {
      take(i, peers_->run_tile(i, run, i, slice(input, shape->whole, shape->reads[i])));
      const std::lock_guard lock(mutex);
      ++n_back;
      changed.notify_one();
    });
  }
  const auto own = [&](size_t i) -> Status {
    const auto tile = run_tile(run, i, slice(input, shape->whole, shape->reads[i]));
    take(i, tile);
    return tile.ok() ? Status() : Status(tile.error());
  };
  Status fault = n > 0 ? own(0) : Status();
  {
    std::unique_lock lock(mutex);
    changed.wait(lock, [&] { return n_back == n_away; });
  }
  // The same bits, only later: computing it here needs no other worker at all.
  for (size_t i = 1; i < n && fault.ok(); ++i) {
    if (missing[i]) fault = own(i);
  }
  FRUGAL_TRY_STATUS(fault);
  values[shape->output] = std::move(assembled);
  return {};
}

Status TierRunner::run(const Division& division, Values& values, FrameCost& cost) {
  const double start = wall_seconds();
  for (const Stage& stage : stages_of(division)) {
    FRUGAL_TRY_STATUS(stage.run == nullptr ? run_plain(stage.vertices, values)
                                           : run_tiled(*stage.run, values));
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

LocalHop::LocalHop(std::shared_ptr<TierRunner> runner, std::shared_ptr<Hop> next, const Link& link)
    : runner_(std::move(runner)), next_(std::move(next)), link_(link) {}

void LocalHop::set_link(const Link& link) {
  const std::lock_guard lock(mutex_);
  link_ = link;
}

Status LocalHop::prepare(const Division& division) {
  FRUGAL_TRY_STATUS(runner_->prepare(division));
  return next_ ? next_->prepare(division) : Status();
}

// The wire carries one frame at a time; latency overlaps.
void LocalHop::cross(double latency, double seconds) {
  {
    const std::lock_guard lock(wire_mutex_);
    sleep_seconds(seconds);
  }
  sleep_seconds(latency);
}

Result<Values> LocalHop::run(const Division& division, Values inputs, FrameCost& cost) {
  Link link;
  {
    const std::lock_guard lock(mutex_);
    link = link_;
  }
  const Error down{ErrorCode::kUnavailable, strf("tier %d does not answer", runner_->k())};
  if (!up_) return down;
  const auto wire = static_cast<size_t>(runner_->k() - 1);
  const uint64_t up = bytes_of(inputs);
  const double start = wall_seconds();
  cross(link.latency_seconds, link.tensor_seconds * static_cast<double>(inputs.size()) +
                                  static_cast<double>(up) / link.up_bytes_per_second);
  const double there = wall_seconds();
  auto ran = run_from(*runner_, next_.get(), division, std::move(inputs), cost);
  if (!ran.ok()) return beyond(ran.error());
  Values outputs = *std::move(ran);
  const double done = wall_seconds();
  if (!up_) return down;
  const uint64_t back = bytes_of(outputs);
  cross(link.latency_seconds, link.tensor_seconds * static_cast<double>(outputs.size()) +
                                  static_cast<double>(back) / link.down_bytes_per_second);
  if (wire < cost.up_bytes.size()) {
    cost.up_bytes[wire] += up;
    cost.down_bytes[wire] += back;
    cost.link_seconds[wire] += there - start + wall_seconds() - done;
  }
  return outputs;
}

LocalPeers::LocalPeers(std::vector<std::shared_ptr<TierRunner>> peers, double latency_seconds,
                       double bytes_per_second)
    : peers_(std::move(peers)), latency_seconds_(latency_seconds), bytes_per_second_(bytes_per_second) {}

Result<HostTensor> LocalPeers::run_tile(size_t worker, const TiledRun& run, size_t tile,
                                        const HostTensor& input) {
  if (worker == 0 || worker > peers_.size()) {
    return Error{ErrorCode::kUnavailable, strf("there is no worker %zu", worker)};
  }
  const auto carry = [&](std::mutex& wire, size_t bytes) {
    const std::lock_guard lock(wire);
    sleep_seconds(static_cast<double>(bytes) / bytes_per_second_);
  };
  carry(out_mutex_, input.bytes.size());
  sleep_seconds(latency_seconds_);
  FRUGAL_TRY(HostTensor output, peers_[worker - 1]->run_tile(run, tile, input));
  sleep_seconds(latency_seconds_);
  carry(in_mutex_, output.bytes.size());
  return output;
}

}  // namespace frugal::dnn
