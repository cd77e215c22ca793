// The sidecar over HTTP/1.1: a few event loops that each carry any number of connections, so that neither
// idle nor slow clients hold anybody up.
#pragma once

#include <atomic>
#include <functional>
#include <string>

#include "cascade/serve/sidecar.h"

namespace frugal::cascade {

struct HttpServeOptions {
  std::string host = "127.0.0.1";  // a name or an address of this host
  int port = 0;                    // 0: a free one
  int n_loops = 1;                 // threads that serve, 1 to 64: one saturates one core
  int max_connections = 4096;      // those beyond wait in the system's queue
  int idle_s = 60;                 // a connection without traffic for so long is closed
};

// Serves until `stop` is true, ticks the sidecar and looks for new models meanwhile. `ready(port)` is called
// once it listens. kIo: the address is taken or is none of this host's.
Status serve_http(Sidecar& sidecar, const HttpServeOptions& options, const std::atomic<bool>& stop,
                  const std::function<void(int)>& ready);

}  // namespace frugal::cascade
