// ThreadTeam: a fixed set of threads that run one function together, over and over, with microsecond
// hand-over: a forward pass is hundreds of short parallel steps. The caller is member 0 and works too.
#pragma once

#include <atomic>
#include <cstddef>
#include <functional>
#include <memory>

namespace frugal {

// A member's view of the running job. Passed by value; valid while the job runs.
struct TeamMember {
  int idx = 0;   // 0 .. size - 1
  int size = 1;  // members of the team
  class ThreadTeam* team = nullptr;

  // Waits until every member has come here: awake for as long as members have processors of their own, since
  // they are expected within microseconds; asleep where they have not.
  void barrier() const;

  // This member's contiguous share of [0, n): [begin, end), multiples of `grain` apart from the last end.
  struct Range {
    size_t begin, end;
  };
  Range share(size_t n, size_t grain = 1) const;
};

// Not copyable, not movable. run() may be called from one thread at a time. Idle threads sleep after some
// milliseconds without work, so a waiting team costs no processor time.
class ThreadTeam {
 public:
  // `n_threads` >= 1. Threads that the host refuses to start are done without: size() tells how many there
  // are.
  explicit ThreadTeam(int n_threads);
  ~ThreadTeam();
  ThreadTeam(const ThreadTeam&) = delete;
  ThreadTeam& operator=(const ThreadTeam&) = delete;

  int size() const;

  // Calls job(member) on every member and returns when all have returned. Allocates nothing. `job` must not
  // throw.
  template <typename Job>
  void run(Job&& job) {
    run_erased([](void* context,
                  TeamMember member) { (*static_cast<std::remove_reference_t<Job>*>(context))(member); },
               &job);
  }

 private:
  friend struct TeamMember;
  void run_erased(void (*job)(void*, TeamMember), void* context);
  struct State;
  std::unique_ptr<State> state_;
};

// Processors that this process may use (affinity mask and cgroup quota counted), at least 1.
int usable_processors();

}  // namespace frugal
