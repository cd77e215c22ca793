// Soundness of a graph, and its layers.
#include <algorithm>

#include "base/text.h"
#include "frugal/dnn.h"

namespace frugal::dnn {
namespace {

bool inside(int index, size_t size) { return index >= 0 && static_cast<size_t>(index) < size; }

bool contains(const std::vector<int>& list, int value) {
  return std::find(list.begin(), list.end(), value) != list.end();
}

}  // namespace

Status validate(const Graph& graph) {
  const auto corrupt = [](std::string message) { return Status(ErrorCode::kCorrupt, std::move(message)); };
  const size_t n_vertices = graph.vertices.size(), n_tensors = graph.tensors.size();
  for (size_t v = 0; v < n_vertices; ++v) {
    const Vertex& vertex = graph.vertices[v];
    if (!(vertex.flops >= 0))
      return corrupt(strf("vertex %zu ('%s') has no sound FLOP count", v, vertex.name.c_str()));
    for (const int t : vertex.inputs) {
      if (!inside(t, n_tensors)) return corrupt(strf("vertex %zu reads tensor %d, which is not there", v, t));
      if (!contains(graph.tensors[static_cast<size_t>(t)].consumers, static_cast<int>(v))) {
        return corrupt(strf("tensor %d does not name its consumer, vertex %zu", t, v));
      }
    }
    for (const int t : vertex.outputs) {
      if (!inside(t, n_tensors))
        return corrupt(strf("vertex %zu writes tensor %d, which is not there", v, t));
      if (graph.tensors[static_cast<size_t>(t)].producer != static_cast<int>(v)) {
        return corrupt(strf("tensor %d does not name its producer, vertex %zu", t, v));
      }
    }
  }
  for (size_t t = 0; t < n_tensors; ++t) {
    const Tensor& tensor = graph.tensors[t];
    if (!inside(tensor.producer, n_vertices)) return corrupt(strf("tensor %zu has no producer", t));
    if (!contains(graph.vertices[static_cast<size_t>(tensor.producer)].outputs, static_cast<int>(t))) {
      return corrupt(strf("vertex %d does not list its output, tensor %zu", tensor.producer, t));
    }
    int last = -1;
    for (const int consumer : tensor.consumers) {
      if (!inside(consumer, n_vertices))
        return corrupt(strf("tensor %zu names consumer %d, which is not there", t, consumer));
      if (consumer <= last) return corrupt(strf("the consumers of tensor %zu are not in order", t));
      if (consumer <= tensor.producer)
        return corrupt(strf("the vertices are not in topological order at tensor %zu", t));
      if (!contains(graph.vertices[static_cast<size_t>(consumer)].inputs, static_cast<int>(t))) {
        return corrupt(strf("vertex %d does not list its input, tensor %zu", consumer, t));
      }
      last = consumer;
    }
  }
  return {};
}

std::vector<int> layers_of(const Graph& graph) {
  std::vector<int> layer(graph.vertices.size(), 0);
  for (size_t v = 0; v < graph.vertices.size(); ++v) {
    for (const int t : graph.vertices[v].inputs) {
      const auto producer = static_cast<size_t>(graph.tensors[static_cast<size_t>(t)].producer);
      layer[v] = std::max(layer[v], layer[producer] + 1);
    }
  }
  return layer;
}

}  // namespace frugal::dnn
