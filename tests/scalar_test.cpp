// The scalar tape: what it computes, its derivatives, the order of its sums, and what it refuses.
#include <gtest/gtest.h>

#include <bit>
#include <complex>
#include <cstdlib>
#include <functional>
#include <limits>
#include <numbers>
#include <random>
#include <set>
#include <thread>

#include "dense/dense.h"
#include "tests/allocations.h"
#include "tests/errors.h"
#include "tests/micrograd.h"
#include "tests/programs.h"

namespace {

using dense::Program;
using dense::Tape;
using dense::Var;

constexpr double inf = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();

struct Outcome {
  Numbers values, grads;
};

// Records f on one input per number of x, then runs it and its gradient.
Outcome outcome(const std::function<Var(const Row&)>& f, const Numbers& x) {
  Tape tape;
  Row in;
  for (size_t i = 0; i < x.size(); ++i) in.push_back(tape.input());
  const Program program = tape.compile({f(in)}, in);
  Outcome result{Numbers(1), Numbers(x.size())};
  program.run({.inputs = x, .values = result.values, .grads = result.grads});
  return result;
}

using Complex = std::complex<double>;

// A function on the tape, the same in C, the same for complex numbers (complex-step derivatives: Squire & Trapp 1998) or
// its derivatives, and points away from kinks and poles.
struct Case {
  const char* name;
  std::function<Var(const Row&)> tape;
  std::function<double(const Numbers&)> value;
  std::function<Complex(const std::vector<Complex>&)> analytic;
  std::function<Numbers(const Numbers&)> derivatives;
  std::vector<Numbers> points;
};

double logistic(double x) { return 1 / (1 + std::exp(-x)); }

const std::vector<Numbers> line = {{-3.5}, {-1}, {-0.25}, {0.125}, {0.7}, {2}, {4.5}};
const std::vector<Numbers> positive = {{1e-3}, {0.3}, {1}, {2.5}, {40}};
const std::vector<Numbers> pairs = {{-2.5, 1.5}, {0.3, -4}, {3, 7}, {1.25, 0.5}, {-1, -6}};

// clang-format off
const std::vector<Case> cases = {
  {"add", [](const Row& x) { return x[0] + x[1]; }, [](const Numbers& x) { return x[0] + x[1]; }, [](const auto& x) { return x[0] + x[1]; }, nullptr, pairs},
  {"sub", [](const Row& x) { return x[0] - x[1]; }, [](const Numbers& x) { return x[0] - x[1]; }, [](const auto& x) { return x[0] - x[1]; }, nullptr, pairs},
  {"mul", [](const Row& x) { return x[0] * x[1]; }, [](const Numbers& x) { return x[0] * x[1]; }, [](const auto& x) { return x[0] * x[1]; }, nullptr, pairs},
  {"div", [](const Row& x) { return x[0] / x[1]; }, [](const Numbers& x) { return x[0] / x[1]; }, [](const auto& x) { return x[0] / x[1]; }, nullptr, pairs},
  {"neg", [](const Row& x) { return -x[0]; }, [](const Numbers& x) { return -x[0]; }, [](const auto& x) { return -x[0]; }, nullptr, line},
  {"pow", [](const Row& x) { return pow(x[0], x[1]); }, [](const Numbers& x) { return std::pow(x[0], x[1]); }, [](const auto& x) { return std::pow(x[0], x[1]); }, nullptr, {{0.3, 2.5}, {2, -1.5}, {7, 0.1}, {1.5, 3}}},
  {"pow of a constant exponent", [](const Row& x) { return pow(x[0], -1.5); }, [](const Numbers& x) { return std::pow(x[0], -1.5); }, [](const auto& x) { return std::pow(x[0], -1.5); }, nullptr, positive},
  {"square", [](const Row& x) { return pow(x[0], 2); }, nullptr, [](const auto& x) { return x[0] * x[0]; }, nullptr, line},
  {"root", [](const Row& x) { return pow(x[0], 0.5); }, nullptr, [](const auto& x) { return std::sqrt(x[0]); }, nullptr, positive},
  {"reciprocal", [](const Row& x) { return pow(x[0], -1); }, nullptr, [](const auto& x) { return 1.0 / x[0]; }, nullptr, line},
  {"exp", [](const Row& x) { return exp(x[0]); }, [](const Numbers& x) { return std::exp(x[0]); }, [](const auto& x) { return std::exp(x[0]); }, nullptr, line},
  {"log", [](const Row& x) { return log(x[0]); }, [](const Numbers& x) { return std::log(x[0]); }, [](const auto& x) { return std::log(x[0]); }, nullptr, positive},
  {"log1p", [](const Row& x) { return log1p(x[0]); }, [](const Numbers& x) { return std::log1p(x[0]); }, [](const auto& x) { return std::log(1.0 + x[0]); }, nullptr, positive},
  {"expm1", [](const Row& x) { return expm1(x[0]); }, [](const Numbers& x) { return std::expm1(x[0]); }, [](const auto& x) { return std::exp(x[0]) - 1.0; }, nullptr, line},
  {"sqrt", [](const Row& x) { return sqrt(x[0]); }, [](const Numbers& x) { return std::sqrt(x[0]); }, [](const auto& x) { return std::sqrt(x[0]); }, nullptr, positive},
  {"rsqrt", [](const Row& x) { return rsqrt(x[0]); }, [](const Numbers& x) { return 1 / std::sqrt(x[0]); }, [](const auto& x) { return 1.0 / std::sqrt(x[0]); }, nullptr, positive},
  {"tanh", [](const Row& x) { return tanh(x[0]); }, [](const Numbers& x) { return std::tanh(x[0]); }, [](const auto& x) { return std::tanh(x[0]); }, nullptr, line},
  {"sigmoid", [](const Row& x) { return sigmoid(x[0]); }, [](const Numbers& x) { return logistic(x[0]); }, [](const auto& x) { return 1.0 / (1.0 + std::exp(-x[0])); }, nullptr, line},
  {"softplus", [](const Row& x) { return softplus(x[0]); }, [](const Numbers& x) { return std::log1p(std::exp(-std::abs(x[0]))) + std::max(x[0], 0.0); }, [](const auto& x) { return std::log(1.0 + std::exp(x[0])); }, nullptr, line},
  {"erf", [](const Row& x) { return erf(x[0]); }, [](const Numbers& x) { return std::erf(x[0]); }, nullptr, [](const Numbers& x) { return Numbers{2 / std::sqrt(std::numbers::pi) * std::exp(-x[0] * x[0])}; }, line},
  {"sin", [](const Row& x) { return sin(x[0]); }, [](const Numbers& x) { return std::sin(x[0]); }, [](const auto& x) { return std::sin(x[0]); }, nullptr, line},
  {"cos", [](const Row& x) { return cos(x[0]); }, [](const Numbers& x) { return std::cos(x[0]); }, [](const auto& x) { return std::cos(x[0]); }, nullptr, line},
  {"abs", [](const Row& x) { return abs(x[0]); }, [](const Numbers& x) { return std::abs(x[0]); }, nullptr, [](const Numbers& x) { return Numbers{x[0] > 0 ? 1.0 : -1.0}; }, line},
  {"relu", [](const Row& x) { return relu(x[0]); }, [](const Numbers& x) { return x[0] > 0 ? x[0] : 0; }, nullptr, [](const Numbers& x) { return Numbers{x[0] > 0 ? 1.0 : 0.0}; }, line},
  {"min", [](const Row& x) { return min(x[0], x[1]); }, [](const Numbers& x) { return std::min(x[0], x[1]); }, nullptr, [](const Numbers& x) { return x[0] < x[1] ? Numbers{1, 0} : Numbers{0, 1}; }, pairs},
  {"max", [](const Row& x) { return max(x[0], x[1]); }, [](const Numbers& x) { return std::max(x[0], x[1]); }, nullptr, [](const Numbers& x) { return x[0] > x[1] ? Numbers{1, 0} : Numbers{0, 1}; }, pairs},
  {"less", [](const Row& x) { return x[0] < x[1]; }, [](const Numbers& x) { return double(x[0] < x[1]); }, nullptr, [](const Numbers&) { return Numbers{0, 0}; }, pairs},
  {"greater", [](const Row& x) { return x[0] > x[1]; }, [](const Numbers& x) { return double(x[0] > x[1]); }, nullptr, [](const Numbers&) { return Numbers{0, 0}; }, pairs},
  {"less_equal", [](const Row& x) { return x[0] <= x[1]; }, [](const Numbers& x) { return double(x[0] <= x[1]); }, nullptr, [](const Numbers&) { return Numbers{0, 0}; }, pairs},
  {"greater_equal", [](const Row& x) { return x[0] >= x[1]; }, [](const Numbers& x) { return double(x[0] >= x[1]); }, nullptr, [](const Numbers&) { return Numbers{0, 0}; }, pairs},
  {"equal", [](const Row& x) { return equal(x[0], x[1]); }, [](const Numbers& x) { return double(x[0] == x[1]); }, nullptr, [](const Numbers&) { return Numbers{0, 0}; }, pairs},
  {"where", [](const Row& x) { return where(x[0] > 0, x[0] * x[1], x[1]); }, [](const Numbers& x) { return x[0] > 0 ? x[0] * x[1] : x[1]; }, nullptr, [](const Numbers& x) { return x[0] > 0 ? Numbers{x[1], x[0]} : Numbers{0, 1}; }, pairs},
  {"sum", [](const Row& x) { return sum(x); }, [](const Numbers& x) { return 0 + x[0] + x[1] + x[2]; }, [](const auto& x) { return x[0] + x[1] + x[2]; }, nullptr, {{1e-9, 3, -0.1}, {1, 2, 3}}},
  {"dot", [](const Row& x) { return dot(Row{x[0], x[1]}, Row{x[2], x[0]}); }, [](const Numbers& x) { return 0 + x[0] * x[2] + x[1] * x[0]; }, [](const auto& x) { return x[0] * x[2] + x[1] * x[0]; }, nullptr, {{1e-9, 3, -0.1}, {1, 2, 3}}},
  {"at", [](const Row& x) { return at(Row{x[0], x[1] * x[1], x[0] * x[1]}, 1 + (x[0] > 0)); }, [](const Numbers& x) { return x[0] > 0 ? x[0] * x[1] : x[1] * x[1]; }, nullptr, [](const Numbers& x) { return x[0] > 0 ? Numbers{x[1], x[0]} : Numbers{0, 2 * x[1]}; }, pairs},
  {"softmax", [](const Row& x) { return softmax(x)[1]; }, nullptr, [](const auto& x) { return std::exp(x[1]) / (std::exp(x[0]) + std::exp(x[1]) + std::exp(x[2])); }, nullptr, {{1, 2, 3}, {0, 0, 0}, {-5, 1, -2}}},
  {"log of softmax, twice the same", [](const Row& x) { const Row p = softmax(x); return log(p[0]) * p[1] + p[0]; }, nullptr,
   [](const auto& x) { const Complex e = std::exp(x[0]) + std::exp(x[1]), p = std::exp(x[0]) / e, q = std::exp(x[1]) / e; return std::log(p) * q + p; }, nullptr, pairs},
};
// clang-format on

TEST(Rules, ComputeWhatCComputes) {
  for (const Case& c : cases) {
    if (!c.value) continue;
    for (const Numbers& x : c.points)
      EXPECT_TRUE(same_bits(outcome(c.tape, x).values, {c.value(x)})) << c.name << " at " << x[0];
  }
}

TEST(Rules, DerivativesAgreeWithFiniteDifferences) {
  for (const Case& c : cases)
    for (const Numbers& x : c.points) {
      const Outcome got = outcome(c.tape, x);
      for (size_t i = 0; i < x.size(); ++i) {
        const auto f = [&](double h) {
          Numbers moved = x;
          moved[i] += h;
          return outcome(c.tape, moved).values[0];
        };
        const double h = 1e-3 * (x[i] == 0 ? 1 : std::abs(x[i]));  // a five-point stencil: its error falls with h ** 4
        const double want = (8 * (f(h) - f(-h)) - (f(2 * h) - f(-2 * h))) / (12 * h);
        const double scale = x[i] == 0 ? 0 : std::abs(got.values[0] / x[i]);
        EXPECT_NEAR(got.grads[i], want, 1e-8 * std::max({1.0, std::abs(want), scale}))
            << c.name << " at " << x[0] << ", operand " << i;
      }
    }
}

TEST(Rules, DerivativesAgreeWithASecondFormula) {
  for (const Case& c : cases) {
    ASSERT_TRUE(c.analytic || c.derivatives) << c.name;
    for (const Numbers& x : c.points) {
      const Outcome got = outcome(c.tape, x);
      for (size_t i = 0; i < x.size(); ++i) {
        double want;
        if (c.derivatives) {
          want = c.derivatives(x)[i];
        } else {
          std::vector<Complex> z(x.begin(), x.end());
          z[i] += Complex(0, 1e-100);
          want = c.analytic(z).imag() / 1e-100;
        }
        EXPECT_NEAR(got.grads[i], want, 4e-15 * std::max(1.0, std::abs(want)))
            << c.name << " at " << x[0] << ", operand " << i;
      }
    }
  }
}

TEST(Rules, NumbersAloneAreComputedAtOnce) {
  EXPECT_EQ(exp(Var(1)).number(), std::exp(1.0));
  EXPECT_EQ((Var(3) - 5).number(), -2);
  EXPECT_EQ(dot(Row{1, 2}, Row{3, 4}).number(), 11);
  EXPECT_EQ(at(Row{5, 6, 7}, 2).number(), 7);
  EXPECT_EQ(softmax(Row{4, 4})[1].number(), 0.5);
}

TEST(Rules, TheFirstOfEqualsTakesTheDerivative) {
  EXPECT_TRUE(same_bits(outcome([](const Row& x) { return max(x[0], x[1]); }, {2, 2}).grads, {1, 0}));
  EXPECT_TRUE(same_bits(outcome([](const Row& x) { return min(x[0], x[1]); }, {2, 2}).grads, {1, 0}));
  EXPECT_TRUE(same_bits(outcome([](const Row& x) { return abs(x[0]) + relu(x[0]); }, {0}).grads, {0}));
  EXPECT_TRUE(same_bits(outcome([](const Row& x) { return pow(x[0], x[1]); }, {0, 2}).grads, {0, 0}));
  EXPECT_TRUE(same_bits(outcome([](const Row& x) { return pow(x[0], 0); }, {0}).grads, {0}));
}

TEST(Rules, EachHasACase) {
  std::set<dense::Op> seen;
  for (const Case& c : cases) {
    Tape tape;
    Row in;
    for (size_t i = 0; i < c.points[0].size(); ++i) in.push_back(tape.input());
    c.tape(in);
    for (const dense::Node& node : tape.nodes()) seen.insert(node.op);
  }
  for (int op = 0; op < int(dense::Op::peak); ++op)
    EXPECT_TRUE(seen.contains(dense::Op(op)) || op == int(dense::Op::shared)) << op;
  EXPECT_TRUE(seen.contains(dense::Op::softmax));
}

TEST(Exact, SpecialValuesAreC) {
  const Numbers specials = {
      0.0,    -0.0,  1,    -1,  inf, -inf, nan, 5e-324, -5e-324, 2.2250738585072014e-308, 1.7976931348623157e308,
      1e-200, 1e200, -3.5, 0.5, 2};
  const std::vector<std::pair<std::function<Var(Var)>, std::function<double(double)>>> functions = {
      {[](Var x) { return exp(x); }, [](double x) { return std::exp(x); }},
      {[](Var x) { return log(x); }, [](double x) { return std::log(x); }},
      {[](Var x) { return sqrt(x); }, [](double x) { return std::sqrt(x); }},
      {[](Var x) { return tanh(x); }, [](double x) { return std::tanh(x); }},
      {[](Var x) { return relu(x); }, [](double x) { return x > 0 ? x : 0.0; }},
      {[](Var x) { return abs(x); }, [](double x) { return std::abs(x); }},
      {[](Var x) { return -x; }, [](double x) { return -x; }},
      {[](Var x) { return 1 / x; }, [](double x) { return 1 / x; }},
      {[](Var x) { return x < 0.5; }, [](double x) { return double(x < 0.5); }},
      {[](Var x) { return where(x, x, 7); }, [](double x) { return x != 0 ? x : 7; }},
      {[](Var x) { return min(x, 0); }, [](double x) { return std::min(x, 0.0); }},
      {[](Var x) { return max(-0.0, x); }, [](double x) { return std::max(-0.0, x); }},
  };
  for (const char* name : isas()) {
    const Isa isa(name);
    for (size_t f = 0; f < functions.size(); ++f) {
      Tape tape;
      const Program program = tape.compile({functions[f].first(tape.input())});
      Numbers got(specials.size()), want;
      for (double x : specials) want.push_back(functions[f].second(x));
      program.run({.inputs = specials, .values = got, .lanes = int(specials.size())});
      EXPECT_TRUE(same_bits(got, want)) << "function " << f << ", " << name;
    }
  }
}

// x * x, sqrt(x) and 1 / x stand in for C's pow where they are sure to be equal to it.
TEST(Exact, PowersAreThoseOfC) {
  std::mt19937_64 random(1);
  Numbers x;
  for (int i = 0; i < fuzz_rounds(200'000); ++i) {
    const auto exponent = std::uniform_int_distribution(-60, 60)(random);
    x.push_back(std::ldexp(1 + double(random() >> 12) * 0x1p-52, i % 10 ? exponent : 17 * exponent) * (i % 3 ? 1 : -1));
  }
  for (double special : {0.0, -0.0, inf, -inf, nan, 5e-324, 1e-310, 1e308, 0.25, 1.0, 0x1p-1022, 0x1.fffffffffffffp-1})
    x.push_back(special);
  for (const double e : {2.0, 0.5, -1.0, -2.0, -0.5, -1.5, 3.0, 1.0}) {
    Numbers want;
    const volatile double unseen = e;
    for (double v : x) want.push_back(std::pow(v, unseen));
    for (const char* name : isas()) {
      const Isa isa(name);
      Tape tape;
      const Program program = tape.compile({pow(tape.input(), e)});
      Numbers got(x.size());
      program.run({.inputs = x, .values = got, .lanes = int(x.size())});
      EXPECT_TRUE(same_bits(got, want)) << "exponent " << e << ", " << name;
    }
  }
}

// So does a vector exponential.
TEST(Exact, ExponentialsAreThoseOfC) {
  std::mt19937_64 random(3);
  Numbers x;
  for (int i = 0; i < fuzz_rounds(400'000); ++i) {
    const double unit = double(random() >> 11) * 0x1p-53;
    x.push_back(i % 4 == 0 ? 1500 * unit - 760 : i % 4 == 1 ? 2 * unit - 1 : -40 * unit);
    if (i % 4 == 3) x.back() = std::ldexp(unit, -int(random() % 70)) * (i % 8 == 3 ? 1 : -1);
  }
  for (double special : {0.0, -0.0, inf, -inf, nan, 5e-324, -1e-310, 709.782712893384, 709.782712893385, -708.4,
                         -745.13, -745.14, 700.0, -700.0})
    x.push_back(special);
  Numbers want;
  for (double v : x) want.push_back(std::exp(v));
  for (const char* name : isas()) {
    const Isa isa(name);
    Tape tape;
    const Program program = tape.compile({exp(tape.input())});
    Numbers got(x.size());
    program.run({.inputs = x, .values = got, .lanes = int(x.size())});
    EXPECT_TRUE(same_bits(got, want)) << name;
  }
}

// Where the true power is almost halfway between two neighbours, C's pow takes the wrong one.
TEST(Exact, PowersAreThoseOfCWhereItRoundsWrongly) {
  const std::vector<std::pair<double, Numbers>> known = {{2, {0x1.f9e4c971ffc45p-22, 0x1.53bf8944f0b6dp+26}},
                                                         {0.5, {0x1.e2515c99ae359p+71, 0x1.ba4d2f3d7275cp-117}},
                                                         {-1, {0x1.1819a559ab06ep-16, 0x1.17faaffc62503p+39}}};
  for (const auto& [exponent, xs] : known)
    for (double x : xs) {
      const volatile double unseen = exponent;
      const double e = exponent;
      EXPECT_TRUE(same_bits(outcome([e](const Row& in) { return pow(in[0], e); }, {x}).values, {std::pow(x, unseen)}))
          << x;
    }
}

TEST(Exact, QuotientsByOneNumberAreCorrectlyRounded) {
  std::mt19937_64 random(2);
  Numbers x = {0.0, -0.0, inf, -inf, nan, 5e-324, -1e-310, 1.7976931348623157e308, 0x1p-1022};
  for (int i = 0; i < fuzz_rounds(2'000); ++i)
    x.push_back(std::ldexp((random() % 2 ? 1 : -1) * (1 + double(random() >> 12) * 0x1p-52),
                           std::uniform_int_distribution(-3, 3)(random)));
  for (double v : {0x1p-900, -0x1p900, 3e-250, 7e290, 8e307, 0x1.8p-1000}) x.push_back(v);
  for (size_t i = 16; i < 100; i += 8) x[i] = i % 16 ? 0.0 : -0.0;  // among numbers that are divided the fast way
  Numbers divisors = {1,   -3, 0.1, 0x1.fffffffffffffp0, 0x1.0000000000001p0, 1e-40, 0.01, -1e300, 1e200, 1e-200,
                      inf, 0,  nan};
  for (int i = 0; i < 100; ++i)
    divisors.push_back(1 - std::pow(0.99, i + 1)), divisors.push_back(1 + double(random() >> 12) * 0x1p-52);
  for (const char* name : isas()) {
    const Isa isa(name);
    Tape tape;
    const Program program = tape.compile({tape.input() / tape.shared()});
    for (double divisor : divisors) {
      Numbers got(x.size()), want;
      for (double v : x) want.push_back(v / divisor);
      program.run({.inputs = x, .shared = {&divisor, 1}, .values = got, .lanes = int(x.size())});
      ASSERT_TRUE(same_bits(got, want)) << "divided by " << divisor << ", " << name;
    }
  }
}

// Random arithmetic on the tape and on micrograd's Values, with results read many times and in nested ways.
struct Twins {
  Tape tape;
  micrograd::Value::Arena arena;
  Row vars, inputs;
  std::vector<micrograd::Value> values;
  Numbers x;

  // With `deep`, many operations on the last few results: a graph that runs as a stream.
  explicit Twins(uint64_t seed, bool deep = false) {
    std::mt19937_64 random(seed);
    const auto below = [&](size_t n) { return size_t(random() % n); };
    const auto any = [&] { return deep && vars.size() > 12 ? vars.size() - 1 - below(12) : below(vars.size()); };
    const size_t n = 2 + below(8), operations = deep ? 1500 : 1 + below(120);
    for (size_t i = 0; i < n; ++i) {
      x.push_back(std::ldexp(double(random() >> 11), -53) * 2 + 0.01);
      add(below(3) ? tape.input() : tape.shared(x.back()), {arena, x.back()});
      inputs.push_back(vars.back());
    }
    for (size_t i = 0; i < operations; ++i) {
      const size_t a = any(), b = any();
      switch (below(12)) {
        case 0: add(vars[a] + vars[b], values[a] + values[b]); break;
        case 1: add(vars[a] - vars[b], values[a] - values[b]); break;
        case 2: add(vars[a] * vars[b], values[a] * values[b]); break;
        case 3: add(tanh(vars[a]), values[a].tanh()); break;
        case 4: add(relu(vars[a]), values[a].relu()); break;
        case 5: add(exp(tanh(vars[a])), values[a].tanh().exp()); break;
        case 6: {
          const double e = Numbers{2, 0.5, -1, -1.5, 3}[below(5)];  // of a number at least 1
          const auto base = values[b] * values[b] + values[b].number(1);
          add(pow(vars[b] * vars[b] + 1, e), base.pow(e));
          break;
        }
        case 7: add(log(vars[a] * vars[a] + 0.5), (values[a] * values[a] + values[a].number(0.5)).log()); break;
        default: {
          Row v, w;
          std::vector<micrograd::Value> p, q;
          for (size_t k = 1 + below(6); k > 0; --k) {
            const size_t i1 = any(), i2 = any();
            v.push_back(vars[i1]), w.push_back(vars[i2]), p.push_back(values[i1]), q.push_back(values[i2]);
          }
          if (const size_t kind = below(3); kind == 0) {
            add(sum(v), micrograd::Value::sum(p));
          } else if (kind == 1) {
            add(dot(v, w), micrograd::Value::dot(p, q));
          } else {
            for (Var& one : v) one = tanh(one);
            for (auto& one : p) one = one.tanh();
            const Row y = softmax(v);
            const auto z = micrograd::Value::softmax(p);
            for (size_t k = 0; k < y.size(); ++k) add(y[k], z[k]);
          }
        }
      }
    }
  }
  void add(Var var, micrograd::Value value) { vars.push_back(var), values.push_back(value); }
};

TEST(Exact, RandomGraphsHaveTheBitsOfMicrograd) {
  for (int seed = 0; seed < fuzz_rounds(400); ++seed) {
    Twins twins(seed, seed % 25 == 24);
    twins.values.back().backward();
    Numbers x, shared, want_grads, want_shared;
    for (size_t i = 0; i < twins.inputs.size(); ++i) {
      const bool is_shared = twins.tape.nodes()[twins.inputs[i].id()].op == dense::Op::shared;
      (is_shared ? shared : x).push_back(twins.x[i]);
      (is_shared ? want_shared : want_grads).push_back(twins.values[i].grad());
    }
    for (const char* name : isas()) {
      const Isa isa(name);
      const Program program = twins.tape.compile({twins.vars.back()}, twins.inputs);
      Numbers value(1), grads(x.size()), shared_grads(shared.size());
      program.run({.inputs = x, .shared = shared, .values = value, .grads = grads, .shared_grads = shared_grads});
      EXPECT_TRUE(same_bits(value, {twins.values.back().data()})) << "seed " << seed << ", " << name;
      EXPECT_TRUE(same_bits(grads, want_grads)) << "seed " << seed << ", " << name;
      EXPECT_TRUE(same_bits(shared_grads, want_shared)) << "seed " << seed << ", " << name;
    }
    if (HasFailure()) break;
  }
}

TEST(Exact, LanesHaveTheBitsOfRunsAlone) {
  std::mt19937_64 random(5);
  for (int seed = 0; seed < fuzz_rounds(60); ++seed) {
    Twins twins(seed, seed % 20 == 19);
    const Program program = twins.tape.compile({twins.vars.back()}, twins.inputs);
    const size_t inputs = size_t(twins.tape.inputs()), shared = twins.tape.shared_values().size();
    for (const size_t lanes : {size_t{2}, size_t{3}, size_t{8}, size_t(9 + seed), size_t{513}}) {
      Numbers x(inputs * lanes), values(lanes), grads(inputs * lanes), shared_grads(shared), want_shared(shared, 0.0);
      for (double& v : x) v = std::ldexp(double(random() >> 11), -53);
      program.run({.inputs = x, .values = values, .grads = grads, .shared_grads = shared_grads, .lanes = int(lanes)});
      for (size_t lane = 0; lane < lanes; ++lane) {
        Numbers alone(inputs), value(1), grad(inputs), shared_grad(shared), here(inputs);
        for (size_t i = 0; i < inputs; ++i) alone[i] = x[i * lanes + lane], here[i] = grads[i * lanes + lane];
        program.run({.inputs = alone, .values = value, .grads = grad, .shared_grads = shared_grad});
        ASSERT_TRUE(same_bits(value, {values[lane]})) << "seed " << seed << ", lane " << lane << " of " << lanes;
        ASSERT_TRUE(same_bits(grad, here)) << "seed " << seed << ", lane " << lane << " of " << lanes;
        for (size_t i = 0; i < shared; ++i) want_shared[i] += shared_grad[i];
      }
      ASSERT_TRUE(same_bits(shared_grads, want_shared)) << "seed " << seed << ", " << lanes << " lanes";
    }
  }
}

TEST(Exact, DotsThatReadDotsWaitForThem) {
  constexpr int n = 8;
  Tape tape;
  Row w, x;
  Numbers weights, values, got(n);
  for (int i = 0; i < n * n; ++i) w.push_back(tape.shared(weights.emplace_back(0.1 * (i % 7) - 0.2)));
  for (int i = 0; i < n; ++i) x.push_back(tape.input()), values.push_back(i - 2.5);
  const Numbers inputs = values;
  for (int layer = 0; layer < 3; ++layer) {
    Row y;
    Numbers next;
    for (int i = 0; i < n; ++i) {
      Row column;
      double total = 0;
      for (int k = 0; k < n; ++k) column.push_back(w[k * n + i]), total += weights[k * n + i] * values[k];
      y.push_back(dot(column, x)), next.push_back(total);
    }
    x = y, values = next;
  }
  tape.compile(x).run({.inputs = inputs, .values = got});
  EXPECT_TRUE(same_bits(got, values));
}

TEST(Exact, AChainOfBinarySumsHasTheBitsOfOneSum) {
  const Numbers x = {1e16, 3, -1e16, 0.1, 0.7, -2e-9, 1};
  const auto chain = [](const Row& v) {
    Var total = 0 + v[0] * v[6];
    for (size_t i = 1; i < v.size(); ++i) total = total + v[i] * v[6 - i];
    return total * total;
  };
  const auto at_once = [](const Row& v) {
    const Var total = dot(v, Row(v.rbegin(), v.rend()));
    return total * total;
  };
  EXPECT_TRUE(same_bits(outcome(chain, x).values, outcome(at_once, x).values));
  EXPECT_TRUE(same_bits(outcome(chain, x).grads, outcome(at_once, x).grads));
}

TEST(Programs, SeveralOutputsTakeSeeds) {
  Tape tape;
  const Var x = tape.input(), y = tape.input();
  const Program program = tape.compile({x * y, x * x, Var(3), x}, Row{y, x});
  Numbers values(4), grads(2);
  program.run({.inputs = Numbers{3, 5}, .seeds = Numbers{2, 10, 7, 100}, .values = values, .grads = grads});
  EXPECT_EQ(values, (Numbers{15, 9, 3, 3}));
  EXPECT_EQ(grads, (Numbers{2 * 3, 2 * 5 + 10 * 6 + 100}));
}

TEST(Programs, ManyOutputsCompileInLinearTime) {  // quadratic would take minutes
  Tape tape;
  const Var x = tape.input();
  Row y;
  for (int i = 0; i < 300'000; ++i) y.push_back(x * i);
  const Program program = tape.compile(y, Row{x});
  Numbers grad(1);
  program.run({.inputs = Numbers{1}, .seeds = Numbers(y.size(), 1.0), .grads = grad});
  EXPECT_EQ(grad[0], 300'000.0 * 299'999 / 2);
}

TEST(Programs, InputsThatDoNotMatterHaveGradientZero) {
  Tape tape;
  const Var x = tape.input(), unused = tape.input(), w = tape.shared(2);
  const Program program = tape.compile({x * w}, Row{unused, x});
  Numbers values(1), grads(2, -1);
  program.run({.inputs = Numbers{3, 5}, .values = values, .grads = grads});
  EXPECT_EQ(values, Numbers{6});  // w as recorded
  EXPECT_EQ(grads, (Numbers{0, 2}));
  program.run({.inputs = Numbers{3, 5}, .shared = Numbers{7}, .values = values, .grads = grads});
  EXPECT_EQ(values, Numbers{21});
}

TEST(Programs, ResultsMayTakeThePlaceOfInputs) {
  Tape tape;
  const Var x = tape.input(), y = tape.input();
  const Program program = tape.compile({x + y, x - y});
  constexpr int lanes = 1000;
  Numbers state(2 * lanes);
  for (int i = 0; i < lanes; ++i) state[i] = i, state[lanes + i] = 0.5;
  program.run({.inputs = state, .values = state, .lanes = lanes});
  for (int i = 0; i < lanes; ++i) EXPECT_EQ(state[i] - state[lanes + i], 1.0);
}

TEST(Programs, WhatIsRecordedTwiceRunsOnceAndWhatNobodyReadsNever) {
  Tape tape;
  const Var x = tape.input(), once = exp(x + 1), unread = log(x);
  Row nine, other_nine;
  for (int i = 0; i < 9; ++i) nine.push_back(once), other_nine.push_back(exp(x + (Var(3) - 2)));
  EXPECT_EQ(tape.compile({sum(other_nine)}).bytes(), tape.compile({sum(nine)}).bytes());
  EXPECT_EQ(tape.compile({once}).instructions(), 2);
  EXPECT_EQ(tape.compile({once, unread}).instructions(), 3);
}

TEST(Programs, ARunThatFailedLeavesNothingBehind) {
  Tape tape;
  const Program program = tape.compile({at(Row{5, 6}, tape.input())});
  Numbers values(2);
  EXPECT_NE(error_of([&] { program.run({.inputs = Numbers{0, 1, 7}, .lanes = 3}); }), "no error");
  program.run({.inputs = Numbers{0, 1}, .values = values, .lanes = 2});
  EXPECT_EQ(values, (Numbers{5, 6}));
}

TEST(Programs, RunningAllocatesNothing) {
  Twins twins(3);
  const Program program = twins.tape.compile({twins.vars.back()}, twins.inputs);
  constexpr int lanes = 700;
  const size_t inputs = size_t(twins.tape.inputs());
  Numbers x(inputs * lanes, 0.5), values(lanes), grads(inputs * lanes);
  const auto run = [&](size_t n) {
    program.run({.inputs = std::span(x).first(inputs * n),
                 .values = std::span(values).first(n),
                 .grads = std::span(grads).first(inputs * n),
                 .lanes = int(n)});
  };
  run(lanes);  // the first run with several lanes makes room for them
  const size_t before = allocations();
  for (int i = 0; i < 10; ++i) run(1), run(lanes), run(13);
  EXPECT_EQ(allocations(), before);
  x.resize(x.size() + 1);
  EXPECT_EQ(allocations(), before + 1);  // the count counts
}

TEST(Programs, RunInSeveralThreadsAtOnce) {
  Twins twins(11);
  const Program program = twins.tape.compile({twins.vars.back()}, twins.inputs);
  const size_t inputs = size_t(twins.tape.inputs());
  const auto once = [&](double x) {
    Numbers in(inputs, x), value(1);
    program.run({.inputs = in, .values = value});
    return value[0];
  };
  Numbers want, got[4];
  for (int i = 0; i < 200; ++i) want.push_back(once(i * 0.01));
  std::vector<std::jthread> threads;
  for (Numbers& mine : got)
    threads.emplace_back([&] {
      for (int i = 0; i < 200; ++i) mine.push_back(once(i * 0.01));
    });
  threads.clear();
  for (const Numbers& mine : got) EXPECT_TRUE(same_bits(mine, want));
}

TEST(Programs, AMillionOperationsInAChain) {
  constexpr int n = 1'000'000;
  Tape tape;
  const Var x = tape.input(), w = tape.shared(0.999999);
  Var y = x;
  for (int i = 0; i < n; ++i) y = i % 2 ? y * w : y + x;
  const Program program = tape.compile({y}, Row{x});
  double value = 0.25, slope = 1, got, grad;
  for (int i = 0; i < n; ++i)
    value = i % 2 ? value * 0.999999 : value + 0.25, slope = i % 2 ? slope * 0.999999 : slope + 1;
  program.run({.inputs = Numbers{0.25}, .values = {&got, 1}, .grads = {&grad, 1}});
  EXPECT_EQ(got, value);
  EXPECT_NEAR(grad, slope, 1e-9 * slope);
}

TEST(Errors, AnOperationThatFoundNoMemoryWasNeverRecorded) {
  EXPECT_EQ(outcome(
                [](const Row& x) {
                  fail_next_allocation();
                  EXPECT_THROW(sum(Row(100, x[0])), std::bad_alloc);  // the row itself
                  const Row row(100'000, x[0]);
                  fail_next_allocation();
                  EXPECT_THROW(sum(row), std::bad_alloc);
                  return x[0] + x[1];
                },
                {1, 2})
                .values[0],
            3);
}

TEST(Errors, SayWhatWasExpectedAndWhatCame) {
  Tape tape, other;
  const Var x = tape.input(), y = tape.input(), foreign = other.input();
  EXPECT_EQ(error_of([&] { x + foreign; }), "tape: expected a Var of this tape, got Var 0 of another");
  EXPECT_EQ(outcome(
                [&](const Row& in) {
                  error_of([&] { in[0] + foreign; });
                  return sum(in);
                },
                {1, 2})
                .values[0],
            3);  // no trace of it
  EXPECT_EQ(error_of([&] { dot(Row{x, y}, Row{x}); }), "dot: expected two rows of one length, got 2 and 1");
  EXPECT_EQ(error_of([&] { softmax(Row{}); }), "softmax: expected one operand or more, got none");
  EXPECT_EQ(error_of([&] { at(Row{x, y}, 2); }), "at: expected an index below 2, got 2");
  EXPECT_EQ(error_of([&] { at(Row{x, y}, 0.5); }), "at: expected an index below 2, got 0.5");
  EXPECT_EQ(error_of([&] { tape.compile({}); }), "compile: expected one output or more, got none");
  EXPECT_EQ(error_of([&] { tape.compile({foreign}); }), "compile: expected outputs of this tape, got Var 0 of another");
  EXPECT_EQ(error_of([&] { tape.compile({x}, Row{foreign}); }),
            "compile: wrt: expected inputs of this tape, got a Var of another");
  EXPECT_EQ(error_of([&] { tape.compile({x}, Row{x * y}); }),
            "compile: wrt: expected inputs, got Var 2, the result of mul");

  const Program program = tape.compile({at(Row{x, x + 1}, y)}, Row{x});
  Numbers value(1), grad(1);
  const auto run = [&](const Program::Batch& batch) { return error_of([&] { program.run(batch); }); };
  EXPECT_EQ(run({.inputs = Numbers{1}, .values = value}), "run: inputs: expected 2 numbers (2 x 1 lanes), got 1");
  EXPECT_EQ(run({.inputs = Numbers{1, 1}, .shared = Numbers{1}}),
            "run: shared: expected 0 numbers (0 x 1 lanes), got 1");
  EXPECT_EQ(run({.inputs = Numbers{1, 1, 2, 2}, .values = value, .lanes = 2}),
            "run: values: expected 2 numbers (1 x 2 lanes), got 1");
  EXPECT_EQ(run({.inputs = Numbers{1, 1}, .lanes = -1}), "run: lanes: expected 0 or more, got -1");
  EXPECT_EQ(run({.inputs = Numbers{1, 2}, .values = value}), "at: expected an index below 2, got 2");
  EXPECT_EQ(run({.inputs = Numbers{1, nan}, .values = value}), "at: expected an index below 2, got nan");
  EXPECT_EQ(run({.inputs = Numbers{1, 1}, .values = value, .grads = grad}), "no error");
  EXPECT_EQ(value[0], 2);

  EXPECT_EQ(error_of([&] { record(dense::Op::add, Row{x}); }), "add: expected 2 operands, got 1");
  for (const dense::Op op : {dense::Op::input, dense::Op::softmax, dense::Op::dot, dense::Op::at})
    EXPECT_NE(error_of([&] { record(op, op == dense::Op::input || op == dense::Op::at ? Row{} : Row{x}); }),
              "no error");
  const Isa isa("sse9");
  EXPECT_EQ(error_of([&] { tape.compile({x}); }), "DENSE_ISA: expected avx512, avx2 or portable, got sse9");
}

}  // namespace
