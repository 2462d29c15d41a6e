#include "dense/tensor/gemm.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "dense/tensor/gemm.cpp"
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_SSE4)
#include <hwy/cache_control.h>
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#ifndef DENSE_TENSOR_GEMM_ONCE  // what all targets share
#define DENSE_TENSOR_GEMM_ONCE
namespace dense {
namespace {

constexpr int64_t a_copy_row = k_block + 16;  // rows of a copy of A, apart by an odd number of cache lines

inline int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

// From how many rows of A on it pays to copy B when it could be read in place.
constexpr int64_t rows_worth_a_copy = 64;

inline bool copies_b(const Gemm& g) {
  if (g.type == Dtype::bf16 || (g.b_col != 1 && g.n > 1)) return true;
  return g.m >= rows_worth_a_copy && g.b_row > 64;
}
inline bool copies_a(const Gemm& g) {
  if (g.type == Dtype::bf16) return true;
  return g.a_row == 1 ? g.a_col > 512 && g.n > 64 : g.a_row % 512 == 0 && g.m >= 8 && g.n > 64;
}

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
};

template <int R, int W, bool Masked>
HWY_INLINE void tile(const Tile& t) {
  const auto mask = hn::FirstN(d, size_t(t.last));
  const auto load = [&](const float* p, auto w) HWY_ATTR {
    if constexpr (Masked && w == W - 1) return hn::MaskedLoad(mask, d, p);
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
  for (int64_t k = t.k; k > 0; --k) {
    V y[W];
    unrolled<W>([&](auto w) HWY_ATTR { y[w] = load(b + w * N, w); });
    if constexpr (R <= 4 && W > 2) unrolled<W>([&](auto w) HWY_ATTR { hwy::Prefetch(b + 16 * t.b_row + w * N); });
    unrolled<R>([&](auto r) HWY_ATTR {
      const float* p = a[r / 4];
      const V x = hn::Set(d, *(r % 4 == 0 ? p : r % 4 == 1 ? p + row : r % 4 == 2 ? p + 2 * row : p + row3));
      unrolled<W>([&](auto w) HWY_ATTR { sum[r][w] = hn::MulAdd(x, y[w], sum[r][w]); });
    });
    unrolled<groups>([&](auto g) HWY_ATTR { a[g] += step; });
    b += t.b_row;
  }

  if (t.bias)
    unrolled<W>([&](auto w) HWY_ATTR {
      const V y = load(t.bias + w * N, w);
      unrolled<R>([&](auto r) HWY_ATTR { sum[r][w] = hn::Add(sum[r][w], y); });
    });
  float* c = t.c;
  unrolled<R>([&](auto r) HWY_ATTR {
    unrolled<W>([&](auto w) HWY_ATTR {
      V y = sum[r][w];
      if (t.add) y = hn::Add(load(c + w * N, w), y);
      if constexpr (Masked && w == W - 1) hn::BlendedStore(y, mask, d, c + w * N);
      else hn::StoreU(y, d, c + w * N);
    });
    c += t.c_row;
  });
}

using RunTile = void (*)(const Tile&);
template <int R, int W, bool Masked>
HWY_FLATTEN void run_tile(const Tile& t) {
  tile<R, W, Masked>(t);
}

// Tiles of 1 .. rows rows, of 1 .. vectors vectors, with the last one full or not.
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

// The first m rows and n columns of t, any number.
HWY_INLINE void tile_row(Tile t, int64_t m, int64_t n) {
  const int full = int((n - 1) / N), left = int(n - int64_t(full) * N);
  t.last = left;
  const auto& run = tiles.run;
  const RunTile some = run[rows][full + 1][left < N];
  for (; m >= rows; m -= rows) {
    some(t);
    t.a += rows * t.a_row;
    t.c += rows * t.c_row;
  }
  if (m > 0) run[m][full + 1][left < N](t);
}

// Four adjacent values as floats; for vectors of 4 lanes or more.
#if HWY_TARGET != HWY_SCALAR
using D4 = hn::CappedTag<float, 4>;
HWY_INLINE hn::Vec<D4> load4(const float* p) { return hn::LoadU(D4(), p); }
HWY_INLINE hn::Vec<D4> load4(const uint16_t* p) {
  const hn::RebindToUnsigned<D4> u;
  const hn::Rebind<uint16_t, D4> narrow;
  return hn::BitCast(D4(), hn::ShiftLeft<16>(hn::PromoteTo(u, hn::LoadU(narrow, p))));
}
// Four adjacent values of each of N / 4 rows, one row in each 128 bits.
template <class DD, class T>
HWY_INLINE hn::Vec<DD> load_blocks(DD, const T* const* p, int64_t k) {
  if constexpr (hn::MaxLanes(DD()) == 4) {
    return load4(p[0] + k);
  } else {
    const hn::Half<DD> half;
    return hn::Combine(DD(), load_blocks(half, p + hn::MaxLanes(half) / 4, k), load_blocks(half, p, k));
  }
}
#endif

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
HWY_NOINLINE void copy_b(const T* b, int64_t b_row, int64_t b_col, int64_t k, int64_t n, float* to) {
  for (int64_t j = 0; j < n; j += columns, to += k * columns) {
    const int64_t here = std::min<int64_t>(columns, n - j);
    if (b_col == 1) {
      const T* from = b + j;
      if (here == columns)
        for (int64_t i = 0; i < k; ++i, from += b_row)
          unrolled<vectors>([&](auto w) HWY_ATTR { hn::StoreU(load(from + w * N), d, to + i * columns + w * N); });
      else
        for (int64_t i = 0; i < k; ++i, from += b_row) {
          copy_row(from, here, to + i * columns);
          for (int64_t rest = here; rest < columns; ++rest) to[i * columns + rest] = 0;
        }
      continue;
    }
    for (int v = 0; v < columns; v += N) {
      int64_t i = 0;
#if HWY_TARGET != HWY_SCALAR
      // Row r + 4 q of B's transpose goes to block q of vector r: transposing within blocks is all that is left.
      const T* from[4][N / 4];
      for (int r = 0; r < N; ++r) from[r % 4][r / 4] = b + std::min<int64_t>(j + v + r, n - 1) * b_col;
      for (; i + 4 <= k; i += 4) {
        const V x0 = load_blocks(d, from[0], i), x1 = load_blocks(d, from[1], i);
        const V x2 = load_blocks(d, from[2], i), x3 = load_blocks(d, from[3], i);
        const auto low02 = hn::InterleaveLower(d, x0, x2), low13 = hn::InterleaveLower(d, x1, x3);
        const auto high02 = hn::InterleaveUpper(d, x0, x2), high13 = hn::InterleaveUpper(d, x1, x3);
        float* out = to + i * columns + v;
        hn::StoreU(hn::InterleaveLower(d, low02, low13), d, out);
        hn::StoreU(hn::InterleaveUpper(d, low02, low13), d, out + columns);
        hn::StoreU(hn::InterleaveLower(d, high02, high13), d, out + 2 * columns);
        hn::StoreU(hn::InterleaveUpper(d, high02, high13), d, out + 3 * columns);
      }
#endif
      for (; i < k; ++i)
        for (int r = 0; r < N; ++r)
          to[i * columns + v + r] = to_float(b[std::min<int64_t>(j + v + r, n - 1) * b_col + i]);
    }
  }
}

// A as it lies, but closer together. Returns its new strides.
template <class T>
HWY_NOINLINE void copy_a(const T* a, int64_t a_row, int64_t a_col, int64_t m, int64_t k, float* to) {
  if (a_row == 1)
    for (int64_t i = 0; i < k; ++i) copy_row(a + i * a_col, m, to + i * m_block);
  else
    for (int64_t i = 0; i < m; ++i) copy_row(a + i * a_row, k, to + i * a_copy_row);
}

uint16_t to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (x != x) return uint16_t(bits >> 16 | 0x40);
  return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <class T>
HWY_INLINE void run(const Gemm& g, float* scratch) {
  const bool pack_b = copies_b(g), pack_a = copies_a(g), round = g.c_type == Dtype::bf16;
  float* const b_copy = scratch;
  float* const a_copy =
      b_copy + (pack_b ? round_up(std::min(g.k, k_block) * round_up(std::min(g.n, n_block), 64), 16) : 0);
  float* const c_copy = a_copy + (pack_a ? m_block * a_copy_row : 0);
  const T *const a = static_cast<const T*>(g.a), *const b = static_cast<const T*>(g.b);
  const float* const bias = round ? nullptr : static_cast<const float*>(g.bias);
  float* const c = round ? c_copy : static_cast<float*>(g.c);
  const int64_t c_row = round ? n_block : g.c_row;
  for (int64_t j = 0; j < g.n; j += n_block) {
    const int64_t nb = std::min(n_block, g.n - j);
    for (int64_t k = 0; k == 0 || k < g.k; k += k_block) {
      Tile t{};
      t.k = std::min(k_block, g.k - k);
      t.add = k > 0 || (g.accumulate && !round);
      t.c_row = c_row;
      const bool last = k + k_block >= g.k;
      if (pack_b) copy_b(b + k * g.b_row + j * g.b_col, g.b_row, g.b_col, t.k, nb, b_copy);
      const int64_t mc = pack_a ? m_block : g.m;
      for (int64_t i = 0; i < g.m; i += mc) {
        const int64_t mb = std::min(mc, g.m - i);
        if (pack_a) {
          copy_a(a + i * g.a_row + k * g.a_col, g.a_row, g.a_col, mb, t.k, a_copy);
          t.a_row = g.a_row == 1 ? 1 : a_copy_row;
          t.a_col = g.a_row == 1 ? m_block : 1;
        } else {
          t.a_row = g.a_row;
          t.a_col = g.a_col;
        }
        const float* const a_here = pack_a ? a_copy : reinterpret_cast<const float*>(a + i * g.a_row + k * g.a_col);
        for (int64_t jj = 0; jj < nb; jj += columns) {
          t.a = a_here;
          if (pack_b) {
            t.b = b_copy + jj * t.k;
            t.b_row = columns;
          } else {
            t.b = reinterpret_cast<const float*>(b + k * g.b_row + (j + jj));
            t.b_row = g.b_row;
          }
          t.c = c + i * c_row + j + jj;
          t.bias = bias && last ? bias + j + jj : nullptr;
          tile_row(t, mb, std::min<int64_t>(columns, nb - jj));
        }
      }
    }
  }
  if (round) {
    for (int64_t i = 0; i < g.m; ++i) {
      uint16_t* out = static_cast<uint16_t*>(g.c) + i * g.c_row;
      for (int64_t j = 0; j < g.n; ++j) {
        float y = c_copy[i * n_block + j];
        if (g.bias) y += to_float(static_cast<const uint16_t*>(g.bias)[j]);
        if (g.accumulate) y = to_float(out[j]) + y;
        out[j] = to_bf16(y);
      }
    }
  }
}

}  // namespace

void gemm(const Gemm& g, float* scratch) {
  if (g.type == Dtype::bf16) run<uint16_t>(g, scratch);
  else run<float>(g, scratch);
}

}  // namespace HWY_NAMESPACE
}  // namespace dense
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace dense {

int64_t gemm_scratch(const Gemm& g) {
  return (copies_b(g) ? round_up(std::min(g.k, k_block) * round_up(std::min(g.n, n_block), 64), 16) : 0) +
         (copies_a(g) ? m_block * a_copy_row : 0) + (g.c_type == Dtype::bf16 ? m_most * n_block : 0);
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
