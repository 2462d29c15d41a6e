// exp, log, tanh and their relatives on Highway vectors of double or float, of any length.
//
// A result depends on its own argument alone: not on the length of the vector, its lane or the other lanes, and AVX2 and
// AVX-512 agree in every bit. Special values, infinities, NaN, signs of zeros and denormal numbers are those of C's
// functions. Errors are given in ulps of the result, double then float: tests/math_test.cpp holds the functions to them.
//
// An argument is reduced to a short interval by adding multiples of ln 2 (Cody & Waite 1980), there a minimax polynomial
// takes over, evaluated as a tree (Estrin 1960), for one number waits for chains of operations. What is rare leaves the
// main path by one branch for the whole vector. Included once per target: see Highway's foreach_target.h.
#if defined(DENSE_SCALAR_MATH_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef DENSE_SCALAR_MATH_H_
#undef DENSE_SCALAR_MATH_H_
#else
#define DENSE_SCALAR_MATH_H_
#endif

#include <hwy/highway.h>

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

template <>
struct Constants<double> {
  static constexpr int fraction_bits = 52;
  static constexpr uint64_t one = 0x3ff0000000000000, sqrt_half = 0x3fe6a09e667f3bcd;  // bits of 1 and sqrt(1/2)
  static constexpr double two_fraction_bits = 0x1p52, bias = 1023;
  static constexpr double log2e = 0x1.71547652b82fep0;
  static constexpr double ln2_hi = 0x1.62e42fefa38p-1, ln2_lo = 0x1.ef35793c7673p-45;  // k * ln2_hi is exact
  static constexpr double exp_limit = 708;  // exp(x) is a normal number for |x| < exp_limit; zero or infinite from
  static constexpr double exp_clamp = 760;  // exp_clamp on
  static constexpr double exp_step = 0x1p128, exp_step_log2 = 128;  // brings exp(exp_clamp) in range
  static constexpr double log_limit = 1000;                         // largest |log2(x)| without care
  static constexpr double tanh_one = 22;                            // tanh rounds to 1 from here on

  // exp(x) = 1 + x (exp[0] + exp[1] x + ...) for |x| <= ln(2) / 2
  static constexpr double exp[] = {1,
                                   0x1.0000000000000p-1,
                                   0x1.555555555555ap-3,
                                   0x1.5555555553aeap-5,
                                   0x1.111111110ef2fp-7,
                                   0x1.6c16c17a0aa20p-10,
                                   0x1.a01a01b34bde4p-13,
                                   0x1.a019b376cb4bdp-16,
                                   0x1.71ddef2a51816p-19,
                                   0x1.28978b871596cp-22,
                                   0x1.af6f4644c49fcp-26};
  // exp(x) = 1 + x + x ** 2 (expm1[0] + expm1[1] x + ...), likewise, for results that need more digits
  static constexpr double expm1[] = {0x1.0000000000000p-1,  0x1.5555555555559p-3,  0x1.5555555555559p-5,
                                     0x1.111111110f650p-7,  0x1.6c16c16c147fap-10, 0x1.a01a01b005e0bp-13,
                                     0x1.a01a01b0354aep-16, 0x1.71ddf809cd35dp-19, 0x1.27e4c601928e4p-22,
                                     0x1.af5f341e88af9p-26, 0x1.1f9574e47fe05p-29};
  // log(1 + x) = x + x ** 2 (log[0] + log[1] x + ...) for sqrt(1/2) <= 1 + x <= sqrt(2)
  static constexpr double log[] = {
      -0x1.0000000000000p-1, 0x1.5555555555533p-2,  -0x1.fffffffffef14p-3, 0x1.999999999f7afp-3,  -0x1.555555566b383p-3,
      0x1.24924922a1defp-3,  -0x1.ffffff2bf485fp-4, 0x1.c71c71e0d5f93p-4,  -0x1.9999c26bf1ac1p-4, 0x1.745d3f0813e63p-4,
      -0x1.5550ee5810237p-4, 0x1.3b0b8a6dc75b8p-4,  -0x1.24d7512fea656p-4, 0x1.11ccf38d0cd67p-4,  -0x1.fba1839ac085ep-5,
      0x1.d05ae2a45d61fp-5,  -0x1.d1215ade87349p-5, 0x1.0a6203b66ac39p-4,  -0x1.ea0152cdcf713p-5, 0x1.ac6e22518c6bcp-6};
  // log(1 + x) = x + x ** 2 (log_unit[0] + log_unit[1] (x - 1/2) + ...) for 0 <= x <= 1
  static constexpr double log_unit[] = {
      -0x1.833704d019ed0p-2,  0x1.6f0d7bd624bedp-3,  -0x1.7ddf1fe86ac64p-4,  0x1.a279c04c785f0p-5,
      -0x1.da348248790f6p-6,  0x1.131116fc1bfafp-6,  -0x1.44ba45de1bc98p-7,  0x1.84904ed1da9d9p-8,
      -0x1.d5faf07e0229dp-9,  0x1.1ebd42da0b5d6p-9,  -0x1.607615f931f56p-10, 0x1.b3dd799f5e611p-11,
      -0x1.0ecef11b810dbp-11, 0x1.5326ac2cf5f81p-12, -0x1.adc6ce2eee94fp-13, 0x1.0750481dd955bp-13,
      -0x1.29a721a918515p-14, 0x1.b86a6c8f650cap-15, -0x1.add5e43177b27p-15, 0x1.accbca60db774p-16};

