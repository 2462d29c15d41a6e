// exp, log, tanh and their relatives for Highway vectors of double or float with as many lanes as you like:
//   y = math::exp(d, x)
//
// A result depends on nothing but its arguments: not on the length of the vector, the lane or the other lanes, and AVX2
// and AVX-512 agree in every bit. Infinities, NaN, signs of zeros and denormal numbers are treated as C treats them. Each
// function tells its largest error in ulps of the result, to which tests/math_test.cpp holds it;
// without native FMA it may be 0.3 more.
//
// The argument is brought into a short interval by its exponent or by a multiple of ln 2 or pi / 2, in two or three parts
// (Cody & Waite 1980). There a polynomial takes over, its coefficients minimax (Remez 1934), evaluated as a tree (Estrin
// 1960), because one number waits for chains of operations. Rare arguments leave the way by one branch for the vector.
//
// Included once per target: see hwy/foreach_target.h.
#if defined(DENSE_SCALAR_MATH_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef DENSE_SCALAR_MATH_H_
#undef DENSE_SCALAR_MATH_H_
#else
#define DENSE_SCALAR_MATH_H_
#endif

#include <hwy/highway.h>

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>

HWY_BEFORE_NAMESPACE();
namespace dense {
namespace HWY_NAMESPACE {
namespace math {
namespace hn = hwy::HWY_NAMESPACE;

template <class T>
struct Constants;

// clang-format off
template <>
struct Constants<double> {
  static constexpr int fraction_bits = 52;
  static constexpr uint64_t one = 0x3ff0000000000000, sqrt_half = 0x3fe6a09e667f3bcd;  // the bits of 1 and sqrt(1/2)
  static constexpr double two_52 = 0x1p52, bias = 1023, log2e = 0x1.71547652b82fep0;   // two_52: 2 ** fraction_bits
  static constexpr double ln2_hi = 0x1.62e42fefa38p-1, ln2_lo = 0x1.ef35793c7673p-45;  // ln2_hi ends in zeros
  static constexpr double exp_limit = 708;                          // exp(x) is normal for |x| below,
  static constexpr double exp_clamp = 760;                          // and 0 or infinite from here on
  static constexpr double softmax_limit = 700;                      // four exp below it, their sum and its inverse: normal
  static constexpr double step = 0x1p128, step_log2 = 128;          // from numbers out of range into it
  static constexpr double log_limit = 1000;                         // |log2(x)| below is no special case
  static constexpr double tanh_one = 22, erf_one = 6;               // where these functions round to 1
  // |x| <= ln(2) / 2:  exp(x) = 1 + x (exp[0] + exp[1] x + ...) = 1 + x + x ** 2 (expm1[0] + ...), which is more exact
  static constexpr double exp[] = {
    1, 0x1p-1, 0x1.555555555555ap-3, 0x1.5555555553aeap-5, 0x1.111111110ef2fp-7, 0x1.6c16c17a0aa2p-10,
    0x1.a01a01b34bde4p-13, 0x1.a019b376cb4bdp-16, 0x1.71ddef2a51816p-19, 0x1.28978b871596cp-22, 0x1.af6f4644c49fcp-26};
  static constexpr double expm1[] = {
    0x1p-1, 0x1.5555555555559p-3, 0x1.5555555555559p-5, 0x1.111111110f65p-7, 0x1.6c16c16c147fap-10,
    0x1.a01a01b005e0bp-13, 0x1.a01a01b0354aep-16, 0x1.71ddf809cd35dp-19, 0x1.27e4c601928e4p-22, 0x1.af5f341e88af9p-26,
    0x1.1f9574e47fe05p-29};
  // sqrt(1/2) <= 1 + x <= sqrt(2):  log(1 + x) = x + x ** 2 (log[0] + log[1] x + ...)
  static constexpr double log[] = {
    -0x1p-1, 0x1.5555555555533p-2, -0x1.fffffffffef14p-3, 0x1.999999999f7afp-3, -0x1.555555566b383p-3,
    0x1.24924922a1defp-3, -0x1.ffffff2bf485fp-4, 0x1.c71c71e0d5f93p-4, -0x1.9999c26bf1ac1p-4, 0x1.745d3f0813e63p-4,
    -0x1.5550ee5810237p-4, 0x1.3b0b8a6dc75b8p-4, -0x1.24d7512fea656p-4, 0x1.11ccf38d0cd67p-4, -0x1.fba1839ac085ep-5,
    0x1.d05ae2a45d61fp-5, -0x1.d1215ade87349p-5, 0x1.0a6203b66ac39p-4, -0x1.ea0152cdcf713p-5, 0x1.ac6e22518c6bcp-6};
  // 0 <= x <= 1:  log(1 + x) = x + x ** 2 (log_unit[0] + log_unit[1] (x - 1/2) + ...)
  static constexpr double log_unit[] = {
    -0x1.833704d019edp-2, 0x1.6f0d7bd624bedp-3, -0x1.7ddf1fe86ac64p-4, 0x1.a279c04c785fp-5, -0x1.da348248790f6p-6,
    0x1.131116fc1bfafp-6, -0x1.44ba45de1bc98p-7, 0x1.84904ed1da9d9p-8, -0x1.d5faf07e0229dp-9, 0x1.1ebd42da0b5d6p-9,
    -0x1.607615f931f56p-10, 0x1.b3dd799f5e611p-11, -0x1.0ecef11b810dbp-11, 0x1.5326ac2cf5f81p-12,
    -0x1.adc6ce2eee94fp-13, 0x1.0750481dd955bp-13, -0x1.29a721a918515p-14, 0x1.b86a6c8f650cap-15,
    -0x1.add5e43177b27p-15, 0x1.accbca60db774p-16};
  // |x| < 1:  erf(x) = x + x (erf[0] + erf[1] x ** 2 + ...)
  static constexpr double erf[] = {
    0x1.06eba8214db68p-3, -0x1.812746b0379b2p-2, 0x1.ce2f21a0408dp-4, -0x1.b82ce311ee03cp-6, 0x1.565bccf7e1a08p-8,
    -0x1.c02db0147856ap-11, 0x1.f9a2b7518c37fp-14, -0x1.f4ca2012dd328p-17, 0x1.b97e41e6136fcp-20,
    -0x1.5bfe6842abaebp-23, 0x1.d6e37cf91619p-27, -0x1.ab14a315c4e98p-31};
  // 1 <= x < erf_one:  log(1 - erf(x)) = erfc[0] + erfc[1] (x - 1) + ...
  static constexpr double erfc[] = {
    -0x1.d97fbf27aa2a1p0, -0x1.51c9b0006c228p1, -0x1.afabc11a2a8ap-1, -0x1.5477f09a2496ap-5, 0x1.48c9d38e4285bp-7,
    -0x1.033f5b4330cf7p-9, 0x1.f1b08cc20a5f1p-13, 0x1.b928d9b74aad4p-16, -0x1.c84a0772c7158p-16, 0x1.446ea8fa94229p-17,
    -0x1.1dd3ee6bac2d1p-19, 0x1.b45e359a7f28bp-23, 0x1.f945f006a28f9p-25, -0x1.215b260ac3146p-25, 0x1.2747acebd9c9fp-27,
    -0x1.6e154b31c55a5p-30, 0x1.093707398692ep-33, -0x1.5a6d3af03b09ep-38};
  // |x| <= pi / 4:  sin(x) = x + x ** 3 (sin[0] + sin[1] x ** 2 + ...), cos(x) = 1 + x ** 2 (cos[0] + ...)
  static constexpr double sin[] = {
    -0x1.5555555555548p-3, 0x1.111111110f75fp-7, -0x1.a01a019bf28cp-13, 0x1.71de355f7a996p-19, -0x1.ae5e54dde98f4p-26,
    0x1.5d8e58428cf98p-33};
  static constexpr double cos[] = {
    -0x1p-1, 0x1.555555555554ap-5, -0x1.6c16c16c14e4cp-10, 0x1.a01a019c68f31p-16, -0x1.27e4f7d951548p-22,
    0x1.1ee9cd0ba7293p-29, -0x1.8f9f92ac628dcp-37};
  static constexpr double half_pi[] = {0x1.921fb54442d18p0, 0x1.1a62633145c07p-54, -0x1.f1976b7ed8fbcp-110};
  static constexpr double two_over_pi = 0x1.45f306dc9c883p-1, sin_limit = 0x1p28;
  // |s| <= 3 - sqrt(8):  2 atanh(s) = s (2 + s ** 2 (2/3 + s ** 2 (atanh[0] + atanh[1] s ** 2 + ...)))
  static constexpr double atanh[] = {
    0x1.9999999999996p-2, 0x1.2492492492f49p-2, 0x1.c71c71c597eebp-3, 0x1.745d182897498p-3, 0x1.3b1364fea3d9cp-3,
    0x1.11206716929b3p-3, 0x1.de3eb5fdc34d3p-4, 0x1.eabb5c9b796cp-4};
  static constexpr double two_thirds_hi = 0x1.5555555555555p-1, two_thirds_lo = 0x1.5555555555555p-55;
};

template <>
struct Constants<float> {
  static constexpr int fraction_bits = 23;
  static constexpr uint32_t one = 0x3f800000, sqrt_half = 0x3f3504f3;
  static constexpr float two_52 = 0x1p23f, bias = 127, log2e = 0x1.715476p0f;
  static constexpr float ln2_hi = 0x1.62e4p-1f, ln2_lo = 0x1.7f7d1cp-20f;
  static constexpr float exp_limit = 87, exp_clamp = 110, softmax_limit = 80, step = 0x1p64f, step_log2 = 64, log_limit = 120;
  static constexpr float tanh_one = 10, erf_one = 4;
  static constexpr float exp[] = {1, 0x1p-1f, 0x1.5554b2p-3f, 0x1.5554cap-5f, 0x1.12266ap-7f, 0x1.6d6fdp-10f};
  static constexpr float expm1[] = {
    0x1p-1f, 0x1.555556p-3f, 0x1.5554f2p-5f, 0x1.110fdcp-7f, 0x1.6d411ep-10f, 0x1.a29d32p-13f};
  static constexpr float log[] = {
    -0x1p-1f, 0x1.555554p-2f, -0x1.000226p-2f, 0x1.99a02p-3f, -0x1.54729p-3f, 0x1.22d8c4p-3f, -0x1.0d8188p-3f,
    0x1.056178p-3f, -0x1.38d4aep-4f};
  static constexpr float log_unit[] = {
    -0x1.833704p-2f, 0x1.6f0d74p-3f, -0x1.7de0e4p-4f, 0x1.a2866p-5f, -0x1.d98b38p-6f, 0x1.10d478p-6f, -0x1.4db526p-7f,
    0x1.c73008p-8f, -0x1.b33cf2p-9f};
  static constexpr float erf[] = {
    0x1.06eba8p-3f, -0x1.81273ep-2f, 0x1.ce2cf2p-4f, -0x1.b7f88cp-6f, 0x1.54017p-8f, -0x1.a3d7ecp-11f, 0x1.4916f2p-14f};
  static constexpr float erfc[] = {
    -0x1.d97fcp0f, -0x1.51c99ep1f, -0x1.afaecap-1f, -0x1.53a678p-5f, 0x1.42324ep-7f, -0x1.d4971cp-10f, 0x1.71adap-13f};
};
// clang-format on

template <class D>
using C = Constants<hn::TFromD<D>>;

// A constant in all lanes.
template <class D>
HWY_INLINE hn::Vec<D> all(D d, double x) {
  return hn::Set(d, hn::TFromD<D>(x));
}

// c[first] + c[first + 1] x + ... of `count` coefficients, the lower and the upper ones each on their own; powers are
// x, x ** 2, x ** 4, ... No arrays of vectors that grow: g++ would keep them in memory.
template <size_t first, size_t count, class D, class V, class T, size_t n>
HWY_INLINE V tree(D d, const V* powers, const T (&c)[n]) {
  if constexpr (count == 1) {
    return all(d, c[first]);
  } else {
    constexpr size_t half = std::bit_ceil(count) / 2;
    const V lower = tree<first, half>(d, powers, c), upper = tree<first + half, count - half>(d, powers, c);
    return hn::MulAdd(powers[std::bit_width(half) - 1], upper, lower);
  }
}
template <size_t first = 0, class D, class V, class T, size_t n>  // from c[first] on
HWY_INLINE V polynomial(D d, V x, const T (&c)[n]) {
  if constexpr (sizeof(T) == 4) {  // short ones, for which two products less weigh more than the way
    V y = all(d, c[n - 1]);
    for (size_t i = n - 1; i-- > first;) y = hn::MulAdd(y, x, all(d, c[i]));
    return y;
  }
  const V x2 = hn::Mul(x, x), x4 = hn::Mul(x2, x2), x8 = hn::Mul(x4, x4);
  const V powers[] = {x, x2, x4, x8, hn::Mul(x8, x8)};
  return tree<first, n - first>(d, powers, c);
}

// x = k ln 2 + r, k whole, |r| <= ln(2) / 2: r = hi - k ln2_lo, and hi is exact. The last bits of `shifted` are k.
template <class V>
struct Reduced {
  V shifted, k, hi;
};
template <class D, class V>
HWY_INLINE Reduced<V> reduce(D d, V x) {
  const V shift = all(d, 1.5 * C<D>::two_52), shifted = hn::MulAdd(x, all(d, C<D>::log2e), shift);
  const V k = hn::Sub(shifted, shift);
  return {shifted, k, hn::NegMulAdd(k, all(d, C<D>::ln2_hi), x)};
}

// y * 2 ** k for a normal y and result.
template <class D, class V>
HWY_INLINE V scale(D d, V y, V shifted) {
  const hn::RebindToUnsigned<D> du;
  return hn::BitCast(d, hn::Add(hn::BitCast(du, y), hn::ShiftLeft<C<D>::fraction_bits>(hn::BitCast(du, shifted))));
}

// An unevaluated sum, |lo| much smaller than |hi|.
template <class V>
struct Pair {
  V hi, lo;
};

// exp(r) as 1 + r and the rest, with the error of that sum.
template <class D, class V>
HWY_INLINE Pair<V> exp_pair(D d, V r) {
  const V one = all(d, 1), top = hn::Add(one, r), error = hn::Sub(r, hn::Sub(top, one));
  return {top, hn::MulAdd(hn::Mul(r, r), polynomial(d, r, C<D>::expm1), error)};
}

// exp(r)
template <class D, class V>
HWY_INLINE V exp_reduced(D d, const Reduced<V>& x) {
  const V r = hn::NegMulAdd(x.k, all(d, C<D>::ln2_lo), x.hi);
  return hn::MulAdd(r, polynomial(d, r, C<D>::exp), all(d, 1));
}

// exp of a moderate x.
template <class D, class V>
HWY_INLINE V exp_moderate(D d, V x) {
  const Reduced<V> r = reduce(d, x);
  return scale(d, exp_reduced(d, r), r.shifted);
}

// exp(x) for any x: with 2 ** k in two steps, of which one is exact.
template <class D, class V>
HWY_NOINLINE V exp_anywhere(D d, V x) {
  const V most = all(d, C<D>::exp_clamp), least = hn::Neg(most), zero = hn::Zero(d);
  const auto small = hn::Lt(x, zero);
  const Reduced<V> r = reduce(d, hn::IfThenElse(hn::Gt(x, most), most, hn::IfThenElse(hn::Lt(x, least), least, x)));
  const V k_off = hn::IfThenElse(small, all(d, C<D>::step_log2), all(d, -C<D>::step_log2));
  const V step = hn::IfThenElse(small, all(d, 1 / C<D>::step), all(d, C<D>::step));
  const V y = hn::Mul(scale(d, exp_reduced(d, r), hn::Add(r.shifted, k_off)), step);
  return hn::IfThenElse(hn::IsNaN(x), hn::Add(x, x), y);
}

// 1.5 ulp
template <class D, class V = hn::Vec<D>>
HWY_INLINE V exp(D d, V x) {
  const auto moderate = hn::Lt(hn::Abs(x), all(d, C<D>::exp_limit));
  if (HWY_UNLIKELY(!hn::AllTrue(d, moderate))) return exp_anywhere(d, x);
  return exp_moderate(d, x);
}

// exp(x) - 1 = (2 ** k hi + (2 ** k - 1)) + 2 ** k (exp(r) - 1 - hi) for |x| < exp_limit.
template <class D, class V>
HWY_INLINE V expm1_moderate(D d, V x) {
  const Reduced<V> reduced = reduce(d, x);
  const V one = all(d, 1), power = scale(d, one, reduced.shifted);
  const V lo = hn::Mul(reduced.k, all(d, C<D>::ln2_lo)), r = hn::Sub(reduced.hi, lo);
  const V rest = hn::MulSub(hn::Mul(r, r), polynomial(d, r, C<D>::expm1), lo);
  return hn::MulAdd(power, rest, hn::MulAdd(power, reduced.hi, hn::Sub(power, one)));
}

// exp(x) - 1: 1.5 ulp
template <class D, class V = hn::Vec<D>>
HWY_INLINE V expm1(D d, V x) {
  const auto moderate = hn::Lt(hn::Abs(x), all(d, C<D>::exp_limit));
  const V y = hn::CopySign(expm1_moderate(d, x), x);
  if (HWY_LIKELY(hn::AllTrue(d, moderate))) return y;
  return hn::IfThenElse(moderate, y, hn::Sub(exp_anywhere(d, x), all(d, 1)));
}

// 2 ulp. q = y / (y + 2), y = exp(2 x) - 1. Near 0, y / 2 - y / 2 q is the same but for the errors of y + 2 and q.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V tanh(D d, V x) {
  const V a = hn::Abs(x), most = all(d, C<D>::tanh_one), b = hn::IfThenElse(hn::Gt(a, most), most, a);
  const V y = expm1_moderate(d, hn::Add(b, b)), q = hn::Div(y, hn::Add(y, all(d, 2)));
  const V half = hn::Mul(y, all(d, 0.5)), near = hn::NegMulAdd(half, q, half);
  return hn::CopySignToAbs(hn::IfThenElse(hn::Lt(a, all(d, 0.26)), near, q), x);
}

// x = 2 ** e (1 + f), sqrt(1/2) <= 1 + f < sqrt(2), for a positive normal x; |e| > log_limit for all others.
template <class V>
struct Parts {
  V e, f, inverse;  // inverse = 2 ** -e
};
template <class D, class V>
HWY_INLINE Parts<V> parts(D d, V x) {
  const hn::RebindToUnsigned<D> du;
  using U = hn::TFromD<decltype(du)>;
  constexpr U one = C<D>::one, sqrt_half = C<D>::sqrt_half;
  const auto bits = hn::Add(hn::BitCast(du, x), hn::Set(du, one - sqrt_half));
  const auto fraction = hn::Set(du, (U(1) << C<D>::fraction_bits) - 1), two_52 = hn::BitCast(du, all(d, C<D>::two_52));
  const V biased = hn::BitCast(d, hn::Or(hn::ShiftRight<C<D>::fraction_bits>(bits), two_52));
  const V m = hn::BitCast(d, hn::Add(hn::And(bits, fraction), hn::Set(du, sqrt_half)));
  const V inverse = hn::BitCast(d, hn::Sub(hn::Set(du, 2 * one), hn::AndNot(fraction, bits)));
  return {hn::Sub(biased, all(d, C<D>::two_52 + C<D>::bias)), hn::Sub(m, all(d, 1)), inverse};
}
template <class D, class V>
HWY_INLINE auto moderate_exponent(D d, V e) {
  return hn::Lt(hn::Abs(e), all(d, C<D>::log_limit));
}

// e ln 2 + log(1 + f)
template <class D, class V>
HWY_INLINE V log_parts(D d, V e, V f) {
  const V rest = hn::MulAdd(hn::Mul(f, f), polynomial(d, f, C<D>::log), hn::Mul(e, all(d, C<D>::ln2_lo)));
  return hn::MulAdd(e, all(d, C<D>::ln2_hi), hn::Add(f, rest));
}

template <class D, class V>
HWY_NOINLINE V log_anywhere(D d, V x) {
  const V zero = hn::Zero(d), infinity = hn::Inf(d);
  const auto small = hn::Lt(x, all(d, 1));
  const Parts<V> p = parts(d, hn::IfThenElse(small, hn::Mul(x, all(d, C<D>::step)), x));
  V y = log_parts(d, hn::Sub(p.e, hn::IfThenElseZero(small, all(d, C<D>::step_log2))), p.f);
  y = hn::IfThenElse(hn::Eq(x, infinity), infinity, y);
  y = hn::IfThenElse(hn::Eq(x, zero), hn::Neg(infinity), y);
  return hn::IfThenElse(hn::Ge(x, zero), y, hn::NaN(d));
}

// 1.2 ulp
template <class D, class V = hn::Vec<D>>
HWY_INLINE V log(D d, V x) {
  const Parts<V> p = parts(d, x);
  if (HWY_UNLIKELY(!hn::AllTrue(d, moderate_exponent(d, p.e)))) return log_anywhere(d, x);
  return log_parts(d, p.e, p.f);
}

// log(1 + x): 1.8 ulp. Of u = 1 + x, which is rounded, only e is used: f = 2 ** -e x + (2 ** -e - 1).
template <class D, class V = hn::Vec<D>>
HWY_INLINE V log1p(D d, V x) {
  const V one = all(d, 1), u = hn::Add(one, x);
  const Parts<V> p = parts(d, u);
  const V y = log_parts(d, p.e, hn::MulAdd(x, p.inverse, hn::Sub(p.inverse, one)));
  const auto moderate = moderate_exponent(d, p.e);
  if (HWY_LIKELY(hn::AllTrue(d, moderate))) return hn::CopySign(y, x);
  return hn::CopySign(hn::IfThenElse(moderate, y, log_anywhere(d, u)), x);
}

// Both from one e = exp(-|x|), sigmoid(x) = 1 / (1 + exp(-x)) and softplus(x) = log(1 + exp(x)): 2.6 ulp.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V softplus_sigmoid(D d, V x, V& sigmoid) {
  const V e = exp(d, hn::Or(x, hn::SignBit(d))), one = all(d, 1);
  const V base = hn::IfNegativeThenElse(x, e, one);  // base / (1 + e), such that the errors of 1 + e and / weigh less
  sigmoid = hn::NegMulAdd(base, hn::Div(e, hn::Add(one, e)), base);
  // log(1 + e) needs no 1 + e. log_unit[0], much larger than the other terms, comes last: it is rounded but once.
  const V t = hn::Sub(e, all(d, 0.5));
  const V m = polynomial(d, t, C<D>::log_unit);
  return hn::MulAdd(hn::Mul(e, e), m, hn::Add(hn::Max(x, hn::Zero(d)), e));
}
template <class D, class V = hn::Vec<D>>
HWY_INLINE V softplus(D d, V x) {
  V unused;
  return softplus_sigmoid(d, x, unused);
}
template <class D, class V = hn::Vec<D>>
HWY_INLINE V sigmoid(D d, V x) {
  V result;
  softplus_sigmoid(d, x, result);
  return result;
}

// 1.6 ulp. 2 / sqrt(pi) times the integral of exp(-t ** 2) from 0 to x.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V erf(D d, V x) {
  const V a = hn::Abs(x), one = all(d, 1), most = all(d, C<D>::erf_one);
  const V near = hn::MulAdd(a, polynomial(d, hn::Mul(a, a), C<D>::erf), a);
  const V log_erfc = polynomial(d, hn::Sub(hn::IfThenElse(hn::Gt(a, most), most, a), one), C<D>::erfc);
  const Reduced<V> r = reduce(d, log_erfc);
  const V beyond = hn::Sub(one, scale(d, exp_reduced(d, r), r.shifted));
  return hn::CopySignToAbs(hn::IfThenElse(hn::Ge(a, one), beyond, near), x);
}

