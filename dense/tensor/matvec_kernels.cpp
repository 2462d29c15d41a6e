#include "dense/tensor/matvec_kernels.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>

#include "dense/tensor/gemm.h"
#include "dense/tensor/half.h"
#include "dense/tensor/quantised.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "dense/tensor/matvec_kernels.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#ifndef DENSE_TENSOR_MATVEC_ONCE  // what all targets share
#define DENSE_TENSOR_MATVEC_ONCE
namespace dense {
namespace {

struct Half {  // f16
  uint16_t bits;
};

constexpr int64_t in_second_cache = 512 << 10;  // bytes of W that stay there while tile after tile of x meets them

}  // namespace
}  // namespace dense
#endif

HWY_BEFORE_NAMESPACE();
namespace dense {
namespace HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;
using I = hn::RebindToSigned<D>;
using VI = hn::Vec<I>;
constexpr D d;
constexpr I di;
constexpr int N = int(hn::MaxLanes(D()));
constexpr bool avx3 = HWY_TARGET == HWY_AVX3, avx2 = HWY_TARGET == HWY_AVX2;

// Asks memory for the line of W that is due some time from now: first into the second cache, which has more requests
// under way than the first, then into the first. How long before was measured on a Xeon with AVX-512 and, with AVX2, on
// an EPYC.
template <class T>
HWY_INLINE void prefetch(const T* w) {
  const auto* const p = reinterpret_cast<const std::byte*>(w);
  __builtin_prefetch(p + (avx3 ? 6144 : 12288), 0, 2);
  __builtin_prefetch(p + (avx3 ? 2048 : 3072), 0, 3);
}

// f(0), ..., f(K - 1) without a loop, so that arrays of vectors stay in registers. Single numbers may as well wait in
// memory: there a loop takes less compiling.
template <size_t K, class F>
HWY_INLINE void unrolled(const F& f) {
  if constexpr (N == 1) {
    for (size_t k = 0; k < K; ++k) f(k);
  } else {
    [&]<size_t... k>(std::index_sequence<k...>) HWY_ATTR { (f(std::integral_constant<size_t, k>()), ...); }
    (std::make_index_sequence<K>());
  }
}

// f(std::integral_constant<int, m>()) for m in 1 .. most.
template <int most, class F>
HWY_INLINE void with_constant(int64_t m, const F& f) {
  if constexpr (most > 1)
    if (m < most) return with_constant<most - 1>(m, f);
  f(std::integral_constant<int, most>());
}

HWY_INLINE V load(const float* p) { return hn::LoadU(d, p); }
HWY_INLINE V load(const uint16_t* p) {
  const hn::RebindToUnsigned<D> u;
  const hn::Rebind<uint16_t, D> narrow;
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(u, hn::LoadU(narrow, p))));
}
HWY_INLINE V load(const Half* p) {
  if constexpr (HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128) {  // Highway's know no infinity
    float wide[N];
    for (int i = 0; i < N; ++i) wide[i] = widened_half(p[i].bits);
    return hn::LoadU(d, wide);
  } else {
    const hn::Rebind<hwy::float16_t, D> half;
    return hn::PromoteTo(d, hn::LoadU(half, reinterpret_cast<const hwy::float16_t*>(p)));
  }
}

// bf16 by row comes in pairs: of N words of two values each, all the first ones, which a shift widens, then all the
// second ones, for which the first are cleared. Widening values in their order takes twice as many instructions.
template <class T>
constexpr bool in_pairs = N > 1 && std::is_same_v<T, uint16_t>;

// 2 N values, N in each: the first and those that follow, or in pairs.
template <class T>
HWY_INLINE void load_two(const T* p, V& first, V& second) {
  if constexpr (in_pairs<T>) {
    const hn::RebindToUnsigned<D> u;
    const auto both = hn::LoadU(u, reinterpret_cast<const uint32_t*>(p));
    first = hn::BitCast(d, hn::ShiftLeft<16>(both));
    second = hn::BitCast(d, hn::And(both, hn::Set(u, 0xffff0000u)));
  } else {
    first = load(p), second = load(p + N);
  }
}

