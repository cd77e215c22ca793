// The bodies of the kernels of select.h; FRUGAL_SELECT(name) names them.
#include <cfloat>
#include <cstring>

#include "cascade/select.h"

namespace frugal::cascade {
namespace {
constexpr size_t kWidth = 8;
using Floats = float __attribute__((vector_size(kWidth * sizeof(float))));
using Ints = int32_t __attribute__((vector_size(kWidth * sizeof(int32_t))));
}  // namespace

void FRUGAL_SELECT(keys)(const float* scores, size_t n, int32_t* keys, int32_t* lowest, int32_t* highest) {
  // Floats as integers are in their order where the sign is clear; where it is set, with all other bits
  // turned.
  Ints low = INT32_MAX - Ints{}, high = INT32_MIN - Ints{};
  size_t i = 0;
  for (; i + kWidth <= n; i += kWidth) {
    Floats x;
    std::memcpy(&x, scores + i, sizeof x);
    x += 0.0f;  // of two zeros neither comes first
    const Ints finite = (x <= FLT_MAX) & (x >= -FLT_MAX);
    Ints bits;
    std::memcpy(&bits, &x, sizeof bits);
    bits ^= (bits >> 31) & 0x7fffffff;
    const Ints key = (bits & finite) | (kLastKey & ~finite);
    const Ints or_high = (bits & finite) | (INT32_MAX & ~finite);
    low = or_high < low ? or_high : low;
    high = key > high ? key : high;
    std::memcpy(keys + i, &key, sizeof key);
  }
  *lowest = INT32_MAX, *highest = INT32_MIN;
  for (size_t lane = 0; lane < kWidth; ++lane) {
    if (low[lane] < *lowest) *lowest = low[lane];
    if (high[lane] > *highest) *highest = high[lane];
  }
  for (; i < n; ++i) {
    const float x = scores[i] + 0.0f;
    int32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    bits ^= (bits >> 31) & 0x7fffffff;
    const bool finite = x <= FLT_MAX && x >= -FLT_MAX;
    keys[i] = finite ? bits : kLastKey;
    if (finite && bits < *lowest) *lowest = bits;
    if (finite && bits > *highest) *highest = bits;
  }
  for (; i % kSelectLanes != 0; ++i) keys[i] = kNoKey;
}

size_t FRUGAL_SELECT(count)(const int32_t* keys, size_t n, int32_t least) {
  Ints even{}, odd{};  // minus the count, by lane
  for (size_t i = 0; i < n; i += kSelectLanes) {
    Ints a, b;
    std::memcpy(&a, keys + i, sizeof a);
    std::memcpy(&b, keys + i + kWidth, sizeof b);
    even += a >= least;
    odd += b >= least;
  }
  int32_t sum = 0;
  for (size_t lane = 0; lane < kWidth; ++lane) sum -= even[lane] + odd[lane];
  return static_cast<size_t>(sum);
}

}  // namespace frugal::cascade