// Applies f, which works in place, to two vectors of floats as doubles.
template <class D, class V, class F>
HWY_INLINE void in_double(D d, V& x, V& y, const F& f) {
  constexpr size_t n = hn::MaxLanes(d);
  const hn::CappedTag<double, n> wide;
  HWY_ALIGN float xs[n], ys[n];
  HWY_ALIGN double as[n], bs[n];
  hn::Store(x, d, xs);
  hn::Store(y, d, ys);
  for (size_t i = 0; i < n; ++i) as[i] = xs[i], bs[i] = ys[i];
  for (size_t i = 0; i < n; i += hn::Lanes(wide)) {
    auto a = hn::Load(wide, as + i), b = hn::Load(wide, bs + i);
    f(wide, a, b);
    hn::Store(a, wide, as + i);
    hn::Store(b, wide, bs + i);
  }
  for (size_t i = 0; i < n; ++i) xs[i] = float(as[i]), ys[i] = float(bs[i]);  // Highway's DemoteTo knows no infinity
  x = hn::Load(d, xs);
  y = hn::Load(d, ys);
}

// f(x, y) in the lanes of `rare`, one after the other, and `common` in the others.
template <class D, class V, class M, class F>
HWY_NOINLINE V lane_by_lane(D d, M rare, V common, V x, V y, F f) {
  constexpr size_t n = hn::MaxLanes(d);
  HWY_ALIGN hn::TFromD<D> xs[n], ys[n];
  hn::Store(x, d, xs);
  hn::Store(y, d, ys);
  for (size_t i = 0; i < n; ++i) xs[i] = f(xs[i], ys[i]);
  return hn::IfThenElse(rare, hn::Load(d, xs), common);
}

