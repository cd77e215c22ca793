#include "base/file.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <string>
#include <utility>

#include <sys/resource.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/hash.h"

namespace frugal {
namespace {

namespace fs = std::filesystem;

class File : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("frugal-file-test." + std::to_string(::getpid()));
    fs::create_directory(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  std::string path(const char* name) const { return folder_ / name; }
  fs::path folder_;
};

TEST_F(File, MapsWhatWasWritten) {
  const std::string text = "frugal\n" + std::string(100000, 'x');
  ASSERT_TRUE(write_file_atomically(path("a"), text).ok());
  auto mapped = MappedFile::open(path("a"));
  ASSERT_TRUE(mapped.ok());
  MappedFile moved = std::move(*mapped);
  ASSERT_EQ(moved.bytes().size(), text.size());
  moved.prefetch(0, text.size());
  moved.release(10, text.size() - 10);  // the pages come back from the file when they are read again
  EXPECT_EQ(std::memcmp(moved.bytes().data(), text.data(), text.size()), 0);
  auto whole = read_file(path("a"));
  ASSERT_TRUE(whole.ok());
  EXPECT_EQ(*whole, text);
}

TEST_F(File, EmptyFileMapsToEmptySpan) {
  ASSERT_TRUE(write_file_atomically(path("empty"), "").ok());
  auto mapped = MappedFile::open(path("empty"));
  ASSERT_TRUE(mapped.ok());
  EXPECT_TRUE(mapped->bytes().empty());
}

TEST_F(File, SaysWhatIsWrongWithAPath) {
  auto missing = MappedFile::open(path("missing"));
  ASSERT_FALSE(missing.ok());
  EXPECT_EQ(missing.error().code, ErrorCode::kNotFound);
  EXPECT_NE(missing.error().message.find(path("missing")), std::string::npos);
  auto folder = MappedFile::open(folder_.string());
  ASSERT_FALSE(folder.ok());
  EXPECT_EQ(folder.error().code, ErrorCode::kInvalidArgument);
  EXPECT_EQ(read_file(path("missing")).error().code, ErrorCode::kNotFound);
  EXPECT_EQ(write_file_atomically(path("no/such/folder"), "x").error().code, ErrorCode::kNotFound);
  EXPECT_EQ(io_error("open", "x", EACCES).code, ErrorCode::kPermission);
  EXPECT_NE(io_error("write", "x", ENOSPC).message.find("free some disk space"), std::string::npos);
}

TEST_F(File, RefusesMoreThanTheLimit) {
  ASSERT_TRUE(write_file_atomically(path("ten"), "0123456789").ok());
  EXPECT_TRUE(read_file(path("ten"), 10).ok());
  EXPECT_EQ(read_file(path("ten"), 9).error().code, ErrorCode::kOutOfRange);
}

TEST_F(File, AnAbandonedWriteLeavesTheOldFileAndNoRest) {
  ASSERT_TRUE(write_file_atomically(path("kept"), "old").ok());
  {
    auto writer = AtomicFileWriter::create(path("kept"));
    ASSERT_TRUE(writer.ok());
    ASSERT_TRUE(writer->write("new", 3).ok());
  }
  EXPECT_EQ(*read_file(path("kept")), "old");
  {
    auto writer = AtomicFileWriter::create(path("kept"));
    ASSERT_TRUE(writer.ok());
    AtomicFileWriter moved = std::move(*writer);
    ASSERT_TRUE(moved.write("newer", 5).ok());
    ASSERT_TRUE(moved.commit().ok());
  }
  EXPECT_EQ(*read_file(path("kept")), "newer");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()), 1);
}

TEST_F(File, AFailedWriteIsReportedAndTheOldFileStays) {
  ASSERT_TRUE(write_file_atomically(path("kept"), "old").ok());
  // A limit on file sizes fails a write half-way, as a full disk does.
  rlimit before;
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  rlimit tight = before;
  tight.rlim_cur = 1000;
  std::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &tight), 0);
  const Status status = write_file_atomically(path("kept"), std::string(5000, 'x'));
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code, ErrorCode::kIo);
  EXPECT_NE(status.error().message.find("cannot write"), std::string::npos);
  EXPECT_EQ(*read_file(path("kept")), "old");
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), fs::directory_iterator()), 1);
}

TEST(Hash, Fnv1aMatchesItsPublishedVectors) {
  const auto hash = [](std::string_view text) { return fnv1a(std::as_bytes(std::span(text))); };
  EXPECT_EQ(hash(""), 0xcbf29ce484222325ull);
  EXPECT_EQ(hash("a"), 0xaf63dc4c8601ec8cull);
  EXPECT_EQ(hash("foobar"), 0x85944171f73967e8ull);
  const std::string_view text = "foobar";
  EXPECT_EQ(fnv1a(std::as_bytes(std::span(text.substr(3))), hash("foo")), hash("foobar"));
}

TEST(Hash, ChecksumSeesEveryFlippedBitAndTheLength) {
  std::string data(300, '\0');
  const auto sum = [&] { return checksum64(std::as_bytes(std::span(data))); };
  const uint64_t clean = sum();
  for (size_t bit = 0; bit < data.size() * 8; ++bit) {
    data[bit / 8] = static_cast<char>(data[bit / 8] ^ (1 << (bit % 8)));
    EXPECT_NE(sum(), clean) << "bit " << bit;
    data[bit / 8] = static_cast<char>(data[bit / 8] ^ (1 << (bit % 8)));
  }
  data.push_back('\0');
  EXPECT_NE(sum(), clean);
}

TEST(Clock, NeverRunsBackwards) {
  const double wall = wall_seconds(), cpu = process_cpu_seconds();
  EXPECT_GE(wall_seconds(), wall);
  EXPECT_GE(process_cpu_seconds(), cpu);
}

}  // namespace
}  // namespace frugal
