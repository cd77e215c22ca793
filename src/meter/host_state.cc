#include "meter/host_state.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <type_traits>

#include "base/clock.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/text.h"

namespace frugal::meter {
namespace {

static_assert(std::is_trivially_copyable_v<HostState>);

// How long a lock is waited for: a holder keeps it for some tens of microseconds, unless it is stopped.
constexpr double kPatience_s = 0.25;

bool take_lock(int fd) {
  const double give_up = wall_seconds() + kPatience_s;
  for (useconds_t pause_us = 20; ::flock(fd, LOCK_EX | LOCK_NB) != 0;
       pause_us = std::min(2 * pause_us, 5000u)) {
    if ((errno != EWOULDBLOCK && errno != EINTR) || wall_seconds() > give_up) return false;
    ::usleep(pause_us);
  }
  return true;
}

class PrivateState final : public StateKeeper {
 public:
  explicit PrivateState(const HostState& initial) : state_(initial) {}
  bool update(const std::function<bool(HostState&)>& step) override {
    HostState next = state_;
    if (step(next)) state_ = next;
    return true;
  }
  bool shared() const override { return false; }

 private:
  HostState state_;
};

// The file: two states, of which `turn` says the present one, so that a writer that dies halfway changes
// nothing.
struct Page {
  uint64_t magic;
  uint64_t fingerprint;
  std::atomic<uint64_t> turn;
  HostState states[2];
};
constexpr uint64_t kMagic = 0x3130524d4c475246;  // "FRGLMR01"

class SharedState final : public StateKeeper {
 public:
  SharedState(int fd, Page* page) : fd_(fd), page_(page) {}
  ~SharedState() override {
    ::munmap(page_, sizeof(Page));
    ::close(fd_);
  }

  bool update(const std::function<bool(HostState&)>& step) override {
    if (!take_lock(fd_)) return false;
    const uint64_t turn = page_->turn.load(std::memory_order_acquire);
    HostState& next = page_->states[(turn + 1) % 2];
    std::memcpy(&next, &page_->states[turn % 2], sizeof next);
    if (step(next)) page_->turn.store(turn + 1, std::memory_order_release);
    ::flock(fd_, LOCK_UN);
    return true;
  }
  bool shared() const override { return true; }

 private:
  int fd_;
  Page* page_;
};

Status make_folder(const std::string& folder) {
  std::error_code ignored;
  std::filesystem::create_directories(std::filesystem::path(folder).parent_path(), ignored);
  if (::mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST) return io_error("make", folder, errno);
  struct stat info {};
  if (::lstat(folder.c_str(), &info) != 0) return io_error("look at", folder, errno);
  if (!S_ISDIR(info.st_mode) || info.st_uid != ::geteuid() || (info.st_mode & 022) != 0) {
    return {ErrorCode::kPermission, "'" + folder + "' is not a folder that only this user can write to"};
  }
  return {};
}

}  // namespace

std::unique_ptr<StateKeeper> private_state(const HostState& initial) {
  return std::make_unique<PrivateState>(initial);
}

Result<std::unique_ptr<StateKeeper>> shared_state(const std::string& folder, const std::string& fingerprint) {
  FRUGAL_TRY_STATUS(make_folder(folder));
  const uint64_t hash = fnv1a(std::as_bytes(std::span(fingerprint)));
  const std::string path = strf("%s/meter-%016lx", folder.c_str(), static_cast<unsigned long>(hash));
  const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
  if (fd < 0) return io_error("open", path, errno);
  const auto fail = [&](const char* what) {
    const int error_number = errno;
    ::close(fd);
    return io_error(what, path, error_number);
  };
  if (!take_lock(fd)) return fail("lock");
  struct stat info {};
  if (::fstat(fd, &info) != 0) return fail("look at");
  // posix_fallocate, not ftruncate: on a full disk the mapping would end the process later.
  if (static_cast<size_t>(info.st_size) != sizeof(Page)) {
    if (::ftruncate(fd, 0) != 0) return fail("empty");
    errno = ::posix_fallocate(fd, 0, sizeof(Page));
    if (errno != 0) return fail("make room for");
  }
  void* memory = ::mmap(nullptr, sizeof(Page), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) return fail("map");
  Page* page = static_cast<Page*>(memory);
  if (page->magic != kMagic || page->fingerprint != hash) {
    page->states[0] = page->states[1] = HostState{};
    page->turn.store(0);
    page->fingerprint = hash;
    page->magic = kMagic;
  }
  ::flock(fd, LOCK_UN);
  return std::unique_ptr<StateKeeper>(std::make_unique<SharedState>(fd, page));
}

}  // namespace frugal::meter
