// Programs in float64 and float32 by the engine's own functions, held to exact ones; lanes, threads and layouts.
#include <gtest/gtest.h>

#include <limits>
#include <random>
#include <thread>

#include "dense/dense.h"
#include "tests/programs.h"

namespace {

using dense::Precision;
using dense::Program;
using dense::Tape;
using dense::Var;

constexpr double inf = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();

// A random graph of every operation there is, whose values stay moderate and away from kinks that all inputs share.
struct Graph {
  Tape tape;
  Row inputs, shared, values;
  std::mt19937_64 random;

  explicit Graph(uint64_t seed, size_t operations = 0) : random(seed) {
    for (size_t i = 1 + below(5); i > 0; --i) values.push_back(inputs.emplace_back(tape.input()));
    for (size_t i = below(4); i > 0; --i) values.push_back(shared.emplace_back(tape.shared(number())));
    if (operations == 0) operations = 1 + below(40);
    while (operations-- > 0) add();
  }
  size_t below(size_t n) { return size_t(random() % n); }
  double number() { return std::ldexp(double(random() >> 11), -52) - 1; }  // of [-1, 1)
  Var any() { return below(12) ? values[below(values.size())] : Var(number()); }
  Row row() {
    Row result;
    for (size_t i = 1 + below(7); i > 0; --i) result.push_back(any());
    return result;
  }
  Var positive() {
    const Var x = any();
    return x * x + 0.3;
  }
  void add() {
    const Var a = any(), b = any();
    switch (below(34)) {
      case 0: return keep(a + b);
      case 1: return keep(a - b);
      case 2: return keep(a * b);
      case 3: return keep(a / positive());
      case 4: return keep(-a);
      case 5: return keep(pow(positive(), b));
      case 6: return keep(pow(a, double(below(5)) - 1 + (below(4) ? 0.0 : 4.0)));
      case 7: return keep(pow(positive(), Numbers{2, 0.5, -1, -2, -1.5, 3}[below(6)]));
      case 8: return keep(exp(a));
      case 9: return keep(log(positive()));
      case 10: return keep(log1p(positive()));
      case 11: return keep(expm1(a));
      case 12: return keep(sqrt(positive()));
      case 13: return keep(rsqrt(positive()));
      case 14: return keep(tanh(a));
      case 15: return keep(sigmoid(a));
      case 16: return keep(softplus(a));
      case 17: return keep(erf(a));
      case 18: return keep(sin(a));
      case 19: return keep(cos(a));
      case 20: return keep(sin(a) + cos(a));
      case 21: return keep(abs(a + 0.217));
      case 22: return keep(relu(a - 0.123));
      case 23: return keep(min(a, b + 0.0321));
      case 24: return keep(max(a, b - 0.0456));
      case 25: return keep(where(a < 0.371, b, a * b));
      case 26: return keep(where(a <= -0.2713, b, exp(b)));
      case 27: return keep(equal(a, 0.5) + (a > 0.618) * b + (a >= -0.707) * a);
      case 28: return keep(sum(row()));
      case 29: {
        const Row x = row();
        Row y;
        for (size_t i = 0; i < x.size(); ++i) y.push_back(any());
        return keep(dot(x, y));
      }
      case 30: return keep(at(Row{a, b, a * b}, (a < 0.371) + (b > 0.271)));
      case 31: return keep(logsumexp(row()));
      case 32: return keep(softplus(a) * sigmoid(a));
      default:
        for (Var y : softmax(row())) keep(y);
    }
  }
  // Bounds what could grow.
  void keep(Var y) { values.push_back(below(3) ? 2 * tanh(y * 0.5) : where(abs(y) < 3, y, 3)); }

