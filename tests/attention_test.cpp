// The fused attention against the plain formula, its gradients against differences, and what does not change its bits.
#include "dense/tensor/attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <ostream>
#include <random>
#include <vector>

#include "dense/scalar/error.h"
#include "dense/tensor/threads.h"
#include "tests/allocations.h"

namespace dense {
namespace {

std::vector<Isa> isas() {  // all up to the best of this machine, or to the one asked for
  std::vector<Isa> result;
  for (const Isa isa : {Isa::portable, Isa::avx2, Isa::avx512})
    if (isa >= best_isa()) result.push_back(isa);
  return result;
}

// As in an array of (B, T, heads, D) of which `of` lie side by side.
AttentionSpec::Strides strides(int64_t time, int64_t heads, int64_t dim, int64_t of = 1) {
  return {time * of * heads * dim, of * heads * dim, dim};
}

AttentionSpec make(int64_t batch, int64_t queries, int64_t keys, int64_t heads, int64_t kv_heads, int64_t dim) {
  AttentionSpec s{batch, queries, keys, heads, kv_heads, dim, 1 / std::sqrt(float(dim)), 0, true, 0, Dtype::f32, {}, {},
                  {},    {},      {},   {},    {},       {}};
  s.q = s.out = s.dq = s.dout = strides(queries, heads, dim);
  s.k = s.v = s.dk = s.dv = strides(keys, kv_heads, dim);
  return s;
}

struct Case {
  AttentionSpec spec;
  std::vector<int32_t> lengths = {}, starts = {}, firsts = {};
  static const int32_t* or_null(const std::vector<int32_t>& x) { return x.empty() ? nullptr : x.data(); }
  int64_t length(int64_t b) const { return lengths.empty() ? spec.keys : lengths[size_t(b)]; }
  int64_t start(int64_t b) const { return starts.empty() ? 0 : starts[size_t(b)]; }
  int64_t first(int64_t b) const { return firsts.empty() ? 0 : firsts[size_t(b)]; }
  bool has(int64_t b, int64_t key) const { return key >= first(b) && key < first(b) + length(b); }
};
std::ostream& operator<<(std::ostream& out, const Case& c) {
  const AttentionSpec& s = c.spec;
  return out << "B " << s.batch << " T " << s.queries << " S " << s.keys << " H " << s.heads << "/" << s.kv_heads
             << " D " << s.head_dim << " cap " << s.soft_cap << " causal " << s.causal << " window " << s.window
             << " lengths " << testing::PrintToString(c.lengths) << " starts " << testing::PrintToString(c.starts)
             << " firsts " << testing::PrintToString(c.firsts);
}

// A (B, time, heads, D) tensor anywhere in memory.
template <class T>
struct View {
  T* p;
  AttentionSpec::Strides s;
  T& operator()(int64_t b, int64_t t, int64_t h, int64_t j) const {
    return p[b * s.batch + t * s.time + h * s.head + j];
  }
};

template <class T>
struct Arrays {
  std::vector<T> q, k, v, out, lse, dout, dq, dk, dv;
};

// Numbers as if drawn from a normal distribution times `size`; results are NaN until they are written, and so are keys
// and values that no query may see.
template <class T>
Arrays<T> arrays(const Case& c, double size = 1) {
  const AttentionSpec& s = c.spec;
  std::mt19937 random(7);
  std::normal_distribution<double> normal;
  const auto room = [](const AttentionSpec::Strides& x, int64_t batch) { return size_t(batch * x.batch); };
  const auto draw = [&](const AttentionSpec::Strides& x, double times) {
    std::vector<T> result(room(x, s.batch));
    for (T& y : result) y = T(float(times * normal(random)));
    return result;
  };
  const T nan = std::numeric_limits<T>::quiet_NaN();
  const auto blank = [&](const AttentionSpec::Strides& x) { return std::vector<T>(room(x, s.batch), nan); };
  Arrays<T> a{draw(s.q, size),
              draw(s.k, size),
              draw(s.v, 1),
              blank(s.out),
              std::vector<T>(size_t(s.batch * s.heads * s.queries), nan),
              draw(s.dout, 1),
              blank(s.dq),
              blank(s.dk),
              blank(s.dv)};
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t t = 0; t < s.keys; ++t)
      for (int64_t h = 0; h < s.kv_heads && !c.has(b, t); ++h)
        for (int64_t j = 0; j < s.head_dim; ++j)
          View<T>{a.k.data(), s.k}(b, t, h, j) = View<T>{a.v.data(), s.v}(b, t, h, j) = nan;
  return a;
}

struct Scratch {
  explicit Scratch(size_t bytes) : memory(bytes + 64) {}
  std::byte* data() { return memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64; }
  std::vector<std::byte> memory;
};

template <class T>
void run(const Case& c, Arrays<T>& a, Isa isa = best_isa(), int threads = 1, bool with_backward = true) {
  AttentionSpec spec = c.spec;
  spec.type = sizeof(T) == 8 ? Dtype::f64 : Dtype::f32;
  const Attention attention(spec, isa, threads);
  Scratch scratch(attention.scratch_bytes());
  Threads pool(threads);
  const int32_t *lengths = c.or_null(c.lengths), *starts = c.or_null(c.starts), *firsts = c.or_null(c.firsts);
  attention.forward(a.q.data(), a.k.data(), a.v.data(), lengths, starts, firsts, a.out.data(), a.lse.data(),
                    scratch.data(), pool);
  if (with_backward)
    attention.backward(a.q.data(), a.k.data(), a.v.data(), a.out.data(), a.lse.data(), a.dout.data(), lengths, starts,
                       firsts, a.dq.data(), a.dk.data(), a.dv.data(), scratch.data(), pool);
}

bool sees(const Case& c, int64_t b, int64_t t, int64_t key) {
  const int64_t p = c.start(b) + t, window = c.spec.window;
  if (!c.has(b, key) || (c.spec.causal && key > p)) return false;
  return !window || std::abs(key - p) < window;
}

// The formula, with whole matrices of scores, in double.
Arrays<double> plain(const Case& c, const Arrays<double>& in) {
  const AttentionSpec& s = c.spec;
  Arrays<double> a = in;
  for (auto* y : {&a.out, &a.lse, &a.dq, &a.dk, &a.dv}) std::fill(y->begin(), y->end(), 0);
  const View<double> q{a.q.data(), s.q}, k{a.k.data(), s.k}, v{a.v.data(), s.v}, out{a.out.data(), s.out};
  const View<double> dout{a.dout.data(), s.dout}, dq{a.dq.data(), s.dq}, dk{a.dk.data(), s.dk}, dv{a.dv.data(), s.dv};
  for (int64_t b = 0; b < s.batch; ++b)
    for (int64_t h = 0; h < s.heads; ++h)
      for (int64_t t = 0; t < s.queries; ++t) {
        const int64_t g = h / (s.heads / s.kv_heads), D = s.head_dim;
        std::vector<int64_t> seen;
        for (int64_t key = 0; key < s.keys; ++key)
          if (sees(c, b, t, key)) seen.push_back(key);
        std::vector<double> score, slope, p, dp;
        double m = -std::numeric_limits<double>::infinity(), sum = 0, delta = 0;
        for (const int64_t key : seen) {
          double x = 0;
          for (int64_t j = 0; j < D; ++j) x += q(b, t, h, j) * k(b, key, g, j);
          const double y = s.soft_cap != 0 ? std::tanh(x * s.scale / s.soft_cap) : 0;
          score.push_back(s.soft_cap != 0 ? s.soft_cap * y : s.scale * x);
          slope.push_back(s.scale * (1 - y * y));
          m = std::max(m, score.back());
        }
        for (const double x : score) p.push_back(std::exp(x - m)), sum += p.back();
        a.lse[size_t((b * s.heads + h) * s.queries + t)] = m + std::log(sum);
        for (size_t i = 0; i < seen.size(); ++i) {
          p[i] /= sum;
          dp.push_back(0);
          for (int64_t j = 0; j < D; ++j) {
            out(b, t, h, j) += p[i] * v(b, seen[i], g, j);
            dv(b, seen[i], g, j) += p[i] * dout(b, t, h, j);
            dp[i] += dout(b, t, h, j) * v(b, seen[i], g, j);
          }
          delta += p[i] * dp[i];
        }
        for (size_t i = 0; i < seen.size(); ++i)
          for (int64_t j = 0; j < D; ++j) {
            const double ds = p[i] * (dp[i] - delta) * slope[i];
            dq(b, t, h, j) += ds * k(b, seen[i], g, j);
            dk(b, seen[i], g, j) += ds * q(b, t, h, j);
          }
      }
  return a;
}

template <class T>
Arrays<double> in_double(const Arrays<T>& a) {
  const auto wide = [](const std::vector<T>& x) { return std::vector<double>(x.begin(), x.end()); };
  return {wide(a.q), wide(a.k), wide(a.v), wide(a.out), wide(a.lse), wide(a.dout), wide(a.dq), wide(a.dk), wide(a.dv)};
}

// Largest |got - want| / (1 + |want|), infinite where one is a NaN.
template <class T>
double error(const std::vector<T>& got, const std::vector<double>& want) {
  double worst = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    if (double(got[i]) == want[i]) continue;
    const double e = std::abs(double(got[i]) - want[i]) / (1 + std::abs(want[i]));
    worst = e <= worst ? worst : std::isfinite(e) ? e : std::numeric_limits<double>::infinity();
  }
  return worst;
}

