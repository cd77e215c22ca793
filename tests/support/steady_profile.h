// A model's times by formula, so that plans in tests do not depend on how fast the machine is.
#pragma once

#include "dnn/plan/profile.h"

namespace frugal::test {

// 5 GFLOP/s and 20 us a vertex: slow enough that the links of the tests are worth crossing.
inline dnn::Profile steady_profile(const dnn::Network& network) {
  const dnn::Graph& graph = network.graph();
  dnn::Profile profile;
  profile.model_hash = graph.model_hash;
  profile.model = graph.name;
  for (const dnn::Vertex& vertex : graph.vertices) {
    const double seconds = vertex.kind == "Input" ? 0 : 20e-6 + vertex.flops / 5e9;
    profile.measurement.vertex_seconds.push_back(seconds);
    profile.measurement.whole_seconds += seconds;
  }
  return profile;
}

}  // namespace frugal::test
