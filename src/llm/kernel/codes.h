// Kernels of coded keys and values: groups of 4 coefficients x 16 tokens, of 0 to 4, 6 or 8 bits each,
// multiplied with integers without leaving the code.
//
// The codes of a token are one stream of bits, group after group, coefficient after coefficient, each from
// its lowest bit on. What a code of up to 6 bits means depends on what follows it: the kWindowBits bits from
// its first on are a window, looked up in a table of kWindows levels, 0 to kLevelMax (a trellis code:
// Marcellin and Fischer 1990; that windows of a stream make one: Tseng et al. 2024). Beyond the end bits are
// 0. A code of 8 bits is a level itself. A panel holds 16 tokens: rows of 32 bits each of the streams, then
// what is left as 16 and 8 bits each. A stream has a whole number of bytes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace frugal::llm {

inline constexpr int kLevelMax = 126;  // two products of it with 127 fit 16 bits
inline constexpr int kCodeBlock = 64;  // tokens of four panels
// Queries are turned for 4 columns and the 4 blocks of a chunk at once: 16 lanes, block * 4 + column.
inline constexpr size_t kTurnCols = 4, kTurnLanes = 16;
// Terms of the polynomial that slowly turning pairs are summed to: degrees 0, 2, 4, and 1, 3. Rows come in
// pairs, so one of the even ones is nothing.
inline constexpr size_t kEvenTerms = 3, kOddTerms = 2, kTurnTerms = kEvenTerms + kOddTerms;
inline constexpr size_t kEvenRows = 4, kOddRows = 2;
inline constexpr float kTurnOne = 16384;   // what a cosine of 1 is in a table
inline constexpr float kTurnMax = 32000;   // of an integer factor
inline constexpr float kTurnSum = 124000;  // of what is summed for one score: times kTurnOne it fits 32 bits
inline constexpr int kMaxValueBlocks = 4;
inline constexpr size_t kMaxValueCols = 6;
inline constexpr int kWeightMax = 254;  // and less than 1 beyond it still fits a byte

// A window has the bits of its own code and of those after it. Tables [bits][kWindows], of up to kTableBits.
inline constexpr int kWindowBits = 6, kWindows = 1 << kWindowBits, kTableBits = 6;
inline constexpr size_t kTableBytes = (kTableBits + 1) * kWindows;
inline constexpr size_t kPathTokens = 4;
inline constexpr size_t kBookEntries = 256;  // an index is a byte
inline constexpr size_t kBinCols = 4;        // columns whose sums by entry stand side by side
inline constexpr float kProductMax = 32000;
// Integers of the products of n queries with a book's entries.
inline constexpr size_t product_tables(size_t n) {
  return (n + kBinCols - 1) / kBinCols * kBinCols * kBookEntries;
}
inline constexpr size_t kMaxGroups = 64;
inline constexpr size_t kMaxStreamWords = kMaxGroups;  // of 32 bits: 8 a coefficient

// What is added to a weight before what follows the point is cut off: token by token the middles of 256 steps
// from 0 to 1, each far from those before it (van der Corput's sequence).
struct Dither {
  alignas(64) float of[kMaxValueBlocks * kCodeBlock];
  constexpr Dither() : of() {
    for (unsigned t = 0; t < kMaxValueBlocks * kCodeBlock; ++t) {
      unsigned turned = 0;
      for (unsigned bit = 0; bit < 8; ++bit) turned |= (t >> bit & 1u) << (7 - bit);
      of[t] = (static_cast<float>(turned) + 0.5f) / 256;
    }
  }
};
inline constexpr Dither kDither;

// Bits of a token's stream.
inline int stream_bits(const uint8_t* bits, size_t n_groups) {
  int sum = 0;
  for (size_t g = 0; g < n_groups; ++g) sum += 4 * bits[g];
  return sum;
}

