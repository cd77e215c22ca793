// Rng: a small seeded generator (PCG32, O'Neill 2014) whose stream is the same on every platform, unlike the
// standard library's distributions. (seed, stream) and (seed + 2, stream - 1) share their first output and
// part then: take seeds from one Rng rather than counting where that matters.
#pragma once

#include <cmath>
#include <cstdint>

namespace frugal {

class Rng {
 public:
  explicit Rng(uint64_t seed, uint64_t stream = 0) : increment_((stream << 1) | 1) {
    next();
    state_ += seed;
    next();
  }

  uint32_t next() {
    const uint64_t old = state_;
    state_ = old * 6364136223846793005ull + increment_;
    const auto shifted = static_cast<uint32_t>(((old >> 18) ^ old) >> 27);
    const auto rotation = static_cast<uint32_t>(old >> 59);
    return (shifted >> rotation) | (shifted << ((32 - rotation) & 31));
  }

  // Uniform in [0, 1), 53 bits.
  double uniform() {
    const uint64_t high = next() >> 5, low = next() >> 6;
    return static_cast<double>((high << 26) | low) * 0x1p-53;
  }

  // Uniform in [0, bound); bound > 0. Bias below 2^-32 * bound.
  uint32_t below(uint32_t bound) {
    return static_cast<uint32_t>((static_cast<uint64_t>(next()) * bound) >> 32);
  }

  // Standard normal, by Box and Muller; one value a call.
  double normal() {
    const double radius = std::sqrt(-2 * std::log(1 - uniform()));
    return radius * std::cos(6.283185307179586 * uniform());
  }

 private:
  uint64_t state_ = 0;
  uint64_t increment_;
};

}  // namespace frugal