// The first n <= N values; nothing is read beyond them.
template <class T>
HWY_INLINE V load_some(const T* p, int64_t n) {
  if (n >= N) return load(p);
  T all[N] = {};
  std::copy_n(p, n, all);
  return load(all);
}
HWY_INLINE void store_some(V v, float* p, int64_t n) {
  if (n >= N) hn::StoreU(v, d, p);
  else hn::BlendedStore(v, hn::FirstN(d, size_t(n)), d, p);
}

// Lane i plus lane i + half, and so on until one is left.
template <class DD>
HWY_INLINE float folded([[maybe_unused]] DD dd, hn::Vec<DD> v) {
#if HWY_TARGET != HWY_SCALAR
  if constexpr (hn::MaxLanes(DD()) > 1) {
    const hn::Half<DD> half;
    return folded(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
  }
#endif
  return hn::GetLane(v);
}
// Of 32 sums; in pairs, what is added last of all are those of even and of odd places.
template <bool pairs, size_t count>
HWY_INLINE float folded(const V (&v)[count]) {
  V sum[count];
  unrolled<count>([&](auto i) HWY_ATTR { sum[i] = v[i]; });
  for (size_t c = count / 2; c > size_t(pairs); c /= 2)
    for (size_t i = 0; i < c; ++i) sum[i] = hn::Add(sum[i], sum[i + c]);
  if constexpr (pairs) return folded(d, sum[0]) + folded(d, sum[1]);
  return folded(d, sum[0]);
}

// ---- (n, k): dot products.

constexpr int lanes = 32;  // sums side by side
constexpr int sums = lanes / N;
// Rows of x. Not more: they are read from the first cache again and again.
constexpr int dot_tile = avx3 ? 4 : avx2 ? 3 : 1;

// Rows of W at once, far apart: memory gives two streams at a time more than one.
constexpr int streams(int m) { return m * sums <= (avx3 ? 8 : 4) ? 2 : 1; }

// R rows of W, `apart` rows from each other, and M of x. rest: the last k % 32 values of those of x, then zeros;
// in pairs where the others are.
template <class T, int M, int R>
HWY_INLINE void dot(const MatvecBlock& block, int64_t j, int64_t apart, const float* x, const float (*rest)[lanes],
                    float* y) {
  const T* const w = static_cast<const T*>(block.w) + j * block.w_row;
  const int64_t k = block.k, next = apart * block.w_row;
  V sum[R][M][sums];
  unrolled<R * M * sums>([&](auto s) HWY_ATTR { sum[s / (M * sums)][s / sums % M][s % sums] = hn::Zero(d); });
  const auto add = [&](const T* a, int64_t a_row, const float* b, int64_t b_row) HWY_ATTR {
    unrolled<sums / 2>([&](auto two) HWY_ATTR {
      const size_t s = 2 * two, t = s + 1;
      V first[R], second[R];
      unrolled<R>([&](auto q) HWY_ATTR { load_two(a + int64_t(q) * a_row + s * N, first[q], second[q]); });
      unrolled<M>([&](auto r) HWY_ATTR {
        const V x0 = hn::LoadU(d, b + int64_t(r) * b_row + s * N), x1 = hn::LoadU(d, b + int64_t(r) * b_row + t * N);
        unrolled<R>([&](auto q) HWY_ATTR {
          sum[q][r][s] = hn::MulAdd(first[q], x0, sum[q][r][s]);
          sum[q][r][t] = hn::MulAdd(second[q], x1, sum[q][r][t]);
        });
      });
    });
  };
  int64_t i = 0;
  for (; i + lanes <= k; i += lanes) {
    for (int q = 0; q < R; ++q)
      for (size_t line = 0; line < lanes * sizeof(T); line += 64) prefetch(w + q * next + i + line / sizeof(T));
    add(w + i, next, x + i, block.x_row);
  }
  if (i < k) {
    T last[R][lanes] = {};
    for (int q = 0; q < R; ++q) std::copy(w + q * next + i, w + q * next + k, last[q]);
    add(last[0], lanes, rest[0], lanes);
  }
  unrolled<R * M>([&](auto s) HWY_ATTR {
    const auto q = int64_t(s / M), r = int64_t(s % M);
    const int64_t column = j + q * apart;
    const float total = folded<in_pairs<T>>(sum[q][r]);
    y[r * block.y_row + column] = block.bias ? total + block.bias[column] : total;
  });
}

template <class T, int M>
HWY_FLATTEN void dots_of_rows(const MatvecBlock& b, int64_t first, int64_t last, int64_t i,
                              const float (*rest)[lanes]) {
  constexpr int R = streams(M);
  const int64_t apart = (last - first) / R;
  for (int64_t j = first; j < first + apart; ++j) dot<T, M, R>(b, j, apart, b.x + i * b.x_row, rest, b.y + i * b.y_row);
  for (int64_t j = first + R * apart; j < last; ++j) dot<T, M, 1>(b, j, 0, b.x + i * b.x_row, rest, b.y + i * b.y_row);
}

template <class T>
void dots(const MatvecBlock& b) {
  const int64_t row_bytes = std::max<int64_t>(b.k * int64_t(sizeof(T)), 1);
  const int64_t step = b.m <= dot_tile ? b.last - b.first : std::max<int64_t>(in_second_cache / row_bytes, 1);
  for (int64_t first = b.first; first < b.last; first += step) {
    const int64_t last = std::min(b.last, first + step);
    for (int64_t i = 0; i < b.m; i += dot_tile) {
      const float* const x = b.x + i * b.x_row;
      const int64_t m = std::min<int64_t>(dot_tile, b.m - i), whole = b.k / lanes * lanes;
      float rest[dot_tile][lanes] = {};
      for (int64_t r = 0; whole < b.k && r < m; ++r)
        std::copy_n(x + r * b.x_row + whole, in_pairs<T> ? lanes : b.k - whole, rest[r]);
      with_constant<dot_tile>(m, [&](auto rows) { dots_of_rows<T, rows>(b, first, last, i, rest); });
    }
  }
}

#if HWY_TARGET == HWY_SCALAR
constexpr void (*pair)(const float*, int64_t, float*) = nullptr;
#else
// k values in pairs, then zeros up to a multiple of 32.
void pair(const float* x, int64_t k, float* to) {
  const auto pair_lanes = [&](const float* from) HWY_ATTR {
    for (int64_t j = 0; j < lanes; j += 2 * N, to += 2 * N) {
      const V a = hn::LoadU(d, from + j), b = hn::LoadU(d, from + j + N);
      hn::StoreU(hn::ConcatEven(d, b, a), d, to);
      hn::StoreU(hn::ConcatOdd(d, b, a), d, to + N);
    }
  };
  for (; k >= lanes; k -= lanes, x += lanes) pair_lanes(x);
  if (k == 0) return;
  float last[lanes] = {};
  std::copy_n(x, k, last);
  pair_lanes(last);
}
#endif

void by_row(const MatvecBlock& b) {
  if (b.type == Dtype::f32) dots<float>(b);
  else if (b.type == Dtype::bf16) dots<uint16_t>(b);
  else dots<Half>(b);
}

// ---- (k, n): rows of W times values of x, added up.

constexpr int column_tile = avx3 ? 8 : 2;                // rows of x
constexpr int row_step(int m) { return m > 4 ? 2 : 4; }  // rows of W at a time: with m values of x for each
constexpr int64_t sums_size = 4096;                      // floats that wait in the first cache

// Adds R rows of W, times R values each of M rows of x, to sums. After them come `more` rows.
template <class T, int M, int R>
HWY_INLINE void add_rows(const T* w, int64_t w_row, int64_t more, const float* x, int64_t x_row, int64_t n, float* sum,
                         int64_t sum_row) {
  V v[M][R];
  unrolled<M>([&](auto i) HWY_ATTR {
    unrolled<R>([&](auto r) HWY_ATTR { v[i][r] = hn::Set(d, x[int64_t(i) * x_row + int64_t(r)]); });
  });
  const auto add = [&](int64_t j, const auto& loaded) HWY_ATTR {
    V row[R];
    unrolled<R>([&](auto r) HWY_ATTR { row[r] = loaded(w + int64_t(r) * w_row + j); });
    unrolled<M>([&](auto i) HWY_ATTR {
      float* const to = sum + int64_t(i) * sum_row + j;
      V s = hn::Load(d, to);
      unrolled<R>([&](auto r) HWY_ATTR { s = hn::MulAdd(v[i][r], row[r], s); });
      hn::Store(s, d, to);
    });
  };
  constexpr int line = std::max(N, int(64 / sizeof(T)));
  const int64_t far = more >= 2 * R ? 2 * R : 0, near = more >= R ? R : 0;
  int64_t j = 0;
  for (; j + line <= n; j += line) {
    for (int64_t r = 0; r < R;
         ++r) {  // a loop: g++ takes a lambda that does no more than this for one that does nothing
      __builtin_prefetch(w + (far + r) * w_row + j, 0, 2);
      if (avx3) __builtin_prefetch(w + (near + r) * w_row + j, 0, 3);
    }
    unrolled<line / N>([&](auto u) HWY_ATTR { add(j + u * N, [](const T* p) HWY_ATTR { return load(p); }); });
  }
  for (; j < n; j += N) add(j, [&](const T* p) HWY_ATTR { return load_some(p, n - j); });
}

template <class T, int M>
HWY_FLATTEN void columns(const MatvecBlock& b, const float* x, float* y, float* sum) {
  // As much of each row as there is room for, or with AVX-512 a page; all pieces nearly equal.
  const int64_t most = sums_size / (M > 1 ? column_tile : avx3 ? int64_t(sizeof(T)) : 1), n_all = b.last - b.first;
  const int64_t pieces = std::max<int64_t>((n_all + most - 1) / most, 1);
  const int64_t width = ((n_all + pieces - 1) / pieces + 31) / 32 * 32;
  for (int64_t first = b.first; first < b.last; first += width) {
    const int64_t n = std::min(width, b.last - first);
    for (int64_t k0 = 0; k0 == 0 || k0 < b.k; k0 += k_block) {  // once where there is nothing to sum
      const int64_t end = std::min(b.k, k0 + k_block);
      int64_t k = k0;
      std::fill_n(sum, M * width, 0.0f);
      const auto add = [&](auto r) HWY_ATTR {
        for (; k + r <= end; k += r)
          add_rows<T, M, r>(static_cast<const T*>(b.w) + k * b.w_row + first, b.w_row, b.k - k - r, x + k, b.x_row, n,
                            sum, width);
      };
      add(std::integral_constant<int, row_step(M)>());
      add(std::integral_constant<int, 1>());
      const bool finish = end == b.k && b.bias;
      for (int64_t r = 0; r < M; ++r)
        for (int64_t j = 0; j < n; j += N) {
          float* const to = y + r * b.y_row + first + j;
          V v = hn::Load(d, sum + r * width + j);
          if (k0 > 0) v = hn::Add(load_some(to, n - j), v);
          if (finish) v = hn::Add(v, load_some(b.bias + first + j, n - j));
          store_some(v, to, n - j);
        }
    }
  }
}

template <class T>
void columns(const MatvecBlock& b) {
  alignas(64) float sum[sums_size];
  for (int64_t i = 0; i < b.m; i += column_tile)
    with_constant<column_tile>(std::min<int64_t>(column_tile, b.m - i), [&](auto rows) HWY_ATTR {
      columns<T, rows>(b, b.x + i * b.x_row, b.y + i * b.y_row, sum);
    });
}

// y = the sum of `count` parts (m, n) [+ bias], in order.
void add_parts(const float* parts, int64_t count, int64_t m, int64_t n, float* y, int64_t y_row, const float* bias) {
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; j += N) {
      V v = load_some(parts + i * n + j, n - j);
      for (int64_t part = 1; part < count; ++part) v = hn::Add(v, load_some(parts + (part * m + i) * n + j, n - j));
      if (bias) v = hn::Add(v, load_some(bias + j, n - j));
      store_some(v, y + i * y_row + j, n - j);
    }
}

