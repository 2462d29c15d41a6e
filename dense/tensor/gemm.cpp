#include "dense/tensor/gemm.h"

#include <algorithm>
#include <cstring>
#include <utility>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "dense/tensor/gemm.cpp"
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#ifndef DENSE_TENSOR_GEMM_ONCE  // what all targets share
#define DENSE_TENSOR_GEMM_ONCE
namespace dense {
namespace {

// Does a copy pay? None of these numbers changes a bit.
inline bool copies_b(const Gemm& g) {
  if (g.b_type == Dtype::bf16 || (g.b_col != 1 && g.n > 1)) return true;
  return g.m > 24 && g.k > 64 && g.b_row > 64;
}
inline bool copies_a(const Gemm& g) { return g.type == Dtype::bf16 || (g.m >= 24 && g.n >= 128); }

// Floats of a copy. 64: the widest panel there might be.
inline int64_t b_copy_size(const Gemm& g) { return std::min(g.k, k_block) * 64; }
constexpr int64_t a_copy_row = k_block + 16;  // rows apart by an odd number of cache lines
constexpr int64_t a_part = 96;                // rows whose copies may be a column after the other
inline int64_t a_copy_size(const Gemm& g) { return round_up(std::min(g.m, m_block), a_part) * a_copy_row; }

// Memory that will be read soon: `left` pieces of `width` bytes, `pitch` bytes apart.
struct Ahead {
  const char* p = nullptr;
  int64_t left = 0, width = 0, pitch = 0, at = 0;