// a * b - p, exact, for p = a * b rounded.
template <class D, class V>
HWY_INLINE V product_error([[maybe_unused]] D d, V a, V b, V p) {
#if HWY_NATIVE_FMA
  return hn::MulSub(a, b, p);
#else
  const V splitter = all(d, 0x1p27 + 1), aa = hn::Mul(a, splitter), bb = hn::Mul(b, splitter);  // Dekker 1971
  const V a_hi = hn::Sub(aa, hn::Sub(aa, a)), b_hi = hn::Sub(bb, hn::Sub(bb, b));
  const V a_lo = hn::Sub(a, a_hi), b_lo = hn::Sub(b, b_hi);
  const V most = hn::Add(hn::Sub(hn::Mul(a_hi, b_hi), p), hn::Mul(a_hi, b_lo));
  return hn::Add(hn::Add(most, hn::Mul(a_lo, b_hi)), hn::Mul(a_lo, b_lo));
#endif
}
// c - a * b with one rounding, for c close to a * b or much larger.
template <class D, class V>
HWY_INLINE V subtract_product(D d, V c, V a, V b) {
  if constexpr (HWY_NATIVE_FMA) return hn::NegMulAdd(a, b, c);
  const V p = hn::Mul(a, b);
  return hn::Sub(hn::Sub(c, p), product_error(d, a, b, p));
}

