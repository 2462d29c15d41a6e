// Interprets streams (stream.h): every operation works on all lanes of a block before the next one is looked at. To be
// included for each of Highway's targets.
#include <array>
#include <utility>

#include "dense/scalar/error.h"
#include "dense/scalar/rules.h"
#include "dense/scalar/stream.h"

#if defined(DENSE_SCALAR_LANES_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef DENSE_SCALAR_LANES_H_
#undef DENSE_SCALAR_LANES_H_
#else
#define DENSE_SCALAR_LANES_H_
#endif

#include <hwy/highway.h>

#include "dense/scalar/exact.h"
#include "dense/scalar/math.h"

HWY_BEFORE_NAMESPACE();
namespace dense {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Word = const uint32_t*;

// f(0), ..., f(K - 1) without a loop, so that arrays of vectors stay in registers.
template <size_t K, class F>
HWY_INLINE void unrolled(const F& f) {
  [&]<size_t... k>(std::index_sequence<k...>) HWY_ATTR { (f(std::integral_constant<size_t, k>()), ...); }
  (std::make_index_sequence<K>());
}

// Rows of lanes. One: the memory has a single lane.
template <class D, bool One>
struct Lanes {
  using T = hn::TFromD<D>;
  using V = hn::Vec<D>;
  static constexpr D d{};
  static constexpr size_t n = hn::MaxLanes(D());

  T* memory;
  size_t width_;

  HWY_INLINE size_t width() const { return One ? 1 : width_; }
  HWY_INLINE T* row(uint32_t slot) const { return memory + slot * width(); }
  HWY_INLINE V load(uint32_t slot, size_t lane) const { return hn::LoadU(d, row(slot) + lane); }
  HWY_INLINE void store(V v, uint32_t slot, size_t lane) const { hn::StoreU(v, d, row(slot) + lane); }

  // The rows of operands or results that stand in K words. To be made before the loop over lanes: the compiler cannot
  // know that no store changes the words.
  template <size_t K>
  struct Rows {
    T* p[K == 0 ? 1 : K];
    HWY_INLINE V load(size_t k, size_t lane) const { return hn::LoadU(d, p[k] + lane); }
    HWY_INLINE void store(V v, size_t k, size_t lane) const { hn::StoreU(v, d, p[k] + lane); }
  };
  template <size_t K>
  HWY_INLINE Rows<K> rows(Word words) const {
    Rows<K> result{};
    for (size_t k = 0; k < K; ++k) result.p[k] = row(words[k]);
    return result;
  }

  // f for each vector of lanes, by its first.
  template <class F>
  HWY_INLINE void each(const F& f) const {
    if constexpr (One) f(size_t{0});
    else
      for (size_t lane = 0; lane < width(); lane += n) f(lane);
  }

  // y = f(x) for a result and up to three operands. Returns the next operation, as all below do.
  template <class F>
  HWY_INLINE Word map(Word at, const F& f) const {
    constexpr int arity = std::is_invocable_v<F, V> ? 1 : std::is_invocable_v<F, V, V> ? 2 : 3;
    const auto y = rows<1>(at + 1);
    const auto x = rows<arity>(at + 2);
    each([&](size_t lane) HWY_ATTR {
      if constexpr (arity == 1) y.store(f(x.load(0, lane)), 0, lane);
      if constexpr (arity == 2) y.store(f(x.load(0, lane), x.load(1, lane)), 0, lane);
      if constexpr (arity == 3) y.store(f(x.load(0, lane), x.load(1, lane), x.load(2, lane)), 0, lane);
    });
    return at + 2 + arity;
  }

  // Two results of one operand: f returns the first and sets the second.
  template <class F>
  HWY_INLINE Word map_to_two(Word at, const F& f) const {
    const auto y = rows<3>(at + 1);  // both, and the operand
    each([&](size_t lane) HWY_ATTR {
      V second;
      const V first = f(y.load(2, lane), second);
      y.store(first, 0, lane);
      y.store(second, 1, lane);
    });
    return at + 4;
  }

