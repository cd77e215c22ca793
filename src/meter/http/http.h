// HTTP and HTTPS as a client: carbon data in, metrics out. Certificates are checked against the system's.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "frugal/result.h"

namespace frugal::meter {

struct HttpOptions {
  double timeout_s = 10;  // for connecting, and for each read
  size_t max_bytes = size_t{64} << 20;
  std::vector<std::pair<std::string, std::string>> headers;
};

inline bool is_url(const std::string& text) {
  return text.starts_with("http://") || text.starts_with("https://");
}

// The body of a 2xx answer. kInvalidArgument: no URL; kUnavailable: nobody there, no network, not in time, a
// server's 5xx or 429; kPermission: 401 and 403; kNotFound: 404; kOutOfRange: larger than max_bytes;
// kUnsupported: another status.
Result<std::string> http_get(const std::string& url, const HttpOptions& options = {});
Result<std::string> http_post(const std::string& url, const std::string& body,
                              const std::string& content_type, const HttpOptions& options = {});

}  // namespace frugal::meter
