#include "base/hash.h"

#include <cstring>

namespace frugal {

uint64_t fnv1a(std::span<const std::byte> bytes, uint64_t seed) {
  uint64_t hash = seed;
  for (const std::byte byte : bytes) hash = (hash ^ static_cast<uint64_t>(byte)) * 0x100000001b3ull;
  return hash;
}

uint64_t checksum64(std::span<const std::byte> bytes) {
  constexpr int kLanes = 8;
  uint64_t lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = kFnvOffset + static_cast<uint64_t>(i);
  size_t at = 0;
  for (; at + kLanes * 8 <= bytes.size(); at += kLanes * 8) {
    for (int i = 0; i < kLanes; ++i) {
      uint64_t word;
      std::memcpy(&word, bytes.data() + at + static_cast<size_t>(i) * 8, 8);
      lanes[i] = (lanes[i] ^ word) * 0x9e3779b97f4a7c15ull;
      lanes[i] ^= lanes[i] >> 29;  // brings high bits down: a product alone only carries upwards
    }
  }
  uint64_t hash = fnv1a(bytes.subspan(at), kFnvOffset ^ bytes.size());
  for (const uint64_t lane : lanes) hash = fnv1a(std::as_bytes(std::span(&lane, 1)), hash);
  return hash;
}

}  // namespace frugal
