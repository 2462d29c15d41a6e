// The interpreter of streams (lanes.h) in float32.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "dense/scalar/interpreter_f32.cpp"
#include <hwy/foreach_target.h>

#include "dense/scalar/lanes.h"

HWY_BEFORE_NAMESPACE();
namespace dense {
namespace HWY_NAMESPACE {

Interpreter f32_interpreter() { return interpreter<false, float>(); }

}  // namespace HWY_NAMESPACE
}  // namespace dense
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace dense {

Interpreter f32_interpreter(Isa isa) {
#if HWY_TARGETS & HWY_AVX3
  if (isa == Isa::avx512) return N_AVX3::f32_interpreter();
#endif
#if HWY_TARGETS & HWY_AVX2
  if (isa == Isa::avx2) return N_AVX2::f32_interpreter();
#endif
  return HWY_NAMESPACE::f32_interpreter();
}

}  // namespace dense
#endif  // HWY_ONCE
