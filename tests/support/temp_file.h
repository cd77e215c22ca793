// A file that is gone at the end of the scope.
#pragma once

#include <atomic>
#include <cstdio>
#include <fstream>
#include <string>
#include <string_view>

#include <gtest/gtest.h>
#include <unistd.h>

namespace frugal::test {

class TempFile {
 public:
  explicit TempFile(std::string_view contents, const std::string& suffix = ".gguf") {
    static std::atomic<int> n_made = 0;
    path_ =
        testing::TempDir() + "frugal_" + std::to_string(::getpid()) + "_" + std::to_string(n_made++) + suffix;
    std::ofstream(path_, std::ios::binary) << contents;
  }
  ~TempFile() { std::remove(path_.c_str()); }
  TempFile(const TempFile&) = delete;
  TempFile& operator=(const TempFile&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace frugal::test