  // Asks for the next line of it. The last byte: what precedes it in its line, the piece before has asked for.
  void fetch_line() {
    if (left == 0) return;
    at = std::min(at + 64, width);
    __builtin_prefetch(p + at - 1, 0, 2);
    if (at < width) return;
    at = 0;
    if (--left > 0) p += pitch;
  }
};

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
constexpr D d;
constexpr int N = int(hn::MaxLanes(D()));

// The tile: rows * vectors sums, the vectors of a row of B and one of A must fit the registers, 32 or 16.
constexpr int rows = HWY_TARGET == HWY_AVX3 ? 12 : HWY_TARGET == HWY_AVX2 ? 6 : 4;
constexpr int vectors = 2;
constexpr int columns = vectors * N;

// Steps from one request for memory to the next. A tile has as many lines of C as k_block has such stretches.
constexpr int64_t stretch = 16;

// f(0), ..., f(K - 1) without a loop, so that arrays of vectors stay in registers.
template <size_t K, class F>
HWY_INLINE void unrolled(const F& f) {
  [&]<size_t... k>(std::index_sequence<k...>) HWY_ATTR { (f(std::integral_constant<size_t, k>()), ...); }
  (std::make_index_sequence<K>());
}

// One tile of C, for one block of k.
struct Tile {
  const float *a, *b;
  float* c;
  const float* bias;  // or null
  int64_t a_row, a_col, b_row, c_row;
  int64_t k;
  bool add;  // to what c holds
  int last;  // columns of the last vector
  Ahead* ahead;
};

// The first n < N values; nothing is read beyond them.
HWY_INLINE V load_some(const float* p, int n) {
  if constexpr (HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX2) return hn::MaskedLoad(hn::FirstN(d, size_t(n)), d, p);
  alignas(64) float all[N] = {};
  for (int i = 0; i < n; ++i) all[i] = p[i];
  return hn::Load(d, all);
}

// A tile of R rows and W vectors, of which the last has only t.last columns if Some.
template <int R, int W, bool Some>
HWY_FLATTEN void run_tile(const Tile& t) {
  const auto load = [&](const float* p, auto w) HWY_ATTR {
    if constexpr (Some && w == W - 1) return load_some(p, t.last);
    else return hn::LoadU(d, p);
  };
  V sum[R][W];
  unrolled<R>([&](auto r) HWY_ATTR { unrolled<W>([&](auto w) HWY_ATTR { sum[r][w] = hn::Zero(d); }); });

  // Four rows of A from each pointer: their addresses are p, p + row, p + 2 row and p + row3.
  constexpr int groups = (R + 3) / 4;
  const int64_t row = t.a_row, row3 = 3 * t.a_row, step = t.a_col;
  const float* a[groups];
  unrolled<groups>([&](auto g) HWY_ATTR { a[g] = t.a + 4 * int64_t(g) * row; });
  const float* b = t.b;
  // C will have arrived when it is needed. All of its lines at once would keep those of A and B waiting.
  int line = 0;
  const auto fetch_c = [&]() HWY_ATTR {
    __builtin_prefetch(t.c + int64_t(line / W) * t.c_row + line % W * N, 1);
    ++line;
  };
  if (t.k >= 64)
    while (line + t.k / stretch < R * W) fetch_c();
  for (int64_t left = t.k; left > 0; left -= stretch) {
    t.ahead->fetch_line();
    if (line < R * W) fetch_c();
    for (int64_t k = std::min(stretch, left); k > 0; --k) {
      V y[W];
      unrolled<W>([&](auto w) HWY_ATTR { y[w] = load(b + w * N, w); });
      if constexpr (W > vectors) unrolled<W>([&](auto w) HWY_ATTR { hwy::Prefetch(b + 8 * t.b_row + w * N); });
      unrolled<R>([&](auto r) HWY_ATTR {
        const float* p = a[r / 4];
        const V x = hn::Set(d, *(r % 4 == 0 ? p : r % 4 == 1 ? p + row : r % 4 == 2 ? p + 2 * row : p + row3));
        unrolled<W>([&](auto w) HWY_ATTR { sum[r][w] = hn::MulAdd(x, y[w], sum[r][w]); });
      });
      unrolled<groups>([&](auto g) HWY_ATTR { a[g] += step; });
      b += t.b_row;
    }
  }

  V bias[W];
  unrolled<W>([&](auto w) HWY_ATTR { bias[w] = t.bias ? load(t.bias + w * N, w) : hn::Zero(d); });
  float* c = t.c;
  unrolled<R>([&](auto r) HWY_ATTR {
    unrolled<W>([&](auto w) HWY_ATTR {
      V y = sum[r][w];
      if (t.add) y = hn::Add(load(c + w * N, w), y);
      if (t.bias) y = hn::Add(y, bias[w]);
      if constexpr (Some && w == W - 1) hn::BlendedStore(y, hn::FirstN(d, size_t(t.last)), d, c + w * N);
      else hn::StoreU(y, d, c + w * N);
    });
    c += t.c_row;
  });
}

// run[r][w][some], for 1 .. rows rows, 1 .. vectors vectors.
using RunTile = void (*)(const Tile&);
struct Tiles {
  RunTile run[rows + 1][vectors + 1][2];
};
template <size_t... r>
constexpr Tiles tiles_of(std::index_sequence<r...>) {
  Tiles all{};
  ((all.run[r + 1][1][0] = run_tile<r + 1, 1, false>, all.run[r + 1][1][1] = run_tile<r + 1, 1, true>,
    all.run[r + 1][2][0] = run_tile<r + 1, 2, false>, all.run[r + 1][2][1] = run_tile<r + 1, 2, true>),
   ...);
  return all;
}
constexpr Tiles tiles = tiles_of(std::make_index_sequence<size_t(rows)>());

// A few rows read B once, so the time is that of its way from memory: wider tiles take more of each of its rows.
constexpr int few = 4;
constexpr int wide(int r) { return (HWY_TARGET == HWY_AVX3 ? 26 : 13) / (r + 1); }
constexpr RunTile wide_tiles[few + 1] = {nullptr, run_tile<1, wide(1), false>, run_tile<2, wide(2), false>,
                                         run_tile<3, wide(3), false>, run_tile<4, wide(4), false>};

// All tiles of m <= rows rows and n columns. One panel of B is `panel` floats from the next; in_place: B is no copy.
HWY_INLINE void tiles_of_rows(Tile t, int64_t m, int64_t n, int64_t panel, bool in_place) {
  const auto all = [&](RunTile run, int width, int64_t b_step) HWY_ATTR {
    for (; n >= width; n -= width) {
      run(t);
      t.b += b_step;
      t.c += width;
      if (t.bias) t.bias += width;
    }
  };
  if (in_place && m <= few) all(wide_tiles[m], wide(int(m)) * N, wide(int(m)) * N);
  all(tiles.run[m][vectors][0], columns, panel);
  if (n == 0) return;
  const int last = int((n - 1) / N);
  t.last = int(n) - last * N;
  tiles.run[m][last + 1][t.last < N](t);
}

HWY_INLINE float to_float(float x) { return x; }
HWY_INLINE float to_float(uint16_t x) {
  const uint32_t bits = uint32_t(x) << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}
HWY_INLINE V load(const float* p) { return hn::LoadU(d, p); }
HWY_INLINE V load(const uint16_t* p) {
  const hn::RebindToUnsigned<D> u;
  const hn::Rebind<uint16_t, D> narrow;
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(u, hn::LoadU(narrow, p))));
}

