// A second implementation to test against: scalars that are computed at once and remember their operands, as in
// micrograd and microgpt. backward() visits each node's operands from left to right, depth first, and accumulates in the
// reverse of the order in which nodes were finished. Slow and plain on purpose.
#pragma once

#include <cmath>
#include <memory>
#include <utility>
#include <vector>

namespace micrograd {

class Value {
 public:
  struct Node {
    double data;
    double grad = 0;
    std::vector<std::pair<Node*, double>> operands;  // with the local derivative
    bool visited = false;
  };
  using Arena = std::vector<std::unique_ptr<Node>>;

  Value() = default;
  Value(Arena& arena, double data) : arena_(&arena), node_(arena.emplace_back(new Node{data, 0, {}, false}).get()) {}

  double data() const { return node_->data; }
  double grad() const { return node_->grad; }

  Value made(double data, std::vector<std::pair<Value, double>> operands) const {
    Value result(*arena_, data);
    for (const auto& [value, local] : operands) result.node_->operands.push_back({value.node_, local});
    return result;
  }
  Value number(double data) const { return {*arena_, data}; }

  Value operator+(Value b) const { return made(data() + b.data(), {{*this, 1}, {b, 1}}); }
  Value operator*(Value b) const { return made(data() * b.data(), {{*this, b.data()}, {b, data()}}); }
  Value operator-(Value b) const { return *this + b * b.number(-1); }
  Value pow(double e) const {
    const volatile double first = e, second = e - 1;  // unseen by the compiler: C's pow itself
    return made(std::pow(data(), first), {{*this, e * std::pow(data(), second)}});
  }
  Value exp() const { return made(std::exp(data()), {{*this, std::exp(data())}}); }
  Value log() const { return made(std::log(data()), {{*this, 1 / data()}}); }
  Value relu() const { return made(data() > 0 ? data() : 0, {{*this, data() > 0 ? 1.0 : 0.0}}); }
  Value tanh() const { return made(std::tanh(data()), {{*this, 1 - std::tanh(data()) * std::tanh(data())}}); }

  static Value sum(const std::vector<Value>& x) {
    Value total = x[0].number(0);
    for (Value v : x) total = total + v;
    return total;
  }
  static Value dot(const std::vector<Value>& a, const std::vector<Value>& b) {
    Value total = a[0].number(0);
    for (size_t i = 0; i < a.size(); ++i) total = total + a[i] * b[i];
    return total;
  }
  static std::vector<Value> softmax(const std::vector<Value>& x) {
    double largest = x[0].data();
    for (Value v : x) largest = std::max(largest, v.data());
    std::vector<Value> e, y;
    for (Value v : x) e.push_back((v - v.number(largest)).exp());
    const Value total = sum(e);
    for (Value v : e) y.push_back(v * total.pow(-1));
    return y;
  }

  void backward(double seed = 1) const {
    struct Visit {
      Node* node;
      size_t next;
    };
    std::vector<Node*> finished;
    std::vector<Visit> stack{{node_, 0}};
    node_->visited = true;
    while (!stack.empty()) {
      auto& [node, next] = stack.back();
      if (next == node->operands.size()) {
        finished.push_back(node);
        stack.pop_back();
      } else if (Node* operand = node->operands[next++].first; !operand->visited) {
        operand->visited = true;
        stack.push_back({operand, 0});
      }
    }
    node_->grad = seed;
    for (auto node = finished.rbegin(); node != finished.rend(); ++node)
      for (const auto& [operand, local] : (*node)->operands) operand->grad += local * (*node)->grad;
  }

 private:
  Arena* arena_ = nullptr;
  Node* node_ = nullptr;
};

}  // namespace micrograd
