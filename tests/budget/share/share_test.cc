// Allocators that share a price through a real nats-server: one leads, prices and accounts spread, the death
// of the leader and of the server are survived. Nothing here asserts on how fast: it waits for what has to
// happen.
#include "budget/share/share.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <thread>

#include "base/text.h"

extern char** environ;

namespace frugal::budget {
namespace {

constexpr char kServer[] = "/usr/sbin/nats-server";

// A nats-server with JetStream on a port of its own choice, on loopback.
class Server {
 public:
  Server() : folder_(testing::TempDir() + strf("share_test_%d", getpid())) {
    std::filesystem::create_directories(folder_);
    start(-1);
  }
  ~Server() {
    stop();
    std::filesystem::remove_all(folder_);
  }
  void start(int port) {
    const std::string ports = folder_ + "/ports", store = folder_ + "/store";
    std::filesystem::remove_all(ports);
    std::filesystem::create_directories(ports);
    const std::string port_text = std::to_string(port);
    const char* arguments[] = {kServer,
                               "-a",
                               "127.0.0.1",
                               "-p",
                               port_text.c_str(),
                               "-js",
                               "-sd",
                               store.c_str(),
                               "--ports_file_dir",
                               ports.c_str(),
                               "-l",
                               "/dev/null",
                               nullptr};
    ASSERT_EQ(0, posix_spawn(&pid_, kServer, nullptr, nullptr, const_cast<char**>(arguments), environ));
    for (int tries = 0; tries < 3000 && url_of(ports).empty(); ++tries)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    url_ = url_of(ports);
    ASSERT_FALSE(url_.empty());
  }
  void stop() {
    if (pid_ <= 0) return;
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
    pid_ = 0;
  }
  int port() const { return std::stoi(url_.substr(url_.rfind(':') + 1)); }
  const std::string& url() const { return url_; }

