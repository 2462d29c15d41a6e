// Weights of 8 and 4 bits: a matrix (n, k) in groups of 32 along k, each with a scale of its own.
//
//   value = scale * (stored - 128)   q8, stored in 1 .. 255          8.5 bits a weight
//   value = scale * (stored - 8)     q4, stored in 0 .. 15           4.5 bits a weight
//
// Scales are float16. The bytes are the same on every machine and in files. Rows come in strips of 16, and a strip is
// its blocks of 64 k, two groups, one after the other, so that whoever multiplies reads memory in order and finds
// 16 sums side by side. A block is lines of 64 bytes:
//
//   1 line               2 x 16 scales: of group 0 for each row, of group 1 for each row
//   q8: 2 x 8 lines      of group 0, of group 1: line q has for each row the four bytes of k = 4 q .. 4 q + 3
//   q4: 8 lines          line q has for each row four bytes: the low halves are those of group 0, the high of group 1
//
// Rows beyond n and k beyond the matrix are weights of 0. The memory starts at a multiple of 64 bytes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dense/scalar/kernels.h"
#include "dense/tensor/dtype.h"
#include "dense/tensor/threads.h"

namespace dense {

inline constexpr int64_t strip_rows = 16, quantised_block = 64;  // rows of a strip, k of a block

inline int64_t block_bytes(Dtype type) { return 64 + (type == Dtype::q8 ? 1024 : 512); }
inline int64_t strip_bytes(Dtype type, int64_t k) {
  return (k + quantised_block - 1) / quantised_block * block_bytes(type);
}
size_t quantised_bytes(Dtype type, int64_t n, int64_t k);

// A matrix (n, k) as it is stored: f32, bf16 or f16; of the strides, in elements, one is 1.
struct StoredMatrix {
  const void* data;
  Dtype type;
  int64_t n, k, n_stride, k_stride;
};

// Writes quantised_bytes(to_type, n, k) bytes. q8: the largest of a group becomes 127 or -127. q4: of a few scales the
// one with the least squared error; most of them let the largest become -8, so that all 16 values are used. The same
// bits on every machine, however many threads. Throws Error for weights that are not finite.
void quantise(const StoredMatrix& from, Dtype to_type, std::byte* to, Threads& threads, Isa isa = best_isa());

// Row `row` of a matrix with rows of k values.
void dequantise_row(const std::byte* from, Dtype type, int64_t row, int64_t k, float* to);

}  // namespace dense