  // The sum of P products and S single terms, in this order.
  template <size_t P, size_t S>
  HWY_INLINE Word mix(Word at) const {
    const auto y = rows<1>(at + 1);
    const auto a = rows<2 * P>(at + 2);
    const auto b = rows<S>(at + 2 + 2 * P);
    each([&](size_t lane) HWY_ATTR {
      V sum = P == 0 ? b.load(0, lane) : hn::Mul(a.load(0, lane), a.load(1, lane));
      for (size_t i = 1; i < P; ++i) sum = hn::MulAdd(a.load(2 * i, lane), a.load(2 * i + 1, lane), sum);
      for (size_t i = P == 0; i < S; ++i) sum = hn::Add(sum, b.load(i, lane));
      y.store(sum, 0, lane);
    });
    return at + 2 + 2 * P + S;
  }

  // The same for any number of terms, in four sums that do not wait for each other.
  HWY_INLINE Word mix(Word at) const {
    const uint32_t products = Header{*at}.products(), singles = Header{*at}.singles();
    Word a = at + 2, b = a + 2 * products;
    each([&](size_t lane) HWY_ATTR {
      V sum[4] = {hn::Zero(d), hn::Zero(d), hn::Zero(d), hn::Zero(d)};
      for (uint32_t i = 0; i < products; ++i)
        sum[i % 4] = hn::MulAdd(load(a[2 * i], lane), load(a[2 * i + 1], lane), sum[i % 4]);
      for (uint32_t i = 0; i < singles; ++i) sum[i % 4] = hn::Add(sum[i % 4], load(b[i], lane));
      store(hn::Add(hn::Add(sum[0], sum[1]), hn::Add(sum[2], sum[3])), at[1], lane);
    });
    return b + singles;
  }

  HWY_INLINE V largest(Word x, uint32_t count, size_t lane) const {
    V m = load(x[0], lane);
    for (uint32_t i = 1; i < count; ++i) {
      const V next = load(x[i], lane);
      m = hn::IfThenElse(hn::Lt(m, next), next, m);
    }
    return m;
  }

  HWY_INLINE Word softmax(Word at) const {
    const uint32_t count = Header{*at}.count();
    Word y = at + 1, x = y + count;
    each([&](size_t lane) HWY_ATTR {
      const V m = largest(x, count, lane);
      V total = hn::Zero(d);
      for (uint32_t i = 0; i < count; ++i) {
        const V e = math::exp(d, hn::Sub(load(x[i], lane), m));
        total = hn::Add(total, e);
        store(e, y[i], lane);
      }
      const V scale = hn::Div(hn::Set(d, T(1)), total);
      for (uint32_t i = 0; i < count; ++i) store(hn::Mul(load(y[i], lane), scale), y[i], lane);
    });
    return x + count;
  }
  // Of K operands, of which the last is ready last. Moderate ones need not have the largest taken off.
  template <size_t K>
  HWY_INLINE Word softmax(Word at) const {
    const auto y = rows<K>(at + 1), x = rows<K>(at + 1 + K);
    each([&](size_t lane) HWY_ATTR {
      std::array<V, K> e;
      unrolled<K>([&](auto k) HWY_ATTR { e[k] = x.load(k, lane); });
      V squares = hn::Mul(e[0], e[0]);
      unrolled<K - 1>([&](auto k) HWY_ATTR { squares = hn::MulAdd(e[k + 1], e[k + 1], squares); });
      const auto moderate = hn::Lt(squares, hn::Set(d, math::C<D>::softmax_limit * math::C<D>::softmax_limit));
      if (HWY_LIKELY(hn::AllTrue(d, moderate))) e = exp_row(e);
      else e = exp_shifted(e, hn::IfThenElseZero(moderate, hn::Set(d, T(1))));
      V total = e[0];
      unrolled<K - 1>([&](auto k) HWY_ATTR { total = hn::Add(total, e[k + 1]); });
      const V scale = hn::Div(hn::Set(d, T(1)), total);
      unrolled<K>([&](auto k) HWY_ATTR { y.store(hn::Mul(e[k], scale), k, lane); });
    });
    return at + 1 + 2 * K;
  }
  // exp of each, which are moderate. In a single lane the first three make a vector.
  template <size_t K>
  static HWY_INLINE std::array<V, K> exp_row(std::array<V, K> x) {
#if HWY_TARGET != HWY_SCALAR
    const hn::CappedTag<T, 2> two;
    const hn::CappedTag<T, 4> four;
    if constexpr (One && K == 4 && hn::MaxLanes(four) == 4) {
      const auto y =
          math::exp_moderate(four, hn::Combine(four, hn::Combine(two, x[2], x[2]), hn::Combine(two, x[1], x[0])));
      const auto low = hn::LowerHalf(two, y), high = hn::UpperHalf(two, y);
      return {hn::LowerHalf(d, low), hn::UpperHalf(d, low), hn::LowerHalf(d, high), math::exp_moderate(d, x[3])};
    }
#endif
    unrolled<K>([&](auto k) HWY_ATTR { x[k] = math::exp_moderate(d, x[k]); });
    return x;
  }
  // The same bits where x is moderate (not 0), else exp of what the largest exceeds them by.
  template <size_t K>
  static HWY_NOINLINE std::array<V, K> exp_shifted(std::array<V, K> x, V moderate) {
    V m = x[0];
    for (V one : x) m = hn::IfThenElse(hn::Lt(m, one), one, m);
    m = hn::IfThenElse(hn::Eq(moderate, hn::Zero(d)), m, hn::Zero(d));
    for (V& one : x) one = math::exp(d, hn::Sub(one, m));
    return x;
  }

