#include "tests/allocations.h"

#include <cstdlib>
#include <new>

namespace {

thread_local size_t count = 0;
thread_local bool fail = false;

void* counted(void* p) {
  ++count;
  if (p && !fail) return p;
  fail = false;
  std::free(p);
  throw std::bad_alloc();
}

}  // namespace

size_t allocations() { return count; }
void fail_next_allocation() { fail = true; }

void* operator new(size_t size) { return counted(std::malloc(size ? size : 1)); }
void* operator new(size_t size, std::align_val_t align) {
  return counted(std::aligned_alloc(size_t(align), (size + size_t(align) - 1) / size_t(align) * size_t(align)));
}
void* operator new(size_t size, const std::nothrow_t&) noexcept {
  ++count;
  return fail ? fail = false, nullptr : std::malloc(size ? size : 1);
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, size_t, std::align_val_t) noexcept { std::free(p); }
