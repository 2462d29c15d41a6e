// The tape: arithmetic recorded once, to be differentiated and replayed.
//
// A Var is a place on a tape, or a plain number. Operators and functions on Vars append nodes: an operation and the
// nodes it reads, all of them earlier. Nothing is computed while recording. Tape::compile (see program.h) turns what
// was recorded into a Program that runs forward and backward on any inputs.
//
//   Tape tape;
//   Var x = tape.input(), w = tape.shared(3);
//   Var y = exp(w * x) + sum(row);
//   Program program = tape.compile({y}, {x, w});
#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>
#include <vector>

namespace dense {

// One row each in the table of rules (rules.cpp), in the same order.
// clang-format off
enum class Op : uint8_t {
  constant, input, shared,
  add, sub, mul, div, neg, pow,
  exp, log, log1p, expm1, sqrt, rsqrt, tanh, sigmoid, softplus, erf, sin, cos, abs, relu,
  min, max, less, less_equal, equal, where,
  sum, dot, at, peak, softmax, logsumexp,
  row_sum, row_max, across,  // of formulas over the rows of a tensor: reductions to one value a row, and back to the row
  gather, reciprocal, reciprocal_square, root, square, softmax_grad, softplus_sigmoid, sin_cos, mix,  // a program's own
};
// clang-format on

// How a program computes. exact: float64, C's functions, every sum in the order recorded: the numbers of the same
// arithmetic in Python. f64 and f32: in these types by own vector functions (math.h: within 2 ulp, softplus and sigmoid
// 2.6), fused multiply-add and sums in an order of the compiler's; the same bits for any number of lanes and threads.
// In their gradients numbers too small to be normal count as 0.
enum class Precision : uint8_t { exact, f64, f32 };
inline constexpr const char* precision_names[] = {"exact", "f64", "f32"};

class Tape;
class Program;

// A place on a tape, or a number that is on none.
class Var {
 public:
  Var(double number = 0) : number_(number) {}
  Var(Tape* tape, int32_t id) : tape_(tape), id_(id) {}
  Tape* tape() const { return tape_; }       // null: a number
  int32_t id() const { return id_; }         // of a place
  double number() const { return number_; }  // of a number

 private:
  Tape* tape_ = nullptr;
  union {
    double number_;
    int32_t id_;
  };
};

// An operation and where its operands stand in Tape::operands(). `index` tells inputs, constants and the outputs of one
// softmax apart.
struct Node {
  Op op;
  int32_t index = 0, first = 0, count = 0;
};

class Tape {
 public:
  Tape() = default;
  Tape(const Tape&) = delete;  // Vars point to their tape
  Tape& operator=(const Tape&) = delete;

  // A new input with a value of its own in every lane.
  Var input();
  // A new input whose value all lanes share; `value` is used by runs that give no other. Its gradient is summed over
  // lanes.
  Var shared(double value = 0);
  // A number as a place on this tape.
  Var constant(double value);

  // A program for the values of `outputs` and, for one output or seeded sums of several, the gradient with respect to
  // `wrt`, which are inputs of either kind. Exact programs accumulate gradients in the order described in gradient.h.
  // Time and memory are linear in the tape. Throws Error without outputs, for a Var of another tape, for a wrt that is
  // not an input, beyond 2^30 results, and for 2^24 operands of one operation (of a sum or dot only where exact).
  Program compile(std::span<const Var> outputs, std::span<const Var> wrt = {},
                  Precision precision = Precision::exact) const;
  Program compile(std::initializer_list<Var> outputs, std::span<const Var> wrt = {},
                  Precision precision = Precision::exact) const;
  Program compile(std::initializer_list<Var> outputs, std::initializer_list<Var> wrt,
                  Precision precision = Precision::exact) const;

  // Records dy/dx for each x of xs, which may be any Vars of this tape, as more arithmetic: compile it, or
  // differentiate it once more. A constant 0 where y does not depend on x. Throws Error for a Var of another tape.
  std::vector<Var> gradient(Var y, std::span<const Var> xs);

  // From here on for the compiler's passes. A place is the number of a node.
  const std::vector<Node>& nodes() const { return nodes_; }
  std::span<const int32_t> operands(const Node& node) const {
    return {operands_.data() + node.first, size_t(node.count)};
  }
  std::span<const int32_t> operands(int32_t place) const { return operands(nodes_[place]); }
  const std::vector<int32_t>& all_operands() const { return operands_; }  // of all operations in order
  double constant_value(const Node& node) const { return constants_[node.index]; }
  int inputs() const { return inputs_; }
  const std::vector<double>& shared_values() const { return shared_; }

