// Hashes: FNV-1a (64 bit) to detect damage and key caches; not for adversaries.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace frugal {

inline constexpr uint64_t kFnvOffset = 0xcbf29ce484222325ull;

// FNV-1a over `bytes`, continued from `seed`.
uint64_t fnv1a(std::span<const std::byte> bytes, uint64_t seed = kFnvOffset);

// A fast 64-bit checksum over large data: eight FNV-like lanes over 8-byte words, folded; about memory speed.
uint64_t checksum64(std::span<const std::byte> bytes);

}  // namespace frugal