// |x| = n pi / 2 + r, n whole, |r| <= pi / 4. The last bits of `shifted` are n.
template <class V>
struct Turned {
  V shifted, sin_r, cos_r;
};
template <class D, class V>
HWY_INLINE Turned<V> turn(D d, V x) {
  const V shift = all(d, 1.5 * C<D>::two_52), shifted = hn::MulAdd(hn::Abs(x), all(d, C<D>::two_over_pi), shift);
  V r = hn::Abs(x);
  for (const double part : C<D>::half_pi) r = subtract_product(d, r, hn::Sub(shifted, shift), all(d, part));
  const V z = hn::Mul(r, r);
  return {shifted, hn::MulAdd(hn::Mul(z, r), polynomial(d, z, C<D>::sin), r),
          hn::MulAdd(z, polynomial(d, z, C<D>::cos), all(d, 1))};
}
// sin((n + quarters) pi / 2 + r)
template <class D, class V>
HWY_INLINE V sin_turned(D d, const Turned<V>& x, uint64_t quarters) {
  const hn::RebindToUnsigned<D> du;
  const auto n = hn::Add(hn::BitCast(du, x.shifted), hn::Set(du, quarters));
  const V y = hn::IfThenElse(hn::RebindMask(d, hn::TestBit(n, hn::Set(du, 1))), x.cos_r, x.sin_r);
  return hn::Xor(y, hn::And(hn::BitCast(d, hn::ShiftLeft<62>(n)), hn::SignBit(d)));
}

