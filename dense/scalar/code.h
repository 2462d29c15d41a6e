// Code: a tape scheduled for the machine. Independent operations of one kind stand side by side in memory and run as
// one instruction, a vector register at a time; the order of every sum stays as recorded.
#pragma once

#include "dense/scalar/tape.h"

namespace dense {

// `count` operations of one kind. The i-th writes slot out + i. Its operands are the `terms` places from `args`: a place
// 2 * slot + 1 means slot + i, a place 2 * slot means slot whatever i is. gather has `count` places, one each.
struct Instruction {
  Op op;
  int32_t out, count, terms, args;
  bool rows = false;       // a dot in which every term is an adjacent place times one that stays the same
  bool with_next = false;  // the next instruction is another of this shape and independent of this one
};

struct Code {
  std::vector<Instruction> instructions;
  std::vector<int32_t> args;
  std::vector<std::pair<int32_t, double>> constants;  // slot, value
  int32_t slots = 0;  // inputs first, then shared inputs, both as on the tape, then constants, then results
  int32_t first_shared = 0, first_result = 0;  // from the one to the other all lanes are equal
  std::vector<int32_t> slot_of;                // for each node of the tape; none: not computed

  static constexpr int32_t none = -1;
};

// Code that computes `results`, places of a lowered tape. `level` is from simplify: operations of one level do not depend
// on each other. `owner` is from record_gradient, or empty: the gradients of neighbours are made neighbours.
Code generate(const Tape& work, std::span<const int32_t> level, std::span<const int32_t> owner,
              std::span<const int32_t> results);

}  // namespace dense
