#include "dense/scalar/gradient.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <unordered_map>

#include "dense/scalar/rules.h"

namespace dense {

namespace {

constexpr int32_t none = -1;

// Whether a gradient flows from the result of op to its k-th operand.
bool differentiable(Op op, int k) {
  switch (op) {
    case Op::less:
    case Op::less_equal:
    case Op::equal:
    case Op::row_max:
    case Op::peak: return false;
    case Op::where:
    case Op::at: return k > 0;
    default: return true;
  }
}

// The operation that carries the gradient of a sum over a row back to the row, and the other way round.
std::optional<Op> mirror(Op op) {
  if (op == Op::row_sum) return Op::across;
  if (op == Op::across) return Op::row_sum;
  return {};
}

// A place where a node is read: by `reader`, with local derivative `weight`. Readers from the number of nodes on stand
// for the outputs, whose gradients are the seeds. A weight below 0 stands for the derivative by the reader's operand
// ~weight, which is recorded when the reader's turn comes.
struct Edge {
  int32_t weight, reader;
};

// For each node its edges in the order of accumulation, and the nodes in the order of backward().
struct Order {
  std::vector<Edge> edges;
  std::vector<int32_t> begin, end;  // the edges of x are edges[begin[x], end[x])
  std::vector<int32_t> nodes;
};

enum class State : uint8_t { passive, to_visit, visited };  // passive: does not depend on wrt

// The results of one softmax are visited as one, the first.
int32_t unit(const Tape& tape, int32_t x) {
  const Node& node = tape.nodes()[x];
  return node.op == Op::softmax ? x - node.index : x;
}

Order depth_first(const Tape& tape, std::span<const int32_t> outputs, std::span<const int32_t> wrt, int32_t one) {
  const size_t n = tape.nodes().size();
  std::vector<State> state(n, State::passive);
  for (int32_t x : wrt) state[unit(tape, x)] = State::to_visit;
  for (size_t y = 0; y < n; ++y) {
    const Node& node = tape.nodes()[y];
    const auto x = tape.operands(node);
    if (node.count && node.index) {
      state[y] = state[y - node.index];
      continue;
    }
    for (int k = 0; k < node.count && state[y] == State::passive; ++k)
      if (differentiable(node.op, k)) state[y] = state[x[k]];
  }
  Order order;
  order.end.assign(n, 0);
  for (int32_t x : tape.all_operands()) ++order.end[x];
  for (int32_t x : outputs) ++order.end[x];
  std::partial_sum(order.end.begin(), order.end.end(), order.end.begin());
  order.begin = order.end;
  order.edges.resize(tape.all_operands().size() + outputs.size());
  const auto edge = [&](int32_t x, int32_t weight, int32_t reader) {  // from the last to the first
    if (state[x] != State::passive) order.edges[--order.begin[x]] = {weight, reader};
  };
  struct Visit {
    int32_t node, k;
  };
  std::vector<Visit> stack;
  const auto descend = [&](int32_t x) {
    x = unit(tape, x);
    if (state[x] != State::to_visit) return false;
    state[x] = State::visited;
    stack.push_back({x, 0});
    return true;
  };
  for (int32_t output : outputs) {
    descend(output);
    while (!stack.empty()) {
      const size_t top = stack.size() - 1;
      const int32_t y = stack[top].node;
      int32_t k = stack[top].k;
      const Node node = tape.nodes()[y];
      const auto x = tape.operands(node);
      // The chain of additions that sum and dot stand for has each addition right after its operands; the others come
      // after all of theirs. Edges are found in reverse, hence the last operand of an operation first.
      if (node.op == Op::sum) {
        for (; k < node.count && !descend(x[k]); ++k) edge(x[k], one, y);
      } else if (node.op == Op::dot) {
        for (; k < node.count && !descend(x[k]) && !descend(x[k + 1]); k += 2)
          edge(x[k + 1], x[k], y), edge(x[k], x[k + 1], y);
      } else {
        while (k < node.count && !(differentiable(node.op, k) && descend(x[k]))) ++k;
        for (int32_t i = k - 1; i >= 0 && k == node.count; --i) {
          if (node.op == Op::softmax || mirror(node.op)) edge(x[i], one, y + i);
          else if (differentiable(node.op, i)) edge(x[i], ~i, y);
        }
      }
      if (k < node.count) {
        stack[top].k = k;
      } else {
        order.nodes.push_back(y);
        stack.pop_back();
      }
    }
  }
  std::reverse(order.nodes.begin(), order.nodes.end());
  for (size_t o = outputs.size(); o-- > 0;) edge(outputs[o], one, int32_t(n + o));  // seeds come first
  return order;
}

}  // namespace

Gradient record_gradient(Tape& tape, std::span<const int32_t> outputs, std::span<const int32_t> seeds,
                         std::span<const int32_t> wrt, For purpose) {
  const int32_t zero = tape.constant(0).id(), one = tape.constant(1).id(), minus_one = tape.constant(-1).id();
  const size_t n = tape.nodes().size();
  const Order order = depth_first(tape, outputs, wrt, one);
  Gradient result;
  result.owner.resize(n);
  std::iota(result.owner.begin(), result.owner.end(), 0);

  const auto var = [&](int32_t id) {  // a constant as its number, so that arithmetic on constants stays off the tape
    const Node& node = tape.nodes()[id];
    return node.op == Op::constant ? Var(tape.constant_value(node)) : Var(&tape, id);
  };
  const auto place = [&](Var v) {
    return v.tape() || std::abs(v.number()) != 1 ? tape.place(v) : v.number() == 1 ? one : minus_one;
  };
  std::vector<int32_t> grad(n, none);
  grad.insert(grad.end(), seeds.begin(), seeds.end());
  std::vector<int32_t> passed = grad;  // to the operands: the gradient; of softmax, multiplied by its derivative
  std::vector<std::array<int32_t, 3>> partials(n);  // of nodes with a fixed number of operands; of logsumexp the first
  std::unordered_map<int32_t, std::vector<int32_t>> chosen;  // of an index: equal(index, i) for each i
  const auto local = [&](int32_t reader, int32_t k) {
    switch (tape.nodes()[reader].op) {
      case Op::logsumexp: return partials[reader][0] + k;
      case Op::at: return chosen[tape.operands(reader)[0]][k - 1];
      default: return partials[reader][k];
    }
  };
  // softmax passes an operand k: y[k] * (dy[k] - dot(y, dy))
  const auto pass_softmax = [&](int32_t first, int32_t count) {
    if (purpose == For::fast) {
      for (int32_t i = 0; i < count; ++i) tape.operand(first + i);
      for (int32_t i = 0; i < count; ++i) tape.operand(grad[first + i] == none ? zero : grad[first + i]);
      const int32_t dx = tape.record(Op::softmax_grad, count);
      for (int32_t i = 0; i < count; ++i) passed[first + i] = dx + i;
      return;
    }
    for (int32_t i = first; i < first + count; ++i)
      if (grad[i] != none) tape.operand(i), tape.operand(grad[i]);
    const int32_t total = tape.record(Op::dot);
    for (int32_t i = first; i < first + count; ++i) {
      const int32_t less = tape.record(Op::sub, {grad[i] == none ? zero : grad[i], total});
      passed[i] = tape.record(Op::mul, {i, less});
    }
  };
  for (int32_t x : order.nodes) {
    const Node node = tape.nodes()[x];
    for (int32_t y = x; y < x + (node.op == Op::softmax ? node.count : 1); ++y) {
      if (order.begin[y] == order.end[y]) continue;
      bool sum = true;
      for (int32_t e = order.begin[y]; e < order.end[y]; ++e) {
        const auto [edge_weight, reader] = order.edges[e];
        const int32_t weight = edge_weight >= 0 ? edge_weight : local(reader, ~edge_weight);
        tape.operand(weight);
        tape.operand(passed[reader]);
        sum &= weight == one;
      }
      if (sum) {
        const auto terms = tape.pending();
        for (size_t t = 0; 2 * t < terms.size(); ++t) terms[t] = terms[2 * t + 1];
        tape.keep(terms.size() / 2);
      }
      if (sum && tape.pending().size() == 1) {
        grad[y] = tape.pending()[0];
        tape.keep(0);
      } else {
        const bool two = purpose != For::in_order && tape.pending().size() == 2;
        grad[y] = tape.record(sum ? (two ? Op::add : Op::sum) : (two ? Op::mul : Op::dot));
      }
      passed[y] = grad[y];
    }
    if (rule(node.op).partials) {
      std::array<Var, 3> operands;
      for (int k = 0; k < node.count; ++k) operands[k] = var(tape.operands(node)[k]);
      const auto p = rule(node.op).partials(operands.data(), var(x));
      for (int k = 0; k < node.count; ++k) partials[x][k] = place(p[k]);
    } else if (const auto op = mirror(node.op)) {
      passed[x] = tape.record(*op, {grad[x]});
    } else if (node.op == Op::softmax) {
      pass_softmax(x, node.count);
    } else if (node.op == Op::logsumexp) {
      for (int32_t k = 0; k < node.count; ++k) tape.operand(tape.operands(node)[k]);
      partials[x][0] = tape.record(Op::softmax, node.count);
    } else if (node.op == Op::at) {
      const int32_t index = tape.operands(node)[0];
      for (auto& known = chosen[index]; int32_t(known.size()) < node.count - 1;)
        known.push_back(place(equal(var(index), double(known.size()))));
    }
    result.owner.resize(tape.nodes().size(), x);
  }
  for (int32_t x : wrt) result.places.push_back(grad[x] == none ? zero : grad[x]);
  result.owner.resize(tape.nodes().size(), none);
  return result;
}

}  // namespace dense
