// exp and the common powers in vectors, with the bits of C's functions. To be included for each of Highway's targets.
//
// C's functions are not correctly rounded, but those of glibc (from 2.28) say how far they may be off: exp by 0.511 ulp
// (exp_data.c), pow by 0.511 + 1.5 * 2 ** -15 * |log y| ulp of its result y (e_pow.c). Away from the midpoint of two
// neighbours that is the correctly rounded one, which is cheap to have; near it C's function is asked.
#include <bit>
#include <cmath>
#include <numbers>

#include "dense/scalar/rules.h"

#if defined(DENSE_SCALAR_EXACT_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef DENSE_SCALAR_EXACT_H_
#undef DENSE_SCALAR_EXACT_H_
#else
#define DENSE_SCALAR_EXACT_H_
#endif

#include <hwy/highway.h>

#undef DENSE_KNOWN_BOUNDS
#if defined(__GLIBC__)
#define DENSE_KNOWN_BOUNDS __GLIBC_PREREQ(2, 28)
#else
#define DENSE_KNOWN_BOUNDS 0
#endif

#ifndef DENSE_SCALAR_EXACT_TABLE
#define DENSE_SCALAR_EXACT_TABLE
namespace dense {

// 2 ** (j / 128) as a double and what it leaves over, for j in 0 .. 127.
struct Exp2Table {
  double high_low[256];
  Exp2Table();
};
extern const Exp2Table exp2_table;

}  // namespace dense
#endif

