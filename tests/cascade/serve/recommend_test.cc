// The whole cascade over HTTP: items out, by stages of the user's own behind HTTP beside others; what a
// request gets equals the runner's answer, batched or not; stages that fail, answers that make no sense, and
// bodies that do not fit are told.
#include <gtest/gtest.h>
#include <httplib.h>

#include <cmath>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "cascade/serve/http.h"

namespace frugal::cascade {
namespace {

constexpr int kItems = 40, kLength = 3;

// recall: a local model; rank: one local and one remote.
CascadeSpec spec_with(const std::string& remote) {
  CascadeSpec spec;
  spec.features = {"x", "y"};
  spec.shown = 3;
  spec.history_length = kLength;
  spec.n_items = kItems;
  spec.stages = {{"recall", {{"all", "", 10, 0}}, {12, 24}},
                 {"rank", {{"near", "", 0, 5}, {"far", remote, 0, 50}}, {3}}};
  for (int n = 0; n < 2; ++n) {
    for (int m = 0; m < 2; ++m) spec.chains.push_back({0, n, m, 0});
  }
  return spec;
}

float toy_score(bool far, const int64_t* history, int64_t item) {
  const int64_t mixed = item * 7 + history[kLength - 1] * 3 + (far ? item % 5 : 0);
  return static_cast<float>(mixed % 23);
}

class ToyScorer final : public Scorer {
 public:
  explicit ToyScorer(bool far) : far_(far) {}
  Result<std::span<float>> score(std::span<const int64_t> histories, std::span<const int64_t> items,
                                 int batch, int n) override {
    scores_.clear();
    for (int b = 0; b < batch; ++b) {
      for (int i = 0; i < n; ++i)
        scores_.push_back(toy_score(far_, &histories[static_cast<size_t>(b * kLength)],
                                    items.empty() ? i : items[static_cast<size_t>(b * n + i)]));
    }
    return std::span<float>(scores_);
  }

 private:
  std::vector<float> scores_;
  bool far_;
};

// Local stages are toys, addresses are really asked.
Result<std::unique_ptr<Scorer>> open_toy(const std::string& folder, const CascadeSpec& spec, int stage,
                                         int model, int n_threads) {
  const auto& file = spec.stages[static_cast<size_t>(stage)].models[static_cast<size_t>(model)].file;
  if (!file.empty()) return open_scorer(folder, spec, stage, model, n_threads);
  return std::unique_ptr<Scorer>(std::make_unique<ToyScorer>(false));
}

// A user's scorer: answers as ToyScorer would, or as badly as it is told to.
class RemoteHost {
 public:
  RemoteHost() {
    server_.Post("/rank", [this](const httplib::Request& request, httplib::Response& response) {
      ++asked;
      const auto json = nlohmann::json::parse(request.body);
      if (json["model"] != "far") ++asked_for_another_model;
      auto scores = nlohmann::json::array();
      for (size_t b = 0; b < json["histories"].size(); ++b) {
        const auto history = json["histories"][b].get<std::vector<int64_t>>();
        auto row = nlohmann::json::array();
        for (const int64_t item : json["items"][b].get<std::vector<int64_t>>())
          row.push_back(toy_score(true, history.data(), item));
        if (fault == 3) row[0] = nullptr;
        scores.push_back(row);
      }
      if (fault == 1) response.status = 500;
      response.set_content(fault == 2 ? "{\"scores\":[[1]]}" : nlohmann::json{{"scores", scores}}.dump(),
                           "application/json");
    });
    port_ = server_.bind_to_any_port("127.0.0.1");
    thread_ = std::thread([this] { server_.listen_after_bind(); });
    while (!server_.is_running()) std::this_thread::yield();
  }
  ~RemoteHost() {
    server_.stop();
    thread_.join();
  }
  std::string url() const { return "http://127.0.0.1:" + std::to_string(port_) + "/rank"; }
  std::atomic<int> asked{0}, asked_for_another_model{0}, fault{0};  // several threads serve

 private:
  httplib::Server server_;
  int port_ = 0;
  std::thread thread_;
};

void train_toy(const CascadeSpec& spec, const std::string& path) {
  LoggedChains logs;
  for (int i = 0; i < 128; ++i) {
    logs.features.insert(logs.features.end(), {static_cast<float>(i % 7) / 7, static_cast<float>(i % 5) / 5});
    logs.chains.push_back(i % 4);
    logs.propensity.push_back(0.25f);
    logs.rewards.push_back(static_cast<float>(i % 4 + i % 7));
  }
  logs.n = 128;
  logs.n_features = 2;
  TrainOptions train;
  train.epochs = 2;
  ASSERT_TRUE(RewardModel::train(spec, logs, train).value().save(path).ok());
}

class RecommendTest : public testing::Test {
 protected:
  void SetUp() override { open(spec_with(host_.url())); }
  void TearDown() override { close(); }

