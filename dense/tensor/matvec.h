// Products of generation: a few rows times weights that are read from memory, as fast as memory gives them.
//
//   Matvec plan({.m = 1, .n = 2304, .k = 768, .by_row = false, .row_stride = 2304}, best_isa(), 2);
//   plan.run(x, 768, w, y, 2304, nullptr, scratch, threads);                       // y (1, 2304) = x w
//
// The contract. Same bits for any number of threads; a row of y has the same bits alone (m = 1) and within any larger
// m. matvec_kernels.h says which bits. Threads share out columns of y, and blocks of k where their sums are added apart
// anyway.
#pragma once

#include <cstddef>
#include <string>

#include "dense/scalar/kernels.h"
#include "dense/tensor/dtype.h"
#include "dense/tensor/matvec_kernels.h"
#include "dense/tensor/threads.h"

namespace dense {

// y (m, n) = x (m, k) W [+ bias (n)]; x, y and bias are f32.
struct MatvecSpec {
  int64_t m = 0, n = 0, k = 0;
  Dtype weights = Dtype::f32;  // f32, bf16 or f16 as checkpoints have them, at multiples of their size; q8, q4
  bool by_row = true;          // stored as (n, k): a row of W for each column of y; else (k, n). q8, q4: always
  int64_t row_stride = 0;      // elements from one stored row to the next; not for q8, q4, whose layout is their own
  bool bias = false;
};

// A plan. run() may be called from several threads at once, on different memory.
class Matvec {
 public:
  // For at most `threads` threads. Throws Error where spec breaks its own rules.
  Matvec(const MatvecSpec& spec, Isa isa, int threads);

  size_t scratch_bytes() const { return scratch_bytes_; }

  // x_row, y_row: floats from one row to the next. scratch: scratch_bytes(), 64-byte aligned, of which nothing is kept.
  // q8, q4: w is 64-byte aligned. y overlaps no other operand. Allocates nothing.
  void run(const float* x, int64_t x_row, const void* w, float* y, int64_t y_row, const float* bias, std::byte* scratch,
           Threads& threads) const {
    run(x, x_row, w, y, y_row, bias, scratch, threads, spec_.m);
  }
  // The same for m up to that of the plan: the bits are those of a plan for it.
  void run(const float* x, int64_t x_row, const void* w, float* y, int64_t y_row, const float* bias, std::byte* scratch,
           Threads& threads, int64_t m) const;

  std::string path() const;  // what computes it: "own AVX-512 VNNI"

 private:
  struct Piece {  // columns of y, and which block of k
    int64_t first, last, part;
  };
  Piece piece(int64_t task) const;

  MatvecSpec spec_;
  MatvecKernels kernels_;
  int threads_;
  bool alone_ = true;       // too little work to share
  int64_t columns_ = 0;     // of y in a task
  int64_t k_ = 0;           // in a task
  int64_t whole_ = 0;       // (k, n): blocks of k of which a thread has all columns, whole rows in a stream
  int64_t blocks_ = 0;      // (k, n): those, and the ones of which each thread has some columns
  int64_t paired_row_ = 0;  // floats of a row of x in pairs (MatvecKernels); 0: it stays as it is
  int64_t tasks_ = 0;
  size_t scratch_bytes_ = 0;
};

}  // namespace dense
