#include "llm/kv/csr_plan.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/hash.h"
#include "base/text.h"
#include "llm/kernel/codes.h"
#include "llm/kernel/kernel.h"

namespace frugal::llm {
namespace {

// Largest integer levels of codes of 1 to 4 bits. Keys: a query's coefficients times what a level is worth
// are rounded to 8 bits with one scale, and the noise of that comes times the levels. Atoms of few bits have
// small products, so their levels are small integers (rounded to 1 % of the error that their codes leave).
constexpr std::array<int, kMaxLevelBits> kKeyLevels = {16, 24, 40, 63}, kValueLevels = {63, 63, 63, 63};

LevelPlan level_plan(const CoefficientLevels& of, const std::array<int, kMaxLevelBits>& largest_levels) {
  LevelPlan plan;
  for (size_t bits = 1; bits <= kMaxLevelBits; ++bits) {
    float largest = 1e-6f;
    for (const float level : of.levels[bits - 1]) largest = std::max(largest, std::fabs(level));
    plan.scale[bits] = largest / static_cast<float>(largest_levels[bits - 1]);
    for (size_t window = 0; window < kWindows; ++window) {
      const long level = std::lround(of.levels[bits - 1][window] / plan.scale[bits]) + kLevelCentre;
      plan.table[kWindows * bits + window] = static_cast<uint8_t>(std::clamp(level, 0l, long{kLevelMax}));
    }
  }
  for (size_t code = 0; code < kWindows; ++code)
    plan.table[kWindows * 6 + code] = static_cast<uint8_t>(2 * code);
  plan.scale[6] = of.step[0] / 2;
  plan.scale[8] = of.step[1];
  for (size_t i = 0; i < kTableBytes; ++i)
    plan.levels[i] = plan.scale[i / kWindows] * static_cast<float>(plan.table[i] - kLevelCentre);
  return plan;
}

// Of the coefficients that have bits.
float mean_square(const SidePlan& side, const float* y) {
  float sum = 0;
  int n = 0;
  for (int g = 0; g < side.n_groups; ++g) {
    if (side.bits[static_cast<size_t>(g)] == 0) continue;
    for (int i = 0; i < kAtomGroup; ++i) sum += y[4 * g + i] * y[4 * g + i];
    n += kAtomGroup;
  }
  return sum / static_cast<float>(n);
}

std::vector<float> transposed(const std::vector<float>& a, size_t n) {
  std::vector<float> out(a.size());
  for (size_t i = 0; i < n; ++i) {
    for (size_t j = 0; j < n; ++j) out[j * n + i] = a[i * n + j];
  }
  return out;
}

}  // namespace

int LevelPlan::even_code(int bits, float y) const {  // not a number becomes the lowest level
  const float places = bits == 6 ? 0.5f * y / scale[6] + 32 : y / scale[8] + (kLevelCentre + 0.5f);
  const float largest = bits == 6 ? 63 : static_cast<float>(kLevelMax);
  return static_cast<int>(std::min(std::max(0.0f, places), largest));
}

void analyse(const SidePlan& side, const float* x, size_t n, float* y) {
  const size_t dim = side.mean.size();
  kernels().panel_f16({side.analysis.data(), dim, 16, dim / 16, dim}, x, dim, n, y, dim, false);
  for (; n > 0; --n, y += dim) {
    for (size_t i = 0; i < side.scale.size(); ++i) y[i] *= side.scale[i];
  }
}

void code_tokens(const SidePlan& side, const LevelPlan& levels, const float* y, uint8_t* codes,
                 float* costs) {
  constexpr size_t kTokens = kPathTokens;
  const auto width = 4 * static_cast<size_t>(side.n_groups);
  float path_y[kMaxCodedDim * kTokens], path_weights[kMaxCodedDim];
  uint8_t path_bits[kMaxCodedDim], path_codes[kMaxCodedDim * kTokens];
  size_t places[kMaxCodedDim];
  int after[kTokens] = {};
  std::fill_n(costs, kTokens, 0.0f);
  const auto count = [&](size_t t, size_t at, float level) {
    const float off = y[t * width + at] - level;
    costs[t] += side.weights[at] * off * off;
  };
  for (size_t i = width; i > 0;) {  // from the end, where a stream's windows begin
    size_t n = 0;
    for (; i > 0; --i) {
      const size_t at = i - 1;
      const uint8_t bits = side.bits[at / 4];
      if (bits > kMaxLevelBits) break;
      if (bits == 0) {
        for (size_t t = 0; t < kTokens; ++t) {
          codes[t * width + at] = 0;
          count(t, at, 0);
        }
        continue;
      }
      for (size_t t = 0; t < kTokens; ++t) path_y[n * kTokens + t] = y[t * width + at];
      path_weights[n] = side.weights[at];
      path_bits[n] = bits;
      places[n++] = at;
    }
    code_kernels().code_paths(path_y, path_weights, path_bits, n, after, levels.levels.data(), path_codes);
    for (size_t k = 0; k < n; ++k) {
      for (size_t t = 0; t < kTokens; ++t) {
        const uint8_t code = path_codes[k * kTokens + t];
        codes[t * width + places[k]] = code;
        after[t] = (after[t] << path_bits[k] | code) % kWindows;
        count(t, places[k],
              levels.levels[static_cast<size_t>(path_bits[k]) * kWindows + static_cast<size_t>(after[t])]);
      }
    }
    if (i == 0) break;
    --i;
    for (size_t t = 0; t < kTokens; ++t) {
      const int code = levels.even_code(side.bits[i / 4], y[t * width + i]);
      codes[t * width + i] = static_cast<uint8_t>(code);
      after[t] = code % kWindows;
      count(t, i,
            side.bits[i / 4] == 6 ? levels.levels[6 * kWindows + static_cast<size_t>(code)]
                                  : levels.scale[8] * static_cast<float>(code - kLevelCentre));
    }
  }
}

void code_rows(const SidePlan& side, const LevelPlan& levels, bool scaled, const float* y, TokenCode* out) {
  constexpr size_t kTokens = kPathTokens;
  const size_t dim = side.mean.size(), width = 4 * static_cast<size_t>(side.n_groups);
  CodeBook::Nearest found[kTokens];
  if (!side.book.empty()) side.book.nearest(y, kTokens, found);
  struct Try {
    size_t token;
    int entry;
  };
  Try tries[kTokens * CodeBook::kMaxNearest];
  size_t n_tries = 0;
  for (size_t t = 0; t < kTokens; ++t) {
    const size_t n =
        side.book.empty() || width == 0 ? 1 : found[t].n;  // without codes the nearest is the best
    for (size_t i = 0; i < n; ++i) tries[n_tries++] = {t, side.book.empty() ? 0 : found[t].entries[i]};
  }
  float least[kTokens];
  std::fill_n(least, kTokens, std::numeric_limits<float>::infinity());
  for (size_t first = 0; first < n_tries; first += kTokens) {
    alignas(64) float x[kTokens * kMaxCodedDim], own[kMaxCodedDim];
    uint8_t codes[kTokens * kMaxCodedDim];
    float costs[kTokens], rest[kTokens] = {};
    int scales[kTokens] = {};
    const auto try_of = [&](size_t k) { return tries[std::min(first + k, n_tries - 1)]; };
    for (size_t k = 0; k < kTokens; ++k) {
      const Try of = try_of(k);
      std::copy_n(y + of.token * dim, dim, own);
      if (!side.book.empty()) side.book.subtract(of.entry, own);
      for (size_t i = width; i < dim; ++i) rest[k] += side.weights[i] * own[i] * own[i];
      float inverse = 1;
      if (scaled && width > 0) {
        scales[k] = token_scale_code(mean_square(side, own));
        inverse = 1 / token_scale(scales[k]);
      }
      for (size_t i = 0; i < width; ++i) x[k * width + i] = own[i] * inverse;
    }
    if (width > 0) code_tokens(side, levels, x, codes, costs);
    for (size_t k = 0; k < kTokens && first + k < n_tries; ++k) {
      const Try of = try_of(k);
      const float scale = scaled && width > 0 ? token_scale(scales[k]) : 1.0f;
      const float cost = width > 0 ? costs[k] * scale * scale + rest[k] : rest[k];
      if (cost >= least[of.token]) continue;  // what is no number is coded, too
      least[of.token] = cost;
      out[of.token].entry = of.entry;
      out[of.token].scale = scales[k];
      std::copy_n(codes + k * width, width, out[of.token].codes);
    }
  }
}

CsrPlan::CsrPlan(const Dictionary& dictionary, double wanted)
    : n_layers(dictionary.n_layers),
      n_kv_heads(dictionary.n_kv_heads),
      dim(dictionary.head_dim),
      n_rot(dictionary.n_rot),
      interleaved(dictionary.interleaved),
      bits(wanted),
      name(strf("csr:%g", wanted)) {
  const Allotment allotted = allot_bits(dictionary, wanted);
  const size_t n_groups = static_cast<size_t>(dim) / kAtomGroup, n = static_cast<size_t>(dim);
  hash = fnv1a(std::as_bytes(std::span(allotted.bits)));
  hash = fnv1a(std::as_bytes(std::span(allotted.books)), hash);
  for (const CoefficientLevels& of : dictionary.levels) {
    levels.push_back(level_plan(of, levels.size() % 2 == 0 ? kKeyLevels : kValueLevels));
    hash = fnv1a(std::as_bytes(std::span(levels.back().table)), hash);
    hash = fnv1a(std::as_bytes(std::span(levels.back().scale)), hash);
  }
  for (size_t base = 0; base < dictionary.bases.size(); ++base) {
    const HeadBasis& basis = dictionary.bases[base];
    const bool keys = base / static_cast<size_t>(n_kv_heads) % 2 == 0;
    SidePlan plan;
    const uint8_t* given = &allotted.bits[base * n_groups];
    for (size_t g = 0; g < n_groups; ++g) {
      if (given[g] > 0) plan.n_groups = static_cast<int>(g) + 1;
    }
    plan.bits.assign(given, given + plan.n_groups);
    plan.layout = CodeLayout(given, static_cast<size_t>(plan.n_groups));
    plan.panel_bytes = static_cast<uint32_t>(2 * plan.layout.n_bits);
    if (!keys && plan.n_groups > 0) {
      plan.scale_offset = plan.panel_bytes;
      plan.panel_bytes += 8;
    }
    std::vector<float> weight = basis.weight, synthesis = basis.synthesis;
    if (allotted.books[base] != 0) {
      // Of errors that are going to be coded what codes leave counts.
      std::vector<float> left = basis.weight;
      const auto& error = dictionary.levels[base / static_cast<size_t>(n_kv_heads)].error;
      for (size_t i = 0; i < n; ++i) left[i] *= error[given[i / kAtomGroup]];
      plan.book = CodeBook(basis.book, basis.book_scale, left);
      plan.index_offset = plan.panel_bytes;
      plan.panel_bytes += 16;
    } else {  // y itself is to have unit variance
      for (size_t i = 0; i < n; ++i) {
        plan.scale.push_back(1 / basis.spread[i]);
        weight[i] *= basis.spread[i] * basis.spread[i];
        for (size_t j = 0; j < n; ++j) synthesis[j * n + i] *= basis.spread[i];
      }
    }
    plan.weights = std::move(weight);
    plan.mean = basis.mean;
    for (const float x : transposed(basis.analysis, n)) plan.analysis.push_back(f32_to_f16(x));
    for (const float x : keys ? synthesis : transposed(synthesis, n)) plan.synthesis.push_back(f32_to_f16(x));
    for (const auto* of : {&basis.mean, &basis.analysis, &basis.spread, &basis.weight, &basis.book_scale})
      hash = fnv1a(std::as_bytes(std::span(*of)), hash);
    hash = fnv1a(std::as_bytes(std::span(basis.book)), hash);
    sides.push_back(std::move(plan));
  }
  for (int layer = 0; layer < n_layers; ++layer) {
    std::vector<float> row(static_cast<size_t>(dim / 2), 0.0f);
    std::copy_n(dictionary.turns_of(layer), n_rot / 2, row.begin());
    size_t found = 0;
    while (found * row.size() < turns.size() &&
           !std::equal(row.begin(), row.end(), turns.begin() + static_cast<ptrdiff_t>(found * row.size())))
      ++found;
    if (found * row.size() == turns.size()) turns.insert(turns.end(), row.begin(), row.end());
    kind.push_back(static_cast<int>(found));
  }
}

}  // namespace frugal::llm
