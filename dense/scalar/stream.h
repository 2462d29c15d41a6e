// A stream: a tape as words, one operation after the other, to be interpreted for a block of lanes at a time. Every
// result has a slot, which is used again once nobody will read it: what a program touches stays in the cache. For graphs
// that are deep, and for many lanes; code.h has the other way, for operations side by side.
#pragma once

#include "dense/scalar/kernels.h"
#include "dense/scalar/tape.h"

namespace dense {

// An operation in words: its Op and count, the slots of its results, the slots of its operands.
struct Stream {
  std::vector<uint32_t> words;
  size_t backward = 0;                                // index of the first word of the gradient, behind a stop
  std::vector<std::pair<int32_t, double>> constants;  // slot, value
  std::vector<int32_t> slot_of;                       // by place on the tape; none: not needed
  int32_t slots = 0, operations = 0;

  static constexpr int32_t none = -1;
};

// The first word of an operation. Lowest 8 bits: which kernel; above, for mix, the number of products (12 bits) and of
// single terms (12 bits), for others the number of operands, or of results where there are several of both (24 bits).
struct Header {
  uint32_t word;
  static constexpr uint32_t most_terms = (1 << 12) - 1, most_operands = (1 << 24) - 1;
  static constexpr uint32_t stop = 0;  // a word that ends what runs

  static Header of(Op op, uint32_t count) { return {kernel_of(op, count) | count << 8}; }
  static Header of_mix(uint32_t products, uint32_t singles) {
    const uint32_t kernel = products < 4 && singles < 5 ? mix_kernel(products, singles) : uint32_t(Op::mix);
    return {kernel | products << 8 | singles << 20};
  }

  // Kernels are an Op or, for the commonest counts, one of their own. They go from stop, 0, to 255: a switch over all of a
  // byte's values looks nothing up out of range, and needs no check of that.
  uint32_t kernel() const { return word & 255; }
  static constexpr uint32_t mix_kernel(uint32_t products, uint32_t singles) { return 128 + 5 * products + singles; }
  static constexpr uint32_t softmax_kernel(uint32_t count) { return 150 + count; }       // of 2, 3, 4
  static constexpr uint32_t softmax_grad_kernel(uint32_t count) { return 251 + count; }  // of 2, 3, 4

  Op op() const {
    if (kernel() < 128) return Op(kernel());
    return kernel() < 150 ? Op::mix : kernel() < 160 ? Op::softmax : Op::softmax_grad;
  }
  uint32_t count() const { return word >> 8; }
  uint32_t products() const { return word >> 8 & most_terms; }
  uint32_t singles() const { return word >> 20; }
  uint32_t results() const;   // words after this one
  uint32_t operands() const;  // words after those

 private:
  static uint32_t kernel_of(Op op, uint32_t count) {
    const bool own = count >= 2 && count <= 4;
    return own && op == Op::softmax        ? softmax_kernel(count)
           : own && op == Op::softmax_grad ? softmax_grad_kernel(count)
                                           : uint32_t(op);
  }
};

// The stream that computes `results`, places of a simplified tape of which the first `forward` nodes are not its
// gradient. With `again`, the words of the gradient may run several times after those before them. Throws Error for an
// operation that has too many operands. Where many operations do not wait for each other (`level` is from simplify),
// those of a kind follow one another: the machine guesses what comes next, and is right more often.
Stream assemble(const Tape& work, std::span<const int32_t> level, std::span<const int32_t> results, int32_t forward,
                bool again, Precision precision);

// Runs the words of a stream up to a stop, on memory that has `width` lanes for each slot, doubles or floats, adjacent.
using Interpret = void (*)(const uint32_t* begin, void* memory, size_t width);

struct Interpreter {
  Interpret one, few, many;  // for a width of 1, of 4, of any multiple of `vector`
  size_t vector;             // lanes
};
Interpreter exact_interpreter(Isa isa);
Interpreter f64_interpreter(Isa isa);
Interpreter f32_interpreter(Isa isa);

}  // namespace dense
