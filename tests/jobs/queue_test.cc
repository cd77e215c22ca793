// The queue, its runner and its keepers, with real processes.
#include "jobs/queue.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <set>

#include "base/clock.h"
#include "base/file.h"
#include "jobs/keeper.h"
#include "jobs/runner.h"

namespace frugal::jobs {
namespace {

class JobsTest : public ::testing::Test {
 protected:
  JobsTest() {
    std::string pattern = (std::filesystem::temp_directory_path() / "frugal-jobs-XXXXXX").string();
    root_ = ::mkdtemp(pattern.data());
    queue_ = std::move(Queue::open(path())).value();
  }
  ~JobsTest() override {
    queue_.reset();
    std::error_code ignored;
    std::filesystem::remove_all(root_, ignored);
  }
  std::string path() const { return root_ + "/jobs.db"; }

  Job shell(const std::string& script) const {
    Job job;
    job.command = {"/bin/sh", "-c", script};
    job.folder = root_;
    job.log = root_ + "/log";
    job.takes_s = 3600;
    job.submitted_unix_s = clock_seconds(CLOCK_REALTIME);
    job.deadline_unix_s = job.submitted_unix_s + 86400;
    return job;
  }
  int64_t submit(const Job& job) { return queue_->submit(job).value(); }

  // A keeper in a process of its own, as the runner starts it.
  pid_t start_keeper(int64_t id) const {
    const pid_t pid = ::fork();
    if (pid != 0) return pid;
    auto queue = Queue::open(path());
    if (!queue.ok()) ::_exit(99);
    KeeperOptions options;
    options.poll_s = 0.02;
    options.grace_s = 2;
    const auto kept = keep(**queue, id, options);
    ::_exit(!kept.ok() ? 98 : !kept->claimed ? 97 : 0);
  }
  static int wait_for(pid_t pid) {
    int status = 0;
    ::waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  // Waits until `done` holds; the limit is for hangs only.
  template <typename Predicate>
  static bool eventually(Predicate done) {
    for (int i = 0; i < 6000; ++i) {
      if (done()) return true;
      ::usleep(10000);
    }
    return false;
  }
  Job job(int64_t id) { return queue_->job(id).value(); }
  std::string contents(const std::string& name) const {
    const auto text = read_file(root_ + "/" + name);
    return text.ok() ? *text : "";
  }

  std::string root_;
  std::unique_ptr<Queue> queue_;
};

TEST_F(JobsTest, KeepsEveryFieldAndRefusesNonsense) {
  Job job = shell("true");
  job.project = "p\xC3\xA9";
  job.checkpoint = "kill -TERM $FRUGAL_JOB_PID";
  job.rates = {1, 1.9, 2.5};
  job.threads = 3;
  job.expected_g = 120.5;
  job.at_once_g = 200;
  const int64_t id = submit(job);
  const Job read = this->job(id);
  EXPECT_EQ(read.command, job.command);
  EXPECT_EQ(read.rates, job.rates);
  EXPECT_EQ(read.project, job.project);
  EXPECT_EQ(read.checkpoint, job.checkpoint);
  EXPECT_EQ(read.threads, 3);
  EXPECT_EQ(read.expected_g, 120.5);
  EXPECT_EQ(read.state, JobState::kWaiting);
  Job bad = shell("true");
  bad.takes_s = 0;
  EXPECT_EQ(queue_->submit(bad).error().code, ErrorCode::kInvalidArgument);
  bad = shell("true");
  bad.command.clear();
  EXPECT_FALSE(queue_->submit(bad).ok());
  bad = shell("true");
  bad.rates = {2, 3};
  EXPECT_FALSE(queue_->submit(bad).ok());
  bad = shell("echo \xff");
  EXPECT_FALSE(queue_->submit(bad).ok());
  EXPECT_EQ(queue_->job(4711).error().code, ErrorCode::kNotFound);
}

TEST_F(JobsTest, RunsToItsEndWithItsExitCodeAndOutput) {
  const int64_t good = submit(shell("echo out; echo err >&2"));
  const int64_t bad = submit(shell("exit 7"));
  EXPECT_EQ(wait_for(start_keeper(good)), 0);
  EXPECT_EQ(wait_for(start_keeper(bad)), 0);
  EXPECT_EQ(job(good).state, JobState::kDone);
  EXPECT_EQ(contents("log"), "out\nerr\n");
  EXPECT_EQ(job(bad).state, JobState::kFailed);
  EXPECT_EQ(job(bad).exit_code, 7);
  EXPECT_EQ(queue_->runs(good)->size(), 1u);
}

TEST_F(JobsTest, ACommandThatDoesNotExistKeepsItsExitCode) {
  Job missing = shell("");
  missing.command = {"/no/such/command"};
  const int64_t id = submit(missing);
  EXPECT_EQ(wait_for(start_keeper(id)), 0);
  EXPECT_EQ(job(id).state, JobState::kFailed);
  EXPECT_EQ(job(id).exit_code, 127);
  EXPECT_NE(job(id).error.find("No such file"), std::string::npos);
  Job nowhere = shell("true");
  nowhere.folder = "/no/such/folder";
  const int64_t other = submit(nowhere);
  EXPECT_EQ(wait_for(start_keeper(other)), 0);
  EXPECT_EQ(job(other).exit_code, 126);
}

TEST_F(JobsTest, OnlyOneKeeperExecutesAJob) {
  const int64_t id = submit(shell("echo once >> runs; sleep 0.2"));
  std::vector<pid_t> keepers;
  for (int i = 0; i < 6; ++i) keepers.push_back(start_keeper(id));
  int claimed = 0;
  for (const pid_t pid : keepers) claimed += wait_for(pid) == 0 ? 1 : 0;
  EXPECT_EQ(claimed, 1);
  EXPECT_EQ(contents("runs"), "once\n");
}

TEST_F(JobsTest, AJobThatForksAndDiesIsFollowedToItsLastProcess) {
  const int64_t id = submit(shell("(setsid sh -c 'sleep 0.4; echo late >> late') & exit 0"));
  EXPECT_EQ(wait_for(start_keeper(id)), 0);
  EXPECT_EQ(contents("late"), "late\n");
  EXPECT_EQ(job(id).state, JobState::kDone);
}

TEST_F(JobsTest, PausesAndContinuesTheWholeTree) {
  Job ticking = shell(
      "(setsid sh -c 'while [ ! -e stop ]; do echo x >> ticks; sleep 0.02; done') & "
      "while [ ! -e stop ]; do echo y >> ticks; sleep 0.02; done; wait");
  ticking.interruptible = true;
  const int64_t id = submit(ticking);
  const pid_t keeper = start_keeper(id);
  const auto size = [&] { return contents("ticks").size(); };
  ASSERT_TRUE(eventually([&] { return size() > 10; }));
  ASSERT_TRUE(queue_->wish(id, Wish::kPause, 1).ok());
  ASSERT_TRUE(eventually([&] { return job(id).state == JobState::kPaused; }));
  const size_t paused_at = size();
  ::usleep(300000);
  EXPECT_EQ(size(), paused_at);  // nobody ticks
  ASSERT_TRUE(queue_->wish(id, Wish::kRun, 1).ok());
  ASSERT_TRUE(eventually([&] { return size() > paused_at + 4; }));
  std::ofstream(root_ + "/stop") << "x";
  EXPECT_EQ(wait_for(keeper), 0);
  EXPECT_EQ(job(id).state, JobState::kDone);
  EXPECT_EQ(queue_->runs(id)->size(), 2u);
}

TEST_F(JobsTest, APausedJobGoesOnByItselfWhenItsDeadlineDrawsNear) {
  Job job = shell("sleep 0.1");
  job.interruptible = true;
  job.deadline_unix_s = clock_seconds(CLOCK_REALTIME) + 10;  // takes an hour: no slack at all
  const int64_t id = submit(job);
  const pid_t keeper = start_keeper(id);
  ASSERT_TRUE(eventually([&] { return this->job(id).state != JobState::kWaiting; }));
  ASSERT_TRUE(queue_->wish(id, Wish::kPause, 1).ok());  // a runner that errs, or has died
  EXPECT_EQ(wait_for(keeper), 0);
  EXPECT_EQ(this->job(id).state, JobState::kDone);
}

TEST_F(JobsTest, CheckpointsAreAskedForAndTheJobStartsAnew) {
  Job job = shell(
      "n=$(cat state 2>/dev/null || echo 0); trap 'echo $n > state; exit 75' TERM; "
      "while [ $n -lt 30 ]; do n=$((n+1)); sleep 0.02; done; echo done $n > result");
  job.interruptible = true;
  job.checkpoint = "kill -TERM $FRUGAL_JOB_PID";
  const int64_t id = submit(job);
  const pid_t keeper = start_keeper(id);
  ASSERT_TRUE(eventually([&] { return this->job(id).state == JobState::kRunning; }));
  ::usleep(100000);
  ASSERT_TRUE(queue_->wish(id, Wish::kPause, 1).ok());
  ASSERT_TRUE(eventually([&] { return this->job(id).state != JobState::kRunning; }));
  if (this->job(id).state == JobState::kPaused) {
    EXPECT_NE(contents("state"), "");
    EXPECT_TRUE(descendants(keeper).empty());
  }
  ASSERT_TRUE(queue_->wish(id, Wish::kRun, 1).ok());
  EXPECT_EQ(wait_for(keeper), 0);
  EXPECT_EQ(this->job(id).state, JobState::kDone);
  EXPECT_EQ(contents("result"), "done 30\n");
}

TEST_F(JobsTest, CancelEndsTheTreeAndWinsOverTheRunner) {
  const int64_t id = submit(shell("trap '' TERM; sleep 100 & sleep 100"));
  const pid_t keeper = start_keeper(id);
  ASSERT_TRUE(eventually([&] { return job(id).state == JobState::kRunning; }));
  EXPECT_TRUE(queue_->cancel(id, 1).value());
  ASSERT_TRUE(queue_->wish(id, Wish::kRun, 1).ok());
  EXPECT_EQ(wait_for(keeper), 0);
  EXPECT_EQ(job(id).state, JobState::kCancelled);
  EXPECT_FALSE(queue_->cancel(id, 2).value());
  const int64_t waiting = submit(shell("echo never > never"));
  EXPECT_TRUE(queue_->cancel(waiting, 1).value());
  EXPECT_EQ(wait_for(start_keeper(waiting)), 97);
  EXPECT_EQ(contents("never"), "");
  EXPECT_TRUE(queue_->retry(waiting).value());
  EXPECT_EQ(job(waiting).state, JobState::kWaiting);
}

TEST_F(JobsTest, AKilledKeeperTakesItsJobAlongAndRecoveryKnowsWhatToDo) {
  Job once = shell("echo begun >> begun; sleep 100");
  Job again = once;
  again.restartable = true;
  const int64_t once_id = submit(once), again_id = submit(again);
  const pid_t keepers[] = {start_keeper(once_id), start_keeper(again_id)};
  ASSERT_TRUE(eventually([&] { return contents("begun") == "begun\nbegun\n"; }));
  for (const pid_t keeper : keepers) {
    ::kill(keeper, SIGKILL);
    wait_for(keeper);
  }
  const auto recovered = queue_->recover(5);
  ASSERT_TRUE(recovered.ok());
  EXPECT_EQ(recovered->size(), 2u);
  EXPECT_EQ(job(once_id).state, JobState::kInterrupted);  // may have done half of what must be done once
  EXPECT_EQ(job(again_id).state, JobState::kWaiting);
  EXPECT_TRUE(queue_->recover(6)->empty());
  EXPECT_TRUE(queue_->retry(once_id).value());
}

TEST_F(JobsTest, AfterARebootThePidsOfOthersAreNotTakenForKeepers) {
  const int64_t id = submit(shell("true"));
  ProcessId before = this_process();  // alive, and of another boot
  before.boot = "0000-before";
  ASSERT_TRUE(queue_->claim(id, before, 1).value());
  EXPECT_EQ(queue_->recover(2)->size(), 1u);
  EXPECT_EQ(job(id).state, JobState::kInterrupted);
}

// Runner and keepers killed at random: every job runs exactly once, or is told as interrupted.
TEST_F(JobsTest, KillsLoseNoJobAndRunNoneTwice) {
  constexpr int kJobs = 40;
  for (int i = 0; i < kJobs; ++i)
    submit(shell("echo " + std::to_string(i) + " >> begun; sleep 0.03; echo " + std::to_string(i) +
                 " >> ended"));
  RunnerOptions options;
  options.threads = 4;
  std::vector<pid_t> keepers;
  options.start = [&](int64_t id) {
    keepers.push_back(start_keeper(id));
    keepers.push_back(start_keeper(id));  // as two runners would that follow one another
    return Status();
  };
  unsigned seed = 7;
  for (int round = 0; round < 400; ++round) {
    const auto report = look(*queue_, clock_seconds(CLOCK_REALTIME), options);
    ASSERT_TRUE(report.ok()) << report.error().message;
    if (report->plans.empty()) break;
    for (pid_t& pid : keepers) {
      if (pid <= 0) continue;
      if (rand_r(&seed) % 12 == 0) ::kill(pid, SIGKILL);
      int status = 0;
      if (::waitpid(pid, &status, WNOHANG) == pid) pid = -1;
    }
    ::usleep(20000);
  }
  for (const pid_t pid : keepers) {
    if (pid > 0) wait_for(pid);
  }
  ASSERT_TRUE(queue_->recover(1).ok());
  std::multiset<std::string> begun, ended;
  std::ifstream begun_file(root_ + "/begun"), ended_file(root_ + "/ended");
  for (std::string line; std::getline(begun_file, line);) begun.insert(line);
  for (std::string line; std::getline(ended_file, line);) ended.insert(line);
  int done = 0, interrupted = 0;
  const auto all = queue_->jobs(true).value();
  for (const Job& job : all) {
    const std::string number = std::to_string(job.id - 1);
    EXPECT_LE(begun.count(number), 1u) << "job " << job.id << " ran twice";
    EXPECT_TRUE(is_over(job.state)) << "job " << job.id << " is " << job_state_name(job.state);
    if (job.state == JobState::kDone) {
      ++done;
      EXPECT_EQ(ended.count(number), 1u);
    } else {
      EXPECT_EQ(job.state, JobState::kInterrupted);
      ++interrupted;
    }
  }
  EXPECT_EQ(done + interrupted, kJobs);
  std::printf("%d jobs: %d done, %d interrupted by kills, 0 lost, 0 run twice\n", kJobs, done, interrupted);
}

TEST_F(JobsTest, AFullDiskIsToldAndTheQueueStaysAsItWas) {
  const int64_t id = submit(shell("true"));
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit none = {0, 0};
    ::setrlimit(RLIMIT_FSIZE, &none);
    auto queue = Queue::open(path());
    ::_exit(queue.ok() && (*queue)->submit(shell("true")).ok() ? 1 : 0);
  }
  EXPECT_EQ(wait_for(pid), 0);
  EXPECT_EQ(queue_->jobs(true)->size(), 1u);
  EXPECT_EQ(job(id).state, JobState::kWaiting);
}

TEST_F(JobsTest, OneRunnerAQueue) {
  auto first = RunnerLock::take(path());
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(RunnerLock::take(path()).error().code, ErrorCode::kUnavailable);
}

TEST_F(JobsTest, TheRunnerStartsWhatIsDueAndFollowsClockSteps) {
  Job job = shell("true");
  job.submitted_unix_s = 0;
  job.takes_s = 3600;
  job.deadline_unix_s = 24 * 3600;
  const int64_t id = submit(job);
  RunnerOptions options;
  options.threads = 1;
  std::vector<int64_t> started;
  options.start = [&](int64_t which) {
    started.push_back(which);
    return Status();
  };
  options.outlook = [](double now, size_t n) {
    Outlook outlook;
    outlook.hourly.start_unix_s = std::floor(now / 3600) * 3600;
    for (size_t i = 0; i <= n; ++i) {
      const auto hour = static_cast<size_t>(outlook.hourly.start_unix_s / 3600) + i;
      outlook.hourly.g_per_kwh.push_back(hour == 12 ? 10 : hour == 22 ? 100 : 300);
    }
    return std::optional(outlook);
  };
  auto report = look(*queue_, 600, options);
  ASSERT_TRUE(report.ok());
  EXPECT_TRUE(started.empty());
  EXPECT_EQ(report->next_unix_s, 12 * 3600);
  ASSERT_TRUE(look(*queue_, 20 * 3600, options).ok());  // the clock was set forward past noon
  EXPECT_TRUE(started.empty());
  ASSERT_TRUE(look(*queue_, 3600, options).ok());  // and back
  EXPECT_TRUE(started.empty());
  ASSERT_TRUE(look(*queue_, 12 * 3600 + 1, options).ok());
  EXPECT_EQ(started, std::vector<int64_t>{id});
}

}  // namespace
}  // namespace frugal::jobs
