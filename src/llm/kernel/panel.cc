#include "llm/kernel/panel.h"

#include <cstring>

#include "base/check.h"

namespace frugal::llm {
namespace {

uint8_t byte_at(const std::byte* data, size_t at) { return static_cast<uint8_t>(data[at]); }

uint16_t half_at(const std::byte* data, size_t at) {
  uint16_t value;
  std::memcpy(&value, data + at, 2);
  return value;
}

void put_half(std::byte* data, size_t at, uint16_t value) { std::memcpy(data + at, &value, 2); }

// Where q[k] of `row` stands inside the groups of a 32-block: group k / 4, byte 4 * row + k % 4.
struct Place {
  int group, byte;
};
Place place(int row, int k) { return {k / 4, 4 * row + k % 4}; }

uint32_t word_at(const std::byte* data, size_t at) {
  uint32_t value;
  std::memcpy(&value, data + at, 4);
  return value;
}

void put_word(std::byte* data, size_t at, uint32_t value) { std::memcpy(data + at, &value, 4); }

constexpr uint32_t kLowNibbles = 0x0f0f0f0f;

// Row `row`'s 32 values of four bits into the four vectors: group v (values 4v ..) takes the low, group v + 4
// the high nibbles. `first(v)` and `second(v)` give the groups' four values as the low nibbles of a word.
template <typename First, typename Second>
void put_nibbles(std::byte* nibbles, size_t row, First first, Second second) {
  for (size_t v = 0; v < 4; ++v) put_word(nibbles, v * 64 + 4 * row, first(v) | second(v) << 4);
}

// Bits 0, 4, 8, ... 28 of x, side by side.
uint32_t every_fourth_bit(uint32_t x) {
  x &= 0x11111111;
  x = (x | x >> 3) & 0x03030303;
  x = (x | x >> 6) & 0x000f000f;
  return (x | x >> 12) & 0xff;
}

// The 32 fifth bits of a row, bit k of `high`, into high[64]: bit j of byte 4 row + i is that of value 4j +
// i.
void put_fifth_bits(std::byte* out, size_t row, uint32_t high) {
  for (size_t i = 0; i < 4; ++i) out[4 * row + i] = static_cast<std::byte>(every_fourth_bit(high >> i));
}

uint8_t get_nibble(const std::byte* nibbles, int row, int k) {
  const auto [group, byte] = place(row, k);
  const uint8_t both = static_cast<uint8_t>(nibbles[(group % 4) * 64 + byte]);
  return group < 4 ? both & 15 : both >> 4;
}

// GGUF's Q4_K and Q5_K pack eight 6-bit scales and mins into 12 bytes.
void unpack_scales(const std::byte* packed, int sub, uint8_t* scale, uint8_t* min) {
  if (sub < 4) {
    *scale = byte_at(packed, sub) & 63;
    *min = byte_at(packed, sub + 4) & 63;
  } else {
    *scale = static_cast<uint8_t>((byte_at(packed, sub + 4) & 15) | ((byte_at(packed, sub - 4) >> 6) << 4));
    *min = static_cast<uint8_t>((byte_at(packed, sub + 4) >> 4) | ((byte_at(packed, sub) >> 6) << 4));
  }
}

template <typename T>
void pack_plain(const std::byte* rows, size_t row_bytes, size_t n_rows, size_t k, std::byte* panel) {
  for (size_t i = 0; i < k; ++i) {
    for (size_t row = 0; row < n_rows; ++row) {
      std::memcpy(panel + (i * kPanelRows + row) * sizeof(T), rows + row * row_bytes + i * sizeof(T),
                  sizeof(T));
    }
  }
}

// One GGUF block of one row into its place in a panel block, all of whose bytes belong to one row or another.
void pack_block(PanelType type, const std::byte* in, size_t row, std::byte* out) {
  switch (type) {
    case PanelType::kQ8_0:
      put_half(out, 2 * row, half_at(in, 0));
      for (size_t group = 0; group < 8; ++group)
        put_word(out, 32 + group * 64 + 4 * row, word_at(in, 2 + 4 * group));
      return;
    case PanelType::kQ4_0:
    case PanelType::kQ4_1:
    case PanelType::kQ5_0:
    case PanelType::kQ5_1: {
      const bool min = type == PanelType::kQ4_1 || type == PanelType::kQ5_1;
      const bool five = type == PanelType::kQ5_0 || type == PanelType::kQ5_1;
      const size_t n_halves = min ? 2 : 1;
      for (size_t h = 0; h < n_halves; ++h) put_half(out, 32 * h + 2 * row, half_at(in, 2 * h));
      // GGUF's byte k holds value k low and value k + 16 high: the words of a panel as they are.
      const std::byte* low = in + 2 * n_halves + (five ? 4 : 0);
      std::byte* nibbles = out + 32 * n_halves;
      for (size_t v = 0; v < 4; ++v) put_word(nibbles, v * 64 + 4 * row, word_at(low, 4 * v));
      if (five) put_fifth_bits(nibbles + 256, row, word_at(in, 2 * n_halves));
      return;
    }
    case PanelType::kQ4_K:
    case PanelType::kQ5_K: {
      const bool five = type == PanelType::kQ5_K;
      put_half(out, 2 * row, half_at(in, 0));
      put_half(out, 32 + 2 * row, half_at(in, 2));
      const std::byte* high = in + 16;                   // Q5_K: [32], bit `sub` of byte k
      const std::byte* low = in + 16 + (five ? 32 : 0);  // [128]: sub-blocks 2i and 2i + 1 share 32 bytes
      std::byte* nibbles = out + 64 + 8 * 32;
      for (size_t sub = 0; sub < 8; ++sub) {
        uint8_t scale, min;
        unpack_scales(in + 4, static_cast<int>(sub), &scale, &min);
        out[64 + sub * 32 + row] = static_cast<std::byte>(scale);
        out[64 + sub * 32 + 16 + row] = static_cast<std::byte>(min);
        const std::byte* q = low + sub / 2 * 32;
        const uint32_t shift = sub % 2 * 4;
        put_nibbles(
            nibbles + sub * 256, row, [&](size_t v) { return word_at(q, 4 * v) >> shift & kLowNibbles; },
            [&](size_t v) { return word_at(q, 16 + 4 * v) >> shift & kLowNibbles; });
        if (five) {
          uint32_t bits = 0;
          for (size_t k = 0; k < 32; ++k)
            bits |= static_cast<uint32_t>(static_cast<uint8_t>(high[k]) >> sub & 1) << k;
          put_fifth_bits(nibbles + 8 * 256 + sub * 64, row, bits);
        }
      }
      return;
    }
    case PanelType::kQ6_K: {
      // GGUF: low[128], high[64], int8 scales[16], f16 d. Two halves of 128 values; in a half, value 32 i + l
      // takes nibble i / 2 of low[32 (i % 2) + l] and bits 2i of high[l].
      put_half(out, 2 * row, half_at(in, 208));
      for (size_t s = 0; s < 16; ++s) out[32 + s * 16 + row] = in[192 + s];
      std::byte* nibbles = out + 32 + 256;
      std::byte* highs = nibbles + 8 * 256;
      for (size_t sub = 0; sub < 8; ++sub) {
        const size_t half = sub / 4, i = sub % 4;
        const std::byte* q = in + 64 * half + 32 * (i % 2);
        const std::byte* high = in + 128 + 32 * half;
        const uint32_t shift = i < 2 ? 0 : 4;
        put_nibbles(
            nibbles + sub * 256, row, [&](size_t v) { return word_at(q, 4 * v) >> shift & kLowNibbles; },
            [&](size_t v) { return word_at(q, 16 + 4 * v) >> shift & kLowNibbles; });
        for (size_t part = 0; part < 2; ++part) {  // groups 4 part .. 4 part + 3, two bits each
          uint32_t bits = 0;
          for (uint32_t j = 0; j < 4; ++j) {
            bits |= (word_at(high, 16 * part + 4 * j) >> (2 * i) & 0x03030303) << (2 * j);
          }
          put_word(highs, sub * 128 + part * 64 + 4 * row, bits);
        }
      }
      return;
    }
    case PanelType::kF32:
    case PanelType::kF16:
    case PanelType::kBF16:
      break;
  }
  FRUGAL_CHECK(false);
}

}  // namespace

int panel_block_size(PanelType type) {
  switch (type) {
    case PanelType::kF32:
    case PanelType::kF16:
    case PanelType::kBF16:
      return 1;
    case PanelType::kQ4_K:
    case PanelType::kQ5_K:
    case PanelType::kQ6_K:
      return 256;
    default:
      return 32;
  }
}

size_t panel_block_bytes(PanelType type) {
  switch (type) {
    case PanelType::kF32:
      return 64;
    case PanelType::kF16:
    case PanelType::kBF16:
      return 32;
    case PanelType::kQ8_0:
      return 544;
    case PanelType::kQ4_0:
      return 288;
    case PanelType::kQ4_1:
      return 320;
    case PanelType::kQ5_0:
      return 352;
    case PanelType::kQ5_1:
      return 384;
    case PanelType::kQ4_K:
      return 2368;
    case PanelType::kQ5_K:
      return 2880;
    case PanelType::kQ6_K:
      return 3360;
  }
  return 0;
}

size_t gguf_block_bytes(PanelType type) {
  switch (type) {
    case PanelType::kF32:
      return 4;
    case PanelType::kF16:
    case PanelType::kBF16:
      return 2;
    case PanelType::kQ8_0:
      return 34;
    case PanelType::kQ4_0:
      return 18;
    case PanelType::kQ4_1:
      return 20;
    case PanelType::kQ5_0:
      return 22;
    case PanelType::kQ5_1:
      return 24;
    case PanelType::kQ4_K:
      return 144;
    case PanelType::kQ5_K:
      return 176;
    case PanelType::kQ6_K:
      return 210;
  }
  return 0;
}

void pack_panel(PanelType type, const std::byte* rows, size_t row_bytes, int n_rows, size_t k,
                std::byte* panel) {
  const auto n = static_cast<size_t>(n_rows);
  if (n < kPanelRows) std::memset(panel, 0, panel_bytes(type, k));  // whole panels are written everywhere
  if (type == PanelType::kF32) return pack_plain<float>(rows, row_bytes, n, k, panel);
  if (panel_block_size(type) == 1) return pack_plain<uint16_t>(rows, row_bytes, n, k, panel);
  const size_t n_blocks = k / static_cast<size_t>(panel_block_size(type));
  const size_t in_bytes = gguf_block_bytes(type), out_bytes = panel_block_bytes(type);
  for (size_t block = 0; block < n_blocks; ++block) {
    for (size_t row = 0; row < n; ++row) {
      pack_block(type, rows + row * row_bytes + block * in_bytes, row, panel + block * out_bytes);
    }
  }
}

void unpack_row(PanelType type, const std::byte* panel, int row, size_t k, float* values) {
  const auto r = static_cast<size_t>(row);
  const auto block_size = static_cast<size_t>(panel_block_size(type));
  for (size_t at = 0; at < k; ++at) {
    const std::byte* block = panel + at / block_size * panel_block_bytes(type);
    const int i = static_cast<int>(at % block_size), sub = i / 32, in_sub = i % 32;
    const Place in_group = place(row, in_sub);
    const int group = in_group.group, byte = in_group.byte;
    auto half = [&](size_t offset) { return f16_to_f32(half_at(block, offset + 2 * r)); };
    auto high_bit = [&](const std::byte* high) {
      return ((static_cast<uint8_t>(high[byte]) >> group) & 1) << 4;
    };
    switch (type) {
      case PanelType::kF32:
        std::memcpy(values + at, block + 4 * r, 4);
        break;
      case PanelType::kF16:
        values[at] = half(0);
        break;
      case PanelType::kBF16:
        values[at] = bf16_to_f32(half_at(block, 2 * r));
        break;
      case PanelType::kQ8_0:
        values[at] = half(0) * static_cast<float>(static_cast<int8_t>(block[32 + group * 64 + byte]));
        break;
      case PanelType::kQ4_0:
        values[at] = half(0) * static_cast<float>(get_nibble(block + 32, row, in_sub) - 8);
        break;
      case PanelType::kQ4_1:
        values[at] = half(0) * static_cast<float>(get_nibble(block + 64, row, in_sub)) + half(32);
        break;
      case PanelType::kQ5_0:
        values[at] =
            half(0) * static_cast<float>((get_nibble(block + 32, row, in_sub) | high_bit(block + 288)) - 16);
        break;
      case PanelType::kQ5_1:
        values[at] =
            half(0) * static_cast<float>(get_nibble(block + 64, row, in_sub) | high_bit(block + 320)) +
            half(32);
        break;
      case PanelType::kQ4_K:
      case PanelType::kQ5_K: {
        const std::byte* nibbles = block + 320;
        int q = get_nibble(nibbles + sub * 256, row, in_sub);
        if (type == PanelType::kQ5_K) q |= high_bit(nibbles + 2048 + sub * 64);
        const auto scale = static_cast<float>(byte_at(block, static_cast<size_t>(64 + sub * 32) + r));
        const auto min = static_cast<float>(byte_at(block, static_cast<size_t>(64 + sub * 32 + 16) + r));
        values[at] = half(0) * scale * static_cast<float>(q) - half(32) * min;
        break;
      }
      case PanelType::kQ6_K: {
        const std::byte* nibbles = block + 288;
        const int high = (byte_at(nibbles + 2048, static_cast<size_t>(sub * 128 + group / 4 * 64 + byte)) >>
                          (2 * (group % 4))) &
                         3;
        const int q = (get_nibble(nibbles + sub * 256, row, in_sub) | high << 4) - 32;
        const auto scale = static_cast<float>(static_cast<int8_t>(block[32 + i / 16 * 16 + row]));
        values[at] = half(0) * scale * static_cast<float>(q);
        break;
      }
    }
  }
}

}  // namespace frugal::llm
