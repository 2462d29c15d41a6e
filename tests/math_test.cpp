// The vector math: its errors, its special values, and that nothing but its arguments matters to a result. It runs on
// every instruction set of this machine, or on the one that DENSE_ISA names.
#ifndef DENSE_TESTS_MATH_TEST_
#define DENSE_TESTS_MATH_TEST_
#include <bit>
#include <cstddef>

enum class Function { exp, expm1, log, log1p, sigmoid, softplus, tanh, erf, sin, cos, pow };
// By its own function, or as one of the two results of softplus_sigmoid and sin_cos.
enum class Way { alone, fused };
#endif

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/math_test.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "dense/scalar/math.h"

HWY_BEFORE_NAMESPACE();
namespace dense {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class D, class V = hn::Vec<D>>
V evaluate(D d, Function function, Way way, V x, V y) {
  const bool alone = way == Way::alone;
  V second = x;
  switch (function) {
    case Function::exp: return math::exp(d, x);
    case Function::expm1: return math::expm1(d, x);
    case Function::log: return math::log(d, x);
    case Function::log1p: return math::log1p(d, x);
    case Function::tanh: return math::tanh(d, x);
    case Function::erf: return math::erf(d, x);
    case Function::pow: return math::pow(d, x, y);
    case Function::softplus: return alone ? math::softplus(d, x) : math::softplus_sigmoid(d, x, second);
    case Function::sin: return alone ? math::sin(d, x) : math::sin_cos(d, x, second);
    case Function::sigmoid: return alone ? math::sigmoid(d, x) : (math::softplus_sigmoid(d, x, second), second);
    case Function::cos: return alone ? math::cos(d, x) : (math::sin_cos(d, x, second), second);
  }
  return x;
}

template <class D, class T = hn::TFromD<D>>
void run_lanes(Function function, Way way, const T* x, const T* y, T* out, size_t count) {
  const D d;
  for (size_t i = 0; i < count; i += hn::Lanes(d))
    hn::StoreU(evaluate(d, function, way, hn::LoadU(d, x + i), hn::LoadU(d, y + i)), d, out + i);
}

// out[i] = function(x[i], y[i]), with 1, 2, 4 or 8 lanes at a time, or for 0 with all. `count` is a multiple of 16.
template <class T>
void run(Function function, Way way, unsigned lanes, const T* x, const T* y, T* out, size_t count) {
  using Run = void (*)(Function, Way, const T*, const T*, T*, size_t);
  constexpr Run runs[] = {run_lanes<hn::ScalableTag<T>>, run_lanes<hn::CappedTag<T, 1>>, run_lanes<hn::CappedTag<T, 2>>,
                          run_lanes<hn::CappedTag<T, 4>>, run_lanes<hn::CappedTag<T, 8>>};
  runs[std::bit_width(lanes)](function, way, x, y, out, count);
}

}  // namespace HWY_NAMESPACE
}  // namespace dense
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <random>
#include <sstream>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

template <class T>
using Numbers = std::vector<T>;
template <class T>
using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
template <class T>
using Limits = std::numeric_limits<T>;

template <class T>
bool same_bits(T a, T b) {  // any NaN is as good
  return std::bit_cast<Bits<T>>(a) == std::bit_cast<Bits<T>>(b) || (std::isnan(a) && std::isnan(b));
}

struct Isa {
  const char* name;
  int64_t target;
  decltype(&dense::HWY_NAMESPACE::run<double>) run_double;
  decltype(&dense::HWY_NAMESPACE::run<float>) run_float;

  template <class T>
  Numbers<T> operator()(Function function, const Numbers<T>& x, const Numbers<T>& y, unsigned lanes = 0,
                        Way way = Way::alone) const {
    Numbers<T> out(x.size());
    if constexpr (sizeof(T) == 8) run_double(function, way, lanes, x.data(), y.data(), out.data(), x.size());
    else run_float(function, way, lanes, x.data(), y.data(), out.data(), x.size());
    return out;
  }
};