  // The place of a Var of this tape; a number gets one. Throws Error for a Var of another tape.
  int32_t place(Var v);
  // An operation is recorded after its operands were given one by one. Of one with several outputs record returns the
  // first; the others follow it. Throws Error at 2^31 operations or operands.
  void operand(Var v) { operands_.push_back(v.tape() == this ? v.id() : place(v)); }
  void operand(int32_t place) { operands_.push_back(place); }
  std::span<int32_t> pending() { return std::span(operands_).subspan(recorded_); }  // operands not yet recorded
  void keep(size_t count) { operands_.resize(recorded_ + count); }                  // of those the first
  int32_t record(Op op, int outputs = 1);
  int32_t record(Op op, std::initializer_list<int32_t> places);
  // Makes room, so that recording moves nothing.
  void reserve(size_t nodes, size_t operands);
  std::span<int32_t> operands_to_change(int32_t place) {
    return {operands_.data() + nodes_[place].first, size_t(nodes_[place].count)};
  }

 private:
  int32_t append(Node node);

  std::vector<Node> nodes_;
  std::vector<int32_t> operands_;
  size_t recorded_ = 0;  // operands of recorded operations
  std::vector<double> constants_, shared_;
  int inputs_ = 0;
};

// Records op on the tape of its operands; of numbers alone it computes the number. The functions below say what each op
// means. Throws Error for operands of two tapes, a wrong number of them, and an op that only its function can record.
Var record(Op op, std::span<const Var> operands);
inline Var record(Op op, std::initializer_list<Var> x) { return record(op, std::span(x.begin(), x.size())); }

inline Var operator+(Var a, Var b) { return record(Op::add, {a, b}); }
inline Var operator-(Var a, Var b) { return record(Op::sub, {a, b}); }
inline Var operator*(Var a, Var b) { return record(Op::mul, {a, b}); }
inline Var operator/(Var a, Var b) { return record(Op::div, {a, b}); }
inline Var operator-(Var a) { return record(Op::neg, {a}); }
inline Var& operator+=(Var& a, Var b) { return a = a + b; }
inline Var& operator-=(Var& a, Var b) { return a = a - b; }
inline Var& operator*=(Var& a, Var b) { return a = a * b; }
inline Var& operator/=(Var& a, Var b) { return a = a / b; }

inline Var pow(Var a, Var b) { return record(Op::pow, {a, b}); }
inline Var exp(Var a) { return record(Op::exp, {a}); }
inline Var log(Var a) { return record(Op::log, {a}); }
inline Var log1p(Var a) { return record(Op::log1p, {a}); }  // log(1 + a)
inline Var expm1(Var a) { return record(Op::expm1, {a}); }  // exp(a) - 1
inline Var sqrt(Var a) { return record(Op::sqrt, {a}); }
inline Var rsqrt(Var a) { return record(Op::rsqrt, {a}); }  // 1 / sqrt(a)
inline Var tanh(Var a) { return record(Op::tanh, {a}); }
inline Var sigmoid(Var a) { return record(Op::sigmoid, {a}); }    // 1 / (1 + exp(-a))
inline Var softplus(Var a) { return record(Op::softplus, {a}); }  // log(1 + exp(a))
inline Var erf(Var a) { return record(Op::erf, {a}); }
inline Var sin(Var a) { return record(Op::sin, {a}); }
inline Var cos(Var a) { return record(Op::cos, {a}); }
inline Var abs(Var a) { return record(Op::abs, {a}); }
inline Var relu(Var a) { return record(Op::relu, {a}); }          // a if a > 0, else 0
inline Var min(Var a, Var b) { return record(Op::min, {a, b}); }  // of equals the first, as is its derivative
inline Var max(Var a, Var b) { return record(Op::max, {a, b}); }

// Comparisons are 1 or 0 and have no derivative.
inline Var operator<(Var a, Var b) { return record(Op::less, {a, b}); }
inline Var operator>(Var a, Var b) { return record(Op::less, {b, a}); }
inline Var operator<=(Var a, Var b) { return record(Op::less_equal, {a, b}); }
inline Var operator>=(Var a, Var b) { return record(Op::less_equal, {b, a}); }
inline Var equal(Var a, Var b) { return record(Op::equal, {a, b}); }
// a where condition is not 0, else b. The other one's derivative is multiplied by 0, which a derivative of infinity
// survives: write where(x > 0, log(where(x > 0, x, 1)), 0).
inline Var where(Var condition, Var a, Var b) { return record(Op::where, {condition, a, b}); }

// 0 + x[0] + x[1] + ..., in this order.
Var sum(std::span<const Var> x);
// 0 + a[0] * b[0] + a[1] * b[1] + ..., in this order. Throws Error for different lengths.
Var dot(std::span<const Var> a, std::span<const Var> b);
// x[index] for an index computed or given at run time; running throws Error when it is not one of 0, 1, ..., n - 1.
// Throws Error for an empty x.
Var at(std::span<const Var> x, Var index);
// exp(x[i] - m) divided by the sum of these, where m, the largest x, counts as a constant. Divided the way of Python's
// microgpt, by a product with sum ** -1. Throws Error for an empty x.
std::vector<Var> softmax(std::span<const Var> x);
// log(exp(x[0]) + exp(x[1]) + ...), computed as m + log(sum of exp(x[i] - m)) with m the largest x. Throws Error for an
// empty x.
Var logsumexp(std::span<const Var> x);

}  // namespace dense