template <class T>
void expect_plain(const Case& c, Isa isa, double tolerance, double size = 1) {
  Arrays<T> a = arrays<T>(c, size);
  run(c, a, isa);
  const Arrays<double> want = plain(c, in_double(a));
  EXPECT_LT(error(a.out, want.out), tolerance) << c << " out " << name(isa);
  EXPECT_LT(error(a.lse, want.lse), tolerance) << c << " lse " << name(isa);
  EXPECT_LT(error(a.dq, want.dq), 4 * tolerance) << c << " dq " << name(isa);
  EXPECT_LT(error(a.dk, want.dk), 8 * tolerance) << c << " dk " << name(isa);
  EXPECT_LT(error(a.dv, want.dv), 8 * tolerance) << c << " dv " << name(isa);
}

std::vector<Case> cases() {
  std::vector<Case> result;
  using Rows = std::vector<int32_t>;
  const auto add = [&](AttentionSpec s, Rows lengths = {}, Rows starts = {}, Rows firsts = {}) {
    result.push_back({s, std::move(lengths), std::move(starts), std::move(firsts)});
    return &result.back().spec;
  };
  for (const int64_t T : {1, 2, 7, 24, 65, 130})
    for (const int64_t D : {4, 16, 24, 64, 80, 128}) add(make(1 + T % 2, T, T, 2, 2, D));
  for (const int64_t D : {1, 3, 5, 17}) add(make(1, 9, 9, 1, 1, D)), add(make(1, 1, 9, 1, 1, D), {}, {8});
  for (const int64_t T : {1, 4, 8, 9, 16})
    for (const int64_t D : {4, 8, 16}) {
      add(make(2, T, T, 3, 3, D)), add(make(9, T, T, 3, 3, D)), add(make(3, T, T, 4, 4, D));
      add(make(5, T, 16, 2, 2, D), {16, 0, 7, 16, 3}, {int32_t(16 - T), 2, -3, 0, 9})->soft_cap = 2;
      add(make(3, T, 7, 4, 2, D), {7, 1, 6}, {0, 6, 2})->window = 3;
      add(make(3, T, 7, 8, 8, D), {7, 1, 6}, {0, 6, 2})->window = 3;
      add(make(5, T, 8, 4, 4, D), {8, 0, 7, 8, 8})->causal = false;
      add(make(4, T, 16, 4, 4, D), {9, 9, 9, 9}, {3, 3, 3, 3});
      add(make(4, T, 16, 4, 4, D), {9, 9, 9, 9}, {}, {4, 4, 4, 4});  // left padding
      add(make(5, T, 16, 2, 2, D), {16, 0, 7, 9, 3}, {0, 2, 0, 0, 9}, {0, 5, 2, 7, 12});
      add(make(4, T, 8, 4, 4, D), {}, {}, {0, 1, 7, 8})->causal = false;
      add(make(4, T, 8, 4, 4, D), {5, 3, 1, 1}, {}, {1, 2, 7, 0})->window = 3;
    }
  add(make(2, 5, 77, 2, 2, 16), {}, {72, 30});  // queries after a past
  add(make(3, 1, 200, 4, 4, 64), {}, {199, 63, 64});
  add(make(2, 3, 150, 4, 4, 24), {}, {147, 62});
  add(make(2, 70, 200, 2, 2, 16), {200, 150}, {130, 63});
  add(make(1, 40, 10, 2, 2, 8));  // more queries than keys
  for (const int64_t T : {1, 3, 30, 100}) {
    for (const auto& [heads, kv_heads] : {std::pair{4, 2}, {6, 1}}) add(make(2, T, T, heads, kv_heads, 16));
    for (const int64_t window : {1, 5, 64, 70}) {
      add(make(1, T, T, 2, 2, 16))->window = window;
      auto* both = add(make(1, T, T, 2, 2, 16));
      both->window = window, both->causal = false;
      add(make(1, T, 300, 2, 1, 16), {}, {int32_t(300 - T)})->window = window;
    }
    add(make(1, T, T, 2, 2, 16))->soft_cap = 2;
    add(make(2, T, T + 9, 2, 2, 32), {}, {3, 9})->soft_cap = 1;
    add(make(2, T, T, 2, 2, 16))->causal = false;
    add(make(2, T, 77, 2, 1, 20), {70, 64})->causal = false;
    add(make(3, T, T, 2, 2, 16), {0, int32_t(T), int32_t(T + 1) / 2});  // right padding, and nothing but that
    auto* ends = add(make(2, T, T, 2, 2, 16), {int32_t(T + 2) / 3, int32_t(T)});
    ends->window = 4, ends->soft_cap = 3;  // queries whose window is behind the length
    add(make(3, T, 90, 2, 2, 16), {0, 1, 65}, {20, 0, 64})->causal = false;
    add(make(2, T, T, 2, 2, 16), {}, {-2, -200});                               // queries before the first key
    add(make(3, T, T, 4, 2, 16), {}, {}, {0, int32_t(T) / 2, int32_t(T) - 1});  // left padding
    add(make(2, T, 200, 2, 2, 16), {100, 70}, {}, {20, 128});
    add(make(2, T, 200, 2, 2, 16), {100, 70}, {100, 190}, {20, 128})->soft_cap = 2;
    add(make(2, T, 90, 2, 2, 20), {30, 1}, {}, {40, 70})->causal = false;
    add(make(2, T, T + 9, 2, 1, 16), {}, {9, 3}, {int32_t(T) / 2 + 9, 5})->window = 4;
  }
  return result;
}