void by_column(const MatvecBlock& b) {
  if (b.type == Dtype::f32) columns<float>(b);
  else if (b.type == Dtype::bf16) columns<uint16_t>(b);
  else columns<Half>(b);
}

// ---- q8 and q4.

constexpr int strip_vectors = int(strip_rows) / N;  // of a strip's sums
constexpr int quantised_tile = avx3 ? 8 : avx2 ? 2 : 1;

// Sums of products: for each of N rows, of the four bytes of weights with the four of x, added to a sum.
#if HWY_TARGET == HWY_AVX3

struct Weights {
  __m512i bytes;
};
HWY_INLINE Weights load_weights(const uint8_t* p) { return {_mm512_load_si512(p)}; }
HWY_INLINE Weights low_half(Weights w) { return {_mm512_and_si512(w.bytes, _mm512_set1_epi8(15))}; }
HWY_INLINE Weights high_half(Weights w) { return low_half({_mm512_srli_epi16(w.bytes, 4)}); }

template <bool q4>
HWY_INLINE VI begin(int32_t start) {
  return hn::Set(di, start);
}
template <bool q4>
HWY_INLINE void add(VI& sum, Weights w, const int8_t* x) {
  // By hand: what this file is compiled for, as Highway has it, includes no VNNI. matvec_kernels() asks for it.
  const auto& four = *reinterpret_cast<const int8_t(*)[4]>(x);
  asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum.raw) : "v"(w.bytes), "m"(four));
}
template <bool q4>
HWY_INLINE VI end(VI sum, int32_t) {
  return sum;
}

