#include "meter/sysfs.h"

#include <dirent.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>

#include "base/file.h"
#include "base/text.h"

namespace frugal::meter {

Result<std::string> read_line(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return io_error("open", path, errno);
  char buffer[4096];
  const ssize_t n = ::read(fd, buffer, sizeof buffer);
  const int error_number = errno;
  ::close(fd);
  if (n < 0) return io_error("read", path, error_number);
  std::string_view text(buffer, static_cast<size_t>(n));
  return std::string(trim(text.substr(0, text.find('\n'))));
}

Result<uint64_t> read_number(const std::string& path) {
  FRUGAL_TRY(const std::string line, read_line(path));
  uint64_t value = 0;
  const auto [end, error] = std::from_chars(line.data(), line.data() + line.size(), value);
  if (error != std::errc() || end != line.data() + line.size()) {
    return {ErrorCode::kCorrupt,
            strf("%s: '%s' is not a number", path.c_str(), utf8_sanitized(line).c_str())};
  }
  return value;
}

std::vector<std::string> list_directory(const std::string& path) {
  std::vector<std::string> names;
  DIR* directory = ::opendir(path.c_str());
  if (directory == nullptr) return names;
  while (const dirent* entry = ::readdir(directory)) {
    if (entry->d_name[0] != '.') names.emplace_back(entry->d_name);
  }
  ::closedir(directory);
  std::sort(names.begin(), names.end());
  return names;
}

}  // namespace frugal::meter
