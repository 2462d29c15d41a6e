// Matrix products against sums in double; bits that threads, batches and blocks must not change; the pool of threads.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <thread>

#include "dense/tensor/matmul.h"
#include "tests/allocations.h"
#include "tests/errors.h"

namespace {

using dense::Dtype;
using dense::Isa;
using dense::Matmul;
using dense::MatmulSpec;
using dense::Threads;

constexpr float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();

// Those this machine runs, and that DENSE_ISA does not exclude.
std::vector<Isa> isas() {
  std::vector<Isa> all;
  for (int isa = int(dense::best_isa()); isa <= int(Isa::portable); ++isa) all.push_back(Isa(isa));
  return all;
}

// Memory for elements of one type, at 64 bytes, with guards behind it that nobody may write to.
struct Buffer {
  struct alignas(64) Line {
    std::byte bytes[64];
  };
  Dtype type;
  int64_t size;
  std::vector<Line> memory;

  Buffer(Dtype t, int64_t n) : type(t), size(n), memory(size_t(n) * dense::size_of(t) / 64 + 3) {
    std::memset(memory.data(), 0x5a, memory.size() * 64);
  }
  std::byte* data() { return memory.data()->bytes; }
  const std::byte* data() const { return memory.data()->bytes; }
  bool guard_is_whole() const {
    return std::all_of(data() + size_t(size) * dense::size_of(type), data() + memory.size() * 64,
                       [](std::byte b) { return b == std::byte{0x5a}; });
  }
  double get(int64_t i) const {
    const std::byte* p = data() + size_t(i) * dense::size_of(type);
    if (type == Dtype::f64) return *reinterpret_cast<const double*>(p);
    if (type == Dtype::f32) return *reinterpret_cast<const float*>(p);
    const uint32_t bits = uint32_t(*reinterpret_cast<const uint16_t*>(p)) << 16;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
  }
  std::vector<double> values() const {
    std::vector<double> all(static_cast<size_t>(size));
    for (int64_t i = 0; i < size; ++i) all[size_t(i)] = get(i);
    return all;
  }
  void set(int64_t i, double x) {
    std::byte* p = data() + size_t(i) * dense::size_of(type);
    const float y = float(x);
    uint32_t bits;
    std::memcpy(&bits, &y, 4);
    if (type == Dtype::f64) *reinterpret_cast<double*>(p) = x;
    else if (type == Dtype::f32) *reinterpret_cast<float*>(p) = y;
    else *reinterpret_cast<uint16_t*>(p) = uint16_t(bits >> 16);
  }
  void fill(std::mt19937& random) {
    for (int64_t i = 0; i < size; ++i) set(i, double(random() % 2001) / 1000 - 1);
  }
};

struct Case {
  int64_t m, n, k;
  bool a_transposed = false, b_transposed = false;
  Dtype type = Dtype::f32, c_type = Dtype::f32;
  bool accumulate = false, bias = false;
  int64_t more = 0;  // how much longer the rows in memory are than they need be
  std::vector<MatmulSpec::Batch> batch = {};

  MatmulSpec spec() const {
    MatmulSpec s{.m = m,
                 .n = n,
                 .k = k,
                 .type = type,
                 .c_type = c_type,
                 .a_row = k + more,
                 .b_row = n + more,
                 .c_row = n + more,
                 .batch = batch,
                 .accumulate = accumulate,
                 .bias = bias};
    if (a_transposed) s.a_row = 1, s.a_col = m + more;
    if (b_transposed) s.b_row = 1, s.b_col = k + more;
    return s;
  }
  std::string name() const {
    return dense::text("m ", m, " n ", n, " k ", k, a_transposed ? " A^T" : "", b_transposed ? " B^T" : "", " ",
                       dense::name(type), " ", dense::name(c_type), accumulate ? " + C" : "", bias ? " + bias" : "",
                       " more ", more, " batches ", batch.size());
  }
};

struct Product {
  MatmulSpec spec;
  Buffer a, b, c, bias;