#elif HWY_TARGET == HWY_AVX2

struct Weights {
  __m256i bytes;
};
HWY_INLINE Weights load_weights(const uint8_t* p) { return {_mm256_load_si256(reinterpret_cast<const __m256i*>(p))}; }
HWY_INLINE Weights low_half(Weights w) { return {_mm256_and_si256(w.bytes, _mm256_set1_epi8(15))}; }
HWY_INLINE Weights high_half(Weights w) { return low_half({_mm256_srli_epi16(w.bytes, 4)}); }

template <bool q4>
HWY_INLINE VI begin(int32_t) {
  return hn::Zero(di);
}
template <bool q4>
HWY_INLINE void add(VI& sum, Weights w, const int8_t* x) {
  int32_t four;
  std::memcpy(&four, x, 4);
  const __m256i b = _mm256_set1_epi32(four);
  if constexpr (q4) {  // sums of 16 bits, of which 8 * 2 * 15 * 127 needs 15
    sum.raw = _mm256_add_epi16(sum.raw, _mm256_maddubs_epi16(w.bytes, b));
  } else {  // sizes of w by x with their signs: two products need no more than 16 bits
    const __m256i a = _mm256_xor_si256(w.bytes, _mm256_set1_epi8(-128));
    const __m256i two = _mm256_maddubs_epi16(_mm256_abs_epi8(a), _mm256_sign_epi8(b, a));
    sum.raw = _mm256_add_epi32(sum.raw, _mm256_madd_epi16(two, _mm256_set1_epi16(1)));
  }
}
template <bool q4>
HWY_INLINE VI end(VI sum, int32_t start) {
  if constexpr (q4)
    return VI{_mm256_add_epi32(_mm256_madd_epi16(sum.raw, _mm256_set1_epi16(1)), _mm256_set1_epi32(start))};
  return sum;
}