TEST(Attention, IsThePlainFormula) {
  for (const Isa isa : isas())
    for (const Case& c : cases()) expect_plain<float>(c, isa, 3e-6);
}

TEST(Attention, IsThePlainFormulaInDouble) {
  for (const Isa isa : isas())
    for (const Case& c : cases()) expect_plain<double>(c, isa, 1e-14);
}

TEST(Attention, LargeScoresDoNotOverflow) {
  for (const Isa isa : isas()) {
    Case c{make(2, 40, 100, 2, 2, 16), {}, {60, 10}};
    expect_plain<double>(c, isa, 1e-9, 50);  // scores of about 1e4: their last bits matter
    Arrays<float> a = arrays<float>(c, 50);
    run(c, a, isa);
    const Arrays<double> want = plain(c, in_double(a));
    EXPECT_LT(error(a.out, want.out), 2e-3) << name(isa);
    for (const auto* y : {&a.dq, &a.dk, &a.dv})
      for (const float x : *y) ASSERT_TRUE(std::isfinite(x)) << name(isa);
  }
}

TEST(Attention, GradientsAreThoseOfDifferences) {
  for (const auto& [cap, firsts] : {std::pair(0.0, std::vector<int32_t>()), {1.5, {}}, {0.0, {3, 1}}, {1.5, {3, 1}}}) {
    Case c{make(2, 5, 7, 4, 2, 3), {7, 4}, {2, 1}, firsts};
    c.spec.soft_cap = float(cap);
    Arrays<double> a = arrays<double>(c);
    for (auto* x : {&a.k, &a.v})
      for (double& y : *x) y = std::isnan(y) ? 0 : y;
    run(c, a);
    const auto loss = [&] {
      Arrays<double> other = a;
      run(c, other, best_isa(), 1, false);
      double sum = 0;
      for (size_t i = 0; i < other.out.size(); ++i) sum += other.out[i] * other.dout[i];
      return sum;
    };
    for (const auto& [x, dx] : {std::pair{&a.q, &a.dq}, {&a.k, &a.dk}, {&a.v, &a.dv}})
      for (size_t i = 0; i < x->size(); ++i) {
        const double at = (*x)[i], h = 1e-5;
        (*x)[i] = at + h;
        const double above = loss();
        (*x)[i] = at - h;
        const double below = loss();
        (*x)[i] = at;
        ASSERT_NEAR((*dx)[i], (above - below) / (2 * h), 1e-8);
      }
  }
}