HWY_BEFORE_NAMESPACE();
namespace dense {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Where y, the nearest number to y + error, is sure to be C's result: error, given as error * unit to avoid a division,
// is below `share` of the distance to the neighbour below, the nearer one. 2 ** -60 < |y| < 2 ** 60.
template <class D, class V = hn::Vec<D>>
HWY_INLINE hn::Mask<D> certain(D d, V y, V error, V unit, double share = 0.4865) {
  const hn::RebindToUnsigned<D> u;
  const auto bits = hn::BitCast(u, hn::Abs(y));
  const V ulp = hn::Sub(hn::Abs(y), hn::BitCast(d, hn::Sub(bits, hn::Set(u, uint64_t{1}))));
  const auto lowest = hn::Set(u, uint64_t{1023 - 60} << 52), range = hn::Set(u, uint64_t{120} << 52);
  const auto in_range = hn::RebindMask(d, hn::Lt(hn::Sub(bits, lowest), range));
  return hn::And(in_range, hn::Le(hn::Abs(error), hn::Mul(hn::Mul(ulp, hn::Set(d, share)), hn::Abs(unit))));
}

// y where it is certain, f(x) elsewhere.
template <class D, class F, class V = hn::Vec<D>>
HWY_INLINE V or_else(D d, hn::Mask<D> sure, V y, V x, const F& f) {
  if (hn::AllTrue(d, sure)) return y;
  HWY_ALIGN double xs[HWY_MAX_BYTES / sizeof(double)], ys[HWY_MAX_BYTES / sizeof(double)];
  hn::Store(x, d, xs), hn::Store(y, d, ys);
  uint8_t bits[8] = {};
  hn::StoreMaskBits(d, hn::Not(sure), bits);
  for (unsigned left = bits[0]; left; left &= left - 1) {
    const int i = std::countr_zero(left);
    ys[i] = f(xs[i]);
  }
  return hn::Load(d, ys);
}
template <class D, class V = hn::Vec<D>>
HWY_INLINE V or_pow(D d, hn::Mask<D> sure, V y, V x, double exponent) {
  return or_else(d, sure, y, x, [exponent](double v) { return c_pow(v, exponent); });
}
template <class D, class V = hn::Vec<D>>
HWY_INLINE V or_exp(D d, hn::Mask<D> sure, V y, V x) {
  return or_else(d, sure, y, x, [](double v) { return std::exp(v); });
}

#if HWY_NATIVE_FMA && DENSE_KNOWN_BOUNDS
template <class D, class V = hn::Vec<D>>
HWY_INLINE V square(D d, V x) {
  const V y = hn::Mul(x, x);
  const auto sure = certain(d, y, hn::MulSub(x, x, y), hn::Set(d, 1));
  return or_pow(d, hn::Or(sure, hn::Eq(x, hn::Zero(d))), y, x, 2);
}
template <class D, class V = hn::Vec<D>>
HWY_INLINE V root(D d, V x) {
  const V y = hn::Sqrt(x);  // x = (y + error)^2 ~ y^2 + 2 y error
  const auto sure = certain(d, y, hn::NegMulAdd(y, y, x), hn::Add(y, y)), zero = hn::Eq(x, hn::Zero(d));
  return hn::IfThenZeroElse(zero, or_pow(d, hn::Or(sure, zero), y, x, 0.5));
}
template <class D, class V = hn::Vec<D>>
HWY_INLINE V reciprocal(D d, V x) {
  const V y = hn::Div(hn::Set(d, 1), x);  // 1 = (y + error) x
  return or_pow(d, certain(d, y, hn::NegMulAdd(y, x, hn::Set(d, 1)), x), y, x, -1);
}
template <class D, class V = hn::Vec<D>>
HWY_INLINE V reciprocal_square(D d, V x) {
  const V square = hn::Mul(x, x), rest = hn::MulSub(x, x, square);
  const V y = hn::Div(hn::Set(d, 1), square);  // 1 = (y + error) (square + rest)
  const V left = hn::NegMulAdd(y, rest, hn::NegMulAdd(y, square, hn::Set(d, 1)));
  return or_pow(d, certain(d, y, left, square), y, x, -2);
}
// exp(x) = 2 ** k * 2 ** (j / 128) * exp(r) with |r| < log(2) / 256, to 2 ** -60.
template <class D, class V = hn::Vec<D>>
HWY_INLINE V exp(D d, V x) {
  const hn::RebindToSigned<D> i;
  const V usual = hn::Set(d, 0x1.8p52);
  const V shifted = hn::MulAdd(x, hn::Set(d, 128 / std::numbers::ln2), usual), n = hn::Sub(shifted, usual);
  const auto index = hn::BitCast(i, shifted);
  const V high = hn::NegMulAdd(n, hn::Set(d, 0x1.62e42fep-8), x);  // log(2) / 128 to 29 bits, so this is exact
  const V low = hn::Mul(n, hn::Set(d, 0x1.f473de6af278fp-37)), r = hn::Sub(high, low);  // what is left of it
  const V rest = hn::Sub(hn::Sub(high, r), low);
  V p = hn::MulAdd(r, hn::Set(d, 1. / 720), hn::Set(d, 1. / 120));
  p = hn::MulAdd(r, p, hn::Set(d, 1. / 24));
  p = hn::MulAdd(r, p, hn::Set(d, 1. / 6));
  p = hn::MulAdd(r, p, hn::Set(d, 0.5));
  p = hn::Add(r, hn::MulAdd(hn::Mul(r, r), p, rest));  // exp(r) - 1
  const auto entry = hn::ShiftLeft<1>(hn::And(index, hn::Set(i, 127)));
  const V t = hn::GatherIndex(d, exp2_table.high_low, entry),
          t_low = hn::GatherIndex(d, exp2_table.high_low + 1, entry);
  const V s = hn::MulAdd(t, p, t_low), y = hn::Add(t, s), error = hn::Add(hn::Sub(t, y), s);
  const auto k = hn::ShiftLeft<52>(hn::ShiftRight<7>(hn::Sub(index, hn::BitCast(i, usual))));
  const auto sure = hn::And(certain(d, y, error, hn::Set(d, 1), 0.483), hn::Lt(hn::Abs(x), hn::Set(d, 700)));
  return or_exp(d, sure, hn::BitCast(d, hn::Add(hn::BitCast(i, y), k)), x);
}
#else
template <class D, class V = hn::Vec<D>>
HWY_INLINE V exp(D d, V x) {
  return or_exp(d, hn::Lt(x, x), x, x);
}
template <class D, class V = hn::Vec<D>>
HWY_INLINE V reciprocal_square(D d, V x) {
  return or_pow(d, hn::Lt(x, x), x, x, -2);
}
template <class D, class V = hn::Vec<D>>
HWY_INLINE V square(D d, V x) {
  return or_pow(d, hn::Lt(x, x), x, x, 2);
}
template <class D, class V = hn::Vec<D>>
HWY_INLINE V root(D d, V x) {
  return or_pow(d, hn::Lt(x, x), x, x, 0.5);
}
template <class D, class V = hn::Vec<D>>
HWY_INLINE V reciprocal(D d, V x) {
  return or_pow(d, hn::Lt(x, x), x, x, -1);
}
#endif

}  // namespace HWY_NAMESPACE
}  // namespace dense
HWY_AFTER_NAMESPACE();

#endif
