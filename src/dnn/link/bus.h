// The one door to NATS: a connection with subscriptions, and a key-value bucket. No other file includes its
// headers.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "frugal/result.h"

namespace frugal::dnn {

struct BusOptions {
  std::string url = "nats://127.0.0.1:4222";
  std::string name;                   // shown by the server
  std::string ca, certificate, key;   // PEM files; with `ca` or a tls:// address the connection is TLS
  std::string credentials;            // a .creds file
  std::string user, password, token;  // or one of these
  std::string js_domain;              // of the server that keeps the key-value bucket, across leaf nodes
  double connect_seconds = 2;
};

struct BusMessage {
  std::string subject, reply;
  std::span<const std::byte> data;  // valid during the call
  bool no_responders = false;  // the server says that nobody listens where a message with this reply went
};

// Thread-safe. Reconnects by itself for ever; what is sent meanwhile fails.
class Bus {
 public:
  // kUnavailable: nobody there, or not in time. kPermission: refused by the server. kInvalidArgument: a file
  // of the options cannot be used.
  static Result<std::shared_ptr<Bus>> connect(const BusOptions& options);
  virtual ~Bus() = default;

  // kUnavailable: the connection is down. kOutOfRange: larger than the server takes.
  virtual Status publish(const std::string& subject, const std::string& reply,
                         std::span<const std::byte> data) = 0;
  // Calls back on a thread of its own, one message after the other, until this Bus ends. With `queue`, one
  // subscriber of that group gets each message.
  virtual Status subscribe(const std::string& subject, const std::string& queue,
                           std::function<void(const BusMessage&)> callback) = 0;
  virtual bool connected() const = 0;
  // How often the connection was lost: whatever was under way then may never arrive.
  virtual uint64_t n_disconnects() const = 0;
  virtual size_t max_payload() const = 0;
  // Messages that the library dropped because a callback was too slow.
  virtual uint64_t n_dropped() const = 0;

  // The key-value bucket `frugal_dnn`, made when it is not there; entries are forgotten after half a minute.
  // kUnsupported: the server runs without JetStream.
  virtual Status put(const std::string& key, const std::string& value) = 0;
  virtual Result<std::vector<std::pair<std::string, std::string>>> list() = 0;
};

}  // namespace frugal::dnn