TEST(Attention, ReadsAndWritesPartsOfAFusedArray) {
  const int64_t B = 2, T = 70, H = 3, D = 16;
  for (const Isa isa : isas()) {
    Case apart{make(B, T, T, H, H, D), {}, {}}, fused = apart;
    Arrays<float> want = arrays<float>(apart);
    run(apart, want, isa);
    fused.spec.q = fused.spec.k = fused.spec.v = fused.spec.dq = fused.spec.dk = fused.spec.dv = strides(T, H, D, 3);
    std::vector<float> qkv(size_t(B * T * 3 * H * D)), dqkv(qkv.size(), NAN);
    const auto copy = [&](std::vector<float>& from, int64_t part, std::vector<float>& in, auto f) {
      for (int64_t b = 0; b < B; ++b)
        for (int64_t t = 0; t < T; ++t)
          for (int64_t h = 0; h < H; ++h)
            for (int64_t j = 0; j < D; ++j)
              f(View<float>{from.data(), apart.spec.q}(b, t, h, j),
                View<float>{in.data() + part * H * D, fused.spec.q}(b, t, h, j));
    };
    const auto set = [](float x, float& y) { y = x; };
    copy(want.q, 0, qkv, set), copy(want.k, 1, qkv, set), copy(want.v, 2, qkv, set);
    const Attention attention(fused.spec, isa, 1);
    Scratch scratch(attention.scratch_bytes());
    Threads pool(1);
    std::vector<float> out(want.out.size()), lse(want.lse.size());
    const float* p = qkv.data();
    float* dp = dqkv.data();
    attention.forward(p, p + H * D, p + 2 * H * D, nullptr, nullptr, nullptr, out.data(), lse.data(), scratch.data(),
                      pool);
    attention.backward(p, p + H * D, p + 2 * H * D, out.data(), lse.data(), want.dout.data(), nullptr, nullptr, nullptr,
                       dp, dp + H * D, dp + 2 * H * D, scratch.data(), pool);
    const auto same = [](float x, float& y) { ASSERT_EQ(x, y); };
    EXPECT_EQ(out, want.out);
    copy(want.dq, 0, dqkv, same), copy(want.dk, 1, dqkv, same), copy(want.dv, 2, dqkv, same);
  }
}

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}