#else

struct Weights {
  uint8_t bytes[4 * N];
};
HWY_INLINE Weights load_weights(const uint8_t* p) {
  Weights w;
  std::memcpy(w.bytes, p, sizeof w.bytes);
  return w;
}
HWY_INLINE Weights low_half(Weights w) {
  for (uint8_t& byte : w.bytes) byte &= 15;
  return w;
}
HWY_INLINE Weights high_half(Weights w) {
  for (uint8_t& byte : w.bytes) byte >>= 4;
  return w;
}

template <bool q4>
HWY_INLINE VI begin(int32_t start) {
  return hn::Set(di, start);
}
template <bool q4>
HWY_INLINE void add(VI& sum, const Weights& w, const int8_t* x) {
  alignas(64) int32_t products[N] = {};
  for (int i = 0; i < N; ++i)
    for (int b = 0; b < 4; ++b) products[i] += w.bytes[4 * i + b] * x[b];
  sum = hn::Add(sum, hn::Load(di, products));
}
template <bool q4>
HWY_INLINE VI end(VI sum, int32_t) {
  return sum;
}

#endif

// A strip of W and M rows of x: 16 columns of y, of which n are wanted.
template <bool q4, int M>
HWY_INLINE void strip(const std::byte* w, const QuantisedX* x, int64_t blocks, float* y, int64_t y_row,
                      const float* bias, int64_t n) {
  V sum[M][strip_vectors];
  unrolled<M>([&](auto r) HWY_ATTR { unrolled<strip_vectors>([&](auto v) HWY_ATTR { sum[r][v] = hn::Zero(d); }); });
  constexpr int64_t bytes = q4 ? 576 : 1088;
  for (int64_t block = 0; block < blocks; ++block, w += bytes, x += M) {
    // With AVX2 the second cache alone was faster, as for (k, n), and a line at a time beside the arithmetic.
    const auto soon = [](const void* line) {
      __builtin_prefetch(static_cast<const std::byte*>(line) + 12 * bytes, 0, 2);
    };
    if constexpr (avx3) {
      for (int64_t line = 0; line < bytes; line += 64) prefetch(w + line);
    } else {
      soon(w);
    }
    const auto* const scales = reinterpret_cast<const Half*>(w);
    const auto* const lines = reinterpret_cast<const uint8_t*>(w + 64);
    VI first[strip_vectors][M], second[strip_vectors][M];  // of the two groups
    unrolled<strip_vectors>([&](auto v) HWY_ATTR {
      unrolled<M>([&](auto r)
                      HWY_ATTR { first[v][r] = begin<q4>(x[r].start[0]), second[v][r] = begin<q4>(x[r].start[1]); });
    });
    const auto add_line = [&](auto q) HWY_ATTR {
      if constexpr (!avx3) soon(lines + q * 64);
      if constexpr (!avx3 && !q4) soon(lines + 512 + q * 64);
      unrolled<strip_vectors>([&](auto v) HWY_ATTR {
        const uint8_t* const line = lines + q * 64 + v * 4 * N;
        const Weights here = load_weights(line);
        const Weights a = q4 ? low_half(here) : here, b = q4 ? high_half(here) : load_weights(line + (q4 ? 0 : 512));
        unrolled<M>([&](auto r) HWY_ATTR {
          add<q4>(first[v][r], a, x[r].x + 4 * q), add<q4>(second[v][r], b, x[r].x + 32 + 4 * q);
        });
      });
    };
    if constexpr (avx3) unrolled<8>(add_line);
    else
      for (int q = 0; q < 8; ++q) add_line(q);
    unrolled<strip_vectors>([&](auto v) HWY_ATTR {
      const V scale0 = load(scales + v * N), scale1 = load(scales + 16 + v * N);
      const auto finish = [&](VI total, V scale, size_t r, int g) HWY_ATTR {
        const V products = hn::ConvertTo(d, end<q4>(total, x[r].start[g]));
        sum[r][v] = hn::MulAdd(products, hn::Mul(scale, hn::Set(d, x[r].scale[g])), sum[r][v]);
      };
      unrolled<M>([&](auto r) HWY_ATTR { finish(first[v][r], scale0, r, 0), finish(second[v][r], scale1, r, 1); });
    });
  }
  unrolled<strip_vectors>([&](auto v) HWY_ATTR {
    const int64_t left = n - int64_t(v) * N;
    if (left <= 0) return;
    const V add = bias ? load_some(bias + v * N, left) : hn::Zero(d);
    unrolled<M>([&](auto r) HWY_ATTR {
      store_some(bias ? hn::Add(sum[r][v], add) : sum[r][v], y + int64_t(r) * y_row + v * N, left);
    });
  });
}