  Row wrt() const {
    Row result = inputs;
    result.insert(result.end(), shared.begin(), shared.end());
    return result;
  }
  Program compile(Precision precision) { return tape.compile({values.back()}, wrt(), precision); }
};

struct Result {
  Numbers values, grads, shared_grads;
  Numbers all() const {
    Numbers result = values;
    result.insert(result.end(), grads.begin(), grads.end());
    result.insert(result.end(), shared_grads.begin(), shared_grads.end());
    return result;
  }
};

Result run(const Program& program, const Numbers& inputs, const Numbers& shared, int lanes = 1, int threads = 1) {
  Result result{Numbers(size_t(program.outputs() * lanes)), Numbers(size_t(program.wrt() * lanes)),
                Numbers(size_t(program.shared_wrt()))};
  program.run({.inputs = inputs,
               .shared = shared,
               .values = result.values,
               .grads = result.grads,
               .shared_grads = result.shared_grads,
               .lanes = lanes,
               .threads = threads});
  return result;
}

Numbers numbers(Graph& graph, size_t count) {
  Numbers result(count);
  for (double& x : result) x = graph.number();
  return result;
}

constexpr Precision fast[] = {Precision::f64, Precision::f32};

TEST(Fast, RandomGraphsAgreeWithExactOnes) {
  for (int seed = 0; seed < fuzz_rounds(2000); ++seed) {
    Graph graph(seed, seed % 100 == 99 ? 400 : 0);
    const Program exact = graph.compile(Precision::exact);
    const Numbers x = numbers(graph, graph.inputs.size()), w = numbers(graph, graph.shared.size());
    const Numbers want = run(exact, x, w).all();
    for (const char* name : isas()) {
      const Isa isa(name);
      for (const Precision precision : fast) {
        const double unit = precision == Precision::f64 ? 0x1p-52 : 0x1p-23;
        // How far results move when inputs move by some roundings is how far they may be off.
        Numbers room(want.size(), 0.0);
        for (int k = 0; k < 6; ++k) {
          const auto nudged = [&](Numbers v) {
            for (double& one : v) one *= 1 + 30 * unit * graph.number();
            return v;
          };
          const Numbers moved = run(exact, nudged(x), nudged(w)).all();
          for (size_t i = 0; i < want.size(); ++i) room[i] = std::max(room[i], std::abs(moved[i] - want[i]));
        }
        const Numbers got = run(graph.compile(precision), x, w).all();
        for (size_t i = 0; i < want.size(); ++i) {
          if (std::isnan(want[i])) {
            ASSERT_TRUE(std::isnan(got[i])) << "seed " << seed << ", number " << i << ", " << name;
            continue;
          }
          if (!std::isfinite(room[i])) continue;  // near a pole
          ASSERT_NEAR(got[i], want[i], 40 * room[i] + 3000 * unit * (1 + std::abs(want[i])))
              << "seed " << seed << ", number " << i << ", " << name << ", " << (unit < 1e-9 ? "f64" : "f32");
        }
      }
    }
  }
}

TEST(Fast, ALaneHasTheSameBitsAloneAndAmongOthers) {
  for (int seed = 0; seed < fuzz_rounds(20); ++seed) {
    Graph graph(seed, 30);
    const size_t n = graph.inputs.size();
    const Numbers all = numbers(graph, n * 65), w = numbers(graph, graph.shared.size());
    for (const Precision precision : fast) {
      const Program program = graph.compile(precision);
      Numbers want_values, want_grads;  // (lanes), (lanes, n)
      for (size_t lane = 0; lane < 65; ++lane) {
        const Result alone = run(program, Numbers(all.begin() + lane * n, all.begin() + (lane + 1) * n), w);
        want_values.push_back(alone.values[0]);
        want_grads.insert(want_grads.end(), alone.grads.begin(), alone.grads.end());
      }
      for (int lanes = 1; lanes <= 65; ++lanes) {
        Numbers x(n * lanes);
        for (size_t i = 0; i < n; ++i)
          for (int lane = 0; lane < lanes; ++lane) x[i * lanes + lane] = all[lane * n + i];
        const Result got = run(program, x, w, lanes);
        for (int lane = 0; lane < lanes; ++lane) {
          ASSERT_TRUE(same_bits({got.values[lane]}, {want_values[lane]}))
              << "seed " << seed << ", lane " << lane << " of " << lanes;
          for (size_t i = 0; i < n; ++i)
            ASSERT_TRUE(same_bits({got.grads[i * lanes + lane]}, {want_grads[lane * n + i]}))
                << "seed " << seed << ", lane " << lane << " of " << lanes;
        }
      }
    }
  }
}

TEST(Fast, ThreadsChangeNoBit) {
  constexpr int lanes = 30'011;
  Graph graph(7, 60);
  ASSERT_FALSE(graph.shared.empty());
  const Numbers x = numbers(graph, graph.inputs.size() * lanes), w = numbers(graph, graph.shared.size());
  for (const Precision precision : {Precision::exact, Precision::f64, Precision::f32}) {
    const Program program = graph.compile(precision);
    const Result one = run(program, x, w, lanes, 1);
    for (const int threads : {2, 3, 7, 0}) {
      const Result more = run(program, x, w, lanes, threads);
      EXPECT_TRUE(same_bits(more.values, one.values)) << threads;
      EXPECT_TRUE(same_bits(more.grads, one.grads)) << threads;
      EXPECT_TRUE(same_bits(more.shared_grads, one.shared_grads)) << threads;
    }
  }
}

TEST(Fast, SharedGradientsAreSumsOverLanes) {
  for (const int lanes : {1, 2, 5, 9, 64, 1000, 2500}) {
    Graph graph(7, 60);
    const size_t n = graph.inputs.size();
    const Numbers x = numbers(graph, n * size_t(lanes)), w = numbers(graph, graph.shared.size());
    for (const Precision precision : fast) {
      const Program program = graph.compile(precision);
      const Result got = run(program, x, w, lanes);
      Numbers want(graph.shared.size(), 0.0), size = want;
      for (int lane = 0; lane < lanes; ++lane) {
        Numbers one;
        for (size_t i = 0; i < n; ++i) one.push_back(x[i * lanes + lane]);
        const Result alone = run(program, one, w);
        for (size_t i = 0; i < want.size(); ++i)
          want[i] += alone.shared_grads[i], size[i] += std::abs(alone.shared_grads[i]);
      }
      for (size_t i = 0; i < want.size(); ++i) EXPECT_NEAR(got.shared_grads[i], want[i], 1e-13 * size[i]) << lanes;
    }
  }
}

TEST(Fast, ALongGraphRunsInEveryPrecision) {
  Tape tape;
  const Var x = tape.input();
  Var y = x;
  for (int i = 0; i < 1'000'000; ++i) y = i % 2 ? y * 0.5 : sin(y) + x;
  for (const Precision precision : {Precision::exact, Precision::f64, Precision::f32}) {
    const Program program = tape.compile({y}, {x}, precision);
    Numbers value(1), grad(1);
    program.run({.inputs = Numbers{0.5}, .values = value, .grads = grad});
    EXPECT_NEAR(value[0], 0.481598, 1e-4) << int(precision);
    EXPECT_TRUE(std::isfinite(grad[0]));
  }
}

TEST(Fast, ASumOfManyTermsIsTheirSum) {
  for (const int count : {1, 2, 3, 4, 5, 6, 9, 4093, 4094, 4095, 4096, 8190, 20'000}) {
    for (const Precision precision : fast) {
      Tape tape;
      Row x;
      for (int i = 0; i < count; ++i) x.push_back(tape.input());
      const Numbers in(x.size(), 0.5);
      Row ones(x.size(), 2.0);
      const Program program = tape.compile(Row{sum(x), dot(x, x), dot(x, ones)}, x, precision);
      Numbers values(3), grads(x.size());
      program.run({.inputs = in, .seeds = Numbers{1, 10, 100}, .values = values, .grads = grads});
      EXPECT_EQ(values, (Numbers{count * 0.5, count * 0.25, double(count)}));
      EXPECT_EQ(grads, Numbers(x.size(), 1 + 10 + 200));
    }
  }
}

TEST(Fast, SoftmaxOfEveryLengthSumsToOne) {
  for (const int count : {1, 2, 3, 4, 5, 8, 100}) {
    for (const Precision precision : {Precision::exact, Precision::f64, Precision::f32}) {
      Tape tape;
      Row x;
      Numbers in;
      for (int i = 0; i < count; ++i) x.push_back(tape.input()), in.push_back(0.1 * i * (i % 3));
      Row y = softmax(x);
      y.push_back(sum(softmax(x)));
      y.push_back(logsumexp(x));
      const Program program = tape.compile(y, x, precision);
      const size_t outputs = y.size();
      Numbers values(outputs), jacobian(outputs * x.size());
      program.run({.inputs = in, .values = values, .jacobian = jacobian});
      const double close = precision == Precision::f32 ? 1e-6 : 1e-14;
      double total = 0;
      for (int i = 0; i < count; ++i) total += std::exp(in[i]);
      for (int i = 0; i < count; ++i) {
        EXPECT_NEAR(values[i], std::exp(in[i]) / total, close);
        for (int k = 0; k < count; ++k)
          EXPECT_NEAR(jacobian[i * count + k], values[i] * ((i == k) - values[k]), close) << i << " by " << k;
        EXPECT_NEAR(jacobian[count * count + i], 0, close);
        EXPECT_NEAR(jacobian[(count + 1) * count + i], values[i], close);
      }
      EXPECT_NEAR(values[count], 1, close);
      EXPECT_NEAR(values[count + 1], std::log(total), 10 * close);
    }
  }
}

TEST(Fast, SoftmaxAndLogsumexpDoNotOverflow) {
  for (const Precision precision : {Precision::exact, Precision::f64, Precision::f32}) {
    Tape tape;
    const Row x = {tape.input(), tape.input(), tape.input()};
    Row y = softmax(x);
    y.push_back(logsumexp(x));
    const Program program = tape.compile(y, {}, precision);
    Numbers values(4);
    program.run({.inputs = Numbers{-5000, 3000, 3000}, .values = values});
    EXPECT_EQ(Numbers(values.begin(), values.begin() + 3), (Numbers{0, 0.5, 0.5}));
    EXPECT_NEAR(values[3], 3000.6931, 1e-3);
    program.run({.inputs = Numbers{nan, 1, 2}, .values = values});
    for (double v : values) EXPECT_TRUE(std::isnan(v));
  }
}

TEST(Fast, SoftmaxHasTheSameBitsWhateverTheOtherLanesHoldAndIsAccurate) {
  std::mt19937_64 random(4);
  for (const Precision precision : fast)
    for (const size_t count : {2u, 3u, 4u, 5u, 9u}) {
      Tape tape;
      Row x;
      for (size_t i = 0; i < count; ++i) x.push_back(tape.input());
      const Program program = tape.compile(softmax(x), {}, precision);
      for (int round = 0; round < fuzz_rounds(200); ++round) {
        constexpr size_t lanes = 9;
        Numbers in(count * lanes), values(count * lanes);
        const double most =
            Numbers{1, 30, 90, 900}[round / 4 % 4];  // such that the largest need not, or has to, be taken off
        for (double& v : in) v = float(std::ldexp(double(random() >> 11), -53) * most - most / 2);
        in[0] = float(in[0] - Numbers{0, 20, 75, 600}[round % 4]);
        in[1] = Numbers{2000, nan, inf, -inf}[round % 4];  // in lane 1
        program.run({.inputs = in, .values = values, .lanes = int(lanes)});
        for (size_t lane = 0; lane < lanes; ++lane) {
          Numbers one, got, alone(count);
          for (size_t i = 0; i < count; ++i)
            one.push_back(in[i * lanes + lane]), got.push_back(values[i * lanes + lane]);
          program.run({.inputs = one, .values = alone});
          ASSERT_TRUE(same_bits(got, alone)) << count << " operands, lane " << lane;
          if (lane == 1) continue;
          const double unit = precision == Precision::f64 ? 0x1p-53 : 0x1p-24;
          const long double largest = *std::ranges::max_element(one);
          long double total = 0;
          for (double v : one) total += std::exp(v - largest);
          for (size_t i = 0; i < count; ++i) {
            const double want = double(std::exp(one[i] - largest) / total);
            ASSERT_NEAR(got[i], want, 10 * unit * want * (1 + double(largest - one[i])) + 1e-37);
          }
        }
      }
    }
}

TEST(Fast, NaNAndInfinitiesArePropagated) {
  for (const Precision precision : fast) {
    Tape tape;
    const Var x = tape.input(), y = tape.input();
    const Program program =
        tape.compile(Row{x + y, exp(x), x * y, max(y, x), where(x < 0, 1, 2)}, Row{x, y}, precision);
    for (const int lanes : {1, 3, 20}) {
      const size_t n = size_t(lanes);
      Numbers in(2 * n, 1.5), values(5 * n), grads(2 * n);
      in[0] = nan;
      in[n] = -inf;
      program.run({.inputs = in, .seeds = Numbers(5 * n, 1.0), .values = values, .grads = grads, .lanes = lanes});
      EXPECT_TRUE(std::isnan(values[0]) && std::isnan(values[n]) && std::isnan(values[2 * n]) && std::isnan(grads[0]));
      EXPECT_EQ(values[4 * n], 2);
      for (size_t lane = 1; lane < n; ++lane) EXPECT_EQ(values[lane], 3);
    }
  }
}

TEST(Programs, JacobiansHaveARowForEveryOutput) {
  for (const Precision precision : {Precision::exact, Precision::f64, Precision::f32}) {
    for (const int lanes : {1, 2, 7, 30}) {
      Tape tape;
      const Var w = tape.shared(3), x = tape.input(), v = tape.shared(0.5), y = tape.input();
      const Program program = tape.compile(Row{x * w + y, exp(v) * x * y, y}, Row{y, w, x, v}, precision);
      const size_t n = size_t(lanes);
      Numbers in;
      for (size_t i = 0; i < 2 * n; ++i) in.push_back(0.25 * double(i) - 1);
      Numbers jacobian(3 * 4 * n), by_lane(3 * 4 * n), in_by_lane(2 * n);
      program.run({.inputs = in, .jacobian = jacobian, .lanes = lanes});
      for (size_t l = 0; l < n; ++l) in_by_lane[2 * l] = in[l], in_by_lane[2 * l + 1] = in[n + l];
      program.run({.inputs = in_by_lane, .jacobian = by_lane, .lanes = lanes, .by_lane = true});
      for (size_t l = 0; l < n; ++l) {
        const double a = in[l], b = in[n + l], e = std::exp(0.5);
        const Numbers want = {1, a, 3, 0, e * a, 0, e * b, e * a * b, 1, 0, 0, 0};
        for (size_t k = 0; k < 12; ++k) {
          EXPECT_NEAR(jacobian[k * n + l], want[k], 1e-5);
          EXPECT_EQ(by_lane[l * 12 + k], jacobian[k * n + l]);
        }
      }
    }
  }
}

TEST(Programs, LayoutsAndTypesOfNumbersMayBeChosen) {
  for (const Precision precision : {Precision::exact, Precision::f64, Precision::f32}) {
    Tape tape;
    const Var x = tape.input(), y = tape.input(), w = tape.shared(0);
    const Program program = tape.compile(Row{x / y, x * w}, Row{x, w, y}, precision);
    for (const int lanes : {1, 2, 6, 8, 77}) {
      const size_t n = size_t(lanes);
      std::vector<float> in, in_by_lane(2 * n), seeds, seeds_by_lane(2 * n);
      for (size_t i = 0; i < 2 * n; ++i) in.push_back(float(i + 1) / 8), seeds.push_back(float(i % 5));
      for (size_t l = 0; l < n; ++l)
        for (size_t i = 0; i < 2; ++i)
          in_by_lane[2 * l + i] = in[i * n + l], seeds_by_lane[2 * l + i] = seeds[i * n + l];
      const std::vector<float> shared = {0.75f};
      std::vector<float> values(2 * n), grads(2 * n), shared_grads(1), values2(2 * n), grads2(2 * n), shared_grads2(1);
      program.run({.inputs = in,
                   .shared = shared,
                   .seeds = seeds,
                   .values = values,
                   .grads = grads,
                   .shared_grads = shared_grads,
                   .lanes = lanes});
      program.run({.inputs = in_by_lane,
                   .shared = shared,
                   .seeds = seeds_by_lane,
                   .values = values2,
                   .grads = grads2,
                   .shared_grads = shared_grads2,
                   .lanes = lanes,
                   .by_lane = true});
      const Numbers in64(in.begin(), in.end()), seeds64(seeds.begin(), seeds.end());
      Numbers values64(2 * n), grads64(2 * n), shared64(1);
      program.run({.inputs = in64,
                   .shared = Numbers{0.75},
                   .seeds = seeds64,
                   .values = values64,
                   .grads = grads64,
                   .shared_grads = shared64,
                   .lanes = lanes});
      for (size_t l = 0; l < n; ++l)
        for (size_t i = 0; i < 2; ++i) {
          EXPECT_EQ(values2[2 * l + i], values[i * n + l]);
          EXPECT_EQ(grads2[2 * l + i], grads[i * n + l]);
          EXPECT_EQ(float(values64[i * n + l]), values[i * n + l]);
          EXPECT_EQ(float(grads64[i * n + l]), grads[i * n + l]);
        }
      EXPECT_EQ(shared_grads, shared_grads2);
      EXPECT_EQ(float(shared64[0]), shared_grads[0]);
    }
  }
}

TEST(Programs, ValuesAloneNeedNoSeedsAndNoBackwardRun) {
  for (const Precision precision : {Precision::exact, Precision::f64, Precision::f32}) {
    Tape tape;
    const Var x = tape.input();
    const Program program = tape.compile(Row{x * x, x + 1}, Row{x}, precision);
    Numbers values(2);
    program.run({.inputs = Numbers{3}, .values = values});
    EXPECT_EQ(values, (Numbers{9, 4}));
  }
}

TEST(Programs, NoLanesGiveNothing) {
  for (const Precision precision : {Precision::exact, Precision::f64, Precision::f32}) {
    Tape tape;
    const Var x = tape.input(), w = tape.shared(2);
    Numbers shared_grads(1, 5.0);
    tape.compile({x * w}, {w}, precision).run({.shared_grads = shared_grads, .lanes = 0});
    EXPECT_EQ(shared_grads, Numbers{0});
  }
}

TEST(Programs, SeedsAreForSeveralOutputs) {
  Tape tape;
  const Var x = tape.input();
  const Program program = tape.compile({x * x}, {x});
  EXPECT_EQ(error_of([&] { program.run({.inputs = Numbers{1}, .seeds = Numbers{1}}); }),
            "run: seeds: expected none for one output, got 1 numbers");
}

TEST(Programs, OneProgramRunsOnManyThreadsAtOnce) {
  for (const Precision precision : {Precision::exact, Precision::f64, Precision::f32}) {
    Graph graph(11, 50);
    const Program program = graph.compile(precision);
    const size_t n = graph.inputs.size();
    const Numbers x = numbers(graph, n * 200), w = numbers(graph, graph.shared.size());
    const Numbers want = run(program, x, w, 200, 2).all();
    std::vector<Numbers> got(6);
    {
      std::vector<std::jthread> team;
      for (Numbers& mine : got)
        team.emplace_back([&] {
          for (int i = 0; i < 20; ++i) mine = run(program, x, w, 200, 2).all();
        });
    }
    for (const Numbers& one : got) EXPECT_TRUE(same_bits(one, want));
  }
}

TEST(Programs, AnIndexBeyondItsRowIsAnErrorInEveryWayToRun) {
  for (const Precision precision : {Precision::exact, Precision::f64, Precision::f32}) {
    Tape tape;
    const Var x = tape.input();
    const Program program = tape.compile({at(Row{x, x * 2}, x) + 1}, {}, precision);
    for (const int lanes : {1, 3, 50, 500'000}) {
      Numbers in(size_t(lanes), 1.0), values(in.size());
      program.run({.inputs = in, .values = values, .lanes = lanes});
      EXPECT_EQ(values, Numbers(size_t(lanes), 3.0));
      in[size_t(lanes) / 2] = 2;
      EXPECT_EQ(error_of([&] { program.run({.inputs = in, .values = values, .lanes = lanes}); }),
                "at: expected an index below 2, got 2");
    }
  }
}

TEST(SecondDerivatives, AreDerivativesOfTheGradient) {
  for (int seed = 0; seed < fuzz_rounds(300); ++seed) {
    Graph graph(seed, 1 + seed % 12);
    const Row wrt = graph.wrt();
    const Var y = graph.values.back();
    const Program once = graph.tape.compile({y}, wrt);
    const Row first = graph.tape.gradient(y, wrt);
    const Numbers x = numbers(graph, graph.inputs.size()), w = numbers(graph, graph.shared.size());
    const Result want = run(once, x, w);
    Numbers want_first = want.grads;
    want_first.insert(want_first.end(), want.shared_grads.begin(), want.shared_grads.end());
    const Program recorded = graph.tape.compile(first);
    const Program hessian = graph.tape.compile(first, wrt);
    Numbers got(wrt.size()), second(wrt.size() * wrt.size());
    recorded.run({.inputs = x, .shared = w, .values = got});
    hessian.run({.inputs = x, .shared = w, .jacobian = second});
    const double h = 1e-6;
    for (size_t i = 0; i < wrt.size(); ++i) {
      ASSERT_NEAR(got[i], want_first[i], 1e-12 * (1 + std::abs(want_first[i]))) << "seed " << seed;
      const auto moved = [&](double by) {
        Numbers x2 = x, w2 = w, result(wrt.size());
        (i < x.size() ? x2[i] : w2[i - x.size()]) += by;
        recorded.run({.inputs = x2, .shared = w2, .values = result});
        return result;
      };
      const Numbers up = moved(h), down = moved(-h), up2 = moved(2 * h), down2 = moved(-2 * h);
      for (size_t k = 0; k < wrt.size(); ++k) {
        const double slope = (up[k] - down[k]) / (2 * h), wider = (up2[k] - down2[k]) / (4 * h);
        ASSERT_NEAR(second[k * wrt.size() + i], slope, 1e-5 * (1 + std::abs(slope)) + 10 * std::abs(slope - wider))
            << "seed " << seed << ": by " << k << " and " << i;
      }
    }
  }
}

TEST(SecondDerivatives, OfIntermediateResultsAndOfNothing) {
  Tape tape;
  const Var x = tape.input(), z = tape.input();
  const Var u = x * x, y = u * u * u;
  const Row by = tape.gradient(y, Row{u, x, z, y});
  Numbers values(4);
  tape.compile(by).run({.inputs = Numbers{2, 7}, .values = values});
  EXPECT_EQ(values, (Numbers{3 * 16, 6 * 32, 0, 1}));
  const Row p = softmax(Row{x, z, u});
  Numbers slopes(4);
  const Row by_p = tape.gradient(p[0] * p[0] + 3 * p[2], Row{p[0], p[1], p[2], z});
  tape.compile(by_p).run({.inputs = Numbers{0, 0}, .values = slopes});
  EXPECT_NEAR(slopes[0], 2. / 3, 1e-15);
  EXPECT_EQ(slopes[1], 0);
  EXPECT_EQ(slopes[2], 3);
  EXPECT_NEAR(slopes[3], -(2. / 3 + 3) / 9, 1e-15);
}

TEST(SecondDerivatives, RefuseVarsOfAnotherTape) {
  Tape tape, other;
  const Var x = tape.input(), y = other.input();
  EXPECT_EQ(error_of([&] { tape.gradient(x, Row{y}); }), "gradient: expected Vars of this tape, got a Var of another");
  EXPECT_EQ(error_of([&] { tape.gradient(x, Row{2.0}); }), "gradient: expected Vars of this tape, got a number");
  EXPECT_EQ(error_of([&] { tape.gradient(y, Row{x}); }), "tape: expected a Var of this tape, got Var 0 of another");
}

TEST(Listing, ShowsEveryOperation) {
  Tape tape;
  const Var x = tape.input(), w = tape.shared(2);
  const Row p = softmax(Row{x, w});
  const Var first = p[0] * x;
  const Program program = tape.compile({first + sin(x)}, {x}, Precision::f64);
  EXPECT_EQ(program.listing(), R"(%0 = input 0
%1 = shared 0
%2 = constant 0
%3, %4 = softmax %0 %1
%5 = %0 * %3
%6, %7 = sin_cos %0
%8 = %6 + %5
%9, %10 = softmax_grad %3 %4 %0 %2
%11 = %7 + %3 + %9
output 0 = %8
gradient by per-lane wrt 0 = %11
)");
  EXPECT_EQ(tape.compile({exp(x) * w}).listing(), R"(%0 = input 0
%1 = shared 0
%2 = exp %0
%3 = mul %2 %1
output 0 = %3
)");
}

TEST(Listing, DrawsAGraph) {
  Tape tape;
  const Var x = tape.input();
  EXPECT_EQ(tape.compile({exp(x)}, {}, Precision::f32).graphviz(), R"(digraph program {
  rankdir=LR; node [shape=box];
  v0 [label="input 0", shape=ellipse];
  v1 [label="exp"];
  r0 [label="output 0", shape=ellipse];
  v0 -> v1;
  v1 -> r0;
}
)");
}

TEST(Listing, SummaryTellsOperationsBytesAndWay) {
  Tape tape;
  const Var x = tape.input(), w = tape.shared(2);
  const Isa isa("portable");
  const std::string summary = tape.compile({exp(x) * w}, {x}, Precision::f32).summary();
  EXPECT_TRUE(summary.starts_with("1 inputs, 1 shared, 1 outputs, gradient by 1\n2 operations in 2 instructions, "))
      << summary;
  EXPECT_NE(summary.find("float32 on portable code"), std::string::npos) << summary;
}

}  // namespace
