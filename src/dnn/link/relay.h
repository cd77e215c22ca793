// A TCP relay that stands for a link: it delays bytes, lets so many a second through, and can be cut. Plain
// sockets; what is emulated is TCP's payload, in this process.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "frugal/result.h"

namespace frugal::dnn {

struct RelayShape {
  double delay_seconds = 0;          // one way
  double up_bytes_per_second = 0;    // from who connects to the target; 0 = as fast as it goes
  double down_bytes_per_second = 0;  // back
};

// Its sockets and threads belong to the network namespace of the thread that starts it.
class Relay {
 public:
  // Listens on 127.0.0.1, at a port that the system picks when `port` is 0.
  static Result<std::unique_ptr<Relay>> start(int port, const std::string& target_host, int target_port,
                                              const RelayShape& shape);
  virtual ~Relay() = default;
  virtual int port() const = 0;
  virtual void set_shape(const RelayShape& shape) = 0;
  // Cut: all connections end, new ones are closed at once, until it is whole again.
  virtual void set_cut(bool cut) = 0;
  virtual uint64_t up_bytes() const = 0;
  virtual uint64_t down_bytes() const = 0;
};

}  // namespace frugal::dnn