// sin(x) and cos(x): 1.8 ulp, as float 1. From 2 ** 28 on they are C's.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V sin_cos(D d, V x, V& cos) {
  V sin = cos = x;
  if constexpr (sizeof(hn::TFromD<D>) < sizeof(double)) {
    in_double(d, sin, cos, [](auto wide, auto& s, auto& c) HWY_ATTR { s = sin_cos(wide, c, c); });
  } else {
    const Turned<V> turned = turn(d, x);
    sin = hn::Xor(sin_turned(d, turned, 0), hn::And(x, hn::SignBit(d)));
    cos = sin_turned(d, turned, 1);
    const auto moderate = hn::Lt(hn::Abs(x), all(d, C<D>::sin_limit));
    if (HWY_UNLIKELY(!hn::AllTrue(d, moderate))) {
      sin = lane_by_lane(d, hn::Not(moderate), sin, x, x, [](double a, double) { return std::sin(a); });
      cos = lane_by_lane(d, hn::Not(moderate), cos, x, x, [](double a, double) { return std::cos(a); });
    }
  }
  return sin;
}
template <class D, class V = hn::Vec<D>>
HWY_INLINE V sin(D d, V x) {
  V unused;
  return sin_cos(d, x, unused);
}
template <class D, class V = hn::Vec<D>>
HWY_INLINE V cos(D d, V x) {
  V result;
  sin_cos(d, x, result);
  return result;
}

