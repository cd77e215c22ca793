#include "base/team.h"

#include <gtest/gtest.h>

#include <chrono>
#include <thread>
#include <vector>

namespace frugal {
namespace {

TEST(ThreadTeam, EveryMemberRunsEachJobOnce) {
  for (const int n : {1, 2, 5}) {
    ThreadTeam team(n);
    std::vector<int> calls(static_cast<size_t>(team.size()), 0);
    for (int round = 0; round < 1000; ++round)
      team.run([&](TeamMember m) { ++calls[static_cast<size_t>(m.idx)]; });
    for (const int count : calls) EXPECT_EQ(count, 1000);
  }
}

TEST(ThreadTeam, BarrierOrdersPhases) {
  ThreadTeam team(3);
  std::vector<int> value(static_cast<size_t>(team.size()), 0);
  std::atomic<int> wrong{0};
  team.run([&](TeamMember m) {
    for (int phase = 1; phase <= 500; ++phase) {
      value[static_cast<size_t>(m.idx)] = phase;
      m.barrier();
      for (const int v : value) wrong += v != phase;
      m.barrier();
    }
  });
  EXPECT_EQ(wrong.load(), 0);
}

TEST(ThreadTeam, WakesAfterSleep) {
  ThreadTeam team(2);
  for (int round = 0; round < 3; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(60));  // longer than the members spin
    std::atomic<int> calls{0};
    team.run([&](TeamMember) { ++calls; });
    EXPECT_EQ(calls.load(), team.size());
  }
}

TEST(ThreadTeam, SharesCoverTheRangeOnceInGrains) {
  for (const size_t n : {0u, 1u, 15u, 16u, 17u, 1000u}) {
    for (int size = 1; size <= 7; ++size) {
      size_t next = 0;
      for (int idx = 0; idx < size; ++idx) {
        const auto range = TeamMember{idx, size, nullptr}.share(n, 16);
        EXPECT_EQ(range.begin, next);
        EXPECT_TRUE(range.begin % 16 == 0 || range.begin == n);
        next = range.end;
      }
      EXPECT_EQ(next, n);
    }
  }
}

}  // namespace
}  // namespace frugal
