#include "tests/allocations.h"

#include <cstdlib>
#include <new>

namespace {

thread_local size_t count = 0;

void* counted(void* p) {
  ++count;
  if (!p) throw std::bad_alloc();
  return p;
}

}  // namespace

size_t allocations() { return count; }

void* operator new(size_t size) { return counted(std::malloc(size ? size : 1)); }
void* operator new(size_t size, std::align_val_t align) {
  return counted(std::aligned_alloc(size_t(align), (size + size_t(align) - 1) / size_t(align) * size_t(align)));
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete(void* p, size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, size_t, std::align_val_t) noexcept { std::free(p); }
