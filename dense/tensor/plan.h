// A plan: what some tensors of a graph need, as kernels in order over one arena, to be run any number of times.
//
// Neighbouring maps become one kernel (fused.h); values that are cheap to compute again from one tensor are not kept;
// memory is one arena in which tensors lie where no other is alive. A run allocates nothing. Where an input has no
// memory the plan says what a run would take, and takes none itself.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "dense/tensor/tensor.h"

namespace dense {

// Memory that several plans use in turn: each run may overwrite what the others left.
struct Arena {
  Memory memory;
  size_t bytes = 0;
};

class Plan {
 public:
  // For the values of `outputs`, tensors of one graph; among them may be assignments. Inputs are read where they are.
  // Without an arena the plan has its own. Throws Error without outputs.
  explicit Plan(std::span<const Tensor> outputs, std::shared_ptr<Arena> arena = {});
  explicit Plan(std::initializer_list<Tensor> outputs) : Plan(std::span(outputs.begin(), outputs.size())) {}
  ~Plan();
  Plan(Plan&&) noexcept;

  // Computes the outputs from the inputs as they are now. Throws Error for an id that is no row of its table.
  void run();
  // Elements of an output, of the last run. Throws Error for a tensor that is none, and unless T is its type.
  template <class T>
  std::span<const T> get(Tensor output) const {
    const auto all = bytes(output, sizeof(T), std::is_floating_point_v<T>);
    return {reinterpret_cast<const T*>(all.data()), all.size() / sizeof(T)};
  }

  size_t arena_bytes() const;
  double flops() const;  // of matmul and attention, in a run
  int kernels() const;
  void profile(bool on);        // measures the time of each kernel from now on
  std::string summary() const;  // one line per kernel: what, how often, flops, bytes, time; and a line of totals
  std::string totals() const;   // one line per kind of kernel

 private:
  std::span<const std::byte> bytes(Tensor output, size_t element, bool floating) const;
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

std::ostream& operator<<(std::ostream& out, const Plan& plan);

}  // namespace dense
