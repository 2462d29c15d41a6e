#include "dense/scalar/tape.h"

#include <limits>

#include "dense/scalar/error.h"
#include "dense/scalar/gradient.h"
#include "dense/scalar/rules.h"

namespace dense {

namespace {

constexpr size_t most = std::numeric_limits<int32_t>::max();  // places are 32 bits wide

Tape* tape_of(std::span<const Var> x) {
  for (Var v : x)
    if (v.tape()) return v.tape();
  return nullptr;
}

}  // namespace

int32_t Tape::append(Node node) {
  if (nodes_.size() >= most) fail("tape: expected fewer than 2^31 operations");
  nodes_.push_back(node);
  return int32_t(nodes_.size() - 1);
}

Var Tape::input() { return {this, append({Op::input, inputs_++})}; }

Var Tape::shared(double value) {
  shared_.push_back(value);
  return {this, append({Op::shared, int32_t(shared_.size() - 1)})};
}

Var Tape::constant(double value) {
  constants_.push_back(value);
  return {this, append({Op::constant, int32_t(constants_.size() - 1)})};
}

void Tape::reserve(size_t nodes, size_t operands) {
  nodes_.reserve(nodes);
  operands_.reserve(operands);
}

int32_t Tape::place(Var v) {
  if (!v.tape()) return constant(v.number()).id();
  if (v.tape() != this) fail("tape: expected a Var of this tape, got Var ", v.id(), " of another");
  return v.id();
}

int32_t Tape::record(Op op, int outputs) {
  if (operands_.size() > most) fail("tape: expected fewer than 2^31 operands");
  const auto first = int32_t(recorded_), count = int32_t(operands_.size() - recorded_);
  recorded_ = operands_.size();
  const int32_t id = append({op, 0, first, count});
  for (int i = 1; i < outputs; ++i) append({op, i, first, count});
  return id;
}

int32_t Tape::record(Op op, std::initializer_list<int32_t> places) {
  operands_.insert(operands_.end(), places.begin(), places.end());
  return record(op);
}

std::vector<Var> Tape::gradient(Var y, std::span<const Var> xs) {
  std::vector<int32_t> wrt;
  for (Var x : xs) {
    if (x.tape() != this)
      fail("gradient: expected Vars of this tape, got ", x.tape() ? "a Var of another" : "a number");
    wrt.push_back(x.id());
  }
  keep(0);
  const int32_t output = place(y), seed = constant(1).id();
  std::vector<Var> result;
  for (int32_t x : record_gradient(*this, {&output, 1}, {&seed, 1}, wrt, For::again).places)
    result.push_back({this, x});
  return result;
}

Var record(Op op, std::span<const Var> x) {
  const int arity = rule(op).arity;
  if (arity != any_number && x.size() != size_t(arity))
    fail(rule(op).name, ": expected ", arity, " operands, got ", x.size());
  const size_t least = op == Op::at ? 2 : op == Op::peak || op == Op::logsumexp ? 1 : 0;
  if (!rule(op).value || (op == Op::dot && x.size() % 2) || x.size() < least)
    fail(rule(op).name, ": expected to be recorded by its own function");
  if (Tape* tape = tape_of(x)) {
    tape->keep(0);  // of an operation that failed halfway
    for (Var v : x) tape->operand(v);
    return {tape, tape->record(op)};
  }
  std::vector<double> numbers;
  for (Var v : x) numbers.push_back(v.number());
  return rule(op).value(numbers.data(), int(numbers.size()));
}

Var sum(std::span<const Var> x) { return record(Op::sum, x); }

Var dot(std::span<const Var> a, std::span<const Var> b) {
  if (a.size() != b.size()) fail("dot: expected two rows of one length, got ", a.size(), " and ", b.size());
  Tape* const tape = tape_of(a) ? tape_of(a) : tape_of(b);
  if (tape) {
    tape->keep(0);
    for (size_t i = 0; i < a.size(); ++i) tape->operand(a[i]), tape->operand(b[i]);
    return {tape, tape->record(Op::dot)};
  }
  Var total = 0;
  for (size_t i = 0; i < a.size(); ++i) total += a[i] * b[i];
  return total;
}

Var at(std::span<const Var> x, Var index) {
  if (x.empty()) fail("at: expected one operand or more, got none");
  if (!index.tape()) checked_index(index.number(), x.size());
  std::vector<Var> operands{index};
  operands.insert(operands.end(), x.begin(), x.end());
  return record(Op::at, operands);
}

std::vector<Var> softmax(std::span<const Var> x) {
  if (x.empty()) fail("softmax: expected one operand or more, got none");
  Tape* const tape = tape_of(x);
  if (!tape) return softmax_formula(x);
  tape->keep(0);
  for (Var v : x) tape->operand(v);
  const int32_t first = tape->record(Op::softmax, int(x.size()));
  std::vector<Var> y;
  for (size_t i = 0; i < x.size(); ++i) y.push_back({tape, first + int32_t(i)});
  return y;
}

Var logsumexp(std::span<const Var> x) {
  if (x.empty()) fail("logsumexp: expected one operand or more, got none");
  return record(Op::logsumexp, x);
}

}  // namespace dense
