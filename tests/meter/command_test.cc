#include "meter/command.h"

#include <gtest/gtest.h>

namespace frugal::meter {
namespace {

TEST(Command, ExitCodesPassThrough) {
  EXPECT_EQ(run_command({"sh", "-c", "exit 7"})->exit_code, 7);
  EXPECT_EQ(run_command({"sh", "-c", "kill -9 $$"})->exit_code, 128 + 9);
  const auto missing = run_command({"/no/such/command"});
  EXPECT_FALSE(missing->started);
  EXPECT_EQ(missing->exit_code, 127);
  EXPECT_NE(missing->failure.find("/no/such/command"), std::string::npos);
  EXPECT_EQ(run_command({"/"})->exit_code, 126);
  EXPECT_FALSE(run_command({}).ok());
}

// All of the work is a child's: the shell itself only waits, as it does for one that does nothing. The loop
// is some hundred times what a shell costs, so no noise of the machine hides it.
TEST(Command, ChildrenAreCounted) {
  const auto idle = run_command({"sh", "-c", "(:) & wait"});
  const auto busy = run_command({"sh", "-c", "(i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done) & wait"});
  ASSERT_TRUE(idle.ok() && busy.ok());
  EXPECT_GT(idle->usage.cpu_seconds, 0);
  EXPECT_GT(busy->usage.cpu_seconds, 5 * idle->usage.cpu_seconds);
  EXPECT_GT(busy->usage.bytes_held, 1e5);
}

TEST(Command, MemoryOfAllProcessesTogetherIsSeen) {
  // Three that hold 40 MB each at the same time, until the last of them has been seen by the sampler for a
  // while.
  const char* hold = "head -c 40000000 /dev/zero | tail -c 40000000 | (sleep 2; wc -c)";
  const std::string three = std::string(hold) + " & " + hold + " & " + hold + "; wait";
  const auto result = run_command({"sh", "-c", three});
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->exit_code, 0);
  EXPECT_GT(result->usage.bytes_held, 2.2 * 40e6);
  EXPECT_LT(result->usage.bytes_held, 5 * 40e6);
}

TEST(Command, OrphansThatLiveOnAreCountedAndNamed) {
  // The grandchild outlives the command by a moment; its parent is gone.
  const auto result = run_command({"sh", "-c", "(sleep 0.3 &) ; exit 0"});
  ASSERT_TRUE(result.ok());
  EXPECT_EQ(result->exit_code, 0);
  EXPECT_EQ(result->orphans_left, 1);
}

}  // namespace
}  // namespace frugal::meter
