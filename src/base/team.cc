#include "base/team.h"

#include <algorithm>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <mutex>
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

// Waits for `done()`: spins ~20 us (a step between barriers takes that order), then yields the processor at
// each look, so that a team larger than the machine still moves.
template <typename Done>
void spin_until(Done done) {
  for (int look = 0; look < 4000; ++look) {
    if (done()) return;
    relax();
  }
  while (!done()) std::this_thread::yield();
}

}  // namespace

struct ThreadTeam::State {
  int size = 1;
  std::vector<std::thread> threads;

  // One job at a time: `generation` counts jobs; a worker runs when it sees a new one.
  void (*job)(void*, TeamMember) = nullptr;
  void* context = nullptr;
  alignas(64) std::atomic<uint64_t> generation{0};
  alignas(64) std::atomic<int> working{0};
  alignas(64) std::atomic<int> arrived{0};
  alignas(64) std::atomic<uint64_t> barrier_round{0};
  std::atomic<bool> stop{false};

  // Sleeping workers wait here; `sleepers` spares the caller the lock when all are awake.
  std::mutex mutex;
  std::condition_variable wake;
  std::atomic<int> sleepers{0};
};

namespace {

constexpr int kLooksBeforeSleep = 200000;  // about 5 ms of spinning between jobs

}  // namespace

ThreadTeam::ThreadTeam(int n_threads) : state_(std::make_unique<State>()) {
  FRUGAL_CHECK(n_threads >= 1);
  State* state = state_.get();
  auto body = [this, state](int idx) {
    uint64_t seen = 0;
    while (true) {
      for (int look = 0;
           look < kLooksBeforeSleep && state->generation.load(std::memory_order_acquire) == seen; ++look) {
        relax();
        if ((look & 1023) == 1023) std::this_thread::yield();
      }
      if (state->generation.load(std::memory_order_acquire) == seen) {
        std::unique_lock lock(state->mutex);
        state->sleepers.fetch_add(1);
        state->wake.wait(lock, [&] { return state->generation.load() != seen; });
        state->sleepers.fetch_sub(1);
      }
      ++seen;
      if (state->stop.load(std::memory_order_acquire)) return;
      state->job(state->context, TeamMember{idx, state->size, this});
      state->working.fetch_sub(1, std::memory_order_release);
    }
  };
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
  {
    std::lock_guard lock(state_->mutex);
    state_->generation.fetch_add(1);
  }
  state_->wake.notify_all();
  for (std::thread& thread : state_->threads) thread.join();
}

int ThreadTeam::size() const { return state_->size; }

void ThreadTeam::run_erased(void (*job)(void*, TeamMember), void* context) {
  State& state = *state_;
  if (state.size > 1) {
    state.job = job;
    state.context = context;
    state.working.store(state.size - 1, std::memory_order_relaxed);
    state.generation.fetch_add(1);  // sequentially consistent: pairs with the sleeper's count and predicate
    if (state.sleepers.load() > 0) {
      std::lock_guard lock(state.mutex);
      state.wake.notify_all();
    }
  }
  job(context, TeamMember{0, state.size, this});
  if (state.size > 1) spin_until([&] { return state.working.load(std::memory_order_acquire) == 0; });
}

void TeamMember::barrier() const {
  if (size == 1) return;
  ThreadTeam::State& state = *team->state_;
  const uint64_t round = state.barrier_round.load(std::memory_order_acquire);
  if (state.arrived.fetch_add(1, std::memory_order_acq_rel) == size - 1) {
    state.arrived.store(0, std::memory_order_relaxed);
    state.barrier_round.store(round + 1, std::memory_order_release);
    return;
  }
  spin_until([&] { return state.barrier_round.load(std::memory_order_acquire) != round; });
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