  // erf(x) = x + x (erf[0] + erf[1] x ** 2 + ...) for |x| < 1; 1 - exp(erfc[0] + erfc[1] (x - 1) + ...) up to erf_one
  static constexpr double erf_one = 6;
  static constexpr double erf[] = {0x1.06eba8214db68p-3,   -0x1.812746b0379b2p-2,  0x1.ce2f21a0408d0p-4,
                                   -0x1.b82ce311ee03cp-6,  0x1.565bccf7e1a08p-8,   -0x1.c02db0147856ap-11,
                                   0x1.f9a2b7518c37fp-14,  -0x1.f4ca2012dd328p-17, 0x1.b97e41e6136fcp-20,
                                   -0x1.5bfe6842abaebp-23, 0x1.d6e37cf916190p-27,  -0x1.ab14a315c4e98p-31};
  static constexpr double erfc[] = {-0x1.d97fbf27aa2a1p+0,  -0x1.51c9b0006c228p+1,  -0x1.afabc11a2a8a0p-1,
                                    -0x1.5477f09a2496ap-5,  0x1.48c9d38e4285bp-7,   -0x1.033f5b4330cf7p-9,
                                    0x1.f1b08cc20a5f1p-13,  0x1.b928d9b74aad4p-16,  -0x1.c84a0772c7158p-16,
                                    0x1.446ea8fa94229p-17,  -0x1.1dd3ee6bac2d1p-19, 0x1.b45e359a7f28bp-23,
                                    0x1.f945f006a28f9p-25,  -0x1.215b260ac3146p-25, 0x1.2747acebd9c9fp-27,
                                    -0x1.6e154b31c55a5p-30, 0x1.093707398692ep-33,  -0x1.5a6d3af03b09ep-38};
  // sin(x) = x + x ** 3 (sin[0] + sin[1] x ** 2 + ...) and cos(x) = 1 + x ** 2 (cos[0] + ...) for |x| <= pi / 4
  static constexpr double two_over_pi = 0x1.45f306dc9c883p-1,
                          half_pi[] = {0x1.921fb54442d18p+0, 0x1.1a62633145c07p-54, -0x1.f1976b7ed8fbcp-110};
  static constexpr double sin_limit = 0x1p28;
  static constexpr double sin[] = {-0x1.5555555555548p-3, 0x1.111111110f75fp-7,   -0x1.a01a019bf28c0p-13,
                                   0x1.71de355f7a996p-19, -0x1.ae5e54dde98f4p-26, 0x1.5d8e58428cf98p-33};
  static constexpr double cos[] = {-0x1.0000000000000p-1, 0x1.555555555554ap-5,   -0x1.6c16c16c14e4cp-10,
                                   0x1.a01a019c68f31p-16, -0x1.27e4f7d951548p-22, 0x1.1ee9cd0ba7293p-29,
                                   -0x1.8f9f92ac628dcp-37};
  // 2 atanh(s) = s (2 + s ** 2 (2/3 + s ** 2 (atanh[0] + atanh[1] s ** 2 + ...))) for |s| <= 3 - sqrt(8)
  static constexpr double two_thirds_hi = 0x1.5555555555555p-1, two_thirds_lo = 0x1.5555555555555p-55;
  static constexpr double atanh[] = {0x1.9999999999996p-2, 0x1.2492492492f49p-2, 0x1.c71c71c597eebp-3,
                                     0x1.745d182897498p-3, 0x1.3b1364fea3d9cp-3, 0x1.11206716929b3p-3,
                                     0x1.de3eb5fdc34d3p-4, 0x1.eabb5c9b796c0p-4};
};