  HWY_INLINE Word softmax_grad(Word at) const {
    const uint32_t count = Header{*at}.count();
    Word dx = at + 1, y = dx + count, dy = y + count;
    each([&](size_t lane) HWY_ATTR {
      V total = hn::Zero(d);
      for (uint32_t i = 0; i < count; ++i) total = hn::MulAdd(load(y[i], lane), load(dy[i], lane), total);
      for (uint32_t i = 0; i < count; ++i)
        store(hn::Mul(load(y[i], lane), hn::Sub(load(dy[i], lane), total)), dx[i], lane);
    });
    return dy + count;
  }
  template <size_t K>
  HWY_INLINE Word softmax_grad(Word at) const {
    const auto dx = rows<K>(at + 1), y = rows<K>(at + 1 + K), dy = rows<K>(at + 1 + 2 * K);
    each([&](size_t lane) HWY_ATTR {
      std::array<V, K> p, g;
      V total = hn::Zero(d);
      unrolled<K>([&](auto k) HWY_ATTR { p[k] = y.load(k, lane), g[k] = dy.load(k, lane); });
      unrolled<K>([&](auto k) HWY_ATTR { total = hn::MulAdd(p[k], g[k], total); });
      unrolled<K>([&](auto k) HWY_ATTR { dx.store(hn::Mul(p[k], hn::Sub(g[k], total)), k, lane); });
    });
    return at + 1 + 3 * K;
  }

  HWY_INLINE Word logsumexp(Word at) const {
    const uint32_t count = Header{*at}.count();
    Word x = at + 2;
    each([&](size_t lane) HWY_ATTR {
      const V m = largest(x, count, lane);
      V total = hn::Zero(d);
      for (uint32_t i = 0; i < count; ++i) total = hn::Add(total, math::exp(d, hn::Sub(load(x[i], lane), m)));
      store(hn::Add(m, math::log(d, total)), at[1], lane);
    });
    return x + count;
  }

  // Sums as recorded, for exact programs.
  HWY_INLINE Word sum_in_order(Word at) const {
    const uint32_t count = Header{*at}.count();
    each([&](size_t lane) HWY_ATTR {
      V sum = hn::Zero(d);
      for (uint32_t i = 0; i < count; ++i) sum = hn::Add(sum, load(at[2 + i], lane));
      store(sum, at[1], lane);
    });
    return at + 2 + count;
  }
  HWY_INLINE Word dot_in_order(Word at) const {
    const uint32_t count = Header{*at}.count();
    each([&](size_t lane) HWY_ATTR {
      V sum = hn::Zero(d);
      for (uint32_t i = 0; i < count; i += 2) sum = hn::Add(sum, hn::Mul(load(at[2 + i], lane), load(at[3 + i], lane)));
      store(sum, at[1], lane);
    });
    return at + 2 + count;
  }