  void open(const CascadeSpec& spec, int shadow = -1) {
    spec_ = spec;
    model_ = testing::TempDir() + "recommend_test.frm";
    train_toy(spec_, model_);
    SidecarOptions options;
    options.model_path = model_;
    options.items_folder = "somewhere";
    options.items.runner.open = open_toy;
    options.items.n_runners = n_runners_;
    options.shadow_chain = shadow;
    sidecar_ = Sidecar::create(spec_, options).value();
    stop_ = false;
    port_ = 0;
    server_ = std::thread([this] {
      EXPECT_TRUE(serve_http(*sidecar_, {.n_loops = 2}, stop_, [&](int bound) { port_ = bound; }).ok());
    });
    while (port_ == 0) std::this_thread::yield();
  }
  void close() {
    stop_ = true;
    if (server_.joinable()) server_.join();
    sidecar_.reset();
    std::filesystem::remove(model_);
  }
  nlohmann::json post(const std::string& body, int status = 200, const std::string& path = "/v1/recommend") {
    httplib::Client client("127.0.0.1", port_);
    const auto response = client.Post(path, body, "application/json");
    EXPECT_TRUE(response);
    if (!response) return {};
    EXPECT_EQ(response->status, status) << response->body;
    return nlohmann::json::parse(response->body);
  }
  // By the runner alone, every stage a toy.
  std::vector<int> expected(std::vector<int64_t> history, std::vector<int32_t> seen, int chain) const {
    RunnerOptions options;
    options.open = [](const std::string&, const CascadeSpec& spec, int stage, int model,
                      int) -> Result<std::unique_ptr<Scorer>> {
      const bool far =
          !spec.stages[static_cast<size_t>(stage)].models[static_cast<size_t>(model)].file.empty();
      return std::unique_ptr<Scorer>(std::make_unique<ToyScorer>(far));
    };
    auto runner = CascadeRunner::load("", spec_, options).value();
    std::vector<std::vector<int>> items;
    const CascadeRequest request{history, seen, chain};
    EXPECT_TRUE(runner->serve({&request, 1}, items).ok());
    return items.at(0);
  }

