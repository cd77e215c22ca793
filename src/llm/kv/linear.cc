#include "llm/kv/linear.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace frugal::llm {

Eigen eigen_of(std::vector<double> a, size_t n) {
  std::vector<double> v(n * n, 0.0);  // rows become eigenvectors
  for (size_t i = 0; i < n; ++i) v[i * n + i] = 1;
  for (int sweep = 0; sweep < 60; ++sweep) {
    double off = 0, on = 0;
    for (size_t i = 0; i < n; ++i) {
      for (size_t j = 0; j < n; ++j) (i == j ? on : off) += a[i * n + j] * a[i * n + j];
    }
    if (off <= 1e-22 * on) break;
    for (size_t p = 0; p + 1 < n; ++p) {
      for (size_t q = p + 1; q < n; ++q) {
        const double apq = a[p * n + q];
        if (apq == 0) continue;
        const double theta = (a[q * n + q] - a[p * n + p]) / (2 * apq);
        const double t = (theta >= 0 ? 1 : -1) / (std::fabs(theta) + std::sqrt(theta * theta + 1));
        const double c = 1 / std::sqrt(t * t + 1), s = t * c;
        for (size_t k = 0; k < n; ++k) {
          const double akp = a[k * n + p], akq = a[k * n + q];
          a[k * n + p] = c * akp - s * akq;
          a[k * n + q] = s * akp + c * akq;
        }
        for (size_t k = 0; k < n; ++k) {
          const double apk = a[p * n + k], aqk = a[q * n + k];
          a[p * n + k] = c * apk - s * aqk;
          a[q * n + k] = s * apk + c * aqk;
          const double vpk = v[p * n + k], vqk = v[q * n + k];
          v[p * n + k] = c * vpk - s * vqk;
          v[q * n + k] = s * vpk + c * vqk;
        }
      }
    }
  }
  std::vector<size_t> order(n);
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t x, size_t y) { return a[x * n + x] > a[y * n + y]; });
  Eigen out;
  out.vectors.resize(n * n);
  for (size_t i = 0; i < n; ++i) {
    out.values.push_back(a[order[i] * n + order[i]]);
    std::copy_n(v.begin() + static_cast<ptrdiff_t>(order[i] * n), n,
                out.vectors.begin() + static_cast<ptrdiff_t>(i * n));
  }
  return out;
}

std::vector<double> root_of(const std::vector<double>& a, size_t n, bool inverse, double floor) {
  const Eigen eigen = eigen_of(a, n);
  std::vector<double> out(n * n, 0.0);
  for (size_t e = 0; e < n; ++e) {
    const double value = std::max({eigen.values[e], eigen.values[0] * floor, 1e-30});
    const double root = inverse ? 1 / std::sqrt(value) : std::sqrt(value);
    const double* row = &eigen.vectors[e * n];
    for (size_t i = 0; i < n; ++i) {
      for (size_t j = 0; j < n; ++j) out[i * n + j] += root * row[i] * row[j];
    }
  }
  return out;
}

std::vector<double> product_of(const std::vector<double>& a, const std::vector<double>& b, size_t n) {
  std::vector<double> c(n * n, 0.0);
  for (size_t i = 0; i < n; ++i) {
    for (size_t k = 0; k < n; ++k) {
      for (size_t j = 0; j < n; ++j) c[i * n + j] += a[i * n + k] * b[k * n + j];
    }
  }
  return c;
}

bool invert(std::vector<float>& given, size_t n) {
  std::vector<double> a(given.begin(), given.end()), inverse(n * n, 0.0);
  double largest = 0;
  for (const double x : a) largest = std::max(largest, std::fabs(x));
  for (size_t i = 0; i < n; ++i) inverse[i * n + i] = 1;
  for (size_t col = 0; col < n; ++col) {
    size_t pivot = col;
    for (size_t row = col + 1; row < n; ++row) {
      if (std::fabs(a[row * n + col]) > std::fabs(a[pivot * n + col])) pivot = row;
    }
    if (!(std::fabs(a[pivot * n + col]) > 1e-12 * largest)) return false;
    for (size_t j = 0; j < n && pivot != col; ++j) {
      std::swap(a[pivot * n + j], a[col * n + j]);
      std::swap(inverse[pivot * n + j], inverse[col * n + j]);
    }
    const double scale = 1 / a[col * n + col];
    for (size_t j = 0; j < n; ++j) {
      a[col * n + j] *= scale;
      inverse[col * n + j] *= scale;
    }
    for (size_t row = 0; row < n; ++row) {
      const double factor = a[row * n + col];
      if (row == col || factor == 0) continue;
      for (size_t j = 0; j < n; ++j) {
        a[row * n + j] -= factor * a[col * n + j];
        inverse[row * n + j] -= factor * inverse[col * n + j];
      }
    }
  }
  for (size_t i = 0; i < n * n; ++i) {
    given[i] = static_cast<float>(inverse[i]);
    if (!std::isfinite(given[i])) return false;
  }
  return true;
}

}  // namespace frugal::llm
