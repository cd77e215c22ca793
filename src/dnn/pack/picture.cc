#include "dnn/pack/picture.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

namespace frugal::dnn {
namespace {

constexpr size_t kMaxValues = 256;

Error corrupt(const char* what) { return {ErrorCode::kCorrupt, what}; }

// Floats as integers of the same order, and back.
uint32_t ordered(uint32_t word) { return (word >> 31) != 0 ? ~word : word | 0x80000000u; }
uint32_t word_of(uint32_t ordered) { return (ordered >> 31) != 0 ? ordered & 0x7FFFFFFFu : ~ordered; }

// The distinct words of one plane in the order of their values, and the rank of each word. They are found by
// the bucket that they fall into, of many between the smallest and the largest: the 256 levels of a picture
// lie evenly and have one each.
class Palette {
 public:
  // False: more than 256 words, two in one bucket, or one that is not finite.
  bool read(std::span<const std::byte> plane, std::span<uint8_t> ranks) {
    const size_t n = ranks.size();
    words_.resize(n);
    buckets_.resize(n);
    std::memcpy(words_.data(), plane.data(), 4 * n);
    // Plain pointers and words: bytes may alias anything, and would have these loops read it all again.
    const uint32_t* const words = words_.data();
    uint16_t* const buckets = buckets_.data();
    // As integers: these have a smallest and a largest whatever the order, so the loop takes several at once.
    int32_t least = std::numeric_limits<int32_t>::max(), most = std::numeric_limits<int32_t>::min();
    for (size_t i = 0; i < n; ++i) {
      const auto bits = static_cast<int32_t>(words[i]);
      const int32_t value = bits ^ (bits >> 31 & 0x7FFFFFFF);
      least = std::min(least, value);
      most = std::max(most, value);
    }
    const auto float_of = [](int32_t value) {
      return std::bit_cast<float>(value ^ (value >> 31 & 0x7FFFFFFF));
    };
    const float low = float_of(least), high = float_of(most);
    if (!std::isfinite(low) || !std::isfinite(high) || !std::isfinite(high - low)) return false;
    const float scale = high > low ? static_cast<float>(kBuckets - 1) / (high - low) : 0;
    if (!std::isfinite(scale)) return false;
    for (size_t i = 0; i < n; ++i)
      buckets[i] =
          static_cast<uint16_t>(static_cast<int32_t>((std::bit_cast<float>(words[i]) - low) * scale));
    // Any word of a bucket stands for it, and all have to be that one. kNone is not finite: no word of ours.
    word_in_.fill(kNone);
    for (size_t i = 0; i < n; ++i) word_in_[buckets[i]] = words[i];
    std::array<uint8_t, kBuckets> rank_of{};
    values_.clear();
    for (size_t b = 0; b < kBuckets; ++b) {
      rank_of[b] = static_cast<uint8_t>(values_.size());
      if (word_in_[b] != kNone) values_.push_back(word_in_[b]);
    }
    if (values_.size() > kMaxValues) return false;
    uint32_t n_other = 0;
    uint8_t* const to = ranks.data();
    for (size_t i = 0; i < n; ++i) {
      n_other += word_in_[buckets[i]] != words[i];
      to[i] = rank_of[buckets[i]];
    }
    return n_other == 0;
  }
  const std::vector<uint32_t>& values() const { return values_; }