template <>
struct Constants<float> {
  static constexpr int fraction_bits = 23;
  static constexpr uint32_t one = 0x3f800000, sqrt_half = 0x3f3504f3;
  static constexpr float two_fraction_bits = 0x1p23f, bias = 127;
  static constexpr float log2e = 0x1.715476p0f;
  static constexpr float ln2_hi = 0x1.62e4p-1f, ln2_lo = 0x1.7f7d1cp-20f;
  static constexpr float exp_limit = 87;
  static constexpr float exp_clamp = 110;
  static constexpr float exp_step = 0x1p64f, exp_step_log2 = 64;
  static constexpr float log_limit = 120;
  static constexpr float tanh_one = 10;
  static constexpr float exp[] = {1, 0x1.000000p-1f, 0x1.5554b2p-3f, 0x1.5554cap-5f, 0x1.12266ap-7f, 0x1.6d6fd0p-10f};
  static constexpr float expm1[] = {0x1.000000p-1f, 0x1.555556p-3f,  0x1.5554f2p-5f,
                                    0x1.110fdcp-7f, 0x1.6d411ep-10f, 0x1.a29d32p-13f};
  static constexpr float log[] = {-0x1.000000p-1f, 0x1.555554p-2f,  -0x1.000226p-2f, 0x1.99a020p-3f, -0x1.547290p-3f,
                                  0x1.22d8c4p-3f,  -0x1.0d8188p-3f, 0x1.056178p-3f,  -0x1.38d4aep-4f};
  static constexpr float log_unit[] = {-0x1.833704p-2f, 0x1.6f0d74p-3f,  -0x1.7de0e4p-4f,
                                       0x1.a28660p-5f,  -0x1.d98b38p-6f, 0x1.10d478p-6f,
                                       -0x1.4db526p-7f, 0x1.c73008p-8f,  -0x1.b33cf2p-9f};
  static constexpr float erf_one = 4;
  static constexpr float erf[] = {0x1.06eba8p-3f, -0x1.81273ep-2f,  0x1.ce2cf2p-4f, -0x1.b7f88cp-6f,
                                  0x1.540170p-8f, -0x1.a3d7ecp-11f, 0x1.4916f2p-14f};
  static constexpr float erfc[] = {-0x1.d97fc0p+0f, -0x1.51c99ep+1f,  -0x1.afaecap-1f, -0x1.53a678p-5f,
                                   0x1.42324ep-7f,  -0x1.d4971cp-10f, 0x1.71ada0p-13f};
};

template <class D>
using C = Constants<hn::TFromD<D>>;

// c[0] + c[1] x + c[2] x ** 2 + ..., pairs of neighbours first, then pairs of pairs.
template <class V, size_t n>
HWY_INLINE V tree(V x, const V (&c)[n]) {
  if constexpr (n == 1) {
    return c[0];
  } else if constexpr (n == 3) {
    return hn::MulAdd(x, hn::MulAdd(x, c[2], c[1]), c[0]);
  } else {
    V pairs[(n + 1) / 2];
    for (size_t i = 0; i < n / 2; ++i) pairs[i] = hn::MulAdd(x, c[2 * i + 1], c[2 * i]);
    if constexpr (n % 2 == 1) pairs[n / 2] = c[n - 1];
    return tree(hn::Mul(x, x), pairs);
  }
}
template <class D, class V, class T, size_t n, size_t... i>
HWY_INLINE V polynomial(D d, V x, const T (&c)[n], std::index_sequence<i...>) {
  const V all[] = {hn::Set(d, c[i])...};
  return tree(x, all);
}
template <class D, class V, class T, size_t n>
HWY_INLINE V polynomial(D d, V x, const T (&c)[n]) {
  return polynomial(d, x, c, std::make_index_sequence<n>());
}

