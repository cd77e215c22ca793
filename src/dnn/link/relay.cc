#include "dnn/link/relay.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <list>
#include <mutex>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/text.h"

namespace frugal::dnn {
namespace {

constexpr size_t kPiece = size_t{8} << 10;
constexpr size_t kMaxHeld = size_t{512} << 10;  // bytes on their way in one direction of a connection

Result<sockaddr_in> address_of(const std::string& host, int port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  if (inet_pton(AF_INET, host.c_str(), &address.sin_addr) != 1)
    return Error{ErrorCode::kInvalidArgument, "'" + host + "' is no IPv4 address"};
  return address;
}

class TcpRelay final : public Relay {
 public:
  explicit TcpRelay(const RelayShape& shape) : shape_(shape) {}

  ~TcpRelay() override {
    stopping_ = true;
    if (accepter_.joinable()) accepter_.join();
    end_connections();
    if (listener_ >= 0) close(listener_);
  }

  Status open(int port, const std::string& host, int target_port) {
    FRUGAL_TRY(target_, address_of(host, target_port));
    FRUGAL_TRY(sockaddr_in here, address_of("127.0.0.1", port));
    listener_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const int one = 1;
    setsockopt(listener_, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    socklen_t size = sizeof here;
    if (listener_ < 0 || bind(listener_, reinterpret_cast<sockaddr*>(&here), sizeof here) != 0 ||
        listen(listener_, 64) != 0 ||
        getsockname(listener_, reinterpret_cast<sockaddr*>(&here), &size) != 0) {
      return {ErrorCode::kIo, strf("cannot listen on 127.0.0.1:%d: %s", port, std::strerror(errno))};
    }
    port_ = ntohs(here.sin_port);
    accepter_ = std::thread([this] { accept_all(); });
    return {};
  }

  int port() const override { return port_; }
  void set_shape(const RelayShape& shape) override {
    const std::lock_guard lock(mutex_);
    shape_ = shape;
  }
  void set_cut(bool cut) override {
    cut_ = cut;
    if (cut) end_connections();
  }
  uint64_t up_bytes() const override { return bytes_[0]; }
  uint64_t down_bytes() const override { return bytes_[1]; }

 private:
  struct Piece {
    double due;
    std::vector<char> bytes;
  };
  struct Flow {  // one direction of a connection
    std::mutex mutex;
    std::condition_variable changed;
    std::deque<Piece> pieces;
    size_t held = 0;
    bool ended = false;
  };
  struct Connection {
    int fds[2] = {-1, -1};
    Flow flows[2];
    std::vector<std::thread> threads;
  };

  void accept_all() {
    while (!stopping_) {
      pollfd waiting{listener_, POLLIN, 0};
      if (poll(&waiting, 1, 50) <= 0) continue;
      const int from = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
      if (from < 0) continue;
      const int to = cut_ ? -1 : socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
      if (to < 0 || connect(to, reinterpret_cast<const sockaddr*>(&target_), sizeof target_) != 0) {
        if (to >= 0) close(to);
        close(from);
        continue;
      }
      const int one = 1;
      setsockopt(from, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
      setsockopt(to, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
      const std::lock_guard lock(connections_mutex_);
      connections_.emplace_back();
      Connection& c = connections_.back();
      c.fds[0] = from;
      c.fds[1] = to;
      for (int way = 0; way < 2; ++way) {
        c.threads.emplace_back([this, &c, way] { read_from(c, way); });
        c.threads.emplace_back([&c, way] { write_to(c, way); });
      }
    }
  }

  // Stamps every piece with the time when it is through: after those before it, at the rate of now, and the
  // delay.
  void read_from(Connection& c, int way) {
    Flow& flow = c.flows[way];
    std::vector<char> buffer(kPiece);
    while (true) {
      const ssize_t n = recv(c.fds[way], buffer.data(), buffer.size(), 0);
      if (n <= 0) break;
      bytes_[way] += static_cast<uint64_t>(n);
      double due;
      {
        const std::lock_guard lock(mutex_);
        const double rate = way == 0 ? shape_.up_bytes_per_second : shape_.down_bytes_per_second;
        free_[way] = std::max(free_[way], wall_seconds()) + (rate > 0 ? static_cast<double>(n) / rate : 0);
        due = free_[way] + shape_.delay_seconds;
      }
      std::unique_lock lock(flow.mutex);
      flow.changed.wait(lock, [&] { return flow.held < kMaxHeld || flow.ended; });
      if (flow.ended) break;
      flow.pieces.push_back({due, {buffer.begin(), buffer.begin() + n}});
      flow.held += static_cast<size_t>(n);
      flow.changed.notify_all();
    }
    end(flow);
  }

  static void write_to(Connection& c, int way) {
    Flow& flow = c.flows[way];
    const int to = c.fds[1 - way];
    std::unique_lock lock(flow.mutex);
    while (true) {
      flow.changed.wait(lock, [&] { return !flow.pieces.empty() || flow.ended; });
      if (flow.pieces.empty()) break;
      const Piece piece = std::move(flow.pieces.front());
      flow.pieces.pop_front();
      lock.unlock();
      const double wait = piece.due - wall_seconds();
      if (wait > 0) std::this_thread::sleep_for(std::chrono::duration<double>(wait));
      bool ok = true;
      for (size_t at = 0; at < piece.bytes.size() && ok;) {
        const ssize_t n = send(to, piece.bytes.data() + at, piece.bytes.size() - at, MSG_NOSIGNAL);
        ok = n > 0;
        if (ok) at += static_cast<size_t>(n);
      }
      lock.lock();
      flow.held -= piece.bytes.size();
      if (!ok) flow.ended = true;
      flow.changed.notify_all();
    }
    lock.unlock();
    shutdown(to, SHUT_WR);
    shutdown(c.fds[way], SHUT_RD);
  }

  static void end(Flow& flow) {
    const std::lock_guard lock(flow.mutex);
    flow.ended = true;
    flow.changed.notify_all();
  }

  void end_connections() {
    std::list<Connection> ending;
    {
      const std::lock_guard lock(connections_mutex_);
      ending.splice(ending.begin(), connections_);
    }
    for (Connection& c : ending) {
      for (const int fd : c.fds) shutdown(fd, SHUT_RDWR);
      for (Flow& flow : c.flows) end(flow);
      for (std::thread& thread : c.threads) thread.join();
      for (const int fd : c.fds) close(fd);
    }
  }

  std::mutex mutex_, connections_mutex_;
  RelayShape shape_;
  double free_[2] = {0, 0};
  sockaddr_in target_{};
  int listener_ = -1, port_ = 0;
  std::atomic<bool> stopping_{false}, cut_{false};
  std::atomic<uint64_t> bytes_[2] = {0, 0};
  std::list<Connection> connections_;
  std::thread accepter_;
};

}  // namespace

Result<std::unique_ptr<Relay>> Relay::start(int port, const std::string& target_host, int target_port,
                                            const RelayShape& shape) {
  auto relay = std::make_unique<TcpRelay>(shape);
  FRUGAL_TRY_STATUS(relay->open(port, target_host, target_port));
  return std::unique_ptr<Relay>(std::move(relay));
}

}  // namespace frugal::dnn
