#include "support/allocations.h"

#include <atomic>
#include <cstdlib>
#include <new>

namespace frugal::test {
namespace {
std::atomic<size_t> count{0};
}
size_t allocation_count() { return count.load(std::memory_order_relaxed); }

void* counted_allocation(size_t size) {
  count.fetch_add(1, std::memory_order_relaxed);
  if (void* memory = std::malloc(size > 0 ? size : 1)) return memory;
  throw std::bad_alloc();
}
}  // namespace frugal::test

void* operator new(size_t size) { return frugal::test::counted_allocation(size); }
void* operator new[](size_t size) { return frugal::test::counted_allocation(size); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t) noexcept { std::free(memory); }