template <bool q4, int M>
HWY_FLATTEN void strips_of_rows(const MatvecBlock& b, int64_t first, int64_t last, int64_t i) {
  const int64_t blocks = (b.k + quantised_block - 1) / quantised_block, bytes = strip_bytes(b.type, b.k);
  for (int64_t j = first; j < last; j += strip_rows)
    strip<q4, M>(static_cast<const std::byte*>(b.w) + j / strip_rows * bytes, b.quantised_x + i * blocks, blocks,
                 b.y + i * b.y_row + j, b.y_row, b.bias ? b.bias + j : nullptr, b.last - j);
}

template <bool q4>
void strips(const MatvecBlock& b) {
  const int64_t bytes = std::max<int64_t>(strip_bytes(b.type, b.k), 1);
  const int64_t step =
      b.m <= quantised_tile ? b.last - b.first : std::max<int64_t>(in_second_cache / bytes, 1) * strip_rows;
  for (int64_t first = b.first; first < b.last; first += step)
    for (int64_t i = 0; i < b.m; i += quantised_tile)
      with_constant<quantised_tile>(std::min<int64_t>(quantised_tile, b.m - i), [&](auto rows) {
        strips_of_rows<q4, rows>(b, first, std::min(b.last, first + step), i);
      });
}

void quantised(const MatvecBlock& b) {
  if (b.type == Dtype::q4) strips<true>(b);
  else strips<false>(b);
}

