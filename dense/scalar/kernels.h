// Runs code: one kernel per operation, with the vector instructions of the machine it finds itself on.
#pragma once

#include "dense/scalar/code.h"

namespace dense {

// Memory holds `width` values for each slot, the lanes of a slot adjacent, and `slack` values more. With several lanes
// the vectors run over lanes, with one they run over the operations of an instruction.
using Execute = void (*)(const Code& code, double* memory, int width);
inline constexpr int slack = 64;

// The widest instructions this machine has, or those the environment variable DENSE_ISA asks for: avx512, avx2 or
// portable. All give the same bits. Throws Error for another name or one the machine cannot run.
Execute best_execute();

}  // namespace dense
