// Plans: random graphs of tensors against plain loops, whole and in pieces; bits that threads, batches and other outputs
// must not change; what a run may touch.
#include "dense/tensor/plan.h"

#include <gtest/gtest.h>

#include <limits>
#include <tuple>

#include "models/gpt2.h"
#include "tests/allocations.h"
#include "tests/arrays.h"
#include "tests/errors.h"
#include "tests/programs.h"

namespace dense {
namespace {

constexpr float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();

// ---- random graphs

struct Pair {
  Tensor x;
  Array a;
};

// Grows a graph of f64 tensors, and beside it the arrays that they should hold.
class Growth {
 public:
  // smooth: only what has a derivative everywhere.
  Growth(Graph& g, uint32_t seed, bool only_smooth, Dtype type = Dtype::f64)
      : graph(g), smooth(only_smooth), dtype(type), random(seed) {
    for (int i = 0; i < 3; ++i) new_input(some_shape());
  }

  Graph& graph;
  bool smooth;
  Dtype dtype;
  std::mt19937 random;
  std::vector<Pair> all, inputs;

  int64_t below(int64_t n) { return int64_t(random() % uint64_t(n)); }
  bool once_in(int64_t n) { return below(n) == 0; }
  const Pair& any() { return all[size_t(below(int64_t(all.size())))]; }

  void grow() {
    const Pair p = any();
    const int rank = p.x.rank();
    switch (below(18)) {
      case 0:
      case 1: return keep(unary(p));
      case 2:
      case 3:
      case 4: return keep(binary(p, partner(p.x.shape())));
      case 5:
      case 6: return reduce(p);
      case 7: return rows(p);
      case 8: {
        std::vector<int> order;
        for (int i = 0; i < rank; ++i) order.push_back(i);
        std::ranges::shuffle(order, random);
        return keep(permuted(p, order));
      }
      case 9: return reshape_to_any(p);
      case 10: return cut(p);
      case 11: return repeat(p);
      case 12: return join(p);
      case 13:
      case 14: return multiply(p);
      case 15: return look_up(p);
      case 16: {
        const Tensor is = less(inputs[0].x, inputs[0].x.count() == 1 ? Operand(0.1) : Operand(0));
        if (broadcasts(inputs[0].x.shape(), p.x.shape()) && p.x.count() < 500) {
          const Shape shape = broadcast(inputs[0].x.shape(), p.x.shape(), "where");
          const double limit = inputs[0].x.count() == 1 ? 0.1 : 0;
          return keep({where(is, p.x, -p.x * 2), array(shape, [&](const Index& i) {
                         return inputs[0].a.at(i) < limit ? p.a.at(i) : -p.a.at(i) * 2;
                       })});
        }
        return;
      }
      default: {  // the numbers of the elements of a suffix of the shape
        const Shape shape(p.x.shape().begin() + below(rank + 1), p.x.shape().end());
        double number = 0;
        const Array count = array(shape, [&](const Index&) { return number++; });
        return keep({p.x + graph.counter(shape) * 0.03125,
                     array(p.a.shape, [&](const Index& i) { return p.a.at(i) + count.at(i) * 0.03125; })});
      }
    }
  }

  Pair new_input(const Shape& shape) {
    Pair p{graph.input(shape, dtype, text("x", inputs.size())), {}};
    p.a = fill(p.x, random);
    inputs.push_back(p);
    all.push_back(p);
    return p;
  }

 private:
  Shape some_shape() {
    Shape shape(size_t(below(5)), 1);
    for (int64_t& size : shape) size = std::array<int64_t, 6>{1, 2, 3, 4, 5, 7}[size_t(below(6))];
    if (!shape.empty() && once_in(30)) shape[size_t(below(int64_t(shape.size())))] = 1030;  // more than a block
    return shape;
  }

