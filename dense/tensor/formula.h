// What maps share: copying formulas from tape to tape, and maps of a given formula.
#pragma once

#include "dense/scalar/rules.h"
#include "dense/tensor/tensor.h"

namespace dense {

// Records a formula once more, on another tape, of other operands. What is the same in a whole row is computed once for
// the row: an operation on values that were all carried across the row is done before they are.
Var transcribe(const Formula& formula, double columns, Tape& to, std::span<const Var> operands);

// For each input of its tape, whether a formula reads it.
std::vector<char> inputs_read(const Formula& formula);

// Whether a formula takes an operand of this shape for one value a row, which it carries across. A single number for
// many rows is not: it is the same everywhere, and loaded once.
inline bool is_per_row(const Shape& shape, const Shape& space) {
  if (space.empty() || space.back() == 1 || shape.empty() || shape.back() != 1) return false;
  return count_of(shape) > 1 || count_of(space) == space.back();
}

// The map of a formula whose operands were checked; `operation` is its name where it is shown. Operands
// whose last axis is broadcast are one value a row to it.
Tensor map_of(std::span<const Tensor> operands, std::shared_ptr<const Formula> formula, Shape space, Keep keep,
              Dtype dtype, std::string operation = {});

// Whether strides are those of elements side by side in order.
bool is_row_major(const Shape& shape, const Shape& strides);

// Whether what is computed from x is computed in f64.
inline bool is_wide(Tensor x) { return x.dtype() == Dtype::f64 || x.graph().wide; }

// x with its elements side by side in order.
Tensor contiguous(Tensor x);

}  // namespace dense
