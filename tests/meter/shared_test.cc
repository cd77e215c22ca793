// One sampler for all meters of a user: equal figures, parts that sum to the whole, and holders that die or
// stop.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <thread>

#include "base/clock.h"
#include "base/rng.h"
#include "frugal/meter.h"
#include "meter/fake_host.h"
#include "meter/host_state.h"
#include "meter/sysfs.h"

namespace frugal::meter {
namespace {

MeterOptions shared_options(const FakeHost& host, double interval_s) {
  MeterOptions options;
  options.sysfs = host.sysfs();
  options.procfs = host.procfs();
  options.sample_interval_s = interval_s;
  options.share_folder = host.root() + "/run/frugal";
  return options;
}

std::unique_ptr<PowerMeter> open_meter(const MeterOptions& options) {
  auto meter = PowerMeter::open(options);
  EXPECT_TRUE(meter.ok()) << meter.error().message;
  return std::move(meter).value();
}

void wait_ms(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

std::string state_file(const FakeHost& host) {
  const std::string folder = host.root() + "/run/frugal";
  const auto names = list_directory(folder);
  EXPECT_EQ(names.size(), 1u);
  return names.empty() ? "" : folder + "/" + names[0];
}

TEST(Shared, MetersSeeOneHostAndTheirRunsSumToIt) {
  FakeHost host;
  host.set_cpu("part", 1, 8);
  host.set_zone("intel-rapl:0", "package-0", 0);
  auto a = open_meter(shared_options(host, 60)), b = open_meter(shared_options(host, 60));
  ASSERT_TRUE(a->source().shared && b->source().shared);
  const Snapshot from_a = a->snapshot(), from_b = b->snapshot();
  EXPECT_EQ(from_a.host.cpu_j.value, from_b.host.cpu_j.value);
  wait_ms(120);
  host.set_energy("intel-rapl:0", 4000000);
  host.set_busy_ticks(400);
  EXPECT_NEAR(b->snapshot().host.cpu_j.value - from_b.host.cpu_j.value, 4, 1e-9);
  wait_ms(120);
  host.set_energy("intel-rapl:0", 9000000);
  host.set_busy_ticks(900);
  Usage mine, theirs;
  mine.cpu_seconds = 3;
  theirs.cpu_seconds = 6;
  const double sum = a->charge(from_a, mine).cpu_j.value + b->charge(from_b, theirs).cpu_j.value;
  EXPECT_NEAR(sum, 9, 1e-9);
}

TEST(Shared, OtherOptionsAreAnotherSampler) {
  FakeHost host;
  host.set_cpu("part", 1, 8);
  auto a = open_meter(shared_options(host, 60));
  MeterOptions options = shared_options(host, 60);
  options.tdp_w = 200;
  auto b = open_meter(options);
  EXPECT_EQ(list_directory(host.root() + "/run/frugal").size(), 2u);
}

// However many meters there are, the host is sampled once an interval: the file counts the samples.
TEST(Shared, TheHostIsSampledOnceAnInterval) {
  FakeHost host;
  host.set_cpu("part", 1, 8);
  host.set_zone("intel-rapl:0", "package-0", 0);
  constexpr double kInterval_s = 0.2;
  const double begin = wall_seconds();
  {
    std::vector<std::unique_ptr<PowerMeter>> meters;
    for (int i = 0; i < 8; ++i) meters.push_back(open_meter(shared_options(host, kInterval_s)));
    wait_ms(1200);
  }
  const double seconds = wall_seconds() - begin;
  uint64_t turns = 0;
  const int fd = ::open(state_file(host).c_str(), O_RDONLY);
  ASSERT_EQ(::pread(fd, &turns, sizeof turns, 16), static_cast<ssize_t>(sizeof turns));
  ::close(fd);
  EXPECT_GE(turns, 2u);
  // The first makes the state; each further meter may close an interval of its own when it opens.
  EXPECT_LE(static_cast<double>(turns), 1 + 8 + seconds / (0.9 * kInterval_s));
}

TEST(Shared, AWriterKilledAtAnyMomentLeavesASoundState) {
  FakeHost host;
  const std::string folder = host.root() + "/run/frugal";
  auto state = shared_state(folder, "x");
  ASSERT_TRUE(state.ok()) << state.error().message;
  Rng rng(3);
  for (int kill = 0; kill < 20; ++kill) {
    const pid_t pid = ::fork();
    if (pid == 0) {
      auto own = shared_state(folder, "x");
      if (!own.ok()) ::_exit(1);
      for (;;) {
        (*own)->update([](HostState& s) {
          // All parts move together; half-written they would differ.
          s.host.busy_s += 1;
          for (double& cpu : s.busy_by_cpu) cpu = s.host.busy_s;
          return true;
        });
      }
    }
    ::usleep(2000 + static_cast<useconds_t>(rng.below(3000)));
    ::kill(pid, SIGKILL);
    ::waitpid(pid, nullptr, 0);
    double first = 0;
    bool equal = true;
    ASSERT_TRUE((*state)->update([&](HostState& s) {
      first = s.host.busy_s;
      for (const double cpu : s.busy_by_cpu) equal = equal && cpu == first;
      return false;
    }));
    EXPECT_TRUE(equal) << "after kill " << kill;
  }
}

TEST(Shared, AStoppedHolderIsNotWaitedForForever) {
  FakeHost host;
  host.set_cpu("part", 1, 2);
  auto meter = open_meter(shared_options(host, 60));
  ASSERT_TRUE(meter->source().shared);
  const Snapshot before = meter->snapshot();
  const std::string path = state_file(host);
  const pid_t pid = ::fork();
  if (pid == 0) {
    const int fd = ::open(path.c_str(), O_RDWR);
    ::flock(fd, LOCK_EX);
    ::raise(SIGSTOP);
    ::_exit(0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(pid, &status, WUNTRACED), pid);
  ASSERT_TRUE(WIFSTOPPED(status));
  const Snapshot after = meter->snapshot();  // on its own now
  EXPECT_GT(after.host.wall_s, before.host.wall_s);
  EXPECT_GT(after.host.cpu_j.value, before.host.cpu_j.value);
  ::kill(pid, SIGKILL);
  ::waitpid(pid, nullptr, 0);
}

TEST(Shared, ADamagedFileIsMadeAnewAndAnOpenFolderRefused) {
  FakeHost host;
  host.set_cpu("part", 1, 2);
  { auto meter = open_meter(shared_options(host, 60)); }
  const std::string path = state_file(host);
  { std::ofstream(path, std::ios::trunc) << "damaged"; }
  auto meter = open_meter(shared_options(host, 60));
  EXPECT_TRUE(meter->source().shared);
  EXPECT_TRUE(std::isfinite(meter->snapshot().host.cpu_j.value));
  ASSERT_EQ(::chmod((host.root() + "/run/frugal").c_str(), 0777), 0);
  auto other = open_meter(shared_options(host, 60));
  EXPECT_FALSE(other->source().shared);
  EXPECT_NE(other->source().notes.back().find("only this user"), std::string::npos);
}

TEST(Shared, TimeThatNobodySampledBelongsToNobody) {
  FakeHost host;
  host.set_cpu("part", 1, 2);
  host.set_zone("intel-rapl:0", "package-0", 0);
  { auto meter = open_meter(shared_options(host, 0.1)); }
  // As if an hour had gone by, in which the counter wrapped who knows how often.
  const std::string path = state_file(host);
  const int fd = ::open(path.c_str(), O_RDWR);
  uint64_t turn = 0;
  ASSERT_EQ(::pread(fd, &turn, sizeof turn, 16), static_cast<ssize_t>(sizeof turn));
  const double long_ago = wall_seconds() - 3600;
  ASSERT_GT(::pwrite(fd, &long_ago, sizeof long_ago, static_cast<off_t>(24 + (turn % 2) * sizeof(HostState))),
            0);
  ::close(fd);
  host.set_energy("intel-rapl:0", 100000000);
  auto meter = open_meter(shared_options(host, 60));
  const Snapshot begin = meter->snapshot();
  host.set_energy("intel-rapl:0", 102000000);
  EXPECT_NEAR(meter->snapshot().host.cpu_j.value - begin.host.cpu_j.value, 2, 1e-9);
  EXPECT_LT(begin.host.cpu_j.value, 1);
}

TEST(Shared, PowerOverTimeIsBoundedAndKeepsTheEnergy) {
  std::vector<PowerSample> samples;
  double joules = 0;
  for (int i = 0; i < 1000; ++i) {
    const double watts = i % 100 < 50 ? 10 : 20;
    samples.push_back({1000.0 + i + 1, 1, {watts, watts, watts, Provenance::kModelled}, 0.5});
    joules += 0.5 * watts;
  }
  const auto power = power_over_time(samples, 0.5);
  EXPECT_LE(power.size(), 60u);
  double sum = 0;
  for (const PowerStretch& p : power) sum += p.watts * p.seconds;
  EXPECT_NEAR(sum, joules, 1e-6);
  EXPECT_EQ(power.front().begin_unix_s, 1000);
  samples.resize(5);
  EXPECT_TRUE(power_over_time(samples, 1).empty());
}

}  // namespace
}  // namespace frugal::meter
