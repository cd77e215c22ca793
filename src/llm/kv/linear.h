// Small dense linear algebra in double: what training a dictionary of head-sized bases needs, no more.
#pragma once

#include <cstddef>
#include <vector>

namespace frugal::llm {

// Eigenvalues (descending) and eigenvectors (rows of `vectors`) of a symmetric matrix [n, n]; cyclic Jacobi.
struct Eigen {
  std::vector<double> values;   // [n]
  std::vector<double> vectors;  // [n, n]
};
Eigen eigen_of(const std::vector<double>& a, size_t n);

// The square root of a positive semi-definite matrix, or the inverse of it; eigenvalues are held above
// `floor` times the largest.
std::vector<double> root_of(const std::vector<double>& a, size_t n, bool inverse, double floor);

// c = a b, all [n, n].
std::vector<double> product_of(const std::vector<double>& a, const std::vector<double>& b, size_t n);

// Inverts in place; false when the matrix is singular to working precision.
bool invert(std::vector<float>& a, size_t n);

}  // namespace frugal::llm
