// Arrays of doubles and plain loops over them, for tests that say what a tensor should hold.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include "dense/tensor/plan.h"
#include "dense/tensor/tensor.h"

namespace dense {

using Index = std::vector<int64_t>;

struct Array {
  Shape shape;
  std::vector<double> values;
  // The element there; axes of size 1 and axes that are missing in front are broadcast.
  double at(const Index& i) const {
    int64_t number = 0;
    for (size_t axis = 0; axis < shape.size(); ++axis)
      number = number * shape[axis] + (shape[axis] == 1 ? 0 : i[i.size() - shape.size() + axis]);
    return values[size_t(number)];
  }
};

// f(i) for every index i of the shape, in order.
void for_each_index(const Shape& shape, const auto& f) {
  Index i(shape.size(), 0);
  for (int64_t n = count_of(shape); n-- > 0;) {
    f(std::as_const(i));
    for (size_t axis = shape.size(); axis-- > 0 && ++i[axis] == shape[axis];) i[axis] = 0;
  }
}

// The array of f(i).
Array array(const Shape& shape, const auto& f) {
  Array y{shape, {}};
  for_each_index(shape, [&](const Index& i) { y.values.push_back(f(i)); });
  return y;
}

Array mapped(const Array& x, const auto& f) {
  return array(x.shape, [&](const Index& i) { return f(x.at(i)); });
}

// f changes each row, the last axis, where it lies.
Array by_rows(Array x, const auto& f) {
  const auto n = size_t(x.shape.back());
  for (size_t begin = 0; begin < x.values.size(); begin += n) f(std::span(x.values).subspan(begin, n));
  return x;
}

inline Array reduced(const Array& x, Reduction reduction, const std::vector<int>& axes) {
  const auto gone = [&](size_t axis) { return axes.empty() || std::ranges::find(axes, int(axis)) != axes.end(); };
  Shape left;
  double count = 1;
  for (size_t axis = 0; axis < x.shape.size(); ++axis)
    if (gone(axis)) count *= double(x.shape[axis]);
    else left.push_back(x.shape[axis]);
  std::vector<std::vector<double>> groups(size_t(count_of(left)));
  for_each_index(x.shape, [&](const Index& i) {
    int64_t group = 0;
    for (size_t axis = 0; axis < i.size(); ++axis)
      if (!gone(axis)) group = group * x.shape[axis] + i[axis];
    groups[size_t(group)].push_back(x.at(i));
  });
  Array y{left, {}};
  for (const auto& g : groups) {
    double value = g[0];
    for (size_t k = 1; k < g.size(); ++k) {
      if (reduction == Reduction::sum || reduction == Reduction::mean) value += g[k];
      if (reduction == Reduction::max) value = std::max(value, g[k]);
      if (reduction == Reduction::min) value = std::min(value, g[k]);
      if (reduction == Reduction::prod) value *= g[k];
    }
    y.values.push_back(reduction == Reduction::mean ? value / count : value);
  }
  return y;
}

inline Array product(const Array& a, const Array& b) {  // matmul
  Shape shape = broadcast({a.shape.begin(), a.shape.end() - 2}, {b.shape.begin(), b.shape.end() - 2}, "product");
  const int64_t m = a.shape[a.shape.size() - 2], k = a.shape.back(), n = b.shape.back();
  shape.insert(shape.end(), {m, n});
  return array(shape, [&](Index i) {
    const int64_t row = i[i.size() - 2], column = i.back();
    double sum = 0;
    for (int64_t c = 0; c < k; ++c) {
      i[i.size() - 2] = row, i.back() = c;
      const double left = a.at(i);
      i[i.size() - 2] = c, i.back() = column;
      sum += left * b.at(i);
    }
    return sum;
  });
}

// Fills an input with numbers in [low, high) and gives them as it holds them.
inline Array fill(Tensor x, std::mt19937& random, double low = -1, double high = 1) {
  std::uniform_real_distribution<double> uniform(low, high);
  Array a{x.shape(), {}};
  for (int64_t i = 0; i < x.count(); ++i) {
    double v = uniform(random);
    if (x.dtype() == Dtype::f64) x.data<double>()[size_t(i)] = v;
    else if (x.dtype() == Dtype::f32) v = x.data<float>()[size_t(i)] = float(v);
    else v = x.data<int32_t>()[size_t(i)] = int32_t(std::floor(v));
    a.values.push_back(v);
  }
  return a;
}

// What the elements of an output are, as numbers.
inline std::vector<double> numbers(const Plan& plan, Tensor x) {
  const auto all = [](const auto& values) { return std::vector<double>(values.begin(), values.end()); };
  if (x.dtype() == Dtype::f64) return all(plan.get<double>(x));
  return x.dtype() == Dtype::i32 ? all(plan.get<int32_t>(x)) : all(plan.get<float>(x));
}
inline std::vector<double> numbers(Tensor x) {
  Plan plan({x});
  plan.run();
  return numbers(plan, x);
}

// Within tolerance * max(1, |want|), NaN being NaN.
inline void expect_near(const std::vector<double>& got, const std::vector<double>& want, double tolerance,
                        const std::string& what) {
  ASSERT_EQ(got.size(), want.size()) << what;
  for (size_t i = 0; i < got.size(); ++i) {
    if (std::isnan(want[i]) ? std::isnan(got[i]) : got[i] == want[i]) continue;
    ASSERT_LE(std::abs(got[i] - want[i]), tolerance * std::max(1.0, std::abs(want[i])))
        << what << ", element " << i << ": got " << got[i] << ", want " << want[i];
  }
}
inline void expect_near(Tensor x, const Array& want, double tolerance, const std::string& what) {
  ASSERT_EQ(x.shape(), want.shape) << what;
  expect_near(numbers(x), want.values, tolerance, what);
}

template <class T>
std::vector<std::remove_const_t<T>> copy_of(std::span<T> values) {
  return {values.begin(), values.end()};
}
// Of vectors or spans of one type.
bool same_bits(const auto& a, const auto& b) {
  static_assert(sizeof a[0] == sizeof b[0]);
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof a[0]) == 0;
}

}  // namespace dense
