#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <set>

#include "base/rng.h"
#include "frugal/meter.h"
#include "meter/database.h"
#include "meter/fake_host.h"

namespace frugal::meter {
namespace {

LedgerEntry sample_entry(int i) {
  LedgerEntry entry;
  entry.unix_s = 1000 + i;
  entry.kind = i % 2 == 0 ? "run" : "command";
  entry.name = "name " + std::to_string(i) + " with 'quotes' and \xC3\xA9";
  entry.project = "p";
  entry.unit = "token";
  entry.units = i;
  entry.usage = {1e9, 2e6, 3e3, 0.5, 0.25, {10, 8, 13, Provenance::kModelled}, Estimate::unknown()};
  entry.cpu_j = {9, 7, 12, Provenance::kMeasured};
  entry.region = "ES";
  entry.exit_code = i;
  return entry;
}

TEST(Ledger, EntriesComeBackAsTheyWere) {
  FakeHost folder;
  auto ledger = Ledger::open(folder.root() + "/deep/er/ledger.db");
  ASSERT_TRUE(ledger.ok()) << ledger.error().message;
  for (int i = 0; i < 10; ++i) ASSERT_TRUE((*ledger)->append(sample_entry(i)).ok());
  const auto all = (*ledger)->read();
  ASSERT_TRUE(all.ok());
  ASSERT_EQ(all->size(), 10u);
  const LedgerEntry &got = (*all)[3], want = sample_entry(3);
  EXPECT_EQ(got.name, want.name);
  EXPECT_EQ(got.units, want.units);
  EXPECT_EQ(got.usage.flops, want.usage.flops);
  EXPECT_EQ(got.usage.energy_j.high, 13);
  EXPECT_EQ(got.usage.energy_j.provenance, Provenance::kModelled);
  EXPECT_FALSE(got.usage.carbon_gco2e.known());
  EXPECT_EQ(got.cpu_j.provenance, Provenance::kMeasured);
  EXPECT_EQ(got.exit_code, 3);
  LedgerFilter filter;
  filter.kind = "run";
  filter.since_unix_s = 1004;
  EXPECT_EQ((*ledger)->read(filter)->size(), 3u);
  filter.newest = 1;
  EXPECT_EQ((*ledger)->read(filter)->at(0).unix_s, 1008);
}

TEST(Ledger, StaysBounded) {
  FakeHost folder;
  LedgerOptions options;
  options.max_entries = 1000;
  auto ledger = Ledger::open(folder.root() + "/ledger.db", options);
  ASSERT_TRUE(ledger.ok());
  for (int i = 0; i < 1600; ++i) ASSERT_TRUE((*ledger)->append(sample_entry(i)).ok());
  const auto all = (*ledger)->read();
  EXPECT_LE(all->size(), 1256u);
  EXPECT_EQ(all->back().unix_s, 1000 + 1599);
}

TEST(Ledger, ForeignAndDamagedFilesAreRefused) {
  FakeHost folder;
  folder.write("garbage.db", std::string(8192, 'x'));
  EXPECT_EQ(Ledger::open(folder.root() + "/garbage.db").error().code, ErrorCode::kCorrupt);
  {
    auto other = Database::open(folder.root() + "/other.db", {7, 1, "CREATE TABLE t (x)"});
    ASSERT_TRUE(other.ok());
  }
  EXPECT_EQ(Ledger::open(folder.root() + "/other.db").error().code, ErrorCode::kCorrupt);
  EXPECT_FALSE(Ledger::open("/proc/no/ledger.db").ok());
}

TEST(Ledger, PowerOverTimeIsKeptAndAnOldFileBroughtUp) {
  FakeHost folder;
  const std::string path = folder.root() + "/ledger.db";
  LedgerEntry entry = sample_entry(1);
  entry.power = {{1700000000.25, 10, 42.5}, {1700000010.25, 5, 7}};
  {
    auto ledger = Ledger::open(path);
    ASSERT_TRUE(ledger.ok());
    ASSERT_TRUE((*ledger)->append(sample_entry(0)).ok());
    // As version 1 left it.
    auto database = Database::open(path, {0x46524c31, 2, ""});
    ASSERT_TRUE(database.ok());
    ASSERT_TRUE(database->execute("ALTER TABLE entries DROP COLUMN power; PRAGMA user_version=1").ok());
  }
  auto ledger = Ledger::open(path);
  ASSERT_TRUE(ledger.ok()) << ledger.error().message;
  ASSERT_TRUE((*ledger)->append(entry).ok());
  const auto all = (*ledger)->read();
  ASSERT_TRUE(all.ok());
  ASSERT_EQ(all->size(), 2u);
  EXPECT_TRUE((*all)[0].power.empty());
  ASSERT_EQ((*all)[1].power.size(), 2u);
  EXPECT_EQ((*all)[1].power[0].begin_unix_s, 1700000000.25);
  EXPECT_EQ((*all)[1].power[1].watts, 7);
}

TEST(Ledger, AFullDiskIsToldAndTheLedgerStaysAsItWas) {
  FakeHost folder;
  const std::string path = folder.root() + "/ledger.db";
  {
    auto ledger = Ledger::open(path);
    ASSERT_TRUE(ledger.ok());
    ASSERT_TRUE((*ledger)->append(sample_entry(0)).ok());
  }
  const pid_t pid = ::fork();
  if (pid == 0) {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit none = {0, 0};
    ::setrlimit(RLIMIT_FSIZE, &none);
    auto ledger = Ledger::open(path);
    ::_exit(ledger.ok() && (*ledger)->append(sample_entry(1)).ok() ? 1 : 0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(pid, &status, 0), pid);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  auto ledger = Ledger::open(path);
  ASSERT_TRUE(ledger.ok());
  EXPECT_EQ((*ledger)->read()->size(), 1u);
  EXPECT_TRUE((*ledger)->append(sample_entry(2)).ok());
}

// Writers acknowledge each row on a pipe once append() has returned, and are killed at random moments. Every
// acknowledged row must be there, and the file sound. FRUGAL_LEDGER_KILLS sets the number of kills (default
// 25).
TEST(Ledger, KilledWritersLoseNothingAcknowledged) {
  const char* kills_text = std::getenv("FRUGAL_LEDGER_KILLS");
  const int n_kills = kills_text != nullptr ? std::atoi(kills_text) : 25;
  constexpr int kWriters = 8;
  FakeHost folder;
  const std::string path = folder.root() + "/ledger.db";
  ASSERT_TRUE(Ledger::open(path).ok());
  int acknowledged[2];
  ASSERT_EQ(::pipe(acknowledged), 0);
  const auto start_writer = [&](int serial) {
    const pid_t pid = ::fork();
    if (pid != 0) return pid;
    ::close(acknowledged[0]);
    auto ledger = Ledger::open(path);
    if (!ledger.ok()) ::_exit(3);
    for (int i = 0;; ++i) {
      LedgerEntry entry = sample_entry(i);
      entry.name = std::to_string(serial) + ":" + std::to_string(i);
      if (!(*ledger)->append(entry).ok()) ::_exit(4);
      const int32_t done[2] = {serial, i};
      if (::write(acknowledged[1], done, sizeof done) != sizeof done) ::_exit(5);
    }
  };
  Rng rng(20);
  std::vector<pid_t> writers;
  int serial = 0;
  for (; serial < kWriters; ++serial) writers.push_back(start_writer(serial));
  std::set<std::string> expected;
  const auto drain = [&](size_t rows) {
    int32_t done[2];
    for (size_t i = 0; i < rows && ::read(acknowledged[0], done, sizeof done) == sizeof done; ++i) {
      expected.insert(std::to_string(done[0]) + ":" + std::to_string(done[1]));
    }
  };
  for (int kill = 0; kill < n_kills; ++kill) {
    drain(rng.below(12));  // a random moment: after so many more rows of anyone, plus up to 3 ms
    ::usleep(rng.below(3000));
    const size_t victim = rng.below(kWriters);
    ::kill(writers[victim], SIGKILL);
    int status = 0;
    ASSERT_EQ(::waitpid(writers[victim], &status, 0), writers[victim]);
    EXPECT_TRUE(WIFSIGNALED(status)) << "a writer failed by itself with " << WEXITSTATUS(status);
    writers[victim] = start_writer(serial++);
  }
  for (const pid_t pid : writers) ::kill(pid, SIGKILL);
  for (const pid_t pid : writers) ::waitpid(pid, nullptr, 0);
  ::close(acknowledged[1]);
  drain(1u << 30);
  ASSERT_GT(expected.size(), 0u);

  std::set<std::string> found;
  auto ledger = Ledger::open(path);
  ASSERT_TRUE(ledger.ok()) << ledger.error().message;
  const auto rows = (*ledger)->read();
  ASSERT_TRUE(rows.ok());
  for (const LedgerEntry& entry : *rows) found.insert(entry.name);
  size_t lost = 0;
  for (const std::string& name : expected) lost += found.contains(name) ? 0 : 1;
  EXPECT_EQ(lost, 0u) << "of " << expected.size();
  auto database = Database::open(path, {0x46524c31, 2, ""});
  ASSERT_TRUE(database.ok());
  auto check = database->prepare("PRAGMA integrity_check");
  ASSERT_TRUE(check.ok());
  ASSERT_TRUE(check->step().value());
  EXPECT_EQ(check->text(0), "ok");
  RecordProperty("acknowledged", static_cast<int>(expected.size()));
  std::printf("%d kills, %zu rows acknowledged, %zu lost, integrity %s\n", n_kills, expected.size(), lost,
              check->text(0).c_str());
}

}  // namespace
}  // namespace frugal::meter
