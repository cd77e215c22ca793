// How lossless cutting is: random three-tier plans, half of them with tiles, of the networks in a folder,
// each compared with the uncut network bit for bit; and what cutting costs in one process. Prints one JSON
// object.
//
//   bench_dnn_lossless FOLDER [plans_for_each=40] [seed=1]
#include <malloc.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/rng.h"
#include "dnn/link/local.h"
#include "dnn/plan/vsm.h"

namespace {

using namespace frugal;
using namespace frugal::dnn;

// The device and the tiers beyond it, one after the other in this process, without links; tensors that cross
// are packed where the division says so.
Result<Values> run_plan(std::vector<std::unique_ptr<TierRunner>>& tiers, const Division& division,
                        const Values& input) {
  Values values = input;
  FrameCost cost(3);
  for (auto& tier : tiers) {
    FRUGAL_TRY_STATUS(tier->unpack(division, values, cost));
    FRUGAL_TRY_STATUS(tier->run(division, values, cost));
    Values sent = needed_beyond(tier->network().graph(), division.tier, tier->k(), values);
    FRUGAL_TRY_STATUS(tier->pack(division, sent, cost));
    for (auto& [t, tensor] : sent) values[t] = std::move(tensor);  // outputs that are read beyond, too
  }
  return values;
}

std::vector<int> random_tiers(Rng& rng, const Graph& graph) {
  std::vector<int> tier(graph.vertices.size(), 0);
  const double step = 2.0 / static_cast<double>(graph.vertices.size()) * (0.5 + 2 * rng.uniform());
  for (size_t v = 0; v < tier.size(); ++v) {
    for (const int t : graph.vertices[v].inputs)
      tier[v] = std::max(tier[v], tier[static_cast<size_t>(graph.tensors[static_cast<size_t>(t)].producer)]);
    if (graph.vertices[v].kind != "Input" && rng.uniform() < step) tier[v] = std::min(2, tier[v] + 1);
  }
  return tier;
}

// Stretches of segments on one tier, in two to four rows or a grid.
std::vector<TiledRun> random_runs(Rng& rng, const Graph& graph, const std::vector<Segment>& segments,
                                  const std::vector<int>& tier) {
  std::vector<TiledRun> runs;
  for (size_t first = 0; first < segments.size();) {
    const int k = tier[static_cast<size_t>(segments[first].vertices[0])];
    size_t end = first;
    TiledRun run;
    run.tier = k;
    const size_t most = 1 + rng.below(5);
    while (end < segments.size() && end - first < most &&
           (end == first || segments[end].inputs[0] == segments[end - 1].output) &&
           std::all_of(segments[end].vertices.begin(), segments[end].vertices.end(),
                       [&](int v) { return tier[static_cast<size_t>(v)] == k; })) {
      run.vertices.insert(run.vertices.end(), segments[end].vertices.begin(), segments[end].vertices.end());
      ++end;
    }
    if (end > first && rng.below(3) > 0) {
      const auto segment = make_segment(graph, run.vertices);
      if (segment.ok()) {
        const Tensor& output = graph.tensors[static_cast<size_t>(segment->output)];
        std::vector<double> weights;
        const bool may_go_on = !runs.empty() && runs.back().tier == k && rng.below(3) > 0;
        const uint32_t n_parts =
            may_go_on ? static_cast<uint32_t>(runs.back().tiles.size()) : 2 + rng.below(3);
        for (uint32_t i = 0; i < n_parts; ++i) weights.push_back(0.5 + rng.uniform());
        bool sound = true;
        for (const Region& region :
             rng.below(3) == 0 ? grid_tiles(output, 2, 2) : row_tiles(output, weights)) {
          sound = sound && make_tile(graph, *segment, region).ok();
          run.tiles.push_back(bounds_of(region));
        }
        if (sound && may_go_on) {
          const auto before = make_segment(graph, runs.back().vertices);
          runs.back().stays = before.ok() && goes_on(graph, *before, runs.back().tiles, *segment, run.tiles);
        }
        if (sound) runs.push_back(std::move(run));
      }
    }
    first = std::max(end, first + 1);
  }
  return runs;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: bench_dnn_lossless FOLDER [plans_for_each] [seed]\n");
    return 2;
  }
  mallopt(M_MMAP_THRESHOLD, 32 << 20);  // as the command: tensors' pages are kept between frames
  mallopt(M_TRIM_THRESHOLD, 512 << 20);
  const int n_plans = argc > 2 ? std::atoi(argv[2]) : 40;
  Rng rng(argc > 3 ? static_cast<uint64_t>(std::atoll(argv[3])) : 1);
  int n_all = 0, n_different = 0, n_tiled = 0, n_tiles = 0, n_stay = 0;
  std::vector<double> overheads;
  for (const char* name : {"alexnet", "vgg16", "resnet18", "darknet53", "inception_v4"}) {
    const auto loaded = Network::load(std::string(argv[1]) + "/" + name + ".onnx");
    if (!loaded.ok()) {
      std::fprintf(stderr, "%s\n", loaded.error().message.c_str());
      return 3;
    }
    const auto& network = *loaded;
    const Graph& graph = network->graph();
    std::vector<int> all;
    for (size_t v = 1; v < graph.vertices.size(); ++v) all.push_back(static_cast<int>(v));
    const std::vector<Segment> segments = smallest_segments(graph, all);
    const Tensor& tensor = graph.tensors[0];
    Values input;
    input[0] = HostTensor{tensor.type, tensor.shape, std::vector<std::byte>(tensor.bytes)};
    for (size_t i = 0; i < tensor.bytes / 4; ++i) {
      const auto x = static_cast<float>(rng.normal());
      std::memcpy(input[0].bytes.data() + 4 * i, &x, 4);
    }
    const auto whole = network->compile_whole(1).value();
    std::vector<HostTensor> expected;
    const std::vector<const HostTensor*> pointers = {&input[0]};
    if (!whole->run(pointers, expected).ok()) return 1;
    for (int i = 0; i < n_plans; ++i) {
      // Fresh runners: compiled parts of big networks would pile up.
      std::vector<std::unique_ptr<TierRunner>> tiers;
      for (int k = 0; k < 3; ++k) {
        tiers.push_back(std::make_unique<TierRunner>(network, k, 1));
        std::vector<std::shared_ptr<TierRunner>> others;
        for (int other = 0; other < 3; ++other) others.push_back(std::make_shared<TierRunner>(network, k, 1));
        tiers.back()->set_peers(std::make_shared<LocalPeers>(std::move(others), 0, 1e12));
      }
      Division division{random_tiers(rng, graph), {}};
      for (size_t t = 0; t < graph.tensors.size(); ++t) division.packed.push_back(rng.below(4));
      if (i % 2 == 1) division.runs = random_runs(rng, graph, segments, division.tier);
      const auto values = run_plan(tiers, division, input);
      if (!values.ok()) {
        std::fprintf(stderr, "%s: %s\n", name, values.error().message.c_str());
        return 1;
      }
      ++n_all;
      n_tiled += !division.runs.empty();
      for (const TiledRun& run : division.runs) {
        n_tiles += static_cast<int>(run.tiles.size());
        n_stay += run.stays;
      }
      n_different += values->at(whole->outputs()[0]).bytes != expected[0].bytes;
    }
    // Two cuts against none, in turn; processor time of this thread, which computes.
    std::vector<int> tier(graph.vertices.size(), 0);
    for (size_t v = 1; v < tier.size(); ++v)
      tier[v] = v < tier.size() / 3 ? 0 : v < 2 * tier.size() / 3 ? 1 : 2;
    for (const Tensor& t : graph.tensors) {
      for (const int w : t.consumers)
        tier[static_cast<size_t>(w)] =
            std::max(tier[static_cast<size_t>(w)], tier[static_cast<size_t>(t.producer)]);
    }
    std::vector<std::unique_ptr<TierRunner>> tiers;
    for (int k = 0; k < 3; ++k) tiers.push_back(std::make_unique<TierRunner>(network, k, 1));
    const auto seconds_of = [&](const auto& work) {
      const double start = clock_seconds(CLOCK_THREAD_CPUTIME_ID);
      work();
      return clock_seconds(CLOCK_THREAD_CPUTIME_ID) - start;
    };
    std::vector<double> ratios;
    for (int i = 0; i < 16; ++i) {
      const double plain = seconds_of([&] { (void)whole->run(pointers, expected); });
      const double cut = seconds_of([&] { (void)run_plan(tiers, {tier, {}}, input); });
      if (i > 0) ratios.push_back(cut / plain);
    }
    std::sort(ratios.begin(), ratios.end());
    overheads.push_back(ratios[ratios.size() / 2] - 1);
    std::fprintf(stderr, "%s: %d plans so far, %d different; two cuts cost %+.2f %%\n", name, n_all,
                 n_different, 100 * overheads.back());
  }
  std::printf(
      "{\"plans\": %d, \"tiled_plans\": %d, \"tiles\": %d, \"runs_that_stay\": %d, \"different\": %d, "
      "\"overhead_percent\": [",
      n_all, n_tiled, n_tiles, n_stay, n_different);
  for (size_t i = 0; i < overheads.size(); ++i) std::printf("%s%.2f", i ? ", " : "", 100 * overheads[i]);
  std::printf("]}\n");
  return n_different == 0 ? 0 : 1;
}
