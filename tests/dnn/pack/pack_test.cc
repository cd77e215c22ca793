// Packed words come back bit for bit, and what is not packed words is refused.
#include "dnn/pack/pack.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/rng.h"

namespace frugal::dnn {
namespace {

std::vector<std::byte> bytes_of(const std::vector<float>& values) {
  const auto bytes = std::as_bytes(std::span(values));
  return {bytes.begin(), bytes.end()};
}

// The share of its size that a tensor keeps; 1 when it is not packed. Fails unless the same bits come back.
double share_kept(const std::vector<float>& values, Planes planes) {
  const std::vector<std::byte> words = bytes_of(values), packed = pack_words(words, planes);
  if (packed.empty()) return 1;
  std::vector<std::byte> again(words.size());
  const Status status = unpack_words(packed, planes, again);
  EXPECT_TRUE(status.ok()) << status.error().message;
  EXPECT_EQ(again, words);
  return static_cast<double>(packed.size()) / static_cast<double>(words.size());
}

std::vector<float> relu_noise(size_t n) {
  Rng rng(1);
  std::vector<float> values(n);
  for (float& x : values) x = std::max(0.0f, static_cast<float>(rng.normal()));
  return values;
}

std::vector<float> picture(size_t rows, size_t columns) {
  Rng rng(2);
  std::vector<float> values;
  for (size_t channel = 0; channel < 3; ++channel) {
    for (size_t i = 0; i < rows * columns; ++i) {
      const double level = 100 + 60 * std::sin(0.03 * static_cast<double>(i % columns)) + 2 * rng.normal();
      values.push_back(static_cast<float>(std::round(level) / 255 - 0.45) / 0.22f);
    }
  }
  return values;
}

TEST(Pack, PicturesAndReluOutputsGetSmallAndComeBack) {
  EXPECT_LT(share_kept(picture(64, 96), {64, 96}), 0.2);  // 8 bits of 32, and less where neighbours are alike
  EXPECT_LT(share_kept(relu_noise(40000), {200, 200}), 0.47);  // half are zeros, and exponents repeat
}

TEST(Pack, AnyBitsComeBack) {
  Rng rng(3);
  for (int trial = 0; trial < 400; ++trial) {
    const Planes planes{1 + rng.below(9), 1 + rng.below(40)};
    std::vector<float> values(planes.rows * planes.columns * (1 + rng.below(4)));
    const uint32_t kind = rng.below(5), n_levels = 1 + rng.below(400);
    for (float& x : values) {
      const auto bits = static_cast<uint32_t>(rng.below(1u << 16)) << 16 | rng.below(1u << 16);
      x = kind == 0   ? std::bit_cast<float>(bits)  // also NaNs with payloads, and infinities
          : kind == 1 ? static_cast<float>(rng.below(n_levels)) * 0.37f - 3.0f
          : kind == 2 ? (rng.below(2) == 0 ? 0.0f : -0.0f)
          : kind == 3 ? std::numeric_limits<float>::quiet_NaN()
                      : (rng.below(4) == 0 ? static_cast<float>(rng.normal()) : 0.0f);
    }
    (void)share_kept(values, planes);
  }
}

TEST(Pack, NoiseIsLeftAsItIs) {
  Rng rng(4);
  std::vector<float> values(5000);
  for (float& x : values)
    x = std::bit_cast<float>(static_cast<uint32_t>(rng.below(1u << 16)) << 16 | rng.below(1u << 16));
  EXPECT_TRUE(pack_words(bytes_of(values), {50, 100}).empty());
  EXPECT_TRUE(pack_words({}, {1, 1}).empty());
  EXPECT_TRUE(pack_words(bytes_of(values), {7, 11}).empty());  // no whole planes
  EXPECT_TRUE(pack_words(bytes_of(values), {0, 0}).empty());
}

TEST(Pack, WhatIsDamagedIsRefusedOrHasTheRightSize) {
  for (const auto& [values, planes] :
       {std::pair{picture(16, 24), Planes{16, 24}}, std::pair{relu_noise(1024), Planes{32, 32}}}) {
    const std::vector<std::byte> packed = pack_words(bytes_of(values), planes);
    ASSERT_FALSE(packed.empty());
    std::vector<std::byte> words(values.size() * 4);
    for (size_t n = 0; n < packed.size(); n += 1 + n / 16)
      EXPECT_FALSE(unpack_words(std::span(packed).first(n), planes, words).ok()) << n;
    std::vector<std::byte> longer = packed;
    longer.push_back(std::byte{0});
    EXPECT_FALSE(unpack_words(longer, planes, words).ok());
    std::vector<std::byte> other(values.size() * 4 + 4 * planes.rows * planes.columns);
    EXPECT_FALSE(unpack_words(packed, planes, other).ok());
    EXPECT_FALSE(unpack_words(packed, {planes.rows, planes.columns + 1}, words).ok());
    Rng rng(5);
    for (int trial = 0; trial < 2000; ++trial) {  // any answer but a crash
      std::vector<std::byte> bad = packed;
      bad[rng.below(static_cast<uint32_t>(bad.size()))] ^= static_cast<std::byte>(1 + rng.below(255));
      (void)unpack_words(bad, planes, words);
    }
  }
}

}  // namespace
}  // namespace frugal::dnn
