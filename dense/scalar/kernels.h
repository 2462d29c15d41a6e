// Runs code: one kernel per operation, with the vector instructions of the machine it finds itself on.
#pragma once

#include "dense/scalar/code.h"

namespace dense {

// The widest vector instructions this machine has, or those that the environment variable DENSE_ISA asks for: avx512, avx2
// or portable. Throws Error for another name or one the machine cannot run.
enum class Isa : uint8_t { avx512, avx2, portable };
Isa best_isa();
const char* name(Isa isa);

// Memory holds `width` values for each slot, the lanes of a slot adjacent, and `slack` values more. With several lanes
// the vectors run over lanes, with one they run over the operations of an instruction. All instruction sets give the same bits.
using Execute = void (*)(const Code& code, double* memory, int width);
inline constexpr int slack = 64;

Execute execute_for(Isa isa);

}  // namespace dense
