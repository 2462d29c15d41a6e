// Tensors: values against plain loops, gradients against finite differences in f64.
#include "dense/tensor/tensor.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "dense/tensor/nn.h"
#include "dense/tensor/plan.h"
#include "tests/errors.h"

namespace dense {
namespace {

using Function = std::function<Tensor(std::span<const Tensor>)>;

void fill(Tensor x, uint32_t seed, double low = -1, double high = 1) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> uniform(low, high);
  if (x.dtype() == Dtype::f64)
    for (double& v : x.data<double>()) v = uniform(random);
  else
    for (float& v : x.data<float>()) v = float(uniform(random));
}

// The gradient of sum(f(x) * weights) by each x, against central differences.
void check_gradient(const char* what, const Function& f, const std::vector<Shape>& shapes, double low = -1,
                    double high = 1) {
  SCOPED_TRACE(what);
  Graph graph(1);
  std::vector<Tensor> x;
  for (size_t i = 0; i < shapes.size(); ++i) {
    x.push_back(graph.input(shapes[i], Dtype::f64, text("x", i)));
    fill(x.back(), uint32_t(i + 1), low, high);
  }
  const Tensor y = f(x);
  ASSERT_EQ(y.dtype(), Dtype::f64);
  const Tensor w = graph.input(y.shape(), Dtype::f64, "w");
  fill(w, 99);
  const Tensor loss = sum(y * w);
  std::vector<Tensor> outputs = grad(loss, x);
  outputs.push_back(loss);
  Plan plan(outputs), value({loss});
  plan.run();
  for (size_t i = 0; i < x.size(); ++i) {
    ASSERT_EQ(outputs[i].shape(), x[i].shape());
    const auto got = plan.get<double>(outputs[i]);
    const auto data = x[i].data<double>();
    for (size_t k = 0; k < data.size(); ++k) {
      const double h = 1e-5, before = data[k];
      data[k] = before + h;
      value.run();
      const double up = value.get<double>(loss)[0];
      data[k] = before - h;
      value.run();
      const double down = value.get<double>(loss)[0];
      data[k] = before;
      ASSERT_NEAR(got[k], (up - down) / (2 * h), 1e-7 * std::max(1.0, std::abs(got[k])))
          << "operand " << i << " element " << k;
    }
  }
}

using Xs = std::span<const Tensor>;

TEST(Tensor, GradientsOfMapsAreThoseOfFiniteDifferences) {
  check_gradient("add", [](Xs x) { return x[0] + x[1]; }, {{2, 3}, {2, 3}});
  check_gradient("bias", [](Xs x) { return x[0] * x[1]; }, {{2, 4, 3}, {3}});
  check_gradient("rows", [](Xs x) { return x[0] * x[1]; }, {{2, 4, 3}, {2, 4, 1}});
  check_gradient("scalar", [](Xs x) { return x[0] * x[1]; }, {{2, 4, 3}, {}});
  check_gradient("middle", [](Xs x) { return x[0] * x[1]; }, {{2, 4, 3}, {4, 3}});
  check_gradient("outer", [](Xs x) { return x[0] * x[1]; }, {{4, 1}, {3}});
  check_gradient("both", [](Xs x) { return x[0] * x[1]; }, {{2, 1, 3}, {4, 1}});
  check_gradient(
      "div", [](Xs x) { return x[0] / x[1]; }, {{2, 3}, {2, 3}}, 0.5, 2);
  check_gradient("layer_norm", [](Xs x) { return layer_norm(x[0], 1e-5) * x[1] + x[2]; }, {{3, 5}, {5}, {5}});
  check_gradient("rms_norm", [](Xs x) { return rms_norm(x[0], 1e-5) * x[1]; }, {{2, 3, 5}, {5}});
  check_gradient("softmax", [](Xs x) { return softmax(x[0]); }, {{3, 5}});
  check_gradient("log_softmax", [](Xs x) { return log_softmax(x[0]); }, {{3, 5}});
  check_gradient("gelu", [](Xs x) { return gelu(x[0]) + gelu_tanh(x[0]) * silu(x[0]); }, {{3, 5}});
  check_gradient("swiglu", [](Xs x) { return swiglu(x[0], x[1]); }, {{3, 5}, {3, 5}});
  check_gradient("soft_cap", [](Xs x) { return soft_cap(x[0], 0.7); }, {{3, 5}});
  check_gradient("one column", [](Xs x) { return softmax(x[0]) * x[1] + layer_norm(x[0], 0.1); }, {{3, 1}, {3, 1}});
  check_gradient("where", [](Xs x) { return where(less(x[0], x[1]), x[0] * x[1], exp(x[0])); }, {{3, 5}, {5}});
}

TEST(Tensor, GradientsOfReductionsAreThoseOfFiniteDifferences) {
  for (Reduction r : {Reduction::sum, Reduction::mean, Reduction::max, Reduction::min, Reduction::prod})
    for (std::vector<int> axes : {std::vector<int>{}, {0}, {1}, {2}, {0, 1}, {1, 2}, {0, 2}, {-1}})
      check_gradient("reduce", [&](Xs x) { return reduce(x[0], r, axes); }, {{2, 3, 4}});
}

TEST(Tensor, GradientsOfViewsAreThoseOfFiniteDifferences) {
  check_gradient("reshape", [](Xs x) { return exp(reshape(x[0], {6, -1})); }, {{2, 3, 4}});
  check_gradient("permute", [](Xs x) { return exp(permute(x[0], {2, 0, 1})) * x[1]; }, {{2, 3, 4}, {2, 3}});
  check_gradient("permute, reshape", [](Xs x) { return reshape(permute(x[0], {1, 0}), {12}); }, {{3, 4}});
  check_gradient("expand", [](Xs x) { return exp(expand(x[0], {5, 2, 3})); }, {{2, 1}});
  check_gradient("slice", [](Xs x) { return slice(x[0], 1, 1, 3) * slice(x[0], 1, 0, 2); }, {{2, 4}});
  check_gradient("split",
                 [](Xs x) {
                   auto [a, b, c] = split<3>(x[0], -1);
                   return a * b + exp(c);
                 },
                 {{2, 6}});
  check_gradient("split, heads",
                 [](Xs x) {
                   auto [q, k, v] = split<3>(rearrange<"b t (s h d) -> s b h t d", "s", "h">(x[0], 3, 2));
                   return q * k + exp(v);
                 },
                 {{2, 3, 12}});
  check_gradient("concat", [](Xs x) { return exp(concat(x, 1)); }, {{2, 3}, {2, 1}, {2, 2}});
  check_gradient("repeat", [](Xs x) { return exp(repeat<"t c -> b t c", "b">(x[0], 3)); }, {{2, 4}});
  check_gradient("reduce", [](Xs x) { return exp(reduce<"b (t s) c -> b t c", Reduction::mean, "s">(x[0], 2)); },
                 {{2, 4, 3}});
  check_gradient("again", [](Xs x) { return x[0] * x[0] + reshape(reshape(x[0], {6}), {2, 3}) + x[0]; }, {{2, 3}});
}

TEST(Tensor, GradientsOfMatmulAreThoseOfFiniteDifferences) {
  check_gradient("matmul", [](Xs x) { return matmul(x[0], x[1]); }, {{3, 4}, {4, 5}});
  check_gradient("rows", [](Xs x) { return matmul(x[0], x[1]); }, {{2, 3, 4}, {4, 5}});
  check_gradient("transposed", [](Xs x) { return matmul(x[0].t(), x[1].t()); }, {{4, 3}, {5, 4}});
  check_gradient("batch", [](Xs x) { return matmul(x[0], x[1]); }, {{2, 3, 4}, {2, 4, 5}});
  check_gradient("broadcast batch", [](Xs x) { return matmul(x[0], x[1]); }, {{2, 1, 3, 4}, {3, 4, 2}});
  check_gradient("heads",
                 [](Xs x) {
                   return matmul(permute(x[0], {0, 2, 1, 3}), permute(x[1], {0, 2, 3, 1}));
                 },
                 {{2, 3, 2, 4}, {2, 3, 2, 4}});
}

TEST(Tensor, GradientsOfAttentionAreThoseOfFiniteDifferences) {
  check_gradient("causal", [](Xs x) { return attention(x[0], x[1], x[2], {.scale = 0.5f}); },
                 {{2, 3, 2, 4}, {2, 3, 1, 4}, {2, 3, 1, 4}});
  check_gradient(
      "qkv",
      [](Xs x) {
        auto [q, k, v] = split<3>(rearrange<"b t (s h d) -> s b t h d", "s", "h">(x[0], 3, 2));
        return rearrange<"b t h d -> b t (h d)">(attention(q, k, v, {.scale = 0.5f, .soft_cap = 2, .window = 2}));
      },
      {{2, 5, 12}});
}

TEST(Tensor, GradientsOfExpertsAreThoseOfFiniteDifferences) {
  const auto ids_of = [](Tensor like, std::initializer_list<int32_t> values) {
    const Tensor ids = like.graph().input({int64_t(values.size())}, Dtype::i32);
    ids.set(values);
    return ids;
  };
  check_gradient("one has no rows",
                 [&](Xs x) {
                   return expert_matmul(x[0], ids_of(x[0], {2, 0, 2, 2}), x.subspan(1));
                 },
                 {{4, 3}, {3, 5}, {3, 5}, {3, 5}});
  check_gradient("stored the other way round",
                 [&](Xs x) {
                   return expert_matmul(x[0], ids_of(x[0], {1, 0, 1}), std::array{x[1].t(), x[2].t()});
                 },
                 {{3, 4}, {2, 4}, {2, 4}});
  check_gradient("one expert",
                 [&](Xs x) {
                   return expert_matmul(x[0], ids_of(x[0], {0, 0}), x.subspan(1));
                 },
                 {{2, 3}, {3, 1}});
  check_gradient("one tensor for several experts",
                 [&](Xs x) {
                   return expert_matmul(x[0], ids_of(x[0], {0, 2, 1, 1}), split(x[1], 3));
                 },
                 {{4, 3}, {3, 3, 2}});
  check_gradient("a mixture",  // as in Mixtral
                 [](Xs x) {
                   const Tensor preference = matmul(x[0], x[1]), chosen = top_k(preference, 2);
                   const Tensor rows = repeat<"n c -> n k c", "k">(x[0], 2);
                   const Tensor y = gelu(expert_matmul(rows, chosen, x.subspan(2)));
                   return sum(y * reshape(softmax(take_along(preference, chosen)), {4, 2, 1}), {1});
                 },
                 {{4, 3}, {3, 3}, {3, 5}, {3, 5}, {3, 5}});
}

TEST(Tensor, GradientsOfGatherAreThoseOfFiniteDifferences) {
  check_gradient("gather",
                 [](Xs x) {
                   const Tensor ids = x[0].graph().input({2, 3}, Dtype::i32);
                   ids.set({0, 2, 2, 1, 0, 2});
                   return gather(x[0], ids) * x[1];
                 },
                 {{4, 5}, {2, 3, 5}});
  check_gradient("tied",
                 [](Xs x) {
                   const Tensor ids = x[0].graph().input({3}, Dtype::i32);
                   ids.set({3, 1, 3});
                   return matmul(gather(x[0], ids), x[0].t());
                 },
                 {{4, 5}});
  check_gradient("cross entropy",
                 [](Xs x) {
                   const Tensor labels = x[0].graph().input({2, 3}, Dtype::i32);
                   labels.set({0, 2, -100, 4, 1, -100});
                   return cross_entropy(x[0], labels);
                 },
                 {{2, 3, 5}});
}

TEST(Tensor, ActivationsAreThoseOfTheirNames) {
  const auto gelu = [](double v) { return v * 0.5 * (1 + std::erf(v / std::sqrt(2.0))); };
  const auto gelu_new = [](double v) {
    return 0.5 * v * (1 + std::tanh(std::sqrt(2 / M_PI) * (v + 0.044715 * v * v * v)));
  };
  const auto sigmoid = [](double v) { return 1 / (1 + std::exp(-v)); };
  const std::pair<const char*, std::function<double(double)>> cases[] = {
      {"gelu", gelu},
      {"gelu_python", gelu},
      {"gelu_new", gelu_new},
      {"gelu_fast", gelu_new},
      {"gelu_accurate", gelu_new},
      {"gelu_pytorch_tanh", gelu_new},
      {"gelu_10", [&](double v) { return std::clamp(gelu(v), -10.0, 10.0); }},
      {"quick_gelu", [&](double v) { return v * sigmoid(1.702 * v); }},
      {"relu", [](double v) { return std::max(v, 0.0); }},
      {"relu2", [](double v) { return v > 0 ? v * v : 0; }},
      {"relu6", [](double v) { return std::clamp(v, 0.0, 6.0); }},
      {"leaky_relu", [](double v) { return v > 0 ? v : 0.01 * v; }},
      {"silu", [&](double v) { return v * sigmoid(v); }},
      {"swish", [&](double v) { return v * sigmoid(v); }},
      {"mish", [](double v) { return v * std::tanh(std::log1p(std::exp(v))); }},
      {"tanh", [](double v) { return std::tanh(v); }},
      {"sigmoid", sigmoid},
      {"linear", [](double v) { return v; }},
  };
  Graph graph(1);
  const Tensor x = graph.input({1, 31});
  for (int i = 0; i < 31; ++i) x.data<float>()[size_t(i)] = float(i - 15) * 0.9f;
  for (const auto& [name, f] : cases) {
    const std::vector<float> y = activation(name, x).value();
    for (size_t i = 0; i < 31; ++i)
      EXPECT_NEAR(y[i], f(x.data<float>()[i]), 2e-6 * std::max(1.0, std::abs(double(y[i]))))
          << name << " of " << x.data<float>()[i];
    const char* const which = name;
    check_gradient(
        name, [which](Xs v) { return activation(which, v[0]); }, {{3, 5}}, -2, 2);
  }
  EXPECT_EQ(error_of([&] { activation("gelo", x); }).substr(0, 32), "activation: expected one of gelu");
}

TEST(Tensor, AnyTensorHasAValue) {
  Graph graph;
  const Tensor x = graph.input({2, 3});
  x.set({1.f, 2.f, 3.f, 4.f, 5.f, 6.f});
  EXPECT_EQ(x.value(), (std::vector<float>{1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(x.t().value(), (std::vector<float>{1, 4, 2, 5, 3, 6}));
  EXPECT_EQ((x + 1).value(), (std::vector<float>{2, 3, 4, 5, 6, 7}));
  EXPECT_EQ(sum(x, {0}).value(), (std::vector<float>{5, 7, 9}));
  EXPECT_EQ(sum(x).value(), (std::vector<float>{21}));
  EXPECT_EQ(matmul(x, x.t()).value(), (std::vector<float>{14, 32, 32, 77}));
  EXPECT_EQ(slice(x, 1, 1, 3).value(), (std::vector<float>{2, 3, 5, 6}));
}

TEST(Tensor, OnlyRowsAreThoseOfGatherAndTheRestIsNotComputed) {
  for (Dtype type : {Dtype::f32, Dtype::bf16}) {
    Graph graph(1);
    graph.matmul_type = type;
    const Tensor x = graph.input({2, 5, 64}), w = graph.input({64, 256}), v = graph.input({256, 64});
    const Tensor bias = graph.input({256}), ids = graph.input({3}, Dtype::i32);
    uint32_t seed = 0;
    for (Tensor t : {x, w, v, bias}) fill(t, ++seed);
    ids.set({9, 0, 3});
    const Tensor all = matmul(x, w);                                 // whole: see below
    const Tensor mixed = x + reshape(mean(all, {1, 2}), {2, 1, 1});  // of other rows, too
    const Tensor y = layer_norm(mixed + matmul(gelu(matmul(mixed, w) + bias), v), 1e-5);
    const Tensor rows = only_rows(y, ids), same = gather(reshape(y, {-1, 64}), ids);
    EXPECT_EQ(rows.shape(), (Shape{3, 64}));
    EXPECT_EQ(rows.value(), same.value());
    const double one = 2 * 64 * 256;  // of a row, in one product
    EXPECT_EQ(Plan({same}).flops(), 3 * 10 * one);
    EXPECT_EQ(Plan({rows}).flops(), (10 + 2 * 3) * one);
    EXPECT_EQ(Plan({only_rows(x, ids)}).flops(), 0);  // there is nothing to leave out
  }
}

}  // namespace
}  // namespace dense
