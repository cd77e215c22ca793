#include "dnn/link/turns.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

namespace frugal::dnn {

Result<std::shared_ptr<Turns>> Turns::open(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) return Error{ErrorCode::kIo, path + ": " + std::strerror(errno)};
  return std::shared_ptr<Turns>(new Turns(fd));
}

Turns::~Turns() { close(fd_); }

void Turns::lock() {
  mutex_.lock();
  while (flock(fd_, LOCK_EX) != 0 && errno == EINTR) {
  }
}

void Turns::unlock() {
  (void)flock(fd_, LOCK_UN);
  mutex_.unlock();
}

}  // namespace frugal::dnn
