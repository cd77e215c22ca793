// The client against a real server on loopback.
#include "meter/http/http.h"

#include <gtest/gtest.h>
#include <httplib.h>

#include <thread>

namespace frugal::meter {
namespace {

class Http : public testing::Test {
 protected:
  Http() {
    server_.Get("/data", [](const httplib::Request& request, httplib::Response& response) {
      response.set_content(request.get_param_value("zone") + request.get_header_value("auth-token"),
                           "text/plain");
    });
    server_.Get("/moved",
                [](const httplib::Request&, httplib::Response& r) { r.set_redirect("/data?zone=ES"); });
    server_.Get("/large", [](const httplib::Request&, httplib::Response& r) {
      r.set_content(std::string(100000, 'x'), "text/plain");
    });
    for (const int status : {401, 404, 429, 500, 418}) {
      server_.Get("/" + std::to_string(status),
                  [status](const httplib::Request&, httplib::Response& r) { r.status = status; });
    }
    server_.Post("/v1/metrics", [](const httplib::Request& request, httplib::Response& r) {
      r.set_content(request.get_header_value("Content-Type") + " " + request.body, "text/plain");
    });
    port_ = server_.bind_to_any_port("127.0.0.1");
    thread_ = std::thread([this] { server_.listen_after_bind(); });
    while (!server_.is_running()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  ~Http() override {
    server_.stop();
    thread_.join();
  }
  std::string url(const std::string& path) const {
    return "http://127.0.0.1:" + std::to_string(port_) + path;
  }

  httplib::Server server_;
  std::thread thread_;
  int port_ = 0;
};

TEST_F(Http, GetsWithQueryHeadersAndRedirects) {
  HttpOptions options;
  options.headers = {{"auth-token", "-secret"}};
  EXPECT_EQ(http_get(url("/data?zone=US-CAL-CISO"), options).value(), "US-CAL-CISO-secret");
  EXPECT_EQ(http_get(url("/moved")).value(), "ES");
}

TEST_F(Http, PostsWithItsContentType) {
  EXPECT_EQ(http_post(url("/v1/metrics"), "{}", "application/json").value(), "application/json {}");
}

TEST_F(Http, FaultsAreToldApart) {
  EXPECT_EQ(http_get(url("/401")).error().code, ErrorCode::kPermission);
  EXPECT_EQ(http_get(url("/404")).error().code, ErrorCode::kNotFound);
  EXPECT_EQ(http_get(url("/429")).error().code, ErrorCode::kUnavailable);
  EXPECT_EQ(http_get(url("/500")).error().code, ErrorCode::kUnavailable);
  EXPECT_EQ(http_get(url("/418")).error().code, ErrorCode::kUnsupported);
  HttpOptions small;
  small.max_bytes = 1000;
  EXPECT_EQ(http_get(url("/large"), small).error().code, ErrorCode::kOutOfRange);
  for (const char* bad : {"", "ftp://x/y", "http://", "http:///x", "https://a b/c", "file.csv"})
    EXPECT_EQ(http_get(bad).error().code, ErrorCode::kInvalidArgument) << bad;
  const auto secret = http_get(url("/404?token=hush"));
  EXPECT_EQ(secret.error().message.find("hush"), std::string::npos);
}

TEST(HttpAlone, NobodyThere) {
  const auto refused = http_get("http://127.0.0.1:1/x");
  EXPECT_EQ(refused.error().code, ErrorCode::kUnavailable);
  EXPECT_NE(refused.error().message.find("nobody answers"), std::string::npos);
  EXPECT_EQ(http_get("http://name.invalid/x").error().code, ErrorCode::kUnavailable);
}

}  // namespace
}  // namespace frugal::meter