  HWY_INLINE Word peak(Word at) const {
    const uint32_t count = Header{*at}.count();
    each([&](size_t lane) HWY_ATTR { store(largest(at + 2, count, lane), at[1], lane); });
    return at + 2 + count;
  }

  HWY_NOINLINE Word at_index(Word at) const {
    const uint32_t count = Header{*at}.count();
    for (size_t lane = 0; lane < width(); ++lane)
      row(at[1])[lane] = row(at[3 + checked_index(double(row(at[2])[lane]), count - 1)])[lane];
    return at + 2 + count;
  }

  // The table's own function, lane by lane.
  HWY_INLINE Word by_table(Word at) const {
    const Rule& r = rule(Header{*at}.op());
    const uint32_t count = Header{*at}.count();
    double x[3];
    for (size_t lane = 0; lane < width(); ++lane) {
      for (uint32_t k = 0; k < count; ++k) x[k] = double(row(at[2 + k])[lane]);
      row(at[1])[lane] = T(r.value(x, int(count)));
    }
    return at + 2 + count;
  }
};

// What every program computes alike: vector instructions have the bits of C here. null: another operation.
template <class L>
HWY_INLINE Word common(Word at, const L& lanes) {
  using V = typename L::V;
  using T = typename L::T;
  static constexpr auto d = L::d;
  const auto one_if = [](auto m) HWY_ATTR { return hn::IfThenElseZero(m, hn::Set(d, T(1))); };
  // clang-format off
  switch (Header{*at}.kernel()) {
      case uint32_t(Op::add): return lanes.map(at, [](V a, V b) HWY_ATTR { return hn::Add(a, b); });
      case uint32_t(Op::sub): return lanes.map(at, [](V a, V b) HWY_ATTR { return hn::Sub(a, b); });
      case uint32_t(Op::mul): return lanes.map(at, [](V a, V b) HWY_ATTR { return hn::Mul(a, b); });
      case uint32_t(Op::div): return lanes.map(at, [](V a, V b) HWY_ATTR { return hn::Div(a, b); });
      case uint32_t(Op::neg): return lanes.map(at, [](V a) HWY_ATTR { return hn::Neg(a); });
      case uint32_t(Op::sqrt): return lanes.map(at, [](V a) HWY_ATTR { return hn::Sqrt(a); });
      case uint32_t(Op::abs): return lanes.map(at, [](V a) HWY_ATTR { return hn::Abs(a); });
      case uint32_t(Op::relu): return lanes.map(at, [](V a) HWY_ATTR { return hn::IfThenElseZero(hn::Gt(a, hn::Zero(d)), a); });
      case uint32_t(Op::min): return lanes.map(at, [](V a, V b) HWY_ATTR { return hn::IfThenElse(hn::Lt(b, a), b, a); });
      case uint32_t(Op::max): return lanes.map(at, [](V a, V b) HWY_ATTR { return hn::IfThenElse(hn::Gt(b, a), b, a); });
      case uint32_t(Op::less): return lanes.map(at, [&](V a, V b) HWY_ATTR { return one_if(hn::Lt(a, b)); });
      case uint32_t(Op::less_equal): return lanes.map(at, [&](V a, V b) HWY_ATTR { return one_if(hn::Le(a, b)); });
      case uint32_t(Op::equal): return lanes.map(at, [&](V a, V b) HWY_ATTR { return one_if(hn::Eq(a, b)); });
      case uint32_t(Op::where): return lanes.map(at, [](V c, V a, V b) HWY_ATTR { return hn::IfThenElse(hn::Eq(c, hn::Zero(d)), b, a); });
      case uint32_t(Op::at): return lanes.at_index(at);
      default: return nullptr;
  }
  // clang-format on
}

// Operations that would only be in the way of the others below.
template <class L>
HWY_NOINLINE Word seldom(Word at, const L& lanes) {
  using V = typename L::V;
  using T = typename L::T;
  static constexpr auto d = L::d;
  // clang-format off
  switch (Header{*at}.kernel()) {
      case uint32_t(Op::root): return lanes.map(at, [](V a) HWY_ATTR { return hn::Sqrt(hn::Add(a, hn::Zero(d))); });
      case uint32_t(Op::reciprocal_square): return lanes.map(at, [](V a) HWY_ATTR { return hn::Div(hn::Set(d, T(1)), hn::Mul(a, a)); });
      case uint32_t(Op::log1p): return lanes.map(at, [](V a) HWY_ATTR { return math::log1p(d, a); });
      case uint32_t(Op::expm1): return lanes.map(at, [](V a) HWY_ATTR { return math::expm1(d, a); });
      case uint32_t(Op::softplus): return lanes.map(at, [](V a) HWY_ATTR { return math::softplus(d, a); });
      case uint32_t(Op::erf): return lanes.map(at, [](V a) HWY_ATTR { return math::erf(d, a); });
      case uint32_t(Op::sin): return lanes.map(at, [](V a) HWY_ATTR { return math::sin(d, a); });
      case uint32_t(Op::cos): return lanes.map(at, [](V a) HWY_ATTR { return math::cos(d, a); });
      case uint32_t(Op::rsqrt): return lanes.map(at, [](V a) HWY_ATTR { return hn::Div(hn::Set(d, T(1)), hn::Sqrt(a)); });
      case uint32_t(Op::pow): return lanes.map(at, [](V a, V b) HWY_ATTR { return math::pow(d, a, b); });
      case uint32_t(Op::sin_cos): return lanes.map_to_two(at, [](V a, V& b) HWY_ATTR { return math::sin_cos(d, a, b); });
      case uint32_t(Op::softmax): return lanes.softmax(at);
      case uint32_t(Op::softmax_grad): return lanes.softmax_grad(at);
      case uint32_t(Op::logsumexp): return lanes.logsumexp(at);
      default: return common(at, lanes);
  }
  // clang-format on
}

// sub and div stand here a second time: the way through seldom would cost them more than their work.
template <class L>
HWY_INLINE void interpret_fast(Word at, const L& lanes) {
  using V = typename L::V;
  using T = typename L::T;
  static constexpr auto d = L::d;
  for (;;) {
    // clang-format off
    switch (uint8_t(Header{*at}.kernel())) {
      case Header::stop: return;
      case uint32_t(Op::sub): at = lanes.map(at, [](V a, V b) HWY_ATTR { return hn::Sub(a, b); }); break;
      case uint32_t(Op::div): at = lanes.map(at, [](V a, V b) HWY_ATTR { return hn::Div(a, b); }); break;
      case uint32_t(Op::exp): at = lanes.map(at, [](V a) HWY_ATTR { return math::exp(d, a); }); break;
      case uint32_t(Op::square): at = lanes.map(at, [](V a) HWY_ATTR { return hn::Mul(a, a); }); break;
      case uint32_t(Op::reciprocal): at = lanes.map(at, [](V a) HWY_ATTR { return hn::Div(hn::Set(d, T(1)), a); }); break;
      case uint32_t(Op::log): at = lanes.map(at, [](V a) HWY_ATTR { return math::log(d, a); }); break;
      case uint32_t(Op::tanh): at = lanes.map(at, [](V a) HWY_ATTR { return math::tanh(d, a); }); break;
      case uint32_t(Op::sigmoid): at = lanes.map(at, [](V a) HWY_ATTR { return math::sigmoid(d, a); }); break;
      case uint32_t(Op::softplus_sigmoid): at = lanes.map_to_two(at, [](V a, V& b) HWY_ATTR { return math::softplus_sigmoid(d, a, b); }); break;
      case uint32_t(Op::mix): at = lanes.mix(at); break;
      case Header::softmax_kernel(2): at = lanes.template softmax<2>(at); break;
      case Header::softmax_kernel(3): at = lanes.template softmax<3>(at); break;
      case Header::softmax_kernel(4): at = lanes.template softmax<4>(at); break;
      case Header::softmax_grad_kernel(2): at = lanes.template softmax_grad<2>(at); break;
      case Header::softmax_grad_kernel(3): at = lanes.template softmax_grad<3>(at); break;
      case Header::softmax_grad_kernel(4): at = lanes.template softmax_grad<4>(at); break;
      case Header::mix_kernel(0, 0): at = lanes.mix(at); break;
      case Header::mix_kernel(0, 1): at = lanes.template mix<0, 1>(at); break;
      case Header::mix_kernel(0, 2): at = lanes.template mix<0, 2>(at); break;
      case Header::mix_kernel(0, 3): at = lanes.template mix<0, 3>(at); break;
      case Header::mix_kernel(0, 4): at = lanes.template mix<0, 4>(at); break;
      case Header::mix_kernel(1, 0): at = lanes.template mix<1, 0>(at); break;
      case Header::mix_kernel(1, 1): at = lanes.template mix<1, 1>(at); break;
      case Header::mix_kernel(1, 2): at = lanes.template mix<1, 2>(at); break;
      case Header::mix_kernel(1, 3): at = lanes.template mix<1, 3>(at); break;
      case Header::mix_kernel(1, 4): at = lanes.template mix<1, 4>(at); break;
      case Header::mix_kernel(2, 0): at = lanes.template mix<2, 0>(at); break;
      case Header::mix_kernel(2, 1): at = lanes.template mix<2, 1>(at); break;
      case Header::mix_kernel(2, 2): at = lanes.template mix<2, 2>(at); break;
      case Header::mix_kernel(2, 3): at = lanes.template mix<2, 3>(at); break;
      case Header::mix_kernel(2, 4): at = lanes.template mix<2, 4>(at); break;
      case Header::mix_kernel(3, 0): at = lanes.template mix<3, 0>(at); break;
      case Header::mix_kernel(3, 1): at = lanes.template mix<3, 1>(at); break;
      case Header::mix_kernel(3, 2): at = lanes.template mix<3, 2>(at); break;
      case Header::mix_kernel(3, 3): at = lanes.template mix<3, 3>(at); break;
      case Header::mix_kernel(3, 4): at = lanes.template mix<3, 4>(at); break;
      default: at = seldom(at, lanes);
    }
    // clang-format on
  }
}

// With the bits of the table's functions, which do what has no case here.
template <class L>
HWY_INLINE void interpret_exact(Word at, const L& lanes) {
  using V = typename L::V;
  static constexpr auto d = L::d;
  for (;;) {
    // clang-format off
    switch (uint8_t(Header{*at}.kernel())) {
      case Header::stop: return;
      case uint32_t(Op::exp): at = lanes.map(at, [](V a) HWY_ATTR { return exp(d, a); }); break;
      case uint32_t(Op::square): at = lanes.map(at, [](V a) HWY_ATTR { return square(d, a); }); break;
      case uint32_t(Op::root): at = lanes.map(at, [](V a) HWY_ATTR { return root(d, a); }); break;
      case uint32_t(Op::reciprocal): at = lanes.map(at, [](V a) HWY_ATTR { return reciprocal(d, a); }); break;
      case uint32_t(Op::reciprocal_square): at = lanes.map(at, [](V a) HWY_ATTR { return reciprocal_square(d, a); }); break;
      case uint32_t(Op::sum): at = lanes.sum_in_order(at); break;
      case uint32_t(Op::dot): at = lanes.dot_in_order(at); break;
      case uint32_t(Op::peak): at = lanes.peak(at); break;
      default:
        const Word next = common(at, lanes);
        at = next ? next : lanes.by_table(at);
    }
    // clang-format on
  }
}

template <bool Exact, class D, bool One = false>
HWY_FLATTEN void interpret(Word begin, void* memory, size_t width) {
  const Lanes<D, One> lanes{static_cast<hn::TFromD<D>*>(memory), width};
  if constexpr (Exact) interpret_exact(begin, lanes);
  else interpret_fast(begin, lanes);
}

template <bool Exact, class T>
Interpreter interpreter() {
  return {interpret<Exact, hn::CappedTag<T, 1>, true>, interpret<Exact, hn::CappedTag<T, 4>>,
          interpret<Exact, hn::ScalableTag<T>>, hn::MaxLanes(hn::ScalableTag<T>())};
}

}  // namespace HWY_NAMESPACE
}  // namespace dense
HWY_AFTER_NAMESPACE();

#endif