  static int64_t end(const MatmulSpec& s, int64_t inner, int64_t MatmulSpec::Batch::*stride) {
    for (const MatmulSpec::Batch& dim : s.batch) inner += std::max<int64_t>(dim.size - 1, 0) * dim.*stride;
    return inner;
  }
  explicit Product(const MatmulSpec& s, unsigned seed = 1)
      : spec(s),
        a(s.type, end(s, std::max<int64_t>(0, (s.m - 1) * s.a_row + (s.k - 1) * s.a_col + 1), &MatmulSpec::Batch::a)),
        b(s.type, end(s, std::max<int64_t>(0, (s.k - 1) * s.b_row + (s.n - 1) * s.b_col + 1), &MatmulSpec::Batch::b)),
        c(s.c_type, end(s, std::max<int64_t>(0, (s.m - 1) * s.c_row + s.n), &MatmulSpec::Batch::c)),
        bias(s.c_type, s.n) {
    std::mt19937 random(seed);
    for (Buffer* x : {&a, &b, &c, &bias}) x->fill(random);
  }
  // C as the plan computes it.
  Buffer operator()(Isa isa, Threads& threads) const {
    const Matmul plan(spec, isa, threads.count());
    Buffer out = c, scratch(Dtype::f32, int64_t(plan.scratch_bytes() / 4));
    plan.run(a.data(), b.data(), out.data(), spec.bias ? bias.data() : nullptr, scratch.data(), threads);
    EXPECT_TRUE(out.guard_is_whole());
    EXPECT_TRUE(scratch.guard_is_whole());
    return out;
  }
};

// f(offset of a, of b, of c) for each element of the batch.
void each_of_batch(const MatmulSpec& s, const auto& f) {
  int64_t count = 1;
  for (const MatmulSpec::Batch& dim : s.batch) count *= dim.size;
  for (int64_t index = 0; index < count; ++index) {
    int64_t rest = index, a = 0, b = 0, c = 0;
    for (size_t i = s.batch.size(); i-- > 0; rest /= s.batch[i].size) {
      const int64_t at = rest % s.batch[i].size;
      a += at * s.batch[i].a, b += at * s.batch[i].b, c += at * s.batch[i].c;
    }
    f(a, b, c);
  }
}

// Holds a result to sums in double; what lies between the rows of C must be as it was.
void expect_product(const Product& run, const Buffer& got, const std::string& what) {
  const MatmulSpec& s = run.spec;
  const std::vector<double> a = run.a.values(), b = run.b.values(), before = run.c.values(), bias = run.bias.values();
  std::vector<double> want = before, error(before.size(), 0), sum(size_t(s.n)), size(size_t(s.n));
  std::vector<double> rows(size_t(s.k * s.n));  // of B
  each_of_batch(s, [&](int64_t a0, int64_t b0, int64_t c0) {
    for (int64_t k = 0; k < s.k; ++k)
      for (int64_t j = 0; j < s.n; ++j) rows[size_t(k * s.n + j)] = b[size_t(b0 + k * s.b_row + j * s.b_col)];
    for (int64_t i = 0; i < s.m; ++i) {
      const double* const c_row = before.data() + c0 + i * s.c_row;
      for (size_t j = 0; j < size_t(s.n); ++j) {
        sum[j] = (s.bias ? bias[j] : 0) + (s.accumulate ? c_row[j] : 0);
        size[j] = (s.bias ? std::abs(bias[j]) : 0) + (s.accumulate ? std::abs(c_row[j]) : 0);
      }
      for (int64_t k = 0; k < s.k; ++k) {
        const double x = a[size_t(a0 + i * s.a_row + k * s.a_col)];
        for (size_t j = 0; j < size_t(s.n); ++j) {
          const double product = x * rows[size_t(k * s.n) + j];
          sum[j] += product, size[j] += std::abs(product);
        }
      }
      for (size_t j = 0; j < size_t(s.n); ++j) {
        const size_t at = size_t(c0 + i * s.c_row) + j;
        want[at] = sum[j];
        error[at] = s.c_type == Dtype::bf16  ? 0x1p-8 * std::abs(sum[j]) + 1e-6 * size[j]
                    : s.c_type == Dtype::f32 ? 1e-6 * size[j]
                                             : 1e-14 * size[j];
      }
    }
  });
  int wrong = 0;
  for (size_t at = 0; at < want.size() && wrong < 4; ++at)
    if (const double found = got.get(int64_t(at)); !(std::abs(found - want[at]) <= error[at]) && ++wrong)
      ADD_FAILURE() << what << ": at " << at << " expected " << want[at] << ", got " << found;
}

bool same_bits(const Buffer& x, const Buffer& y) {
  return x.size == y.size && std::memcmp(x.data(), y.data(), size_t(x.size) * dense::size_of(x.type)) == 0;
}

// The types that go together, and every layout, for sizes at and beside all the blocks there are.
std::vector<Case> cases() {
  std::vector<Case> all;
  const std::pair<Dtype, Dtype> types[] = {
      {Dtype::f32, Dtype::f32}, {Dtype::bf16, Dtype::f32}, {Dtype::bf16, Dtype::bf16}, {Dtype::f64, Dtype::f64}};
  const int64_t sizes[][3] = {{1, 1, 1},   {1, 16, 5},  {2, 17, 16},  {3, 50, 7},    {12, 32, 64},  {13, 33, 65},
                              {50, 1, 50}, {7, 2, 300}, {17, 31, 17}, {64, 64, 256}, {65, 48, 257}, {97, 100, 20},
                              {5, 0, 4},   {0, 4, 4},   {4, 5, 0},    {100, 400, 3}, {1, 65, 600}};
  unsigned turn = 0;
  for (const auto& [type, c_type] : types)
    for (const auto& [m, n, k] : sizes)
      for (bool a_transposed : {false, true})
        for (bool b_transposed : {false, true}) {
          ++turn;  // the rest takes turns
          all.push_back({m, n, k, a_transposed, b_transposed, type, c_type, turn % 2 == 0, turn % 3 == 0, turn % 5});
        }
  return all;
}

TEST(Matmul, EqualsSumsInDoubleForEveryTypeAndLayout) {
  Threads threads(2);
  for (Isa isa : isas())
    for (const Case& one : cases()) {
      const Product run(one.spec());
      expect_product(run, run(isa, threads), dense::text(dense::name(isa), " ", one.name()));
    }
}

TEST(Matmul, EqualsSumsInDoubleWhereShared) {
  Threads threads(3);
  for (Isa isa : isas())
    for (bool a_transposed : {false, true})
      for (bool b_transposed : {false, true})
        for (const auto& [type, c_type] : {std::pair(Dtype::f32, Dtype::f32), std::pair(Dtype::bf16, Dtype::bf16)}) {
          const Case one{397, 417, 40, a_transposed, b_transposed, type, c_type, false, true, 3};
          const Product run(one.spec());
          expect_product(run, run(isa, threads), dense::text(dense::name(isa), " ", one.name()));
        }
}

TEST(Matmul, MultipliesBatchesWithSharedOperands) {
  Threads threads(2);
  using Batch = MatmulSpec::Batch;
  for (Isa isa : isas())
    for (int64_t m : {1, 6, 70})
      for (const std::vector<Batch>& batch : {std::vector<Batch>{{3, 3000, 2000, 5000}},
                                              {{2, 0, 2000, 10000}, {2, 3000, 0, 5000}},
                                              {{5, 0, 0, 5000}},
                                              {{0, 1, 1, 1}},
                                              {{300, 1, 0, 5000}}}) {
        const Case one{m, 40, 30, false, true, Dtype::f32, Dtype::f32, false, true, 5, batch};
        const Product run(one.spec());
        expect_product(run, run(isa, threads), dense::text(dense::name(isa), " ", one.name()));
      }
}

TEST(Matmul, WidensBf16OfBOnTheWay) {
  Threads threads(2);
  for (bool transposed : {false, true})
    for (int64_t m : {1, 7, 100}) {
      const Product run(Case{m, 90, 500, false, transposed}.spec());
      Product mixed = run, wide = run;
      mixed.spec.b_bf16 = true;
      mixed.b = Buffer(Dtype::bf16, run.b.size);
      std::mt19937 random(7);
      mixed.b.fill(random);
      const std::vector<double> values = mixed.b.values();
      for (size_t i = 0; i < values.size(); ++i) reinterpret_cast<float*>(wide.b.data())[i] = float(values[i]);
      for (Isa isa : isas()) EXPECT_TRUE(same_bits(mixed(isa, threads), wide(isa, threads))) << m << transposed;
    }
}

TEST(MatmulThreads, DoNotChangeBits) {
  Threads one(1), two(2), three(3);
  for (Isa isa : isas())
    for (Dtype type : {Dtype::f32, Dtype::bf16})
      for (bool b_transposed : {false, true})
        for (const auto& [m, n, k] :
             {std::array<int64_t, 3>{1, 2000, 300}, {300, 70, 300}, {64, 401, 520}, {600, 66, 400}}) {
          const Product run(Case{m, n, k, false, b_transposed, type, type, false, true}.spec());
          const Buffer c = run(isa, one);
          EXPECT_TRUE(same_bits(c, run(isa, two)) && same_bits(c, run(isa, three))) << dense::name(isa) << m;
        }
}

TEST(Matmul, RowHasTheSameBitsAloneAndAmongOthers) {
  Threads threads(2);
  for (Isa isa : isas())
    for (Dtype type : {Dtype::f32, Dtype::bf16, Dtype::f64})
      for (bool a_transposed : {false, true})
        for (bool b_transposed : {false, true})
          for (const auto& [n, k] : {std::pair<int64_t, int64_t>{16, 16}, {27, 64}, {20, 400}, {500, 800}}) {
            if (isa == Isa::portable && n > 27) continue;  // slow
            const Product most(Case{300, n, k, a_transposed, b_transposed, type, type, true, true}.spec());
            const Buffer all = most(isa, threads);
            for (int64_t m : {1, 2, 7, 64})
              for (int64_t first : {int64_t(0), int64_t(5), 300 - m}) {
                Product some = most;
                some.spec.m = m;
                const Matmul plan(some.spec, isa, 2);
                Buffer c = some.c, scratch(Dtype::f32, int64_t(plan.scratch_bytes() / 4));
                const size_t size = dense::size_of(type), offset = size_t(first * n) * size;
                plan.run(some.a.data() + size_t(first * some.spec.a_row) * size, some.b.data(), c.data() + offset,
                         some.bias.data(), scratch.data(), threads);
                EXPECT_EQ(std::memcmp(c.data() + offset, all.data() + offset, size_t(m * n) * size), 0)
                    << dense::name(isa) << " " << dense::name(type) << " m " << m << " n " << n << " k " << k;
              }
          }
}

TEST(Matmul, TakesOtherSizesThanPlannedWithTheBitsOfTheirOwnPlans) {
  Threads threads(2);
  for (Isa isa : isas())
    for (Dtype type : {Dtype::f32, Dtype::bf16, Dtype::f64})
      for (bool a_transposed : {false, true})
        for (const auto& [planned, n] : {std::pair<int64_t, int64_t>{1, 20}, {40, 27}, {40, 400}, {400, 400}}) {
          if (isa == Isa::portable && n > 27) continue;  // slow
          const Product most(Case{130, n, 420, a_transposed, true, type, type, false, true}.spec());
          MatmulSpec spec = most.spec;
          spec.m = planned;
          const Matmul plan(spec, isa, 2);
          for (int64_t m : {0, 1, 130})
            for (int64_t k : {0, 70, 420}) {
              Product own = most;
              own.spec.m = m, own.spec.k = k;
              Buffer c = most.c, scratch(Dtype::f32, int64_t(plan.scratch_bytes() / 4));
              plan.run(most.a.data(), most.b.data(), c.data(), most.bias.data(), scratch.data(), threads, m, k);
              EXPECT_TRUE(same_bits(c, own(isa, threads)) && scratch.guard_is_whole())
                  << dense::name(isa) << " " << dense::name(type) << " m " << m << " n " << n << " k " << k;
            }
          EXPECT_EQ(error_of([&] { plan.run(nullptr, nullptr, nullptr, nullptr, nullptr, threads, 1, 421); }),
                    "matmul: planned for sums of up to 420, got 421");
        }
}

TEST(Matmul, BatchDoesNotChangeBits) {
  Threads threads(2);
  for (Isa isa : isas()) {
    const Product run(
        Case{40, 50, 300, false, true, Dtype::f32, Dtype::f32, false, true, 0, {{7, 0, 15000, 2000}}}.spec());
    const Buffer all = run(isa, threads);
    MatmulSpec alone = run.spec;
    alone.batch.clear();
    const Matmul plan(alone, isa, 2);
    Buffer c(Dtype::f32, 2000), scratch(Dtype::f32, int64_t(plan.scratch_bytes() / 4));
    for (size_t i = 0; i < 7; ++i) {
      plan.run(run.a.data(), run.b.data() + i * 60000, c.data(), run.bias.data(), scratch.data(), threads);
      EXPECT_EQ(std::memcmp(c.data(), all.data() + i * 8000, 8000), 0);
    }
  }
}

TEST(Matmul, Avx512AndAvx2GiveTheSameBits) {
  if (dense::best_isa() != Isa::avx512) GTEST_SKIP() << "needs AVX-512";
  Threads threads(2);
  for (Dtype type : {Dtype::f32, Dtype::bf16})
    for (bool b_transposed : {false, true}) {
      const Product run(Case{70, 130, 600, true, b_transposed, type, type, true, true}.spec());
      EXPECT_TRUE(same_bits(run(Isa::avx512, threads), run(Isa::avx2, threads)));
    }
}

TEST(Matmul, TakesGpt2Shapes) {
  Threads threads(2);
  const Isa isa = dense::best_isa();
  if (isa == Isa::portable) GTEST_SKIP() << "slow";
  for (const auto& [n, k, b_transposed] :
       {std::tuple<int64_t, int64_t, bool>{2304, 768, false}, {768, 3072, true}, {5027, 768, true}})
    for (Dtype type : {Dtype::f32, Dtype::bf16}) {
      const Product run(Case{13, n, k, false, b_transposed, type}.spec());
      expect_product(run, run(isa, threads), "gpt2");
    }
}

TEST(Matmul, NanAndInfinityGoThrough) {
  Threads threads(2);
  for (Isa isa : isas())
    for (const auto& [type, c_type] : {std::pair(Dtype::f32, Dtype::f32), std::pair(Dtype::bf16, Dtype::bf16)})
      for (bool b_transposed : {false, true}) {
        Product run(Case{20, 40, 300, false, b_transposed, type, c_type}.spec());
        run.a.set(3 * 300 + 7, nan);
        run.a.set(4 * 300 + 299, inf);
        const Buffer c = run(isa, threads);
        for (int64_t j = 0; j < 40; ++j) {
          EXPECT_TRUE(std::isnan(c.get(3 * 40 + j)));
          EXPECT_FALSE(std::isfinite(c.get(4 * 40 + j)));
          EXPECT_TRUE(std::isfinite(c.get(5 * 40 + j)));
        }
        // Not even 0 * inf is left out.
        run.b.set(0, inf);
        run.a.set(6 * 300, 0);
        EXPECT_TRUE(std::isnan(run(isa, threads).get(6 * 40)));
      }
}

TEST(Matmul, RoundsToBf16WithTiesToEven) {
  Threads threads(1);
  for (Isa isa : isas()) {
    Product run(Case{1, 37, 2, false, false, Dtype::bf16, Dtype::bf16}.spec());
    run.a.set(0, 1), run.a.set(1, 1);
    for (int64_t j = 0; j < 37; ++j) {
      run.b.set(j, j % 2 == 0 ? 1 : 1 + 0x1p-7);
      run.b.set(37 + j, 0x1p-8);  // half of what 1 + 0x1p-7 is above 1
    }
    const Buffer c = run(isa, threads);
    for (int64_t j = 0; j < 37; ++j) EXPECT_EQ(c.get(j), j % 2 == 0 ? 1 : 1 + 0x1p-6);
  }
}

TEST(Matmul, NothingToSumGivesZeroOrBias) {
  Threads threads(2);
  for (Isa isa : isas())
    for (Dtype type : {Dtype::f32, Dtype::bf16, Dtype::f64})
      for (bool bias : {false, true})
        for (bool accumulate : {false, true}) {
          const Product run(Case{9, 21, 0, false, false, type, type, accumulate, bias}.spec());
          expect_product(run, run(isa, threads), "k = 0");
        }
}

TEST(Matmul, RunAllocatesNothing) {
  Threads threads(2);
  for (Isa isa : isas())
    for (Dtype type : {Dtype::f32, Dtype::bf16, Dtype::f64})
      for (int64_t m : {1, 8, 200}) {
        const Product run(Case{m, 100, 200, false, true, type, type, false, true}.spec());
        const Matmul plan(run.spec, isa, 2);
        Buffer c = run.c, scratch(Dtype::f32, int64_t(plan.scratch_bytes() / 4));
        const size_t before = allocations();
        plan.run(run.a.data(), run.b.data(), c.data(), run.bias.data(), scratch.data(), threads);
        EXPECT_EQ(allocations(), before);
      }
}

TEST(Matmul, RefusesWhatItCannotDo) {
  const auto plan = [](const MatmulSpec& s) { return error_of([&] { Matmul(s, Isa::portable, 1); }); };
  EXPECT_EQ(
      plan({.m = 2, .n = 3, .k = 4, .type = Dtype::f16, .a_row = 4, .b_row = 3, .c_row = 3}),
      "matmul (2, 4) (4, 3): expected f32 giving f32, bf16 giving f32 or bf16, or f64 giving f64, got f16 giving f32");
  EXPECT_EQ(plan({.m = 2, .n = 3, .k = 4, .a_row = 4, .a_col = 2, .b_row = 3, .c_row = 3}),
            "matmul (2, 4) (4, 3): expected a stride of 1 in A, got 4 and 2");
  EXPECT_EQ(plan({.m = 2, .n = 3, .k = 4, .a_row = 4, .b_row = 3, .c_row = 2}),
            "matmul (2, 4) (4, 3): expected rows of C at least 3 apart, got 2");
  Threads threads(2);
  const Product run(Case{200, 100, 200}.spec());
  const Matmul two(run.spec, Isa::portable, 2);
  Threads three(3);
  EXPECT_EQ(error_of([&] { two.run(run.a.data(), run.b.data(), nullptr, nullptr, nullptr, three); }),
            "matmul: planned for 2 threads, got 3");
}

TEST(MatmulThreads, OnePlanRunsInSeveralThreads) {
  Threads pool(2);
  const Product run(Case{100, 90, 80}.spec());
  const Buffer want = run(dense::best_isa(), pool);
  const Matmul plan(run.spec, dense::best_isa(), 2);
  std::vector<std::thread> callers;
  std::vector<Buffer> results(3, run.c);
  for (Buffer& c : results)
    callers.emplace_back([&] {
      Buffer scratch(Dtype::f32, int64_t(plan.scratch_bytes() / 4));
      for (int i = 0; i < 10; ++i) plan.run(run.a.data(), run.b.data(), c.data(), nullptr, scratch.data(), pool);
    });
  for (std::thread& caller : callers) caller.join();
  for (const Buffer& c : results) EXPECT_TRUE(same_bits(c, want));
}

TEST(Threads, RunEveryTaskOnce) {
  for (int count : {1, 2, 3, 8}) {
    Threads threads(count);
    EXPECT_EQ(threads.count(), count);
    for (int tasks : {0, 1, 2, 7, 1000}) {
      std::vector<std::atomic<int>> runs(static_cast<size_t>(tasks));
      threads.run(tasks, [&](int task) { ++runs[size_t(task)]; });
      for (const auto& n : runs) EXPECT_EQ(n, 1);
    }
  }
}

TEST(Threads, TellATaskItsThread) {
  Threads threads(4);
  std::atomic<int> inside[4] = {};
  for (int i = 0; i < 100; ++i)
    threads.run(20, [&](int, int thread) {
      ASSERT_TRUE(thread >= 0 && thread < 4);
      EXPECT_EQ(++inside[thread], 1);  // nobody else has the same number at the same time
      --inside[thread];
    });
}

TEST(Threads, BeginWithTheirOwnTasks) {
  Threads threads(4);
  for (int i = 0; i < 50; ++i) {
    std::atomic<int> begun = 0;
    threads.run(8, [&](int task, int thread) {
      EXPECT_TRUE(task % 2 == 1 || task == 2 * thread);
      for (++begun; begun < 4;) std::this_thread::yield();  // until all have
    });
  }
}

TEST(Threads, ThrowInTheCallerWhatATaskThrew) {
  for (int count : {1, 3}) {
    Threads threads(count);
    for (int i = 0; i < 50; ++i) {
      EXPECT_EQ(error_of([&] {
                  threads.run(10, [](int task) {
                    if (task == 7) dense::fail("task 7");
                  });
                }),
                "task 7");
      std::atomic<int> runs = 0;
      threads.run(10, [&](int) { ++runs; });  // and are as good as new
      EXPECT_EQ(runs, 10);
    }
  }
  EXPECT_EQ(error_of([] { Threads(0); }), "Threads: expected a count of at least 1, got 0");
}

TEST(Threads, ServeSeveralCallers) {
  Threads threads(3);
  std::atomic<int> runs = 0;
  std::vector<std::thread> callers;
  for (int i = 0; i < 4; ++i)
    callers.emplace_back([&] {
      for (int j = 0; j < 200; ++j) {
        int mine = 0;
        std::atomic<int> done = 0;
        threads.run(5, [&](int) { ++done; });
        mine += done;
        runs += mine;
      }
    });
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(runs, 4 * 200 * 5);
}

TEST(Threads, WakeAfterSleep) {
  Threads threads(2);
  for (int i = 0; i < 5; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    std::atomic<int> runs = 0;
    threads.run(50, [&](int) { ++runs; });
    EXPECT_EQ(runs, 50);
  }
}

TEST(Threads, RunAllocatesNothing) {
  Threads threads(2);
  const size_t before = allocations();
  for (int i = 0; i < 10; ++i) threads.run(10, [](int) {});
  EXPECT_EQ(allocations(), before);
}

}  // namespace