// A group of n <= 32 values; those beyond are zeros.
HWY_INLINE void quantise_group(const float* x, int64_t n, int8_t* to, float& scale, int32_t& sum) {
  float values[32] = {};
  if (n < 32) {
    std::copy_n(x, n, values);
    x = values;
  }
  const hn::RebindToUnsigned<D> u;  // sizes of floats compare as integers do, and NaN is more than infinity
  auto most = hn::Zero(di);
  for (int i = 0; i < 32; i += N)
    most = hn::Max(most, hn::BitCast(di, hn::And(hn::BitCast(u, hn::LoadU(d, x + i)), hn::Set(u, 0x7fffffff))));
  const float size = std::bit_cast<float>(int32_t(hn::GetLane(hn::MaxOfLanes(di, most))));
  const bool finite = size <= 3.4028235e38f;
  scale = !finite ? std::bit_cast<float>(0x7fc00000) : size < 1e-35f ? 0 : size / 127;
  const V inverse = hn::Set(d, finite && size >= 1e-35f ? 127 / size : 0);
  const hn::Rebind<int8_t, D> bytes;
  VI total = hn::Zero(di);
  for (int i = 0; i < 32; i += N) {
    const VI q = finite ? hn::NearestInt(hn::Mul(hn::LoadU(d, x + i), inverse)) : hn::Zero(di);
    total = hn::Add(total, q);
    hn::StoreU(hn::DemoteTo(bytes, q), bytes, to + i);
  }
  sum = hn::GetLane(hn::SumOfLanes(di, total));
}

void quantise(const float* x, int64_t x_row, int64_t first, int64_t last, int64_t k, Dtype type, QuantisedX* to) {
  const int64_t blocks = (k + quantised_block - 1) / quantised_block;
  const int32_t offset = type == Dtype::q4 ? 8 : 128;
  for (int64_t i = first; i < last; i += quantised_tile) {
    const int64_t m = std::min<int64_t>(quantised_tile, last - i);
    for (int64_t r = 0; r < m; ++r)
      for (int64_t block = 0; block < blocks; ++block) {
        QuantisedX& q = to[i * blocks + block * m + r];
        for (int64_t g = 0; g < 2; ++g) {
          const int64_t at = block * 64 + g * 32;
          int32_t sum;
          quantise_group(x + (i + r) * x_row + std::min(at, k), std::clamp<int64_t>(k - at, 0, 32), q.x + g * 32,
                         q.scale[g], sum);
          q.start[g] = -offset * sum;
        }
      }
  }
}

}  // namespace

MatvecKernels kernels() {
  return {by_row,
          pair,
          by_column,
          add_parts,
          quantised,
          quantise,
          quantised_tile,
          avx3   ? "AVX-512"
          : avx2 ? "AVX2"
                 : "portable code",
          avx3   ? "AVX-512 VNNI"
          : avx2 ? "AVX2"
                 : "portable code"};
}

}  // namespace HWY_NAMESPACE
}  // namespace dense
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace dense {

MatvecKernels matvec_kernels(Isa isa) {
#if HWY_TARGETS & HWY_AVX3
  if (isa == Isa::avx512) {
    MatvecKernels all = N_AVX3::kernels();
    if (__builtin_cpu_supports("avx512vnni")) return all;
    const MatvecKernels without = N_AVX2::kernels();  // the same bits
    all.quantised = without.quantised, all.quantise = without.quantise;
    all.quantised_tile = without.quantised_tile, all.quantised_name = without.quantised_name;
    return all;
  }
#endif
#if HWY_TARGETS & HWY_AVX2
  if (isa == Isa::avx2) return N_AVX2::kernels();
#endif
  (void)isa;
  return HWY_NAMESPACE::kernels();
}

}  // namespace dense
#endif  // HWY_ONCE