// y * 2 ** k for normal y and result; the last bits of `shifted`, which is 1.5 * 2 ** fraction_bits + k, are k.
template <class D, class V>
HWY_INLINE V scale(D d, V y, V shifted) {
  const hn::RebindToUnsigned<D> du;
  return hn::BitCast(d, hn::Add(hn::BitCast(du, y), hn::ShiftLeft<C<D>::fraction_bits>(hn::BitCast(du, shifted))));
}

// x = k ln 2 + r, k whole, |r| <= ln(2) / 2; hi is r before the low part of k ln 2 is taken off, and exact.
template <class V>
struct Reduced {
  V shifted, k, hi;
};
template <class D, class V>
HWY_INLINE Reduced<V> reduce(D d, V x) {
  const V magic = hn::Set(d, C<D>::two_fraction_bits * hn::TFromD<D>(1.5));
  const V shifted = hn::MulAdd(x, hn::Set(d, C<D>::log2e), magic), k = hn::Sub(shifted, magic);
  return {shifted, k, hn::NegMulAdd(k, hn::Set(d, C<D>::ln2_hi), x)};
}

// An unevaluated sum, |lo| much smaller than |hi|.
template <class V>
struct Pair {
  V hi, lo;
};

// exp(r), |r| <= ln(2) / 2, as 1 + r and the rest with the error of that sum.
template <class D, class V>
HWY_INLINE Pair<V> exp_pair(D d, V r) {
  const V one = hn::Set(d, 1), top = hn::Add(one, r), error = hn::Sub(r, hn::Sub(top, one));
  return {top, hn::MulAdd(hn::Mul(r, r), polynomial(d, r, C<D>::expm1), error)};
}

enum class Exp { fast, accurate };  // errors below 1.1 and 0.7 ulp where FMA is native, for four operations more

template <Exp kind, class D, class V>
HWY_INLINE V exp_reduced(D d, const Reduced<V>& x) {
  const V r = hn::NegMulAdd(x.k, hn::Set(d, C<D>::ln2_lo), x.hi);
  if constexpr (kind == Exp::fast) return hn::MulAdd(r, polynomial(d, r, C<D>::exp), hn::Set(d, 1));
  const Pair<V> y = exp_pair(d, r);
  return hn::Add(y.hi, y.lo);
}

// exp(x) where the result may overflow or underflow: 2 ** k in two steps.
template <Exp kind, class D, class V>
HWY_NOINLINE V exp_anywhere(D d, V x) {
  const V most = hn::Set(d, C<D>::exp_clamp), least = hn::Neg(most), step_log2 = hn::Set(d, C<D>::exp_step_log2);
  const Reduced<V> r = reduce(d, hn::IfThenElse(hn::Gt(x, most), most, hn::IfThenElse(hn::Lt(x, least), least, x)));
  const auto tiny = hn::Lt(x, hn::Zero(d));
  const V near = hn::Add(r.shifted, hn::IfThenElse(tiny, step_log2, hn::Neg(step_log2)));
  const V step = hn::IfThenElse(tiny, hn::Set(d, 1 / C<D>::exp_step), hn::Set(d, C<D>::exp_step));
  return hn::IfThenElse(hn::IsNaN(x), hn::Add(x, x), hn::Mul(scale(d, exp_reduced<kind>(d, r), near), step));
}

template <Exp kind = Exp::fast, class D, class V = hn::Vec<D>>
HWY_INLINE V exp(D d, V x) {
  const auto moderate = hn::Lt(hn::Abs(x), hn::Set(d, C<D>::exp_limit));
  if (HWY_UNLIKELY(!hn::AllTrue(d, moderate))) return exp_anywhere<kind>(d, x);
  const Reduced<V> r = reduce(d, x);
  return scale(d, exp_reduced<kind>(d, r), r.shifted);
}

// exp(x) - 1 for |x| < exp_limit. Where 2 ** k hi is not small its sum with 2 ** k - 1 is rounded, and little else.
template <class D, class V>
HWY_INLINE V expm1_moderate(D d, V x) {
  const Reduced<V> reduced = reduce(d, x);
  const V one = hn::Set(d, 1), power = scale(d, one, reduced.shifted);
  const V lo = hn::Mul(reduced.k, hn::Set(d, C<D>::ln2_lo)), r = hn::Sub(reduced.hi, lo);
  const V rest = hn::MulSub(hn::Mul(r, r), polynomial(d, r, C<D>::expm1), lo);
  return hn::MulAdd(power, rest, hn::MulAdd(power, reduced.hi, hn::Sub(power, one)));
}