// large + small, and the product of two pairs.
template <class V>
HWY_INLINE Pair<V> sum(V large, Pair<V> small) {
  const V hi = hn::Add(large, small.hi);
  return {hi, hn::Add(hn::Add(hn::Sub(large, hi), small.hi), small.lo)};
}
template <class D, class V>
HWY_INLINE Pair<V> product(D d, Pair<V> a, Pair<V> b) {
  const V hi = hn::Mul(a.hi, b.hi), cross = hn::MulAdd(a.hi, b.lo, hn::Mul(a.lo, b.hi));
  return {hi, hn::Add(cross, product_error(d, a.hi, b.hi, hi))};
}

// e ln 2 + log(1 + f) with 12 bits more than a double has: log(1 + f) = 2 atanh(s), s = f / (2 + f).
template <class D, class V>
HWY_INLINE Pair<V> log_pair(D d, V e, V f) {
  const V two = all(d, 2), divisor = hn::Add(two, f), divisor_lo = hn::Sub(f, hn::Sub(divisor, two));
  const V inverse = hn::Div(all(d, 1), divisor), q = hn::Mul(f, inverse);
  const V rest = hn::NegMulAdd(q, divisor_lo, subtract_product(d, f, q, divisor));
  const Pair<V> s = {q, hn::Mul(rest, inverse)}, z = product(d, s, s);
  const Pair<V> tail = {hn::Mul(z.hi, polynomial(d, z.hi, C<D>::atanh)), all(d, C<D>::two_thirds_lo)};
  const Pair<V> y = product(d, s, sum(two, product(d, z, sum(all(d, C<D>::two_thirds_hi), tail))));
  const V lo = hn::MulAdd(e, all(d, C<D>::ln2_lo), y.lo);
  return sum(hn::Mul(e, all(d, C<D>::ln2_hi)), Pair<V>{y.hi, lo});
}