 private:
  // {"nats":["nats://127.0.0.1:PORT"]}
  static std::string url_of(const std::string& folder) {
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      std::ifstream file(entry.path());
      const std::string text((std::istreambuf_iterator<char>(file)), {});
      const size_t at = text.find("nats://"), end = text.find('"', at);
      if (at != std::string::npos && end != std::string::npos) return text.substr(at, end - at);
    }
    return "";
  }
  std::string folder_, url_;
  pid_t pid_ = 0;
};

bool wait_for(const std::function<bool()>& done) {
  for (int tries = 0; tries < 6000; ++tries) {
    if (done()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return false;
}

std::shared_ptr<Governor> governor_of(double initial_price) {
  const auto table = ChainTable::create({"flops"}, {{"small", {}, {1}}, {"large", {}, {10}}}).value();
  GovernorOptions options;
  options.align_windows = true;
  options.controller.kind = ControllerKind::kStatic;  // a leader's price is then known
  ResourceOptions flops;
  flops.budget = Schedule::constant(1e6);
  flops.initial_price = initial_price;
  return Governor::create(table, {flops}, options).value();
}

class ShareTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(std::filesystem::exists(kServer)) << "no nats-server: the set-up installs it";
    server_ = std::make_unique<Server>();
    options_.url = server_->url();
    options_.sync_s = 0.02;
    options_.lease_s = 0.5;
    options_.max_stale_s = 1;
  }
  std::unique_ptr<PriceShare> join(const std::shared_ptr<Governor>& governor) {
    return PriceShare::start(governor, options_).value();
  }
  std::unique_ptr<Server> server_;
  ShareOptions options_;
};

TEST_F(ShareTest, OneLeadsAllHaveItsPriceAndCountEachOthersUse) {
  std::vector<std::shared_ptr<Governor>> governors;
  std::vector<std::unique_ptr<PriceShare>> shares;
  for (int i = 0; i < 4; ++i) {
    governors.push_back(governor_of(0.01 * (i + 1)));
    shares.push_back(join(governors.back()));
  }
  const auto leaders = [&] {
    int n = 0;
    for (const auto& share : shares) n += share != nullptr && share->state().leading ? 1 : 0;
    return n;
  };
  const auto one_price = [&] {
    for (size_t i = 0; i < governors.size(); ++i) {
      if (shares[i] == nullptr) continue;
      for (size_t j = 0; j < governors.size(); ++j) {
        if (shares[j] != nullptr && governors[i]->state().prices != governors[j]->state().prices)
          return false;
      }
    }
    return true;
  };
  ASSERT_TRUE(wait_for([&] { return leaders() == 1 && one_price(); }));
  // What one spends counts against the budget of all. (Spending goes on while waiting: a window may end.)
  auto decider = governors[0]->open_decider();
  const std::vector<float> rewards{0, 100};
  EXPECT_TRUE(wait_for([&] {
    (void)decider->decide(rewards);
    for (size_t i = 1; i < governors.size(); ++i) {
      if (governors[i]->state().window_spent[0] < 1) return false;
    }
    return true;
  }));
  // The leader dies: another one leads, its price is everybody's.
  size_t dead = 0;
  while (!shares[dead]->state().leading) ++dead;
  shares[dead].reset();
  ASSERT_TRUE(wait_for([&] { return leaders() == 1 && one_price(); }));
  for (const auto& share : shares) {
    if (share != nullptr) {
      EXPECT_FALSE(share->state().isolated);
    }
  }
}

TEST_F(ShareTest, LossOfTheServerIsSurvivedAndEnds) {
  auto governor = governor_of(0.5), other = governor_of(0.25);
  auto share = join(governor), second = join(other);
  ASSERT_TRUE(wait_for([&] { return share->state().leading || second->state().leading; }));
  ASSERT_TRUE(wait_for([&] { return governor->state().prices == other->state().prices; }));
  const auto last = governor->state().prices;
  const int port = server_->port();
  server_->stop();
  ASSERT_TRUE(wait_for([&] { return !share->state().connected && !second->state().connected; }));
  EXPECT_EQ(governor->state().prices, last);  // the last good price holds
  ASSERT_TRUE(wait_for([&] { return share->state().isolated && second->state().isolated; }));
  auto decider = governor->open_decider();
  EXPECT_EQ(decider->decide(std::vector<float>{0, 100}).chain, 1);  // and requests are served
  server_->start(port);  // without what it held: its memory is gone
  EXPECT_TRUE(wait_for([&] {
    return share->state().connected && second->state().connected && !share->state().isolated &&
           !second->state().isolated && share->state().leading != second->state().leading;
  }));
}

TEST(Share, NoServerAtAllIsNoError) {
  ShareOptions options;
  options.url = "nats://127.0.0.1:1";
  options.sync_s = 0.01, options.lease_s = 0.05, options.max_stale_s = 0.1;
  auto governor = governor_of(0.5);
  auto share = PriceShare::start(governor, options).value();
  EXPECT_TRUE(wait_for([&] { return share->state().isolated; }));
  EXPECT_FALSE(share->state().connected);
  EXPECT_EQ(governor->open_decider()->decide(std::vector<float>{0, 100}).chain, 1);
}

TEST(Share, RefusesOptionsThatMakeNoSense) {
  const auto refused = [](const std::function<void(ShareOptions&)>& spoil) {
    ShareOptions options;
    spoil(options);
    return !PriceShare::start(governor_of(0), options).ok();
  };
  EXPECT_TRUE(refused([](ShareOptions& o) { o.sync_s = 0; }));
  EXPECT_TRUE(refused([](ShareOptions& o) { o.lease_s = o.sync_s; }));
  EXPECT_TRUE(refused([](ShareOptions& o) { o.max_stale_s = 0; }));
  EXPECT_TRUE(refused([](ShareOptions& o) { o.bucket = "a b"; }));
  EXPECT_TRUE(refused([](ShareOptions& o) { o.id = "x.y"; }));
  EXPECT_FALSE(PriceShare::start(nullptr, {}).ok());
}

}  // namespace
}  // namespace frugal::budget