// x = 2 ** e m, sqrt(1/2) <= m < sqrt(2); m = 1 + f and inverse = 2 ** -e.
template <class V>
struct Parts {
  V e, f, inverse;
};
template <class D, class V>
HWY_INLINE Parts<V> parts(D d, V x) {
  const hn::RebindToUnsigned<D> du;
  using U = hn::TFromD<decltype(du)>;
  constexpr U one = C<D>::one, fraction = (U(1) << C<D>::fraction_bits) - 1, sqrt_half = C<D>::sqrt_half;
  const auto bits = hn::Add(hn::BitCast(du, x), hn::Set(du, one - sqrt_half));
  const auto exponent = hn::BitCast(
      d, hn::Or(hn::ShiftRight<C<D>::fraction_bits>(bits), hn::BitCast(du, hn::Set(d, C<D>::two_fraction_bits))));
  const auto m = hn::BitCast(d, hn::Add(hn::And(bits, hn::Set(du, fraction)), hn::Set(du, sqrt_half)));
  const auto inverse = hn::BitCast(d, hn::Sub(hn::Set(du, 2 * one), hn::AndNot(hn::Set(du, fraction), bits)));
  return {hn::Sub(exponent, hn::Set(d, C<D>::two_fraction_bits + C<D>::bias)), hn::Sub(m, hn::Set(d, 1)), inverse};
}

// e ln 2 + log(1 + f)
template <class D, class V>
HWY_INLINE V log_parts(D d, V e, V f) {
  const V rest = hn::MulAdd(hn::Mul(f, f), polynomial(d, f, C<D>::log), hn::Mul(e, hn::Set(d, C<D>::ln2_lo)));
  return hn::MulAdd(e, hn::Set(d, C<D>::ln2_hi), hn::Add(f, rest));
}

template <class D, class V>
HWY_NOINLINE V log_anywhere(D d, V x) {
  const V step = hn::Set(d, C<D>::exp_step), infinity = hn::Inf(d), zero = hn::Zero(d);
  const auto small = hn::Lt(x, hn::Set(d, 1));
  const Parts<V> p = parts(d, hn::IfThenElse(small, hn::Mul(x, step), x));
  const V e = hn::Sub(p.e, hn::IfThenElseZero(small, hn::Set(d, C<D>::exp_step_log2)));
  V y = log_parts(d, e, p.f);
  y = hn::IfThenElse(hn::Eq(x, infinity), infinity, y);
  y = hn::IfThenElse(hn::Eq(x, zero), hn::Neg(infinity), y);
  return hn::IfThenElse(hn::Ge(x, zero), y, hn::NaN(d));
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V log(D d, V x) {
  const Parts<V> p = parts(d, x);
  if (HWY_UNLIKELY(!hn::AllTrue(d, hn::Lt(hn::Abs(p.e), hn::Set(d, C<D>::log_limit))))) return log_anywhere(d, x);
  return log_parts(d, p.e, p.f);
}

// log(1 + x)
template <class D, class V = hn::Vec<D>>
HWY_INLINE V log1p(D d, V x) {
  // With u = 1 + x = 2 ** e m: m - 1 = 2 ** -e x + (2 ** -e - 1), in which u and its rounding do not occur.
  const V one = hn::Set(d, 1), u = hn::Add(one, x);
  const Parts<V> p = parts(d, u);
  const V y = log_parts(d, p.e, hn::MulAdd(x, p.inverse, hn::Sub(p.inverse, one)));
  const auto moderate = hn::Lt(hn::Abs(p.e), hn::Set(d, C<D>::log_limit));
  if (HWY_LIKELY(hn::AllTrue(d, moderate))) return hn::CopySign(y, x);
  return hn::CopySign(hn::IfThenElse(moderate, y, log_anywhere(d, u)), x);
}

// log(1 + x) for 0 <= x <= 1
template <class D, class V>
HWY_INLINE V log1p_unit(D d, V x) {
  return hn::MulAdd(hn::Mul(x, x), polynomial(d, hn::Sub(x, hn::Set(d, hn::TFromD<D>(0.5))), C<D>::log_unit), x);
}

// exp(-|x|)
template <class D, class V>
HWY_INLINE V exp_negative(D d, V x) {
  return exp<Exp::accurate>(d, hn::Or(x, hn::SignBit(d)));
}
template <class D, class V>
HWY_INLINE V sigmoid_from_exp(D d, V x, V e) {
  const V one = hn::Set(d, 1);
  return hn::Div(hn::IfNegativeThenElse(x, e, one), hn::Add(one, e));
}
template <class D, class V>
HWY_INLINE V softplus_from_exp(D d, V x, V e) {
  return hn::Add(hn::Max(x, hn::Zero(d)), log1p_unit(d, e));
}

// 1 / (1 + exp(-x))
template <class D, class V = hn::Vec<D>>
HWY_INLINE V sigmoid(D d, V x) {
  return sigmoid_from_exp(d, x, exp_negative(d, x));
}

// log(1 + exp(x))
template <class D, class V = hn::Vec<D>>
HWY_INLINE V softplus(D d, V x) {
  return softplus_from_exp(d, x, exp_negative(d, x));
}

// softplus(x) and its derivative, with one exponential.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V softplus_sigmoid(D d, V x, V& sigmoid) {
  const V e = exp_negative(d, x);
  sigmoid = sigmoid_from_exp(d, x, e);
  return softplus_from_exp(d, x, e);
}

