// Micro-bench of attention on one core: windows of query rows over a full cache of the shape of SmolLM2-135M
// (30 layers, 3 KV heads of 64 channels, 3 query heads each).
//
//   bench_llm_attention [DEPTH] [FORMAT] [SET] [DICTIONARY] [ROWS [REPETITIONS]]
//
// FORMAT is f32, f16, bf16, q8_0, or csr:BITS with a dictionary of SmolLM2-135M. ROWS: this window alone.
// A row tells milliseconds a step, bytes of the cache and multiply-adds a second.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/rng.h"
#include "llm/kernel/kernel.h"
#include "llm/kv/attention.h"
#include "llm/kv/dictionary.h"

namespace frugal::llm {
namespace {

constexpr int kLayers = 30, kHeads = 3, kGroup = 3, kDim = 64;

Result<std::unique_ptr<KvCache>> cache_of(const std::string& name, const char* dictionary_path, int depth) {
  const KvShape shape = {kLayers, kHeads, kDim, depth + 64};
  if (name.rfind("csr:", 0) != 0) {
    FRUGAL_TRY(const KvFormat format, parse_kv_format(name));
    return make_kv_cache(format, shape);
  }
  FRUGAL_TRY(auto dictionary, read_dictionary(dictionary_path));
  FRUGAL_TRY(const auto source, make_csr_source(std::make_shared<const Dictionary>(std::move(dictionary)),
                                                std::atof(name.c_str() + 4)));
  return source->make(shape);
}

int run(int depth, const std::string& format_name, const char* dictionary_path, int only_rows, int n_reps) {
  auto made = cache_of(format_name, dictionary_path, depth);
  if (!made.ok()) {
    std::fprintf(stderr, "%s\n", made.error().message.c_str());
    return 1;
  }
  KvCache& cache = **made;
  Rng rng(3);
  std::vector<float> pool(1 << 16);  // of which keys and values are stretches: drawing millions takes seconds
  for (float& x : pool) x = static_cast<float>(rng.normal());
  for (int layer = 0; layer < kLayers; ++layer) {
    for (int t = 0; t < depth + 64; ++t) {
      const auto stretch = [&] { return &pool[rng.below(pool.size() - kHeads * kDim)]; };
      const float* k = stretch();
      cache.store(layer, t, k, stretch());
    }
  }
  std::printf("set %s, one core, %s cache, depth %d\nrows  ms/step     GB/s   GMAC/s\n", kernels().name,
              format_name.c_str(), depth);
  for (const int n_rows : {1, 2, 4, 8, 16}) {
    if (only_rows > 0 && n_rows != only_rows) continue;
    const int n_cols = n_rows * kGroup;
    const auto n = static_cast<size_t>(n_cols);
    std::vector<float> q(n * kDim), out(n * (kDim + kMaxSumsBeyond)), part_out(out.size()), stats(4 * n),
        scratch(attention_scratch_floats(n_cols));
    std::vector<std::byte> codec(cache.query_scratch_bytes(n_cols));
    for (float& x : q) x = static_cast<float>(rng.normal() / 8);
    const KvQueries queries{n_cols, q.data(), codec.data(), depth, kGroup};
    const AttentionState total{&stats[0], &stats[n], out.data()},
        part{&stats[2 * n], &stats[3 * n], part_out.data()};
    double best = 1e9;
    for (int rep = 0; rep < n_reps; ++rep) {
      const double begin = wall_seconds();
      for (int layer = 0; layer < kLayers; ++layer) {
        for (int head = 0; head < kHeads; ++head) {
          const AttentionTile tile{&cache, layer, head, n_rows, kGroup, depth, 0};
          cache.prepare(layer, head, queries);
          attend(tile, queries, visible_chunks(tile), total, part, scratch.data());
        }
      }
      best = std::min(best, wall_seconds() - begin);
    }
    const auto tokens = static_cast<double>(depth + n_rows);
    std::printf("%4d %8.3f %8.1f %8.1f\n", n_rows, 1e3 * best,
                1e-9 * static_cast<double>(cache.bytes_used(depth + n_rows)) / best,
                1e-9 * tokens * kLayers * kHeads * n_cols * kDim * 2 / best);
  }
  return 0;
}

}  // namespace
}  // namespace frugal::llm

int main(int argc, char** argv) {
  using namespace frugal::llm;
  if (argc > 3 && argv[3][0] != 0) {
    if (find_kernels(argv[3]) == nullptr) {
      std::fprintf(stderr, "there is no kernel set '%s' in this build or for this processor\n", argv[3]);
      return 2;
    }
    use_kernels(find_kernels(argv[3]));
  }
  return run(argc > 1 ? std::max(1, std::atoi(argv[1])) : 2000, argc > 2 ? argv[2] : "f16",
             argc > 4 ? argv[4] : "", argc > 5 ? std::atoi(argv[5]) : 0, argc > 6 ? std::atoi(argv[6]) : 12);
}
