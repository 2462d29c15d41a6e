// A program: what a tape holds, compiled, to be run any number of times.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "dense/scalar/tape.h"

namespace dense {

class Program {
 public:
  // What one run reads and where it writes. A lane is one set of inputs; rows are (inputs, lanes): all lanes of the
  // first input, then all of the second. Empty spans are left out. T, double or float, is the type of the numbers given;
  // the program computes in its own.
  template <class T>
  struct BatchOf {
    std::span<const T> inputs = {};  // (inputs, lanes), in the order of Tape::input
    std::span<const T> shared = {};  // one per Tape::shared; empty: their values at recording
    std::span<const T> seeds = {};   // (outputs, lanes), for the gradient of several outputs: their weights
    std::span<T> values = {};        // (outputs, lanes)
    std::span<T> grads = {};         // (per-lane wrt, lanes)
    std::span<T> shared_grads = {};  // one per shared wrt: summed over lanes, in an order that threads do not change
    std::span<T> jacobian = {};  // (outputs, wrt, lanes): of every output by every wrt, of either kind, in each lane
    int lanes = 1;
    int threads = 0;       // at most; 0: as many as the machine has, where there is work for them
    bool by_lane = false;  // the other layout: (lanes, inputs), (lanes, outputs), ..., (lanes, outputs, wrt)
  };
  using Batch = BatchOf<double>;

  // Runs forward and, where gradients are asked for, backward. On one thread it allocates nothing once it has run with as
  // many lanes. May be called from several threads at once. values and grads may be the memory
  // that inputs are in, row for row. Throws Error for spans of another length, before anything is written, and for an
  // `at` beyond its operands, when other lanes may have been written.
  void run(const Batch& batch) const;
  void run(const BatchOf<float>& batch) const;

  int inputs() const;
  int shared() const;
  int outputs() const;
  int wrt() const;         // per-lane ones
  int shared_wrt() const;  // shared ones
  int seeds() const;       // outputs, where there are several and a wrt; else 0
  Precision precision() const;

  int instructions() const;      // one for many operations of one kind
  size_t operations() const;     // of a run, forward and backward
  size_t bytes() const;          // of memory for a run with one lane
  std::string summary() const;   // operations, bytes, way of running: one line each
  std::string listing() const;   // one line per operation
  std::string graphviz() const;  // the operations as a graph in the DOT language

  struct Parts;
  explicit Program(std::shared_ptr<const Parts> parts) : parts_(std::move(parts)) {}

 private:
  std::shared_ptr<const Parts> parts_;
};

}  // namespace dense