TEST(Attention, SameBitsForAnyNumberOfThreads) {
  for (const Isa isa : isas()) {
    std::vector<Case> all = {{make(2, 130, 130, 6, 3, 16), {100, 130}, {}},
                             {make(5, 1, 300, 6, 3, 64), {}, {299, 3, 70, 64, 63}},
                             {make(1, 300, 300, 1, 1, 32), {}, {}},
                             {make(400, 8, 8, 4, 4, 4), {}, {}},
                             {make(2, 130, 130, 6, 3, 16), {100, 30}, {}, {30, 90}}};
    for (const Case& c : all) {
      Arrays<float> want = arrays<float>(c);
      run(c, want, isa, 1);
      for (const int threads : {2, 3}) {
        Arrays<float> a = arrays<float>(c);
        run(c, a, isa, threads);
        EXPECT_TRUE(same_bits(a.out, want.out) && same_bits(a.lse, want.lse)) << c << name(isa);
        EXPECT_TRUE(same_bits(a.dq, want.dq) && same_bits(a.dk, want.dk) && same_bits(a.dv, want.dv)) << c << name(isa);
      }
    }
  }
}

// Some queries of one row of a batch at their positions, as in decoding, with a cache whose length ends anywhere.
TEST(Attention, SameBitsAloneAsAmongOthers) {
  for (const Isa isa : isas())
    for (const int64_t D : {4, 24, 64})
      for (const auto& [window, cap, kv_heads] : {std::tuple{0, 0.f, 4}, {40, 0.f, 2}, {0, 2.f, 1}}) {
        const int64_t B = 2, T = 150, H = 4;
        Case c{make(B, T, T, H, kv_heads, D), {140, 150}, {}};
        c.spec.window = window, c.spec.soft_cap = cap;
        Arrays<float> all = arrays<float>(c, 2);
        run(c, all, isa);
        Threads pool(1);
        Arrays<float> a = all;
        for (const int64_t count : {1, 3, 7, 20}) {
          AttentionSpec spec = c.spec;
          spec.batch = 1, spec.queries = count;
          const Attention attention(spec, isa, 1);
          Scratch scratch(attention.scratch_bytes());
          for (int64_t b = 0; b < B; ++b)
            for (int64_t t = 0; t + count <= T; t += count > 1 ? 13 : 1) {
              const int32_t length = int32_t(std::min<int64_t>(c.length(b), t + count)), start = int32_t(t);
              const int64_t place = b * c.spec.q.batch + t * c.spec.q.time, size = count * c.spec.q.time;
              const float *q = all.q.data() + place, *out = all.out.data() + place, *dout = all.dout.data() + place;
              const float *k = all.k.data() + b * c.spec.k.batch, *v = all.v.data() + b * c.spec.v.batch;
              attention.forward(q, k, v, &length, &start, nullptr, a.out.data(), a.lse.data(), scratch.data(), pool);
              ASSERT_EQ(std::memcmp(a.out.data(), out, size_t(size) * 4), 0)
                  << c << " t " << t << " of " << count << name(isa);
              for (int64_t h = 0; h < H; ++h)
                for (int64_t i = 0; i < count; ++i)
                  ASSERT_EQ(a.lse[size_t(h * count + i)], all.lse[size_t((b * H + h) * T + t + i)]);
              if (t % 13) continue;
              attention.backward(q, k, v, out, a.lse.data(), dout, &length, &start, nullptr, a.dq.data(), a.dk.data(),
                                 a.dv.data(), scratch.data(), pool);
              ASSERT_EQ(std::memcmp(a.dq.data(), all.dq.data() + place, size_t(size) * 4), 0)
                  << c << " t " << t << " of " << count << name(isa);
            }
        }
      }
}

