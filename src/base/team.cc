#include "base/team.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <system_error>
#include <thread>
#include <vector>

#include <sched.h>

#include "base/check.h"

namespace frugal {
namespace {

inline void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

using Clock = std::chrono::steady_clock;

// Waiting goes through three stages. Steps between barriers take microseconds, so looking again at once is
// right while every member has a processor; then the processor is offered to others between looks; and the
// waiter sleeps when somebody took the offer (the machine is busy, and the member waited for may be queueing
// for this very processor), or when the wait has become long.
constexpr int kLooks = 4000;  // 20 to 80 us
constexpr Clock::duration kTaken =
    std::chrono::microseconds(200);  // an offer that nobody takes returns in 1 us
constexpr Clock::duration kAwake = std::chrono::milliseconds(5);
// After an offer that was taken, so many waits sleep nearly at once before the machine is tried again.
constexpr uint32_t kWaitsWhenBusy = 256;
constexpr int kLooksWhenBusy = 100;

}  // namespace

struct ThreadTeam::State {
  int size = 1;
  bool crowded = false;  // more members than processors
  std::vector<std::thread> threads;

  // One job at a time: `generation` counts jobs; a worker runs when it sees a new one.
  void (*job)(void*, TeamMember) = nullptr;
  void* context = nullptr;
  // Counters that members wait on; only whether they changed matters, so they may wrap.
  alignas(64) std::atomic<uint32_t> generation{0};
  alignas(64) std::atomic<uint32_t> finished{0};  // jobs that all workers have left
  alignas(64) std::atomic<int> working{0};
  alignas(64) std::atomic<int> arrived{0};
  alignas(64) std::atomic<uint32_t> barrier_round{0};
  alignas(64) std::atomic<uint32_t> busy{0};  // waits to go in which the machine counts as busy
  std::atomic<bool> stop{false};

  // Returns once `word` is no longer `old`.
  void await(const std::atomic<uint32_t>& word, uint32_t old) {
    const auto changed = [&] { return word.load(std::memory_order_acquire) != old; };
    const uint32_t busy_waits = busy.load(std::memory_order_relaxed);
    const int looks = crowded || busy_waits > 0 ? kLooksWhenBusy : kLooks;
    for (int look = 0; look < looks; ++look) {
      if (changed()) return;
      relax();
    }
    if (busy_waits > 0) {
      busy.store(busy_waits - 1, std::memory_order_relaxed);  // racing members may lose a count: no matter
    } else if (!crowded && offer_processor(changed)) {
      return;
    }
    while (!changed()) word.wait(old, std::memory_order_acquire);
  }

  // Offers the processor between looks. False when the caller had better sleep.
  template <typename Changed>
  bool offer_processor(Changed changed) {
    const Clock::time_point begin = Clock::now();
    for (Clock::time_point before = begin; !changed();) {
      std::this_thread::yield();
      const Clock::time_point after = Clock::now();
      if (after - before > kTaken) {
        busy.store(kWaitsWhenBusy, std::memory_order_relaxed);
        return false;
      }
      if (after - begin > kAwake) return false;
      before = after;
    }
    return true;
  }

  // Changes `word` and wakes those who sleep on it.
  static void advance(std::atomic<uint32_t>& word) {
    word.fetch_add(1);  // sequentially consistent: before the look for sleepers
    word.notify_all();
  }
};

ThreadTeam::ThreadTeam(int n_threads) : state_(std::make_unique<State>()) {
  FRUGAL_CHECK(n_threads >= 1);
  State* state = state_.get();
  auto body = [this, state](int idx) {
    uint32_t seen = 0;
    while (true) {
      state->await(state->generation, seen);
      ++seen;
      if (state->stop.load(std::memory_order_acquire)) return;
      state->job(state->context, TeamMember{idx, state->size, this});
      if (state->working.fetch_sub(1, std::memory_order_acq_rel) == 1) State::advance(state->finished);
    }
  };
  state->crowded = n_threads > usable_processors();
  state->threads.reserve(static_cast<size_t>(n_threads - 1));
  for (int idx = 1; idx < n_threads; ++idx) {
    try {
      state->threads.emplace_back(body, idx);
    } catch (const std::system_error&) {
      break;  // the host has no more threads for us; a smaller team does the same work
    }
  }
  state->size = static_cast<int>(state->threads.size()) + 1;
}

ThreadTeam::~ThreadTeam() {
  state_->stop.store(true);
  State::advance(state_->generation);
  for (std::thread& thread : state_->threads) thread.join();
}

int ThreadTeam::size() const { return state_->size; }

void ThreadTeam::run_erased(void (*job)(void*, TeamMember), void* context) {
  State& state = *state_;
  const uint32_t finished = state.finished.load(std::memory_order_acquire);
  if (state.size > 1) {
    state.job = job;
    state.context = context;
    state.working.store(state.size - 1, std::memory_order_relaxed);
    State::advance(state.generation);
  }
  job(context, TeamMember{0, state.size, this});
  if (state.size > 1) state.await(state.finished, finished);
}

void TeamMember::barrier() const {
  if (size == 1) return;
  ThreadTeam::State& state = *team->state_;
  const uint32_t round = state.barrier_round.load(std::memory_order_acquire);
  if (state.arrived.fetch_add(1, std::memory_order_acq_rel) == size - 1) {
    state.arrived.store(0, std::memory_order_relaxed);
    ThreadTeam::State::advance(state.barrier_round);
    return;
  }
  state.await(state.barrier_round, round);
}

TeamMember::Range TeamMember::share(size_t n, size_t grain) const {
  const size_t n_grains = (n + grain - 1) / grain;
  const auto members = static_cast<size_t>(size), member = static_cast<size_t>(idx);
  return {std::min(n, n_grains * member / members * grain),
          std::min(n, n_grains * (member + 1) / members * grain)};
}

int usable_processors() {
  int count = static_cast<int>(std::thread::hardware_concurrency());
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) count = CPU_COUNT(&set);
  // cgroup v2: "quota period" in microseconds, or "max".
  if (std::FILE* file = std::fopen("/sys/fs/cgroup/cpu.max", "re")) {
    double quota = 0, period = 0;
    if (std::fscanf(file, "%lf %lf", &quota, &period) == 2 && quota > 0 && period > 0) {
      count = std::min(count, std::max(1, static_cast<int>(quota / period + 0.5)));
    }
    std::fclose(file);
  }
  return std::max(1, count);
}

}  // namespace frugal
