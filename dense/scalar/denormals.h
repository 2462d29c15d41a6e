// Numbers too small to be normal, which cost a processor a hundred cycles each.
#pragma once

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace dense {

// In its scope, and on its thread, they count as 0. Gradients that vanish are such numbers.
class DenormalsAsZero {
#if defined(__SSE__)
 public:
  DenormalsAsZero() { _mm_setcsr(before_ | 0x8040); }  // both of results and of operands
  ~DenormalsAsZero() { _mm_setcsr(before_); }
  DenormalsAsZero(const DenormalsAsZero&) = delete;
  DenormalsAsZero& operator=(const DenormalsAsZero&) = delete;

 private:
  unsigned before_ = _mm_getcsr();
#endif
};

}  // namespace dense
