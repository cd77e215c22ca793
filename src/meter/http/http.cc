#include "meter/http/http.h"

#include <httplib.h>

#include "base/text.h"

namespace frugal::meter {
namespace {

// "https://host:port" and "/path?query".
Result<std::pair<std::string, std::string>> split_url(const std::string& url) {
  const size_t host = url.find("://");
  if (!is_url(url) || host + 3 >= url.size() || url[host + 3] == '/')
    return {ErrorCode::kInvalidArgument, "'" + utf8_sanitized(url) + "' is no http:// or https:// address"};
  for (const char c : url) {
    if (static_cast<unsigned char>(c) <= ' ')
      return {ErrorCode::kInvalidArgument, "'" + utf8_sanitized(url) + "' holds blanks; write them as %20"};
  }
  const size_t path = url.find('/', host + 3);
  if (path == std::string::npos) return std::pair(url, std::string("/"));
  return std::pair(url.substr(0, path), url.substr(path));
}

// What follows may hold a key: messages name the address without its query.
std::string shown(const std::string& url) { return utf8_sanitized(url.substr(0, url.find('?'))); }

Error failed(const std::string& url, httplib::Error error) {
  std::string why = httplib::to_string(error);
  if (error == httplib::Error::Connection || error == httplib::Error::ConnectionTimeout) {
    why = "nobody answers there: no network, a wrong address, or a service that is down";
  } else if (error == httplib::Error::Read || error == httplib::Error::Write) {
    why = "the connection broke off, or the answer took too long";
  }
  return {ErrorCode::kUnavailable, shown(url) + ": " + why};
}

Status check(const std::string& url, int status) {
  if (status >= 200 && status < 300) return {};
  const ErrorCode code = status == 401 || status == 403   ? ErrorCode::kPermission
                         : status == 404                  ? ErrorCode::kNotFound
                         : status == 429 || status >= 500 ? ErrorCode::kUnavailable
                                                          : ErrorCode::kUnsupported;
  return {code, strf("%s answers with status %d", shown(url).c_str(), status)};
}

void prepare(httplib::Client& client, const HttpOptions& options) {
  const auto seconds = static_cast<time_t>(options.timeout_s);
  const auto rest = static_cast<time_t>(1e6 * (options.timeout_s - static_cast<double>(seconds)));
  client.set_connection_timeout(seconds, rest);
  client.set_read_timeout(seconds, rest);
  client.set_write_timeout(seconds, rest);
  client.set_follow_location(true);
}

httplib::Headers headers_of(const HttpOptions& options) {
  httplib::Headers headers = {{"User-Agent", "frugal"}, {"Accept", "application/json, text/csv"}};
  for (const auto& [name, value] : options.headers) headers.emplace(name, value);
  return headers;
}

}  // namespace

Result<std::string> http_get(const std::string& url, const HttpOptions& options) {
  FRUGAL_TRY(const auto parts, split_url(url));
  httplib::Client client(parts.first);
  if (!client.is_valid()) return {ErrorCode::kInvalidArgument, shown(url) + " cannot be used as an address"};
  prepare(client, options);
  std::string body;
  bool too_large = false;
  const auto answer = client.Get(parts.second, headers_of(options), [&](const char* data, size_t n) {
    too_large = body.size() + n > options.max_bytes;
    if (!too_large) body.append(data, n);
    return !too_large;
  });
  if (too_large)
    return {ErrorCode::kOutOfRange,
            strf("%s answers with more than %zu bytes", shown(url).c_str(), options.max_bytes)};
  if (!answer) return failed(url, answer.error());
  FRUGAL_TRY_STATUS(check(url, answer->status));
  return body;
}

Result<std::string> http_post(const std::string& url, const std::string& body,
                              const std::string& content_type, const HttpOptions& options) {
  FRUGAL_TRY(const auto parts, split_url(url));
  httplib::Client client(parts.first);
  if (!client.is_valid()) return {ErrorCode::kInvalidArgument, shown(url) + " cannot be used as an address"};
  prepare(client, options);
  const auto answer = client.Post(parts.second, headers_of(options), body, content_type);
  if (!answer) return failed(url, answer.error());
  FRUGAL_TRY_STATUS(check(url, answer->status));
  return answer->body;
}

}  // namespace frugal::meter
