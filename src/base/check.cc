// The only object of the library that may print and abort: a failed check leaves nothing better to do.
#include "base/check.h"

#include <cstdio>
#include <cstdlib>

#include "frugal/result.h"

namespace frugal::detail {

void check_failed(const char* file, int line, const char* expression) {
  std::fprintf(stderr, "%s:%d: check failed: %s\nThis is a bug in frugal; please report it.\n", file, line,
               expression);
  std::abort();
}

void bad_result_access(const Error& error) {
  std::fprintf(stderr, "value() of a failed Result: %s\n", error.message.c_str());
  std::abort();
}

}  // namespace frugal::detail