// Small heads are done many at once, if there are many: a row alone has too few.
TEST(Attention, SameBitsOfARowAloneAsInABatch) {
  for (const Isa isa : isas())
    for (const int64_t T : {1, 3, 8, 9, 16})
      for (const int64_t D : {4, 8, 12, 16})
        for (const auto& [window, cap] : {std::pair{0, 0.f}, {3, 0.f}, {0, 2.f}}) {
          const int64_t B = 5, S = 16, H = 3;
          Case c{make(B, T, S, H, H, D), {12, 0, 7, 16, 3}, {int32_t(16 - T), 2, -3, 0, 9}, {4, 3, 9, 0, 2}};
          c.spec.window = window, c.spec.soft_cap = cap;
          Arrays<float> all = arrays<float>(c);
          run(c, all, isa);
          for (int64_t b = 0; b < B; ++b) {
            const auto row = [&](const std::vector<float>& x) {
              const auto size = std::ptrdiff_t(x.size()) / B;
              return std::vector<float>(x.begin() + b * size, x.begin() + (b + 1) * size);
            };
            Case alone{make(1, T, S, H, H, D), {c.lengths[size_t(b)]}, {c.starts[size_t(b)]}, {c.firsts[size_t(b)]}};
            alone.spec.window = window, alone.spec.soft_cap = cap;
            Arrays<float> a{row(all.q),    row(all.k),  row(all.v),  row(all.out), row(all.lse),
                            row(all.dout), row(all.dq), row(all.dk), row(all.dv)};
            const Arrays<float> want = a;
            run(alone, a, isa);
            EXPECT_TRUE(same_bits(a.out, want.out) && same_bits(a.lse, want.lse)) << alone << name(isa);
            EXPECT_TRUE(same_bits(a.dq, want.dq) && same_bits(a.dk, want.dk) && same_bits(a.dv, want.dv))
                << alone << name(isa);
          }
        }
}

