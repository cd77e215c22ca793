#include "base/rng.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>

namespace frugal {
namespace {

TEST(Rng, IsPcg32) {
  // The first outputs of the reference generator for seed 42, stream 54 (pcg32-demo of O'Neill's
  // pcg-c-basic).
  Rng rng(42, 54);
  for (const uint32_t expected :
       {0xa15c02b7u, 0x7b47f409u, 0xba1d3330u, 0x83d2f293u, 0xbfa4784bu, 0xcbed606eu})
    EXPECT_EQ(rng.next(), expected);
}

TEST(Rng, SeedsAndStreamsDiffer) {
  std::set<uint64_t> starts;
  for (uint64_t seed = 0; seed < 50; ++seed) {
    for (uint64_t stream = 0; stream < 4; ++stream) {
      Rng rng(seed, stream);
      const uint64_t first = rng.next();
      starts.insert(first << 32 | rng.next());
    }
  }
  EXPECT_EQ(starts.size(), 200u);
}

TEST(Rng, UniformBelowAndNormalHaveTheirMoments) {
  Rng rng(7);
  constexpr int kDraws = 200000;
  double sum = 0, sum_normal = 0, squares = 0;
  int counts[5] = {};
  for (int i = 0; i < kDraws; ++i) {
    const double u = rng.uniform();
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    sum += u;
    const uint32_t b = rng.below(5);
    ASSERT_LT(b, 5u);
    ++counts[b];
    const double z = rng.normal();
    ASSERT_TRUE(std::isfinite(z));
    sum_normal += z;
    squares += z * z;
  }
  // Five standard errors each: sd/sqrt(n) = 0.289/447 for the uniform, 1/447 and sqrt(2)/447 for the normal's
  // mean and square, sqrt(n * 0.2 * 0.8) = 179 for a count.
  EXPECT_NEAR(sum / kDraws, 0.5, 5 * 0.289 / 447);
  EXPECT_NEAR(sum_normal / kDraws, 0.0, 5.0 / 447);
  EXPECT_NEAR(squares / kDraws, 1.0, 5 * 1.415 / 447);
  for (const int count : counts) EXPECT_NEAR(count, kDraws / 5, 5 * 179);
}

}  // namespace
}  // namespace frugal
