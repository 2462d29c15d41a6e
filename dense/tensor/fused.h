// A fused kernel: formulas over the rows and columns of tensors, in one pass over memory.
//
// Its space is rows x columns. An operand may lack an axis: it is broadcast. What is the same in a whole row (one value a
// row: a sum over it, what follows from such sums) is computed once a row. A block of rows is loaded into slots, one
// row-major block each, worked on by the interpreter of scalar programs, lane by lane an element, and stored. Where the
// formula reduces rows, the program is cut into stages: full ones, over elements, and ones over rows.
#pragma once

#include <memory>
#include <span>
#include <string>

#include "dense/scalar/kernels.h"
#include "dense/tensor/tensor.h"

namespace dense {

struct FusedSpec {
  struct Operand {
    Kind kind = Kind::input;  // or counter, random: of the element's number instead of the element there
    Dtype dtype = Dtype::f32;
    View view;         // over the space; stride 0 where broadcast
    bool row = false;  // one value a row
    uint64_t seed = 0;
  };
  struct Output {
    Var value;
    Keep keep;
    Dtype dtype;
    View view;  // over the space; strides of axes that are not kept do not count
  };
  Shape space;
  std::vector<Operand> operands;  // one for each input of the tape
  std::vector<Output> outputs;
  bool wide = false;  // compute in f64
};

class Fused {
 public:
  Fused(const Tape& tape, FusedSpec spec, Isa isa, int threads);
  ~Fused();
  Fused(Fused&&) noexcept;
  size_t scratch_bytes() const;
  size_t operations() const;  // a lane
  // Where the elements are that the views count from; of a random operand its key. Outputs may be in the memory of an
  // operand with the same view. Allocates nothing.
  void run(std::span<const std::byte* const> operands, std::span<std::byte* const> outputs, std::byte* scratch,
           Threads& threads) const;

  struct Parts;

 private:
  std::unique_ptr<Parts> parts_;
};

}  // namespace dense
