#include "llm/kv/dictionary.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <queue>

#include "base/text.h"

namespace frugal::llm {

uint64_t Dictionary::bytes() const {
  const auto dim = static_cast<uint64_t>(head_dim);
  return bases.size() * (2 * dim * dim + 2 * dim) * sizeof(float) +
         levels.size() * sizeof(CoefficientLevels) + turns.size() * sizeof(float);
}

void turn_to(const Dictionary& dictionary, int layer, int position, const float* x, float* turned) {
  const auto dim = static_cast<size_t>(dictionary.head_dim);
  std::memcpy(turned, x, dim * sizeof(float));
  const int n_pairs = dictionary.n_rot / 2;
  const float* turns = dictionary.turns_of(layer);
  for (int pair = 0; pair < n_pairs; ++pair) {
    const int first = dictionary.interleaved ? 2 * pair : pair;
    const int second = dictionary.interleaved ? first + 1 : pair + n_pairs;
    const double angle = static_cast<double>(turns[pair]) * position;
    const auto cos = static_cast<float>(std::cos(angle)), sin = static_cast<float>(std::sin(angle));
    turned[first] = x[first] * cos - x[second] * sin;
    turned[second] = x[first] * sin + x[second] * cos;
  }
}

Status check_model(const Dictionary& dictionary, const ModelInfo& info, const std::string& path) {
  if (dictionary.model_hash == info.file_hash && dictionary.n_layers == info.n_layers &&
      dictionary.n_kv_heads == info.n_kv_heads && dictionary.head_dim == info.head_dim)
    return {};
  return Error{ErrorCode::kInvalidArgument,
               strf("dictionary '%s' belongs to another model (hash %016llx, not %016llx); train one with "
                    "`frugal kv train`",
                    path.c_str(), static_cast<unsigned long long>(dictionary.model_hash),
                    static_cast<unsigned long long>(info.file_hash))};
}

std::vector<uint8_t> allot_bits(const Dictionary& dictionary, double bits) {
  const auto dim = static_cast<size_t>(dictionary.head_dim);
  const size_t n_groups = dim / kAtomGroup;
  std::vector<uint8_t> allotted(dictionary.bases.size() * n_groups, 0);
  struct Offer {
    double gain;
    size_t idx;  // group among all; ties go to the first
    bool operator<(const Offer& other) const {
      return gain != other.gain ? gain < other.gain : idx > other.idx;
    }
  };
  const auto next_of = [](int have) { return have < kMaxLevelBits ? have + 1 : have + 2; };
  const auto gain_of = [&](size_t idx, int have) {
    const size_t base = idx / n_groups, group = idx % n_groups;
    const CoefficientLevels& levels = dictionary.levels[base / static_cast<size_t>(dictionary.n_kv_heads)];
    double weight = 0;
    for (size_t i = 0; i < kAtomGroup; ++i)
      weight += static_cast<double>(dictionary.bases[base].weight[group * kAtomGroup + i]);
    const int next = next_of(have);
    return weight *
           static_cast<double>(levels.error[static_cast<size_t>(have)] -
                               levels.error[static_cast<size_t>(next)]) /
           (next - have);
  };
  std::priority_queue<Offer> offers;
  for (size_t idx = 0; idx < allotted.size(); ++idx) offers.push({gain_of(idx, 0), idx});
  // The scales of values come off the budget.
  const double scales = static_cast<double>(dictionary.bases.size() / 2) * kScaleBits / kAtomGroup;
  auto left = static_cast<int64_t>(std::floor(bits * static_cast<double>(allotted.size()) - scales + 1e-9));
  while (left > 0 && !offers.empty()) {
    const size_t idx = offers.top().idx;
    offers.pop();
    const int have = allotted[idx], next = next_of(have);
    if (next - have > left) continue;
    left -= next - have;
    allotted[idx] = static_cast<uint8_t>(next);
    if (next < kMaxAtomBits) offers.push({gain_of(idx, next), idx});
  }
  return allotted;
}

}  // namespace frugal::llm
