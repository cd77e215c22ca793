// Sparse codes over unit atoms as CSR has them (Zhang et al., AAAI 2025), for `frugal kv eval`: matching
// pursuit (Mallat and Zhang 1993) and orthogonal matching pursuit (Pati et al. 1993), coefficients as halves.
#pragma once

#include <functional>

#include "cli/vector_books.h"

namespace frugal::cli {

// Columns to unit norm.
void unit_norm(Book& atoms);

// Takes `s` atoms off each row [dim], rows `stride` floats apart. Plain: each time the atom with the largest
// product, and its product. Orthogonal: the coefficients of all atoms so far are refitted after each.
// `use(row, atom, coefficient)` tells what was taken.
void pursue(const Book& atoms, size_t s, bool orthogonal, float* rows, size_t n_rows, size_t stride,
            const std::function<void(size_t, size_t, float)>& use);

// Atoms for codes of s: from centroids, then atoms moved to what the rows that use them leave over (the step
// of a gradient, each atom by its own energy), to unit norm again.
Book pursuit_atoms(const std::vector<float>& rows, size_t dim, size_t n_atoms, size_t s, int rounds,
                   uint64_t seed);

// The atoms of both; rows [n, dim] of a prompt become atoms (to unit norm).
Book with_online_atoms(const Book& atoms, const std::vector<float>& rows);

}  // namespace frugal::cli
