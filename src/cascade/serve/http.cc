#include "cascade/serve/http.h"

#include <microhttpd.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstring>
#include <thread>

#include "base/clock.h"
#include "base/text.h"
#include "cascade/serve/answer.h"

namespace frugal::cascade {
namespace {

constexpr size_t kMaxBody = size_t{8} << 20;

// One request under way: lives from its first header to its last byte out.
struct Exchange {
  std::string body;
  bool too_large = false;
  // Set by whoever answers a recommendation, before it resumes the connection.
  std::atomic<bool> answered{false};
  bool waiting = false;
  Sidecar::Answer answer;
};

struct Door {
  Sidecar& sidecar;
  std::atomic<int> in_flight{0};  // recommendations that have been handed over
  std::atomic<bool> closing{false};
};

MHD_Result send(MHD_Connection* connection, const Sidecar::Answer& answer) {
  // The library copies: the exchange may end before the last byte is out.
  MHD_Response* response = MHD_create_response_from_buffer(
      answer.body.size(), const_cast<char*>(answer.body.data()), MHD_RESPMEM_MUST_COPY);
  if (response == nullptr) return MHD_NO;
  MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, answer.type);
  const MHD_Result queued = MHD_queue_response(connection, static_cast<unsigned>(answer.status), response);
  MHD_destroy_response(response);
  return queued;
}

// Hands a recommendation over and lets the connection sleep until it is answered.
MHD_Result recommend(Door& door, Exchange& exchange, MHD_Connection* connection) {
  door.in_flight.fetch_add(1);
  if (door.closing.load()) {
    door.in_flight.fetch_sub(1);
    return send(connection, error_answer(503, ErrorCode::kUnavailable, "this server is stopping"));
  }
  exchange.waiting = true;
  MHD_suspend_connection(connection);  // before anybody can resume it
  door.sidecar.recommend(exchange.body, [&door, &exchange, connection](Sidecar::Answer answer) {
    exchange.answer = std::move(answer);
    exchange.answered.store(true, std::memory_order_release);
    MHD_resume_connection(connection);
    door.in_flight.fetch_sub(1);
  });
  return MHD_YES;
}

MHD_Result answer(Door& door, Exchange& exchange, MHD_Connection* connection, std::string_view path,
                  std::string_view method) {
  const bool get = method == "GET" || method == "HEAD", post = method == "POST";
  const bool decide = path == "/v1/decide", items = path == "/v1/recommend";
  const bool known = path == "/v1/state" || path == "/metrics" || path == "/healthz";
  if (exchange.too_large)
    return send(connection, error_answer(413, ErrorCode::kOutOfRange, "the body is over 8 MiB"));
  if (!decide && !items && !known)
    return send(connection,
                error_answer(404, ErrorCode::kNotFound,
                             "there are POST /v1/decide, POST /v1/recommend, GET /v1/state, /metrics "
                             "and /healthz"));
  if ((decide || items) ? !post : !get)
    return send(connection,
                error_answer(405, ErrorCode::kInvalidArgument, (decide || items) ? "use POST" : "use GET"));
  if (decide) return send(connection, door.sidecar.decide(exchange.body));
  if (items) return recommend(door, exchange, connection);
  if (path == "/v1/state") return send(connection, door.sidecar.state());
  if (path == "/metrics") return send(connection, door.sidecar.metrics());
  return send(connection, {200, "{\"status\":\"ok\"}"});
}

// Called at the headers, at each piece of the body, at its end, and again when a sleeping connection goes on.
MHD_Result on_request(void* context, MHD_Connection* connection, const char* url, const char* method,
                      const char* /*version*/, const char* data, size_t* n_data, void** state) {
  auto* exchange = static_cast<Exchange*>(*state);
  if (exchange == nullptr) {
    *state = new Exchange;
    return MHD_YES;
  }
  if (*n_data > 0) {
    exchange->too_large |= exchange->body.size() + *n_data > kMaxBody;
    if (!exchange->too_large) exchange->body.append(data, *n_data);
    *n_data = 0;
    return MHD_YES;
  }
  if (!exchange->waiting) return answer(*static_cast<Door*>(context), *exchange, connection, url, method);
  if (!exchange->answered.load(std::memory_order_acquire)) return MHD_YES;
  return send(connection, exchange->answer);
}

void on_end(void*, MHD_Connection*, void** state, MHD_RequestTerminationCode) {
  delete static_cast<Exchange*>(*state);
  *state = nullptr;
}

struct Listener {
  int fd = -1;
  int port = 0;
};

// A socket that listens on the address, whatever its family.
Result<Listener> listen_on(const std::string& host, int port) {
  addrinfo hints = {}, *found = nullptr;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  const int resolved = getaddrinfo(host.c_str(), strf("%d", port).c_str(), &hints, &found);
  if (resolved != 0)
    return {ErrorCode::kIo, strf("cannot listen on %s: %s", host.c_str(), gai_strerror(resolved))};
  int trouble = 0;
  Listener listener;
  for (const addrinfo* at = found; at != nullptr && listener.fd < 0; at = at->ai_next) {
    const int fd = socket(at->ai_family, at->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK, at->ai_protocol);
    const int on = 1;
    if (fd >= 0) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (fd >= 0 && bind(fd, at->ai_addr, at->ai_addrlen) == 0 && listen(fd, 1024) == 0) {
      listener.fd = fd;
    } else {
      trouble = errno;
      if (fd >= 0) close(fd);
    }
  }
  freeaddrinfo(found);
  if (listener.fd < 0) {
    return {ErrorCode::kIo, strf("cannot listen on %s:%d: %s", host.c_str(), port, std::strerror(trouble))};
  }
  sockaddr_storage bound = {};
  socklen_t size = sizeof bound;
  getsockname(listener.fd, reinterpret_cast<sockaddr*>(&bound), &size);
  listener.port = ntohs(bound.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6*>(&bound)->sin6_port
                                                    : reinterpret_cast<sockaddr_in*>(&bound)->sin_port);
  return listener;
}

// Ticks in Unix time, but on the steady clock from here on (setting the wall clock does not disturb a
// budget), and looks for new models.
void keep_time(Sidecar& sidecar, const std::atomic<bool>& stop) {
  double last = wall_seconds(), looked = last, told = last;
  const double unix_s = clock_seconds(CLOCK_REALTIME) - last;
  sidecar.tick(unix_s + last);
  while (!stop.load()) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    const double now = wall_seconds();
    if (now - last >= 1 || sidecar.tick_wanted()) {
      last = now;
      sidecar.tick(unix_s + now);
    }
    if (now - looked < 1) continue;
    (void)sidecar.reload();
    looked = now;
    if (now - told < 60) continue;
    sidecar.log_shadow();
    told = now;
  }
}

}  // namespace

