// What compiling does to a tape before it becomes code or a stream. Each pass takes time linear in the tape.
#pragma once

#include "dense/scalar/tape.h"

namespace dense {

// Copies what `outputs` need to `work`, an empty tape; for exact programs with softmax and logsumexp replaced by their
// formulas. First come all inputs, then `seeds` more, then all shared inputs. Returns the places of the outputs; numbers
// among them get one.
std::vector<int32_t> lower(const Tape& tape, std::span<const Var> outputs, int seeds, Precision precision, Tape& work);

struct Simplified {
  std::vector<int32_t> same;   // for each node the first that has the same bits
  std::vector<int32_t> level;  // the longest way to an input or constant, in operations
};

// Has all operations read the first node that has the same bits: operations on constants become constants, and an
// operation with up to three operands that was recorded before is that one. In programs that are not exact a + b is
// b + a, too, and a factor of 1 is dropped.
Simplified simplify(Tape& work, Precision precision);

// The operation of a node: its own, or for pow with a constant exponent one that has a kernel for it.
Op kind(const Tape& work, const Node& node);

// The ids in order of their keys, which are small and begin at 0; equal keys keep the order they had.
std::vector<int32_t> counting_sort(std::span<const int32_t> ids, std::span<const int32_t> keys);

}  // namespace dense
