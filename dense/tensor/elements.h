// Rows of elements between memory of any type and the lanes that formulas are computed in (float or double), and what
// formulas do with whole rows.
#pragma once

#include "dense/scalar/kernels.h"
#include "dense/tensor/dtype.h"

namespace dense {

// The finaliser of splitmix64: numbers that differ a little become ones that differ in every bit. Steele et al. 2014
inline uint64_t mixed(uint64_t z) {
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return z ^ z >> 31;
}

// T: the type of the lanes. Rows of lanes follow each other without a gap.
template <class T>
struct Elements {
  // n elements, `stride` apart, to lanes; and back, rounded to the nearest, of ties to the even one (i32: towards 0).
  void (*load)(const std::byte* from, Dtype type, int64_t stride, int64_t n, T* to);
  void (*store)(const T* from, int64_t n, std::byte* to, Dtype type, int64_t stride);
  // One value for each of `rows`. Sums in a fixed order.
  void (*row_sum)(const T* x, int64_t rows, int64_t columns, T* y);
  void (*row_max)(const T* x, int64_t rows, int64_t columns, T* y);     // a NaN in the row gives NaN
  void (*across)(const T* x, int64_t rows, int64_t columns, T* y);      // y[row][column] = x[row]
  void (*add_rows)(const T* x, int64_t rows, int64_t columns, T* sum);  // sum[column] += x[row][column], row by row
  // Uniform in [0, 1): 24 bits of a hash of (seed, key, number), for the numbers first, first + stride, ...
  void (*random)(uint64_t seed, uint64_t key, uint64_t first, int64_t stride, int64_t n, T* to);
};

Elements<float> elements_f32(Isa isa);
Elements<double> elements_f64(Isa isa);

}  // namespace dense
