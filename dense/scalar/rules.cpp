#include "dense/scalar/rules.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "dense/scalar/error.h"

namespace dense {

namespace {

using X = const double*;
using V = const Var*;
using Partials = std::array<Var, 3>;

bool is_zero(Var x) { return !x.tape() && x.number() == 0; }

double in_order(X x, int n) {
  double total = 0;
  for (int i = 0; i < n; ++i) total += x[i];
  return total;
}

double products_in_order(X x, int n) {  // a[0], b[0], a[1], b[1], ...
  double total = 0;
  for (int i = 0; i < n; i += 2) total += x[i] * x[i + 1];
  return total;
}

std::vector<Var> numbers(X x, int n) { return {x, x + n}; }

// clang-format off
constexpr Rule rules[] = {
  {Op::constant,   "constant",   0, nullptr, nullptr},
  {Op::input,      "input",      0, nullptr, nullptr},
  {Op::shared,     "shared",     0, nullptr, nullptr},
  //                                value, then dy/dx of each operand
  {Op::add,        "add",        2, [](X x, int) { return x[0] + x[1]; },             [](V, Var) -> Partials { return {1, 1}; }},
  {Op::sub,        "sub",        2, [](X x, int) { return x[0] - x[1]; },             [](V, Var) -> Partials { return {1, -1}; }},
  {Op::mul,        "mul",        2, [](X x, int) { return x[0] * x[1]; },             [](V x, Var) -> Partials { return {x[1], x[0]}; }},
  {Op::div,        "div",        2, [](X x, int) { return x[0] / x[1]; },             [](V x, Var y) -> Partials { return {1 / x[1], -(y / x[1])}; }},
  {Op::neg,        "neg",        1, [](X x, int) { return -x[0]; },                   [](V, Var) -> Partials { return {-1}; }},
  {Op::pow,        "pow",        2, [](X x, int) { return c_pow(x[0], x[1]); },    [](V x, Var y) -> Partials { return {is_zero(x[1]) ? 0 : x[1] * pow(x[0], x[1] - 1), x[1].tape() ? where(x[0] > 0, y * log(x[0]), 0) : 0}; }},
  {Op::exp,        "exp",        1, [](X x, int) { return std::exp(x[0]); },          [](V, Var y) -> Partials { return {y}; }},
  {Op::log,        "log",        1, [](X x, int) { return std::log(x[0]); },          [](V x, Var) -> Partials { return {1 / x[0]}; }},
  {Op::log1p,      "log1p",      1, [](X x, int) { return std::log1p(x[0]); },        [](V x, Var) -> Partials { return {1 / (1 + x[0])}; }},
  {Op::expm1,      "expm1",      1, [](X x, int) { return std::expm1(x[0]); },        [](V x, Var) -> Partials { return {exp(x[0])}; }},
  {Op::sqrt,       "sqrt",       1, [](X x, int) { return std::sqrt(x[0]); },         [](V, Var y) -> Partials { return {0.5 / y}; }},
  {Op::rsqrt,      "rsqrt",      1, [](X x, int) { return 1 / std::sqrt(x[0]); },     [](V x, Var y) -> Partials { return {-0.5 * y / x[0]}; }},
  {Op::tanh,       "tanh",       1, [](X x, int) { return std::tanh(x[0]); },         [](V, Var y) -> Partials { return {1 - y * y}; }},
  {Op::sigmoid,    "sigmoid",    1, [](X x, int) { return 1 / (1 + std::exp(-x[0])); },  [](V, Var y) -> Partials { return {y * (1 - y)}; }},
  {Op::softplus,   "softplus",   1, [](X x, int) { return std::log1p(std::exp(-std::abs(x[0]))) + std::max(x[0], 0.0); },  [](V x, Var) -> Partials { return {sigmoid(x[0])}; }},
  {Op::erf,        "erf",        1, [](X x, int) { return std::erf(x[0]); },          [](V x, Var) -> Partials { return {2 * std::numbers::inv_sqrtpi * exp(-(x[0] * x[0]))}; }},
  {Op::sin,        "sin",        1, [](X x, int) { return std::sin(x[0]); },          [](V x, Var) -> Partials { return {cos(x[0])}; }},
  {Op::cos,        "cos",        1, [](X x, int) { return std::cos(x[0]); },          [](V x, Var) -> Partials { return {-sin(x[0])}; }},
  {Op::abs,        "abs",        1, [](X x, int) { return std::abs(x[0]); },          [](V x, Var) -> Partials { return {(x[0] > 0) - (x[0] < 0)}; }},
  {Op::relu,       "relu",       1, [](X x, int) { return x[0] > 0 ? x[0] : 0.0; },   [](V x, Var) -> Partials { return {x[0] > 0}; }},
  {Op::min,        "min",        2, [](X x, int) { return x[1] < x[0] ? x[1] : x[0]; },  [](V x, Var) -> Partials { return {1 - (x[1] < x[0]), x[1] < x[0]}; }},
  {Op::max,        "max",        2, [](X x, int) { return x[1] > x[0] ? x[1] : x[0]; },  [](V x, Var) -> Partials { return {1 - (x[1] > x[0]), x[1] > x[0]}; }},
  {Op::less,       "less",       2, [](X x, int) { return double(x[0] < x[1]); },     nullptr},
  {Op::less_equal, "less_equal", 2, [](X x, int) { return double(x[0] <= x[1]); },    nullptr},
  {Op::equal,      "equal",      2, [](X x, int) { return double(x[0] == x[1]); },    nullptr},
  {Op::where,      "where",      3, [](X x, int) { return x[0] != 0 ? x[1] : x[2]; }, [](V x, Var) -> Partials { return {0, where(x[0], 1, 0), equal(x[0], 0)}; }},
  {Op::sum,        "sum",        any_number, in_order,                                nullptr},  // dy/dx[i] = 1
  {Op::dot,        "dot",        any_number, products_in_order,                       nullptr},  // dy/da[i] = b[i], dy/db[i] = a[i]
  {Op::at,         "at",         any_number, [](X x, int n) { return x[1 + checked_index(x[0], n - 1)]; },  nullptr},  // dy/dx[i] = equal(index, i); operands index, x[0], ...
  {Op::peak,       "peak",       any_number, [](X x, int n) { return *std::max_element(x, x + n); },  nullptr},  // the largest, counted as a constant
  {Op::softmax,    "softmax",    any_number, nullptr,                                 nullptr},  // softmax_formula, below
  {Op::logsumexp,  "logsumexp",  any_number, [](X x, int n) { return logsumexp_formula(numbers(x, n)).number(); },  nullptr},  // dy/dx = softmax(x)
  {Op::row_sum,    "row_sum",    1, [](X x, int) { return x[0]; },                    nullptr},  // of a row of one; dy/dx = across
  {Op::row_max,    "row_max",    1, [](X x, int) { return x[0]; },                    nullptr},  // counted as a constant
  {Op::across,     "across",     1, [](X x, int) { return x[0]; },                    nullptr},  // dy/dx = row_sum
  {Op::gather,     "gather",     1, [](X x, int) { return x[0]; },                    nullptr},
  {Op::reciprocal, "reciprocal", 1, [](X x, int) { return c_pow(x[0], -1); },    nullptr},
  {Op::reciprocal_square, "reciprocal_square", 1, [](X x, int) { return c_pow(x[0], -2); },  nullptr},
  {Op::root,       "root",       1, [](X x, int) { return c_pow(x[0], 0.5); },     nullptr},
  {Op::square,     "square",     1, [](X x, int) { return c_pow(x[0], 2); },     nullptr},
  {Op::softmax_grad, "softmax_grad", any_number, nullptr,                            nullptr},  // dx[i] = y[i] * (dy[i] - dot(y, dy)); operands y, dy
  {Op::softplus_sigmoid, "softplus_sigmoid", 1, nullptr,                             nullptr},  // both of x
  {Op::sin_cos,    "sin_cos",    1, nullptr,                                         nullptr},
  {Op::mix,        "mix",        any_number, nullptr,                                nullptr},  // products of pairs, then single terms, all added
};
// clang-format on

constexpr bool in_order_of_ops() {
  for (int i = 0; i < int(std::size(rules)); ++i)
    if (int(rules[i].op) != i) return false;
  return true;
}
static_assert(in_order_of_ops());

}  // namespace

const Rule& rule(Op op) { return rules[int(op)]; }

double c_pow(double x, double exponent) {
  const volatile double unseen = exponent;
  return std::pow(x, unseen);
}

std::vector<Var> softmax_formula(std::span<const Var> x) {
  const Var peak = record(Op::peak, x);
  std::vector<Var> y;
  for (Var v : x) y.push_back(exp(v - peak));
  const Var total = sum(y);
  for (Var& v : y) v = v * pow(total, -1);  // a power each: so do gradients accumulate in the original
  return y;
}

Var logsumexp_formula(std::span<const Var> x) {
  const Var peak = record(Op::peak, x);
  std::vector<Var> y;
  for (Var v : x) y.push_back(exp(v - peak));
  return peak + log(sum(y));
}

size_t checked_index(double index, size_t n) {
  if (!(index >= 0 && index < double(n) && index == std::floor(index)))
    fail("at: expected an index below ", n, ", got ", index);
  return size_t(index);
}

}  // namespace dense
