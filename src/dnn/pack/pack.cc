#include "dnn/pack/pack.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "dnn/pack/picture.h"

namespace frugal::dnn {
namespace {

enum class Form : uint8_t { kPicture = 1, kWords = 2 };

Error corrupt(const char* what) { return {ErrorCode::kCorrupt, what}; }

uint32_t word_at(std::span<const std::byte> words, size_t i) {
  uint32_t word;
  std::memcpy(&word, words.data() + 4 * i, 4);
  return word;
}

// A word's exponent in the top byte, its sign at the bottom.
uint32_t turned(uint32_t word) { return std::rotl(word, 1); }
uint32_t turned_back(uint32_t word) { return std::rotr(word, 1); }

std::vector<std::byte> pack_any(std::span<const std::byte> words) {
  const size_t n = words.size() / 4;
  std::vector<uint8_t> there((n + 7) / 8), exponents(n), rest(3 * n + 1);
  size_t k = 0;
  for (size_t first = 0; first < n; first += 8) {
    uint32_t map = 0;
    for (size_t i = first; i < std::min(n, first + 8); ++i) {
      const uint32_t word = word_at(words, i), bits = turned(word);
      // Written always, kept when the word is not zero: half of them are, in no order that a branch could
      // learn.
      exponents[k] = static_cast<uint8_t>(bits >> 24);
      std::memcpy(rest.data() + 3 * k, &bits, 4);
      map |= (word != 0 ? 1u : 0u) << (i - first);
      k += word != 0;
    }
    there[first / 8] = static_cast<uint8_t>(map);
  }
  PackWriter writer;
  writer.number(static_cast<uint64_t>(Form::kWords), 1);
  writer.squeezed(there);
  writer.squeezed(std::span(exponents).first(k));
  writer.raw(std::span(rest).first(3 * k));
  return writer.take();
}

Status unpack_any(PackReader& reader, std::span<std::byte> words) {
  const size_t n = words.size() / 4;
  std::vector<uint8_t> there((n + 7) / 8);
  if (!reader.squeezed(there)) return corrupt("a packed tensor's map of zeros is damaged");
  size_t k = 0;
  for (const uint8_t byte : there) k += static_cast<size_t>(std::popcount(byte));
  if (k > n) return corrupt("a packed tensor has more values than it has places");
  std::vector<uint8_t> exponents(k + 1),
      values(3 * k + 4);  // so much that the place after the last can be read
  std::span<const std::byte> rest;
  if (!reader.squeezed(std::span(exponents).first(k)) || !reader.raw(3 * k, rest))
    return corrupt("a packed tensor's values are cut off");
  if (k > 0) std::memcpy(values.data(), rest.data(), rest.size());
  size_t at = 0;
  for (size_t i = 0; i < n; ++i) {
    const uint32_t is_there = there[i / 8] >> (i % 8) & 1u;  // no branch, as above
    uint32_t word = 0;
    std::memcpy(&word, values.data() + 3 * at, 4);
    word = turned_back((word & 0xFFFFFFu) | static_cast<uint32_t>(exponents[at]) << 24) & (0u - is_there);
    at += is_there;
    std::memcpy(words.data() + 4 * i, &word, 4);
  }
  // Bits beyond the last word would have been counted and not read.
  return at == k ? Status() : corrupt("a packed tensor has values beyond its end");
}

bool whole_planes(size_t n_bytes, Planes planes) {
  size_t size = 0;
  return n_bytes % 4 == 0 && n_bytes > 0 && !__builtin_mul_overflow(planes.rows, planes.columns, &size) &&
         size > 0 && n_bytes / 4 % size == 0;
}

}  // namespace

Planes planes_of(std::span<const int64_t> shape) {
  Planes planes;
  if (!shape.empty()) planes.columns = static_cast<size_t>(std::max<int64_t>(1, shape.back()));
  if (shape.size() > 1) planes.rows = static_cast<size_t>(std::max<int64_t>(1, shape[shape.size() - 2]));
  return planes;
}

std::vector<std::byte> pack_words(std::span<const std::byte> words, Planes planes) {
  if (!whole_planes(words.size(), planes)) return {};
  PackWriter writer;
  writer.number(static_cast<uint64_t>(Form::kPicture), 1);
  std::vector<std::byte> packed;
  if (pack_picture(words, planes, writer)) packed = writer.take();
  if (packed.empty() || packed.size() > words.size() / 2) {
    std::vector<std::byte> other = pack_any(words);
    if (packed.empty() || other.size() < packed.size()) packed = std::move(other);
  }
  if (packed.size() > words.size() - words.size() / 16) packed.clear();
  return packed;
}

Status unpack_words(std::span<const std::byte> packed, Planes planes, std::span<std::byte> words) {
  if (!whole_planes(words.size(), planes)) return corrupt("a packed tensor does not fill whole planes");
  PackReader reader(packed);
  uint64_t form = 0;
  if (!reader.number(1, form)) return corrupt("a packed tensor is empty");
  switch (static_cast<Form>(form)) {
    case Form::kPicture:
      FRUGAL_TRY_STATUS(unpack_picture(reader, planes, words));
      break;
    case Form::kWords:
      FRUGAL_TRY_STATUS(unpack_any(reader, words));
      break;
    default:
      return corrupt("a packed tensor is in a form that is not known here");
  }
  return reader.done() ? Status() : corrupt("a packed tensor has bytes after its end");
}

}  // namespace frugal::dnn
