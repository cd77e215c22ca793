#include "cli/sparse_atoms.h"

#include <algorithm>
#include <cmath>

#include "llm/kernel/kernel.h"

namespace frugal::cli {
namespace {

float as_half(float x) { return llm::f16_to_f32(llm::f32_to_f16(x)); }

// Coefficients c of the chosen atoms that leave least of x: the normal equations by Cholesky. Atoms that are
// nearly in the span of the others get nothing.
void refit(const Book& atoms, const std::vector<size_t>& chosen, const float* x, std::vector<double>& c) {
  const size_t n = chosen.size();
  std::vector<double> a(n * n);
  c.assign(n, 0.0);
  for (size_t i = 0; i < n; ++i) {
    for (size_t d = 0; d < atoms.dim; ++d) c[i] += static_cast<double>(atoms.at(d, chosen[i]) * x[d]);
    for (size_t j = 0; j <= i; ++j) {
      for (size_t d = 0; d < atoms.dim; ++d)
        a[i * n + j] += static_cast<double>(atoms.at(d, chosen[i]) * atoms.at(d, chosen[j]));
    }
  }
  for (size_t i = 0; i < n; ++i) {
    for (size_t j = 0; j <= i; ++j) {
      double sum = a[i * n + j];
      for (size_t k = 0; k < j; ++k) sum -= a[i * n + k] * a[j * n + k];
      a[i * n + j] = i == j ? std::sqrt(std::max(sum, 0.0)) : a[j * n + j] > 1e-4 ? sum / a[j * n + j] : 0;
    }
    for (size_t k = 0; k < i; ++k) c[i] -= a[i * n + k] * c[k];
    c[i] = a[i * n + i] > 1e-4 ? c[i] / a[i * n + i] : 0;
  }
  for (size_t i = n; i-- > 0;) {
    for (size_t k = i + 1; k < n; ++k) c[i] -= a[k * n + i] * c[k];
    c[i] = a[i * n + i] > 1e-4 ? c[i] / a[i * n + i] : 0;
  }
}

}  // namespace

void unit_norm(Book& atoms) {
  for (size_t e = 0; e < atoms.n; ++e) {
    float square = 1e-20f;
    for (size_t d = 0; d < atoms.dim; ++d) square += atoms.at(d, e) * atoms.at(d, e);
    for (size_t d = 0; d < atoms.dim; ++d) atoms.at(d, e) /= std::sqrt(square);
  }
}

void pursue(const Book& atoms, size_t s, bool orthogonal, float* rows, size_t n_rows, size_t stride,
            const std::function<void(size_t, size_t, float)>& use) {
  constexpr size_t kAtOnce = 64;
  std::vector<float> dots(kAtOnce * atoms.n), whole(atoms.dim);
  std::vector<std::vector<size_t>> chosen(kAtOnce);
  std::vector<std::vector<double>> coefficients(kAtOnce);
  for (size_t first = 0; first < n_rows; first += kAtOnce) {
    const size_t some = std::min(kAtOnce, n_rows - first);
    std::vector<float> given;
    for (size_t r = 0; r < some; ++r) {
      chosen[r].clear();
      coefficients[r].clear();
      const float* x = rows + (first + r) * stride;
      given.insert(given.end(), x, x + atoms.dim);
    }
    for (size_t step = 0; step < s; ++step) {
      atoms.products(rows + first * stride, some, stride, dots.data());
      for (size_t r = 0; r < some; ++r) {
        float* row = &dots[r * atoms.n];
        for (size_t e = 0; e < atoms.n; ++e) row[e] = std::fabs(row[e]);
        const size_t best = largest_of(row, atoms.n);
        float* x = rows + (first + r) * stride;
        float product = 0;
        for (size_t d = 0; d < atoms.dim; ++d) product += x[d] * atoms.at(d, best);
        chosen[r].push_back(best);
        coefficients[r].push_back(static_cast<double>(product));
        if (orthogonal) refit(atoms, chosen[r], &given[r * atoms.dim], coefficients[r]);
        std::copy_n(&given[r * atoms.dim], atoms.dim, x);
        for (size_t i = 0; i < chosen[r].size(); ++i) {
          const float c = as_half(static_cast<float>(coefficients[r][i]));
          for (size_t d = 0; d < atoms.dim; ++d) x[d] -= c * atoms.at(d, chosen[r][i]);
        }
      }
    }
    for (size_t r = 0; r < some; ++r) {
      for (size_t i = 0; i < chosen[r].size(); ++i)
        use(first + r, chosen[r][i], as_half(static_cast<float>(coefficients[r][i])));
    }
  }
}

Book pursuit_atoms(const std::vector<float>& rows, size_t dim, size_t n_atoms, size_t s, int rounds,
                   uint64_t seed) {
  const size_t n_rows = rows.size() / dim;
  Book atoms = k_means(rows, std::vector<float>(n_rows, 1.0f), dim, n_atoms, rounds, seed);
  unit_norm(atoms);
  for (int round = 0; round < rounds; ++round) {
    std::vector<float> left = rows;
    struct Use {
      size_t row, atom;
      float coefficient;
    };
    std::vector<Use> uses;
    pursue(atoms, s, false, left.data(), n_rows, dim, [&](size_t row, size_t atom, float c) {
      uses.push_back({row, atom, c});
    });
    std::vector<float> move(dim * n_atoms, 0.0f), energy(n_atoms, 1e-20f);
    for (const Use& use : uses) {
      energy[use.atom] += use.coefficient * use.coefficient;
      for (size_t d = 0; d < dim; ++d)
        move[d * n_atoms + use.atom] += use.coefficient * left[use.row * dim + d];
    }
    for (size_t i = 0; i < move.size(); ++i) atoms.entries[i] += move[i] / energy[i % n_atoms];
    unit_norm(atoms);
  }
  return atoms;
}

Book with_online_atoms(const Book& atoms, const std::vector<float>& rows) {
  const size_t n_new = rows.size() / atoms.dim / 16 * 16;  // whole panels
  Book all;
  all.dim = atoms.dim;
  all.n = atoms.n + n_new;
  all.entries.resize(all.dim * all.n);
  for (size_t d = 0; d < all.dim; ++d) {
    for (size_t e = 0; e < all.n; ++e)
      all.at(d, e) = e < atoms.n ? atoms.at(d, e) : rows[(e - atoms.n) * all.dim + d];
  }
  unit_norm(all);
  return all;
}

}  // namespace frugal::cli
