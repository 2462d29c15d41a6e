// What a program does, for readers: one line per operation, or a graph.
#pragma once

#include <string>

#include "dense/scalar/tape.h"

namespace dense {

// An operation of a program on slots. For mix the first 2 * products operands are factors of products.
struct Step {
  Op op;
  uint32_t products;
  std::vector<int32_t> results, operands;
};

// What stands in a slot before the first operation, or is read from one after the last.
struct Label {
  std::string name;  // "input 3", "constant 0.5", "output 0", ...
  int32_t slot;
};

struct Listing {
  std::vector<Label> given;
  std::vector<Step> steps;
  std::vector<Label> results;

  std::string text() const;      // values are %0, %1, ..., each written once
  std::string graphviz() const;  // in the DOT language
};

}  // namespace dense
