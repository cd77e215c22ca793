// The sidecar: answers, refusals, shadow mode, model swaps under load, and one round over a real socket.
#include "cascade/serve/http.h"

#include <gtest/gtest.h>
#include <httplib.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <thread>

#include "base/file.h"
#include "cascade/synthetic.h"

namespace frugal::cascade {
namespace {

class SidecarTest : public testing::Test {
 protected:
  void SetUp() override {
    TrainOptions train;
    train.epochs = 1;
    path_ = testing::TempDir() + "sidecar_" + testing::UnitTest::GetInstance()->current_test_info()->name() +
            ".frm";
    ASSERT_TRUE(RewardModel::train(world_.spec(), world_.logs(500, 1), train).value().save(path_).ok());
    options_.model_path = path_;
  }
  void TearDown() override { std::filesystem::remove(path_); }

  std::unique_ptr<Sidecar> make() { return Sidecar::create(world_.spec(), options_).value(); }
  // Sets the file's time apart from the last one: its resolution may be coarser than this test is fast.
  void touch(int seconds) {
    std::filesystem::last_write_time(
        path_, std::filesystem::file_time_type::clock::now() + std::chrono::seconds(seconds));
  }

  SyntheticWorld world_ = SyntheticWorld::create({}).value();
  std::string path_;
  SidecarOptions options_;
  const std::string one_ = R"({"features":[0.1,0.2,0.3,0,0,0,0,0,0,0,0,0]})";
};

TEST_F(SidecarTest, AnswersWithAChainOfTheCascade) {
  auto sidecar = make();
  const auto answer = sidecar->decide(one_);
  ASSERT_EQ(answer.status, 200) << answer.body;
  const auto json = nlohmann::json::parse(answer.body);
  const int j = json["index"];
  EXPECT_EQ(json["chain"], chain_name(world_.spec(), j));
  EXPECT_EQ(json["flops"], chain_flops(world_.spec(), j));
  EXPECT_EQ(json["kind"], "priced");
  const auto batch = nlohmann::json::parse(
      sidecar->decide(R"({"requests":[[0.1,0.2,0.3,0,0,0,0,0,0,0,0,0],[null,0,0,0,0,0,0,0,0,0,0,0]]})").body);
  ASSERT_EQ(batch["decisions"].size(), 2u);
  EXPECT_EQ(batch["decisions"][0]["index"], j);
  EXPECT_EQ(batch["decisions"][1]["kind"], "no_reward");  // null is NaN: the cheapest, and it says so
  EXPECT_NE(sidecar->metrics().body.find("frugal_cascade_requests_total 3"), std::string::npos);
}

TEST_F(SidecarTest, RefusesWhatItCannotReadAndSaysWhy) {
  auto sidecar = make();
  for (const char* body : {"", "{", "[]", "1", "{}", R"({"features":1})", R"({"features":[1,2]})",
                           R"({"features":["a",0,0,0,0,0,0,0,0,0,0,0]})", R"({"requests":[1]})",
                           R"({"requests":{}})", "\xff\xfe"}) {
    const auto answer = sidecar->decide(body);
    EXPECT_EQ(answer.status, 400) << body;
    EXPECT_FALSE(nlohmann::json::parse(answer.body)["error"]["message"].get<std::string>().empty());
  }
  EXPECT_EQ(nlohmann::json::parse(sidecar->state().body)["bad_requests"], 11);
}

TEST_F(SidecarTest, DamagedModelIsRefusedAndTheOldOneServesOn) {
  auto sidecar = make();
  const std::string before = sidecar->decide(one_).body;
  EXPECT_FALSE(sidecar->reload());  // unchanged
  const std::string good = read_file(path_).value();
  ASSERT_TRUE(write_file_atomically(path_, good.substr(0, good.size() / 2)).ok());
  touch(10);
  EXPECT_FALSE(sidecar->reload());
  EXPECT_EQ(sidecar->decide(one_).body, before);
  EXPECT_EQ(nlohmann::json::parse(sidecar->state().body)["models_refused"], 1);
  TrainOptions train;
  train.epochs = 2;
  ASSERT_TRUE(RewardModel::train(world_.spec(), world_.logs(500, 9), train).value().save(path_).ok());
  touch(20);
  EXPECT_TRUE(sidecar->reload());
  EXPECT_NE(sidecar->decide(one_).body, before);
  options_.model_path = path_ + ".missing";
  EXPECT_FALSE(Sidecar::create(world_.spec(), options_).ok());
}

TEST_F(SidecarTest, ShadowModeAnswersItsChainAndCountsTheRest) {
  options_.shadow_chain = 63;
  options_.governor.controller.kind = budget::ControllerKind::kMpc;
  auto sidecar = make();
  const auto json =
      nlohmann::json::parse(sidecar->decide(R"({"features":[null,0,0,0,0,0,0,0,0,0,0,0]})").body);
  EXPECT_EQ(json["index"], 63);
  EXPECT_EQ(json["would_be"], 0);
  const auto state = nlohmann::json::parse(sidecar->state().body);
  EXPECT_NEAR(state["shadow"]["flops_saved"].get<double>(),
              1 - chain_flops(world_.spec(), 0) / chain_flops(world_.spec(), 63), 1e-9);
  options_.shadow_chain = 64;
  EXPECT_FALSE(Sidecar::create(world_.spec(), options_).ok());
}

TEST_F(SidecarTest, ChoosesFromTheMenuAlone) {
  const auto bodies = [&](const std::function<void(const std::string&)>& visit) {
    for (int i = -8; i <= 8; ++i)
      visit(nlohmann::json({{"features", std::vector<double>(12, 0.25 * i)}}).dump());
  };
  auto all = make();
  std::set<int> chosen;
  bodies([&](const std::string& body) {
    chosen.insert(nlohmann::json::parse(all->decide(body).body)["index"].get<int>());
  });
  ASSERT_FALSE(chosen.contains(17) && chosen.contains(40));
  options_.menu = {17, 40};
  options_.shadow_chain = 63;
  auto few = make();
  bodies([&](const std::string& body) {
    const auto json = nlohmann::json::parse(few->decide(body).body);
    EXPECT_TRUE(json["would_be"] == 17 || json["would_be"] == 40) << body;
  });
  const auto state = nlohmann::json::parse(few->state().body);
  EXPECT_EQ(state["menu"],
            nlohmann::json::array({chain_name(world_.spec(), 17), chain_name(world_.spec(), 40)}));
  EXPECT_GT(state["shadow"]["predicted_reward_ratio"].get<double>(), 0);  // its chain is not on the menu
  options_.menu = {64};
  EXPECT_FALSE(Sidecar::create(world_.spec(), options_).ok());
}

TEST_F(SidecarTest, ServesManyClientsOverHttpWhileTheModelIsSwapped) {
  auto sidecar = make();
  std::atomic<bool> stop{false};
  std::atomic<int> port{0};
  std::thread server(
      [&] { EXPECT_TRUE(serve_http(*sidecar, {}, stop, [&](int bound) { port = bound; }).ok()); });
  while (port == 0) std::this_thread::yield();
  std::atomic<int> good{0};
  std::vector<std::thread> clients;
  for (int c = 0; c < 3; ++c) {
    clients.emplace_back([&] {
      httplib::Client client("127.0.0.1", port);
      client.set_keep_alive(true);
      for (int i = 0; i < 50; ++i) {
        const auto response = client.Post("/v1/decide", one_, "application/json");
        if (response && response->status == 200 && nlohmann::json::parse(response->body).contains("chain"))
          ++good;
      }
    });
  }
  for (auto& client : clients) client.join();
  EXPECT_EQ(good, 150);
  httplib::Client client("127.0.0.1", port);
  EXPECT_EQ(client.Get("/healthz")->status, 200);
  EXPECT_EQ(client.Get("/nothing")->status, 404);
  EXPECT_EQ(client.Post("/v1/decide", "{", "application/json")->status, 400);
  EXPECT_EQ(nlohmann::json::parse(client.Get("/v1/state")->body)["requests"], 150);
  stop = true;
  server.join();
}

}  // namespace
}  // namespace frugal::cascade
