// Counts the calls of operator new in the whole program, so that a test can say that a piece of code makes
// none. Add support/allocations.cc to the test's SOURCES. Under the sanitizers, which bring an operator new
// of their own, ours still stands in front.
#pragma once

#include <cstddef>

namespace frugal::test {
size_t allocation_count();
}
