#include "dnn/plan/synthetic.h"

#include <algorithm>

#include "base/text.h"

namespace frugal::dnn {

Graph random_graph(Rng& rng, int n) {
  Graph graph;
  graph.name = "random";
  for (int v = 0; v < n; ++v) {
    Vertex vertex;
    vertex.name = strf("v%d", v);
    vertex.kind = v == 0 ? "Input" : "Convolution";
    vertex.flops = v == 0 ? 0 : 1e6 * rng.uniform();
    vertex.weight_bytes = v == 0 ? 0 : rng.below(1000);
    if (v > 0) {
      const uint32_t n_inputs = 1 + rng.below(3);
      for (uint32_t i = 0; i < n_inputs; ++i) {
        // Mostly near ones, as in real networks.
        const auto n_tensors = static_cast<uint32_t>(graph.tensors.size());
        const uint32_t back = rng.below(rng.below(3) == 0 ? n_tensors : std::min(n_tensors, 3u));
        const int t = static_cast<int>(n_tensors - 1 - back);
        if (std::find(vertex.inputs.begin(), vertex.inputs.end(), t) != vertex.inputs.end()) continue;
        vertex.inputs.push_back(t);
        graph.tensors[static_cast<size_t>(t)].consumers.push_back(v);
      }
    }
    const uint32_t n_outputs = v > 0 && rng.below(6) == 0 ? 2 : 1;
    for (uint32_t i = 0; i < n_outputs; ++i) {
      vertex.outputs.push_back(static_cast<int>(graph.tensors.size()));
      Tensor tensor;
      tensor.name = strf("t%zu", graph.tensors.size());
      tensor.bytes = rng.below(1000000);
      tensor.producer = v;
      tensor.is_output = v > 0 && rng.below(12) == 0;
      graph.tensors.push_back(tensor);
    }
    graph.vertices.push_back(vertex);
  }
  for (Tensor& tensor : graph.tensors) tensor.is_output |= tensor.consumers.empty();
  return graph;
}

Cluster random_cluster(Rng& rng, const Graph& graph, int n_tiers) {
  Cluster cluster;
  double speed = 1;
  for (int k = 0; k < n_tiers; ++k) {
    Tier tier;
    tier.name = strf("tier%d", k);
    for (const Vertex& vertex : graph.vertices) {
      tier.vertex_seconds.push_back(vertex.kind == "Input" ? 0 : (0.002 + 0.02 * rng.uniform()) / speed);
    }
    tier.call_seconds = 0.002 * rng.uniform();
    tier.idle_watts = 1 + rng.uniform();
    tier.active_watts = tier.idle_watts + 10 * rng.uniform() * (k + 1);
    tier.gco2e_per_kwh = 20 + 500 * rng.uniform();
    cluster.tiers.push_back(tier);
    speed *= 1 + 4 * rng.uniform();
  }
  // Half of the tensors can be packed, at a cost that is worth it here and there.
  for (const Tensor& tensor : graph.tensors) {
    const bool packs = rng.below(2) == 0;
    cluster.packed_bytes.push_back(packs ? static_cast<double>(tensor.bytes) * rng.uniform() : 0);
    for (Tier& tier : cluster.tiers) {
      tier.pack_seconds.push_back(packs ? 0.05 * rng.uniform() * rng.uniform() : 0);
      tier.unpack_seconds.push_back(packs ? 0.05 * rng.uniform() * rng.uniform() : 0);
    }
  }
  for (int k = 0; k + 1 < n_tiers; ++k) {
    Link link;
    link.name = strf("link%d", k);
    link.latency_seconds = 0.01 * rng.uniform();
    link.tensor_seconds = 0.001 * rng.uniform();
    link.up_bytes_per_second = 1e6 * (1 + 60 * rng.uniform() * rng.uniform());
    link.down_bytes_per_second = 1e6 * (1 + 60 * rng.uniform());
    link.joules_per_byte = 1e-7 * rng.uniform();
    link.send_watts = 2 * rng.uniform();
    link.backbone = k + 2 == n_tiers;
    cluster.links.push_back(link);
  }
  return cluster;
}

Graph conv_chain(int n) {
  Graph graph;
  for (int v = 0; v <= n; ++v) {
    Vertex vertex;
    vertex.name = strf("v%d", v);
    vertex.kind = v == 0 ? "Input" : "Convolution";
    vertex.flops = v == 0 ? 0 : 1e8;
    Tensor tensor;
    tensor.name = vertex.name;
    tensor.type = "f32";
    tensor.shape = {1, 16, 56, 56};
    tensor.bytes = 16 * 56 * 56 * 4;
    tensor.producer = v;
    tensor.is_output = v == n;
    if (v > 0) {
      vertex.inputs = {v - 1};
      Window window;
      window.kernel = {3, 3};
      window.pad_begin = {1, 1};
      vertex.windows = {window};
    }
    if (v < n) tensor.consumers = {v + 1};
    vertex.outputs = {v};
    graph.vertices.push_back(vertex);
    graph.tensors.push_back(tensor);
  }
  return graph;
}

}  // namespace frugal::dnn
