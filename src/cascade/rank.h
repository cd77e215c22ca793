// Rank statistics.
#pragma once

#include <span>

namespace frugal::cascade {

// The correlation of ranks (Spearman), those of equals averaged; 0 when either side is all alike. Both of one
// length.
double spearman(std::span<const double> a, std::span<const double> b);

// The least squares fit of `values` that does not fall (pooling adjacent violators), in place; all of one
// weight.
void make_rising(std::span<double> values);

// The least squares fit of `values` that rises up to some place and does not rise after it, in place; returns
// that place, the last of its highest.
size_t make_unimodal(std::span<double> values);

}  // namespace frugal::cascade