// Where the 32 bits of `token` from bit 32 * word on stand in a panel of streams of n_bits, byte by byte.
inline size_t stream_byte(int n_bits, int token, size_t word, size_t byte) {
  const size_t left = static_cast<size_t>(n_bits) / 8 - 4 * word, t = static_cast<size_t>(token);
  if (left >= 4) return 64 * word + 4 * t + byte;
  if (left >= 2 && byte < 2) return 64 * word + 2 * t + byte;
  return 64 * word + (left >= 2 ? 32 : 0) + t;
}
inline void put_stream(std::byte* panel, int n_bits, int token, const uint32_t* words) {
  for (size_t i = 0; i < static_cast<size_t>(n_bits) / 8; ++i)
    panel[stream_byte(n_bits, token, i / 4, i % 4)] = static_cast<std::byte>(words[i / 4] >> (8 * (i % 4)));
}
// Bits 32 * word to 32 * word + 31 of a token's stream; 0 after its end.
inline uint32_t stream_word(const std::byte* panel, int n_bits, int token, size_t word) {
  const size_t end = static_cast<size_t>(n_bits) / 8;
  uint32_t bits = 0;
  for (size_t i = 4 * word; i < 4 * word + 4 && i < end; ++i)
    bits |= static_cast<uint32_t>(panel[stream_byte(n_bits, token, word, i % 4)]) << (8 * (i % 4));
  return bits;
}

// The groups of a stream that have bits, in the order in which kernels read them: first those whose windows
// lie in one row of 32 bits, then those that reach into the next, then those of 8 bits.
struct CodeGroup {
  uint16_t at;     // its first bit
  uint8_t bits;    // of a coefficient
  uint8_t number;  // among all groups
};
struct CodeLayout {
  size_t n_groups = 0, n_within = 0, n_windows = 0, n_read = 0;  // all; ends of the three parts
  int n_bits = 0;
  CodeGroup groups[kMaxGroups] = {};

  CodeLayout() = default;
  CodeLayout(const uint8_t* bits, size_t n_all) : n_groups(n_all), n_bits(stream_bits(bits, n_all)) {
    for (int part = 0; part < 3; ++part) {
      int at = 0;
      for (size_t g = 0; g < n_all; at += 4 * bits[g], ++g) {
        const bool within = at % 32 + 3 * bits[g] + kWindowBits <= 32;
        if (bits[g] == 0 || part != (bits[g] == 8 ? 2 : within ? 0 : 1)) continue;
        groups[n_read++] = {static_cast<uint16_t>(at), bits[g], static_cast<uint8_t>(g)};
      }
      if (part == 0) n_within = n_read;
      if (part == 1) n_windows = n_read;
    }
  }
};

