// The reverse sweep: records the gradient of what a tape holds as more of the same arithmetic.
//
// The gradient of a node is one dot, or what is left of it: over all places where the node is read, the local derivative there times the
// gradient of the reader. Their order is that of micrograd's backward(): the reverse of the depth-first post-order that
// visits operands from left to right, with sum and dot seen as the chains of binary operations they stand for. A place
// that is read once with local derivative 1 takes over its reader's gradient.
#pragma once

#include "dense/scalar/tape.h"

namespace dense {

struct Gradient {
  // Of d(sum of seed * output) / d(wrt), for each wrt; a constant 0 where nothing depends on it.
  std::vector<int32_t> places;
  // For each node of the tape: the node whose gradient it was recorded for, or itself; -1 for the last constants.
  std::vector<int32_t> owner;
};

// What the gradient is recorded for. in_order: exact programs, which begin every sum with 0 (and have no softmax, see
// passes.h). fast: other programs, which have an operation of their own for the gradient of softmax. again: the tape of a
// user, who may differentiate once more.
enum class For : uint8_t { in_order, fast, again };

// Appends the gradient to the tape. Time and memory are linear in the tape; nothing recurses.
Gradient record_gradient(Tape& tape, std::span<const int32_t> outputs, std::span<const int32_t> seeds,
                         std::span<const int32_t> wrt, For purpose);

}  // namespace dense