// n values, adjacent, as floats.
template <class T>
HWY_INLINE void copy_row(const T* from, int64_t n, float* to) {
  int64_t j = 0;
  for (; j + N <= n; j += N) hn::StoreU(load(from + j), d, to + j);
  for (; j < n; ++j) to[j] = to_float(from[j]);
}

// Panels of `columns` columns of B: k rows of them, one after the other. What lies beyond column n is arbitrary.
template <class T>
HWY_NOINLINE void copy_rows_of_b(const T* b, int64_t b_row, int64_t k, int64_t n, float* to) {
  for (int64_t i = 0; i < k; ++i, b += b_row, to += columns) {  // a row at a time: memory likes to be read in order
    int64_t j = 0;
    float* panel = to;
    for (; j + columns <= n; j += columns, panel += k * columns)
      unrolled<vectors>([&](auto w) HWY_ATTR { hn::StoreU(load(b + j + w * N), d, panel + w * N); });
    if (j < n) {
      copy_row(b + j, n - j, panel);
      std::fill(panel + (n - j), panel + columns, 0.0f);
    }
  }
}

#if HWY_TARGET != HWY_SCALAR
// 16 bytes from each of N / 4 places, one after the other.
template <class DD, class T>
HWY_INLINE hn::Vec<DD> load_blocks(DD, const T* const* p, int64_t k) {
  if constexpr (hn::MaxLanes(DD()) == 4) {
    return hn::BitCast(DD(), hn::LoadU(hn::Repartition<T, DD>(), p[0] + k));
  } else {
    const hn::Half<DD> half;
    return hn::Combine(DD(), load_blocks(half, p + hn::MaxLanes(half) / 4, k), load_blocks(half, p, k));
  }
}

// x has 32 bits of each of N columns: a float, or two values of bf16, the lower first. Stores one row or two.
HWY_INLINE void store_rows(V x, const float*, float* to) { hn::StoreU(x, d, to); }
HWY_INLINE void store_rows(V x, const uint16_t*, float* to) {
  const hn::RebindToUnsigned<D> u;
  const auto bits = hn::BitCast(u, x);
  hn::StoreU(hn::BitCast(d, hn::ShiftLeft<16>(bits)), d, to);
  hn::StoreU(hn::BitCast(d, hn::And(bits, hn::Set(u, 0xffff0000u))), d, to + columns);
}
#endif

// The same where k is B's adjacent dimension.
template <class T>
HWY_NOINLINE void copy_columns_of_b(const T* b, int64_t b_col, int64_t k, int64_t n, float* to) {
  for (int64_t j = 0; j < n; j += columns, to += k * columns)
    for (int v = 0; v < columns; v += N) {
      int64_t i = 0;
#if HWY_TARGET != HWY_SCALAR
      // Column r + 4 q of these N goes to block q of vector r: what is left is to transpose within blocks.
      constexpr int64_t step = 16 / sizeof(T), line = 64 / sizeof(T), ahead = 4 * line, row = step / 4 * columns;
      const T* from[4][N / 4];
      for (int r = 0; r < N; ++r) from[r % 4][r / 4] = b + std::min<int64_t>(j + v + r, n - 1) * b_col;
      for (; i + step <= k; i += step) {
        if (i % line == 0)
          for (const auto& some : from)
            for (const T* p : some) __builtin_prefetch(p + i + ahead);
        const V x0 = load_blocks(d, from[0], i), x1 = load_blocks(d, from[1], i);
        const V x2 = load_blocks(d, from[2], i), x3 = load_blocks(d, from[3], i);
        const auto low02 = hn::InterleaveLower(d, x0, x2), low13 = hn::InterleaveLower(d, x1, x3);
        const auto high02 = hn::InterleaveUpper(d, x0, x2), high13 = hn::InterleaveUpper(d, x1, x3);
        float* out = to + i * columns + v;
        store_rows(hn::InterleaveLower(d, low02, low13), b, out);
        store_rows(hn::InterleaveUpper(d, low02, low13), b, out + row);
        store_rows(hn::InterleaveLower(d, high02, high13), b, out + 2 * row);
        store_rows(hn::InterleaveUpper(d, high02, high13), b, out + 3 * row);
      }
#endif
      for (; i < k; ++i)
        for (int r = 0; r < N; ++r)
          to[i * columns + v + r] = to_float(b[std::min<int64_t>(j + v + r, n - 1) * b_col + i]);
    }
}

