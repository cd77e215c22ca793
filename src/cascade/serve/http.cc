// The sidecar's HTTP front: the only file of the room that knows the HTTP library.
#include <httplib.h>

#include <chrono>
#include <thread>

#include "base/clock.h"
#include "base/text.h"
#include "cascade/serve/sidecar.h"

namespace frugal::cascade {

Status serve_http(Sidecar& sidecar, const std::string& host, int port, int n_threads,
                  const std::atomic<bool>& stop, const std::function<void(int)>& ready) {
  if (port < 0 || port > 65535 || n_threads < 1 || n_threads > 1024)
    return {ErrorCode::kInvalidArgument, "the port lies in [0, 65535], threads in [1, 1024]"};
  httplib::Server server;
  server.new_task_queue = [n_threads] { return new httplib::ThreadPool(static_cast<size_t>(n_threads)); };
  server.set_keep_alive_max_count(1'000'000'000);
  server.set_keep_alive_timeout(5);
  server.set_tcp_nodelay(true);
  server.set_payload_max_length(size_t{8} << 20);
  const auto reply = [](httplib::Response& response, Sidecar::Answer answer) {
    response.status = answer.status;
    response.set_content(std::move(answer.body), answer.type);
  };
  server.Post("/v1/decide", [&](const httplib::Request& request, httplib::Response& response) {
    reply(response, sidecar.decide(request.body));
  });
  server.Get("/v1/state",
             [&](const httplib::Request&, httplib::Response& response) { reply(response, sidecar.state()); });
  server.Get("/metrics", [&](const httplib::Request&, httplib::Response& response) {
    reply(response, sidecar.metrics());
  });
  server.Get("/healthz", [&](const httplib::Request&, httplib::Response& response) {
    reply(response, {200, "{\"status\":\"ok\"}"});
  });
  const int bound = port == 0 ? server.bind_to_any_port(host) : (server.bind_to_port(host, port) ? port : -1);
  if (bound < 0)
    return {ErrorCode::kIo, strf("cannot listen on %s:%d: is the port taken?", host.c_str(), port)};
  // Ticks on the steady clock: setting the wall clock does not disturb a budget.
  std::atomic<bool> ended{false};
  std::thread ticker([&] {
    double last = wall_seconds(), looked = last;
    sidecar.tick(last);
    while (!stop.load() && !ended.load()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      const double now = wall_seconds();
      if (now - last >= 1 || sidecar.tick_wanted()) sidecar.tick(last = now);
      if (now - looked >= 1) {
        (void)sidecar.reload();
        looked = now;
      }
    }
    while (!server.is_running() && !ended.load()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    server.stop();
  });
  ready(bound);
  const bool served = server.listen_after_bind();
  ended.store(true);
  ticker.join();
  if (!served && !stop.load()) return {ErrorCode::kIo, strf("serving on %s:%d failed", host.c_str(), bound)};
  return {};
}

}  // namespace frugal::cascade
