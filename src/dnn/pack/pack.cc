#include "dnn/pack/pack.h"

#include <zstd.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

namespace frugal::dnn {
namespace {

enum class Form : uint8_t { kPicture = 1, kWords = 2 };

constexpr int kZstdLevel = 1;  // the exponents of noise: nothing but their entropy is there to be found
constexpr size_t kMaxValues = 256;

Error corrupt(const char* what) { return {ErrorCode::kCorrupt, what}; }

uint32_t word_at(std::span<const std::byte> words, size_t i) {
  uint32_t word;
  std::memcpy(&word, words.data() + 4 * i, 4);
  return word;
}

// Floats as integers of the same order.
uint32_t ordered(uint32_t word) { return (word >> 31) != 0 ? ~word : word | 0x80000000u; }

// Writes a packed form front to back; runs through Zstandard where that helps.
class Writer {
 public:
  void number(uint64_t value, size_t n_bytes) {
    for (size_t i = 0; i < n_bytes; ++i) bytes_.push_back(static_cast<std::byte>(value >> (8 * i)));
  }
  void raw(std::span<const uint8_t> part) {
    const auto bytes = std::as_bytes(part);
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
  }
  // The packed size, then the bytes; size 0: they follow as they are.
  void squeezed(std::span<const uint8_t> part) {
    const size_t at = bytes_.size() + 8;
    bytes_.resize(at + ZSTD_compressBound(part.size()));
    const size_t n =
        ZSTD_compress(bytes_.data() + at, bytes_.size() - at, part.data(), part.size(), kZstdLevel);
    const bool helps = ZSTD_isError(n) == 0 && n < part.size();
    bytes_.resize(at + (helps ? n : 0));
    const uint64_t size = helps ? n : 0;
    std::memcpy(bytes_.data() + at - 8, &size, 8);
    if (!helps) raw(part);
  }
  std::vector<std::byte> take() { return std::move(bytes_); }

 private:
  std::vector<std::byte> bytes_;
};

class Reader {
 public:
  explicit Reader(std::span<const std::byte> bytes) : left_(bytes) {}
  bool number(size_t n_bytes, uint64_t& value) {
    if (left_.size() < n_bytes) return false;
    value = 0;
    for (size_t i = 0; i < n_bytes; ++i) value |= std::to_integer<uint64_t>(left_[i]) << (8 * i);
    left_ = left_.subspan(n_bytes);
    return true;
  }
  bool raw(size_t n, std::span<const std::byte>& part) {
    if (left_.size() < n) return false;
    part = left_.first(n);
    left_ = left_.subspan(n);
    return true;
  }
  // `part` has the unpacked size.
  bool squeezed(std::span<uint8_t> part) {
    uint64_t size = 0;
    if (!number(8, size)) return false;
    std::span<const std::byte> from;
    if (size > left_.size() || !raw(size == 0 ? part.size() : size, from)) return false;
    if (size == 0) {
      if (!part.empty()) std::memcpy(part.data(), from.data(), part.size());
      return true;
    }
    const size_t n = ZSTD_decompress(part.data(), part.size(), from.data(), from.size());
    return ZSTD_isError(n) == 0 && n == part.size();
  }
  bool done() const { return left_.empty(); }

 private:
  std::span<const std::byte> left_;
};

// The distinct words of one plane in the order of their values, and the rank of each word. False: too many.
class Palette {
 public:
  bool read(std::span<const std::byte> plane, std::span<uint8_t> ranks) {
    slots_.fill({});
    values_.clear();
    const size_t n = plane.size() / 4;
    for (size_t i = 0; i < n; ++i) {
      const int at = find(word_at(plane, i));
      if (at < 0) return false;
      ranks[i] = static_cast<uint8_t>(at);
    }
    std::array<uint8_t, kMaxValues> by_value{}, rank{};
    for (size_t i = 0; i < values_.size(); ++i) by_value[i] = static_cast<uint8_t>(i);
    std::sort(by_value.begin(), by_value.begin() + static_cast<std::ptrdiff_t>(values_.size()),
              [&](uint8_t a, uint8_t b) { return ordered(values_[a]) < ordered(values_[b]); });
    sorted_.clear();
    for (size_t i = 0; i < values_.size(); ++i) {
      rank[by_value[i]] = static_cast<uint8_t>(i);
      sorted_.push_back(values_[by_value[i]]);
    }
    for (uint8_t& r : ranks) r = rank[r];
    return true;
  }
  const std::vector<uint32_t>& values() const { return sorted_; }

