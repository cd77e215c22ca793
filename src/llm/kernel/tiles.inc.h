// Loops over tiles whose size the compiler knows, for the micro-kernels.
#pragma once

#include <cstddef>
#include <utility>

// A tile is one function with everything inlined, or its sums would live in memory. Sets in plain C++ have
// nothing to win by it, and take minutes to compile: they define this as nothing.
#ifndef FRUGAL_FLATTEN
#define FRUGAL_FLATTEN [[gnu::flatten]]
#endif

namespace frugal::llm {
namespace {

// f<0>(), f<1>(), ... f<n - 1>(): indices that the compiler knows from the start, so that arrays of vectors
// live in registers.
template <int n, typename F>
void each(F f) {
  [&]<int... kIndex>(std::integer_sequence<int, kIndex...>) { (f.template operator()<kIndex>(), ...); }
  (std::make_integer_sequence<int, n>{});
}

template <int kTile, typename Body>
void tail_tile(size_t first, size_t total, Body& body) {
  if constexpr (kTile > 0) {
    if (total - first == kTile) return body.template operator()<kTile>(first);
    tail_tile<kTile - 1>(first, total, body);
  }
}

// Calls body<n>(first) for tiles of at most kTile until all `total` are done.
template <int kTile, typename Body>
void for_tiles(size_t total, Body body) {
  size_t first = 0;
  for (; first + kTile <= total; first += kTile) body.template operator()<kTile>(first);
  tail_tile<kTile - 1>(first, total, body);
}

}  // namespace
}  // namespace frugal::llm
