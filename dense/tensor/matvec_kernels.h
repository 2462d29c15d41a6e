// The kernels of matvec.h, for one thread: a range of the columns of y, for all its rows.
//
// What makes the bits of a result.
//   (n, k)  32 sums side by side, sum i of the products of k = i, i + 32, ... in order, each a chain of fused
//           multiply-adds from zero. Then 16 sums i + (i + 16), then 8, 4, 2, and one. Last the bias.
//   (k, n)  As in gemm.h, and so the same bits: blocks of k_block products, each one chain from zero; blocks added in
//           order. Last the bias.
//   q8, q4  Each group of 32 values of x is rounded to integers of -127 .. 127 times a scale, the largest size / 127
//           (all zeros where that size is below 1e-35; NaN where it is not finite). A group's products are summed as
//           integers, which is exact. y is one chain from zero over the groups, fma(sum, scale of w * scale of x, y).
//           Last the bias.
// bf16, f16 and the scales are widened, which is exact. So AVX2 and AVX-512 agree in every bit (portable code rounds
// products), and no size, tile or thread enters.
//
// What makes it fast: each byte of W is asked for well before it is needed, across the pages that the machine's own
// prefetching stops at, and is used for up to a tile of rows of x once it is here.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dense/scalar/kernels.h"
#include "dense/tensor/dtype.h"

namespace dense {

// 64 values of a row of x: two groups.
struct QuantisedX {
  int8_t x[64];
  float scale[2];
  int32_t start[2];  // of the sum: what the offset of the weights, 128 or 8, is too much
};

struct MatvecBlock {
  int64_t m, k;
  int64_t first, last;  // columns of y; q8, q4: `first` a multiple of 16
  Dtype type;
  const float* x;  // for bf16 by row as `pair` makes it; or for q8, q4
  const QuantisedX* quantised_x;
  int64_t x_row;
  const void* w;
  int64_t w_row;  // elements
  float* y;
  int64_t y_row;
  const float* bias;  // or null
};

struct MatvecKernels {
  void (*by_row)(const MatvecBlock&);  // f32, bf16, f16 (n, k)
  // A row of k values of x in the order in which by_row wants it for bf16, then zeros up to a multiple of 32, which x_row
  // has room for; null: by_row wants it as it is.
  void (*pair)(const float* x, int64_t k, float* to);
  void (*by_column)(const MatvecBlock&);  // f32, bf16, f16 (k, n)
  // y = the sum of `count` parts (m, n) [+ bias], in order: of what by_column gives for k_block rows of W each, it
  // makes what by_column gives for all.
  void (*add_parts)(const float* parts, int64_t count, int64_t m, int64_t n, float* y, int64_t y_row,
                    const float* bias);
  void (*quantised)(const MatvecBlock&);  // q8, q4
  // Of x (m, k), the rows from `first` to before `last`; `first` is a multiple of quantised_tile. `to` has room for
  // m * ceil(k / 64), in an order that is the kernel's own.
  void (*quantise)(const float* x, int64_t x_row, int64_t first, int64_t last, int64_t k, Dtype type, QuantisedX* to);
  int64_t quantised_tile;  // rows
  const char* name;
  const char* quantised_name;
};

MatvecKernels matvec_kernels(Isa isa);

}  // namespace dense
