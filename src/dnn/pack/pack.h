// Lossless packing of a tensor's 32-bit words for a slow link: the same bits come out. Two forms, both of
// this project; what is left to an entropy coder goes through Zstandard (RFC 8878). docs/formats/dnn-wire.md.
//
// A picture's planes hold at most 256 values each, however they were scaled: a table of them, and for every
// pixel the difference between its rank and that of the pixel above. Anything else: a bit for each word that
// is not zero (ReLU leaves half of them zero), the exponents of those, and their other 24 bits as they are.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "frugal/result.h"

namespace frugal::dnn {

// Rows and columns of the planes that the words lie in, one after the other: the last two axes of a tensor.
struct Planes {
  size_t rows = 1, columns = 1;
};

// Planes of a tensor of this shape.
Planes planes_of(std::span<const int64_t> shape);

// `words`: 32-bit values. Empty when packing saves less than a sixteenth, or when they do not fill whole
// planes.
std::vector<std::byte> pack_words(std::span<const std::byte> words, Planes planes);

// Fills `words`, whose size is the unpacked one. kCorrupt: `packed` is not what pack_words gives for words of
// that size and these planes, or is damaged.
Status unpack_words(std::span<const std::byte> packed, Planes planes, std::span<std::byte> words);

}  // namespace frugal::dnn