  RemoteHost host_;
  CascadeSpec spec_;
  std::string model_;
  int n_runners_ = 2;
  std::unique_ptr<Sidecar> sidecar_;
  std::atomic<bool> stop_{false};
  std::atomic<int> port_{0};
  std::thread server_;
};

TEST_F(RecommendTest, ItemsAreTheRunnersAloneInABodyAndInACrowd) {
  // Shadow mode fixes the chain: every one is asked for, the remote model among them.
  for (int chain = 0; chain < 4; ++chain) {
    close();
    open(spec_with(host_.url()), chain);
    const auto one = post(R"({"features":[0.5,0.5],"history":[9,4,5,6],"seen":[1,2,3]})");
    EXPECT_EQ(one["index"], chain);
    EXPECT_TRUE(one["shadow"].get<bool>());
    EXPECT_EQ(one["items"], expected({4, 5, 6}, {1, 2, 3}, chain));  // of a long history the newest
    const auto two = post(
        R"({"requests":[{"features":[0.1,0.2],"history":[8]},{"features":[0.9,0.2],"history":[4,5,6],"seen":[1,2,3]}]})");
    EXPECT_EQ(two["decisions"][0]["items"], expected({0, 0, 8}, {}, chain));  // a short one is filled up
    EXPECT_EQ(two["decisions"][1]["items"], one["items"]);
  }
  EXPECT_GT(host_.asked, 0);
  EXPECT_EQ(host_.asked_for_another_model, 0);
  std::atomic<int> good{0};
  std::vector<std::thread> clients;
  for (int c = 0; c < 6; ++c) {
    clients.emplace_back([&, c] {
      httplib::Client client("127.0.0.1", port_);
      client.set_keep_alive(true);
      const auto wanted = expected({0, c + 1, 2}, {7}, 3);
      for (int i = 0; i < 20; ++i) {
        const auto response =
            client.Post("/v1/recommend",
                        "{\"features\":[0,1],\"seen\":[7],\"history\":[" + std::to_string(c + 1) + ",2]}",
                        "application/json");
        if (response && response->status == 200 && nlohmann::json::parse(response->body)["items"] == wanted)
          ++good;
      }
    });
  }
  for (auto& client : clients) client.join();
  EXPECT_EQ(good, 120);
  httplib::Client client("127.0.0.1", port_);
  EXPECT_EQ(nlohmann::json::parse(client.Get("/v1/state")->body)["recommended"], 123);
}

TEST_F(RecommendTest, AStageThatFailsFailsItsOwnRequestsAndSaysWhy) {
  close();
  n_runners_ = 1;                   // each has its own idea of who is away
  open(spec_with(host_.url()), 1);  // the remote ranker
  const std::string body = R"({"features":[0.5,0.5],"history":[4]})";
  host_.fault = 1;
  EXPECT_NE(post(body, 503)["error"]["message"].get<std::string>().find("status 500"), std::string::npos);
  const int asked = host_.asked;
  EXPECT_NE(post(body, 503)["error"]["message"].get<std::string>().find("a moment ago"), std::string::npos);
  EXPECT_EQ(host_.asked, asked);  // nobody asks a dead host for each request
  std::this_thread::sleep_for(std::chrono::milliseconds(1100));
  host_.fault = 2;
  EXPECT_NE(post(body, 503)["error"]["message"].get<std::string>().find("scores"), std::string::npos);
  std::this_thread::sleep_for(std::chrono::milliseconds(1100));
  host_.fault = 3;  // null: no score
  EXPECT_EQ(post(body)["items"].size(), 3u);
  host_.fault = 0;
  EXPECT_EQ(post(body)["items"], expected({0, 0, 4}, {}, 1));
  httplib::Client client("127.0.0.1", port_);
  EXPECT_EQ(nlohmann::json::parse(client.Get("/v1/state")->body)["failed"], 3);
  close();
  open(spec_with("http://127.0.0.1:1/rank"), 1);  // nobody there
  EXPECT_EQ(post(body, 503)["error"]["code"], "unavailable");
  close();
  open(spec_with("http://127.0.0.1:1/rank"), 0);  // the chain does not need it
  EXPECT_EQ(post(body)["items"].size(), 3u);
}

TEST_F(RecommendTest, BodiesThatDoNotFitAreRefusedWithTheReason) {
  for (const char* body :
       {"", "{", "[]", "{}", R"({"requests":[]})", R"({"requests":{}})", R"({"requests":[1]})",
        R"({"features":[1]})", R"({"features":"a"})", R"({"features":[0,0],"history":1})",
        R"({"features":[0,0],"history":[1.5]})", R"({"features":[0,0],"history":[41]})",
        R"({"features":[0,0],"history":[-1]})", R"({"features":[0,0],"seen":["a"]})",
        R"({"features":[0,0],"seen":[99]})", R"({"requests":[{"features":[0,0]},{"features":[0]}]})"}) {
    EXPECT_FALSE(post(body, 400)["error"]["message"].get<std::string>().empty()) << body;
  }
  EXPECT_EQ(host_.asked, 0);
  // NaN (null) features get the cheapest chain, and items.
  const auto blind = post(R"({"features":[null,0],"history":[4]})");
  EXPECT_EQ(blind["kind"], "no_reward");
  EXPECT_EQ(blind["items"].size(), 3u);
  httplib::Client client("127.0.0.1", port_);
  EXPECT_EQ(client.Get("/v1/recommend")->status, 405);
  EXPECT_EQ(client.Post("/v1/state", "", "text/plain")->status, 405);
  EXPECT_EQ(client.Post("/v1/decide", std::string(9 << 20, ' '), "application/json")->status, 413);
  EXPECT_EQ(client.Get("/healthz")->status, 200);
}

TEST(Serve, RefusesAnAddressThatIsTakenOrIsNotOurs) {
  SidecarOptions options;
  EXPECT_FALSE(Sidecar::create(spec_with(""), options).ok());  // no model
  httplib::Server other;
  const int taken = other.bind_to_any_port("127.0.0.1");
  const CascadeSpec spec = spec_with("");
  options.model_path = testing::TempDir() + "serve_test.frm";
  train_toy(spec, options.model_path);
  auto sidecar = Sidecar::create(spec, options).value();
  std::atomic<bool> stop{true};
  const auto nothing = [](int) {};
  EXPECT_EQ(serve_http(*sidecar, {.port = taken}, stop, nothing).error().code, ErrorCode::kIo);
  EXPECT_EQ(serve_http(*sidecar, {.host = "203.0.113.1"}, stop, nothing).error().code, ErrorCode::kIo);
  EXPECT_EQ(serve_http(*sidecar, {.n_loops = 0}, stop, nothing).error().code, ErrorCode::kInvalidArgument);
  std::filesystem::remove(options.model_path);
}

}  // namespace
}  // namespace frugal::cascade
