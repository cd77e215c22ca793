// The quantisers that `kv eval` compares with: each does what its paper says.
#include "cli/vector_books.h"

#include <gtest/gtest.h>

#include <cmath>

#include "base/rng.h"
#include "cli/sparse_atoms.h"

namespace frugal::cli {
namespace {

constexpr size_t kDim = 12, kRows = 2000;

// Independent, of variances 1, 1/2, 1/4, ...
std::vector<float> decaying_rows(uint64_t seed) {
  Rng rng(seed);
  std::vector<float> rows;
  for (size_t i = 0; i < kRows * kDim; ++i)
    rows.push_back(static_cast<float>(rng.normal() * std::pow(0.5, 0.5 * static_cast<double>(i % kDim))));
  return rows;
}

double mean_square(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += static_cast<double>((a[i] - b[i]) * (a[i] - b[i]));
  return sum / kRows;
}

TEST(VectorBooks, TheLargestIsTheFirstOfEquals) {
  std::vector<float> values(48, 1.0f);
  EXPECT_EQ(largest_of(values.data(), 48), 0u);
  values[37] = values[21] = 2;
  EXPECT_EQ(largest_of(values.data(), 48), 21u);
  values[47] = 3;
  EXPECT_EQ(largest_of(values.data(), 48), 47u);
}

TEST(VectorBooks, ResidualBooksComeNearerOneByOneAndABeamFindsNoWorse) {
  const std::vector<float> rows = decaying_rows(1), shares(kRows, 1.0f);
  const auto quantiser = ResidualQuantiser::train(rows, shares, kDim, 4, 5, 7);
  EXPECT_NEAR(quantiser.error[0], mean_square(rows, std::vector<float>(rows.size(), 0.0f)), 1e-3);
  for (size_t n = 1; n <= 4; ++n) {
    EXPECT_LT(quantiser.error[n], 0.7 * quantiser.error[n - 1]) << n;
    std::vector<float> coded = rows;
    quantiser.code(coded.data(), kRows, n);
    const double error = mean_square(rows, coded);
    EXPECT_LT(error, quantiser.error[n] + 1e-3);
    // One book has no beam: the error is that of the training.
    if (n == 1) {
      EXPECT_NEAR(error, quantiser.error[n], 1e-3);
    }
  }
}

TEST(VectorBooks, PartsOfAProductShareTheEnergy) {
  const std::vector<float> rows = decaying_rows(2), shares(kRows, 1.0f);
  const auto quantiser = ProductQuantiser::train(rows, shares, kDim, 3, 5, 7);
  std::vector<int> seen(kDim, 0);
  for (const auto& part : quantiser.parts) {
    EXPECT_EQ(part.size(), kDim / 3);
    double sum = 0;
    for (const size_t d : part) {
      ++seen[d];
      sum += static_cast<double>(d);
    }
    EXPECT_NEAR(sum, 22, 4);  // logarithms of the variances: 0 to 11 in halves, 66 in all
  }
  EXPECT_EQ(seen, std::vector<int>(kDim, 1));
  std::vector<float> coded = rows;
  quantiser.code(coded.data(), kRows, kDim);
  EXPECT_LT(mean_square(rows, coded), 0.3 * mean_square(rows, std::vector<float>(rows.size(), 0.0f)));
}

// Rows of no share are as good as not there: the books settle on the others.
TEST(VectorBooks, RowsCountByTheirShares) {
  std::vector<float> rows = decaying_rows(8), shares(kRows, 1.0f);
  const auto without = ResidualQuantiser::train(rows, shares, kDim, 1, 8, 7);
  for (size_t r = 1; r < kRows; r += 2) {
    shares[r] = 0;
    rows[r * kDim] += 1000;
  }
  const auto with = ResidualQuantiser::train(rows, shares, kDim, 1, 8, 7);
  EXPECT_NEAR(with.error[0], without.error[0], 0.15);  // means of 1,000 and of 2,000 rows
  EXPECT_LT(with.error[1], 1.3 * without.error[1]);    // some entries are lost to the rows far off
}

Book random_atoms(size_t dim, size_t n, uint64_t seed) {
  Rng rng(seed);
  Book atoms;
  atoms.dim = dim;
  atoms.n = n;
  for (size_t i = 0; i < dim * n; ++i) atoms.entries.push_back(static_cast<float>(rng.normal()));
  unit_norm(atoms);
  return atoms;
}

// What is left of rows after pursuit, and the largest product of it with an atom that was chosen.
struct Left {
  double square = 0, product = 0;
};
Left pursued(const Book& atoms, size_t s, bool orthogonal, std::vector<float> rows) {
  const std::vector<float> given = rows;
  std::vector<float> sum(rows.size(), 0.0f);
  std::vector<std::pair<size_t, size_t>> chosen;
  pursue(atoms, s, orthogonal, rows.data(), rows.size() / atoms.dim, atoms.dim,
         [&](size_t row, size_t atom, float c) {
           chosen.push_back({row, atom});
           for (size_t d = 0; d < atoms.dim; ++d) sum[row * atoms.dim + d] += c * atoms.at(d, atom);
         });
  EXPECT_EQ(chosen.size(), s * rows.size() / atoms.dim);
  Left left;
  for (size_t i = 0; i < rows.size(); ++i) {
    EXPECT_NEAR(given[i] - sum[i], rows[i], 1e-4);  // what is left is what was not taken
    left.square += static_cast<double>(rows[i] * rows[i]);
  }
  for (const auto& [row, atom] : chosen) {
    double product = 0;
    for (size_t d = 0; d < atoms.dim; ++d)
      product += static_cast<double>(rows[row * atoms.dim + d] * atoms.at(d, atom));
    left.product = std::max(left.product, std::fabs(product));
  }
  return left;
}

TEST(SparseAtoms, OrthogonalPursuitLeavesNothingAlongItsAtoms) {
  const Book atoms = random_atoms(kDim, 64, 3);
  const std::vector<float> rows = decaying_rows(4);
  const Left plain = pursued(atoms, 4, false, rows), orthogonal = pursued(atoms, 4, true, rows);
  EXPECT_LT(orthogonal.product, 5e-3);  // coefficients are halves
  EXPECT_GT(plain.product, 0.05);
  EXPECT_LT(orthogonal.square, 0.9 * plain.square);
}

TEST(SparseAtoms, TrainingAndAtomsOfThePromptLeaveLess) {
  const std::vector<float> rows = decaying_rows(5);
  const Book random = random_atoms(kDim, 64, 6), trained = pursuit_atoms(rows, kDim, 64, 2, 5, 1);
  const double before = pursued(random, 2, false, rows).square,
               after = pursued(trained, 2, false, rows).square;
  EXPECT_LT(after, 0.8 * before);
  const std::vector<float> prompt(rows.begin(), rows.begin() + 32 * kDim);
  const Book both = with_online_atoms(trained, prompt);
  EXPECT_EQ(both.n, 96u);
  EXPECT_LT(pursued(both, 1, false, prompt).square, 1e-3);  // each is an atom
}

}  // namespace
}  // namespace frugal::cli
