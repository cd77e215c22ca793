// Hosts that share jobs over a real nats-server: each job is one host's, whatever dies. Nothing here asserts
// on how fast: it waits for what has to happen.
#include "jobs/hosts/pool.h"

#include <gtest/gtest.h>
#include <nats/nats.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <thread>

#include "base/clock.h"
#include "base/text.h"

extern char** environ;

namespace frugal::jobs {
namespace {

constexpr char kServer[] = "/usr/sbin/nats-server";

// A nats-server with JetStream on disk, on a port of its own choice, on loopback.
class Server {
 public:
  Server() : folder_(testing::TempDir() + strf("pool_test_%d", getpid())) { start(-1); }
  ~Server() {
    stop(SIGKILL);
    std::filesystem::remove_all(folder_);
  }
  void start(int port) {
    const std::string ports = folder_ + "/ports", store = folder_ + "/store", number = std::to_string(port);
    std::filesystem::remove_all(ports);
    std::filesystem::create_directories(ports);
    const char* arguments[] = {
        kServer, "-a",          "127.0.0.1",        "-p",          number.c_str(), "-js",
        "-sd",   store.c_str(), "--ports_file_dir", ports.c_str(), "-l",           "/dev/null",
        nullptr};
    ASSERT_EQ(0, posix_spawn(&pid_, kServer, nullptr, nullptr, const_cast<char**>(arguments), environ));
    for (int tries = 0; tries < 3000 && url_of(ports).empty(); ++tries)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    url_ = url_of(ports);
    ASSERT_FALSE(url_.empty());
  }
  void stop(int signal) {
    ::kill(pid_, signal);
    ::waitpid(pid_, nullptr, 0);
  }
  const std::string& url() const { return url_; }
  int port() const { return std::atoi(url_.substr(url_.rfind(':') + 1).c_str()); }