std::vector<Isa> isas() {
  const Isa all[] = {
#if HWY_TARGETS & HWY_AVX3
    {"avx512", HWY_AVX3, dense::N_AVX3::run<double>, dense::N_AVX3::run<float>},
#endif
#if HWY_TARGETS & HWY_AVX2
    {"avx2", HWY_AVX2, dense::N_AVX2::run<double>, dense::N_AVX2::run<float>},
#endif
    {"portable", HWY_STATIC_TARGET, dense::HWY_NAMESPACE::run<double>, dense::HWY_NAMESPACE::run<float>},
  };
  const char* asked = std::getenv("DENSE_ISA");
  std::vector<Isa> result;
  for (const Isa& isa : all)
    if ((hwy::SupportedTargets() & isa.target) && (!asked || !*asked || std::string_view(asked) == isa.name))
      result.push_back(isa);
  EXPECT_FALSE(result.empty()) << "DENSE_ISA=" << asked;
  return result;
}

size_t rounds(size_t usual) {  // DENSE_FUZZ_ROUNDS: 20,000 are usual
  const char* asked = std::getenv("DENSE_FUZZ_ROUNDS");
  return asked ? std::max<size_t>(1, size_t(double(usual) * std::atof(asked) / 20'000)) : usual;
}

// A function, the bounds of its error in ulps, its value in C, and where to look closely.
struct Case {
  const char* name;
  Function function;
  double bound, float_bound;
  long double (*exact)(long double, long double);  // for double
  double (*exact_float)(double, double);           // for float
  double step, steps;                              // up to so many multiples of step
  std::vector<std::pair<double, double>> intervals;

  template <class T>
  double bound_on(const Isa& isa) const {
    return (sizeof(T) == 8 ? bound : float_bound) + (isa.target & (HWY_AVX3 | HWY_AVX2) ? 0 : 0.3);  // 0.3: without FMA
  }
  long double value(double x, double y) const { return exact(x, y); }
  double value(float x, float y) const { return exact_float(x, y); }
};

template <class F>
Case make(const char* name, Function function, double bound, double float_bound, F f, double step, double steps,
          std::vector<std::pair<double, double>> intervals) {
  return {name, function, bound, float_bound, f, f, step, steps, std::move(intervals)};
}

template <class R>
R softplus(R x) {
  return std::max(x, R(0)) + std::log1p(std::exp(-std::abs(x)));
}
template <class R>
R sigmoid(R x) {
  return x < 0 ? std::exp(x) / (1 + std::exp(x)) : 1 / (1 + std::exp(-x));
}

const std::vector<Case>& cases() {
  const double ln2 = std::log(2.0), pi = std::acos(-1.0);
  // clang-format off
  static const std::vector<Case> result = {
    make("exp", Function::exp, 1.5, 1.5, [](auto x, auto) { return std::exp(x); }, ln2 / 2, 2200,
         {{-1, 1}, {-100, 90}, {-746, 711}, {-746, -707}, {707, 711}, {-104, -86}, {86, 89}}),
    make("expm1", Function::expm1, 1.5, 1.5, [](auto x, auto) { return std::expm1(x); }, ln2 / 2, 2200,
         {{-1e-3, 1e-3}, {-1, 1}, {-50, 90}, {-746, 711}, {707, 711}, {86, 89}}),
    make("log", Function::log, 1.2, 1.2, [](auto x, auto) { return std::log(x); }, 0.5, 100,
         {{0.5, 2}, {0.99, 1.01}, {0, 100}, {0, 4e-308}, {0, 4e-38}, {1e308, 1.79e308}, {-1, 0}}),
    make("log1p", Function::log1p, 1.5, 1.8, [](auto x, auto) { return std::log1p(x); }, 0.5, 100,
         {{-1, 1}, {-1.01, -0.99}, {-1e-3, 1e-3}, {0, 1e5}, {1e300, 1.79e308}, {1e36, 3.4e38}}),
    make("sigmoid", Function::sigmoid, 2.6, 2.6, [](auto x, auto) { return sigmoid(x); }, ln2 / 2, 2200,
         {{-1, 1}, {-40, 40}, {-746, -700}, {-105, -85}}),
    make("softplus", Function::softplus, 2.6, 2.6, [](auto x, auto) { return softplus(x); }, ln2 / 2, 2200,
         {{-1, 1}, {-40, 40}, {-41, -35}, {15, 41}, {-746, -700}, {-105, -85}}),
    make("tanh", Function::tanh, 2, 2, [](auto x, auto) { return std::tanh(x); }, ln2 / 4, 100,
         {{-1, 1}, {-1e-3, 1e-3}, {-24, 24}, {0.1, 0.8}, {18, 23}, {8, 11}}),
    make("erf", Function::erf, 1.6, 1.6, [](auto x, auto) { return std::erf(x); }, 1, 7,
         {{-1, 1}, {-1e-3, 1e-3}, {-6.5, 6.5}, {0.9, 1.1}, {3, 4.1}, {5.5, 6.1}}),
    make("sin", Function::sin, 1.8, 1, [](auto x, auto) { return std::sin(x); }, pi / 4, 1e6,
         {{-1, 1}, {-1e-3, 1e-3}, {-10, 10}, {-1e4, 1e4}, {-0x1p28, 0x1p28}, {0x1p28, 0x1p40}}),
    make("cos", Function::cos, 1.8, 1, [](auto x, auto) { return std::cos(x); }, pi / 4, 1e6,
         {{-1, 1}, {-1e-3, 1e-3}, {-10, 10}, {-1e4, 1e4}, {-0x1p28, 0x1p28}, {0x1p28, 0x1p40}}),
    make("pow", Function::pow, 1, 1, [](auto x, auto y) { return std::pow(x, y); }, 0.5, 100,
         {{-3, 3}, {0.99, 1.01}, {-1.01, -0.99}, {0, 1e6}, {-1e6, 0}, {0, 1e300}}),
  };
  // clang-format on
  return result;
}

// The error of y in ulps of the exact number, which are those of the smallest normal number below it. Infinity lies one
// ulp beyond the largest number.
template <class T, class R>
double error_in_ulps(T y, R exact) {
  constexpr double wrong = Limits<double>::infinity();
  if (std::isnan(exact) || std::isnan(y)) return std::isnan(exact) && std::isnan(y) ? 0 : wrong;
  if (std::signbit(exact) != std::signbit(y)) return wrong;
  const R end = std::ldexp(R(1), Limits<T>::max_exponent);
  const R a = std::min(std::abs(exact), end), b = std::min(R(std::abs(y)), end);
  if (a == 0) return b == 0 ? 0 : wrong;
  const int exponent = std::clamp(std::ilogb(a), Limits<T>::min_exponent - 1, Limits<T>::max_exponent - 1);
  return double(std::ldexp(std::abs(a - b), Limits<T>::digits - 1 - exponent));
}

using Random = std::mt19937_64;
double uniform(Random& random, double lo, double hi) { return lo + (hi - lo) * (double(random() >> 11) * 0x1p-53); }

// x and its nearest neighbours.
template <class T>
void add_around(Numbers<T>& numbers, T x, int neighbours) {
  numbers.push_back(x);
  T below = x, above = x;
  for (int i = 0; i < neighbours; ++i) {
    numbers.push_back(below = std::nextafter(below, -Limits<T>::infinity()));
    numbers.push_back(above = std::nextafter(above, Limits<T>::infinity()));
  }
}

template <class T>
Numbers<T> special_values() {
  Numbers<T> result;
  for (T x :
       {T(0), Limits<T>::denorm_min(), Limits<T>::min(), Limits<T>::epsilon(), T(0.5), T(1), T(2), T(3), T(4.5),
        T(1) / Limits<T>::epsilon(), T(2) / Limits<T>::epsilon(), T(1e30), Limits<T>::max(), Limits<T>::infinity(),
        Limits<T>::quiet_NaN(), std::bit_cast<T>(std::bit_cast<Bits<T>>(Limits<T>::quiet_NaN()) + 4095)})
    for (T signed_x : {x, -x}) add_around(result, signed_x, 1);
  return result;
}

// Numbers of every exponent, numbers in the intervals of a case, and neighbours of its special points.
template <class T>
Numbers<T> points(const Case& c, Random& random) {
  Numbers<T> result = special_values<T>();
  constexpr int fraction_bits = Limits<T>::digits - 1;
  for (Bits<T> top = 0; top < Bits<T>(1) << (8 * sizeof(T) - fraction_bits); ++top)
    for (size_t i = 0; i < rounds(sizeof(T) == 8 ? 4 : 16); ++i) {
      const Bits<T> fraction = Bits<T>(random()) >> (8 * sizeof(T) - fraction_bits);
      const T x = std::bit_cast<T>(Bits<T>(top << fraction_bits | fraction));
      result.push_back(std::isnan(x) ? x + x : x);  // no signaling NaN
    }
  for (const auto& [lo, hi] : c.intervals) {
    for (T end : {T(lo), T(hi)}) add_around(result, end, 20);
    for (size_t i = 0; i < rounds(4000); ++i) result.push_back(T(uniform(random, lo, hi)));
  }
  for (size_t i = 0; i < rounds(3000); ++i)
    add_around(result, T(c.step * std::round(uniform(random, -c.steps, c.steps))), 1);
  while (result.size() % 16) result.push_back(1);
  return result;
}

// Exponents for pow: whole numbers, halves, those whose power is a number, and any.
template <class T>
Numbers<T> exponents(const Numbers<T>& x, Random& random) {
  Numbers<T> result;
  for (size_t i = 0; i < x.size(); ++i) {
    const double in_range = uniform(random, -760, 720) / std::log(std::abs(double(x[i])));
    switch (random() % 5) {
      case 0: result.push_back(T(std::round(uniform(random, -20, 20)))); break;
      case 1: result.push_back(T(std::round(uniform(random, -20, 20)) / 2)); break;
      case 2: result.push_back(std::bit_cast<T>(Bits<T>(random()))); break;
      default: result.push_back(T(x[i] < 0 ? std::round(in_range) : in_range));
    }
  }
  return result;
}

// Holds a function on every instruction set to its bound, and records its largest error.
template <class T>
void expect_small_errors(const Case& c, const Numbers<T>& x, const Numbers<T>& y) {
  std::vector<decltype(c.value(T(), T()))> exact(x.size());
  for (size_t i = 0; i < x.size(); ++i) exact[i] = c.value(x[i], y[i]);
  for (const Isa& isa : isas()) {
    const Numbers<T> got = isa(c.function, x, y);
    double worst = 0;
    size_t at = 0;
    for (size_t i = 0; i < x.size(); ++i)
      if (const double error = error_in_ulps(got[i], exact[i]); error > worst) worst = error, at = i;
    EXPECT_LE(worst, c.bound_on<T>(isa)) << isa.name << ": " << c.name << "(" << std::hexfloat << x[at] << ", " << y[at]
                                         << "): expected " << double(exact[at]) << ", got " << got[at];
    std::ostringstream text;
    text.precision(3);
    text << worst << " at " << std::hexfloat << x[at];
    testing::Test::RecordProperty(std::string(c.name) + (sizeof(T) == 8 ? "_double_" : "_float_") + isa.name,
                                  text.str());
  }
}

// Arguments of a case: `count` of its points.
template <class T>
std::pair<Numbers<T>, Numbers<T>> sample(const Case& c, size_t count) {
  Random random(2);
  Numbers<T> x = points<T>(c, random);
  std::shuffle(x.begin(), x.end(), random);
  x.resize(std::min(x.size(), count / 16 * 16));
  return {x, exponents(x, random)};
}

template <class T>
void expect_same_bits(const Case& c, const Isa& isa, const char* what,
                      const std::pair<Numbers<T>, Numbers<T>>& arguments, const Numbers<T>& expected,
                      const Numbers<T>& got) {
  for (size_t i = 0; i < expected.size(); ++i) {
    if (same_bits(expected[i], got[i])) continue;
    ADD_FAILURE() << isa.name << ", " << what << ": " << c.name << "(" << std::hexfloat << arguments.first[i] << ", "
                  << arguments.second[i] << "): expected " << expected[i] << ", got " << got[i];
    return;
  }
}

template <class F>
void each_type(const F& f) {
  f(double());
  f(float());
}

TEST(Math, ErrorsStayWithinTheirBounds) {
  each_type([](auto type) {
    using T = decltype(type);
    for (const Case& c : cases()) {
      Random random(1);
      const Numbers<T> x = points<T>(c, random);
      expect_small_errors(c, x, exponents(x, random));
    }
  });
}

TEST(Math, ErrorsStayWithinTheirBoundsAllOverTheFloats) {
  Numbers<float> x;
  const auto stride = std::max<uint64_t>(1, 8'191'000 / rounds(1000));
  for (uint64_t bits = 0; bits < uint64_t(1) << 32; bits += stride) x.push_back(std::bit_cast<float>(uint32_t(bits)));
  while (x.size() % 16) x.push_back(0);
  Random random(3);
  const Numbers<float> y = exponents(x, random);
  for (const Case& c : cases()) expect_small_errors(c, x, y);
}

TEST(Math, SpecialValuesAreThoseOfC) {
  each_type([](auto type) {
    using T = decltype(type);
    Numbers<T> x, y;
    for (T a : special_values<T>())
      for (T b : special_values<T>()) x.push_back(a), y.push_back(b);
    while (x.size() % 16) x.push_back(1), y.push_back(1);
    for (const Case& c : cases()) expect_small_errors(c, x, y);
  });
}

TEST(Math, ResultsDependOnNeitherLengthNorLaneNorNeighbours) {
  each_type([](auto type) {
    using T = decltype(type);
    for (const Case& c : cases()) {
      const auto alone = sample<T>(c, 4000);
      for (const Isa& isa : isas()) {
        const Numbers<T> expected = isa(c.function, alone.first, alone.second, 1);
        for (unsigned lanes : {0, 2, 4, 8})
          for (int turn : {0, 1, 3}) {
            auto turned = alone;
            std::rotate(turned.first.begin(), turned.first.begin() + turn, turned.first.end());
            std::rotate(turned.second.begin(), turned.second.begin() + turn, turned.second.end());
            Numbers<T> got = isa(c.function, turned.first, turned.second, lanes);
            std::rotate(got.begin(), got.end() - turn, got.end());
            expect_same_bits(c, isa, "in vectors", alone, expected, got);
          }
      }
    }
  });
}

TEST(Math, Avx2AndAvx512AgreeInEveryBit) {
  const std::vector<Isa> all = isas();
  if (all.size() < 3) GTEST_SKIP() << "needs both";
  each_type([&](auto type) {
    using T = decltype(type);
    for (const Case& c : cases()) {
      const auto [x, y] = sample<T>(c, 100'000);
      expect_same_bits(c, all[1], "against avx512", {x, y}, all[0](c.function, x, y), all[1](c.function, x, y));
    }
  });
}

TEST(Math, TwoResultsAtOnceHaveTheBitsOfEach) {
  each_type([](auto type) {
    using T = decltype(type);
    for (const Case& c : cases()) {
      const auto [x, y] = sample<T>(c, 20'000);
      for (const Isa& isa : isas())
        expect_same_bits(c, isa, "at once", {x, y}, isa(c.function, x, y), isa(c.function, x, y, 0, Way::fused));
    }
  });
}

TEST(Math, PowersThatAreNumbersAreExact) {
  each_type([](auto type) {
    using T = decltype(type);
    Numbers<T> x, y;
    for (int base = 1; base <= 1000; ++base)
      for (int exponent = -3; exponent <= 40; ++exponent) {
        const double power = std::pow(base, exponent);
        const bool whole = exponent >= 0 && power <= std::ldexp(1.0, Limits<T>::digits);
        if (whole || std::has_single_bit(unsigned(base)))
          for (int sign : {1, -1}) x.push_back(T(sign * base)), y.push_back(T(exponent));
      }
    while (x.size() % 16) x.push_back(1), y.push_back(1);
    for (const Isa& isa : isas()) {
      const Numbers<T> got = isa(Function::pow, x, y);
      for (size_t i = 0; i < x.size(); ++i)
        ASSERT_EQ(got[i], std::pow(x[i], y[i])) << isa.name << ": pow(" << x[i] << ", " << y[i] << ")";
    }
  });
}

}  // namespace
#endif  // HWY_ONCE
