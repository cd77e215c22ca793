// Lossless: the five networks cut and tiled at random give, bit for bit, what they give whole.
#include "dnn/exec/network.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>

#include "base/rng.h"
#include "base/text.h"

namespace frugal::dnn {
namespace {

const char* const kNetworks[] = {"alexnet", "vgg16", "resnet18", "darknet53", "inception_v4"};

std::string model_path(const std::string& name) {
  const char* folder = std::getenv("FRUGAL_DNN_MODELS");
  return std::string(folder == nullptr ? "." : folder) + "/" + name + ".onnx";
}

std::shared_ptr<const Network> load(const std::string& name) {
  Result<std::shared_ptr<const Network>> network = Network::load(model_path(name));
  if (!network.ok()) ADD_FAILURE() << network.error().message;
  return network.value();
}

HostTensor random_input(const Tensor& tensor, uint64_t seed) {
  HostTensor input{tensor.type, tensor.shape, std::vector<std::byte>(tensor.bytes)};
  Rng rng(seed);
  for (size_t i = 0; i < tensor.bytes / 4; ++i) {
    const auto value = static_cast<float>(rng.normal());
    std::memcpy(input.bytes.data() + 4 * i, &value, 4);
  }
  return input;
}

// All tensors of a run, as they come.
using Values = std::map<int, HostTensor>;

void run_part(Part& part, Values& values) {
  std::vector<const HostTensor*> inputs;
  for (const int t : part.inputs()) inputs.push_back(&values.at(t));
  std::vector<HostTensor> outputs;
  const Status status = part.run(inputs, outputs);
  ASSERT_TRUE(status.ok()) << status.error().message;
  for (size_t i = 0; i < outputs.size(); ++i) values[part.outputs()[i]] = std::move(outputs[i]);
}

int output_of(const Graph& graph) {
  for (size_t t = 0; t < graph.tensors.size(); ++t) {
    if (graph.tensors[t].is_output) return static_cast<int>(t);
  }
  return -1;
}

class LosslessTest : public testing::TestWithParam<const char*> {};

TEST_P(LosslessTest, GraphIsSoundAndGroupsWhatIsFused) {
  const auto network = load(GetParam());
  const Graph& graph = network->graph();
  EXPECT_TRUE(validate(graph).ok());
  size_t n_ops = 0;
  double flops = 0;
  for (const Vertex& vertex : graph.vertices) {
    n_ops += vertex.ops.size();
    flops += vertex.flops;
    for (const std::string& op : vertex.ops) {
      // Activations and normalisation are never alone.
      if (op == "Relu" || op == "PRelu" || op == "BatchNormInference") {
        EXPECT_GT(vertex.ops.size(), 1u) << vertex.name;
      }
    }
  }
  EXPECT_LT(graph.vertices.size(), n_ops);
  EXPECT_GT(flops, 1e7);
  std::printf("%s: %zu vertices of %zu operators, %s FLOP\n", GetParam(), graph.vertices.size(), n_ops,
              human_count(flops).c_str());
}

TEST_P(LosslessTest, RandomThreeTierPlansAreBitwiseEqualToTheWhole) {
  const auto network = load(GetParam());
  const Graph& graph = network->graph();
  const int input = graph.vertices[0].outputs[0], output = output_of(graph);
  Values whole;
  whole[input] = random_input(graph.tensors[static_cast<size_t>(input)], 1);
  auto plain = network->compile_whole(1);
  ASSERT_TRUE(plain.ok()) << plain.error().message;
  EXPECT_EQ((*plain)->precision(), "f32");
  run_part(**plain, whole);
  Rng rng(2);
  int n_different = 0;
  const int n_plans = 4;
  for (int trial = 0; trial < n_plans; ++trial) {
    // Monotone labels with rough cuts: each vertex takes at least its producers' tier, and now and then more.
    std::vector<int> tier(graph.vertices.size(), 0);
    const double step = 2.0 / static_cast<double>(graph.vertices.size()) * (0.5 + 2 * rng.uniform());
    for (size_t v = 1; v < tier.size(); ++v) {
      for (const int t : graph.vertices[v].inputs) {
        tier[v] =
            std::max(tier[v], tier[static_cast<size_t>(graph.tensors[static_cast<size_t>(t)].producer)]);
      }
      if (rng.uniform() < step) tier[v] = std::min(2, tier[v] + 1);
    }
    Values values;
    values[input] = whole[input];
    for (int k = 0; k < 3; ++k) {
      std::vector<int> vertices;
      for (size_t v = 1; v < tier.size(); ++v) {
        if (tier[v] == k) vertices.push_back(static_cast<int>(v));
      }
      if (vertices.empty()) continue;
      auto part = network->compile(vertices, 1);
      ASSERT_TRUE(part.ok()) << part.error().message;
      run_part(**part, values);
    }
    const bool same = values.at(output).bytes == whole.at(output).bytes;
    n_different += !same;
    if (!same) {
      std::string cut;
      for (const Tensor& tensor : graph.tensors) {
        for (const int w : tensor.consumers) {
          if (tier[static_cast<size_t>(w)] > tier[static_cast<size_t>(tensor.producer)])
            cut += " " + tensor.name;
        }
      }
      std::printf("  differs when cut at%s\n", cut.c_str());
    }
  }
  EXPECT_EQ(n_different, 0) << "of " << n_plans;
}

// Each cut of a network's last vertices in topological order: reductions and what feeds them, which a cut may
// give in another layout.
TEST_P(LosslessTest, CutsNearTheEndAreBitwiseEqualToTheWhole) {
  const auto network = load(GetParam());
  const Graph& graph = network->graph();
  const int input = graph.vertices[0].outputs[0], output = output_of(graph);
  Values whole;
  whole[input] = random_input(graph.tensors[static_cast<size_t>(input)], 5);
  run_part(**network->compile_whole(1), whole);
  const size_t n = graph.vertices.size();
  for (size_t cut = n - std::min<size_t>(n - 2, 8); cut < n; ++cut) {
    Values values;
    values[input] = whole[input];
    std::vector<int> before, after;
    for (size_t v = 1; v < n; ++v) (v < cut ? before : after).push_back(static_cast<int>(v));
    run_part(**network->compile(before, 1), values);
    run_part(**network->compile(after, 1), values);
    EXPECT_EQ(values.at(output).bytes, whole.at(output).bytes) << "cut before " << graph.vertices[cut].name;
  }
}

// Joins `first` .. `last` of consecutive segments.
Segment join(const Graph& graph, const std::vector<Segment>& segments, size_t first, size_t last) {
  std::vector<int> vertices;
  for (size_t i = first; i <= last; ++i) {
    vertices.insert(vertices.end(), segments[i].vertices.begin(), segments[i].vertices.end());
  }
  return make_segment(graph, vertices).value();
}

TEST_P(LosslessTest, RowAndGridTilesAreBitwiseEqualToTheWhole) {
  const auto network = load(GetParam());
  const Graph& graph = network->graph();
  std::vector<int> all;
  for (size_t v = 1; v < graph.vertices.size(); ++v) all.push_back(static_cast<int>(v));
  const std::vector<Segment> segments = smallest_segments(graph, all);
  ASSERT_GT(segments.size(), 4u);
  const int input = graph.vertices[0].outputs[0];
  // The whole run, with every segment's ends kept.
  std::set<int> ends;
  for (const Segment& segment : segments) {
    ends.insert(segment.output);
    ends.insert(segment.inputs.begin(), segment.inputs.end());
  }
  ends.erase(input);
  const std::vector<int> kept(ends.begin(), ends.end());
  Values values;
  values[input] = random_input(graph.tensors[static_cast<size_t>(input)], 3);
  auto traced = network->compile(all, 1, kept);
  ASSERT_TRUE(traced.ok()) << traced.error().message;
  run_part(**traced, values);
  Rng rng(4);
  int n_tiles = 0, n_different = 0, n_slipped = 0, n_slips_seen = 0;
  // Some stretches at random, and every dense layer, which stands alone.
  const auto is_dense = [&](size_t s) {
    return graph.vertices[static_cast<size_t>(segments[s].vertices[0])].is_dense;
  };
  std::vector<std::pair<size_t, size_t>> stretches;
  while (stretches.size() < 3) {
    const size_t first = rng.below(static_cast<uint32_t>(segments.size()));
    size_t last = first;
    while (last + 1 < segments.size() && last - first < 4 && rng.below(3) > 0 && !is_dense(last + 1) &&
           segments[last + 1].inputs[0] == segments[last].output) {
      ++last;
    }
    if (!is_dense(first)) stretches.emplace_back(first, last);
  }
  for (size_t s = 0; s < segments.size(); ++s) {
    if (is_dense(s)) stretches.emplace_back(s, s);
  }
  EXPECT_GT(stretches.size(), 3u) << "all five end in a dense layer";
  for (size_t trial = 0; trial < stretches.size(); ++trial) {
    const Segment segment = join(graph, segments, stretches[trial].first, stretches[trial].second);
    const Tensor& output = graph.tensors[static_cast<size_t>(segment.output)];
    const double unequal[] = {1, 2};
    const std::vector<Region> tiles = trial % 2 == 0 ? row_tiles(output, unequal) : grid_tiles(output, 2, 2);
    HostTensor assembled{output.type, output.shape, std::vector<std::byte>(output.bytes)};
    for (const Region& region : tiles) {
      const auto tile = make_tile(graph, segment, region);
      ASSERT_TRUE(tile.ok()) << tile.error().message;
      auto part = network->compile_tile(segment, *tile, 1);
      ASSERT_TRUE(part.ok()) << part.error().message;
      std::vector<HostTensor> inputs;
      std::vector<const HostTensor*> pointers;
      for (const int t : segment.inputs) {
        inputs.push_back(
            slice(values.at(t), whole_region(graph.tensors[static_cast<size_t>(t)]), tile->held.at(t)));
      }
      for (const HostTensor& tensor : inputs) pointers.push_back(&tensor);
      std::vector<HostTensor> outputs;
      const Status status = (*part)->run(pointers, outputs);
      ASSERT_TRUE(status.ok()) << status.error().message;
      paste(outputs[0], region, assembled);
      const HostTensor expected = slice(values.at(segment.output), whole_region(output), region);
      ++n_tiles;
      n_different += outputs[0].bytes != expected.bytes;
      if (outputs[0].bytes != expected.bytes) {
        std::printf("  tile of vertices %d to %d differs\n", segment.vertices.front(),
                    segment.vertices.back());
      }
      // A seeded bug: the pads of the first windowed vertex on the wrong side. Wherever there are pads, it
      // shows.
      Tile wrong = *tile;
      for (auto& reads : wrong.reads) {
        if (reads[0].pad_begin == reads[0].pad_end) continue;
        std::swap(reads[0].pad_begin, reads[0].pad_end);
        ++n_slipped;
        auto broken = network->compile_tile(segment, wrong, 1);
        if (!broken.ok() || !(*broken)->run(pointers, outputs).ok()) {
          ++n_slips_seen;
        } else {
          n_slips_seen += outputs[0].bytes != expected.bytes;
        }
        break;
      }
    }
    EXPECT_EQ(assembled.bytes == values.at(segment.output).bytes, n_different == 0);
  }
  EXPECT_EQ(n_different, 0) << "of " << n_tiles;
  EXPECT_EQ(n_slips_seen, n_slipped);
  std::printf("%s: %zu segments, %d tiles tried, %d seeded bugs of %d seen\n", GetParam(), segments.size(),
              n_tiles, n_slips_seen, n_slipped);
}

INSTANTIATE_TEST_SUITE_P(Networks, LosslessTest, testing::ValuesIn(kNetworks),
                         [](const auto& i) { return std::string(i.param); });

}  // namespace
}  // namespace frugal::dnn