 private:
  static std::string url_of(const std::string& folder) {
    for (const auto& file : std::filesystem::directory_iterator(folder)) {
      std::ifstream stream(file.path());
      const std::string text((std::istreambuf_iterator<char>(stream)), {});
      const size_t at = text.find("nats://");
      if (at != std::string::npos && text.find('}') != std::string::npos)
        return text.substr(at, text.find('"', at) - at);
    }
    return "";
  }
  std::string folder_, url_;
  pid_t pid_ = 0;
};

class PoolTest : public testing::Test {
 protected:
  std::unique_ptr<Pool> host(const std::string& name, double lease_s = 1) {
    PoolOptions options;
    options.url = server_.url();
    options.host = name;
    options.lease_s = lease_s;
    auto pool = Pool::open(options);
    EXPECT_TRUE(pool.ok()) << pool.error().message;
    return std::move(pool).value();
  }
  static Job job(bool restartable = false) {
    Job job;
    job.command = {"sh", "-c", "echo \"quoted\"; true"};
    job.folder = "/";
    job.submitted_unix_s = clock_seconds(CLOCK_REALTIME);
    job.deadline_unix_s = job.submitted_unix_s + 3600;
    job.takes_s = 60;
    job.restartable = restartable;
    job.rates = {1, 1.5};
    return job;
  }
  // What a host is offered at last.
  static Offer wait_for_offer(Pool& pool) {
    for (int tries = 0; tries < 600; ++tries) {
      auto offer = pool.next();
      if (offer.ok() && *offer) return **std::move(offer);
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
    }
    ADD_FAILURE() << "no offer came";
    return {};
  }
  static PooledJob only(Pool& pool) {
    const auto all = pool.list();
    EXPECT_TRUE(all.ok());
    EXPECT_EQ(all->size(), 1u);
    return all->empty() ? PooledJob{} : all->front();
  }
  Server server_;
};

TEST_F(PoolTest, AJobIsTakenRunAndToldOfOnce) {
  auto a = host("a", 60);
  EXPECT_FALSE(a->next().value().has_value());
  const std::string id = a->submit(job()).value();
  const Offer offer = wait_for_offer(*a);
  EXPECT_EQ(offer.pooled.id, id);
  EXPECT_EQ(offer.pooled.job.command, job().command);
  EXPECT_EQ(offer.pooled.job.rates, job().rates);
  EXPECT_TRUE(a->take(offer).value());
  EXPECT_FALSE(a->take(offer).value()) << "what was read before is old by now";
  Job running = offer.pooled.job;
  running.state = JobState::kRunning;
  EXPECT_TRUE(a->tell(id, offer.lease, running).value());
  EXPECT_EQ(a->extend(id, offer.lease).value(), Pool::Held::kYes);
  running.state = JobState::kDone;
  running.energy_j = 12;
  running.energy_from = 2;
  EXPECT_TRUE(a->tell(id, offer.lease, running, {{100, 130, 1}, {400, 430.5, 2}}).value());
  EXPECT_EQ(only(*a).job.state, JobState::kDone);
  ASSERT_EQ(only(*a).runs.size(), 2u);
  EXPECT_EQ(only(*a).runs[1].end_unix_s, 430.5);
  EXPECT_EQ(only(*a).runs[1].workers, 2);
  EXPECT_EQ(a->retry(id).error().code, ErrorCode::kInvalidArgument) << "it is done";
  EXPECT_EQ(only(*a).host, "a");
  EXPECT_EQ(only(*a).job.energy().value, 12);
  EXPECT_FALSE(a->next().value().has_value());
  EXPECT_FALSE(a->cancel(id).value());
  EXPECT_EQ(a->cancel("0-0-0").error().code, ErrorCode::kNotFound);
  EXPECT_EQ(a->submit(Job()).error().code, ErrorCode::kInvalidArgument);
}

TEST_F(PoolTest, ASilentHostsRestartableJobGoesToAnother) {
  auto a = host("a"), b = host("b");
  const std::string id = a->submit(job(true)).value();
  const Offer first = wait_for_offer(*a);
  ASSERT_TRUE(a->take(first).value());
  Job running = first.pooled.job;
  running.state = JobState::kRunning;
  running.ran_s = 30;
  ASSERT_TRUE(a->tell(id, first.lease, running).value());
  const Offer second = wait_for_offer(*b);
  EXPECT_EQ(second.pooled.id, id);
  EXPECT_EQ(second.pooled.job.ran_s, 0) << "it is begun anew";
  ASSERT_TRUE(b->take(second).value());
  // The first host comes back.
  EXPECT_EQ(a->extend(id, first.lease).value(), Pool::Held::kNo);
  running.state = JobState::kDone;
  EXPECT_FALSE(a->tell(id, first.lease, running).value());
  EXPECT_EQ(only(*b).host, "b");
}

TEST_F(PoolTest, ASilentHostsOtherJobIsInterruptedAndNeverRunTwice) {
  auto a = host("a"), b = host("b");
  const std::string id = a->submit(job()).value();
  const Offer first = wait_for_offer(*a);
  ASSERT_TRUE(a->take(first).value());
  Job running = first.pooled.job;
  running.state = JobState::kRunning;
  ASSERT_TRUE(a->tell(id, first.lease, running).value());
  for (int tries = 0; tries < 600 && only(*b).job.state != JobState::kInterrupted; ++tries)
    EXPECT_FALSE(b->next().value().has_value());
  EXPECT_EQ(only(*b).job.state, JobState::kInterrupted);
  EXPECT_NE(only(*b).job.error.find("host a"), std::string::npos);
  // It had run on, out of sight.
  running.state = JobState::kDone;
  EXPECT_TRUE(a->tell(id, first.lease, running).value());
  EXPECT_EQ(only(*b).job.state, JobState::kDone);
}

TEST_F(PoolTest, CancellingReachesJobsThatWaitAndJobsThatRun) {
  auto a = host("a", 60);
  ASSERT_TRUE(a->cancel(a->submit(job()).value()).value());
  EXPECT_FALSE(a->next().value().has_value());
  const std::string id = a->submit(job()).value();
  const Offer offer = wait_for_offer(*a);
  ASSERT_TRUE(a->take(offer).value());
  ASSERT_TRUE(a->cancel(id).value());
  EXPECT_EQ(a->extend(id, offer.lease).value(), Pool::Held::kCancel);
}

TEST_F(PoolTest, WhatFailedIsRetriedOnceUnderAnIdOfItsOwn) {
  auto a = host("a", 60);
  const std::string id = a->submit(job()).value();
  EXPECT_EQ(a->retry(id).error().code, ErrorCode::kInvalidArgument) << "it is not over";
  EXPECT_EQ(a->retry("0-0-0").error().code, ErrorCode::kNotFound);
  const Offer offer = wait_for_offer(*a);
  ASSERT_TRUE(a->take(offer).value());
  Job failed = offer.pooled.job;
  failed.state = JobState::kFailed;
  failed.exit_code = 3;
  failed.ran_s = 20;
  failed.energy_j = 5;
  failed.error = "why";
  ASSERT_TRUE(a->tell(id, offer.lease, failed).value());
  const std::string anew = a->retry(id).value();
  EXPECT_NE(anew, id);
  EXPECT_EQ(a->retry(id).error().code, ErrorCode::kInvalidArgument) << "it was retried";
  const Offer again = wait_for_offer(*a);
  EXPECT_EQ(again.pooled.id, anew);
  EXPECT_EQ(again.pooled.job.command, job().command);
  EXPECT_EQ(again.pooled.job.ran_s, 0);
  EXPECT_EQ(again.pooled.job.energy_j, 0);
  EXPECT_EQ(again.pooled.job.error, "");
  EXPECT_EQ(a->list().value()[0].job.exit_code, 3) << "the old one stays as it ended";
}

TEST_F(PoolTest, WhatOneHostLeavesIsOfferedToAnother) {
  auto a = host("a", 60), b = host("b", 60);
  const std::string id = a->submit(job()).value();
  ASSERT_TRUE(a->leave(wait_for_offer(*a), 0.1).ok());
  EXPECT_EQ(wait_for_offer(*b).pooled.id, id);
}

TEST_F(PoolTest, HostsThatCompeteTakeEachJobOnce) {
  constexpr int kJobs = 30;
  auto sender = host("s", 60);
  for (int i = 0; i < kJobs; ++i) ASSERT_TRUE(sender->submit(job()).ok());
  std::map<std::string, int> taken;
  std::mutex mutex;
  std::vector<std::thread> hosts;
  for (int h = 0; h < 3; ++h) {
    hosts.emplace_back([&, h] {
      auto pool = host(strf("h%d", h), 60);
      for (auto offer = pool->next(); offer.ok() && *offer; offer = pool->next()) {
        if (!pool->take(**offer).value()) continue;
        const std::lock_guard lock(mutex);
        ++taken[(*offer)->pooled.id];
      }
    });
  }
  for (std::thread& thread : hosts) thread.join();
  EXPECT_EQ(taken.size(), static_cast<size_t>(kJobs));
  for (const auto& [id, n] : taken) EXPECT_EQ(n, 1) << id;
}

TEST_F(PoolTest, AServerThatIsKilledLosesNothingAcknowledged) {
  auto a = host("a", 60);
  const std::string id = a->submit(job()).value();
  const int port = server_.port();
  server_.stop(SIGKILL);
  EXPECT_FALSE(a->submit(job()).ok());
  server_.start(port);
  auto b = host("b", 60);
  EXPECT_EQ(wait_for_offer(*b).pooled.id, id);
}

TEST_F(PoolTest, DamagedJobsAreDroppedAndTheRestGoesOn) {
  auto a = host("a", 60);
  natsConnection* connection = nullptr;
  ASSERT_EQ(natsConnection_ConnectTo(&connection, server_.url().c_str()), NATS_OK);
  const char* texts[] = {"",
                         "[]",
                         "{",
                         "{\"version\":1}",
                         "{\"version\":2}",
                         "{\"version\":1,\"command\":\"rm\",\"takes_s\":\"long\"}",
                         "\xff\xfe"};
  for (size_t i = 0; i < std::size(texts); ++i)
    natsConnection_PublishString(connection, strf("frugal_jobs.work.bad%zu", i).c_str(), texts[i]);
  natsConnection_FlushTimeout(connection, 5000);
  natsConnection_Destroy(connection);
  const std::string id = a->submit(job()).value();
  EXPECT_EQ(wait_for_offer(*a).pooled.id, id);
  EXPECT_EQ(a->list().value().size(), 1u);
}

TEST(PoolAlone, NoServerIsSaid) {
  PoolOptions options;
  options.url = "nats://127.0.0.1:1";
  const auto pool = Pool::open(options);
  ASSERT_FALSE(pool.ok());
  EXPECT_EQ(pool.error().code, ErrorCode::kUnavailable);
  EXPECT_NE(pool.error().message.find("nats-server -js"), std::string::npos);
}

}  // namespace
}  // namespace frugal::jobs
