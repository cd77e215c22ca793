// Kernels of coded keys and values: groups of 4 coefficients x 16 tokens, of 0 to 4, 6 or 8 bits each,
// multiplied with integers without leaving the code.
//
// A group of b bits is 8 b bytes and holds 64 codes (6 bits: half the levels, 8: the levels themselves).
// Looked up in a table of 16 bytes they become 64 bytes of levels, 0 to kLevelMax, in an order that is the
// caller's business (that of the codes):
//   keys    code = token * 4 + coefficient: a 32-bit lane is a token
//   values  code = token / 4 * 16 + coefficient * 4 + token % 4: a 32-bit lane is 4 tokens of a coefficient
// All sums are of integers, or of floats in one stated order: every set gives the same bits.
#pragma once

#include <cstddef>
#include <cstdint>

namespace frugal::llm {

inline constexpr int kLevelMax = 126;  // two products of it with 127 fit 16 bits
inline constexpr int kCodeBlock = 64;  // tokens of four panels
// Weights of 64 tokens as the kernels of a set want them.
inline constexpr int kWeightWidth = 4 * kCodeBlock;
// Terms of the polynomial that slowly turning pairs are summed to: degrees 0, 2, 4, and 1, 3.
inline constexpr size_t kEvenTerms = 3, kOddTerms = 2, kTurnTerms = kEvenTerms + kOddTerms;
inline constexpr size_t kMaxTurnedPairs = 128;
inline constexpr int kMaxValueBlocks = 4;
inline constexpr int kWeightMax = 32000;  // products of it with kLevelMax of kMaxValueBlocks fit 32 bits

// Puts code `value` of `bits` bits at `idx` (0 to 63) of a group, over what stood there.
inline void put_code(std::byte* group, int bits, int idx, int value) {
  auto* bytes = reinterpret_cast<uint8_t*>(group);
  const auto set = [](uint8_t& byte, int shift, int mask, int code) {
    byte = static_cast<uint8_t>((byte & ~(mask << shift)) | code << shift);
  };
  if (bits == 8) bytes[idx] = static_cast<uint8_t>(value);
  if (bits == 4 || bits == 6) set(bytes[idx % 32], idx / 32 * 4, 15, value & 15);
  if (bits == 6) set(bytes[32 + idx % 16], idx / 16 * 2, 3, value >> 4);
  if (bits == 2 || bits == 3) set(bytes[idx % 16], idx / 16 * 2, 3, value & 3);
  if (bits == 1 || bits == 3)
    set(bytes[(bits == 3 ? 16 : 0) + idx % 8], idx / 8, 1, bits == 3 ? value >> 2 : value);
}

struct CodeKernels {
  const char* name;
  // The 64 tokens of four panels, `stride` bytes apart; groups stand one after the other in each. `bits` and
  // `tables` [n_groups]: group g has bits[g] and the 16 levels at tables + 16 * bits[g].
  //
  // y[c * y_stride + t] += scales[c] * (dot - zeros[c]), dot = sum over groups g and i < 4 of level(g, t, i)
  // * x[c * 4 n_groups + 4 g + i]. |x| <= 127.
  void (*dot_keys)(const std::byte* panels, size_t stride, const uint8_t* bits, size_t n_groups,
                   const uint8_t* tables, const int8_t* x, size_t n_cols, const int32_t* zeros,
                   const float* scales, float* y, size_t y_stride);
  // w[t] * scales[t] of the tokens of n_blocks blocks as integers up to kWeightMax times what is returned,
  // [n_blocks, kWeightWidth], with their sum; how they lie is the set's own. The w of a block begin w_stride
  // after those of the block before. All >= 0. Not finite: something, and a scale that is NaN.
  float (*quantize_weights)(const float* w, size_t w_stride, const float* scales, size_t n_blocks, int16_t* q,
                            int32_t* sum);
  // y[c * y_stride + 4 g + i] += (scales[c] * level_scales[bits[g]]) * (dot - zeros[c]), dot = sum over
  // tokens t of level(g, t, i) * weight t of column c, i < 4; a scale of 0 adds nothing. The panels of
  // n_blocks <= kMaxValueBlocks blocks stand one after the other; w [n_cols, n_blocks * kWeightWidth] is from
  // quantize_weights.
  void (*dot_values)(const std::byte* panels, size_t stride, size_t n_blocks, const uint8_t* bits,
                     size_t n_groups, const uint8_t* tables, const float* level_scales, const int16_t* w,
                     size_t n_cols, const int32_t* zeros, const float* scales, float* y, size_t y_stride);
  // The 4-bit codes of 64 scales, 8 bytes in each of four panels, looked up in a table of 16.
  void (*expand_scales)(const std::byte* codes, size_t stride, const float* table, float* scales);
  // Factors of a query turned to the middle of a block: with (c, s) the factors [2, n_pairs] and (C, S) the
  // middle's cosines and sines, a = cC + sS and b = sC - cS. Terms of a polynomial: the sum over pairs of a
  // (b in odd terms) times powers[term][pair]. x = a of the first n_fast pairs, then the even terms; then b
  // of the first n_fast pairs and the odd terms. n_pairs is a multiple of 16.
  void (*turn_factors)(const float* factors, const float* middle, size_t n_pairs, size_t n_fast,
                       const float* powers, float* x);
  // A block's sums from the even and the odd part at the 32 offsets after its middle: y[c * kCodeBlock + t] =
  // even[c * 32 + t - 32] + odd[...] in the second half, and mirrored, even - odd, in the first.
  void (*unfold)(const float* even, const float* odd, size_t n_cols, float* y);
};

const CodeKernels& code_kernels();
const CodeKernels* find_code_kernels(const char* name);  // "generic", "avx2", "avx512", or null

}  // namespace frugal::llm
