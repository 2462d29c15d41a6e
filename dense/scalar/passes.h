// What compiling does to a tape before it becomes code. Each pass takes time linear in the tape.
#pragma once

#include "dense/scalar/tape.h"

namespace dense {

// Copies what `outputs` need to `work`, an empty tape, with softmax replaced by its formula. First come all inputs, then
// `seeds` more, then all shared inputs. Returns the places of the outputs; numbers among them get one.
std::vector<int32_t> lower(const Tape& tape, std::span<const Var> outputs, int seeds, Tape& work);

struct Simplified {
  std::vector<int32_t> same;   // for each node the first that has the same bits
  std::vector<int32_t> level;  // the longest way to an input or constant, in operations
};

// Has all operations read the first node that has the same bits: operations on constants become constants, and an
// operation with up to three operands that was recorded before is that one.
Simplified simplify(Tape& work);

}  // namespace dense