// y / (y + 2), y = exp(2 x) - 1 for x negative near 0 and else positive: the roundings of y and y + 2 weigh least so.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V tanh(D d, V x) {
  const V a = hn::Abs(x), most = hn::Set(d, C<D>::tanh_one), b = hn::IfThenElse(hn::Gt(a, most), most, a);
  const V sign = hn::IfThenElseZero(hn::Lt(a, hn::Set(d, hn::TFromD<D>(0.17))), hn::SignBit(d));
  const V y = expm1_moderate(d, hn::Or(hn::Add(b, b), sign));
  return hn::CopySign(hn::Div(y, hn::Add(y, hn::Set(d, 2))), x);
}

// exp(x) - 1
template <class D, class V = hn::Vec<D>>
HWY_INLINE V expm1(D d, V x) {
  const auto moderate = hn::Lt(hn::Abs(x), hn::Set(d, C<D>::exp_limit));
  const V y = hn::CopySign(expm1_moderate(d, x), x);
  if (HWY_LIKELY(hn::AllTrue(d, moderate))) return y;
  return hn::IfThenElse(moderate, y, hn::Sub(exp_anywhere<Exp::fast>(d, x), hn::Set(d, 1)));
}

// 2 / sqrt(pi) times the integral of exp(-t ** 2) from 0 to x
template <class D, class V = hn::Vec<D>>
HWY_INLINE V erf(D d, V x) {
  const V a = hn::Abs(x), one = hn::Set(d, 1), most = hn::Set(d, C<D>::erf_one);
  const V log_erfc = polynomial(d, hn::Sub(hn::IfThenElse(hn::Gt(a, most), most, a), one), C<D>::erfc);
  const Reduced<V> reduced = reduce(d, log_erfc);
  const V beyond = hn::Sub(one, scale(d, exp_reduced<Exp::fast>(d, reduced), reduced.shifted));
  const V near = hn::MulAdd(a, polynomial(d, hn::Mul(a, a), C<D>::erf), a);
  return hn::CopySign(hn::IfThenElse(hn::Ge(a, one), beyond, near), x);
}

