#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "dense/tensor/elements.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "dense/scalar/error.h"
#include "dense/tensor/elements.h"
#include "dense/tensor/half.h"

HWY_BEFORE_NAMESPACE();
namespace dense {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class E>
HWY_INLINE E element(const std::byte* from) {
  E e;
  std::memcpy(&e, from, sizeof e);
  return e;
}
HWY_INLINE float widened(uint16_t bf16) { return std::bit_cast<float>(uint32_t(bf16) << 16); }
HWY_INLINE uint16_t narrowed(float x) {  // to bf16
  const auto bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return uint16_t(bits >> 16 | 0x40);  // NaN stays NaN
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <class T>
void load(const std::byte* from, Dtype type, int64_t stride, int64_t n, T* to) {
  if (stride == 0 && n > 1) {
    load(from, type, 1, 1, to);
    return void(std::fill_n(to + 1, n - 1, to[0]));
  }
  const hn::ScalableTag<float> d;
  const auto lanes = int64_t(hn::Lanes(d));
  int64_t i = 0;
  const auto each = [&](auto size, auto convert) {
    for (; i < n; ++i) to[i] = convert(from + i * stride * int64_t(size()));
  };
  const std::integral_constant<int, 2> two;
  const std::integral_constant<int, 4> four;
  const std::integral_constant<int, 8> eight;
  switch (type) {
    case Dtype::f32:
      if constexpr (sizeof(T) == 4)
        if (stride == 1) return void(std::memcpy(to, from, size_t(n) * 4));
      return each(four, [](const std::byte* p) { return T(element<float>(p)); });
    case Dtype::f64:
      if constexpr (sizeof(T) == 8)
        if (stride == 1) return void(std::memcpy(to, from, size_t(n) * 8));
      return each(eight, [](const std::byte* p) { return T(element<double>(p)); });
    case Dtype::i32: return each(four, [](const std::byte* p) { return T(element<int32_t>(p)); });
    case Dtype::bf16:
      if constexpr (sizeof(T) == 4) {
        const hn::Rebind<uint16_t, decltype(d)> half;
        const hn::RebindToUnsigned<decltype(d)> bits;
        for (; stride == 1 && i + lanes <= n; i += lanes) {
          const auto v = hn::PromoteTo(bits, hn::LoadU(half, reinterpret_cast<const uint16_t*>(from) + i));
          hn::StoreU(hn::BitCast(d, hn::ShiftLeft<16>(v)), d, to + i);
        }
      }
      return each(two, [](const std::byte* p) { return T(widened(element<uint16_t>(p))); });
    case Dtype::f16:
      if constexpr (sizeof(T) == 4) {
        const hn::Rebind<hwy::float16_t, decltype(d)> half;
        constexpr bool emulated = HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128;  // they know no infinity
        for (; stride == 1 && !emulated && i + lanes <= n; i += lanes)
          hn::StoreU(hn::PromoteTo(d, hn::LoadU(half, reinterpret_cast<const hwy::float16_t*>(from) + i)), d, to + i);
      }
      return each(two, [](const std::byte* p) { return T(widened_half(element<uint16_t>(p))); });
    case Dtype::q8:
    case Dtype::q4: break;
  }
  fail("load: expected a type of elements, got ", name(type));
}

template <class T>
void store(const T* from, int64_t n, std::byte* to, Dtype type, int64_t stride) {
  const hn::ScalableTag<float> d;
  const auto lanes = int64_t(hn::Lanes(d));
  int64_t i = 0;
  const auto each = [&](auto convert) {
    for (; i < n; ++i) {
      const auto e = convert(from[i]);
      std::memcpy(to + i * stride * int64_t(sizeof e), &e, sizeof e);
    }
  };
  switch (type) {
    case Dtype::f32:
      if constexpr (sizeof(T) == 4)
        if (stride == 1) return void(std::memcpy(to, from, size_t(n) * 4));
      return each([](T x) { return float(x); });
    case Dtype::f64:
      if constexpr (sizeof(T) == 8)
        if (stride == 1) return void(std::memcpy(to, from, size_t(n) * 8));
      return each([](T x) { return double(x); });
    case Dtype::i32:
      return each([](T x) {
        constexpr double most = 2147483647;
        return std::isnan(x) ? 0 : int32_t(std::clamp(double(x), -most - 1, most));
      });
    case Dtype::bf16:
      if constexpr (sizeof(T) == 4) {
        const hn::RebindToUnsigned<decltype(d)> bits;
        const hn::Rebind<uint16_t, decltype(d)> half;
        for (; stride == 1 && i + lanes <= n; i += lanes) {
          const auto v = hn::LoadU(d, from + i);
          const auto u = hn::BitCast(bits, v);
          const auto odd = hn::And(hn::ShiftRight<16>(u), hn::Set(bits, 1));
          const auto rounded = hn::ShiftRight<16>(hn::Add(hn::Add(u, hn::Set(bits, 0x7fff)), odd));
          const auto nan = hn::Or(hn::ShiftRight<16>(u), hn::Set(bits, 0x40));
          const auto is_nan = hn::RebindMask(bits, hn::IsNaN(v));
          hn::StoreU(hn::TruncateTo(half, hn::IfThenElse(is_nan, nan, rounded)), half,
                     reinterpret_cast<uint16_t*>(to) + i);
        }
      }
      return each([](T x) { return narrowed(float(x)); });
    case Dtype::f16: return each([](T x) { return narrowed_half(float(x)); });
    case Dtype::q8:
    case Dtype::q4: break;
  }
  fail("store: expected a type of elements, got ", name(type));
}

// The first elements of a vector, of which those from `count` on are `rest`. Reads a whole vector: rows lie in slots.
template <class D>
HWY_INLINE hn::Vec<D> first_of(D d, const hn::TFromD<D>* x, int64_t count, hn::Vec<D> rest) {
  return hn::IfThenElse(hn::FirstN(d, size_t(count)), hn::LoadU(d, x), rest);
}

// The upper half of the lanes is added to the lower one, until one is left. Highway's emulated vectors would add one lane
// after the other.
template <class D>
HWY_INLINE hn::TFromD<D> sum_of_halves(D d, hn::Vec<D> v) {
  if constexpr (HWY_TARGET != HWY_EMU128) return hn::GetLane(hn::SumOfLanes(d, v));
  HWY_ALIGN hn::TFromD<D> lane[hn::MaxLanes(D())];
  hn::Store(v, d, lane);
  for (size_t half = hn::Lanes(d) / 2; half > 0; half /= 2)
    for (size_t i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
}

// As many sums as four vectors have lanes, added up by halves. Which one an element is part of depends on its place alone:
// zeros behind a row change no bit of its sum. Nor do zeros in front: the sums move round, and halves are the same again.
template <class T>
void row_sum(const T* x, int64_t rows, int64_t columns, T* y) {
  const hn::ScalableTag<T> d;
  const auto n = int64_t(hn::Lanes(d));
  for (int64_t r = 0; r < rows; ++r, x += columns) {
    auto s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0;
    int64_t i = 0;
    for (; i + 4 * n <= columns; i += 4 * n) {
      s0 = hn::Add(s0, hn::LoadU(d, x + i));
      s1 = hn::Add(s1, hn::LoadU(d, x + i + n));
      s2 = hn::Add(s2, hn::LoadU(d, x + i + 2 * n));
      s3 = hn::Add(s3, hn::LoadU(d, x + i + 3 * n));
    }
    const auto add_rest = [&](auto& s) HWY_ATTR {
      if (i < columns) s = hn::Add(s, first_of(d, x + i, columns - i, hn::Zero(d)));
      i += n;
    };
    add_rest(s0), add_rest(s1), add_rest(s2), add_rest(s3);
    y[r] = sum_of_halves(d, hn::Add(hn::Add(s0, s2), hn::Add(s1, s3)));
  }
}

template <class T>
void row_max(const T* x, int64_t rows, int64_t columns, T* y) {
  const hn::ScalableTag<T> d;
  const auto n = int64_t(hn::Lanes(d));
  for (int64_t r = 0; r < rows; ++r, x += columns) {
    auto m = hn::Set(d, -std::numeric_limits<T>::infinity());
    auto nan = hn::Zero(d);
    const auto take = [&](auto v) HWY_ATTR {
      m = hn::Max(m, v);
      nan = hn::Add(nan, hn::Mul(v, hn::Zero(d)));  // NaN once v was, or infinite
    };
    int64_t i = 0;
    for (; i + n <= columns; i += n) take(hn::LoadU(d, x + i));
    if (i < columns) take(first_of(d, x + i, columns - i, hn::Set(d, x[0])));
    if (HWY_LIKELY(hn::AllTrue(d, hn::Eq(nan, hn::Zero(d))))) {
      y[r] = hn::GetLane(hn::MaxOfLanes(d, m));
    } else {  // MaxOfLanes without vector instructions begins at the least finite number
      const bool is_nan = std::any_of(x, x + columns, [](T v) { return std::isnan(v); });
      y[r] = is_nan ? std::numeric_limits<T>::quiet_NaN() : *std::max_element(x, x + columns);
    }
  }
}

template <class T>
void across(const T* x, int64_t rows, int64_t columns, T* y) {
  const hn::ScalableTag<T> d;
  const auto n = int64_t(hn::Lanes(d));
  for (int64_t r = 0; r < rows; ++r, y += columns) {
    const auto v = hn::Set(d, x[r]);
    int64_t i = 0;
    for (; i + n <= columns; i += n) hn::StoreU(v, d, y + i);
    if (i < columns) hn::BlendedStore(v, hn::FirstN(d, size_t(columns - i)), d, y + i);
  }
}

template <class T>
void add_rows(const T* x, int64_t rows, int64_t columns, T* sum) {
  const hn::ScalableTag<T> d;
  const auto n = int64_t(hn::Lanes(d));
  int64_t i = 0;
  for (; i + n <= columns; i += n) {
    auto s = hn::LoadU(d, sum + i);
    for (int64_t r = 0; r < rows; ++r) s = hn::Add(s, hn::LoadU(d, x + r * columns + i));
    hn::StoreU(s, d, sum + i);
  }
  for (; i < columns; ++i)
    for (int64_t r = 0; r < rows; ++r) sum[i] += x[r * columns + i];
}

template <class T>
void random(uint64_t seed, uint64_t key, uint64_t first, int64_t stride, int64_t n, T* to) {
  const uint64_t start = mixed(seed + 0x9e3779b97f4a7c15) ^ mixed(key + 0xd1b54a32d192ed03);
  for (int64_t i = 0; i < n; ++i)
    to[i] = T(mixed(start + (first + uint64_t(i * stride)) * 0x9e3779b97f4a7c15) >> 40) * T(1.0 / (1 << 24));
}

template <class T>
Elements<T> elements() {
  return {load<T>, store<T>, row_sum<T>, row_max<T>, across<T>, add_rows<T>, random<T>};
}
Elements<float> elements_f32() { return elements<float>(); }
Elements<double> elements_f64() { return elements<double>(); }

}  // namespace HWY_NAMESPACE
}  // namespace dense
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace dense {

Elements<float> elements_f32(Isa isa) {
#if HWY_TARGETS & HWY_AVX3
  if (isa == Isa::avx512) return N_AVX3::elements_f32();
#endif
#if HWY_TARGETS & HWY_AVX2
  if (isa == Isa::avx2) return N_AVX2::elements_f32();
#endif
  return HWY_NAMESPACE::elements_f32();
}

Elements<double> elements_f64(Isa isa) {
#if HWY_TARGETS & HWY_AVX3
  if (isa == Isa::avx512) return N_AVX3::elements_f64();
#endif
#if HWY_TARGETS & HWY_AVX2
  if (isa == Isa::avx2) return N_AVX2::elements_f64();
#endif
  return HWY_NAMESPACE::elements_f64();
}

}  // namespace dense
#endif  // HWY_ONCE
