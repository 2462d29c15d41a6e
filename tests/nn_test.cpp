// The formulas of models against plain loops in double, with their gradients; einops on tensors against indices.
#include "dense/tensor/nn.h"

#include <gtest/gtest.h>

#include <limits>
#include <numbers>

#include "tests/arrays.h"
#include "tests/errors.h"

namespace dense {
namespace {

using Values = std::span<double>;
constexpr double inf = std::numeric_limits<double>::infinity();

// An input of numbers in [low, high), and what it holds.
struct Pair {
  Tensor x;
  Array a;
};
Pair input(Graph& graph, const Shape& shape, Dtype type = Dtype::f32, double low = -2, double high = 2) {
  static std::mt19937 random(1);
  Pair p{graph.input(shape, type), {}};
  p.a = fill(p.x, random, low, high);
  return p;
}

// f in f32 and f64 against g on rows of several lengths.
void check_rows(const char* what, Tensor (*f)(Tensor), void (*g)(Values), double factor = 1) {
  for (const Shape& shape : {Shape{3, 5}, {2, 3, 16}, {7, 1}, {1}, {4, 1000}, {2, 1025}, {2500, 3}})
    for (Dtype type : {Dtype::f32, Dtype::f64}) {
      Graph graph(1);
      const Pair p = input(graph, shape, type, -2 * factor, 2 * factor);
      expect_near(f(p.x), by_rows(p.a, g), type == Dtype::f64 ? 1e-12 : 1e-5,
                  std::string(what) + " " + to_string(shape));
    }
}

void check_elements(const char* what, Tensor (*f)(Tensor), double (*g)(double), double (*slope)(double)) {
  for (Dtype type : {Dtype::f32, Dtype::f64}) {
    Graph graph(1);
    const Pair p = input(graph, {40, 50}, type, -8, 8);
    const double tolerance = type == Dtype::f64 ? 1e-12 : 2e-6;
    expect_near(f(p.x), mapped(p.a, g), tolerance, what);
    if (slope) expect_near(grad(sum(f(p.x)), {p.x})[0], mapped(p.a, slope), tolerance, std::string(what) + "'");
  }
}

void layer_norm_row(Values v) {
  const auto n = double(v.size());
  double mean = 0, variance = 0;
  for (double x : v) mean += x / n;
  for (double x : v) variance += (x - mean) * (x - mean) / n;
  for (double& x : v) x = (x - mean) / std::sqrt(variance + 1e-5);
}
void rms_norm_row(Values v) {
  double mean = 0;
  for (double x : v) mean += x * x / double(v.size());
  for (double& x : v) x /= std::sqrt(mean + 1e-6);
}
void log_softmax_row(Values v) {
  const double most = *std::ranges::max_element(v);
  double sum = 0;
  for (double x : v) sum += std::exp(x - most);
  for (double& x : v) x -= most + std::log(sum);
}
void softmax_row(Values v) {
  log_softmax_row(v);
  for (double& x : v) x = std::exp(x);
}

TEST(NN, NormsAndSoftmaxesAreThoseOfPlainLoops) {
  check_rows(
      "layer_norm", [](Tensor x) { return layer_norm(x, 1e-5); }, layer_norm_row);
  check_rows(
      "rms_norm", [](Tensor x) { return rms_norm(x, 1e-6); }, rms_norm_row);
  check_rows("softmax", softmax, softmax_row);
  check_rows("log_softmax", log_softmax, log_softmax_row);
  check_rows("log_softmax", log_softmax, log_softmax_row, 50);
}

TEST(NN, SoftmaxTakesAnyFiniteLogitsAndMinusInfinity) {
  Graph graph(1);
  const Tensor x = graph.input({3, 4}, Dtype::f64);
  x.set({1e300, 1e300, -1e300, 0.0, -inf, 5.0, 5.0, -inf, -1e5, -1e5, -1e5, -1e5});
  expect_near(numbers(softmax(x)), {0.5, 0.5, 0, 0, 0, 0.5, 0.5, 0, 0.25, 0.25, 0.25, 0.25}, 1e-15, "softmax");
  expect_near(numbers(slice(log_softmax(x), 0, 1, 2)), {-inf, -std::log(2), -std::log(2), -inf}, 1e-15, "log_softmax");
  // what is left out has no gradient, and does not spoil that of others
  const Tensor d = grad(sum(slice(softmax(slice(x, 0, 1, 2)), 1, 1, 2)), {x})[0];
  expect_near(numbers(d), {0, 0, 0, 0, 0, 0.25, -0.25, 0, 0, 0, 0, 0}, 1e-15, "gradient");
}

double sigmoid_of(double x) { return 1 / (1 + std::exp(-x)); }

TEST(NN, ActivationsAndTheirSlopesAreTheirDefinitions) {
  check_elements(
      "gelu", gelu, [](double x) { return 0.5 * x * std::erfc(-x * std::sqrt(0.5)); },
      [](double x) {
        return 0.5 * std::erfc(-x * std::sqrt(0.5)) + x * std::exp(-x * x / 2) / std::sqrt(2 * std::numbers::pi);
      });
  check_elements(
      "gelu_tanh", gelu_tanh,
      [](double x) { return 0.5 * x * (1 + std::tanh(std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x))); },
      [](double x) {
        const double c = std::sqrt(2 / std::numbers::pi), t = std::tanh(c * (x + 0.044715 * x * x * x));
        return 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * c * (1 + 3 * 0.044715 * x * x);
      });
  check_elements(
      "silu", silu, [](double x) { return x * sigmoid_of(x); },
      [](double x) { return sigmoid_of(x) * (1 + x * (1 - sigmoid_of(x))); });
  check_elements(
      "quick_gelu", [](Tensor x) { return activation("quick_gelu", x); },
      [](double x) { return x * sigmoid_of(1.702 * x); },
      [](double x) { return sigmoid_of(1.702 * x) * (1 + 1.702 * x * (1 - sigmoid_of(1.702 * x))); });
  check_elements(
      "soft_cap", [](Tensor x) { return soft_cap(x, 3); }, [](double x) { return 3 * std::tanh(x / 3); },
      [](double x) { return 1 - std::tanh(x / 3) * std::tanh(x / 3); });
  Graph graph(1);
  const Pair gate = input(graph, {3, 5}), up = input(graph, {3, 5});
  const auto swiglu_of = [&](const Index& i) { return gate.a.at(i) * sigmoid_of(gate.a.at(i)) * up.a.at(i); };
  expect_near(swiglu(gate.x, up.x), array({3, 5}, swiglu_of), 1e-6, "swiglu");
}

TEST(NN, ActivationsHaveHuggingFaceNames) {
  Graph graph(1);
  const Tensor x = input(graph, {50}).x;
  const std::pair<const char*, Tensor> all[] = {{"gelu", gelu(x)},
                                                {"gelu_new", gelu_tanh(x)},
                                                {"gelu_pytorch_tanh", gelu_tanh(x)},
                                                {"relu", relu(x)},
                                                {"quick_gelu", activation("quick_gelu", x)},
                                                {"silu", silu(x)},
                                                {"swish", silu(x)},
                                                {"tanh", tanh(x)},
                                                {"sigmoid", sigmoid(x)}};
  for (const auto& [name, want] : all) EXPECT_EQ(activation(name, x).value(), want.value()) << name;
}

TEST(NN, CrossEntropyIsTheMeanOverRowsThatAreNotIgnored) {
  for (int64_t columns : {2, 61, 1000, 50257}) {
    for (Dtype type : {Dtype::f32, Dtype::f64}) {
      Graph graph(2);
      const Pair p = input(graph, {2, 3, columns}, type, -5, 5);
      const Tensor labels = graph.input({2, 3}, Dtype::i32);
      const std::vector<int32_t> given{0, int32_t(columns) - 1, -100, 1, -100, int32_t(columns) / 2};
      labels.set(std::span<const int32_t>(given));
      const Array log_p = by_rows(p.a, log_softmax_row);
      double want = 0;
      for (int64_t row = 0; row < 6; ++row)
        if (given[size_t(row)] >= 0) want -= log_p.values[size_t(row * columns + given[size_t(row)])] / 4;
      const Tensor loss = cross_entropy(p.x, labels), d = grad(loss, {p.x})[0];
      EXPECT_EQ(loss.shape(), Shape{});
      const double tolerance = type == Dtype::f64 ? 1e-12 : 2e-6;
      EXPECT_NEAR(numbers(loss)[0], want, tolerance * 10);
      const Array dx = array(p.a.shape, [&](const Index& i) {
        const int32_t label = given[size_t(i[0] * 3 + i[1])];
        return label < 0 ? 0 : (std::exp(log_p.at(i)) - (label == i[2])) / 4;
      });
      expect_near(d, dx, tolerance, text(columns, " columns"));
    }
  }
}

TEST(NN, CrossEntropyOfNothingIsNanAndOtherIndicesMayBeIgnored) {
  Graph graph(1);
  const Tensor logits = graph.input({2, 3}), labels = graph.input({2}, Dtype::i32);
  logits.set({1.f, 2.f, 3.f, 3.f, 2.f, 2.f});
  labels.set({-100, -100});
  EXPECT_TRUE(std::isnan(cross_entropy(logits, labels).value()[0]));
  labels.set({0, 2});
  const double first = std::log(std::exp(-2) + std::exp(-1) + 1) + 2, second = std::log(1 + 2 * std::exp(-1)) + 1;
  EXPECT_NEAR(cross_entropy(logits, labels).value()[0], (first + second) / 2, 1e-6);
  EXPECT_NEAR(cross_entropy(logits, labels, 0).value()[0], second, 1e-6);
}

TEST(NN, CrossEntropyTakesLargeLogits) {
  Graph graph(1);
  const Tensor logits = graph.input({3, 3}), labels = graph.input({3}, Dtype::i32);
  logits.set({3e38f, -3e38f, 0.f, 1e4f, 1e4f, 1e4f, float(-inf), 0.f, 0.f});
  labels.set({0, 1, 2});
  const Tensor loss = cross_entropy(logits, labels), d = grad(loss, {logits})[0];
  EXPECT_NEAR(loss.value()[0], (0 + std::log(3) + std::log(2)) / 3, 1e-6);
  expect_near(numbers(d), {0, 0, 0, 1 / 9., -2 / 9., 1 / 9., 0, 1 / 6., -1 / 6.}, 1e-6, "gradient");
}

TEST(NN, RopeTurnsPairsByTheirPosition) {
  for (const Shape& positions_shape : {Shape{5}, {2, 5}, {1, 5}})
    for (Dtype type : {Dtype::f32, Dtype::i32}) {
      Graph graph(1);
      const Pair x = input(graph, {2, 5, 3, 8}), at = input(graph, positions_shape, type, 0, 90);
      const auto angle = [&](const Index& i) {
        const double position = at.a.at({i[0], i[1]});
        return position * std::pow(10000.0, -2.0 * double(i[3] % 4) / 8);
      };
      const auto turned = [&](double direction) {
        return [&, direction](const Index& i) {
          Index other = i;
          other[3] = (i[3] + 4) % 8;
          const double a = angle(i) * direction;
          return x.a.at(i) * std::cos(a) + (i[3] < 4 ? -1 : 1) * x.a.at(other) * std::sin(a);
        };
      };
      const Tensor y = rope(x.x, rotation(at.x, rope_frequencies(8, 10000)));
      expect_near(y, array(x.a.shape, turned(1)), 3e-5, to_string(positions_shape));
      // its gradient turns back
      const Tensor w = graph.input(x.x.shape());
      w.set(std::span<const float>(x.x.data<float>()));
      expect_near(grad(sum(y * w), {x.x})[0], array(x.a.shape, turned(-1)), 3e-5, "gradient");
    }
  Graph graph(1);
  const Pair x = input(graph, {1, 4, 1, 2});
  const Tensor counted =
      rope(x.x, rotation(graph.counter({4}), rope_frequencies(2, 10000)));  // positions that nobody stores
  expect_near(counted,
              array({1, 4, 1, 2},
                    [&](const Index& i) {
                      const double c = std::cos(double(i[1])), s = std::sin(double(i[1]));
                      const double a = x.a.at({0, i[1], 0, 0}), b = x.a.at({0, i[1], 0, 1});
                      return i[3] ? b * c + a * s : a * c - b * s;
                    }),
              1e-6, "counted");
}

TEST(NN, ConvolutionsSumOverNeighboursInGroupsOfChannels) {
  const int64_t B = 2, T = 5, C = 6, O = 4;
  for (int64_t groups : {1, 2})
    for (int64_t K : {1, 3, 5, 13}) {
      Graph graph(1);
      const Pair x = input(graph, {B, T, C}, Dtype::f64), w = input(graph, {O, C / groups, K}, Dtype::f64);
      const Pair dy = input(graph, {B, T, O}, Dtype::f64);
      Array y{{B, T, O}, std::vector<double>(size_t(B * T * O))}, dx = x.a, dw = w.a;
      std::ranges::fill(dx.values, 0), std::ranges::fill(dw.values, 0);
      for (int64_t b = 0; b < B; ++b)
        for (int64_t t = 0; t < T; ++t)
          for (int64_t o = 0; o < O; ++o)
            for (int64_t i = 0; i < C / groups; ++i)
              for (int64_t k = 0; k < K; ++k) {
                const int64_t from = t + k - K / 2, c = o / (O / groups) * (C / groups) + i;
                if (from < 0 || from >= T) continue;
                const auto at_y = size_t((b * T + t) * O + o), at_x = size_t((b * T + from) * C + c);
                const auto at_w = size_t((o * C / groups + i) * K + k);
                y.values[at_y] += x.a.values[at_x] * w.a.values[at_w];
                dx.values[at_x] += dy.a.values[at_y] * w.a.values[at_w];
                dw.values[at_w] += dy.a.values[at_y] * x.a.values[at_x];
              }
      const std::string what = "conv1d " + to_string(w.x.shape());
      expect_near(conv1d(x.x, w.x), y, 1e-12, what);
      const std::vector<Tensor> d = grad(sum(conv1d(x.x, w.x) * dy.x), {x.x, w.x});
      expect_near(d[0], dx, 1e-12, what + " dx");
      expect_near(d[1], dw, 1e-12, what + " dw");
    }
  Graph graph(1);
  for (const Shape& w : {Shape{4, 6, 2}, {4, 4, 3}, {3, 3, 3}, {4, 6}})
    EXPECT_EQ(error_of([&] {
                conv1d(graph.input({2, 5, 6}), graph.input(w));
              }),
              "conv1d: (2, 5, 6) and " + to_string(w) +
                  ": expected (B, T, C) and (O, C / groups, an odd K), groups dividing O");
}

TEST(NN, DropoutHasTheRightMeanAndScale) {
  Graph graph(1);
  const Tensor x = graph.input({100, 1000}), key = graph.input({2}, Dtype::i32);
  std::ranges::fill(x.data<float>(), 1.f);
  for (double p : {0.1, 0.5, 0.9}) {
    const std::vector<double> y = numbers(dropout(x, p, 1, key));
    double mean = 0;
    for (double v : y) {
      ASSERT_TRUE(v == 0 || std::abs(v - 1 / (1 - p)) < 1e-5);
      mean += v / double(y.size());
    }
    EXPECT_NEAR(mean, 1, 4 * std::sqrt(p / (1 - p) / double(y.size()))) << p;
  }
}

TEST(NN, AdamWTakesTheStepsOfItsPaper) {
  for (const Shape& shape : {Shape{3, 4}, {1, 5}, {5, 1}, {7}, {1}, {}}) {
    Graph graph(1);
    const Pair p = input(graph, shape), g = input(graph, shape);
    const Tensor m = graph.input(shape), v = graph.input(shape);
    const Tensor lr = graph.input({}), rate_of_m = graph.input({}), scale_of_v = graph.input({});
    const AdamW options{0.8, 0.95, 1e-6, 0.1};
    const auto next = adamw(p.x, g.x, m, v, lr, rate_of_m, scale_of_v, options);
    Plan plan({assign(p.x, next[0]), assign(m, next[1]), assign(v, next[2])});
    Array want = p.a;
    std::vector<double> wm(want.values.size()), wv = wm;
    for (int step = 1; step <= 5; ++step) {
      const double rate = 0.01 * step;
      lr.set({float(rate)});
      rate_of_m.set({float(rate / (1 - std::pow(0.8, step)))});
      scale_of_v.set({float(1 / (1 - std::pow(0.95, step)))});
      for (size_t i = 0; i < wm.size(); ++i) {
        const double d = g.a.values[i];
        wm[i] = 0.8 * wm[i] + 0.2 * d;
        wv[i] = 0.95 * wv[i] + 0.05 * d * d;
        const double m_hat = wm[i] / (1 - std::pow(0.8, step)), v_hat = wv[i] / (1 - std::pow(0.95, step));
        want.values[i] -= rate * (m_hat / (std::sqrt(v_hat) + 1e-6) + 0.1 * want.values[i]);
      }
      plan.run();
      ASSERT_NO_FATAL_FAILURE(expect_near(p.x, want, 1e-5, to_string(shape)));
      ASSERT_NO_FATAL_FAILURE(expect_near(numbers(m), wm, 1e-6, "m"));
      ASSERT_NO_FATAL_FAILURE(expect_near(numbers(v), wv, 1e-6, "v"));
    }
  }
}

// ---- einops

TEST(NN, RearrangeMovesElementsAsItsPatternSays) {
  Graph graph(1);
  const Pair p = input(graph, {2, 3, 8});  // b t (h d)
  const auto& a = p.a;
  expect_near(rearrange<"b t (h d) -> b h t d", "h">(p.x, 4),
              array({2, 4, 3, 2},
                    [&](const Index& i) {
                      return a.at({i[0], i[2], i[1] * 2 + i[3]});
                    }),
              0, "heads");
  expect_near(rearrange<"b t (h d) -> (b h) (d t)", "h">(p.x, 4),
              array({8, 6},
                    [&](const Index& i) {
                      return a.at({i[0] / 4, i[1] % 3, i[0] % 4 * 2 + i[1] / 3});
                    }),
              0, "merged");
  expect_near(rearrange<"b ... -> ... b">(p.x),
              array({3, 8, 2},
                    [&](const Index& i) {
                      return a.at({i[2], i[0], i[1]});
                    }),
              0, "ellipsis");
  expect_near(rearrange<"b t c -> b 1 (t c)">(p.x),
              array({2, 1, 24},
                    [&](const Index& i) {
                      return a.at({i[0], i[2] / 8, i[2] % 8});
                    }),
              0, "one");
  expect_near(rearrange<"b h t d -> b t (h d)">(rearrange<"b t (h d) -> b h t d", "h">(p.x, 4)), a, 0, "and back");
}

TEST(NN, RepeatCopiesAlongNewAxesAndItsGradientSums) {
  Graph graph(1);
  const Pair p = input(graph, {2, 3}), w = input(graph, {2, 4, 6});
  const Tensor y = repeat<"a b -> a r (b s)", "r", "s">(p.x, 4, 2);
  expect_near(y, array({2, 4, 6}, [&](const Index& i) { return p.a.at({i[0], i[2] / 2}); }), 0, "repeat");
  expect_near(grad(sum(y * w.x), {p.x})[0],
              array({2, 3},
                    [&](const Index& i) {
                      double total = 0;
                      for (int64_t r = 0; r < 4; ++r)
                        total += w.a.at({i[0], r, i[1] * 2}) + w.a.at({i[0], r, i[1] * 2 + 1});
                      return total;
                    }),
              1e-6, "gradient");
}

TEST(NN, ReductionsOverAnyAxesAreThoseOfPlainLoopsAndSoAreTheirGradients) {
  for (Dtype type : {Dtype::f32, Dtype::f64})
    for (Reduction r : {Reduction::sum, Reduction::mean, Reduction::max, Reduction::min, Reduction::prod})
      for (unsigned which = 0; which < 8; ++which) {
        std::vector<int> axes;
        for (int axis = 0; axis < 3; ++axis)
          if (which >> axis & 1) axes.push_back(axis);
        Graph graph(1);
        const Pair p = input(graph, {3, 2, 4}, type, 0.5, 1.5);
        const Array want = reduced(p.a, r, axes);
        const double tolerance = type == Dtype::f64 ? 1e-12 : 2e-5;
        const std::string what = text("reduction ", int(r), " of axes ", which);
        const Tensor y = reduce(p.x, r, axes);
        expect_near(y, want, tolerance, what);
        const Pair w = input(graph, y.shape(), type);
        // of each element: what its group's value changes by
        const auto gone = [&](size_t axis) { return axes.empty() || which >> axis & 1; };
        const Array d = array(p.a.shape, [&](const Index& i) {
          Index group;
          for (size_t axis = 0; axis < 3; ++axis)
            if (!gone(axis)) group.push_back(i[axis]);
          const double value = want.at(group), x = p.a.at(i), dy = w.a.at(group);
          if (r == Reduction::sum) return dy;
          if (r == Reduction::mean) return dy * double(count_of(want.shape)) / 24;
          return r == Reduction::prod ? dy * value / x : value == x ? dy : 0;
        });
        expect_near(grad(sum(y * w.x), {p.x})[0], d, tolerance * 3, what + ", gradient");
      }
  Graph graph(1);
  const Pair p = input(graph, {2, 6, 3});
  const auto want = [&](const Index& i) {
    return (p.a.at({i[1], i[0] * 2, i[2]}) + p.a.at({i[1], i[0] * 2 + 1, i[2]})) / 2;
  };
  const Tensor halves = reduce<"b (t s) c -> t b c", Reduction::mean, "s">(p.x, 2);
  expect_near(halves, array({3, 2, 3}, want), 1e-6, "pattern");
}

TEST(NN, EqualMaximaShareTheirGradient) {
  Graph graph(1);
  const Tensor x = graph.input({2, 4});
  x.set({1.f, 3.f, 3.f, 2.f, 5.f, -5.f, -5.f, 5.f});
  const Tensor most = reduce(x, Reduction::max, {1}), least = reduce(x, Reduction::min, {1});
  EXPECT_EQ(grad(sum(most), {x})[0].value(), (std::vector<float>{0, 0.5, 0.5, 0, 0.5, 0, 0, 0.5}));
  EXPECT_EQ(grad(sum(least), {x})[0].value(), (std::vector<float>{1, 0, 0, 0, 0, 0.5, 0.5, 0}));
  x.set({float(inf), 3.f, 3.f, float(inf), float(-inf), float(-inf), float(-inf), float(-inf)});
  EXPECT_EQ(most.value(), (std::vector<float>{float(inf), float(-inf)}));
  EXPECT_EQ(least.value(), (std::vector<float>{3, float(-inf)}));
}

TEST(NN, EinopsErrorsNameThePatternAndTheShape) {
  Graph graph(1);
  const Tensor x = graph.input({2, 7});
  EXPECT_EQ(error_of([&] { rearrange<"b (h d) -> b h d", "h">(x, 4); }),
            "rearrange<\"b (h d) -> b h d\">: shape (2, 7), h = 4: (h d): 7 is no multiple of 4");
  EXPECT_EQ(error_of([&] { rearrange<"b t c -> b c t">(x); }),
            "rearrange<\"b t c -> b c t\">: shape (2, 7): expected 3 axes, got 2");
}

}  // namespace
}  // namespace dense
