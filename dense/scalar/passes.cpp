#include "dense/scalar/passes.h"

#include <algorithm>
#include <array>
#include <bit>
#include <numeric>

#include "dense/scalar/rules.h"

namespace dense {

static constexpr int32_t none = -1;

std::vector<int32_t> lower(const Tape& tape, std::span<const Var> outputs, int seeds, Precision precision, Tape& work) {
  const bool exact = precision == Precision::exact;
  const auto n = int32_t(tape.nodes().size());
  std::vector<char> live(n, 0);
  for (Var y : outputs)
    if (y.tape()) live[y.id()] = 1;
  for (int32_t y = n - 1; y >= 0; --y) {
    if (!live[y]) continue;
    const Node& node = tape.nodes()[y];
    if (node.count && node.index) live[y - node.index] = 1;  // softmax's operands are read once, with its first result
    else
      for (int32_t x : tape.operands(node)) live[x] = 1;
  }

  work.reserve(3 * size_t(n), 3 * tape.all_operands().size());  // with the gradient to come
  for (int i = 0; i < tape.inputs() + seeds; ++i) work.input();
  for (double value : tape.shared_values()) work.shared(value);
  std::vector<int32_t> place(n, none);
  for (int32_t y = 0; y < n; ++y) {
    if (!live[y] || place[y] != none) continue;
    const Node& node = tape.nodes()[y];
    switch (node.op) {
      case Op::input: place[y] = node.index; break;
      case Op::shared: place[y] = work.inputs() + node.index; break;
      case Op::constant: place[y] = work.constant(tape.constant_value(node)).id(); break;
      case Op::softmax:
      case Op::logsumexp:
        if (exact) {
          std::vector<Var> x;
          for (int32_t operand : tape.operands(node)) x.push_back({&work, place[operand]});
          const std::vector<Var> result =
              node.op == Op::softmax ? softmax_formula(x) : std::vector{logsumexp_formula(x)};
          for (size_t i = 0; i < result.size(); ++i) place[y + i] = result[i].id();
          break;
        }
        [[fallthrough]];
      default: {
        for (int32_t x : tape.operands(node)) work.operand(place[x]);
        const int32_t results = node.op == Op::softmax ? node.count : 1;
        std::iota(place.begin() + y, place.begin() + y + results, work.record(node.op, results));
      }
    }
  }
  std::vector<int32_t> result;
  for (Var y : outputs) result.push_back(y.tape() ? place[y.id()] : work.constant(y.number()).id());
  return result;
}

std::vector<int32_t> counting_sort(std::span<const int32_t> ids, std::span<const int32_t> keys) {
  int32_t last = 0;
  for (int32_t i : ids) last = std::max(last, keys[i]);
  std::vector<int32_t> start(size_t(last) + 2, 0), sorted(ids.size());
  for (int32_t i : ids) ++start[keys[i] + 1];
  std::partial_sum(start.begin(), start.end(), start.begin());
  for (int32_t i : ids) sorted[start[keys[i]]++] = i;
  return sorted;
}

Op kind(const Tape& work, const Node& node) {
  if (node.op != Op::pow) return node.op;
  const Node& exponent = work.nodes()[work.operands(node)[1]];
  if (exponent.op != Op::constant) return Op::pow;
  const double e = work.constant_value(exponent);
  return e == -1    ? Op::reciprocal
         : e == -2  ? Op::reciprocal_square
         : e == 0.5 ? Op::root
         : e == 2   ? Op::square
                    : Op::pow;
}

Simplified simplify(Tape& work, Precision precision) {
  const bool exact = precision == Precision::exact;
  const auto n = int32_t(work.nodes().size());
  std::vector<int32_t> same(n), level(n, 0);
  std::iota(same.begin(), same.end(), 0);
  std::vector<int32_t> table(std::bit_ceil(2 * size_t(n) + 2), none);  // open addressing
  const auto key = [&](int32_t id) {
    const Node& node = work.nodes()[id];
    std::array<uint64_t, 3> k = {uint64_t(node.op), 0, 0};
    if (node.op == Op::constant) k[1] = std::bit_cast<uint64_t>(work.constant_value(node));
    const auto x = work.operands(node);
    for (size_t i = 0; i < x.size(); ++i) (i < 2 ? k[1] : k[2]) |= uint64_t(x[i]) << 32 * (i % 2);
    return k;
  };
  for (int32_t y = 0; y < n; ++y) {
    const Node node = work.nodes()[y];
    if (node.count && node.index) {  // of several results
      level[y] = level[y - node.index];
      continue;
    }
    int32_t highest = -1;
    for (int32_t& x : work.operands_to_change(y)) x = same[x], highest = std::max(highest, x < n ? level[x] : 0);
    level[y] = highest + 1;
    if (node.op == Op::pow) {
      const Node& exponent = work.nodes()[work.operands(node)[1]];
      if (exponent.op == Op::constant && work.constant_value(exponent) == 1) {
        same[y] = work.operands(node)[0];
        continue;
      }
    }
    if (!exact && (node.op == Op::add || node.op == Op::mul || node.op == Op::sum || node.op == Op::dot)) {
      const auto x = work.operands_to_change(y);
      const bool products = node.op == Op::mul || node.op == Op::dot;
      const auto is_one = [&](int32_t place) {
        return work.nodes()[place].op == Op::constant && work.constant_value(work.nodes()[place]) == 1;
      };
      if (x.size() == 1 || (products && x.size() == 2 && is_one(x[1]))) same[y] = x[0];
      else if (products && x.size() == 2 && is_one(x[0])) same[y] = x[1];
      if (same[y] != y) continue;
      if (x.size() == 2 && x[1] < x[0]) std::swap(x[0], x[1]);
    }
    if (node.op == Op::input || node.op == Op::shared || node.count > 3 || rule(node.op).arity == any_number) continue;
    if (node.count > 0 && node.op != Op::row_sum) {
      std::array<double, 3> numbers{};
      bool constant = true;
      for (int k = 0; k < node.count && constant; ++k) {
        const Node& x = work.nodes()[work.operands(node)[k]];
        constant = x.op == Op::constant;
        if (constant) numbers[k] = work.constant_value(x);
      }
      if (constant) {
        same[y] = work.constant(rule(node.op).value(numbers.data(), node.count)).id();
        continue;
      }
    }
    const auto wanted = key(y);
    uint64_t h = (wanted[0] * 0x9e3779b97f4a7c15 + wanted[1]) * 0x9e3779b97f4a7c15;
    h = ((h ^ h >> 29) + wanted[2]) * 0xbf58476d1ce4e5b9;
    size_t slot = h >> 32;
    for (;; ++slot) {
      int32_t& entry = table[slot & (table.size() - 1)];
      if (entry == none) entry = y;
      if (entry != y && key(entry) != wanted) continue;
      same[y] = entry;
      break;
    }
  }
  level.resize(work.nodes().size(), 0);
  return {std::move(same), std::move(level)};
}

}  // namespace dense
