#include "support/tiny_dictionary.h"

#include <cmath>

#include "base/check.h"
#include "base/rng.h"
#include "llm/kernel/kernel.h"
#include "llm/kv/linear.h"

namespace frugal::llm::test {

Dictionary tiny_dictionary(uint64_t seed, int n_layers, int n_kv_heads, int head_dim) {
  Rng rng(seed);
  const auto normal = [&](double scale) { return static_cast<float>(scale * rng.normal()); };
  Dictionary d;
  d.model_hash = 0x1234;
  d.n_layers = n_layers;
  d.n_kv_heads = n_kv_heads;
  d.head_dim = head_dim;
  d.n_rot = head_dim;
  d.interleaved = seed % 2 == 0;
  for (int layer = 0; layer < n_layers; ++layer) {
    for (int pair = 0; pair < head_dim / 2; ++pair)
      d.turns.push_back(static_cast<float>(std::pow(100.0 * (layer + 1), -2.0 * pair / head_dim)));
  }
  const auto dim = static_cast<size_t>(head_dim);
  for (int i = 0; i < n_layers * 2 * n_kv_heads; ++i) {
    HeadBasis basis;
    for (size_t j = 0; j < dim; ++j) {
      basis.mean.push_back(i / n_kv_heads % 2 == 0 ? normal(0.5) : 0);  // values have none
      basis.weight.push_back(static_cast<float>(1.0 / (1.0 + static_cast<double>(j))));
      // Every other book says that it is of use.
      basis.spread.push_back((static_cast<uint64_t>(i) + seed) % 2 == 0 ? 2.5f : 1.01f);
      basis.book_scale.push_back(0.03f);
    }
    for (size_t j = 0; j < kBookEntries * dim; ++j)
      basis.book.push_back(static_cast<uint8_t>(rng.below(kLevelMax + 1)));
    for (size_t r = 0; r < dim; ++r) {
      for (size_t c = 0; c < dim; ++c)
        basis.analysis.push_back(f16_to_f32(f32_to_f16((r == c ? 1.0f : 0.0f) + normal(0.3 / head_dim))));
    }
    basis.synthesis = basis.analysis;
    FRUGAL_CHECK(invert(basis.synthesis, dim));
    d.bases.push_back(std::move(basis));
  }
  for (int i = 0; i < n_layers * 2; ++i) {
    CoefficientLevels levels;
    levels.error = {1, 0.36f, 0.12f, 0.035f, 0.01f, 0.003f, 0.001f, 3e-4f, 1e-4f};
    levels.step = {0.1f, 0.05f};
    // Even levels of the code's own bits, moved a little by those after it.
    for (size_t b = 1; b <= kMaxLevelBits; ++b) {
      for (size_t window = 0; window < kWindows; ++window) {
        const auto n = static_cast<float>(1 << b);
        const auto own = static_cast<float>(window % (size_t{1} << b));
        const float moved = static_cast<float>(window >> b) / static_cast<float>(kWindows >> b) - 0.5f;
        levels.levels[b - 1][window] = ((2 * (own + 0.5f * moved) + 1) / n - 1) * 2.4f;
      }
    }
    d.levels.push_back(levels);
  }
  return d;
}

}  // namespace frugal::llm::test
