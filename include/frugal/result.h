// Result<T>: the value, or why there is none. Faults of the world and of the caller (a truncated file, a bad
// option, a full disk) travel as values; our own bugs are FRUGAL_CHECKs (src/base/check.h). Nothing here
// throws.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace frugal {

enum class ErrorCode {
  kInvalidArgument,  // the caller asked for something that makes no sense
  kNotFound,         // a file, model, processor or region that is not there
  kCorrupt,          // data that breaks its own format: truncated, hostile, wrong checksum
  kUnsupported,      // well formed, but beyond what this build or host can do
  kOutOfRange,       // over a limit: context length, size, count
  kNoMemory,         // the host has no room
  kIo,               // read, write or network fault
  kPermission,       // the host does not let us
  kCancelled,        // the user or a deadline stopped it
  kUnavailable,      // a peer or service that should answer does not
};

// Stable lower-case name of a code ("corrupt"), for JSON and logs.
std::string_view error_code_name(ErrorCode code);

struct Error {
  ErrorCode code = ErrorCode::kInvalidArgument;
  std::string message;  // what, where, and what to do next; one sentence or two, no trailing newline

  // The same error, told from further out: "loading model.gguf: " + message.
  Error in(std::string_view context) && {
    message = std::string(context) + ": " + message;
    return std::move(*this);
  }
};

namespace detail {
[[noreturn]] void bad_result_access(const Error& error);
}

// Movable. value() on an error is a bug in the caller and ends the process with the error's message.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}
  Result(Error error) : error_(std::move(error)) {}
  Result(ErrorCode code, std::string message) : error_(Error{code, std::move(message)}) {}

  bool ok() const { return value_.has_value(); }
  explicit operator bool() const { return ok(); }

  T& value() & {
    if (!ok()) detail::bad_result_access(error_);
    return *value_;
  }
  const T& value() const& {
    if (!ok()) detail::bad_result_access(error_);
    return *value_;
  }
  T&& value() && {
    if (!ok()) detail::bad_result_access(error_);
    return std::move(*value_);
  }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }

  const Error& error() const& { return error_; }
  Error&& error() && { return std::move(error_); }

 private:
  std::optional<T> value_;
  Error error_;
};

// Success without a value, or an error.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Error error) : error_(std::move(error)) {}
  Status(ErrorCode code, std::string message) : error_(Error{code, std::move(message)}) {}

  bool ok() const { return !error_.has_value(); }
  explicit operator bool() const { return ok(); }
  const Error& error() const& { return *error_; }
  Error&& error() && { return std::move(*error_); }

 private:
  std::optional<Error> error_;
};

}  // namespace frugal

#define FRUGAL_CONCAT_INNER(a, b) a##b
#define FRUGAL_CONCAT(a, b) FRUGAL_CONCAT_INNER(a, b)

// FRUGAL_TRY(auto x, make_x()); declares x from a Result, or returns its error from the enclosing function.
#define FRUGAL_TRY(declaration, expression) \
  FRUGAL_TRY_INNER(FRUGAL_CONCAT(frugal_try_, __LINE__), declaration, expression)
#define FRUGAL_TRY_INNER(result, declaration, expression) \
  auto result = (expression);                             \
  if (!result.ok()) return std::move(result).error();     \
  declaration = std::move(result).value()

// FRUGAL_TRY_STATUS(do_it()); returns the error of a Status, if any.
#define FRUGAL_TRY_STATUS(expression)                                 \
  do {                                                                \
    auto frugal_status = (expression);                                \
    if (!frugal_status.ok()) return std::move(frugal_status).error(); \
  } while (0)
