#include "llm/kv/linear.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace frugal::llm {

Eigen eigen_of(const std::vector<double>& given, size_t n) {
  // Rows further apart than n, or a column of 256 rows would lie in four sets of the cache: a fourth of the
  // time.
  const size_t stride = n + 8;
  std::vector<double> a(n * stride, 0.0), v(n * stride, 0.0);  // rows of v become eigenvectors
  for (size_t i = 0; i < n; ++i) {
    std::copy_n(&given[i * n], n, &a[i * stride]);
    v[i * stride + i] = 1;
  }
  for (int sweep = 0; sweep < 60; ++sweep) {
    double off = 0, on = 0;
    for (size_t i = 0; i < n; ++i) {
      for (size_t j = 0; j < n; ++j) (i == j ? on : off) += a[i * stride + j] * a[i * stride + j];
    }
    if (off <= 1e-22 * on) break;
    for (size_t p = 0; p + 1 < n; ++p) {
      for (size_t q = p + 1; q < n; ++q) {
        double *ap = &a[p * stride], *aq = &a[q * stride], *vp = &v[p * stride], *vq = &v[q * stride];
        const double apq = ap[q];
        if (apq == 0) continue;
        const double theta = (aq[q] - ap[p]) / (2 * apq);
        const double t = (theta >= 0 ? 1 : -1) / (std::fabs(theta) + std::sqrt(theta * theta + 1));
        const double c = 1 / std::sqrt(t * t + 1), s = t * c;
        const auto turn = [c, s](double& x, double& y) {
          const double before = x;
          x = c * before - s * y;
          y = s * before + c * y;
        };
        for (size_t k = 0; k < n; ++k) turn(a[k * stride + p], a[k * stride + q]);
        for (size_t k = 0; k < n; ++k) turn(ap[k], aq[k]);
        for (size_t k = 0; k < n; ++k) turn(vp[k], vq[k]);
      }
    }
  }
  std::vector<size_t> order(n);
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t x, size_t y) { return a[x * stride + x] > a[y * stride + y]; });
  Eigen out;
  out.vectors.resize(n * n);
  for (size_t i = 0; i < n; ++i) {
    out.values.push_back(a[order[i] * stride + order[i]]);
    std::copy_n(&v[order[i] * stride], n, &out.vectors[i * n]);
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