// Applies f, which works in place, to two vectors of floats as doubles.
template <class D, class V, class F>
HWY_INLINE void in_double(D d, V& x, V& y, const F& f) {
#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128  // where Highway 1.0.3 demotes infinity to the largest float
  const hn::CappedTag<double, 1> wide;
  HWY_ALIGN float xs[hn::MaxLanes(d)], ys[hn::MaxLanes(d)];
  hn::Store(x, d, xs);
  hn::Store(y, d, ys);
  for (size_t i = 0; i < hn::Lanes(d); ++i) {
    auto a = hn::Set(wide, double(xs[i])), b = hn::Set(wide, double(ys[i]));
    f(wide, a, b);
    xs[i] = float(hn::GetLane(a));
    ys[i] = float(hn::GetLane(b));
  }
  x = hn::Load(d, xs);
  y = hn::Load(d, ys);
#else
  if constexpr (hn::MaxLanes(d) * sizeof(double) <= HWY_MAX_BYTES) {
    const hn::Rebind<double, D> wide;
    auto a = hn::PromoteTo(wide, x), b = hn::PromoteTo(wide, y);
    f(wide, a, b);
    x = hn::DemoteTo(d, a);
    y = hn::DemoteTo(d, b);
  } else {
    const hn::Half<D> half;
    auto x_lower = hn::LowerHalf(half, x), y_lower = hn::LowerHalf(half, y);
    auto x_upper = hn::UpperHalf(half, x), y_upper = hn::UpperHalf(half, y);
    in_double(half, x_lower, y_lower, f);
    in_double(half, x_upper, y_upper, f);
    x = hn::Combine(d, x_upper, x_lower);
    y = hn::Combine(d, y_upper, y_lower);
  }
#endif
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

// p - a * b for p = a * b rounded: the error of the product, negated, exact.
template <class D, class V>
HWY_INLINE V product_excess(D d, V a, V b, V p) {
#if HWY_NATIVE_FMA
  (void)d;
  return hn::NegMulAdd(a, b, p);
#else
  const V splitter = hn::Set(d, 0x1p27 + 1), aa = hn::Mul(a, splitter), bb = hn::Mul(b, splitter);  // Dekker 1971
  const V a_hi = hn::Sub(aa, hn::Sub(aa, a)), b_hi = hn::Sub(bb, hn::Sub(bb, b));
  const V a_lo = hn::Sub(a, a_hi), b_lo = hn::Sub(b, b_hi);
  const V rest = hn::Sub(hn::Sub(hn::Sub(p, hn::Mul(a_hi, b_hi)), hn::Mul(a_lo, b_hi)), hn::Mul(a_hi, b_lo));
  return hn::Sub(rest, hn::Mul(a_lo, b_lo));
#endif
}
// c - a * b, which is close to zero or much smaller than c, with one rounding.
template <class D, class V>
HWY_INLINE V sub_product(D d, V a, V b, V c) {
#if HWY_NATIVE_FMA
  (void)d;
  return hn::NegMulAdd(a, b, c);
#else
  const V p = hn::Mul(a, b);
  return hn::Add(hn::Sub(c, p), product_excess(d, a, b, p));
#endif
}

// |x| = n pi / 2 + r, n whole and the last bits of `quadrant`, |r| <= pi / 4; sin(r) and cos(r).
template <class V>
struct Turned {
  V quadrant, sin, cos;
};
template <class D, class V>
HWY_INLINE Turned<V> turn(D d, V a) {
  const V magic = hn::Set(d, C<D>::two_fraction_bits * 1.5);
  const V quadrant = hn::MulAdd(a, hn::Set(d, C<D>::two_over_pi), magic), n = hn::Sub(quadrant, magic);
  V r = a;
  for (const double part : C<D>::half_pi) r = sub_product(d, n, hn::Set(d, part), r);
  const V z = hn::Mul(r, r);
  return {quadrant, hn::MulAdd(hn::Mul(z, r), polynomial(d, z, C<D>::sin), r),
          hn::MulAdd(z, polynomial(d, z, C<D>::cos), hn::Set(d, 1))};
}
// sin(|x| + shift pi / 2)
template <class D, class V>
HWY_INLINE V sin_turned(D d, const Turned<V>& t, int shift) {
  const hn::RebindToUnsigned<D> du;
  const auto n = hn::Add(hn::BitCast(du, t.quadrant), hn::Set(du, uint64_t(shift)));
  const auto odd = hn::RebindMask(d, hn::TestBit(n, hn::Set(du, 1)));
  const V sign = hn::And(hn::BitCast(d, hn::ShiftLeft<62>(n)), hn::SignBit(d));
  return hn::Xor(hn::IfThenElse(odd, t.cos, t.sin), sign);
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V sin_cos(D d, V x, V& cos) {
  if constexpr (sizeof(hn::TFromD<D>) == sizeof(double)) {
    const V a = hn::Abs(x);
    const Turned<V> t = turn(d, a);
    V sin = hn::Xor(sin_turned(d, t, 0), hn::And(x, hn::SignBit(d)));
    cos = sin_turned(d, t, 1);
    const auto moderate = hn::Lt(a, hn::Set(d, C<D>::sin_limit));
    if (HWY_UNLIKELY(!hn::AllTrue(d, moderate))) {
      sin = lane_by_lane(d, hn::Not(moderate), sin, x, x, [](double v, double) { return std::sin(v); });
      cos = lane_by_lane(d, hn::Not(moderate), cos, x, x, [](double v, double) { return std::cos(v); });
    }
    return sin;
  } else {
    V sin = cos = x;
    in_double(d, sin, cos, [](auto wide, auto& s, auto& c) HWY_ATTR { s = sin_cos(wide, c, c); });
    return sin;
  }
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

template <class V>
HWY_INLINE Pair<V> sum(V large, Pair<V> small) {
  const V hi = hn::Add(large, small.hi);
  return {hi, hn::Add(hn::Add(hn::Sub(large, hi), small.hi), small.lo)};
}
template <class D, class V>
HWY_INLINE Pair<V> product(D d, Pair<V> a, Pair<V> b) {
  const V hi = hn::Mul(a.hi, b.hi), cross = hn::MulAdd(a.hi, b.lo, hn::Mul(a.lo, b.hi));
  return {hi, hn::Sub(cross, product_excess(d, a.hi, b.hi, hi))};
}

// e ln 2 + log(1 + f), with 11 bits or more beyond those of a double.
template <class D, class V>
HWY_INLINE Pair<V> log_pair(D d, V e, V f) {
  const V two = hn::Set(d, 2), den = hn::Add(two, f), den_lo = hn::Sub(f, hn::Sub(den, two));
  const V inverse = hn::Div(hn::Set(d, 1), den), q = hn::Mul(f, inverse);
  const Pair<V> s = {q, hn::Mul(hn::NegMulAdd(q, den_lo, sub_product(d, q, den, f)), inverse)}, z = product(d, s, s);
  const Pair<V> tail = {hn::Mul(z.hi, polynomial(d, z.hi, C<D>::atanh)), hn::Set(d, C<D>::two_thirds_lo)};
  const Pair<V> y = product(d, s, sum(two, product(d, z, sum(hn::Set(d, C<D>::two_thirds_hi), tail))));
  const V lo = hn::MulAdd(e, hn::Set(d, C<D>::ln2_lo), y.lo);
  return sum(hn::Mul(e, hn::Set(d, C<D>::ln2_hi)), Pair<V>{y.hi, lo});
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V pow(D d, V x, V y) {
  if constexpr (sizeof(hn::TFromD<D>) == sizeof(double)) {
    const Parts<V> p = parts(d, hn::Abs(x));
    const Pair<V> log = log_pair(d, p.e, p.f), exponent = product(d, Pair<V>{y, hn::Zero(d)}, log);
    const Reduced<V> reduced = reduce(d, exponent.hi);
    const V t = hn::NegMulAdd(reduced.k, hn::Set(d, C<D>::ln2_lo), exponent.lo), r = hn::Add(reduced.hi, t);
    const V r_lo = hn::Add(hn::Sub(reduced.hi, r), t);  // exp(r + r_lo) = exp(r) + (1 + r) r_lo
    const Pair<V> power = exp_pair(d, r);
    const V absolute = scale(d, hn::Add(power.hi, hn::MulAdd(power.hi, r_lo, power.lo)), reduced.shifted);
    const auto whole = hn::Eq(hn::Round(y), y),
               odd = hn::Ne(hn::Round(hn::Mul(y, hn::Set(d, 0.5))), hn::Mul(y, hn::Set(d, 0.5)));
    const V sign = hn::IfThenElseZero(odd, hn::And(x, hn::SignBit(d)));
    const V result = hn::Or(absolute, sign);
    const auto common = hn::And(hn::And(hn::Lt(hn::Abs(p.e), hn::Set(d, C<D>::log_limit)),
                                        hn::Lt(hn::Abs(exponent.hi), hn::Set(d, C<D>::exp_limit))),
                                hn::Or(whole, hn::Gt(x, hn::Zero(d))));
    if (HWY_LIKELY(hn::AllTrue(d, common))) return result;
    return lane_by_lane(d, hn::Not(common), result, x, y, [](double a, double b) { return std::pow(a, b); });
  } else {
    in_double(d, x, y, [](auto wide, auto& a, auto& b) HWY_ATTR { a = pow(wide, a, b); });
    return x;
  }
}

}  // namespace math
}  // namespace HWY_NAMESPACE
}  // namespace dense
HWY_AFTER_NAMESPACE();
#endif
