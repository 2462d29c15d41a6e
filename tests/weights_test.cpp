// Parameters: new ones are a function of seed and name, those of a checkpoint are found under any spelling or named.
#include "dense/tensor/weights.h"

#include <gtest/gtest.h>

#include <bit>

#include "tests/arrays.h"
#include "tests/errors.h"

namespace dense {
namespace {

std::vector<float> values(const Parameter& p) {
  const auto* data = reinterpret_cast<const float*>(p.memory.data);
  return {data, data + count_of(p.shape)};
}

Parameter stored(const std::string& name, const Shape& shape, float value = 1, Dtype dtype = Dtype::f32) {
  Parameter p{name, dtype, shape, zero_memory(size_t(count_of(shape)) * size_of(dtype)), false, {}};
  for (int64_t i = 0; i < count_of(shape); ++i) {
    const auto bits = std::bit_cast<uint32_t>(value);
    if (dtype == Dtype::f32) std::memcpy(p.memory.data + i * 4, &value, 4);
    else std::memcpy(p.memory.data + i * 2, reinterpret_cast<const std::byte*>(&bits) + 2, 2);  // bf16
  }
  return p;
}

TEST(Weights, NewValuesDependOnSeedNameAndShapeAlone) {
  Parameters a(7), b(7, "transformer"), c(8);
  const std::vector<float> first = values(a.declare("h.0.w", {50, 40}, normal(0.02)));
  b.declare("other", {3}, normal(1));  // whatever came before
  b.declare("h.0.v", {5}, ones);
  EXPECT_TRUE(same_bits(values(b.declare("h.0.w", {50, 40}, normal(0.02))), first));
  EXPECT_FALSE(same_bits(values(a.declare("h.0.x", {50, 40}, normal(0.02))), first));
  EXPECT_FALSE(same_bits(values(a.declare("h.1.w", {50, 40}, normal(0.02))), first));
  EXPECT_FALSE(same_bits(values(c.declare("h.0.w", {50, 40}, normal(0.02))), first));
  std::vector<float> twice = first;  // the deviation is a factor
  for (float& v : twice) v *= 2;
  Parameters d(7);
  expect_near(
      {twice.begin(), twice.end()},
      [&] {
        const std::vector<float> v = values(d.declare("h.0.w", {50, 40}, normal(0.04)));
        return std::vector<double>(v.begin(), v.end());
      }(),
      1e-7, "twice");
  Graph graph(1);
  EXPECT_TRUE(same_bits(Weights(graph, a)["h"][0]("w", {50, 40}, normal(0.02)).value(), first));
}

TEST(Weights, NormalValuesHaveTheMomentsOfTheirDistributionAndNoPatterns) {
  std::vector<float> before;  // of another name
  for (const char* name : {"a", "b", "wte.weight", "h.0.attn.c_attn.weight"}) {
    for (const Shape& shape : {Shape{1000, 300}, {300'000}}) {
      Parameters parameters(3);
      const std::vector<float> x = values(parameters.declare(name, shape, normal(0.5)));
      const auto n = double(x.size());
      double moments[5] = {}, most = 0, neighbours = 0, below = 0, together = 0;
      for (size_t i = 0; i < x.size(); ++i) {
        const double v = x[i] / 0.5;
        ASSERT_TRUE(std::isfinite(v));
        for (int k = 1; k <= 4; ++k) moments[k] += std::pow(v, k) / n;
        most = std::max(most, std::abs(v));
        below += v < -1;
        if (i) neighbours += v * x[i - 1] / 0.5 / n;
        if (!before.empty()) together += v * before[i] / 0.5 / n;
      }
      EXPECT_NEAR(moments[1], 0, 0.01);
      EXPECT_NEAR(moments[2], 1, 0.012);
      EXPECT_NEAR(moments[3], 0, 0.03);
      EXPECT_NEAR(moments[4], 3, 0.08);
      EXPECT_NEAR(below / n, 0.158655, 0.003);
      EXPECT_NEAR(neighbours, 0, 0.01);
      EXPECT_NEAR(together, 0, 0.01);
      EXPECT_GT(most, 3.9);
      EXPECT_LT(most, 7);
      if (shape.size() == 1) before = x;
    }
  }
  Parameters parameters;
  EXPECT_EQ(values(parameters.declare("zeros", {3}, zeros)), std::vector<float>(3, 0));
  EXPECT_EQ(values(parameters.declare("ones", {3}, ones)), std::vector<float>(3, 1));
}

TEST(Weights, ASecondUseIsTheSameTensorAndMustHaveTheSameShape) {
  Parameters parameters;
  Graph graph(1), other(1);
  const Weights w(graph, parameters, "a");
  const Tensor first = w["b"][3]("weight", {2, 3}, normal(1));
  EXPECT_EQ(first.node().name, "a.b.3.weight");
  EXPECT_EQ(w("b.3.weight", {2, 3}, zeros).id(), first.id());
  EXPECT_EQ(error_of([&] { w["b"][3]("weight", {3, 2}, normal(1)); }), "a.b.3.weight: expected (3, 2), got (2, 3)");
  EXPECT_EQ(error_of([&] { w["b"][3]("weight", {6}, normal(1)); }), "a.b.3.weight: expected (6), got (2, 3)");
  // graphs share memory: what one assigns the other reads
  const Tensor elsewhere = Weights(other, parameters)("a.b.3.weight", {2, 3}, zeros);
  Plan plan({assign(first, first * 0 + 5)});
  plan.run();
  EXPECT_EQ(elsewhere.value(), std::vector<float>(6, 5));
  EXPECT_EQ(parameters.count(), 6);
}

TEST(Weights, WhatDoesNotFitACheckpointIsNamedInOneLineWithExpectedAndGot) {
  Parameters parameters(1, "base");
  parameters.load(stored("base.a", {2, 3}));
  parameters.load(stored("base.b", {3}));
  parameters.load(stored("base.left", {4, 5}));
  parameters.load(stored("over", {}));
  parameters.load(stored("base.h.0.attn.bias", {1, 1, 8, 8}));
  parameters.declare("base.a", {2, 3}, normal(1));
  parameters.declare("base.b", {4}, zeros);
  parameters.declare("base.c", {7, 1}, ones);
  parameters.declare("base.d", {2}, ones);
  const std::string inert[] = {"attn.bias"};
  EXPECT_EQ(error_of([&] { parameters.check(inert); }),
            "base.b: expected (4), got (3); base.c: expected (7, 1), missing; base.d: expected (2), missing; "
            "base.left (4, 5): expected no such tensor; over (): expected no such tensor");
  EXPECT_NE(error_of([&] { parameters.check(); }).find("base.h.0.attn.bias (1, 1, 8, 8): expected no such tensor"),
            std::string::npos);
}

TEST(Weights, ACheckpointThatFitsIsTakenAsItIs) {
  Parameters parameters(1, "base");
  EXPECT_FALSE(parameters.loaded());
  parameters.load(stored("base.a", {2, 3}, 3));
  EXPECT_TRUE(parameters.loaded());
  parameters.declare("base.a", {2, 3}, normal(1));
  EXPECT_EQ(error_of([&] { parameters.check(); }), "no error");
  EXPECT_EQ(values(parameters.all().at("base.a")), std::vector<float>(6, 3));
  EXPECT_EQ(error_of([&] { parameters.load(stored("base.a", {1})); }),
            "base.a: expected one tensor of this name, got two");
}

TEST(Weights, OlderSpellingsOfTheHubAreUnderstoodAndKept) {
  const std::pair<const char*, const char*> spellings[] = {
      {"base.ln.weight", "base.ln.weight"}, {"ln.weight", "base.ln.weight"},  {"base.ln.gamma", "base.ln.weight"},
      {"ln.gamma", "base.ln.weight"},       {"base.ln.bias", "base.ln.bias"}, {"ln.bias", "base.ln.bias"},
      {"base.ln.beta", "base.ln.bias"},     {"ln.beta", "base.ln.bias"}};
  for (const auto& [in_file, name] : spellings) {
    Parameters parameters(1, "base");
    parameters.load(stored(in_file, {2}, 4));
    EXPECT_EQ(values(parameters.declare(name, {2}, zeros)), std::vector<float>(2, 4)) << in_file;
    EXPECT_EQ(error_of([&] { parameters.check(); }), "no error") << in_file;
    const Parameter& p = parameters.all().at(name);
    EXPECT_EQ(p.name, name);
    EXPECT_EQ(p.stored.empty() ? p.name : p.stored, in_file);
  }
}

TEST(Weights, TheRightSpellingGoesFirstAndTheOtherIsSurplus) {
  Parameters parameters(1, "base");
  parameters.load(stored("base.w", {1}, 1));
  parameters.load(stored("w", {1}, 2));
  parameters.load(stored("baseless.w", {1}, 3));
  parameters.load(stored("x.weighted", {1}, 3));
  EXPECT_EQ(values(parameters.declare("base.w", {1}, zeros))[0], 1);
  EXPECT_EQ(values(parameters.declare("baseless.w", {1}, zeros))[0], 3);
  EXPECT_EQ(error_of([&] { parameters.check(); }),
            "w (1): expected no such tensor; x.weighted (1): expected no such tensor");
  Parameters none(1);  // without a base no prefix is left out
  none.load(stored("w", {1}, 2));
  none.declare("base.w", {1}, zeros);
  EXPECT_EQ(error_of([&] { none.check(); }), "base.w: expected (1), missing; w (1): expected no such tensor");
}

TEST(Weights, WideningKeepsValuesAndShapes) {
  Parameters parameters(1);
  parameters.load(stored("a", {3, 5}, -1.5f, Dtype::bf16));
  parameters.load(stored("b", {3}, 2.5f));
  parameters.load(stored("inert", {3}, 2.5f, Dtype::bf16));
  parameters.declare("a", {3, 5}, zeros);
  parameters.declare("b", {3}, zeros);
  const std::byte* b = parameters.all().at("b").memory.data;
  parameters.widen();
  EXPECT_EQ(parameters.all().at("a").dtype, Dtype::f32);
  EXPECT_EQ(values(parameters.all().at("a")), std::vector<float>(15, -1.5f));
  EXPECT_EQ(parameters.all().at("b").memory.data, b);
  EXPECT_EQ(parameters.all().at("inert").dtype, Dtype::bf16);
  EXPECT_EQ(parameters.count(), 18);
  std::string names;
  for (const Parameter* p : parameters.declared()) names += p->name + " ";
  EXPECT_EQ(names, "a b ");
}

}  // namespace
}  // namespace dense
