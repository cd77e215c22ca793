// Fuzzes the DNN plane's files: the first byte says which. 'o': an ONNX model, imported and, where it is
// accepted, its graph checked; anything else: a profile of a graph of ours.
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/check.h"
#include "dnn/exec/network.h"
#include "dnn/plan/profile.h"
#include "dnn/plan/synthetic.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace frugal;
  using namespace frugal::dnn;
  if (size == 0) return 0;
  const std::string_view text(reinterpret_cast<const char*>(data) + 1, size - 1);
  if (data[0] == 'o') {
    const auto network = Network::load_memory(text, "fuzz");
    if (!network.ok()) {
      FRUGAL_CHECK(!network.error().message.empty());
      return 0;
    }
    FRUGAL_CHECK(validate((*network)->graph()).ok());
    return 0;
  }
  static const Graph graph = [] {
    Rng rng(1);
    return random_graph(rng, 6);
  }();
  const auto profile = profile_from_json(graph, text);
  if (!profile.ok()) return 0;
  FRUGAL_CHECK(profile->measurement.vertex_seconds.size() == graph.vertices.size());
  FRUGAL_CHECK(profile_from_json(graph, profile_to_json(graph, *profile)).ok());
  return 0;
}