struct CodeKernels {
  const char* name;
  // The 64 tokens of four panels, `stride` bytes apart, with 64 bytes after the last that may be read. A
  // group's levels are at tables + kWindows * its bits.
  //
  // y[c * y_stride + t] += scales[c] * (dot - zeros[c]), dot = sum over groups g and i < 4 of level(g, t, i)
  // * x[c * 4 n_groups + 4 g + i]. |x| <= 127.
  void (*dot_keys)(const std::byte* panels, size_t stride, const CodeLayout& layout, const uint8_t* tables,
                   const int8_t* x, size_t n_cols, const int32_t* zeros, const float* scales, float* y,
                   size_t y_stride);
  // w[t] * scales[t] of the tokens of n_blocks blocks as integers q [n_blocks * kCodeBlock] times what is
  // returned, with their sum; the largest is kWeightMax. Not rounded to the nearest but by `dither`, that of
  // the tokens' own places in their chunk (kDither), or all that is small beside the largest would be
  // nothing: one off by less than 1. The w of a block begin w_stride after those of the block before. All >=
  // 0. Not finite: something, and a scale that is NaN.
  float (*quantize_weights)(const float* w, size_t w_stride, const float* scales, size_t n_blocks,
                            const float* dither, uint8_t* q, int32_t* sum);
  // y[c][4 g + i] += (scales[c] * level_scales[bits of g]) * (dot - zeros[c]), dot = sum over tokens t of
  // level(g, t, i) * w[c][t], i < 4; a scale of 0 adds nothing. The panels of n_blocks <= kMaxValueBlocks
  // blocks stand one after the other; w [n_cols, n_blocks * kCodeBlock], n_cols <= kMaxValueCols.
  void (*dot_values)(const std::byte* panels, size_t stride, size_t n_blocks, const CodeLayout& layout,
                     const uint8_t* tables, const float* level_scales, const uint8_t* w, size_t n_cols,
                     const int32_t* zeros, const float* scales, float* const* y);
  // Codes of n coefficients, the last of a stream first, each of 1 to 4 bits: those of the least sum of
  // weights[i] * (y[i] - levels[kWindows * bits[i] + window])^2, with `after` the window of what follows.
  void (*code_path)(const float* y, const float* weights, const uint8_t* bits, size_t n, int after,
                    const float* levels, uint8_t* codes);
  // That of kPathTokens tokens side by side: y and codes [n, kPathTokens], after [kPathTokens].
  void (*code_paths)(const float* y, const float* weights, const uint8_t* bits, size_t n, const int* after,
                     const float* levels, uint8_t* codes);
  // The 4-bit codes of 64 scales, 8 bytes in each of four panels, looked up in a table of 16.
  void (*expand_scales)(const std::byte* codes, size_t stride, const float* table, float* scales);
  // Books: kBookEntries products of query `col` with the entries as integers times what is returned, in
  // tables of as many queries, in whole fours; how they lie there is the set's own. Not finite: anything, and
  // a scale that is NaN.
  float (*quantize_products)(const float* products, int16_t* tables, size_t col);
  // y[c * y_stride + t] += scales[c] * (integer of query first + c at indices[t]), c < n_cols, for the 64
  // tokens whose indices are 16 bytes in each of four panels.
  void (*add_products)(const std::byte* indices, size_t stride, const int16_t* tables, size_t first,
                       size_t n_cols, const float* scales, float* y, size_t y_stride);
  // bins[c / kBinCols][e][c % kBinCols] += w[c][t / 64 * w_stride + t % 64] for the tokens t from `first` to
  // the end of n_blocks blocks, in their order, e < kBookEntries being the token's index. Bins of columns
  // that fill up the last kBinCols become anything.
  void (*add_to_bins)(const std::byte* indices, size_t stride, size_t first, size_t n_blocks,
                      const float* const* w, size_t w_stride, size_t n_cols, float* bins);
  // to[c][e] = bins[c / kBinCols][e][c % kBinCols].
  void (*spread_bins)(const float* bins, size_t n_cols, float* const* to);
  // Factors of queries turned to the middles of blocks: with (c, s) the factors [2, n_pairs, kTurnCols] and
  // (C, S) the middles' cosines and sines [2, n_pairs, 4], a = cC + sS and b = sC - cS of each lane. Terms of
  // a polynomial: the sums over pairs from n_fast on of a (b in odd terms) times powers [n_pairs,
  // kTurnTerms], of which pairs from n_full on have the first two. Rows: a of the first n_fast pairs, the
  // even terms and 0; then b of the first n_fast pairs and the odd terms; all times the column's inverse as
  // integers of at most kTurnMax, x [rows / 2, kTurnLanes, 2]. n_fast is even. Not finite: anything.
  void (*turn_factors)(const float* factors, const float* inverse, const float* middles, size_t n_pairs,
                       size_t n_fast, size_t n_full, const float* powers, int16_t* x);
  // The scores of a block for n_cols lanes of x: even and odd parts at the 32 offsets after its middle are
  // sums over rows times tables [2, rows / 2, 16, 2]; y[c * kCodeBlock + t] = scales[c] * (even + odd) in the
  // second half, and mirrored, scales[c] * (even - odd), in the first. Sums fit 32 bits.
  void (*turned_scores)(const int16_t* x, size_t n_cols, const float* scales, const int16_t* even,
                        size_t n_even, const int16_t* odd, size_t n_odd, float* y);
};

const CodeKernels& code_kernels();
const CodeKernels* find_code_kernels(const char* name);  // "generic", "avx2", "avx512", or null

}  // namespace frugal::llm