// A as it lies, but closer together: rows a_copy_row apart, or columns a_part apart.
template <class T>
HWY_NOINLINE void copy_part_of_a(const T* a, int64_t a_row, int64_t a_col, int64_t m, int64_t k, float* to) {
  if (a_row == 1)
    for (int64_t i = 0; i < k; ++i) copy_row(a + i * a_col, m, to + i * a_part);
  else
    for (int64_t i = 0; i < m; ++i) copy_row(a + i * a_row, k, to + i * a_copy_row);
}

// Rounds to the nearest, ties to even; a NaN stays one.
HWY_INLINE void store_bf16(V y, uint16_t* to) {
  const hn::RebindToUnsigned<D> u;
  const hn::Rebind<uint16_t, D> narrow;
  const auto bits = hn::BitCast(u, y), high = hn::ShiftRight<16>(bits);
  const auto up = hn::Add(hn::Set(u, 0x7fff), hn::And(high, hn::Set(u, 1)));
  const auto nan = hn::RebindMask(u, hn::IsNaN(y));
  const auto all = hn::IfThenElse(nan, hn::Or(high, hn::Set(u, 0x40)), hn::ShiftRight<16>(hn::Add(bits, up)));
  hn::StoreU(hn::TruncateTo(narrow, all), narrow, to);
}

// C = sums [+ bias] [+ C], rounded to bf16.
HWY_NOINLINE void round_to_bf16(const Gemm& g, const float* sums) {
  const auto* const bias = static_cast<const uint16_t*>(g.bias);
  auto* c = static_cast<uint16_t*>(g.c);
  for (int64_t i = 0; i < g.m; ++i, sums += n_block, c += g.c_row) {
    const auto add = [&](V y, const uint16_t* b, const uint16_t* before) HWY_ATTR {
      if (b) y = hn::Add(y, load(b));
      return before ? hn::Add(load(before), y) : y;
    };
    int64_t j = 0;
    for (; j + N <= g.n; j += N)
      store_bf16(add(hn::LoadU(d, sums + j), bias ? bias + j : nullptr, g.accumulate ? c + j : nullptr), c + j);
    if (j == g.n) continue;
    uint16_t last_bias[N] = {}, last[N] = {};  // what is left, as vectors
    if (bias) std::copy(bias + j, bias + g.n, last_bias);
    std::copy(c + j, c + g.n, last);
    store_bf16(add(load_some(sums + j, int(g.n - j)), bias ? last_bias : nullptr, g.accumulate ? last : nullptr), last);
    std::copy_n(last, g.n - j, c + j);
  }
}

// The panel of B from row k and column j on, where it lies; nothing beyond the last row.
template <class B>
Ahead panel_of(const B* b, const Gemm& g, int64_t k, int64_t j) {
  if (k >= g.k) return {};
  const auto* const p = reinterpret_cast<const char*>(b + k * g.b_row + j * g.b_col);
  const int64_t size = sizeof(B), high = std::min(k_block, g.k - k), wide = std::min<int64_t>(columns, g.n - j);
  if (g.b_col == 1) return {p, high, wide * size, g.b_row * size};
  return {p, wide, high * size, g.b_col * size};
}

