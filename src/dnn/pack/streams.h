// Packed forms, written front to back and read so; runs of bytes through Zstandard (RFC 8878) where it helps.
#pragma once

#include <zstd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

namespace frugal::dnn {

class PackWriter {
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
    constexpr int kLevel = 1;  // noise and its like: nothing but its entropy is there to be found
    const size_t at = bytes_.size() + 8;
    bytes_.resize(at + ZSTD_compressBound(part.size()));
    const size_t n = ZSTD_compress(bytes_.data() + at, bytes_.size() - at, part.data(), part.size(), kLevel);
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

// Every function says false when the bytes end too early, or are no such form.
class PackReader {
 public:
  explicit PackReader(std::span<const std::byte> bytes) : left_(bytes) {}
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

}  // namespace frugal::dnn
