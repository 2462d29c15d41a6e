#include "dense/tensor/formula.h"

#include <array>
#include <optional>

#include "dense/scalar/error.h"

namespace dense {

namespace {

// What was carried across a row, before it was; null for anything else.
std::optional<Var> carried(Tape& tape, Var x) {
  if (!x.tape()) return {};
  const Node& node = tape.nodes()[size_t(x.id())];
  if (node.op != Op::across) return {};
  return Var(&tape, tape.operands(node)[0]);
}

Var record_normal(Tape& tape, Op op, std::span<const Var> x, double columns) {
  if (columns == 1 && (op == Op::row_sum || op == Op::row_max || op == Op::across)) return x[0];
  if (op == Op::row_sum || op == Op::row_max) {
    const double times = op == Op::row_sum ? columns : 1;
    if (!x[0].tape()) return x[0].number() * times;
    if (const auto inner = carried(tape, x[0])) return times == 1 ? *inner : *inner * times;
    return record(op, x);
  }
  if (op == Op::across && !x[0].tape()) return x[0];
  const auto is = [&](size_t k, double number) { return !x[k].tape() && x[k].number() == number; };
  if (op == Op::mul && is(0, 1)) return x[1];
  if (op == Op::mul && is(1, 1)) return x[0];
  bool all = op != Op::across, any = false;
  std::vector<Var> inner(x.begin(), x.end());
  for (Var& v : inner) {
    if (!v.tape()) continue;
    const auto before = carried(tape, v);
    all = all && before;
    any = any || before;
    if (before) v = *before;
  }
  return all && any ? record(Op::across, {record(op, inner)}) : record(op, x);
}

}  // namespace

// Of the nodes up to its output, those that it needs.
static std::vector<char> needed(const Formula& formula) {
  const size_t n = formula.output.tape() ? size_t(formula.output.id()) + 1 : 0;
  std::vector<char> live(n, 0);
  if (n) live.back() = 1;
  for (size_t y = n; y-- > 0;)
    if (live[y])
      for (int32_t x : formula.tape.operands(int32_t(y))) live[size_t(x)] = 1;
  return live;
}

std::vector<char> inputs_read(const Formula& formula) {
  std::vector<char> read(size_t(formula.tape.inputs()), 0);
  const std::vector<char> live = needed(formula);
  for (size_t y = 0; y < live.size(); ++y)
    if (live[y] && formula.tape.nodes()[y].op == Op::input) read[size_t(formula.tape.nodes()[y].index)] = 1;
  return read;
}

// A sum of terms or, with two factors each, of products, in one order: products, then single terms. The scalar program
// would add first what is there first, which depends on what else it computes.
static Var sum_in_order(Tape& to, std::span<const Var> x, size_t factors, double columns) {
  const auto is_one = [&](Var v) { return !v.tape() && v.number() == 1; };
  std::vector<Var> products, terms;
  for (size_t i = 0; i < x.size(); i += factors) {
    if (factors == 1 || is_one(x[i + 1])) terms.push_back(x[i]);
    else if (is_one(x[i])) terms.push_back(x[i + 1]);
    else products.insert(products.end(), {x[i], x[i + 1]});
  }
  if (!products.empty())
    terms.insert(terms.begin(), record_normal(to, products.size() == 2 ? Op::mul : Op::dot, products, columns));
  Var total = terms[0];
  for (size_t i = 1; i < terms.size(); ++i) total = record_normal(to, Op::add, std::array{total, terms[i]}, columns);
  return total;
}

Var transcribe(const Formula& formula, double columns, Tape& to, std::span<const Var> operands) {
  if (!formula.output.tape()) return formula.output;
  const Tape& from = formula.tape;
  const std::vector<char> live = needed(formula);
  const size_t n = live.size();
  std::vector<Var> at(n), x;
  for (size_t y = 0; y < n; ++y) {
    const Node& node = from.nodes()[y];
    if (!live[y]) continue;
    if (node.op == Op::input) {
      at[y] = operands[size_t(node.index)];
    } else if (node.op == Op::constant) {
      at[y] = from.constant_value(node);
    } else if (node.op == Op::softmax || node.op == Op::shared) {
      fail("map: expected no ", rule(node.op).name, " in a formula");
    } else {
      x.clear();
      for (int32_t operand : from.operands(node)) x.push_back(at[size_t(operand)]);
      if (!x.empty() && (node.op == Op::sum || node.op == Op::dot))
        at[y] = sum_in_order(to, x, node.op == Op::sum ? 1 : 2, columns);
      else at[y] = record_normal(to, node.op, x, columns);
    }
  }
  return at.back();
}

}  // namespace dense