template <class A, class B>
HWY_INLINE void run(const Gemm& g, float* scratch) {
  const bool copy_b = copies_b(g), copy_a = copies_a(g), round = g.c_type == Dtype::bf16;
  float* const b_copy = scratch;
  float* const a_copy = b_copy + (copy_b ? b_copy_size(g) : 0);
  float* const sums = a_copy + (copy_a ? a_copy_size(g) : 0);
  const A* const a = static_cast<const A*>(g.a);
  const B* const b = static_cast<const B*>(g.b);
  float* const c = round ? sums : static_cast<float*>(g.c);
  const float* const bias = round ? nullptr : static_cast<const float*>(g.bias);

  Ahead ahead;
  Tile t{};
  t.ahead = &ahead;
  t.a_row = !copy_a ? g.a_row : g.a_row == 1 ? 1 : a_copy_row;
  t.a_col = !copy_a ? g.a_col : g.a_row == 1 ? a_part : 1;
  t.b_row = copy_b ? columns : g.b_row;
  t.c_row = round ? n_block : g.c_row;
  const int64_t n_step = copy_b ? columns : g.n;
  const int64_t m_step = copy_a ? round_up(ceil_div(g.m, ceil_div(g.m, m_block)), rows) : g.m;
  for (int64_t i0 = 0; i0 < g.m; i0 += m_step)
    for (int64_t k = 0; k == 0 || k < g.k; k += k_block) {  // once where there is nothing to sum
      const int64_t m = std::min(m_step, g.m - i0);
      t.k = std::min(k_block, g.k - k);
      t.add = k > 0 || (g.accumulate && !round);
      const A* const a_here = a + i0 * g.a_row + k * g.a_col;
      for (int64_t i = 0; copy_a && i < m; i += a_part)
        copy_part_of_a(a_here + i * g.a_row, g.a_row, g.a_col, std::min(a_part, m - i), t.k, a_copy + i * a_copy_row);
      for (int64_t j = 0; j < g.n; j += n_step) {
        const int64_t n = std::min(n_step, g.n - j);
        const B* const b_here = b + k * g.b_row + j * g.b_col;
        if (copy_b && g.b_col == 1) copy_rows_of_b(b_here, g.b_row, t.k, n, b_copy);
        else if (copy_b) copy_columns_of_b(b_here, g.b_col, t.k, n, b_copy);
        if (copy_b) {
          const bool last = j + n_step >= g.n;
          ahead = panel_of(b, g, last ? k + k_block : k, last ? 0 : j + n_step);
        }
        t.b = copy_b ? b_copy : reinterpret_cast<const float*>(b_here);
        t.bias = bias && k + k_block >= g.k ? bias + j : nullptr;
        for (int64_t i = 0; i < m; i += rows) {
          t.a = copy_a ? a_copy + i / a_part * a_part * a_copy_row + i % a_part * t.a_row
                       : reinterpret_cast<const float*>(a_here) + i * t.a_row;
          t.c = c + (i0 + i) * t.c_row + j;
          tiles_of_rows(t, std::min<int64_t>(rows, m - i), n, copy_b ? columns * t.k : columns, !copy_b);
        }
      }
    }
  if (round) round_to_bf16(g, sums);
}

}  // namespace

void gemm(const Gemm& g, float* scratch) {
  if (g.type == Dtype::bf16) run<uint16_t, uint16_t>(g, scratch);
  else if (g.b_type == Dtype::bf16) run<float, uint16_t>(g, scratch);
  else run<float, float>(g, scratch);
}

}  // namespace HWY_NAMESPACE
}  // namespace dense
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace dense {

int64_t gemm_scratch(const Gemm& g) {
  return (copies_b(g) ? b_copy_size(g) : 0) + (copies_a(g) ? a_copy_size(g) : 0) +
         (g.c_type == Dtype::bf16 ? g.m * n_block : 0);
}

RunGemm gemm_for(Isa isa) {
#if HWY_TARGETS & HWY_AVX3
  if (isa == Isa::avx512) return N_AVX3::gemm;
#endif
#if HWY_TARGETS & HWY_AVX2
  if (isa == Isa::avx2) return N_AVX2::gemm;
#endif
  (void)isa;
  return HWY_NAMESPACE::gemm;
}

}  // namespace dense
#endif  // HWY_ONCE