 private:
  static constexpr size_t kBuckets = 1024;
  static constexpr uint32_t kNone = 0xFFFFFFFF;
  std::vector<uint32_t> words_, values_;
  std::vector<uint16_t> buckets_;
  std::array<uint32_t, kBuckets> word_in_;
};

// A pixel is predicted from four of its neighbours: the one above, and these parts, in 1/256, of what the
// left, the upper left and the upper right one differ from that. Beyond an edge is what lies at it.
struct Predictor {
  int32_t left = 0, upper_left = 0, upper_right = 0;
};
constexpr int32_t kOne = 256, kLargestWeight = 4 * kOne;

// A row of ranks with what lies beyond both its ends.
void widen(std::span<const uint8_t> row, std::vector<int32_t>& wide) {
  wide[0] = row.front();
  std::copy(row.begin(), row.end(), wide.begin() + 1);
  wide[row.size() + 1] = row.back();
}

// Least squares over some of the rows.
Predictor fit(std::span<const uint8_t> ranks, Planes planes) {
  constexpr size_t kEvery = 10, kBlock = 4096;  // columns whose sums fit 32 bits
  std::array<double, 9> sums{};                 // of products: 00 01 02 11 12 22, then with the pixel
  std::vector<int32_t> above(planes.columns + 2), here(planes.columns + 2);
  for (size_t r = 1; r < planes.rows; r += kEvery) {
    widen(ranks.subspan((r - 1) * planes.columns, planes.columns), above);
    widen(ranks.subspan(r * planes.columns, planes.columns), here);
    for (size_t first = 2; first <= planes.columns; first += kBlock) {
      std::array<int32_t, 9> s{};
      for (size_t c = first; c < std::min(first + kBlock, planes.columns + 1); ++c) {
        const int32_t n = above[c], x = here[c] - n, a = here[c - 1] - n, b = above[c - 1] - n,
                      d = above[c + 1] - n;
        s[0] += a * a, s[1] += a * b, s[2] += a * d, s[3] += b * b, s[4] += b * d, s[5] += d * d;
        s[6] += a * x, s[7] += b * x, s[8] += d * x;
      }
      for (size_t i = 0; i < s.size(); ++i) sums[i] += s[i];
    }
  }
  // Three equations by Cramer's rule; 1 on the diagonal for planes of one colour.
  const double a = sums[0] + 1, b = sums[1], c = sums[2], d = sums[3] + 1, e = sums[4], f = sums[5] + 1;
  const double x = sums[6], y = sums[7], z = sums[8];
  const double whole = a * (d * f - e * e) - b * (b * f - c * e) + c * (b * e - c * d);
  const auto weight = [&](double part) {
    const double w = std::round(kOne * part / whole);
    return w == w ? static_cast<int32_t>(std::clamp<double>(w, -kLargestWeight, kLargestWeight)) : 0;
  };
  return {weight(x * (d * f - e * e) - b * (y * f - e * z) + c * (y * e - d * z)),
          weight(a * (y * f - e * z) - x * (b * f - c * e) + c * (b * z - c * y)),
          weight(a * (d * z - e * y) - b * (b * z - c * y) + x * (b * e - c * d))};
}

// What each pixel is more than predicted, modulo 256; in the first row: than its left neighbour.
void subtract(std::span<const uint8_t> ranks, Planes planes, const Predictor& by, uint8_t* residuals) {
  std::vector<int32_t> above(planes.columns + 2), here(planes.columns + 2);
  residuals[0] = ranks[0];
  for (size_t c = 1; c < planes.columns; ++c) residuals[c] = static_cast<uint8_t>(ranks[c] - ranks[c - 1]);
  for (size_t r = 1; r < planes.rows; ++r) {
    widen(ranks.subspan((r - 1) * planes.columns, planes.columns), above);
    widen(ranks.subspan(r * planes.columns, planes.columns), here);
    here[0] = above[0];
    uint8_t* to = residuals + r * planes.columns;
    for (size_t c = 1; c <= planes.columns; ++c) {
      const int32_t n = above[c], more = by.left * (here[c - 1] - n) + by.upper_left * (above[c - 1] - n) +
                                         by.upper_right * (above[c + 1] - n) + kOne / 2;
      to[c - 1] = static_cast<uint8_t>(here[c] - n - (more >> 8));
    }
  }
}

// The way back, in place, for some planes side by side: a pixel waits for its left neighbour, a plane for no
// other.
template <size_t kSideBySide>
void add(uint8_t* planes_begin, Planes planes, const Predictor* by) {
  const size_t size = planes.rows * planes.columns;
  std::vector<int32_t> above(planes.columns + 2);
  std::array<std::vector<int32_t>, kSideBySide> known;  // 256 times the prediction, but for the left's part
  for (size_t p = 0; p < kSideBySide; ++p) {
    uint8_t* row = planes_begin + p * size;
    for (size_t c = 1; c < planes.columns; ++c) row[c] = static_cast<uint8_t>(row[c] + row[c - 1]);
    known[p].resize(planes.columns);
  }
  for (size_t r = 1; r < planes.rows; ++r) {
    std::array<int32_t, kSideBySide> left;
    std::array<uint8_t*, kSideBySide> row;
    for (size_t p = 0; p < kSideBySide; ++p) {
      row[p] = planes_begin + p * size + r * planes.columns;
      widen({row[p] - planes.columns, planes.columns}, above);
      left[p] = above[0];
      for (size_t c = 1; c <= planes.columns; ++c) {
        const int32_t n = above[c];
        known[p][c - 1] = kOne * n - by[p].left * n + by[p].upper_left * (above[c - 1] - n) +
                          by[p].upper_right * (above[c + 1] - n) + kOne / 2;
      }
    }
    for (size_t c = 0; c < planes.columns; ++c) {
      for (size_t p = 0; p < kSideBySide; ++p) {
        left[p] = (((known[p][c] + by[p].left * left[p]) >> 8) + row[p][c]) & 255;
        row[p][c] = static_cast<uint8_t>(left[p]);
      }
    }
  }
}

// How the steps between rising numbers change, as numbers of a few bits: nearly always one byte.
void write_steps(const std::vector<uint32_t>& words, std::vector<uint8_t>& to) {
  uint32_t last = 0, step = 0;
  for (const uint32_t word : words) {
    const uint32_t next = ordered(word) - last, change = next - step;
    uint32_t folded = change << 1 ^ (0u - (change >> 31));  // sign in the lowest bit
    for (; folded >= 128; folded >>= 7) to.push_back(static_cast<uint8_t>(folded | 128));
    to.push_back(static_cast<uint8_t>(folded));
    last += next;
    step = next;
  }
}

bool read_steps(std::span<const uint8_t>& from, std::span<uint32_t> words) {
  uint32_t last = 0, step = 0;
  for (uint32_t& word : words) {
    uint32_t folded = 0;
    for (int shift = 0;; shift += 7) {
      if (from.empty() || shift > 28) return false;
      const uint8_t byte = from.front();
      from = from.subspan(1);
      folded |= static_cast<uint32_t>(byte & 127) << shift;
      if (byte < 128) break;
    }
    step += folded >> 1 ^ (0u - (folded & 1));
    last += step;
    word = word_of(last);
  }
  return true;
}

}  // namespace

bool pack_picture(std::span<const std::byte> words, Planes planes, PackWriter& writer) {
  const size_t size = planes.rows * planes.columns, n_planes = words.size() / 4 / size;
  std::vector<uint8_t> ranks(size), residuals(words.size() / 4), tables;
  Palette palette;
  for (size_t p = 0; p < n_planes; ++p) {
    if (!palette.read(words.subspan(4 * p * size, 4 * size), ranks)) return false;
    const Predictor by = fit(ranks, planes);
    subtract(ranks, planes, by, residuals.data() + p * size);
    writer.number(palette.values().size(), 2);
    for (const int32_t weight : {by.left, by.upper_left, by.upper_right})
      writer.number(static_cast<uint16_t>(weight), 2);
    write_steps(palette.values(), tables);
  }
  writer.number(tables.size(), 4);
  writer.squeezed(tables);
  writer.squeezed(residuals);
  return true;
}

Status unpack_picture(PackReader& reader, Planes planes, std::span<std::byte> words) {
  const size_t size = planes.rows * planes.columns, n_planes = words.size() / 4 / size;
  std::vector<std::array<uint32_t, kMaxValues>> tables(n_planes);
  std::vector<Predictor> predictors(n_planes);
  std::vector<size_t> n_values(n_planes);
  for (size_t p = 0; p < n_planes; ++p) {
    uint64_t n = 0;
    if (!reader.number(2, n) || n == 0 || n > kMaxValues)
      return corrupt("a packed picture's table cannot be");
    n_values[p] = n;
    for (int32_t* weight : {&predictors[p].left, &predictors[p].upper_left, &predictors[p].upper_right}) {
      uint64_t bits = 0;
      if (!reader.number(2, bits)) return corrupt("a packed picture is cut off");
      *weight = static_cast<int16_t>(bits);
    }
  }
  uint64_t n_bytes = 0;
  if (!reader.number(4, n_bytes) || n_bytes > 5 * kMaxValues * n_planes)
    return corrupt("a packed picture's table cannot be");
  std::vector<uint8_t> steps(n_bytes), ranks(words.size() / 4);
  if (!reader.squeezed(steps) || !reader.squeezed(ranks)) return corrupt("a packed picture is damaged");
  std::span<const uint8_t> left = steps;
  for (size_t p = 0; p < n_planes; ++p) {
    if (!read_steps(left, std::span(tables[p]).first(n_values[p])))
      return corrupt("a packed picture's table is cut off");
  }
  if (!left.empty()) return corrupt("a packed picture's table has more than its values");
  for (size_t p = 0; p < n_planes;) {
    constexpr size_t kColours = 3;
    const size_t n = n_planes - p >= kColours ? kColours : 1;
    (n == kColours ? add<kColours> : add<1>)(ranks.data() + p * size, planes, predictors.data() + p);
    p += n;
  }
  for (size_t p = 0; p < n_planes; ++p) {
    const uint8_t* plane = ranks.data() + p * size;
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

}  // namespace frugal::dnn
