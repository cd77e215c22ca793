#include "llm/tensor/buffer.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <utility>

#include <sys/mman.h>
#include <unistd.h>

#include "base/text.h"

namespace frugal::llm {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

}  // namespace

Result<Buffer> Buffer::allocate(size_t bytes, Pages pages) {
  Buffer buffer;
  if (bytes == 0) return buffer;
  const size_t alignment = pages == Pages::kHuge && bytes >= kHugePage ? kHugePage : 0;
  if (bytes > std::numeric_limits<size_t>::max() / 2) {
    return Error{ErrorCode::kNoMemory, "a buffer larger than the address space was asked for"};
  }
  buffer.mapping_size_ = bytes + alignment;
  void* mapping = ::mmap(nullptr, buffer.mapping_size_, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) {
    buffer.mapping_size_ = 0;
    return Error{ErrorCode::kNoMemory,
                 strf("no memory for a buffer of %s; use a smaller model, context or batch",
                      human_bytes(static_cast<double>(bytes)).c_str())};
  }
  buffer.mapping_ = mapping;
  auto address = reinterpret_cast<uintptr_t>(mapping);
  if (alignment != 0) {
    address = (address + alignment - 1) / alignment * alignment;
    ::madvise(reinterpret_cast<void*>(address), bytes, MADV_HUGEPAGE);
  } else {
    ::madvise(mapping, buffer.mapping_size_, MADV_NOHUGEPAGE);
  }
  buffer.data_ = reinterpret_cast<std::byte*>(address);
  buffer.size_ = bytes;
  return buffer;
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      mapping_(std::exchange(other.mapping_, nullptr)),
      mapping_size_(std::exchange(other.mapping_size_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(mapping_, other.mapping_);
  std::swap(mapping_size_, other.mapping_size_);
  return *this;
}

Buffer::~Buffer() {
  if (mapping_ != nullptr) ::munmap(mapping_, mapping_size_);
}

void Buffer::use_small_pages(size_t offset, size_t bytes) {
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const size_t begin = offset / page * page, end = std::min((offset + bytes + page - 1) / page * page, size_);
  if (end > begin) ::madvise(data_ + begin, end - begin, MADV_NOHUGEPAGE);
}

void Buffer::discard(size_t offset, size_t bytes) {
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const size_t begin = (offset + page - 1) / page * page, end = (offset + bytes) / page * page;
  if (end > begin && end <= size_) ::madvise(data_ + begin, end - begin, MADV_DONTNEED);
}

}  // namespace frugal::llm