// 1 ulp: exp(y log|x|) with the sign of x where y is odd. Special values, denormal x, and results that
// may overflow or underflow are C's.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V pow(D d, V x, V y) {
  if constexpr (sizeof(hn::TFromD<D>) < sizeof(double)) {
    in_double(d, x, y, [](auto wide, auto& a, auto& b) HWY_ATTR { a = pow(wide, a, b); });
    return x;
  } else {
    const Parts<V> p = parts(d, hn::Abs(x));
    const Pair<V> exponent = product(d, Pair<V>{y, hn::Zero(d)}, log_pair(d, p.e, p.f));
    const Reduced<V> k_r = reduce(d, exponent.hi);
    const V lo = hn::NegMulAdd(k_r.k, all(d, C<D>::ln2_lo), exponent.lo), r = hn::Add(k_r.hi, lo);
    const V r_lo = hn::Add(hn::Sub(k_r.hi, r), lo);
    const Pair<V> exp_r = exp_pair(d, r);  // exp(r + r_lo) = exp(r) + (1 + r) r_lo
    const V power = scale(d, hn::Add(exp_r.hi, hn::MulAdd(exp_r.hi, r_lo, exp_r.lo)), k_r.shifted);

    const V half_y = hn::Mul(y, all(d, 0.5));
    const auto whole = hn::Eq(hn::Round(y), y), odd = hn::Ne(hn::Round(half_y), half_y);
    const V signed_power = hn::Or(power, hn::IfThenElseZero(odd, hn::And(x, hn::SignBit(d))));
    const auto moderate = hn::And(moderate_exponent(d, p.e), hn::Lt(hn::Abs(exponent.hi), all(d, C<D>::exp_limit)));
    const auto real = hn::And(hn::Or(whole, hn::Gt(x, hn::Zero(d))), hn::Lt(hn::Abs(y), all(d, 0x1p64)));
    const auto common = hn::And(moderate, real);
    if (HWY_LIKELY(hn::AllTrue(d, common))) return signed_power;
    return lane_by_lane(d, hn::Not(common), signed_power, x, y, [](double a, double b) { return std::pow(a, b); });
  }
}

}  // namespace math
}  // namespace HWY_NAMESPACE
}  // namespace dense
HWY_AFTER_NAMESPACE();
#endif
