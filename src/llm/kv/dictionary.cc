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
  // What a group's next bits bring, for each of them; nothing if they are not `n`.
  const auto gain_of = [&](size_t base, size_t group, int have, int n) {
    const int next = have < kMaxLevelBits ? have + 1 : have + 2;
    if (next - have != n || next > kMaxAtomBits) return -1.0;
    const CoefficientLevels& levels = dictionary.levels[base / static_cast<size_t>(dictionary.n_kv_heads)];
    double weight = 0;
    for (size_t i = 0; i < kAtomGroup; ++i)
      weight += static_cast<double>(dictionary.bases[base].weight[group * kAtomGroup + i]);
    return weight *
           static_cast<double>(levels.error[static_cast<size_t>(have)] -
                               levels.error[static_cast<size_t>(next)]) /
           n;
  };
  // The best next two bits of a base: of one group, or one each.
  struct Offer {
    double gain;
    size_t base, first, second;  // groups among the base's; ties go to the first base
    bool operator<(const Offer& other) const {
      return gain != other.gain ? gain < other.gain : base > other.base;
    }
  };
  const auto offer_of = [&](size_t base) {
    Offer best{-1, base, n_groups, n_groups};
    uint8_t* have = &allotted[base * n_groups];
    double single[2] = {-1, -1};
    size_t groups[2] = {n_groups, n_groups};
    for (int turn = 0; turn < 2; ++turn) {  // the second bit comes after the first
      for (size_t g = 0; g < n_groups; ++g) {
        const double gain = gain_of(base, g, have[g], 1);
        if (gain > single[turn]) single[turn] = gain, groups[turn] = g;
      }
      if (turn == 0 && groups[0] < n_groups) ++have[groups[0]];
    }
    if (groups[0] < n_groups) --have[groups[0]];
    if (groups[1] < n_groups) best = {(single[0] + single[1]) / 2, base, groups[0], groups[1]};
    for (size_t g = 0; g < n_groups; ++g) {
      const double gain = gain_of(base, g, have[g], 2);
      if (gain > best.gain) best = {gain, base, g, g};
    }
    return best;
  };
  std::priority_queue<Offer> offers;
  const auto offer = [&](size_t base) {
    const Offer next = offer_of(base);
    if (next.first < n_groups) offers.push(next);
  };
  for (size_t base = 0; base < dictionary.bases.size(); ++base) offer(base);
  // The scales of values come off the budget.
  const double scales = static_cast<double>(dictionary.bases.size() / 2) * kScaleBits / kAtomGroup;
  auto left = static_cast<int64_t>(std::floor(bits * static_cast<double>(allotted.size()) - scales + 1e-9));
  for (; left >= 2 && !offers.empty(); left -= 2) {
    const Offer best = offers.top();
    offers.pop();
    ++allotted[best.base * n_groups + best.first];
    ++allotted[best.base * n_groups + best.second];
    offer(best.base);
  }
  return allotted;
}

}  // namespace frugal::llm