 private:
  struct Slot {
    uint32_t word = 0;
    int32_t index = -1;  // in order of first sight
  };
  // -1: a 257th word.
  int find(uint32_t word) {
    size_t at = ((word ^ word >> 15) * 2654435761u) >> 21;
    while (slots_[at].index >= 0 && slots_[at].word != word) at = (at + 1) % slots_.size();
    if (slots_[at].index < 0) {
      if (values_.size() == kMaxValues) return -1;
      slots_[at] = {word, static_cast<int32_t>(values_.size())};
      values_.push_back(word);
    }
    return slots_[at].index;
  }
  std::array<Slot, 2048> slots_;
  std::vector<uint32_t> values_, sorted_;
};

// Empty: not a picture.
std::vector<std::byte> pack_picture(std::span<const std::byte> words, Planes planes) {
  const size_t size = planes.rows * planes.columns, n_planes = words.size() / 4 / size;
  Writer writer;
  writer.number(static_cast<uint64_t>(Form::kPicture), 1);
  std::vector<uint8_t> ranks(size), residuals(words.size() / 4);
  Palette palette;
  for (size_t p = 0; p < n_planes; ++p) {
    if (!palette.read(words.subspan(4 * p * size, 4 * size), ranks)) return {};
    writer.number(palette.values().size(), 2);
    for (const uint32_t value : palette.values()) writer.number(value, 4);
    uint8_t* to = residuals.data() + p * size;
    std::copy_n(ranks.begin(), planes.columns, to);
    for (size_t i = planes.columns; i < size; ++i)
      to[i] = static_cast<uint8_t>(ranks[i] - ranks[i - planes.columns]);
  }
  writer.squeezed(residuals);
  return writer.take();
}

Status unpack_picture(Reader& reader, Planes planes, std::span<std::byte> words) {
  const size_t size = planes.rows * planes.columns, n_planes = words.size() / 4 / size;
  std::vector<std::array<uint32_t, kMaxValues>> tables(n_planes);
  std::vector<size_t> n_values(n_planes);
  for (size_t p = 0; p < n_planes; ++p) {
    uint64_t n = 0;
    if (!reader.number(2, n) || n == 0 || n > kMaxValues)
      return corrupt("a packed picture's table cannot be");
    n_values[p] = n;
    for (uint64_t i = 0; i < n; ++i) {
      uint64_t value = 0;
      if (!reader.number(4, value)) return corrupt("a packed picture's table is cut off");
      tables[p][i] = static_cast<uint32_t>(value);
    }
  }
  std::vector<uint8_t> ranks(words.size() / 4);
  if (!reader.squeezed(ranks)) return corrupt("a packed picture is damaged");
  for (size_t p = 0; p < n_planes; ++p) {
    uint8_t* plane = ranks.data() + p * size;
    for (size_t r = 1; r < planes.rows; ++r) {
      uint8_t* row = plane + r * planes.columns;
      const uint8_t* above = row - planes.columns;
      for (size_t c = 0; c < planes.columns; ++c) row[c] = static_cast<uint8_t>(row[c] + above[c]);
    }
    std::byte* to = words.data() + 4 * p * size;
    uint8_t largest = 0;
    for (size_t i = 0; i < size; ++i) {
      largest = std::max(largest, plane[i]);
      std::memcpy(to + 4 * i, &tables[p][plane[i]], 4);
    }
    if (largest >= n_values[p]) return corrupt("a packed picture names a value that is not in its table");
  }
  return {};
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
  Writer writer;
  writer.number(static_cast<uint64_t>(Form::kWords), 1);
  writer.squeezed(there);
  writer.squeezed(std::span(exponents).first(k));
  writer.raw(std::span(rest).first(3 * k));
  return writer.take();
}

Status unpack_any(Reader& reader, std::span<std::byte> words) {
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
  std::vector<std::byte> packed = pack_picture(words, planes);
  if (packed.empty() || packed.size() > words.size() / 2) {
    std::vector<std::byte> other = pack_any(words);
    if (packed.empty() || other.size() < packed.size()) packed = std::move(other);
  }
  if (packed.size() > words.size() - words.size() / 16) packed.clear();
  return packed;
}

Status unpack_words(std::span<const std::byte> packed, Planes planes, std::span<std::byte> words) {
  if (!whole_planes(words.size(), planes)) return corrupt("a packed tensor does not fill whole planes");
  Reader reader(packed);
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
