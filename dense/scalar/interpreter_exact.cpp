// The interpreter of streams (lanes.h) with the bits of C.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "dense/scalar/interpreter_exact.cpp"
#include <hwy/foreach_target.h>

#include "dense/scalar/lanes.h"

HWY_BEFORE_NAMESPACE();
namespace dense {
namespace HWY_NAMESPACE {

Interpreter exact_interpreter() { return interpreter<true, double>(); }

}  // namespace HWY_NAMESPACE
}  // namespace dense
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace dense {

Interpreter exact_interpreter(Isa isa) {
#if HWY_TARGETS & HWY_AVX3
  if (isa == Isa::avx512) return N_AVX3::exact_interpreter();
#endif
#if HWY_TARGETS & HWY_AVX2
  if (isa == Isa::avx2) return N_AVX2::exact_interpreter();
#endif
  return HWY_NAMESPACE::exact_interpreter();
}

}  // namespace dense
#endif  // HWY_ONCE
