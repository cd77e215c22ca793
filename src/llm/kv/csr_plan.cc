#include "llm/kv/csr_plan.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/hash.h"
#include "base/text.h"
#include "llm/kernel/codes.h"

namespace frugal::llm {
namespace {

LevelPlan level_plan(const CoefficientLevels& levels) {
  LevelPlan plan;
  for (size_t bits = 1; bits <= kMaxLevelBits; ++bits) {
    const auto& values = levels.levels[bits - 1];
    const size_t n = size_t{1} << bits;
    float largest = 1e-6f;
    for (size_t i = 0; i < n; ++i) largest = std::max(largest, std::fabs(values[i]));
    plan.scale[bits] = largest / kLevelCentre;
    for (size_t i = 0; i < n; ++i) {
      const long level = std::lround(values[i] / plan.scale[bits]) + kLevelCentre;
      plan.table[16 * bits + i] = static_cast<uint8_t>(std::clamp(level, 0l, long{kLevelMax}));
      if (i > 0) plan.bounds[bits][i - 1] = 0.5f * (values[i - 1] + values[i]);
    }
  }
  plan.scale[6] = levels.step[0] / 2;
  plan.scale[8] = levels.step[1];
  return plan;
}

std::vector<float> transposed(const std::vector<float>& a, size_t n) {
  std::vector<float> out(a.size());
  for (size_t i = 0; i < n; ++i) {
    for (size_t j = 0; j < n; ++j) out[j * n + i] = a[i * n + j];
  }
  return out;
}

}  // namespace

int LevelPlan::code_of(int bits, float y) const {
  if (bits > kMaxLevelBits) {  // not a number becomes the lowest level
    const float places = bits == 6 ? 0.5f * y / scale[6] + 32 : y / scale[8] + (kLevelCentre + 0.5f);
    const float largest = bits == 6 ? 63 : static_cast<float>(kLevelMax);
    return static_cast<int>(std::min(std::max(0.0f, places), largest));
  }
  int code = 0;
  for (int b = 0; b < (1 << bits) - 1; ++b)
    code += y > bounds[static_cast<size_t>(bits)][static_cast<size_t>(b)] ? 1 : 0;
  return code;
}

CsrPlan::CsrPlan(const Dictionary& dictionary, double wanted)
    : n_layers(dictionary.n_layers),
      n_kv_heads(dictionary.n_kv_heads),
      dim(dictionary.head_dim),
      n_rot(dictionary.n_rot),
      interleaved(dictionary.interleaved),
      bits(wanted),
      name(strf("csr:%g", wanted)) {
  const std::vector<uint8_t> allotted = allot_bits(dictionary, wanted);
  const size_t n_groups = static_cast<size_t>(dim) / kAtomGroup, n = static_cast<size_t>(dim);
  hash = fnv1a(std::as_bytes(std::span(allotted)));
  for (const CoefficientLevels& of : dictionary.levels) {
    levels.push_back(level_plan(of));
    hash = fnv1a(std::as_bytes(std::span(levels.back().table)), hash);
    hash = fnv1a(std::as_bytes(std::span(levels.back().scale)), hash);
  }
  for (size_t base = 0; base < dictionary.bases.size(); ++base) {
    const HeadBasis& basis = dictionary.bases[base];
    const bool keys = base / static_cast<size_t>(n_kv_heads) % 2 == 0;
    SidePlan plan;
    const uint8_t* given = &allotted[base * n_groups];
    for (size_t g = 0; g < n_groups; ++g) {
      if (given[g] > 0) plan.n_groups = static_cast<int>(g) + 1;
    }
    for (int g = 0; g < plan.n_groups; ++g) {
      plan.bits.push_back(given[g]);
      plan.offset.push_back(plan.panel_bytes);
      plan.panel_bytes += 8u * given[g];
    }
    if (!keys && plan.n_groups > 0) {
      plan.scale_offset = plan.panel_bytes;
      plan.panel_bytes += 8;
    }
    plan.mean = basis.mean;
    plan.analysis = transposed(basis.analysis, n);
    plan.synthesis = keys ? basis.synthesis : transposed(basis.synthesis, n);
    hash = fnv1a(std::as_bytes(std::span(basis.mean)), hash);
    hash = fnv1a(std::as_bytes(std::span(basis.analysis)), hash);
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
