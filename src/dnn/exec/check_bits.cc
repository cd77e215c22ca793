#include "dnn/exec/check_bits.h"

#include <cstring>

#include "base/rng.h"
#include "base/text.h"

namespace frugal::dnn {

Status check_bits(const Network& network, const Segment& segment, const Tile& tile, int n_threads,
                  Part& part) {
  const Graph& graph = network.graph();
  const Tensor& from = graph.tensors[static_cast<size_t>(segment.inputs[0])];
  if (from.type != "f32") return {};
  FRUGAL_TRY(const std::unique_ptr<Part> whole,
             network.compile(segment.vertices, n_threads, std::span(&segment.output, 1)));
  HostTensor input{from.type, from.shape, std::vector<std::byte>(from.bytes)};
  Rng rng(1);
  for (size_t i = 0; i < from.bytes / 4; ++i) {
    const auto x = static_cast<float>(rng.normal());
    std::memcpy(input.bytes.data() + 4 * i, &x, 4);
  }
  std::vector<HostTensor> wanted, got;
  const HostTensor* const all = &input;
  FRUGAL_TRY_STATUS(whole->run(std::span(&all, 1), wanted));
  const HostTensor piece = slice(input, whole_region(from), tile.held.at(segment.inputs[0]));
  const HostTensor* const some = &piece;
  FRUGAL_TRY_STATUS(part.run(std::span(&some, 1), got));
  const Region made = whole_region(graph.tensors[static_cast<size_t>(segment.output)]);
  if (slice(wanted[0], made, tile.output).bytes == got[0].bytes) return {};
  return {ErrorCode::kUnsupported,
          strf("a tile of '%s' to '%s' does not give the bits of the whole with this executor",
               graph.vertices[static_cast<size_t>(segment.vertices.front())].name.c_str(),
               graph.vertices[static_cast<size_t>(segment.vertices.back())].name.c_str())};
}

}  // namespace frugal::dnn
