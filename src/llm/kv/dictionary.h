// Dictionary: what the CSR codec knows about a model. For each layer and KV head, of keys and of values: a
// mean, a book of what vectors are like, an analysis basis of what the book leaves whose rows are the atoms,
// and the weight of each atom's error; for each layer, quantisers of 1 to 4 bits. docs/formats/dictionary.md,
// docs/design/kv-codec.md.
//
// A recipe spends a budget of bits on books and atoms: most atoms of a vector get none, so a code is sparse.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "frugal/llm.h"
#include "frugal/result.h"
#include "llm/kernel/codes.h"
#include "llm/kv/book.h"
#include "llm/kv/kv_cache.h"

namespace frugal::llm {

inline constexpr uint32_t kDictionaryVersion = 7;  // of the file
inline constexpr int kAtomGroup = 4;               // atoms that share a number of bits
inline constexpr int kMaxLevelBits = 4;  // bits of a code with trained levels; 6 and 8 have even steps
inline constexpr int kMaxAtomBits = 8;
// What an atom may have. A few atoms carry scores of several nats, and would drown all else in their error.
inline constexpr std::array<uint8_t, 7> kAtomBits = {0, 1, 2, 3, 4, 6, 8};
inline constexpr int kLevelCentre = 63;  // integer level of a coefficient of 0
inline constexpr int kMaxCodedDim = 256;
inline constexpr int kBookBits = 8;  // of an index of a book

enum class KvSide { kKeys, kValues };

// Each token's values are coded over a scale of their own, of 4 bits: some tokens that many heads look at
// have values near nothing, and have to keep them. Steps of 2^(3/8).
inline constexpr int kScaleBits = 4;
inline float token_scale(int code) { return std::exp2(0.375f * static_cast<float>(code - 8)); }
// For coefficients of this mean square: the nearest, in logarithms.
inline int token_scale_code(float mean_square) {
  int code = 0;
  while (code < 15 && mean_square > token_scale(code) * token_scale(code + 1)) ++code;
  return code;
}

// Quantisers of coefficients with unit variance, one for each number of bits.
struct CoefficientLevels {
  // levels[b - 1]: of codes of b bits, by window (llm/kernel/codes.h).
  std::array<std::array<float, kWindows>, kMaxLevelBits> levels{};
  std::array<float, 2> step{};  // of 6 bits (64 levels), of 8 (127), around 0
  // Mean squared error with b bits; [0] is 1; 5 and 7 are not used.
  std::array<float, kMaxAtomBits + 1> error{};
};

// Of one KV head, keys or values. A vector x is mean + synthesis y, and y = analysis (x - mean). What the
// nearest entry of the book leaves of y has unit variance, y itself that of `spread`. Keys are coded as
// attention reads them, after RoPE, but their mean is one before RoPE: it is turned to the key's position
// before it is taken off. Values have none: nothing is what many of them are.
struct HeadBasis {
  std::vector<float> mean;       // [dim]
  std::vector<float> analysis;   // [dim, dim], a row an atom
  std::vector<float> synthesis;  // [dim, dim], its inverse
  std::vector<float> weight;     // [dim], descending: what a unit of squared error in a coefficient costs
  std::vector<float> spread;     // [dim], standard deviations of y
  // Entry e is book_scale[i] * (book[e * dim + i] - kLevelCentre) in coefficient i.
  std::vector<uint8_t> book;      // [kBookEntries, dim], up to kLevelMax
  std::vector<float> book_scale;  // [dim]
};

struct Dictionary {
  uint64_t model_hash = 0;
  int n_layers = 0, n_kv_heads = 0, head_dim = 0;
  // Rotation of keys: pair i of a layer turns by turn[layer][i] radians a position. Pairs beyond n_rot / 2 do
  // not turn. `interleaved`: pair i is channels 2i and 2i + 1, else i and i + n_rot / 2.
  int n_rot = 0;
  bool interleaved = false;
  std::vector<float> turns;               // [n_layers, n_rot / 2]
  std::vector<HeadBasis> bases;           // [n_layers, 2, n_kv_heads]
  std::vector<CoefficientLevels> levels;  // [n_layers, 2]

  size_t basis_index(int layer, KvSide side, int head) const {
    return (static_cast<size_t>(layer) * 2 + (side == KvSide::kValues ? 1 : 0)) *
               static_cast<size_t>(n_kv_heads) +
           static_cast<size_t>(head);
  }
  const HeadBasis& basis(int layer, KvSide side, int head) const {
    return bases[basis_index(layer, side, head)];
  }
  const CoefficientLevels& levels_of(int layer, KvSide side) const {
    return levels[static_cast<size_t>(layer) * 2 + (side == KvSide::kValues ? 1 : 0)];
  }
  const float* turns_of(int layer) const {
    return turns.data() + static_cast<size_t>(layer) * static_cast<size_t>(n_rot / 2);
  }
  // Bytes held in memory by a cache that uses it.
  uint64_t bytes() const;
};

// x [dim] turned to `position`, as RoPE turns keys.
void turn_to(const Dictionary& dictionary, int layer, int position, const float* x, float* turned);

// Whether the dictionary is of this model: kInvalidArgument with both hashes.
Status check_model(const Dictionary& dictionary, const ModelInfo& info, const std::string& path);

// kNotFound, kCorrupt (what), kUnsupported (a newer version).
Result<Dictionary> read_dictionary(const std::string& path);
Result<Dictionary> parse_dictionary(std::span<const std::byte> bytes, const std::string& name);
// In one step: a full disk leaves the old file whole.
Status write_dictionary(const Dictionary& dictionary, const std::string& path);

// What a recipe codes.
struct Allotment {
  std::vector<uint8_t> bits;   // of each group of atoms, [bases, dim / kAtomGroup]
  std::vector<uint8_t> books;  // [bases]: 1 where the book is used
  // What an error of the coefficients of a group costs when each is its variance.
  static double group_cost(const Dictionary& dictionary, size_t base, size_t group, bool book);
};

// At most `bits` a channel in all with the least weighted error: a book where it lowers cost + slope * bits,
// slope being what the last bit brings; bits of groups greedily, which is optimal as long as each further bit
// brings less than the one before. Each base has an even number, so that a stream has whole bytes.
Allotment allot_bits(const Dictionary& dictionary, double bits);

// A cache source for csr:<bits>. kInvalidArgument for bits outside [0.25, 4]; kUnsupported head sizes.
Result<std::shared_ptr<const KvSource>> make_csr_source(std::shared_ptr<const Dictionary> dictionary,
                                                        double bits);

}  // namespace frugal::llm
