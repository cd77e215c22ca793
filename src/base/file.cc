#include "base/file.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/text.h"

namespace frugal {
namespace {

// Closes a descriptor at the end of the scope.
struct ScopedFd {
  int fd;
  ~ScopedFd() {
    if (fd >= 0) ::close(fd);
  }
};

}  // namespace

Error io_error(std::string_view action, const std::string& path, int error_number) {
  ErrorCode code = ErrorCode::kIo;
  const char* hint = "";
  if (error_number == ENOENT) {
    code = ErrorCode::kNotFound;
    hint = "; check the path";
  } else if (error_number == EACCES || error_number == EPERM) {
    code = ErrorCode::kPermission;
  } else if (error_number == ENOSPC || error_number == EDQUOT) {
    hint = "; free some disk space and try again";
  } else if (error_number == ENOMEM) {
    code = ErrorCode::kNoMemory;
  }
  return {code, strf("cannot %.*s '%s': %s%s", static_cast<int>(action.size()), action.data(), path.c_str(),
                     std::strerror(error_number), hint)};
}

Result<MappedFile> MappedFile::open(const std::string& path) {
  ScopedFd file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (file.fd < 0) return io_error("open", path, errno);
  struct stat info;
  if (::fstat(file.fd, &info) != 0) return io_error("stat", path, errno);
  if (!S_ISREG(info.st_mode)) {
    return Error{ErrorCode::kInvalidArgument, strf("'%s' is not a regular file", path.c_str())};
  }
  MappedFile mapped;
  mapped.path_ = path;
  mapped.size_ = static_cast<size_t>(info.st_size);
  if (mapped.size_ > 0) {
    void* data = ::mmap(nullptr, mapped.size_, PROT_READ, MAP_SHARED, file.fd, 0);
    if (data == MAP_FAILED) return io_error("map", path, errno);
    mapped.data_ = data;
  }
  return mapped;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)),
      path_(std::move(other.path_)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(path_, other.path_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(data_, size_);
}

void MappedFile::release(size_t offset, size_t size) const {
  // Whole pages inside the range only: its neighbours may still be read.
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const size_t begin = (offset + page - 1) / page * page;
  const size_t end = std::min(offset + size, size_) / page * page;
  if (data_ != nullptr && end > begin) {
    ::madvise(static_cast<char*>(data_) + begin, end - begin, MADV_DONTNEED);
  }
}

void MappedFile::prefetch(size_t offset, size_t size) const {
  const auto page = static_cast<size_t>(::sysconf(_SC_PAGESIZE));
  const size_t begin = offset / page * page;
  if (data_ != nullptr && offset + size <= size_) {
    ::madvise(static_cast<char*>(data_) + begin, offset + size - begin, MADV_WILLNEED);
  }
}

Result<std::string> read_file(const std::string& path, size_t max_bytes) {
  ScopedFd file{::open(path.c_str(), O_RDONLY | O_CLOEXEC)};
  if (file.fd < 0) return io_error("open", path, errno);
  std::string contents;
  char buffer[1 << 16];
  while (true) {
    const ssize_t got = ::read(file.fd, buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return io_error("read", path, errno);
    if (got == 0) return contents;
    if (contents.size() + static_cast<size_t>(got) > max_bytes) {
      return Error{ErrorCode::kOutOfRange,
                   strf("'%s' is larger than the %s that can be read here", path.c_str(),
                        human_bytes(static_cast<double>(max_bytes)).c_str())};
    }
    contents.append(buffer, static_cast<size_t>(got));
  }
}

Result<AtomicFileWriter> AtomicFileWriter::create(const std::string& path) {
  AtomicFileWriter writer;
  writer.path_ = path;
  writer.temporary_ = strf("%s.tmp.%d", path.c_str(), static_cast<int>(::getpid()));
  writer.fd_ = ::open(writer.temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (writer.fd_ < 0) return io_error("create", writer.temporary_, errno);
  return writer;
}

AtomicFileWriter::AtomicFileWriter(AtomicFileWriter&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)),
      path_(std::move(other.path_)),
      temporary_(std::move(other.temporary_)) {}

AtomicFileWriter::~AtomicFileWriter() {
  if (fd_ < 0) return;
  ::close(fd_);
  ::unlink(temporary_.c_str());
}

Status AtomicFileWriter::write(const void* data, size_t size) {
  const char* next = static_cast<const char*>(data);
  while (size > 0) {
    const ssize_t put = ::write(fd_, next, size);
    if (put < 0 && errno == EINTR) continue;
    if (put < 0) return io_error("write", temporary_, errno);
    next += put;
    size -= static_cast<size_t>(put);
  }
  return {};
}

Status AtomicFileWriter::commit() {
  if (::fsync(fd_) != 0) return io_error("sync", temporary_, errno);
  const int fd = std::exchange(fd_, -1);
  if (::close(fd) != 0 || ::rename(temporary_.c_str(), path_.c_str()) != 0) {
    const int error_number = errno;
    ::unlink(temporary_.c_str());
    return io_error("replace", path_, error_number);
  }
  return {};
}

Status write_file_atomically(const std::string& path, std::string_view contents) {
  FRUGAL_TRY(AtomicFileWriter writer, AtomicFileWriter::create(path));
  FRUGAL_TRY_STATUS(writer.write(contents.data(), contents.size()));
  return writer.commit();
}

}  // namespace frugal
