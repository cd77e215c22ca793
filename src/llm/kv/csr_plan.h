// What the CSR caches of one engine share: the dictionary in the forms that encoding and attention read, and
// where each code lies.
#pragma once

#include <array>
#include <vector>

#include "llm/kv/csr_book.h"
#include "llm/kv/dictionary.h"

namespace frugal::llm {

// Codes of one head, keys or values, in panels of 16 tokens (llm/kernel/codes.h).
struct SidePlan {
  int n_groups = 0;           // up to the last with bits
  std::vector<uint8_t> bits;  // [n_groups]
  CodeLayout layout;          // that as kernels read it
  CodeBook book;              // or none
  // After the streams: of values with codes 8 bytes, a scale's code for each token; of a book 16, an index
  // for each.
  uint32_t scale_offset = 0, index_offset = 0;
  uint32_t panel_bytes = 0;
  std::vector<float> weights;      // [dim]: what a unit of squared error costs
  std::vector<float> mean;         // [dim]
  std::vector<float> scale;        // [dim], coefficients are scale * analysis (x - mean); none: 1
  std::vector<uint16_t> analysis;  // [dim of x, atom], f16: panels of 16 atoms side by side
  std::vector<uint16_t>
      synthesis;  // keys [dim of x, atom], to turn queries; values [atom, dim of x], to restore; f16
};

// Quantisers of one layer, keys or values.
struct LevelPlan {
  // Integer levels, 0 to 126, by bits and window. Codes of 6 bits are twice themselves, of 8 bits themselves.
  alignas(64) std::array<uint8_t, kTableBytes> table{};
  std::array<float, kMaxAtomBits + 1> scale{};  // a coefficient is scale * (level - centre)
  std::array<float, kTableBytes> levels{};      // that, by bits and window

  int even_code(int bits, float y) const;  // of 6 and 8 bits
};

// Coefficients y [n, dim] of x [n, dim], a key less the turned mean or a value less the mean.
void analyse(const SidePlan& side, const float* x, size_t n, float* y);

// Codes [kPathTokens, 4 n_groups] of tokens' coefficients y [kPathTokens, 4 n_groups]; of groups without bits
// 0. costs [kPathTokens]: the weighted squared errors that they leave.
void code_tokens(const SidePlan& side, const LevelPlan& levels, const float* y, uint8_t* codes, float* costs);

// What stands in a cache for a token.
struct TokenCode {
  int entry = 0;  // of the book
  int scale = 0;  // code of what the coefficients are divided by
  uint8_t codes[kMaxCodedDim] = {};
};
// Of kPathTokens tokens' coefficients y [kPathTokens, dim]. Of a book's nearest entries the one is taken with
// which, all coded, the error is least. `scaled`: over a scale of each token, as values are.
void code_rows(const SidePlan& side, const LevelPlan& levels, bool scaled, const float* y, TokenCode* out);

struct CsrPlan {
  CsrPlan(const Dictionary& dictionary, double bits);

  int n_layers, n_kv_heads, dim, n_rot;
  bool interleaved;
  double bits;
  std::string name;
  uint64_t hash;
  std::vector<SidePlan> sides;    // [n_layers, 2, n_kv_heads]
  std::vector<LevelPlan> levels;  // [n_layers, 2]
  std::vector<float> turns;  // distinct rows of the dictionary's turns, [n_kinds, dim / 2]; 0 beyond n_rot
  std::vector<int> kind;     // [n_layers], into turns

  const SidePlan& side(int layer, KvSide of, int head) const {
    return sides[static_cast<size_t>((layer * 2 + (of == KvSide::kValues ? 1 : 0)) * n_kv_heads + head)];
  }
  const LevelPlan& levels_of(int layer, KvSide of) const {
    return levels[static_cast<size_t>(layer * 2 + (of == KvSide::kValues ? 1 : 0))];
  }
  // Channels of pair i. Channels beyond n_rot are paired in order, and turn by 0.
  int first_of(int pair) const { return pair >= n_rot / 2 ? 2 * pair : interleaved ? 2 * pair : pair; }
  int second_of(int pair) const { return pair >= n_rot / 2 || interleaved ? 2 * pair + 1 : pair + n_rot / 2; }
};

}  // namespace frugal::llm
