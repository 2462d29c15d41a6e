// The table of rules: what each operation computes, and its derivative.
#pragma once

#include <array>

#include "dense/scalar/tape.h"

namespace dense {

inline constexpr int any_number = -1;  // arity of sum, dot, ...: the node says how many

// One row per Op. `value` of n operands is exact mode's definition: C's functions, sums in order. `partials` records
// dy/dx for each of up to three operands, given the operands x and the result y; null where it is in no operand's way
// or, for any number of operands, where gradient.cpp has it.
struct Rule {
  Op op;
  const char* name;
  int arity;
  double (*value)(const double* x, int n);
  std::array<Var, 3> (*partials)(const Var* x, Var y);
};

const Rule& rule(Op op);

}  // namespace dense