Status serve_http(Sidecar& sidecar, const HttpServeOptions& options, const std::atomic<bool>& stop,
                  const std::function<void(int)>& ready) {
  const auto within = [](int x, int low, int high) { return x >= low && x <= high; };
  if (!within(options.port, 0, 65535) || !within(options.n_loops, 1, 64) ||
      !within(options.max_connections, 1, 1 << 20) || !within(options.idle_s, 1, 86400)) {
    return {ErrorCode::kInvalidArgument,
            "the port lies in [0, 65535], event loops in [1, 64], connections in [1, 1048576], idle_s in [1, "
            "86400]"};
  }
  FRUGAL_TRY(const Listener listener, listen_on(options.host, options.port));
  Door door{sidecar};
  std::vector<MHD_OptionItem> items = {
      {MHD_OPTION_LISTEN_SOCKET, listener.fd, nullptr},
      {MHD_OPTION_CONNECTION_LIMIT, options.max_connections, nullptr},
      {MHD_OPTION_CONNECTION_TIMEOUT, options.idle_s, nullptr},
      {MHD_OPTION_NOTIFY_COMPLETED, reinterpret_cast<intptr_t>(&on_end), nullptr}};
  if (options.n_loops > 1) items.push_back({MHD_OPTION_THREAD_POOL_SIZE, options.n_loops, nullptr});
  items.push_back({MHD_OPTION_END, 0, nullptr});
  // The first tick comes before the first request: a decision without a window would go unaccounted.
  std::thread timer([&] { keep_time(sidecar, stop); });
  MHD_Daemon* daemon =
      MHD_start_daemon(MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME, 0, nullptr, nullptr,
                       &on_request, &door, MHD_OPTION_ARRAY, items.data(), MHD_OPTION_END);
  if (daemon != nullptr) ready(listener.port);
  while (daemon != nullptr && !stop.load()) std::this_thread::sleep_for(std::chrono::milliseconds(20));
  // Whoever sleeps must be resumed before the daemon ends.
  door.closing.store(true);
  while (door.in_flight.load() > 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  if (daemon != nullptr) MHD_stop_daemon(daemon);
  timer.join();
  sidecar.log_shadow();
  if (daemon == nullptr) {
    close(listener.fd);
    return {ErrorCode::kIo, strf("serving on %s:%d failed", options.host.c_str(), listener.port)};
  }
  return {};
}

}  // namespace frugal::cascade
