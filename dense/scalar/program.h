// A program: what a tape holds, compiled, to be run any number of times.
#pragma once

#include <memory>
#include <span>

#include "dense/scalar/tape.h"

namespace dense {

class Program {
 public:
  // What one run reads and where it writes. A lane is one set of inputs; rows are (inputs, lanes): all lanes of the
  // first input, then all of the second. Empty spans are left out.
  struct Batch {
    std::span<const double> inputs = {};  // (inputs, lanes), in the order of Tape::input
    std::span<const double> shared = {};  // one per Tape::shared; empty: their values at recording
    std::span<const double> seeds = {};   // (outputs, lanes), for the gradient of several outputs: their weights
    std::span<double> values = {};        // (outputs, lanes)
    std::span<double> grads = {};         // (per-lane wrt, lanes)
    std::span<double> shared_grads = {};  // one per shared wrt: summed over lanes in their order
    int lanes = 1;
  };

  // Runs forward and, where it was compiled with wrt, backward. Allocates nothing after the first run with few lanes and
  // the first with many. May be called from several threads at once. values and grads may be the memory that inputs are
  // in, row for row. Throws Error for spans of another length, before anything is written, and for an `at` beyond its
  // operands, when lanes before that one may have been written.
  void run(const Batch& batch) const;

  int instructions() const;  // one for many operations of one kind
  size_t bytes() const;      // of memory for a run with one lane

  struct Parts;
  explicit Program(std::shared_ptr<const Parts> parts) : parts_(std::move(parts)) {}

 private:
  std::shared_ptr<const Parts> parts_;
};

}  // namespace dense
