// The best items of a pool by their scores: what follows every stage. On a small cascade selecting from the
// catalogue costs as much as scoring it, so its two passes over the scores are compiled once for each
// instruction set (select.inc.h); plain pointers only, as in predict.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace frugal::cascade {

struct SelectKernel {
  // keys [n, padded with kNoKey to a multiple of kSelectLanes]: integers in the order of the scores; what is
  // not finite gets kLastKey, below all others. `lowest` and `highest` are of those that are finite,
  // INT32_MAX and INT32_MIN if none is.
  void (*keys)(const float* scores, size_t n, int32_t* keys, int32_t* lowest, int32_t* highest);
  // How many of keys [n, a multiple of kSelectLanes] are at least `least`, which is above kNoKey.
  size_t (*count)(const int32_t* keys, size_t n, int32_t least);
};
inline constexpr size_t kSelectLanes = 16;
inline constexpr int32_t kNoKey = INT32_MIN, kLastKey = INT32_MIN + 1;
// "generic" or "avx2"; null functions: this processor or build lacks it.
SelectKernel find_select_kernel(const char* name);

// Not thread-safe: holds scratch space.
class Selector {
 public:
  // The items of the `keep` largest scores among the pool, `ordered`: best first, else in the pool's order.
  // Of equals the first in the pool wins. Scores that are not finite come last. `best` may not be the pool.
  void best_items(std::span<const int64_t> pool, std::span<const float> scores, int keep, bool ordered,
                  std::vector<int64_t>& best);

 private:
  std::vector<int32_t> keys_;
  std::vector<uint64_t> order_;
};

}  // namespace frugal::cascade
