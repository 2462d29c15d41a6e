// Matrix products of tensors: one plan for each shape, made once and run every step.
//
//   Matmul plan({.m = 1024, .n = 2304, .k = 768, .a_row = 768, .b_row = 2304, .c_row = 2304}, best_isa(), 2);
//   plan.run(x, w, y, nullptr, scratch, threads);                                   // y (1024, 2304) = x w
//
// The contract. Same bits for any number of threads; a row of C has the same bits alone (m = 1), within any larger m,
// and in any batch. gemm.h says which bits. Threads share out blocks of C, never k; how large the blocks are, and who
// computes them, shows in the time alone.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "dense/scalar/kernels.h"
#include "dense/tensor/dtype.h"
#include "dense/tensor/gemm.h"
#include "dense/tensor/threads.h"

namespace dense {

// C (m, n) = A (m, k) B (k, n) [+ bias (n)] [+ C], for each element of a batch. Strides are in elements.
struct MatmulSpec {
  int64_t m = 0, n = 0, k = 0;
  Dtype type = Dtype::f32;    // of A and B: f32, bf16 or f64
  bool b_bf16 = false;        // of B alone, A being f32: the bits of B in f32
  Dtype c_type = Dtype::f32;  // of C and bias: f32; f64 with f64; bf16, too, with bf16
  int64_t a_row = 0, a_col = 1, b_row = 0, b_col = 1, c_row = 0;  // of A and of B one is 1; C's columns are adjacent
  struct Batch {
    int64_t size, a, b, c;  // strides may be 0 for a and b: an operand that all share
  };
  std::vector<Batch> batch = {};  // outermost first
  bool accumulate = false, bias = false;
};

// A plan. run() may be called from several threads at once, on different memory.
class Matmul {
 public:
  // For at most `threads` threads. Throws Error where spec breaks its own rules.
  Matmul(const MatmulSpec& spec, Isa isa, int threads);

  size_t scratch_bytes() const { return size_t(threads_) * scratch_stride_; }

  // scratch: scratch_bytes(), 64-byte aligned, of which nothing is kept. C overlaps no other operand.
  // Allocates nothing.
  void run(const void* a, const void* b, void* c, const void* bias, std::byte* scratch, Threads& threads) const {
    run(a, b, c, bias, scratch, threads, spec_.m, spec_.k);
  }
  // The same for any m, and for k up to that of the plan: the bits are those of a plan for these.
  void run(const void* a, const void* b, void* c, const void* bias, std::byte* scratch, Threads& threads, int64_t m,
           int64_t k) const;

  std::string path() const;  // what computes it: "own AVX-512"

 private:
  struct Operands {
    const std::byte *a, *b;
    std::byte* c;
    const std::byte* bias;
    int64_t m, k, block_m;  // rows of a block of C
  };
  void run_task(int64_t task, const Operands& x, std::byte* scratch) const;
  Operands batch_element(int64_t index, Operands x) const;  // x moved to it

  MatmulSpec spec_;
  Isa isa_;
  int threads_;
  Gemm gemm_{};  // a block of C, the largest, but for the pointers
  RunGemm run_;
  int64_t batch_ = 1;                    // elements
  int64_t batch_of_task_ = 1;            // elements in a task; where more than one, the blocks are the whole C
  int64_t m_shares_ = 1, n_blocks_ = 1;  // blocks along m are a multiple of m_shares_
  bool alone_ = true;                    // too little work to share
  size_t scratch_stride_ = 0;            // bytes for each thread
};

}  // namespace dense