// The first T of 24 queries and keys, as a problem of its own.
TEST(Attention, SameBitsInAShorterText) {
  for (const Isa isa : isas())
    for (const int64_t D : {4, 16, 20}) {
      Case c{make(1, 24, 24, 8, 8, D), {}, {}};
      Arrays<float> all = arrays<float>(c);
      run(c, all, isa);
      for (const int64_t T : {1, 2, 5, 8, 16, 17}) {
        Arrays<float> a = all;
        c.spec.queries = c.spec.keys = T;
        run(c, a, isa);
        const size_t size = size_t(T * 8 * D) * 4;
        EXPECT_EQ(std::memcmp(a.out.data(), all.out.data(), size), 0) << c << name(isa);
        EXPECT_EQ(std::memcmp(a.dq.data(), all.dq.data(), size), 0) << c << name(isa);
      }
    }
}

TEST(Attention, ANaNIsNotHidden) {
  for (const Isa isa : isas())
    for (const int64_t T : {1, 20}) {
      const Case c{make(1, T, 20, 1, 1, 8), {}, {int32_t(20 - T)}};
      Arrays<float> a = arrays<float>(c);
      a.k[8 * 5] = NAN;
      run(c, a, isa, 1, false);
      EXPECT_TRUE(std::isnan(a.out.back())) << name(isa);
    }
}

TEST(Attention, AllocatesNothing) {
  const Case c{make(2, 70, 70, 4, 2, 24), {}, {}};
  Arrays<float> a = arrays<float>(c);
  const Attention attention(c.spec, best_isa(), 1);
  Scratch scratch(attention.scratch_bytes());
  Threads pool(1);
  const size_t before = allocations();
  attention.forward(a.q.data(), a.k.data(), a.v.data(), nullptr, nullptr, nullptr, a.out.data(), a.lse.data(),
                    scratch.data(), pool);
  attention.backward(a.q.data(), a.k.data(), a.v.data(), a.out.data(), a.lse.data(), a.dout.data(), nullptr, nullptr,
                     nullptr, a.dq.data(), a.dk.data(), a.dv.data(), scratch.data(), pool);
  EXPECT_EQ(allocations(), before);
}

TEST(Attention, SaysWhatCannotBe) {
  AttentionSpec s = make(1, 1, 1, 4, 3, 8);
  EXPECT_THROW(Attention(s, best_isa(), 1), Error);
  s.kv_heads = 2;
  s.type = Dtype::bf16;
  EXPECT_THROW(Attention(s, best_isa(), 1), Error);
}

}  // namespace
}  // namespace dense
