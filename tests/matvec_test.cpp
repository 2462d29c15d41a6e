// Products of generation against sums in double; bits that rows, threads and instruction sets must not change; the
// layout and the errors of 8 and 4 bits.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "dense/tensor/elements.h"
#include "dense/tensor/half.h"
#include "dense/tensor/matmul.h"
#include "dense/tensor/matvec.h"
#include "dense/tensor/quantised.h"
#include "tests/allocations.h"
#include "tests/errors.h"

namespace {

using dense::Dtype;
using dense::Isa;
using dense::Matvec;
using dense::MatvecSpec;
using dense::StoredMatrix;
using dense::Threads;

// Those this machine runs, and that DENSE_ISA does not exclude.
std::vector<Isa> isas() {
  std::vector<Isa> all;
  for (int isa = int(dense::best_isa()); isa <= int(Isa::portable); ++isa) all.push_back(Isa(isa));
  return all;
}

// Bytes at 64, with guards behind them that nobody may write to.
struct Bytes {
  struct alignas(64) Line {
    std::byte bytes[64];
  };
  size_t size;
  std::vector<Line> lines;
  explicit Bytes(size_t n) : size(n), lines(n / 64 + 3) { std::memset(lines.data(), 0x5a, lines.size() * 64); }
  std::byte* data() { return lines.data()->bytes; }
  const std::byte* data() const { return lines.data()->bytes; }
  float* floats() { return reinterpret_cast<float*>(data()); }
  const float* floats() const { return reinterpret_cast<const float*>(data()); }
  bool guard_is_whole() const {
    return std::all_of(data() + size, data() + lines.size() * 64, [](std::byte b) { return b == std::byte{0x5a}; });
  }
};

bool same_bits(const Bytes& a, const Bytes& b) { return a.size == b.size && !std::memcmp(a.data(), b.data(), a.size); }

Bytes random_floats(int64_t n, unsigned seed) {
  std::mt19937 random(seed);
  Bytes all(size_t(n) * 4);
  for (int64_t i = 0; i < n; ++i) all.floats()[i] = float(random() % 2001) / 1000 - 1;
  return all;
}

struct Case {
  int64_t m, n, k;
  Dtype weights;
  bool by_row = true, bias = true;
  int64_t more = 0;  // how much longer the rows in memory are than they need be

  MatvecSpec spec() const {
    const int64_t row_stride = dense::is_quantised(weights) ? 0 : (by_row ? k : n) + more;
    return {.m = m, .n = n, .k = k, .weights = weights, .by_row = by_row, .row_stride = row_stride, .bias = bias};
  }
  std::string name() const {
    return dense::text("m ", m, " n ", n, " k ", k, " ", dense::name(weights), by_row ? " (n, k)" : " (k, n)",
                       bias ? " + bias" : "", " more ", more);
  }
};

struct Product {
  MatvecSpec spec;
  int64_t x_row, y_row;
  Bytes x, bias, w{0};
  std::vector<double> values;  // of W, (n, k)

