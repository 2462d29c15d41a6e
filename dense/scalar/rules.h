// The table of rules: what each operation computes, and its derivative.
#pragma once

#include <array>

#include "dense/scalar/tape.h"

namespace dense {

inline constexpr int any_number = -1;  // arity of sum, dot, ...: the node says how many

// One row per Op. `value` of n operands is what exact programs compute: C's functions, sums in order. `partials` records
// dy/dx for each of up to three operands, given the operands x and the result y; null where no gradient flows and for
// operations on any number of operands, whose derivatives gradient.cpp has.
struct Rule {
  Op op;
  const char* name;
  int arity;
  double (*value)(const double* x, int n);
  std::array<Var, 3> (*partials)(const Var* x, Var y);
};

const Rule& rule(Op op);

// C's pow(x, exponent) itself: where compilers see the exponent they put x * x or 1 / x, whose last bit differs now and
// then.
double c_pow(double x, double exponent);

// What softmax stands for, recorded operation by operation as in Python's microgpt; of numbers alone computed.
std::vector<Var> softmax_formula(std::span<const Var> x);

// The same for logsumexp.
Var logsumexp_formula(std::span<const Var> x);

// `index` as one of 0, 1, ..., n - 1; throws Error where it is none.
size_t checked_index(double index, size_t n);

}  // namespace dense
