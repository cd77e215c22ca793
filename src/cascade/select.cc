#define FRUGAL_SELECT(name) select_##name##_generic
#include <algorithm>
#include <bit>
#include <cmath>

#include "base/check.h"
#include "cascade/select.inc.h"

namespace frugal::cascade {

#ifdef FRUGAL_HAVE_AVX2
void select_keys_avx2(const float* scores, size_t n, int32_t* keys, int32_t* lowest, int32_t* highest);
size_t select_count_avx2(const int32_t* keys, size_t n, int32_t least);
#endif

SelectKernel find_select_kernel(const char* name) {
  if (std::strcmp(name, "generic") == 0) return {select_keys_generic, select_count_generic};
#ifdef FRUGAL_HAVE_AVX2
  __builtin_cpu_init();
  if (std::strcmp(name, "avx2") == 0 && __builtin_cpu_supports("avx2"))
    return {select_keys_avx2, select_count_avx2};
#endif
  return {nullptr, nullptr};
}

namespace {

const SelectKernel& best_kernel() {
  static const SelectKernel kernel = [] {
    const SelectKernel avx2 = find_select_kernel("avx2");
    return avx2.keys != nullptr ? avx2 : find_select_kernel("generic");
  }();
  return kernel;
}

// The score of a key, and back.
float score_of(int32_t key) { return std::bit_cast<float>(key ^ ((key >> 31) & 0x7fffffff)); }
int32_t key_of(float score) {
  const auto bits = std::bit_cast<int32_t>(score + 0.0f);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

struct Cut {
  int32_t least;  // the largest key that at least `keep` keys reach, or one that just `keep` keys reach
  size_t above;   // keys that reach it
};

// 0 < keep <= n. Halves the range of scores, which takes as many counts as the logarithm of range over gap at
// the cut: about a dozen. If scores are spread so that this gets nowhere, halves the range of keys, which
// ends within 32.
Cut find_cut(const SelectKernel& kernel, const std::vector<int32_t>& keys, int32_t lowest, int32_t highest,
             size_t n, size_t keep) {
  // `low` is reached by at least `keep` keys, `high` by fewer.
  int64_t low = lowest, high = int64_t{highest} + 1;
  size_t above = high > low ? kernel.count(keys.data(), keys.size(), lowest) : 0;
  if (above < keep) return {kLastKey, n};
  constexpr int kLinear = 20;
  for (int step = 0; above != keep && high - low > 1; ++step) {
    int64_t middle = low + (high - low) / 2;
    if (step < kLinear) {
      const float a = score_of(static_cast<int32_t>(low)), b = score_of(static_cast<int32_t>(high - 1));
      middle = std::clamp(int64_t{key_of(0.5f * a + 0.5f * b)}, low + 1, high - 1);
    }
    const size_t reached = kernel.count(keys.data(), keys.size(), static_cast<int32_t>(middle));
    if (reached >= keep)
      low = middle, above = reached;
    else
      high = middle;
  }
  return {static_cast<int32_t>(low), above};
}

}  // namespace

void Selector::best_items(std::span<const int64_t> pool, std::span<const float> scores, int keep,
                          bool ordered, std::vector<int64_t>& best) {
  FRUGAL_CHECK(pool.size() == scores.size() && best.data() != pool.data());
  const size_t n = pool.size(), wanted = std::min(n, static_cast<size_t>(std::max(keep, 0)));
  best.resize(wanted);
  if (wanted == 0) return;
  const SelectKernel& kernel = best_kernel();
  keys_.resize((n + kSelectLanes - 1) / kSelectLanes * kSelectLanes);
  int32_t lowest, highest;
  kernel.keys(scores.data(), n, keys_.data(), &lowest, &highest);
  if (ordered) {
    // Ascending, these are keys descending, equals by their place.
    order_.resize(n);
    for (size_t i = 0; i < n; ++i)
      order_[i] = (uint64_t{~(static_cast<uint32_t>(keys_[i]) ^ 0x80000000u)} << 32) | i;
    std::partial_sort(order_.begin(), order_.begin() + static_cast<std::ptrdiff_t>(wanted), order_.end());
    for (size_t i = 0; i < wanted; ++i) best[i] = pool[static_cast<uint32_t>(order_[i])];
    return;
  }
  const Cut cut = find_cut(kernel, keys_, lowest, highest, n, wanted);
  size_t ties = wanted, to = 0;  // equals of the cut that may pass
  if (cut.above > wanted) {
    const size_t beyond =
        cut.least == INT32_MAX ? 0 : kernel.count(keys_.data(), keys_.size(), cut.least + 1);
    ties = wanted - beyond;
  }
  // Without a branch: a place is written, and kept if the item passes.
  best.resize(wanted + 1);
  for (size_t i = 0; i < n; ++i) {
    best[to] = pool[i];
    const bool tie = keys_[i] == cut.least;
    to += keys_[i] > cut.least || (tie && ties > 0);
    ties -= tie && ties > 0;
  }
  best.resize(wanted);
}

}  // namespace frugal::cascade
