// Buffer: zeroed, page-backed memory. The kernel hands out pages at first touch, so a large reservation costs
// only what is used of it.
#pragma once

#include <cstddef>
#include <span>

#include "frugal/result.h"

namespace frugal::llm {

// Small pages suit what is reserved and used here and there (scratch): with huge ones, a touch would cost 2
// MiB. Huge ones suit what is used whole or from its start on (weights, caches): fewer faults and walks.
enum class Pages { kSmall, kHuge };

// Movable. Aligned to a page; with huge pages to 2 MiB when larger than that.
class Buffer {
 public:
  // kNoMemory when the address space or the commit limit refuses.
  static Result<Buffer> allocate(size_t bytes, Pages pages = Pages::kSmall);

  Buffer() = default;
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  ~Buffer();

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  size_t size() const { return size_; }
  template <typename T>
  T* as() {
    return reinterpret_cast<T*>(data_);
  }
  template <typename T>
  const T* as() const {
    return reinterpret_cast<const T*>(data_);
  }

  // Of a buffer in huge pages: a stretch, not touched yet, that is used in part.
  void use_small_pages(size_t offset, size_t bytes);

  // Gives the pages wholly inside [offset, offset + bytes) back; they read as zeros afterwards.
  void discard(size_t offset, size_t bytes);

 private:
  std::byte* data_ = nullptr;
  size_t size_ = 0;
  void* mapping_ = nullptr;
  size_t mapping_size_ = 0;
};

}  // namespace frugal::llm