  // Large values are halved until they are not.
  void keep(Pair p) {
    ASSERT_EQ(p.x.shape(), p.a.shape);
    if (count_of(p.a.shape) > 20'000) return;
    double most = 0;
    for (double v : p.a.values) most = std::max(most, std::abs(v));
    double factor = 1;
    while (most * factor > 4) factor /= 2;
    if (factor != 1) p = {p.x * factor, mapped(p.a, [&](double v) { return v * factor; })};
    all.push_back(p);
  }

  static bool broadcasts(const Shape& a, const Shape& b) {
    for (size_t i = 1; i <= std::min(a.size(), b.size()); ++i)
      if (a[a.size() - i] != b[b.size() - i] && a[a.size() - i] != 1 && b[b.size() - i] != 1) return false;
    return true;
  }

  // Something that is broadcast with this shape, or that this is broadcast to.
  Pair partner(const Shape& shape) {
    for (int tries = 0; tries < 6; ++tries) {
      const Pair& p = any();
      if (broadcasts(p.x.shape(), shape) && count_of(broadcast(p.x.shape(), shape, "")) < 2000) return p;
    }
    Shape other(shape.begin() + (shape.empty() ? 0 : below(int64_t(shape.size()))), shape.end());
    for (int64_t& size : other)
      if (once_in(3)) size = size == 1 && count_of(shape) < 500 ? 3 : 1;
    if (once_in(6) && count_of(shape) < 500) other.insert(other.begin(), 2);
    return broadcasts(other, shape) ? new_input(other) : new_input({});
  }

  Pair unary(const Pair& p) {
    struct Rule {
      Tensor (*f)(Tensor);
      double (*g)(double);
    };
    static const Rule rules[] = {
        {[](Tensor x) { return tanh(x); }, [](double x) { return std::tanh(x); }},
        {[](Tensor x) { return sin(x); }, [](double x) { return std::sin(x); }},
        {[](Tensor x) { return exp(x * 0.5); }, [](double x) { return std::exp(x * 0.5); }},
        {[](Tensor x) { return sigmoid(x); }, [](double x) { return 1 / (1 + std::exp(-x)); }},
        {[](Tensor x) { return 1 - x; }, [](double x) { return 1 - x; }},
        {[](Tensor x) { return -x; }, [](double x) { return -x; }},
        {[](Tensor x) { return gelu(x); }, [](double x) { return 0.5 * x * (1 + std::erf(x * std::sqrt(0.5))); }},
        {[](Tensor x) { return rsqrt(x * x + 1); }, [](double x) { return 1 / std::sqrt(x * x + 1); }},
        {[](Tensor x) { return 1 / (x * x + 2); }, [](double x) { return 1 / (x * x + 2); }},
        {[](Tensor x) { return cast(x, x.dtype()); }, [](double x) { return x; }},
        {[](Tensor x) { return relu(x); }, [](double x) { return std::max(x, 0.0); }},
        {[](Tensor x) { return abs(x); }, [](double x) { return std::abs(x); }},
    };
    const Rule& rule = rules[size_t(below(smooth ? 10 : 12))];
    return {rule.f(p.x), mapped(p.a, rule.g)};
  }

  Pair binary(const Pair& a, const Pair& b) {
    const Shape shape = broadcast(a.a.shape, b.a.shape, "binary");
    const auto of = [&](const auto& f) {
      return array(shape, [&](const Index& i) { return f(a.a.at(i), b.a.at(i)); });
    };
    switch (below(smooth ? 5 : 8)) {
      case 0: return {a.x + b.x, of([](double x, double y) { return x + y; })};
      case 1: return {a.x - b.x, of([](double x, double y) { return x - y; })};
      case 2:
      case 3: return {a.x * b.x, of([](double x, double y) { return x * y; })};
      case 4: return {a.x / (b.x * b.x + 1), of([](double x, double y) { return x / (y * y + 1); })};
      case 5: return {max(a.x, b.x), of([](double x, double y) { return std::max(x, y); })};
      case 6: return {min(a.x, b.x), of([](double x, double y) { return std::min(x, y); })};
      default: return {a.x - 2 * b.x, of([](double x, double y) { return x - 2 * y; })};
    }
  }

  void reduce(const Pair& p) {
    std::vector<int> axes;
    for (int i = 0; i < p.x.rank(); ++i)
      if (once_in(2)) axes.push_back(i);
    const Reduction some[] = {Reduction::sum, Reduction::mean, Reduction::prod, Reduction::max, Reduction::min};
    Reduction reduction = some[size_t(below(smooth ? 3 : 5))];
    const Array y = reduced(p.a, reduction, axes);
    if (reduction == Reduction::prod && p.a.values.size() / y.values.size() > 10) return;
    std::vector<int> given = axes;
    for (int& axis : given)
      if (once_in(4)) axis -= p.x.rank();
    std::ranges::shuffle(given, random);
    keep({dense::reduce(p.x, reduction, given), y});
  }

  void rows(const Pair& p) {
    if (p.a.shape.empty()) return;
    const auto n = double(p.a.shape.back());
    using Values = std::span<double>;
    switch (below(4)) {
      case 0:
        return keep({softmax(p.x), by_rows(p.a, [](Values v) {
                       double sum = 0;
                       for (double& x : v) sum += x = std::exp(x);
                       for (double& x : v) x /= sum;
                     })});
      case 1:
        return keep({log_softmax(p.x), by_rows(p.a, [](Values v) {
                       double sum = 0;
                       for (double x : v) sum += std::exp(x);
                       for (double& x : v) x -= std::log(sum);
                     })});
      case 2:
        return keep({layer_norm(p.x, 0.1), by_rows(p.a, [n](Values v) {
                       double mean = 0, variance = 0;
                       for (double x : v) mean += x / n;
                       for (double x : v) variance += (x - mean) * (x - mean) / n;
                       for (double& x : v) x = (x - mean) / std::sqrt(variance + 0.1);
                     })});
      default:
        return keep({rms_norm(p.x, 0.1), by_rows(p.a, [n](Values v) {
                       double mean = 0;
                       for (double x : v) mean += x * x / n;
                       for (double& x : v) x /= std::sqrt(mean + 0.1);
                     })});
    }
  }

  static Pair permuted(const Pair& p, const std::vector<int>& order) {
    Shape shape;
    for (int axis : order) shape.push_back(p.a.shape[size_t(axis)]);
    return {permute(p.x, order), array(shape, [&](const Index& i) {
              Index from(i.size());
              for (size_t k = 0; k < i.size(); ++k) from[size_t(order[k])] = i[k];
              return p.a.at(from);
            })};
  }

  void reshape_to_any(const Pair& p) {
    Shape shape{1};
    int64_t rest = count_of(p.a.shape);
    for (int64_t prime : {2, 7, 3, 5, 2, 3, 2, 7, 5, 3, 2})
      if (rest % prime == 0) {
        rest /= prime;
        if (once_in(2)) shape.push_back(prime);
        else shape.back() *= prime;
      }
    shape.back() *= rest;
    if (once_in(3)) shape.insert(shape.begin() + below(int64_t(shape.size()) + 1), 1);
    if (shape.size() > 5) return;
    Shape given = shape;
    if (once_in(2)) given[size_t(below(int64_t(shape.size())))] = -1;
    keep({reshape(p.x, given), {shape, p.a.values}});
  }

  void cut(const Pair& p) {
    if (p.a.shape.empty()) return;
    const auto axis = size_t(below(int64_t(p.a.shape.size())));
    const int64_t size = p.a.shape[axis];
    const auto part = [&](int64_t begin, int64_t end) {
      Shape shape = p.a.shape;
      shape[axis] = end - begin;
      return array(shape, [&](Index i) {
        i[axis] += begin;
        return p.a.at(i);
      });
    };
    if (once_in(2)) {
      const int64_t begin = below(size), end = begin + 1 + below(size - begin);
      return keep({slice(p.x, int(axis), begin, end), part(begin, end)});
    }
    int64_t parts = size;
    for (int64_t n : {2, 3})
      if (size % n == 0 && once_in(2)) parts = n;
    const std::vector<Tensor> pieces = split(p.x, int(parts), int(axis));
    for (int64_t k = 0; k < parts; ++k) {
      Array a = part(k * size / parts, (k + 1) * size / parts);
      if (size == parts) a.shape.erase(a.shape.begin() + int(axis));
      keep({pieces[size_t(k)], a});
    }
  }

  void repeat(const Pair& p) {
    Shape shape = p.a.shape;
    for (int64_t& size : shape)
      if (size == 1 && once_in(2)) size = 1 + below(4);
    if (shape.size() < 4 && once_in(2)) shape.insert(shape.begin(), 1 + below(3));
    if (count_of(shape) < 2000) keep({expand(p.x, shape), array(shape, [&](const Index& i) { return p.a.at(i); })});
  }

  void join(const Pair& p) {
    if (p.a.shape.empty()) return;
    const auto axis = size_t(below(int64_t(p.a.shape.size())));
    std::vector<Pair> parts{p};
    for (int64_t n = 1 + below(3), tries = 0; tries < 12 && int64_t(parts.size()) <= n; ++tries) {
      const Pair& other = once_in(3) ? p : any();
      if (once_in(3)) {
        parts.push_back(unary(p));
        continue;
      }
      Shape rest = other.a.shape;
      if (rest.size() != p.a.shape.size()) continue;
      rest[axis] = p.a.shape[axis];
      if (rest == p.a.shape) parts.push_back(other);
    }
    std::ranges::shuffle(parts, random);
    Shape shape = p.a.shape;
    shape[axis] = 0;
    std::vector<Tensor> tensors;
    for (const Pair& part : parts) shape[axis] += part.a.shape[axis], tensors.push_back(part.x);
    keep({concat(tensors, once_in(2) ? int(axis) : int(axis) - p.x.rank()), array(shape, [&](Index i) {
            size_t k = 0;
            while (i[axis] >= parts[k].a.shape[axis]) i[axis] -= parts[k++].a.shape[axis];
            return parts[k].a.at(i);
          })});
  }

  void multiply(Pair p) {
    if (p.a.shape.size() < 2) return;
    if (once_in(3)) {
      std::vector<int> order;
      for (int i = 0; i < p.x.rank(); ++i) order.push_back(i);
      std::swap(order[order.size() - 1], order[order.size() - 2]);
      p = permuted(p, order);
    }
    for (int tries = 0; tries < 8; ++tries) {  // with another tensor if any fits
      const Pair& other = any();
      const Shape &a = p.a.shape, &b = other.a.shape;
      if (b.size() < 2 || a.back() != b[b.size() - 2]) continue;
      if (!broadcasts({a.begin(), a.end() - 2}, {b.begin(), b.end() - 2})) continue;
      return keep({matmul(p.x, other.x), product(p.a, other.a)});
    }
    Shape shape(p.a.shape.begin() + below(int64_t(p.a.shape.size()) - 1), p.a.shape.end());
    shape[shape.size() - 2] = p.a.shape.back();
    shape.back() = 1 + below(5);
    for (size_t i = 0; i + 2 < shape.size(); ++i)
      if (once_in(2)) shape[i] = 1;
    const Pair b = new_input(shape);
    Pair y{matmul(p.x, b.x), product(p.a, b.a)};
    if (once_in(2)) {  // plus a bias, which is a kernel's own part
      const Pair bias = new_input({shape.back()});
      y = {y.x + bias.x, array(y.a.shape, [&](const Index& i) { return y.a.at(i) + bias.a.at(i); })};
    }
    keep(y);
  }

  void look_up(const Pair& p) {
    if (p.a.shape.size() < 2) return;
    const int64_t columns = p.a.shape.back(), rows = count_of(p.a.shape) / columns;
    Shape shape = some_shape();
    shape.resize(std::min<size_t>(shape.size(), 2));
    const Tensor ids = graph.input(shape, Dtype::i32);
    const Array which = fill(ids, random, 0, double(rows) - 1e-9);
    const Array table{{rows, columns}, p.a.values};
    shape.push_back(columns);
    keep({gather(reshape(p.x, {rows, columns}), ids), array(shape, [&](const Index& i) {
            return table.at({int64_t(which.at(Index(i.begin(), i.end() - 1))), i.back()});
          })});
  }
};

// Every node that can be asked for, so that nothing is fused, left out or written over.
std::vector<Tensor> every_node(Graph& graph) {
  std::vector<Tensor> all;
  for (int32_t id = 0; id < graph.nodes(); ++id) {
    const Kind kind = graph.node(id).kind;
    if (kind != Kind::assign && kind != Kind::part) all.push_back({&graph, id});
  }
  return all;
}

TEST(Plan, RandomGraphsGiveWhatPlainLoopsGiveWholeOrInPieces) {
  for (uint32_t round = 0; round < uint32_t(fuzz_rounds(400)); ++round) {
    SCOPED_TRACE(round);
    Graph graph(1);
    Growth growth(graph, round, false);
    for (int64_t steps = 3 + growth.below(30); steps-- > 0;) growth.grow();
    std::vector<Pair> asked;
    for (int64_t n = 1 + growth.below(6); n-- > 0;) asked.push_back(growth.any());
    asked.push_back(growth.all.back());
    std::vector<Tensor> outputs;
    for (const Pair& p : asked) outputs.push_back(p.x);
    Plan whole(outputs), pieces(every_node(graph));
    whole.run();
    pieces.run();
    for (size_t i = 0; i < asked.size(); ++i) {
      const std::string what = text("output ", i);
      ASSERT_NO_FATAL_FAILURE(expect_near(numbers(whole, asked[i].x), asked[i].a.values, 1e-9, what));
      ASSERT_NO_FATAL_FAILURE(expect_near(numbers(whole, asked[i].x), numbers(pieces, asked[i].x), 1e-12, what));
    }
    for (const Pair& p : growth.all)
      ASSERT_NO_FATAL_FAILURE(expect_near(numbers(pieces, p.x), p.a.values, 1e-9, text("node ", p.x.id())));
    std::vector<std::vector<double>> before;
    for (Tensor x : outputs) before.push_back(numbers(whole, x));
    whole.run();  // once more, over what the first run left
    for (size_t i = 0; i < outputs.size(); ++i) ASSERT_TRUE(same_bits(numbers(whole, outputs[i]), before[i])) << i;
  }
}

TEST(Plan, WhatIsFusedChangesNoBits) {
  Graph graph(1);
  std::mt19937 random(1);
  const auto input = [&](const Shape& shape) {
    const Tensor x = graph.input(shape);
    fill(x, random);
    return x;
  };
  const Tensor a = input({9, 40}), b = input({9, 40}), c = input({9, 40});
  const Tensor products = a * b + b * c, sums = a + b * c;
  const Tensor long_sum = matmul(input({5, 3000}), input({3000, 40})) + input({40});  // in several blocks
  const Tensor every_second = split(input({35, 3, 2}), 2, 2)[0];                      // (35, 3), no two side by side
  const Tensor by_column = matmul(reshape(every_second, {35, 1, 3}), input({3, 40}));
  const std::vector<Tensor> outputs{products, sums, long_sum, by_column};
  Plan whole(outputs), pieces(every_node(graph));
  whole.run();
  pieces.run();
  for (Tensor x : outputs) EXPECT_TRUE(same_bits(whole.get<float>(x), pieces.get<float>(x))) << x.id();
}

TEST(Plan, RandomGraphsInF32GiveTheSameBitsWholeOrInPieces) {
  for (uint32_t round = 0; round < uint32_t(fuzz_rounds(400)); ++round) {
    SCOPED_TRACE(round);
    Graph graph(1);
    Growth growth(graph, 2'000'000 + round, true, Dtype::f32);
    for (int64_t steps = 3 + growth.below(20); steps-- > 0;) growth.grow();
    const std::vector<Tensor> outputs{growth.any().x, growth.any().x, growth.all.back().x};
    Plan whole(outputs), pieces(every_node(graph));
    whole.run();
    pieces.run();
    for (Tensor x : outputs) {
      ASSERT_TRUE(same_bits(whole.get<float>(x), pieces.get<float>(x))) << "node " << x.id();
      const std::vector<float> alone = x.value();
      ASSERT_TRUE(same_bits(whole.get<float>(x), alone)) << "node " << x.id();
    }
  }
}

TEST(Plan, GradientsOfRandomGraphsAreThoseOfFiniteDifferences) {
  for (uint32_t round = 0; round < uint32_t(fuzz_rounds(200)); ++round) {
    SCOPED_TRACE(round);
    Graph graph(1);
    Growth growth(graph, 1'000'000 + round, true);
    for (int64_t steps = 2 + growth.below(14); steps-- > 0;) growth.grow();
    Tensor loss;
    for (int k = 0; k < 3; ++k) {
      const Pair p = k ? growth.any() : growth.all.back();
      const Tensor weights = graph.input(p.x.shape(), Dtype::f64);
      fill(weights, growth.random);
      const Tensor term = sum(p.x * weights);
      loss = loss ? loss + term : term;
    }
    std::vector<Tensor> xs;
    for (const Pair& p : growth.inputs) xs.push_back(p.x);
    const size_t inputs = xs.size();
    for (int k = 0; k < 3; ++k) xs.push_back(growth.any().x);  // of values on the way, too
    std::vector<Tensor> outputs = grad(loss, xs);
    for (size_t i = 0; i < xs.size(); ++i) ASSERT_EQ(outputs[i].shape(), xs[i].shape());
    Plan value({loss}), pieces(every_node(graph));
    Plan whole(outputs);
    whole.run();
    pieces.run();
    for (size_t i = 0; i < xs.size(); ++i)
      ASSERT_NO_FATAL_FAILURE(
          expect_near(numbers(whole, outputs[i]), numbers(pieces, outputs[i]), 1e-11, text("gradient ", i)));
    for (size_t i = 0; i < inputs; ++i) {
      const std::span<double> data = xs[i].data<double>();
      for (int k = 0; k < 3; ++k) {
        const auto at = size_t(growth.below(int64_t(data.size())));
        const double x = data[at], h = 1e-5;
        const auto loss_at = [&](double v) {
          data[at] = v;
          value.run();
          data[at] = x;
          return value.get<double>(loss)[0];
        };
        const double want = (loss_at(x + h) - loss_at(x - h)) / (2 * h), got = whole.get<double>(outputs[i])[at];
        ASSERT_NEAR(got, want, 1e-5 * std::max(1.0, std::abs(want))) << "input " << i << " element " << at;
      }
    }
  }
}

// ---- broadcasting and reductions, every combination

TEST(Plan, AnyAxesOfEitherOperandMayBeMissing) {
  std::mt19937 random(1);
  const Shape whole{2, 3, 1, 5};
  std::vector<Shape> shapes;
  for (unsigned ones = 0; ones < 16; ++ones) {
    if (ones & 4) continue;  // is of size 1 as it is
    for (size_t first = 0; first <= 4; ++first) {
      Shape shape;
      for (size_t axis = first; axis < 4; ++axis) shape.push_back(ones >> axis & 1 ? 1 : whole[axis]);
      if (std::ranges::find(shapes, shape) == shapes.end()) shapes.push_back(shape);
    }
  }
  for (const Shape& a : shapes)
    for (const Shape& b : shapes) {
      const std::string what = to_string(a) + " " + to_string(b);
      Graph graph(1);
      const Tensor x = graph.input(a), y = graph.input(b);
      const Array p = fill(x, random), q = fill(y, random);
      const Shape shape = broadcast(a, b, "");
      const Tensor w = graph.input(shape);
      const Array r = fill(w, random);
      const Tensor z = x * y + y;
      ASSERT_NO_FATAL_FAILURE(
          expect_near(z, array(shape, [&](const Index& i) { return p.at(i) * q.at(i) + q.at(i); }), 1e-6, what));
      // the gradient is summed over what was repeated
      const std::vector<Tensor> d = grad(sum(z * w), {x, y});
      Plan plan(d);
      plan.run();
      const auto summed = [&](const Shape& to, const auto& f) {
        std::vector<double> total(size_t(count_of(to)), 0);
        for_each_index(shape, [&](const Index& i) {
          int64_t number = 0;
          for (size_t k = 0; k < to.size(); ++k)
            number = number * to[k] + (to[k] == 1 ? 0 : i[i.size() - to.size() + k]);
          total[size_t(number)] += f(i);
        });
        return total;
      };
      const auto dx = summed(a, [&](const Index& i) { return q.at(i) * r.at(i); });
      const auto dy = summed(b, [&](const Index& i) { return (p.at(i) + 1) * r.at(i); });
      ASSERT_NO_FATAL_FAILURE(expect_near(numbers(plan, d[0]), dx, 1e-5, what + ", first"));
      ASSERT_NO_FATAL_FAILURE(expect_near(numbers(plan, d[1]), dy, 1e-5, what + ", second"));
    }
}

// ---- what may be an output

TEST(Plan, OutputsMayBeInputsViewsCountersAndTheSameTensorTwice) {
  Graph graph(1);
  const Tensor x = graph.input({2, 3}), n = graph.counter({2, 3}), i = graph.counter({4}, Dtype::i32);
  x.set({1.f, 2.f, 3.f, 4.f, 5.f, 6.f});
  const Tensor xt = x.t(), part = slice(x, 0, 1, 2), repeated = expand(slice(x, 0, 0, 1), {2, 3});
  Plan plan({x, xt, x, part, repeated, n, i});
  plan.run();
  EXPECT_EQ(numbers(plan, x), (std::vector<double>{1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(numbers(plan, xt), (std::vector<double>{1, 4, 2, 5, 3, 6}));
  EXPECT_EQ(numbers(plan, part), (std::vector<double>{4, 5, 6}));
  EXPECT_EQ(numbers(plan, repeated), (std::vector<double>{1, 2, 3, 1, 2, 3}));
  EXPECT_EQ(numbers(plan, n), (std::vector<double>{0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(copy_of(plan.get<int32_t>(i)), (std::vector<int32_t>{0, 1, 2, 3}));
}

TEST(Plan, OutputsMayBeViewsOfCountersAndOfRandomNumbers) {
  Graph graph(1);
  const Tensor n = graph.counter({2, 3});
  EXPECT_EQ(reshape(n, {6}).value(), (std::vector<float>{0, 1, 2, 3, 4, 5}));
  EXPECT_EQ(slice(n, 0, 1, 2).value(), (std::vector<float>{3, 4, 5}));
  EXPECT_EQ(n.t().value(), (std::vector<float>{0, 3, 1, 4, 2, 5}));
  const Tensor key = graph.input({2}, Dtype::i32), r = graph.random({2, 3}, 7, key);
  EXPECT_EQ(reshape(r, {6}).value(), r.value());
  EXPECT_EQ(slice(r, 0, 1, 2).value(), reshape(slice(cast(r, Dtype::f32), 0, 1, 2), {3}).value());
}

TEST(Plan, EveryPrimitiveReadsCountersAndRandomNumbersAsItReadsOthers) {
  Graph graph(1);
  const Tensor n = graph.counter({2, 3}), key = graph.input({2}, Dtype::i32), r = graph.random({2, 3}, 7, key);
  const Tensor ids = graph.counter({3}, Dtype::i32), x = graph.input({3, 2}), copy = graph.input({2, 3});
  x.set({1.f, 2.f, 3.f, 4.f, 5.f, 6.f});
  EXPECT_EQ(gather(x, ids).value(), x.value());
  EXPECT_EQ(gather(x, slice(ids, 0, 1, 3)).value(), (std::vector<float>{3, 4, 5, 6}));
  EXPECT_EQ(gather(n, slice(ids, 0, 1, 2)).value(), (std::vector<float>{3, 4, 5}));
  EXPECT_EQ(matmul(n, x).value(), (std::vector<float>{13, 16, 40, 52}));
  EXPECT_EQ(matmul(n.t(), n).value(), (std::vector<float>{9, 12, 15, 12, 17, 22, 15, 22, 29}));
  EXPECT_EQ(concat(std::array{n, n}, 0).value(), (std::vector<float>{0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5}));
  const std::vector<float> values = r.value(), twice = concat(std::array{r, r}, 0).value();
  copy.set(std::span<const float>(values));
  EXPECT_TRUE(same_bits(std::vector<float>(twice.begin() + 6, twice.end()), values));
  EXPECT_EQ(matmul(r, x).value(), matmul(copy, x).value());
  EXPECT_EQ(softmax(r).value(), softmax(copy).value());
  Plan assigned({assign(copy, n)});
  assigned.run();
  EXPECT_EQ(copy.value(), n.value());
}

// ---- numbers

TEST(Plan, NumbersInAFormulaAreNeverTakenForOneAnother) {
  Graph graph(1);
  const Tensor x = graph.input({2, 3});
  x.set({1.f, 2.f, -1.f, 3.f, 4.f, 5.f});
  // NaN in the first of three stages, 1, 2 and 3 in all of them
  const Tensor y = map("y", {x}, [](Row row, std::span<const Var> v) {
    const Var a = where(v[0] < 0, std::nan(""), v[0] * 2 + 1);
    const Var b = where(row.sum(v[0]) < 3, std::nan(""), 2.0);
    return where(v[0] < 1.5, 2.0, 3.0) + where(v[0] < -5, std::nan(""), 1.0) + 1 / (row.max(v[0]) + 1) +
           where(v[0] < -5, a, 0) + where(v[0] < -5, b, 1);
  });
  const std::vector<float> got = y.value();
  const float xs[] = {1, 2, -1, 3, 4, 5};
  for (size_t i = 0; i < 6; ++i)
    EXPECT_NEAR(got[i], (xs[i] < 1.5 ? 2 : 3) + 1 + 1 / ((i < 3 ? 2 : 5) + 1.0) + 0 + 1, 1e-6) << i;
  // a number that is not one, before and after sums over rows
  const Tensor z = map("z", {x}, [](Row row, std::span<const Var> v) {
    const Var first = where(v[0] < 0, std::nan(""), v[0]) + where(equal(v[0], 4), -1.0, 1.0);
    const Var total = row.sum(v[0]);
    return where(v[0] < 100, where(v[0] * total < 1000, -1.0, 1.0), first);
  });
  for (float v : z.value()) EXPECT_EQ(v, -1);
  // zeros have signs
  const Tensor zero = map("zero", {x}, [](Row row, std::span<const Var> v) {
    const Var a = where(v[0] < 0, 0.0, 1.0), total = row.sum(a);
    return 1 / where(total < 2.5, -0.0, 0.0);
  });
  EXPECT_EQ(zero.value(), (std::vector<float>{-inf, -inf, -inf, inf, inf, inf}));
}

TEST(Plan, NanAndInfinityGoThroughWhateverIsFused) {
  for (Dtype type : {Dtype::f32, Dtype::f64}) {
    Graph graph(1);
    const Tensor in = graph.input({3, 5}), x = cast(in, type), ones = graph.input({5, 2});
    std::ranges::fill(in.data<float>(), 1.f);
    std::ranges::fill(ones.data<float>(), 1.f);
    in.data<float>()[1] = nan;
    in.data<float>()[5 + 2] = inf;
    in.data<float>()[5 + 3] = -inf;
    const auto is = [](double v) { return std::isnan(v) ? 'n' : std::isinf(v) ? v > 0 ? '+' : '-' : '.'; };
    const auto kinds = [&](Tensor y) {
      std::string text;
      for (double v : numbers(y)) text += is(v);
      return text;
    };
    EXPECT_EQ(kinds(x * 0), ".n.....nn......");
    EXPECT_EQ(kinds(x - x), ".n.....nn......");
    EXPECT_EQ(kinds(sum(x, {1})), "nn.");
    EXPECT_EQ(kinds(sum(x, {0})), ".n+-.");
    EXPECT_EQ(kinds(reduce(x, Reduction::max, {1})), "n+.");
    EXPECT_EQ(kinds(reduce(x, Reduction::min, {1})), "n-.");
    EXPECT_EQ(kinds(reduce(x, Reduction::max, {0})), ".n+..");
    EXPECT_EQ(kinds(matmul(x, ones)), "nnnn..");
    EXPECT_EQ(kinds(softmax(x)), "nnnnnnnnnn.....");
    EXPECT_EQ(kinds(where(less(x, 2), x, 0)), "........-......");
    EXPECT_EQ(kinds(1 / x), ".n.............");
    EXPECT_EQ(kinds(exp(x)), ".n.....+.......");
    EXPECT_EQ(kinds(max(x, 0)), ".n.....+.......");
    EXPECT_EQ(kinds(tanh(x)), ".n.............");
    EXPECT_EQ(kinds(x.t()), "...n...+..-....");
  }
}

// ---- types

TEST(Plan, IntegersAreMovedWithoutRounding) {
  Graph graph(1);
  const Tensor x = graph.input({2, 3}, Dtype::i32), y = graph.input({2, 3}, Dtype::i32);
  const std::vector<int32_t> values{2147483647, -2147483647 - 1, 16777217, -16777219, 123456789, 1};
  x.set(std::span<const int32_t>(values));
  const Tensor xt = x.t(), joined = concat(std::array{x, x}, 0), rows = concat(std::array{slice(x, 1, 1, 3), x}, 1);
  const Tensor repeated = expand(slice(x, 0, 0, 1), {2, 3}), given = assign(y, x);
  Plan plan({xt, joined, rows, repeated, given});
  plan.run();
  const auto& v = values;
  EXPECT_EQ(copy_of(plan.get<int32_t>(xt)), (std::vector<int32_t>{v[0], v[3], v[1], v[4], v[2], v[5]}));
  EXPECT_EQ(copy_of(plan.get<int32_t>(joined)),
            (std::vector<int32_t>{v[0], v[1], v[2], v[3], v[4], v[5], v[0], v[1], v[2], v[3], v[4], v[5]}));
  EXPECT_EQ(copy_of(plan.get<int32_t>(rows)),
            (std::vector<int32_t>{v[1], v[2], v[0], v[1], v[2], v[4], v[5], v[3], v[4], v[5]}));
  EXPECT_EQ(copy_of(plan.get<int32_t>(repeated)), (std::vector<int32_t>{v[0], v[1], v[2], v[0], v[1], v[2]}));
  EXPECT_EQ(copy_of(y.data<int32_t>()), values);
}

TEST(Plan, StoredHalvesAreExactAndResultsAreRoundedToTheNearest) {
  Graph graph(1);
  std::mt19937 random(3);
  for (Dtype type : {Dtype::bf16, Dtype::f16}) {
    const Tensor x = graph.input({256, 256}, type), wide = cast(x, Dtype::f32);
    const std::span<uint16_t> bits = x.data<uint16_t>();
    for (size_t i = 0; i < bits.size(); ++i) bits[i] = uint16_t(i);  // all there are
    const Tensor across = x.t() * 1, every = slice(wide, 1, 0, 256) * 1, back = cast(wide, type);
    Plan plan({wide, across, every, back});
    plan.run();
    const auto value = [&](size_t i) {  // by the definition of the formats
      const int exponent_bits = type == Dtype::bf16 ? 8 : 5, fraction_bits = 15 - exponent_bits;
      const int exponent = int(i >> fraction_bits) & ((1 << exponent_bits) - 1), bias = (1 << (exponent_bits - 1)) - 1;
      const double fraction = double(i & ((size_t(1) << fraction_bits) - 1)) / (1 << fraction_bits);
      const double sign = i >> 15 ? -1 : 1;
      if (exponent == (1 << exponent_bits) - 1) return fraction != 0 ? double(nan) : sign * double(inf);
      return sign * (exponent ? std::ldexp(1 + fraction, exponent - bias) : std::ldexp(fraction, 1 - bias));
    };
    for (size_t i = 0; i < bits.size(); ++i) {
      const float want = float(value(i)), got = plan.get<float>(wide)[i];
      ASSERT_TRUE(std::isnan(want) ? std::isnan(got) : got == want && std::signbit(got) == std::signbit(want)) << i;
      const float turned = plan.get<float>(across)[i % 256 * 256 + i / 256];
      ASSERT_TRUE(std::isnan(want) ? std::isnan(turned) : turned == want) << i;
      if (!std::isnan(want)) {
        ASSERT_EQ(plan.get<uint16_t>(back)[i], bits[i]) << i;
      }
    }
    // halfway between two neighbours: to the even one
    const Tensor middle = graph.input({1000}), rounded = cast(middle, type);
    for (size_t i = 0; i < 1000; ++i) {
      const size_t low = 0x3c00 + random() % 0x300;
      middle.data<float>()[i] = float((value(low) + value(low + 1)) / 2);
      if (i % 3) middle.data<float>()[i] = std::nextafter(middle.data<float>()[i], i % 3 == 1 ? 0.f : 9.f);
      const auto want = uint16_t(i % 3 == 1 ? low : i % 3 == 2 ? low + 1 : low + low % 2);
      x.data<uint16_t>()[i] = want;
    }
    Plan round({rounded});
    round.run();
    EXPECT_TRUE(same_bits(round.get<uint16_t>(rounded), x.data<uint16_t>().first(1000)));
    // sums, products and rows of a table are taken in f32
    for (size_t i = 0; i < bits.size(); ++i) bits[i] = uint16_t(0x3c00 + random() % 0x200);
    const Tensor ids = graph.input({3}, Dtype::i32), copy = graph.input({256, 256});
    ids.set({255, 0, 7});
    const std::vector<float> widened = wide.value();
    copy.set(std::span<const float>(widened));
    for (const auto& f : std::vector<std::function<Tensor(Tensor)>>{
             [](Tensor t) { return sum(t, {0}); }, [](Tensor t) { return layer_norm(t, 1e-5); },
             [&](Tensor t) { return gather(t, ids); }, [](Tensor t) { return matmul(t, t.t()); },
             [](Tensor t) { return exp(t.t()); }}) {
      EXPECT_EQ(f(x).dtype(), Dtype::f32);
      EXPECT_EQ(f(x).value(), f(copy).value());
    }
  }
}

TEST(Plan, MatmulInBf16RoundsItsOperandsAndNothingElse) {
  Graph graph(1);
  std::mt19937 random(4);
  const Tensor a = graph.input({5, 70}), b = graph.input({70, 9});
  fill(a, random), fill(b, random);
  const Tensor ra = cast(cast(a, Dtype::bf16), Dtype::f32), rb = cast(cast(b, Dtype::bf16), Dtype::f32);
  const Tensor want = matmul(ra, rb);
  graph.matmul_type = Dtype::bf16;
  const Tensor got = matmul(a, b);
  EXPECT_EQ(got.dtype(), Dtype::f32);
  expect_near(numbers(got), numbers(want), 1e-5, "bf16");
  EXPECT_NE(got.value(), matmul(cast(a, Dtype::f64), cast(b, Dtype::f64)).value());
}

// A loss may be summed in f64 though the model is f32: each gradient has the type of its tensor.
TEST(Plan, GradientsPassFromF64ToF32) {
  for (bool wide : {false, true}) {
    Graph graph(1);
    std::mt19937 random(5);
    const auto input = [&](const Shape& shape) {
      const Tensor x = graph.input(shape);
      fill(x, random);
      return x;
    };
    const Tensor table = input({7, 12}), w = input({12, 12}), b = input({12}), ids = graph.input({2, 3}, Dtype::i32);
    fill(ids, random, 0, 7);
    const Tensor x = gather(table, ids);
    auto [q, k, v] = split<3>(rearrange<"b t (s h d) -> s b t h d", "s", "h">(matmul(x, w) + b, 3, 2));
    const Tensor y = attention(q, k, v, {}), z = matmul(layer_norm(x, 1e-5), table.t());
    const auto last = [&](Tensor t) { return wide ? cast(t, Dtype::f64) : t; };
    const Tensor loss = sum(last(y) * 0.5) + sum(exp(last(z))) + sum(last(concat(std::array{x, x * 2}, 1))) +
                        sum(table * 0.25) + sum(last(table.t()) * 2);
    const std::vector<Tensor> d = grad(loss, {table, w, b});
    static std::vector<std::vector<double>> narrow;
    for (size_t i = 0; i < d.size(); ++i) {
      EXPECT_EQ(d[i].dtype(), Dtype::f32) << i;
      if (!wide) narrow.push_back(numbers(d[i]));
      else expect_near(numbers(d[i]), narrow[i], 1e-5, text("gradient ", i));
    }
  }
}

TEST(Plan, F32IsCloseToF64) {
  std::mt19937 random(6);
  for (const auto& f : std::vector<std::function<Tensor(Tensor)>>{
           [](Tensor x) { return softmax(x); }, [](Tensor x) { return layer_norm(x * 3 + 100, 1e-5); },
           [](Tensor x) { return gelu(x) + gelu_tanh(x) * silu(x); }, [](Tensor x) { return sum(x * x, {0}); },
           [](Tensor x) { return log_softmax(x * 30); }, [](Tensor x) { return matmul(x, x.t()); }}) {
    Graph graph(1);
    const Tensor x = graph.input({40, 77});
    fill(x, random);
    const Tensor y = f(x), wide = f(cast(x, Dtype::f64));
    EXPECT_EQ(y.dtype(), Dtype::f32);
    EXPECT_EQ(wide.dtype(), Dtype::f64);
    expect_near(numbers(y), numbers(wide), 2e-4, "f32");
  }
}

// ---- size

TEST(Plan, ALongChainOfMapsIsPlannedAtOnce) {  // not once for every way through it
  Graph graph(1);
  const Tensor x = graph.input({3});
  x.set({0.1f, 0.5f, 0.9f});
  Tensor y = x, z = x;
  for (int i = 0; i < 60; ++i) y = y + 0.1 * sin(y);
  for (int i = 0; i < 60; ++i) z = z * reshape(tanh(reshape(z, {3, 1})), {3}) + z;
  double want[3] = {0.1f, 0.5f, 0.9f};
  for (double& v : want)
    for (int i = 0; i < 60; ++i) v += 0.1 * std::sin(v);
  expect_near(numbers(y), {want[0], want[1], want[2]}, 1e-5, "chain");
  EXPECT_EQ(z.value().size(), 3u);
  const Tensor d = grad(sum(y), {x})[0];
  EXPECT_GT(d.value()[0], 0);
  Plan assigned({assign(x, y)});
  assigned.run();
  expect_near(numbers(x), {want[0], want[1], want[2]}, 1e-5, "assigned");
}

TEST(Plan, AChainOfThousandsOfMapsIsNoTrouble) {
  Graph graph(1);
  Tensor y = graph.input({2, 2});
  for (int i = 0; i < 20000; ++i) y = y + 1;
  EXPECT_EQ(y.value(), (std::vector<float>{20000, 20000, 20000, 20000}));
}

// ---- assignments

TEST(Plan, AssignedTensorsAreNewAfterTheRunAndOldWithinIt) {
  Graph graph(1);
  const Tensor x = graph.input({2, 3});
  x.set({1.f, 2.f, 3.f, 4.f, 5.f, 6.f});
  const Tensor before = x * 10, given = assign(x, x + 1), after = x * 100, total = sum(x), turned = x.t() * 1;
  const std::vector<float> old = x.value();
  EXPECT_EQ(given.graph().node(given.id()).kind, Kind::assign);
  Plan plan({given, after, before, total, turned});
  EXPECT_EQ(x.value(), old);  // nothing has run
  plan.run();
  EXPECT_EQ(numbers(plan, before), (std::vector<double>{10, 20, 30, 40, 50, 60}));
  EXPECT_EQ(numbers(plan, after), (std::vector<double>{100, 200, 300, 400, 500, 600}));
  EXPECT_EQ(numbers(plan, turned), (std::vector<double>{1, 4, 2, 5, 3, 6}));
  EXPECT_EQ(numbers(plan, total), (std::vector<double>{21}));
  EXPECT_EQ(x.value(), (std::vector<float>{2, 3, 4, 5, 6, 7}));
  plan.run();
  EXPECT_EQ(numbers(plan, after), (std::vector<double>{200, 300, 400, 500, 600, 700}));
  EXPECT_EQ(x.value(), (std::vector<float>{3, 4, 5, 6, 7, 8}));
  Plan without({after});
  without.run();
  EXPECT_EQ(x.value(), (std::vector<float>{3, 4, 5, 6, 7, 8}));
}

TEST(Plan, NewValuesMayReadTheOldOnesInAnyOrderAndShape) {
  const Shape shapes[] = {{3, 3}, {1, 9}, {9, 1}, {9}, {1, 1}, {1}, {}, {3, 1, 3}, {70, 70}, {300, 300}};
  const std::vector<std::function<Tensor(Tensor)>> rules{
      [](Tensor x) { return x * 2 + 1; },
      [](Tensor x) { return x.rank() > 1 && x.size(-1) == x.size(-2) ? x.t() : x; },
      [](Tensor x) { return x.rank() ? x - slice(x, 0, 0, 1) : x; },
      [](Tensor x) { return x.rank() ? x * slice(x, -1, x.size(-1) - 1, x.size(-1)) : x; },
      [](Tensor x) { return x.rank() ? softmax(x) : x; },
      [](Tensor x) { return x.rank() ? x - mean(x, {0}) : x; },
      [](Tensor x) { return x / sum(x); },
      [](Tensor x) { return x.rank() == 2 ? matmul(x, x.t()).size(1) == x.size(1) ? matmul(x, x.t()) : x : x; },
      [](Tensor x) {
        const Tensor row = reshape(x, {-1});
        const int64_t n = x.count();
        return n == 1 ? x : reshape(concat(std::array{slice(row, 0, n / 2, n), slice(row, 0, 0, n / 2)}, 0), x.shape());
      },
      [](Tensor x) { return x; },
      [](Tensor x) { return x + expand(sum(reshape(x, {-1})), x.shape()) + x * x; }};
  for (const Shape& shape : shapes)
    for (size_t rule = 0; rule < rules.size(); ++rule) {
      Graph graph(2);
      std::mt19937 random(7);
      const Tensor x = graph.input(shape, Dtype::f32, "x");
      fill(x, random, 0.5, 1);
      const Tensor y = rules[rule](x);
      const std::vector<float> want = y.value();
      Plan plan({assign(x, y)});
      plan.run();
      EXPECT_TRUE(same_bits(x.data<float>(), want)) << to_string(shape) << ", rule " << rule;
    }
}

TEST(Plan, TwoInputsMaySwapTheirValues) {
  Graph graph(1);
  const Tensor a = graph.input({3}), b = graph.input({3});
  a.set({1.f, 2.f, 3.f});
  b.set({4.f, 5.f, 6.f});
  Plan plan({assign(a, b), assign(b, a)});
  plan.run();
  EXPECT_EQ(a.value(), (std::vector<float>{4, 5, 6}));
  EXPECT_EQ(b.value(), (std::vector<float>{1, 2, 3}));
  const Tensor next_a = a + b, next_b = a - b;  // in one kernel
  Plan both({assign(b, next_b), assign(a, next_a), next_a});
  both.run();
  EXPECT_EQ(a.value(), (std::vector<float>{5, 7, 9}));
  EXPECT_EQ(b.value(), (std::vector<float>{3, 3, 3}));
  EXPECT_EQ(both.get<float>(next_a)[2], 9);
}

TEST(Plan, AnAssignmentMayWaitForOthersToReadTheOldValue) {
  // The update comes first in the graph; matmul, gather and a reduction read x after it.
  Graph graph(1);
  const Tensor x = graph.input({3, 3}), ids = graph.input({2}, Dtype::i32);
  x.set({1.f, 2.f, 3.f, 4.f, 5.f, 6.f, 7.f, 8.f, 9.f});
  ids.set({2, 0});
  const Tensor next = x * 0, given = assign(x, next);
  const Tensor rows = gather(x, ids), square = matmul(x, x), means = mean(x, {0}) * 3, d = grad(sum(x * x), {x})[0];
  Plan plan({given, rows, square, means, d});
  plan.run();
  EXPECT_EQ(numbers(plan, rows), (std::vector<double>{7, 8, 9, 1, 2, 3}));
  EXPECT_EQ(numbers(plan, square), (std::vector<double>{30, 36, 42, 66, 81, 96, 102, 126, 150}));
  EXPECT_EQ(numbers(plan, means), (std::vector<double>{12, 15, 18}));
  EXPECT_EQ(numbers(plan, d), (std::vector<double>{2, 4, 6, 8, 10, 12, 14, 16, 18}));
  EXPECT_EQ(x.value(), std::vector<float>(9, 0));
}

// ---- memory that tensors share

TEST(Plan, JoinedTensorsAreWholeWhateverElseReadsTheirParts) {
  Graph graph(1);
  std::mt19937 random(8);
  const Tensor x = graph.input({50, 40});
  const Array a = fill(x, random);
  const auto of = [&](const auto& f) { return mapped(a, f); };
  const Tensor e = x + 1, s = x * 3, n = layer_norm(x, 1e-5);
  const Array want_e = of([](double v) { return v + 1; }), want_s = of([](double v) { return v * 3; });
  const auto joined = [&](const std::vector<Array>& parts, size_t axis) {
    Shape shape = parts[0].shape;
    shape[axis] *= int64_t(parts.size());
    return array(shape, [&](Index i) {
      const int64_t size = parts[0].shape[axis], k = i[axis] / size;
      i[axis] -= k * size;
      return parts[size_t(k)].at(i);
    });
  };
  for (int axis : {0, 1}) {
    const auto along = size_t(axis);
    // used once; twice; with its sum taken, too; an output itself; joined again; seen through a view; in half the memory
    const Tensor once = concat(std::array{e, s}, axis), twice = concat(std::array{e, e}, axis);
    const Tensor again =
        concat(std::array{concat(std::array{e * 1, s * 1}, axis), concat(std::array{s * 1, e * 1}, axis)}, axis);
    const Tensor plus = once + concat(std::array{s, e}, axis), inner = slice(again, axis, 1, again.size(axis) - 1) * 1;
    const Tensor turned = concat(std::array{(e * 1).t(), (s * 1).t()}, 1 - axis).t(), total = sum(e, {axis});
    Plan plan({once, twice, again, plus, inner, turned, total, e, concat(std::array{n, n * 1}, axis)});
    plan.run();
    const std::string what = text("axis ", axis);
    expect_near(numbers(plan, once), joined({want_e, want_s}, along).values, 1e-5, what);
    expect_near(numbers(plan, twice), joined({want_e, want_e}, along).values, 1e-5, what);
    expect_near(numbers(plan, again), joined({want_e, want_s, want_s, want_e}, along).values, 1e-5, what);
    expect_near(numbers(plan, turned), joined({want_e, want_s}, along).values, 1e-5, what);
    expect_near(numbers(plan, total), reduced(want_e, Reduction::sum, {axis}).values, 1e-4, what);
    expect_near(numbers(plan, e), want_e.values, 1e-5, what);
    expect_near(numbers(plus), numbers(plan, plus), 1e-6, what);
    expect_near(numbers(inner), numbers(plan, inner), 0, what);
  }
}

TEST(Plan, AProductMayBeReadBesideItsSumWithABias) {
  Graph graph(1);
  std::mt19937 random(9);
  const Tensor x = graph.input({2, 3, 4}), w = graph.input({4, 5}), b = graph.input({5}),
               other = graph.input({2, 3, 5});
  const Array p = product(fill(x, random), fill(w, random));
  const Array bias = fill(b, random);
  fill(other, random);
  const Tensor y = matmul(x, w);
  using X = std::span<const Var>;
  const auto plus = [&](double factor) {
    return array(p.shape, [&](const Index& i) { return p.at(i) + factor * bias.at(i); });
  };
  const auto one = [&](Tensor t, const Array& want, const char* what) { expect_near(t, want, 1e-5, what); };
  one(y + b, plus(1), "bias");
  one(b + y, plus(1), "bias first");
  one(matmul(x, w) - b, plus(-1), "minus");
  one(map("two", {matmul(x, w), b}, [](Row, X v) { return v[0] + v[0]; }), mapped(p, [](double v) { return 2 * v; }),
      "twice itself");
  one(map("bias", {matmul(x, w), b}, [](Row, X v) { return v[1] + v[1]; }),
      array(p.shape, [&](const Index& i) { return 2 * bias.at(i); }), "twice the bias");
  const Tensor sum_y = sum(y), yb = y + b;
  Plan both({sum_y, yb, y});
  both.run();
  expect_near(numbers(both, y), p.values, 1e-5, "product");
  expect_near(numbers(both, yb), plus(1).values, 1e-5, "sum");
  const Tensor row = graph.input({5});
  Plan changes({matmul(reshape(x, {6, 4}), w) + row, assign(row, row + 1)});  // a bias that is learned
  changes.run();
  EXPECT_EQ(row.value(), std::vector<float>(5, 1));
}

// ---- several plans

TEST(Plan, PlansOfOneGraphShareNothingButInputs) {
  Graph graph(2);
  const Tensor x = graph.input({3});
  x.set({1.f, 2.f, 3.f});
  const Tensor y = exp(x), z = y * y;
  Plan first({y}), second({y, z});
  first.run();
  const std::vector<double> kept = numbers(first, y);
  x.set({0.f, 0.f, 0.f});
  second.run();
  EXPECT_EQ(numbers(first, y), kept);
  EXPECT_EQ(numbers(second, z), (std::vector<double>{1, 1, 1}));
  Plan moved = std::move(second);
  x.set({0.f, 1.f, 0.f});
  moved.run();
  EXPECT_NEAR(moved.get<float>(z)[1], std::exp(2), 1e-5);
  const Tensor later = z + 1;  // the graph may grow
  EXPECT_EQ(later.value()[0], 2);
  moved.run();
  EXPECT_EQ(moved.get<float>(z)[0], 1);
}

TEST(Plan, AskingForWhatIsNoOutputIsAnError) {
  Graph graph(1), other(1);
  const Tensor x = graph.input({3}), y = x + 1, z = y * 2, elsewhere = other.input({3}), given = assign(x, z);
  Plan plan({z, given});
  plan.run();
  EXPECT_EQ(error_of([&] { plan.get<float>(y); }), "plan: expected one of its outputs");
  EXPECT_EQ(error_of([&] { plan.get<float>(elsewhere); }), "plan: expected one of its outputs");
  EXPECT_EQ(error_of([&] { plan.get<float>(given); }), "plan: expected one of its outputs");
  EXPECT_EQ(error_of([&] { plan.get<double>(z); }), "plan: expected the type of the output, f32");
  EXPECT_EQ(error_of([&] { plan.get<int32_t>(z); }), "plan: expected the type of the output, f32");
  EXPECT_EQ(error_of([&] { Plan({}); }), "plan: expected one output or more");
  EXPECT_EQ(error_of([&] { Plan({x, elsewhere}); }), "plan: expected tensors of one graph");
  EXPECT_EQ(error_of([&] { Plan({Tensor()}); }), "plan: expected tensors of one graph");
}

// ---- bits and threads

// Gradients of a loss over most kinds of kernel, on one graph with so many threads.
std::vector<std::vector<float>> results_with(int threads, const Shape& shape) {
  Graph graph(threads);
  std::mt19937 random(10);
  const int64_t rows = shape[0], columns = shape[1];
  const auto input = [&](const Shape& of) {
    const Tensor x = graph.input(of);
    fill(x, random);
    return x;
  };
  const Tensor x = input(shape), gain = input({columns}), shift = input({rows, 1}), y = input(shape), scale = input({});
  const Tensor labels = graph.input({rows}, Dtype::i32), key = graph.input({2}, Dtype::i32);
  fill(labels, random, 0, double(columns));
  const Tensor h = gelu(layer_norm(x, 1e-5) * gain + shift) * scale, p = softmax(h + y);
  const Tensor loss = cross_entropy(h - y, labels) + sum(p * p) + mean(dropout(y, 0.25, 3, key)) + sum(x.t() * y.t());
  std::vector<Tensor> outputs = grad(loss, {x, gain, shift, y, scale});
  for (Tensor t : {loss, h, p, sum(x, {0}), sum(x, {1}), sum(x), mean(x.t(), {0}), reduce(x, Reduction::max, {1})})
    outputs.push_back(t);
  Plan plan(outputs);
  plan.run();
  std::vector<std::vector<float>> all;
  for (Tensor t : outputs) all.push_back(copy_of(plan.get<float>(t)));
  return all;
}

TEST(Plan, AnyNumberOfThreadsGivesTheSameBits) {
  for (const Shape& shape : {Shape{3, 50257}, {1, 70001}, {70001, 1}, {1031, 129}, {257, 1024}, {40000, 3}, {2, 2}}) {
    const auto one = results_with(1, shape);
    for (int threads : {2, 3}) {
      const auto many = results_with(threads, shape);
      for (size_t i = 0; i < one.size(); ++i)
        ASSERT_TRUE(same_bits(one[i], many[i])) << to_string(shape) << ", " << threads << " threads, output " << i;
    }
  }
}

TEST(Plan, HugeRowsAndManyRowsAreSummedAsPlainLoopsDo) {
  for (const Shape& shape :
       {Shape{1, 300'000}, {300'000, 1}, {3, 50257}, {50257, 3}, {65537}, {2, 65537, 1}, {700, 700}}) {
    for (Dtype type : {Dtype::f32, Dtype::f64}) {
      Graph graph(2);
      std::mt19937 random(11);
      const Tensor x = graph.input(shape, type);
      const Array a = fill(x, random, 0, 1);
      const double tolerance = type == Dtype::f64 ? 1e-11 : 2e-5;
      const std::string what = to_string(shape);
      for (const std::vector<int>& axes : {std::vector<int>{}, {0}, {-1}}) {
        std::vector<int> positive = axes;
        for (int& axis : positive) axis = axis < 0 ? axis + x.rank() : axis;
        expect_near(sum(x, axes), reduced(a, Reduction::sum, positive), tolerance, what);
        expect_near(mean(x, axes), reduced(a, Reduction::mean, positive), tolerance, what);
        expect_near(reduce(x, Reduction::max, axes), reduced(a, Reduction::max, positive), 0, what);
      }
      const Tensor d = grad(sum(exp(x) * 0.5), {x})[0];
      expect_near(d, mapped(a, [](double v) { return std::exp(v) * 0.5; }), tolerance, what);
      const Tensor p = softmax(x), total = sum(p, {-1});
      for (double v : numbers(total)) ASSERT_NEAR(v, 1, 1e-5) << what;
    }
  }
}

gpt2::Config small() {
  gpt2::Config c;
  c.vocab_size = 61, c.n_positions = 80, c.n_embd = 24, c.n_layer = 2, c.n_head = 3;
  return c;
}

TEST(Plan, ARowOfABatchHasTheBitsThatItHasAlone) {
  const gpt2::Config c = small();
  Parameters parameters(5, "transformer");
  std::mt19937 random(12);
  std::vector<int32_t> ids(3 * 70);
  for (int32_t& id : ids) id = int32_t(random() % 61);
  const auto logits = [&](int64_t first, int64_t batch, int64_t time, int threads, bool with_lengths) {
    Graph graph(threads);
    const Tensor x = graph.input({batch, time}, Dtype::i32);
    for (int64_t b = 0; b < batch; ++b)
      std::copy_n(ids.begin() + (first + b) * 70, time, x.data<int32_t>().begin() + b * time);
    Context context;
    if (with_lengths) {
      context.lengths = graph.input({batch}, Dtype::i32);
      std::ranges::fill(context.lengths.data<int32_t>(), int32_t(time));
    }
    return forward(c, Weights(graph, parameters), x, context).value();
  };
  const std::vector<float> together = logits(0, 3, 70, 2, false);
  EXPECT_TRUE(same_bits(logits(0, 3, 70, 1, true), together));
  for (int64_t b = 0; b < 3; ++b) {
    const std::vector<float> alone = logits(b, 1, 70, 1, false),
                             part(together.begin() + b * 70 * 61, together.begin() + (b + 1) * 70 * 61);
    EXPECT_TRUE(same_bits(alone, part)) << b;
    const std::vector<float> shorter = logits(b, 1, 33, 2, false);  // nor do later tokens matter
    EXPECT_TRUE(same_bits(shorter, std::span(part).first(33 * 61))) << b;
  }
}

TEST(Plan, RunsAllocateNothing) {
  const gpt2::Config c = small();
  Parameters parameters(5, "transformer");
  for (int threads : {1, 2}) {
    Graph graph(threads);
    const Tensor ids = graph.input({2, 40}, Dtype::i32), labels = graph.input({2, 40}, Dtype::i32);
    Context context;
    context.dropout_key = graph.input({2}, Dtype::i32);
    const Tensor loss = cross_entropy(forward(c, Weights(graph, parameters), ids, context), labels);
    std::vector<Tensor> weights;
    for (const auto& [name, x] : graph.parameters()) weights.push_back(x);
    const std::vector<Tensor> d = grad(loss, weights);
    std::vector<Tensor> outputs{loss};
    for (size_t i = 0; i < d.size(); ++i) outputs.push_back(assign(weights[i], weights[i] - d[i] * 0.1));
    Plan plan(outputs);
    plan.run();
    const float first = plan.get<float>(loss)[0];
    const size_t before = allocations();
    for (int i = 0; i < 5; ++i) plan.run();
    EXPECT_EQ(allocations(), before);
    EXPECT_LT(plan.get<float>(loss)[0], first);
  }
}

// ---- checkpoints

TEST(Plan, ACheckpointChangesTheMemoryAndNotTheGradients) {
  const auto results = [](bool with_checkpoints, size_t& arena) {
    Graph graph(2);
    std::mt19937 random(13);
    const auto input = [&](const Shape& shape) {
      const Tensor x = graph.input(shape);
      fill(x, random, -0.3, 0.3);
      return x;
    };
    const Tensor ids = graph.input({2, 256}, Dtype::i32), key = graph.input({2}, Dtype::i32), table = input({50, 64});
    fill(ids, random, 0, 50);
    std::vector<Tensor> xs{table};
    Tensor x = gather(table, ids);
    for (int layer = 0; layer < 6; ++layer) {
      const Tensor w1 = input({64, 192}), w2 = input({64, 256}), w3 = input({256, 64}), b = input({256});
      xs.insert(xs.end(), {w1, w2, w3, b});
      const auto block = [=, &graph](Tensor in) {
        const Checkpoint all(graph, with_checkpoints);
        auto [q, k, v] =
            split<3>(rearrange<"b t (s h d) -> s b t h d", "s", "h">(matmul(layer_norm(in, 1e-5), w1), 3, 4));
        const Tensor y = in + rearrange<"b t h d -> b t (h d)">(attention(q, k, v, {.scale = 0.25f}));
        const auto mlp = [=, &graph](Tensor z) {
          const Checkpoint some(graph, with_checkpoints && layer % 2);
          return dropout(matmul(gelu(matmul(z, w2) + b), w3), 0.1, uint64_t(layer), key);
        };
        return y + mlp(y) + concat(std::array{slice(y, 2, 32, 64), slice(y, 2, 0, 32)}, 2);
      };
      x = block(x);
    }
    const Tensor loss = mean(x * x);
    std::vector<Tensor> outputs = grad(loss, xs);
    outputs.push_back(loss);
    Plan plan(outputs);
    plan.run();
    arena = plan.arena_bytes();
    std::vector<std::vector<float>> all;
    for (Tensor t : outputs) all.push_back(copy_of(plan.get<float>(t)));
    return all;
  };
  size_t plain_bytes = 0, bytes = 0;
  const auto plain = results(false, plain_bytes), again = results(true, bytes);
  for (size_t i = 0; i < plain.size(); ++i) EXPECT_TRUE(same_bits(plain[i], again[i])) << i;
  EXPECT_LT(double(bytes), 0.6 * double(plain_bytes));
}

TEST(Plan, SeveralValuesOfACheckpointMayBeUsedOutside) {
  Graph graph(1);
  const Tensor x = graph.input({3}, Dtype::f64), w = graph.input({3}, Dtype::f64);
  x.set({1.0, 2.0, 3.0});
  w.set({0.5, 0.25, 0.125});
  Tensor y, z;
  {
    const Checkpoint scope(graph);
    y = exp(x * w), z = y * x;
  }
  const std::vector<Tensor> d = grad(sum(exp(y * w) * z), {x, w});
  const auto loss = [](const double* a, const double* b) {
    double total = 0;
    for (int i = 0; i < 3; ++i) total += std::exp(std::exp(b[i] * a[i]) * b[i] + a[i] * b[i]) * a[i];
    return total;
  };
  double a[] = {1, 2, 3}, b[] = {0.5, 0.25, 0.125};
  for (int which = 0; which < 2; ++which)
    for (int i = 0; i < 3; ++i) {
      double& v = which ? b[i] : a[i];
      const double v0 = v;
      v = v0 + 1e-6;
      const double up = loss(a, b);
      v = v0 - 1e-6;
      const double down = loss(a, b);
      v = v0;
      EXPECT_NEAR(numbers(d[size_t(which)])[size_t(i)], (up - down) / 2e-6, 1e-6);
    }
}

// ---- gradients of gradients

TEST(Plan, GradientsOfGradientsAreThoseOfFiniteDifferences) {
  std::mt19937 random(14);
  for (const auto& f : std::vector<std::function<Tensor(Tensor, Tensor)>>{
           [](Tensor x, Tensor w) { return exp(x * w); }, [](Tensor x, Tensor w) { return softmax(matmul(x, w)); },
           [](Tensor x, Tensor w) { return layer_norm(x, 0.1) * slice(w, 0, 0, 1); },
           [](Tensor x, Tensor w) {
             return tanh(concat(std::array{x, w * x, w.t()}, 0));
           },
           [](Tensor x, Tensor w) {
             const Tensor ids = x.graph().input({4}, Dtype::i32);
             ids.set({2, 0, 2, 1});
             return sin(gather(x, ids)) * sum(w);
           }}) {
    Graph graph(1);
    const Tensor x = graph.input({3, 3}, Dtype::f64), w = graph.input({3, 3}, Dtype::f64),
                 v = graph.input({3, 3}, Dtype::f64);
    fill(x, random), fill(w, random), fill(v, random);
    const Tensor y = f(x, w);
    const Tensor dx = grad(sum(y * y), {x})[0];
    const Tensor slope = sum(dx * v);
    const std::vector<Tensor> dd = grad(slope, {x, w});
    Plan plan(dd), value({slope});
    plan.run();
    for (const auto& [input, d] : {std::pair{x, dd[0]}, {w, dd[1]}})
      for (size_t i = 0; i < 9; ++i) {
        const double v0 = input.data<double>()[i], h = 1e-5;
        double sides[2];
        for (int side = 0; side < 2; ++side) {
          input.data<double>()[i] = side ? v0 + h : v0 - h;
          value.run();
          sides[side] = value.get<double>(slope)[0];
        }
        input.data<double>()[i] = v0;
        EXPECT_NEAR(plan.get<double>(d)[i], (sides[1] - sides[0]) / (2 * h), 1e-6);
      }
  }
}

// ---- random numbers

TEST(Plan, RandomNumbersAreAFunctionOfSeedKeyAndElement) {
  Graph graph(2), other(1);
  const auto random = [](Graph& g, const Shape& shape, uint64_t seed, int32_t low, int32_t high) {
    const Tensor key = g.input({2}, Dtype::i32);
    key.set({low, high});
    return g.random(shape, seed, key).value();
  };
  const std::vector<float> first = random(graph, {500, 400}, 1, 2, 3);
  EXPECT_EQ(random(graph, {500, 400}, 1, 2, 3), first);
  EXPECT_EQ(random(other, {500, 400}, 1, 2, 3), first);
  EXPECT_EQ(random(other, {400, 500}, 1, 2, 3), first);  // numbered in order, whatever the shape
  double mean = 0, square = 0, neighbours = 0;
  for (size_t i = 0; i < first.size(); ++i) {
    ASSERT_GE(first[i], 0.f);
    ASSERT_LT(first[i], 1.f);
    mean += first[i], square += first[i] * first[i];
    if (i) neighbours += (first[i] - 0.5) * (first[i - 1] - 0.5);
  }
  const auto n = double(first.size());
  EXPECT_NEAR(mean / n, 0.5, 0.003);
  EXPECT_NEAR(square / n, 1 / 3.0, 0.003);
  EXPECT_NEAR(neighbours / n, 0, 0.001);
  for (const auto& another : {random(graph, {500, 400}, 2, 2, 3), random(graph, {500, 400}, 1, 3, 3),
                              random(graph, {500, 400}, 1, 2, 4), random(graph, {500, 400}, 1, 3, 2)}) {
    int same = 0;
    double together = 0;
    for (size_t i = 0; i < another.size(); ++i)
      same += another[i] == first[i], together += (another[i] - 0.5) * (first[i] - 0.5);
    EXPECT_LT(same, 20);
    EXPECT_NEAR(together / n, 0, 0.001);
  }
}

TEST(Plan, DropoutKeepsTheSameElementsForwardAndBackward) {
  Graph graph(2);
  const Tensor x = graph.input({200, 300}), keys = graph.input({3, 2}, Dtype::i32);
  std::ranges::fill(x.data<float>(), 2.f);
  keys.set({1, 0, 2, 0, 1, 1});
  const auto key = [&](int64_t i) { return reshape(slice(keys, 0, i, i + 1), {2}); };
  const Tensor y = dropout(x, 0.3, 7, key(0)), same = dropout(x, 0.3, 7, key(0)), later = dropout(x, 0.3, 7, key(1));
  const Tensor high = dropout(x, 0.3, 7, key(2)), other = dropout(x, 0.3, 8, key(0)), d = grad(sum(y), {x})[0];
  const Tensor column = reshape(slice(slice(keys, 0, 1, 3), 1, 0, 1), {2});  // (2, 1), not side by side
  const Tensor plain = graph.input({2}, Dtype::i32);
  plain.set({2, 1});
  const Tensor strided = dropout(x, 0.3, 7, column), packed = dropout(x, 0.3, 7, plain);
  Plan plan({y, same, later, high, other, d, strided, packed});
  plan.run();
  const auto got = plan.get<float>(y);
  EXPECT_TRUE(same_bits(got, plan.get<float>(same)));
  EXPECT_TRUE(same_bits(plan.get<float>(strided), plan.get<float>(packed)));
  for (Tensor t : {later, high, other}) EXPECT_FALSE(same_bits(got, plan.get<float>(t)));
  double kept = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    ASSERT_TRUE(got[i] == 0 || std::abs(got[i] - 2 / 0.7f) < 1e-5f);
    ASSERT_FLOAT_EQ(plan.get<float>(d)[i], got[i] / 2);
    kept += got[i] != 0;
  }
  EXPECT_NEAR(kept / double(got.size()), 0.7, 0.01);
  keys.set({5, 0, 2, 0, 1, 1});  // the next step
  const std::vector<float> before = copy_of(got);
  plan.run();
  EXPECT_FALSE(same_bits(before, plan.get<float>(y)));
  EXPECT_EQ(dropout(x, 0, 7, key(0)).id(), x.id());
  for (double p : {-0.1, 1.0, double(nan)}) EXPECT_NE(error_of([&] { dropout(x, p, 7, key(0)); }), "no error") << p;
}

// ---- errors

TEST(Plan, ErrorsNameTheOperationAndTheShapes) {
  Graph graph(1), other(1);
  const Tensor x = graph.input({2, 3}), y = graph.input({4, 3}), ids = graph.input({2}, Dtype::i32),
               elsewhere = other.input({2, 3});
  const Tensor q = graph.input({2, 5, 4, 8}), k = graph.input({2, 5, 3, 8});
  const std::pair<std::function<void()>, const char*> cases[] = {
      {[&] { x + y; }, "add: (2, 3) and (4, 3): expected sizes that are equal or 1, from the last"},
      {[&] { y* x; }, "mul: (4, 3) and (2, 3): expected sizes that are equal or 1, from the last"},
      {[&] { where(less(x, 0), x, y); }, "where: (2, 3) and (4, 3): expected sizes that are equal or 1, from the last"},
      {[&] { x + elsewhere; }, "add: expected tensors of one graph"},
      {[&] { x + Tensor(); }, "add: expected tensors of one graph, got one without"},
      {[&] { 2 * Tensor(); }, "mul: expected tensors of one graph, got one without"},
      {[&] { where(x, Tensor(), 0); }, "where: expected tensors of one graph, got one without"},
      {[&] { matmul(x, elsewhere); }, "matmul: expected tensors of one graph"},
      {[&] {
         concat(std::array{x, elsewhere}, 0);
       },
       "concat: expected tensors of one graph"},
      {[&] { matmul(x, y); }, "matmul: (2, 3) and (4, 3): expected (..., M, K) and (..., K, N) with the same K"},
      {[&] { matmul(x, reshape(y, {12})); },
       "matmul: (2, 3) and (12): expected (..., M, K) and (..., K, N) with the same K"},
      {[&] {
         matmul(graph.input({2, 3, 4}), graph.input({3, 4, 5}));
       },
       "matmul: (2) and (3): expected sizes that are equal or 1, from the last"},
      {[&] { gather(x, y); }, "gather: (2, 3) and (4, 3): expected a table (V, C) and i32 ids"},
      {[&] { gather(graph.input({2}), ids); }, "gather: (2) and (2): expected a table (V, C) and i32 ids"},
      {[&] {
         reshape(x, {4, 2});
       },
       "reshape: (2, 3) to (4, 2): expected the same number of elements"},
      {[&] {
         reshape(x, {4, -1});
       },
       "reshape: (2, 3) to (4, -1): expected the same number of elements"},
      {[&] {
         reshape(x, {-1, -1});
       },
       "reshape: expected sizes of 1 or more and one -1 at most, got (-1, -1)"},
      {[&] {
         reshape(x, {0, 6});
       },
       "reshape: expected sizes of 1 or more and one -1 at most, got (0, 6)"},
      {[&] { reshape(x, {}); }, "reshape: (2, 3) to (): expected the same number of elements"},
      {[&] {
         reshape(x, {int64_t{1} << 62, 4, 6});
       },
       "reshape: (2, 3) to (4611686018427387904, 4, 6): expected the same number of elements"},
      {[&] {
         reshape(x, {-1, int64_t{1} << 32, int64_t{1} << 32});
       },
       "reshape: (2, 3) to (-1, 4294967296, 4294967296): expected the same number of elements"},
      {[&] { slice(x, 0, 1, 3); }, "slice: (2, 3), axis 0: expected a range within 0 and 2, got 1 to 3"},
      {[&] { slice(x, 1, 2, 2); }, "slice: (2, 3), axis 1: expected a range within 0 and 3, got 2 to 2"},
      {[&] { slice(x, -1, -1, 2); }, "slice: (2, 3), axis -1: expected a range within 0 and 3, got -1 to 2"},
      {[&] { slice(x, 2, 0, 1); }, "slice: (2, 3): expected an axis it has, got 2"},
      {[&] { slice(x, -3, 0, 1); }, "slice: (2, 3): expected an axis it has, got -3"},
      {[&] { split(x, 2, 1); }, "split: (2, 3), axis 1: expected a size that 2 parts divide"},
      {[&] { split(x, 0, 1); }, "split: (2, 3), axis 1: expected a size that 0 parts divide"},
      {[&] { split(x, 3, 5); }, "split: (2, 3): expected an axis it has, got 5"},
      {[&] {
         permute(x, {0, 0});
       },
       "permute: (2, 3): expected each of its axes once"},
      {[&] { permute(x, {0}); }, "permute: (2, 3): expected each of its axes once"},
      {[&] {
         permute(x, {0, 2});
       },
       "permute: (2, 3): expected each of its axes once"},
      {[&] {
         expand(x, {2, 4});
       },
       "expand: (2, 3) to (2, 4): expected sizes that are equal or were 1"},
      {[&] { expand(x, {3}); }, "expand: (2, 3) to (3): expected no fewer axes"},
      {[&] { sum(x, {2}); }, "reduce: (2, 3): expected an axis it has, got 2"},
      {[&] {
         sum(x, {0, -2});
       },
       "reduce: expected each axis once"},
      {[&] {
         concat(std::array{x, y}, 1);
       },
       "concat: (2, 3) and (4, 3), axis 1: expected the same other sizes and type"},
      {[&] {
         concat(std::array{x, cast(x, Dtype::f64)}, 1);
       },
       "concat: (2, 3) and (2, 3), axis 1: expected the same other sizes and type"},
      {[&] { concat(std::span<const Tensor>(), 1); }, "concat: expected one part or more"},
      {[&] {
         concat(std::array{x, x}, 2);
       },
       "concat: (2, 3): expected an axis it has, got 2"},
      {[&] { attention(q, k, k, {}); },
       "attention: (2, 5, 4, 8), (2, 5, 3, 8) and (2, 5, 3, 8): expected q (B, T, H, D), k and v (B, S, H_kv, D), H_kv dividing H"},
      {[&] { attention(q, q, q, {}, graph.input({3}, Dtype::i32)); },
       "attention: lengths, starts or firsts (3): expected i32 (2)"},
      {[&] { assign(x + 1, x); }, "assign: expected an input"},
      {[&] { assign(x, y); }, "assign: : expected (2, 3), got (4, 3)"},
      {[&] { grad(x, {x}); }, "grad: expected a tensor of one element, got (2, 3)"},
      {[&] { grad(sum(x), {elsewhere}); }, "grad: expected tensors of one graph"},
      {[&] { x.size(2); }, "size: (2, 3): expected an axis it has, got 2"},
      {[&] { graph.input({2}).t(); }, "t: (2): expected two axes or more"},
      {[&] {
         graph.input({2, 0});
       },
       "input: expected sizes of 1 or more, got (2, 0)"},
      {[&] {
         graph.input({int64_t{1} << 32, int64_t{1} << 32});
       },
       "input: expected fewer elements, got (4294967296, 4294967296)"},
      {[&] {
         expand(x, {int64_t{1} << 60, int64_t{1} << 60, 2, 3});
       },
       "expand: expected fewer elements, got (1152921504606846976, 1152921504606846976, 2, 3)"},
      {[&] { graph.random({2}, 1, x); }, "random: expected a key of two i32"},
      {[&] { x.set({1.f}); }, "set: : expected 6 values for (2, 3), got 1"},
      {[&] { x.data<double>(); }, "data: : expected the type of its elements, f32"},
      {[&] { x.data<int32_t>(); }, "data: : expected the type of its elements, f32"},
      {[&] { (x + 1).data<float>(); }, "data: expected an input"},
      {[&] { cross_entropy(x, y); }, "cross_entropy: (2, 3) and (4, 3): expected logits (..., V) and i32 labels (...)"},
      {[&] { activation("geglu", x); },
       "activation: expected one of gelu, gelu_python, gelu_new, gelu_fast, gelu_accurate, gelu_pytorch_tanh, gelu_10, "
       "quick_gelu, relu, relu2, relu6, leaky_relu, silu, swish, mish, tanh, sigmoid, linear, got geglu"},
      {[&] { rope(x, rotation(ids, rope_frequencies(4, 1e4))); }, "rope: (2, 3): expected (B, T, H, 4)"},
      {[&] { rope_frequencies(3, 1e4); }, "rope_frequencies: expected an even head size, got 3"},
  };
  for (const auto& [call, want] : cases) EXPECT_EQ(error_of(call), want);
}

TEST(Plan, AnIdOutsideItsTableIsNamedAndThePlanGoesOnAfterwards) {
  for (int threads : {1, 2}) {
    Graph graph(threads);
    const Tensor table = graph.input({4, 2}, Dtype::f32, "wte"), ids = graph.input({3}, Dtype::i32, "input_ids"),
                 state = graph.input({3, 2});
    table.set({0.f, 1.f, 2.f, 3.f, 4.f, 5.f, 6.f, 7.f});
    const Tensor rows = gather(table, ids), d = grad(sum(rows * rows), {table})[0];
    Plan plan({rows, d, assign(state, rows + 1)});
    const std::tuple<int32_t, const char*> cases[] = {
        {4, "input_ids: expected ids of 0 to 3, the rows of wte, got 4 at 1"},
        {-1, "input_ids: expected ids of 0 to 3, the rows of wte, got -1 at 1"},
        {2147483647, "input_ids: expected ids of 0 to 3, the rows of wte, got 2147483647 at 1"},
        {-2147483647 - 1, "input_ids: expected ids of 0 to 3, the rows of wte, got -2147483648 at 1"}};
    for (const auto& [id, want] : cases) {
      ids.set({3, id, 0});
      const std::vector<float> before = state.value();
      EXPECT_EQ(error_of([&] { plan.run(); }), want);
      EXPECT_EQ(state.value(), before);
      ids.set({3, 1, 3});
      plan.run();
      EXPECT_EQ(numbers(plan, rows), (std::vector<double>{6, 7, 2, 3, 6, 7}));
      EXPECT_EQ(numbers(plan, d), (std::vector<double>{0, 0, 4, 6, 0, 0, 24, 28}));
      EXPECT_EQ(state.value(), (std::vector<float>{7, 8, 3, 4, 7, 8}));
    }
  }
}

TEST(Plan, LengthsOfAttentionMayBeAViewOfSomethingElse) {
  Graph graph(1);
  std::mt19937 random(15);
  const Tensor q = graph.input({3, 6, 2, 4}), both = graph.input({3, 2}, Dtype::i32),
               plain = graph.input({3}, Dtype::i32);
  fill(q, random);
  both.set({2, 6, 4, 6, 6, 1});
  plain.set({2, 4, 6});
  const Tensor view = reshape(slice(both, 1, 0, 1), {3});
  EXPECT_TRUE(same_bits(attention(q, q, q, {.causal = false}, view).value(),
                        attention(q, q, q, {.causal = false}, plain).value()));
}

TEST(Plan, ItsSummaryNamesEveryKernelAndItsTotals) {
  Graph graph(1);
  const Tensor x = graph.input({64, 32}), w = graph.input({32, 16}), b = graph.input({16});
  const Tensor y = matmul(x, w) + b;
  Plan plan({y, sum(gelu(y))});
  EXPECT_EQ(plan.flops(), 2.0 * 64 * 32 * 16);
  const std::string text = plan.summary();
  EXPECT_NE(text.find("matmul (64, 32) (32, 16) + bias"), std::string::npos) << text;
  EXPECT_NE(text.find("total, " + std::to_string(plan.kernels()) + " kernels"), std::string::npos) << text;
  EXPECT_EQ(text.find("GB/s"), std::string::npos) << text;
  plan.profile(true);
  plan.run();
  EXPECT_NE(plan.summary().find("GB/s"), std::string::npos);
}

}  // namespace
}  // namespace dense
