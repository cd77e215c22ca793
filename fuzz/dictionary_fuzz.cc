// Fuzzes the dictionary reader: what it accepts must make a cache that codes and scores. The checksum is
// repaired first, so that mutations get past it.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "base/check.h"
#include "base/hash.h"
#include "llm/kv/dictionary.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace frugal;
  using namespace frugal::llm;
  std::vector<uint8_t> bytes(data, data + size);
  if (size >= 56) {
    const auto all = std::as_bytes(std::span(bytes));
    const uint64_t sum = fnv1a(all.first(48), checksum64(all.subspan(56)));
    std::memcpy(bytes.data() + 48, &sum, sizeof sum);
  }
  auto parsed = parse_dictionary(std::as_bytes(std::span(bytes)), "fuzz");
  if (!parsed.ok()) return 0;
  const auto source = make_csr_source(std::make_shared<const Dictionary>(std::move(parsed).value()), 2);
  if (!source.ok()) return 0;
  const Dictionary again = parse_dictionary(std::as_bytes(std::span(bytes)), "fuzz").value();
  const auto cache = (*source)->make({again.n_layers, again.n_kv_heads, again.head_dim, 256});
  if (!cache.ok()) return 0;
  const auto dim = static_cast<size_t>(again.head_dim), width = dim * static_cast<size_t>(again.n_kv_heads);
  std::vector<float> row(width, 0.5f);
  for (int position = 0; position < 256; ++position) (*cache)->store(0, position, row.data(), row.data());
  std::vector<std::byte> scratch((*cache)->query_scratch_bytes(1));
  const KvQueries queries{1, row.data(), scratch.data(), 255, 1};
  std::vector<float> scores(64), spare(64), out(dim);
  std::vector<float> sums(static_cast<size_t>((*cache)->sum_width(0, 0)));
  (*cache)->prepare(0, 0, queries);
  (*cache)->score_chunk(0, 0, 1, 64, queries, scores.data(), 0);
  const float least = 1;
  (*cache)->add_values(0, 0, 1, 64, queries, {scores.data(), 64, &least}, sums.data(), spare.data());
  (*cache)->restore(0, 0, sums.data(), 1, out.data());
  return 0;
}
