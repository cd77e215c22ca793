// Fuzzes what the DNN plane reads from other hosts: chunks, letters, divisions. Whatever is accepted must
// hold together.
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/check.h"
#include "dnn/link/wire.h"
#include "dnn/plan/synthetic.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace frugal;
  using namespace frugal::dnn;
  const auto bytes = std::as_bytes(std::span(data, size));
  if (const auto chunk = decode_chunk(bytes); chunk.ok()) {
    Assembler assembler;
    if (const auto whole = assembler.add(*chunk); whole.ok() && *whole) {
      FRUGAL_CHECK(assembler.take().size() == chunk->head.total_bytes);
    }
  }
  const auto content = decode_content(bytes, true);
  FRUGAL_CHECK(content.ok() || !decode_content(bytes).ok());
  if (!content.ok()) return 0;
  for (const auto& [t, tensor] : content->tensors) {
    size_t n = element_bytes(tensor.type);
    for (const int64_t dimension : tensor.shape) n *= static_cast<size_t>(dimension);
    FRUGAL_CHECK(tensor.packed ? tensor.bytes.size() <= n : n == tensor.bytes.size());
  }
  (void)answer_status(content->meta);
  static const Graph graph = [] {
    Rng rng(1);
    return random_graph(rng, 6);
  }();
  if (const auto job = job_from_content(graph, *content); job.ok())
    FRUGAL_CHECK(job->pieces.size() == content->tensors.size());
  const auto division = division_from_json(graph, content->meta, 3);
  if (!division.ok()) return 0;
  FRUGAL_CHECK(division->tier.size() == graph.vertices.size());
  FRUGAL_CHECK(division_to_json(*division).is_object());
  return 0;
}
