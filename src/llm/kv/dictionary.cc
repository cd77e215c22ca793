#include "llm/kv/dictionary.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <queue>

#include "base/text.h"

namespace frugal::llm {

uint64_t Dictionary::bytes() const {
  const auto dim = static_cast<uint64_t>(head_dim);
  // A basis as halves and its inverse as floats, a book as bytes with a square of each entry.
  return bases.size() * (dim * dim * (sizeof(uint16_t) + sizeof(float)) +
                         (6 * dim + kBookEntries) * sizeof(float) + kBookEntries * dim) +
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

double Allotment::group_cost(const Dictionary& dictionary, size_t base, size_t group, bool book) {
  const HeadBasis& of = dictionary.bases[base];
  double cost = 0;
  for (size_t i = group * kAtomGroup; i < (group + 1) * kAtomGroup; ++i) {
    const auto spread = book ? 1.0 : static_cast<double>(of.spread[i]);
    cost += static_cast<double>(of.weight[i]) * spread * spread;
  }
  return cost;
}

namespace {

class Allotter {
 public:
  explicit Allotter(const Dictionary& dictionary)
      : n_groups_(static_cast<size_t>(dictionary.head_dim / kAtomGroup)),
        n_bases_(dictionary.bases.size()),
        n_heads_(static_cast<size_t>(dictionary.n_kv_heads)),
        levels_(dictionary.levels) {
    for (const bool book : {false, true}) {
      for (size_t base = 0; base < n_bases_; ++base) {
        for (size_t g = 0; g < n_groups_; ++g)
          costs_[book ? 1 : 0].push_back(Allotment::group_cost(dictionary, base, g, book));
      }
    }
  }

  // Hands `left` bits out to the groups of bases with or without books; sets *slope to what the last brought
  // a bit.
  Allotment fill(const std::vector<uint8_t>& books, int64_t left, double* slope) const {
    Allotment out{std::vector<uint8_t>(n_bases_ * n_groups_, 0), books};
    std::priority_queue<Offer> offers;
    const auto offer = [&](size_t base) {
      const Offer next = offer_of(base, books[base], &out.bits[base * n_groups_]);
      if (next.first < n_groups_) offers.push(next);
    };
    for (size_t base = 0; base < n_bases_; ++base) offer(base);
    for (const uint8_t book : books) left -= book * kBookBits;
    for (; left >= 2 * kAtomGroup && !offers.empty(); left -= 2 * kAtomGroup) {
      const Offer best = offers.top();
      offers.pop();
      ++out.bits[best.base * n_groups_ + best.first];
      ++out.bits[best.base * n_groups_ + best.second];
      *slope = best.gain / kAtomGroup;
      offer(best.base);
    }
    return out;
  }

  // Least cost + slope * bits of a base.
  double price(size_t base, uint8_t book, double slope) const {
    std::vector<uint8_t> have(n_groups_, 0);
    double bits = book * kBookBits, cost = 0;
    for (;;) {
      const Offer next = offer_of(base, book, have.data());
      if (next.first == n_groups_ || next.gain / kAtomGroup < slope) break;
      ++have[next.first];
      ++have[next.second];
      bits += 2 * kAtomGroup;
    }
    for (size_t g = 0; g < n_groups_; ++g) cost += costs_[book][base * n_groups_ + g] * error(base, have[g]);
    return cost + slope * bits;
  }

 private:
  // The best next two bits of a base's groups, of one or one each: what they bring for each of the two.
  struct Offer {
    double gain;
    size_t base, first, second;  // groups among the base's; ties go to the first base
    bool operator<(const Offer& other) const {
      return gain != other.gain ? gain < other.gain : base > other.base;
    }
  };

  double error(size_t base, int bits) const {
    return static_cast<double>(levels_[base / n_heads_].error[static_cast<size_t>(bits)]);
  }
  // What a group's next bits bring, for each of them; nothing if they are not `n`.
  double gain_of(size_t base, uint8_t book, size_t group, int have, int n) const {
    const int next = have < kMaxLevelBits ? have + 1 : have + 2;
    if (next - have != n || next > kMaxAtomBits) return -1.0;
    return costs_[book][base * n_groups_ + group] * (error(base, have) - error(base, next)) / n;
  }
  Offer offer_of(size_t base, uint8_t book, uint8_t* have) const {
    Offer best{-1, base, n_groups_, n_groups_};
    double single[2] = {-1, -1};
    size_t groups[2] = {n_groups_, n_groups_};
    for (int turn = 0; turn < 2; ++turn) {  // the second bit comes after the first
      for (size_t g = 0; g < n_groups_; ++g) {
        const double gain = gain_of(base, book, g, have[g], 1);
        if (gain > single[turn]) single[turn] = gain, groups[turn] = g;
      }
      if (turn == 0 && groups[0] < n_groups_) ++have[groups[0]];
    }
    if (groups[0] < n_groups_) --have[groups[0]];
    if (groups[1] < n_groups_) best = {(single[0] + single[1]) / 2, base, groups[0], groups[1]};
    for (size_t g = 0; g < n_groups_; ++g) {
      const double gain = gain_of(base, book, g, have[g], 2);
      if (gain > best.gain) best = {gain, base, g, g};
    }
    return best;
  }

  size_t n_groups_, n_bases_, n_heads_;
  const std::vector<CoefficientLevels>& levels_;
  std::vector<double> costs_[2];  // without and with a book: [bases, groups]
};

}  // namespace

Allotment allot_bits(const Dictionary& dictionary, double bits) {
  constexpr int kRounds = 4;
  const Allotter allotter(dictionary);
  const auto n_bases = static_cast<double>(dictionary.bases.size());
  // Scales of values come off it.
  const auto budget =
      static_cast<int64_t>(std::floor(n_bases * (bits * dictionary.head_dim - kScaleBits / 2.0) + 1e-9));
  std::vector<uint8_t> books(dictionary.bases.size(), 0);
  double slope = 0;
  Allotment out = allotter.fill(books, budget, &slope);
  for (int round = 0; round < kRounds; ++round) {
    int64_t taken = 0;
    for (size_t base = 0; base < books.size(); ++base) {
      books[base] = allotter.price(base, 1, slope) < allotter.price(base, 0, slope) ? 1 : 0;
      taken += books[base] * kBookBits;
    }
    if (books == out.books || taken > budget) break;
    out = allotter.fill(books, budget, &slope);
  }
  return out;
}

}  // namespace frugal::llm
