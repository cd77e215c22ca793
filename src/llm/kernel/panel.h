// Panel layouts: how 16 rows of a weight matrix lie in memory, and the repacking from GGUF's row-major
// blocks.
//
// A panel holds blocks along k, one after the other; the last panel of a matrix is padded with zero rows. In
// a block, `group j` is the 64 bytes { row 0: k = 4j .. 4j+3 | row 1: k = 4j .. 4j+3 | ... | row 15 }, the
// unit of a four-way integer dot product.
//
//   F32, F16, BF16   [k][16 rows]                                                     no blocks
//   Q8_0   32 k      f16 d[16]; int8 groups 0..7                                      544 bytes
//   Q4_0   32 k      f16 d[16]; nibbles: byte i of 64-byte vector v (v = 0..3) holds group v low, group v+4
//   high    288 Q4_1   32 k      f16 d[16]; f16 m[16]; nibbles                                    320 Q5_0 32
//   k      f16 d[16]; nibbles; high[64]: bit j of byte i = fifth bit of byte i of group j      352 Q5_1   32
//   k      f16 d[16]; f16 m[16]; nibbles; high[64]                          384 Q4_K   256 k     f16 d[16];
//   f16 dmin[16]; 8 x { u8 scale[16]; u8 min[16] }; 8 x nibbles                      2368 Q5_K   256 k the
//   same; then 8 x high[64]                                                                  2880 Q6_K   256
//   k     f16 d[16]; 16 x int8 scale[16]; 8 x nibbles; 8 x { high2[2][64]: bits 2(j%4) of byte i of
//                    high2[j/4] = bits 4..5 of byte i of group j } 3360
//
// Values: Q8_0 d*q; Q4_0 d*(q-8); Q4_1 d*q+m; Q5_0 d*(q-16); Q5_1 d*q+m; Q4_K, Q5_K d*scale*q - dmin*min;
// Q6_K d*scale*(q-32). Bytes a weight: those of GGUF, but for Q4_K and Q5_K, whose 6-bit scales are widened
// (+0.125 bit).
//
// Values of a q8_0 cache come in chunks of 256 tokens: for each 32 channels 4 blocks of 64 tokens, each f16
// scale[64], one for a token, and 16 times int8 { channel 0: 4 tokens | ... | channel 31: 4 tokens }, the
// unit of the same product.
#pragma once

#include <cstddef>
#include <cstdint>

#include "llm/kernel/kernel.h"

namespace frugal::llm {

// k values in a block: 1, 32 or 256.
int panel_block_size(PanelType type);
// Bytes of 16 rows by panel_block_size(type) values.
size_t panel_block_bytes(PanelType type);
// Bytes of a panel of rows of k values; k must be a multiple of the block size.
inline size_t panel_bytes(PanelType type, size_t k) {
  return k / static_cast<size_t>(panel_block_size(type)) * panel_block_bytes(type);
}
// Bytes of a GGUF block of panel_block_size(type) values of one row.
size_t gguf_block_bytes(PanelType type);

inline constexpr size_t kValueBlock = 64;  // tokens
inline constexpr size_t kValueBlockBytes = kValueBlock * (2 + 32);
inline constexpr size_t kValueGroupBytes = kMaxValueTokens / kValueBlock * kValueBlockBytes;
// Where in a chunk the scale of a token's 32 channels from 32 * group on, and the value of a channel, stand.
inline size_t value_scale_at(size_t group, size_t token) {
  return group * kValueGroupBytes + token / kValueBlock * kValueBlockBytes + token % kValueBlock * 2;
}
inline size_t value_at(size_t channel, size_t token) {
  return value_scale_at(channel / 32, token / kValueBlock * kValueBlock) + 2 * kValueBlock +
         token % kValueBlock / 4 * 128 + channel % 32 * 4 + token % 4;
}

// Repacks `n_rows` (1 to 16) GGUF rows of k values, `row_bytes` apart, into one panel; missing rows become
// zero.
void pack_panel(PanelType type, const std::byte* rows, size_t row_bytes, int n_rows, size_t k,
                std::byte* panel);

// Row `row` (0..15) of a panel as floats: for embeddings, and the naive twin of every kernel.
void unpack_row(PanelType type, const std::byte* panel, int row, size_t k, float* values);

}  // namespace frugal::llm
