// Files: read-only mappings, whole reads, and writes that replace a file in one step or leave the old one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "frugal/result.h"

namespace frugal {

// A file mapped read-only. Movable; unmaps at destruction. A file that shrinks while mapped raises SIGBUS on
// access, as every mapping does: model files must not be edited in place while in use.
class MappedFile {
 public:
  // kNotFound, kPermission, kIo; an empty file maps to an empty span.
  static Result<MappedFile> open(const std::string& path);

  MappedFile() = default;
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {static_cast<const std::byte*>(data_), size_}; }
  const std::string& path() const { return path_; }

  // Tells the kernel that [offset, offset + size) is not needed again: drops its pages from this process.
  void release(size_t offset, size_t size) const;
  // Asks the kernel to read the range ahead.
  void prefetch(size_t offset, size_t size) const;

 private:
  void* data_ = nullptr;
  size_t size_ = 0;
  std::string path_;
};

// The whole file. Refuses more than `max_bytes` with kOutOfRange.
Result<std::string> read_file(const std::string& path, size_t max_bytes = size_t{1} << 30);

// Writes `path`.tmp.<pid>, syncs it, and renames it over `path`: a crash or full disk leaves the old file
// whole.
Status write_file_atomically(const std::string& path, std::string_view contents);

// The same in pieces, for files too large to hold. Uncommitted at destruction: removed.
class AtomicFileWriter {
 public:
  static Result<AtomicFileWriter> create(const std::string& path);
  AtomicFileWriter(AtomicFileWriter&& other) noexcept;
  AtomicFileWriter& operator=(AtomicFileWriter&&) = delete;
  ~AtomicFileWriter();

  Status write(const void* data, size_t size);
  Status commit();

 private:
  AtomicFileWriter() = default;
  int fd_ = -1;
  std::string path_, temporary_;
};

// The error of the last failed system call on `path`, with errno put in words.
Error io_error(std::string_view action, const std::string& path, int error_number);

}  // namespace frugal
