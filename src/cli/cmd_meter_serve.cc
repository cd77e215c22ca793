// frugal meter serve: the ledger's sums in Prometheus' text format over HTTP, for a scraper on this host. One
// request at a time, GET /metrics only.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>

#include "base/clock.h"
#include "base/file.h"
#include "base/text.h"
#include "cli/commands.h"
#include "cli/console.h"
#include "cli/meter_setup.h"
#include "meter/export.h"

namespace frugal::cli {
namespace {

struct ServeOptions {
  std::string ledger;
  int port = 9464;
};

// A client that sends nothing, or its request drop by drop, must not hold the others up.
constexpr double kPatience_s = 2;

std::string read_request(int client) {
  std::string text;
  const double give_up = wall_seconds() + kPatience_s;
  char buffer[1024];
  while (text.find("\r\n\r\n") == std::string::npos && text.size() < 16384) {
    const int left_ms = static_cast<int>(1000 * (give_up - wall_seconds()));
    pollfd waiting = {client, POLLIN, 0};
    if (left_ms <= 0 || ::poll(&waiting, 1, left_ms) <= 0) break;
    const ssize_t n = ::recv(client, buffer, sizeof buffer, 0);
    if (n <= 0) break;
    text.append(buffer, static_cast<size_t>(n));
  }
  return text;
}

void answer(int client, const char* status, const char* type, const std::string& body) {
  const std::string text =
      strf("HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n", status,
           type, body.size()) +
      body;
  timeval limit = {2, 0};
  ::setsockopt(client, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
  for (size_t at = 0; at < text.size();) {
    const ssize_t n = ::send(client, text.data() + at, text.size() - at, MSG_NOSIGNAL);
    if (n <= 0) return;
    at += static_cast<size_t>(n);
  }
}

void serve_one(int client, meter::Ledger& ledger) {
  const std::string request = read_request(client);
  if (!request.starts_with("GET "))
    return answer(client, "405 Method Not Allowed", "text/plain", "GET /metrics\n");
  const std::string path = request.substr(4, request.find_first_of(" ?\r", 4) - 4);
  if (path != "/metrics") return answer(client, "404 Not Found", "text/plain", "GET /metrics\n");
  const auto entries = ledger.read();
  if (!entries.ok())
    return answer(client, "503 Service Unavailable", "text/plain", entries.error().message + "\n");
  answer(client, "200 OK", "text/plain; version=0.0.4; charset=utf-8", meter::prometheus_text(*entries));
}

int serve(const ServeOptions& options) {
  auto ledger = meter::Ledger::open(options.ledger.empty() ? ledger_path() : options.ledger);
  if (!ledger.ok()) return fail(ledger.error());
  const int listener = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int one = 1;
  ::setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(options.port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  if (listener < 0 || ::bind(listener, reinterpret_cast<sockaddr*>(&address), size) != 0 ||
      ::listen(listener, 16) != 0 ||
      ::getsockname(listener, reinterpret_cast<sockaddr*>(&address), &size) != 0) {
    return fail(io_error("listen on", strf("127.0.0.1:%d", options.port), errno));
  }
  install_interrupt_handler();
  std::fprintf(stderr, "serving http://127.0.0.1:%d/metrics; Ctrl-C ends it\n", ntohs(address.sin_port));
  while (!interrupted()) {
    pollfd waiting = {listener, POLLIN, 0};
    if (::poll(&waiting, 1, 200) <= 0) continue;
    const int client = ::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
    if (client < 0) continue;
    serve_one(client, **ledger);
    ::close(client);
  }
  ::close(listener);
  return kExitOk;
}

}  // namespace

Action add_meter_serve(CLI::App& app) {
  auto options = std::make_shared<ServeOptions>();
  app.add_option("--ledger", options->ledger, "the ledger's file (default: the user's own)");
  app.add_option("--port", options->port, "port on 127.0.0.1 (0: any free one)")->check(CLI::Range(0, 65535));
  return [options] { return serve(*options); };
}

}  // namespace frugal::cli
