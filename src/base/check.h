// FRUGAL_CHECK: our own bugs end the process, with file, line and the broken expression. Never for bad input.
#pragma once

namespace frugal::detail {
[[noreturn]] void check_failed(const char* file, int line, const char* expression);
}

#define FRUGAL_CHECK(condition) \
  ((condition) ? static_cast<void>(0) : ::frugal::detail::check_failed(__FILE__, __LINE__, #condition))

#ifdef NDEBUG
#define FRUGAL_DCHECK(condition) static_cast<void>(sizeof(condition))
#else
#define FRUGAL_DCHECK(condition) FRUGAL_CHECK(condition)
#endif
