// The engine's own matrix product, for one thread: every instruction set, every layout, every size.
//
// What makes the bits of a result. An element of C is a sum over k, taken in blocks of k_block products. Each block is
// one chain of fused multiply-adds from zero upwards. The blocks are added in order to what C held, or to nothing, and
// last the bias. No other size enters: a row has the same bits alone, within any batch, in any tile and on
// any thread, with AVX2 as with AVX-512 (portable code rounds products). bf16 operands are widened, which is exact, so
// the same rule holds; where C is bf16, the whole sum, then the bias, then what C held are added before one rounding.
//
// What makes it fast (Goto & van de Geijn 2008). A tile of C, rows x columns, stays in registers for a block of k. Each
// step loads a row of B, `columns` values, and broadcasts one value of A for each of `rows`. A is copied first, as it
// lies but closer together, if many columns of B will meet it: the second cache keeps up to m_block rows of the block of
// k. Then B is copied, a panel of `columns` at a time in which each row follows the last, if that pays: always when k is
// its adjacent dimension (the copy transposes) or its type is bf16, else when many rows of A will read it. While the
// tiles of a panel are computed they ask, line by line, for the memory of the next panel, and each for its part of C.
#pragma once

#include "dense/scalar/kernels.h"
#include "dense/tensor/dtype.h"

namespace dense {

// C (m, n) = A (m, k) B (k, n) [+ bias (n)] [+ C]. Strides are in elements; of each of A and B one is 1.
struct Gemm {
  int64_t m = 0, n = 0, k = 0;
  const void *a = nullptr, *b = nullptr;
  void* c = nullptr;
  const void* bias = nullptr;  // or none
  int64_t a_row = 0, a_col = 0, b_row = 0, b_col = 0, c_row = 0;
  Dtype type = Dtype::f32, b_type = Dtype::f32, c_type = Dtype::f32;  // of A, B and C: f32 or bf16; of B bf16 with bf16
  bool accumulate = false;
};

inline constexpr int64_t k_block = 384;  // products in a chain
inline constexpr int64_t m_block = 576;  // rows of A copied at a time: with k_block, half of the second cache
inline constexpr int64_t n_block = 768;  // columns of C at most where it is bf16

inline int64_t ceil_div(int64_t x, int64_t y) { return (x + y - 1) / y; }
inline int64_t round_up(int64_t x, int64_t to) { return ceil_div(x, to) * to; }

// The floats of scratch that `g` needs, a multiple of 16.
int64_t gemm_scratch(const Gemm& g);

// Computes it all. scratch is 64-byte aligned. Where C is bf16, n is at most n_block: its sums wait in scratch.
using RunGemm = void (*)(const Gemm& g, float* scratch);
RunGemm gemm_for(Isa isa);

}  // namespace dense