  explicit Product(const Case& c, unsigned seed = 1)
      : spec(c.spec()),
        x_row(c.k + c.more),
        y_row(c.n + c.more),
        x(random_floats(c.m * x_row, seed)),
        bias(random_floats(c.n, seed + 1)),
        values(size_t(c.n * c.k)) {
    const Bytes floats = random_floats(c.n * c.k, seed + 2);  // (n, k)
    std::vector<float> row(static_cast<size_t>(c.k));
    if (dense::is_quantised(c.weights)) {
      Threads threads(1);
      w = Bytes(dense::quantised_bytes(c.weights, c.n, c.k));
      dense::quantise({floats.data(), Dtype::f32, c.n, c.k, c.k, 1}, c.weights, w.data(), threads);
      EXPECT_TRUE(w.guard_is_whole());
      for (int64_t j = 0; j < c.n; ++j) {
        dense::dequantise_row(w.data(), c.weights, j, c.k, row.data());
        std::copy(row.begin(), row.end(), values.begin() + j * c.k);
      }
      return;
    }
    const auto convert = dense::elements_f32(Isa::portable);
    const size_t size = dense::size_of(c.weights);
    w = Bytes(size_t((c.by_row ? c.n : c.k) * spec.row_stride) * size);
    for (int64_t j = 0; j < c.n; ++j)
      for (int64_t i = 0; i < c.k; ++i) {
        std::byte* const at = w.data() + size_t(c.by_row ? j * spec.row_stride + i : i * spec.row_stride + j) * size;
        convert.store(floats.floats() + j * c.k + i, 1, at, c.weights, 1);
        float stored;
        convert.load(at, c.weights, 1, 1, &stored);
        values[size_t(j * c.k + i)] = stored;
      }
  }
  // y as the plan computes it, of `m` rows from `first`.
  Bytes operator()(Isa isa, Threads& threads, int64_t first, int64_t m) const {
    MatvecSpec some = spec;
    some.m = m;
    const Matvec plan(some, isa, threads.count());
    Bytes y(size_t(m * y_row) * 4), scratch(plan.scratch_bytes());
    plan.run(x.floats() + first * x_row, x_row, w.data(), y.floats(), y_row, bias.floats(), scratch.data(), threads);
    EXPECT_TRUE(y.guard_is_whole() && scratch.guard_is_whole());
    return y;
  }
  Bytes operator()(Isa isa, Threads& threads) const { return (*this)(isa, threads, 0, spec.m); }
};

// Of x as q8 and q4 see it: integers times a scale for each group of 32.
std::vector<double> seen(const float* x, int64_t k, bool quantised) {
  std::vector<double> all(x, x + k);
  for (int64_t i = 0; quantised && i < k; i += 32) {
    float largest = 0;
    const int64_t end = std::min(k, i + 32);
    for (int64_t j = i; j < end; ++j) largest = std::max(largest, std::abs(x[j]));
    const float scale = largest / 127, inverse = largest == 0 ? 0 : 127 / largest;
    for (int64_t j = i; j < end; ++j) all[size_t(j)] = double(std::nearbyint(x[j] * inverse)) * double(scale);
  }
  return all;
}

void expect_product(const Product& run, const Bytes& y, const std::string& what) {
  const MatvecSpec& s = run.spec;
  const Bytes untouched(size_t(run.y_row) * 4);
  for (int64_t i = 0; i < s.m; ++i) {
    const std::vector<double> x = seen(run.x.floats() + i * run.x_row, s.k, dense::is_quantised(s.weights));
    for (int64_t j = 0; j < s.n; ++j) {
      double sum = s.bias ? run.bias.floats()[j] : 0, size = std::abs(sum);
      for (int64_t k = 0; k < s.k; ++k) {
        const double product = x[size_t(k)] * run.values[size_t(j * s.k + k)];
        sum += product, size += std::abs(product);
      }
      ASSERT_NEAR(y.floats()[i * run.y_row + j], sum, 1e-6 * size + 1e-30) << what << " at " << i << " " << j;
    }
    for (int64_t j = s.n; j < run.y_row; ++j)  // what lies between the rows of y is as it was
      ASSERT_EQ(std::memcmp(y.floats() + i * run.y_row + j, untouched.data(), 4), 0) << what;
  }
}

struct Layout {
  Dtype weights;
  bool by_row;
};
constexpr Layout layouts[] = {{Dtype::f32, true}, {Dtype::f32, false}, {Dtype::bf16, true}, {Dtype::bf16, false},
                              {Dtype::f16, true}, {Dtype::f16, false}, {Dtype::q8, true},   {Dtype::q4, true}};

TEST(Matvec, EqualsSumsInDoubleForEveryTypeAndLayout) {
  Threads threads(2);
  for (Isa isa : isas())
    for (const Layout& layout : layouts) {
      int64_t turn = 0;
      for (int64_t n : {1, 15, 16, 33, 70, 200})
        for (int64_t k : {1, 31, 32, 63, 64, 65, 100, 384, 420, 900}) {
          const int64_t m = turn % 9 + 1;
          const Case one{m, n, k, layout.weights, layout.by_row, turn % 2 == 0, turn % 3};
          const Product run(one);
          expect_product(run, run(isa, threads), dense::text(dense::name(isa), " ", one.name()));
          ++turn;
        }
    }
}

TEST(Matvec, EqualsSumsInDoubleWhereShared) {
  Threads threads(3);
  for (Isa isa : isas())
    for (const Layout& layout : layouts)
      for (int64_t m : {1, 4, 19}) {
        const Case one{m, 1210, 800, layout.weights, layout.by_row, true, 1};
        const Product run(one);
        expect_product(run, run(isa, threads), dense::text(dense::name(isa), " ", one.name()));
      }
}

TEST(Matvec, NothingToSumGivesZeroOrBias) {
  Threads threads(2);
  for (Isa isa : isas())
    for (const Layout& layout : layouts)
      for (bool bias : {false, true}) {
        const Product run({3, 21, 0, layout.weights, layout.by_row, bias});
        expect_product(run, run(isa, threads), "k = 0");
      }
}

TEST(Matvec, RowHasTheSameBitsAloneAndAmongOthers) {
  Threads threads(2);
  for (Isa isa : isas())
    for (const Layout& layout : layouts)
      for (const auto& [n, k] : {std::pair<int64_t, int64_t>{37, 70}, {300, 800}}) {
        const int64_t most = 21;
        const Product run({most, n, k, layout.weights, layout.by_row});
        const Bytes all = run(isa, threads);
        for (int64_t m : {1, 2, 3, 5, 8, 9})
          for (int64_t first : {int64_t(0), int64_t(6), most - m}) {
            const Bytes some = run(isa, threads, first, m);
            ASSERT_EQ(std::memcmp(some.data(), all.floats() + first * n, some.size), 0)
                << dense::name(isa) << " " << dense::name(layout.weights) << " m " << m << " first " << first;
          }
      }
}

TEST(Matvec, TakesFewerRowsThanPlannedWithTheBitsOfTheirOwnPlans) {
  Threads threads(2);
  for (Isa isa : isas())
    for (const Layout& layout : layouts)
      for (int64_t most : {7, 21}) {
        const Product run({most, 300, 800, layout.weights, layout.by_row});
        const Matvec plan(run.spec, isa, 2);
        for (int64_t m : {0, 1, 2, 7}) {
          Bytes y(size_t(m * run.y_row) * 4), scratch(plan.scratch_bytes());
          plan.run(run.x.floats(), run.x_row, run.w.data(), y.floats(), run.y_row, run.bias.floats(), scratch.data(),
                   threads, m);
          EXPECT_TRUE(same_bits(y, run(isa, threads, 0, m)) && y.guard_is_whole() && scratch.guard_is_whole())
              << dense::name(isa) << " " << dense::name(layout.weights) << " m " << m;
        }
        EXPECT_EQ(error_of([&] { plan.run(nullptr, 0, nullptr, nullptr, 0, nullptr, nullptr, threads, most + 1); }),
                  dense::text("matvec: planned for up to ", most, " rows, got ", most + 1));
      }
}

TEST(MatvecThreads, DoNotChangeBits) {
  Threads one(1), two(2), three(3);
  for (Isa isa : isas())
    for (const Layout& layout : layouts)
      for (int64_t m : {1, 3, 40})
        for (const auto& [n, k] : {std::pair<int64_t, int64_t>{900, 500}, {130, 2900}}) {
          const Product run({m, n, k, layout.weights, layout.by_row});
          const Bytes y = run(isa, one);
          EXPECT_TRUE(same_bits(y, run(isa, two)) && same_bits(y, run(isa, three)))
              << dense::name(isa) << " " << dense::name(layout.weights) << " m " << m;
        }
}

TEST(Matvec, Avx512AndAvx2GiveTheSameBits) {
  if (dense::best_isa() != Isa::avx512) GTEST_SKIP() << "needs AVX-512";
  Threads threads(2);
  for (const Layout& layout : layouts)
    for (int64_t m : {1, 11}) {
      const Product run({m, 210, 1000, layout.weights, layout.by_row});
      EXPECT_TRUE(same_bits(run(Isa::avx512, threads), run(Isa::avx2, threads))) << dense::name(layout.weights);
    }
}

// 32 chains of fused multiply-adds, in whatever order a kernel keeps them; then 16 sums, 8, 4, 2 and one.
TEST(Matvec, SumsRowsAsItsContractSays) {
  if (dense::best_isa() == Isa::portable) GTEST_SKIP() << "portable code rounds products";
  Threads threads(2);
  for (Isa isa : isas()) {
    if (isa == Isa::portable) continue;
    for (Dtype weights : {Dtype::f32, Dtype::bf16, Dtype::f16})
      for (int64_t k : {1, 31, 32, 45, 64, 1000}) {
        const Product run({3, 37, k, weights, true, true, 1});
        const Bytes y = run(isa, threads);
        for (int64_t i = 0; i < 3; ++i)
          for (int64_t j = 0; j < 37; ++j) {
            float sums[32] = {};
            for (int64_t at = 0; at < k; ++at)
              sums[at % 32] =
                  std::fma(float(run.values[size_t(j * k + at)]), run.x.floats()[i * run.x_row + at], sums[at % 32]);
            for (int half = 16; half > 0; half /= 2)
              for (int lane = 0; lane < half; ++lane) sums[lane] += sums[lane + half];
            ASSERT_EQ(y.floats()[i * run.y_row + j], sums[0] + run.bias.floats()[j])
                << dense::name(isa) << " " << dense::name(weights) << " k " << k;
          }
      }
  }
}

// So what decoding computes with a matrix (k, n) is what training and prefill compute with it.
TEST(Matvec, HasTheBitsOfMatmulWhereWeightsAreByColumn) {
  Threads threads(2);
  for (Isa isa : isas())
    for (int64_t k : {100, 384, 1000}) {
      const Product run({5, 130, k, Dtype::f32, false});
      const dense::Matmul plan({.m = 5, .n = 130, .k = k, .a_row = k, .b_row = 130, .c_row = 130, .bias = true}, isa,
                               2);
      Bytes c(5 * 130 * 4), scratch(plan.scratch_bytes());
      plan.run(run.x.data(), run.w.data(), c.data(), run.bias.data(), scratch.data(), threads);
      EXPECT_TRUE(same_bits(c, run(isa, threads))) << dense::name(isa) << " k " << k;
    }
}

// No group may overflow on its way: the largest of x meet the largest weights of either sign.
TEST(Matvec, SumsTheLargestIntegersExactly) {
  Threads threads(1);
  for (Isa isa : isas())
    for (Dtype type : {Dtype::q8, Dtype::q4})
      for (int sign : {-1, 1}) {
        Bytes w(dense::quantised_bytes(type, 16, 64)), y(16 * 4);
        const bool q4 = type == Dtype::q4;
        std::memset(w.data() + 64, sign < 0 ? 0 : 0xff, w.size - 64);  // even 0, which quantise() never makes of q8
        for (int i = 0; i < 32; ++i) reinterpret_cast<uint16_t*>(w.data())[i] = dense::narrowed_half(1);
        std::vector<float> x(64);
        for (size_t i = 0; i < 64; ++i) x[i] = i % 32 < 20 ? -127.0f : 127.0f;
        const Matvec plan({.m = 1, .n = 16, .k = 64, .weights = type}, isa, 1);
        Bytes scratch(plan.scratch_bytes());
        plan.run(x.data(), 64, w.data(), y.floats(), 16, nullptr, scratch.data(), threads);
        const int value = q4 ? (sign < 0 ? -8 : 7) : (sign < 0 ? -128 : 127);
        for (int j = 0; j < 16; ++j) EXPECT_EQ(y.floats()[j], float(value * 2 * (12 - 20) * 127)) << dense::name(isa);
      }
}

TEST(Matvec, NanAndInfinityGoThrough) {
  Threads threads(2);
  for (Isa isa : isas())
    for (const Layout& layout : layouts)
      for (float bad : {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
        Product run({3, 40, 300, layout.weights, layout.by_row});
        run.x.floats()[300 + 299] = bad;
        const Bytes y = run(isa, threads);
        for (int64_t j = 0; j < 40; ++j) {
          EXPECT_TRUE(std::isfinite(y.floats()[j]) && std::isfinite(y.floats()[80 + j]));
          EXPECT_FALSE(std::isfinite(y.floats()[40 + j])) << dense::name(isa) << " " << dense::name(layout.weights);
        }
      }
}

TEST(Matvec, RunAllocatesNothing) {
  Threads threads(2);
  for (Isa isa : isas())
    for (const Layout& layout : layouts)
      for (int64_t m : {1, 8, 200}) {
        const Product run({m, 900, 500, layout.weights, layout.by_row});
        const Matvec plan(run.spec, isa, 2);
        Bytes y(size_t(m * 900) * 4), scratch(plan.scratch_bytes());
        const size_t before = allocations();
        plan.run(run.x.floats(), 500, run.w.data(), y.floats(), 900, run.bias.floats(), scratch.data(), threads);
        EXPECT_EQ(allocations(), before);
      }
}

TEST(Matvec, RefusesWhatItCannotDo) {
  const auto plan = [](const MatvecSpec& s) { return error_of([&] { Matvec(s, Isa::portable, 1); }); };
  EXPECT_EQ(plan({.m = 2, .n = 3, .k = 4, .weights = Dtype::f64, .row_stride = 4}),
            "matvec (2, 4) f64 (3, 4)^T: expected weights of f32, bf16, f16, int8 or int4");
  EXPECT_EQ(plan({.m = 2, .n = 3, .k = 4, .weights = Dtype::q8, .by_row = false}),
            "matvec (2, 4) int8 (4, 3): expected weights by row");
  EXPECT_EQ(plan({.m = 2, .n = 3, .k = 4, .by_row = false, .row_stride = 2}),
            "matvec (2, 4) f32 (4, 3): expected rows of W at least 3 apart, got 2");
}

// ---- 8 and 4 bits.

// The bytes of files, one by one.
TEST(Quantised, LayoutIsLinesOfSixteenRows) {
  Threads threads(1);
  const int64_t n = 17, k = 70;
  std::vector<float> w(size_t(n * k), 0);
  const auto set = [&](int64_t row, int64_t at, float value) { w[size_t(row * k + at)] = value; };
  set(3, 0, -8), set(3, 6, 5);    // block 0, group 0: lines 0 and 1
  set(3, 32, -8), set(3, 39, 2);  // group 1
  set(16, 64, -8);                // the second strip's block 1
  for (Dtype type : {Dtype::q8, Dtype::q4}) {
    const bool q4 = type == Dtype::q4;
    const size_t block = q4 ? 576 : 1088;
    EXPECT_EQ(dense::quantised_bytes(type, n, k), 4 * block);
    if (!q4)  // so that scales are 1
      for (float& x : w) x = x == -8 ? -127 : x;
    Bytes bytes(4 * block);
    dense::quantise({w.data(), Dtype::f32, n, k, k, 1}, type, bytes.data(), threads);
    if (!q4)
      for (float& x : w) x = x == -127 ? -8 : x;
    const auto byte = [&](size_t i) { return int(bytes.data()[i]); };
    const auto scale = [&](size_t i) {
      uint16_t half;
      std::memcpy(&half, bytes.data() + i, 2);
      return dense::widened_half(half);
    };
    EXPECT_EQ(scale(3 * 2), 1);
    EXPECT_EQ(scale(32 + 3 * 2), 1);
    EXPECT_EQ(scale(4 * 2), 0);
    EXPECT_EQ(scale(3 * block), 1);  // row 16 is row 0 of strip 1, of which this is block 1
    if (q4) {
      EXPECT_EQ(byte(64 + 0 * 64 + 3 * 4 + 0), 0x00);  // -8 and, of group 1, -8
      EXPECT_EQ(byte(64 + 1 * 64 + 3 * 4 + 2), 0x8d);  // k 6: 5, and k 38: 0
      EXPECT_EQ(byte(64 + 1 * 64 + 3 * 4 + 3), 0xa8);  // k 7: 0, and k 39: 2
      EXPECT_EQ(byte(3 * block + 64), 0x80);
      EXPECT_EQ(byte(3 * block + 64 + 15 * 4), 0x88);  // row 31 is none
    } else {
      EXPECT_EQ(byte(64 + 0 * 64 + 3 * 4 + 0), 128 - 127);
      EXPECT_EQ(byte(64 + 1 * 64 + 3 * 4 + 2), 128 + 5);
      EXPECT_EQ(byte(64 + 512 + 0 * 64 + 3 * 4 + 0), 128 - 127);
      EXPECT_EQ(byte(64 + 512 + 1 * 64 + 3 * 4 + 3), 128 + 2);
      EXPECT_EQ(byte(3 * block + 64), 128 - 127);
      EXPECT_EQ(byte(3 * block + 64 + 15 * 4), 128);
    }
  }
}

TEST(Quantised, ErrsByHalfAStepAtMost) {
  Threads threads(2);
  const int64_t n = 40, k = 200;
  const Bytes w = random_floats(n * k, 3);
  std::vector<float> row(k);
  double squares[2] = {}, size = 0;
  for (Dtype type : {Dtype::q8, Dtype::q4}) {
    Bytes bytes(dense::quantised_bytes(type, n, k));
    dense::quantise({w.data(), Dtype::f32, n, k, k, 1}, type, bytes.data(), threads);
    for (int64_t j = 0; j < n; ++j) {
      dense::dequantise_row(bytes.data(), type, j, k, row.data());
      for (int64_t i = 0; i < k; i += 32) {
        double largest = 0;
        const int64_t end = std::min(k, i + 32);
        for (int64_t q = i; q < end; ++q) largest = std::max(largest, std::abs(double(w.floats()[j * k + q])));
        // 1.001: the scale is rounded. q4: the other end of the range may lack a whole step, and more where that helps.
        const double most = type == Dtype::q8 ? largest / 127 / 2 * 1.001 + largest * 0.0005 : largest / 7;
        for (int64_t q = i; q < end; ++q) {
          const double wrong = w.floats()[j * k + q] - row[size_t(q)];
          ASSERT_LE(std::abs(wrong), most);
          squares[type == Dtype::q4] += wrong * wrong;
          if (type == Dtype::q4) size += double(w.floats()[j * k + q]) * w.floats()[j * k + q];
        }
      }
    }
  }
  EXPECT_LT(std::sqrt(squares[0] / size), 0.005);
  EXPECT_LT(std::sqrt(squares[1] / size), 0.064);  // 0.0667 with a scale of largest / -8 alone
}

TEST(Quantised, KeepsWhatItCanRepresent) {
  Threads threads(2);
  std::mt19937 random(1);
  const int64_t n = 33, k = 96;
  for (Dtype type : {Dtype::q8, Dtype::q4}) {
    const int half = type == Dtype::q4 ? 8 : 128;
    std::vector<float> w(size_t(n * k)), row(k);
    for (size_t i = 0; i < w.size(); ++i) {
      const float scale = std::ldexp(i / 32 % 3 == 0 ? 1.0f : -1.25f, int(i / 32 % 20) - 16);
      const int q = i % 32 == 0 ? (half == 8 ? -8 : -127) : int(random() % unsigned(2 * half - 1)) - half + 1;
      w[i] = scale * float(q);
    }
    Bytes bytes(dense::quantised_bytes(type, n, k));
    dense::quantise({w.data(), Dtype::f32, n, k, k, 1}, type, bytes.data(), threads);
    for (int64_t j = 0; j < n; ++j) {
      dense::dequantise_row(bytes.data(), type, j, k, row.data());
      for (int64_t i = 0; i < k; ++i) ASSERT_EQ(row[size_t(i)], w[size_t(j * k + i)]) << j << " " << i;
    }
  }
}

TEST(Quantised, BytesDependOnNeitherLayoutNorThreadsNorMachine) {
  Threads one(1), three(3);
  const int64_t n = 70, k = 130;
  for (Dtype stored : {Dtype::f32, Dtype::bf16, Dtype::f16})
    for (Dtype type : {Dtype::q8, Dtype::q4}) {
      const auto convert = dense::elements_f32(Isa::portable);
      const size_t size = dense::size_of(stored);
      const Bytes floats = random_floats(n * k, 5);
      Bytes by_row(size_t(n * k) * size), by_column(size_t(n * k) * size);
      convert.store(floats.floats(), n * k, by_row.data(), stored, 1);
      for (int64_t j = 0; j < n; ++j)
        convert.store(floats.floats() + j * k, k, by_column.data() + size_t(j) * size, stored, n);
      Bytes want(dense::quantised_bytes(type, n, k));
      dense::quantise({by_row.data(), stored, n, k, k, 1}, type, want.data(), one, Isa::portable);
      for (Isa isa : isas()) {
        Bytes got = want;
        std::memset(got.data(), 0, got.size);
        dense::quantise({by_row.data(), stored, n, k, k, 1}, type, got.data(), three, isa);
        EXPECT_TRUE(same_bits(got, want)) << dense::name(isa);
        std::memset(got.data(), 0, got.size);
        dense::quantise({by_column.data(), stored, n, k, 1, n}, type, got.data(), three, isa);
        EXPECT_TRUE(same_bits(got, want)) << dense::name(isa);
      }
    }
}

TEST(Quantised, RefusesWhatItCannotDo) {
  Threads threads(2);
  std::vector<float> w(16 * 64, 0);
  w[100] = std::numeric_limits<float>::infinity();
  Bytes bytes(dense::quantised_bytes(Dtype::q8, 16, 64));
  const auto quantise = [&](Dtype from, Dtype to) {
    return error_of([&] { dense::quantise({w.data(), from, 16, 64, 64, 1}, to, bytes.data(), threads); });
  };
  EXPECT_EQ(quantise(Dtype::f32, Dtype::q8), "quantise: expected finite weights, got NaN or infinity");
  EXPECT_EQ(quantise(Dtype::i32, Dtype::q8), "quantise: expected f32, bf16 or f16, got i32");
  EXPECT_EQ(quantise(Dtype::f32, Dtype::f32), "quantised: expected int8 or int4, got f32");
}

TEST(Half, GoesToAndFroForAllItsValues) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float x = dense::widened_half(uint16_t(bits));
    if (std::isnan(x)) EXPECT_TRUE(std::isnan(dense::widened_half(dense::narrowed_half(x))));
    else EXPECT_EQ(dense::narrowed_half(x), bits);
    if ((bits & 0x7fff) >= 0x7bff) continue;
    // Halfway to the next goes to the even one, a little off it to the nearer one.
    const float next = dense::widened_half(uint16_t(bits + 1)), half = (x + next) / 2;
    EXPECT_EQ(dense::narrowed_half(half), bits + (bits & 1));
    EXPECT_EQ(dense::narrowed_half(std::nextafter(half, x)), bits);
    EXPECT_EQ(dense::narrowed_half(std::nextafter(half, next)), bits + 1);
  }
}

}  // namespace
