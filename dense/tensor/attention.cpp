// The kernels of attention.h. All of them are small matrix products with steps on their results in between. Of each
// product the result has one index along the lanes of vectors and one along rows. In the forward pass and for dq,
// queries are the lanes: q (and dout) of up to 64 queries are transposed once, k and v are used as they lie in memory,
// number by number, and row maxima, sums and masks need no work across lanes. For dk and dv, keys are the lanes. With
// few queries, as in decoding, keys are the lanes as well, each block of them being transposed once for all heads that
// share it. Of many small heads, finally, each is a lane.
#ifndef DENSE_TENSOR_ATTENTION_CPP_
#define DENSE_TENSOR_ATTENTION_CPP_
#include "dense/tensor/attention.h"

#include <algorithm>
#include <limits>
#include <type_traits>
#include <utility>

#include "dense/scalar/error.h"
#include "dense/tensor/threads.h"

namespace dense {

// Queries and keys come in blocks of as many. Of keys this is part of the contract: it decides on the bits.
inline constexpr int64_t block = 64;

// Heads of at most as many queries, keys and numbers are done many at once.
inline constexpr int64_t brief = 16;

// Keys first .. last - 1.
struct KeyRange {
  int64_t first, last;
};

struct Attention::Call {
  const AttentionSpec& spec;
  const int32_t *lengths, *starts, *firsts;
  const void *q, *k, *v, *dout;
  const void* out_read;
  void *out, *lse, *delta;  // lse, delta (B, H, T)
  void *dq, *dk, *dv;
  bool brief;  // many heads at once
  bool few;    // keys along the lanes in the forward pass
  bool joint;  // dq together with dk and dv

  int64_t group() const { return spec.heads / spec.kv_heads; }
  int64_t query_blocks() const { return (spec.queries + block - 1) / block; }
  int64_t key_blocks() const { return (spec.keys + block - 1) / block; }
  KeyRange row(int64_t b) const {  // the keys that there are
    const int64_t first = firsts ? std::clamp<int64_t>(firsts[b], 0, spec.keys) : 0, most = spec.keys - first;
    return {first, first + (lengths ? std::clamp<int64_t>(lengths[b], 0, most) : most)};
  }
  int64_t start(int64_t b) const { return starts ? starts[b] : 0; }
};

// Of a row's keys those that a query sees; none where last <= first. Both rise with its position.
inline KeyRange keys_of(const AttentionSpec& spec, int64_t position, KeyRange row) {
  return {spec.window ? std::max(row.first, position - spec.window + 1) : row.first,
          spec.causal   ? std::min(row.last, position + 1)
          : spec.window ? std::min(row.last, position + spec.window)
                        : row.last};
}

// Where the block of keys begins, and where the next one does: the first one is what the row has of it.
inline int64_t block_begin(int64_t key, KeyRange row) { return std::max(key / block * block, row.first); }
inline int64_t block_end(int64_t key) { return (key / block + 1) * block; }

// What one thread needs, in numbers: four matrices of (D, 64), two of (64, 64) and some rows of 64. They start a little
// past powers of two, for the cache's sake.
struct Areas {
  int64_t dim;  // D in whole vectors
  explicit Areas(int64_t head_dim) : dim((head_dim + 15) / 16 * 16) {}
  int64_t by_dim(int i) const { return i * (dim * block + 16); }
  int64_t square(int i) const { return by_dim(4) + i * (block * block + 16); }
  int64_t row(int i) const { return square(2) + i * block; }
  int64_t size() const { return std::max(row(8), (3 * brief + 5) * brief * 16 + 64); }  // or for many heads at once
};

}  // namespace dense
#endif

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "dense/tensor/attention.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "dense/scalar/math.h"

HWY_BEFORE_NAMESPACE();
namespace dense {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// f(0), ..., f(K - 1) without a loop, so that arrays of vectors stay in registers.
template <size_t K, class F>
HWY_INLINE void unrolled(const F& f) {
  [&]<size_t... k>(std::index_sequence<k...>) HWY_ATTR { (f(std::integral_constant<size_t, k>()), ...); }
  (std::make_index_sequence<K>());
}

// The numbers p[i * row + j * step].
template <class T>
struct Numbers {
  const T* p;
  int64_t row, step;
};

template <class T>
class Worker {
  using D = hn::ScalableTag<T>;
  using V = hn::Vec<D>;
  static constexpr D d{};
  static constexpr int64_t n = hn::MaxLanes(D());
  static constexpr T lowest = std::numeric_limits<T>::lowest();

  const Attention::Call& call;
  const AttentionSpec& spec;
  const int64_t head_dim, group;
  const Areas areas;
  T* const scratch;
  const V scale, scale_in_cap, cap;

  struct Rows {
    const T* p;
    int64_t stride;
  };
  T* by_dim(int i) const { return scratch + areas.by_dim(i); }
  T* square(int i) const { return scratch + areas.square(i); }
  T* row(int i) const { return scratch + areas.row(i); }
  static int64_t vectors(int64_t count) { return (count + n - 1) / n; }
  static const T* at(const void* p, const AttentionSpec::Strides& s, int64_t b, int64_t t, int64_t h) {
    return static_cast<const T*>(p) + b * s.batch + t * s.time + h * s.head;
  }
  static T* at(void* p, const AttentionSpec::Strides& s, int64_t b, int64_t t, int64_t h) {
    return static_cast<T*>(p) + b * s.batch + t * s.time + h * s.head;
  }
  static Rows rows_at(const void* p, const AttentionSpec::Strides& s, int64_t b, int64_t t, int64_t h) {
    return {at(p, s, b, t, h), s.time};
  }
  int64_t row_at(int64_t b, int64_t t, int64_t h) const { return (b * spec.heads + h) * spec.queries + t; }

 public:
  Worker(const Attention::Call& c, std::byte* memory)
      : call(c),
        spec(c.spec),
        head_dim(c.spec.head_dim),
        group(c.group()),
        areas(c.spec.head_dim),
        scratch(reinterpret_cast<T*>(memory)),
        scale(hn::Set(d, T(c.spec.scale))),
        scale_in_cap(hn::Set(d, c.spec.soft_cap != 0 ? T(c.spec.scale) / T(c.spec.soft_cap) : T(0))),
        cap(hn::Set(d, T(c.spec.soft_cap))) {}

  // R rows and W vectors of c (+)= a b, in registers.
  template <size_t R, size_t W>
  static HWY_INLINE void tile(int64_t inner, Numbers<T> a, const T* b, int64_t b_row, T* c, int64_t c_row, bool add) {
    V sum[R][W];
    if (add)
      unrolled<R>([&](auto i) HWY_ATTR {
        unrolled<W>([&](auto w) HWY_ATTR { sum[i][w] = hn::LoadU(d, c + int64_t(i) * c_row + int64_t(w) * n); });
      });
    else unrolled<R>([&](auto i) HWY_ATTR { unrolled<W>([&](auto w) HWY_ATTR { sum[i][w] = hn::Zero(d); }); });
    for (int64_t j = 0; j < inner; ++j, a.p += a.step, b += b_row) {
      V x[W];
      unrolled<W>([&](auto w) HWY_ATTR { x[w] = hn::LoadU(d, b + int64_t(w) * n); });
      unrolled<R>([&](auto i) HWY_ATTR {
        const V y = hn::Set(d, a.p[int64_t(i) * a.row]);
        unrolled<W>([&](auto w) HWY_ATTR { sum[i][w] = hn::MulAdd(x[w], y, sum[i][w]); });
      });
    }
    unrolled<R>([&](auto i) HWY_ATTR {
      unrolled<W>([&](auto w) HWY_ATTR { hn::StoreU(sum[i][w], d, c + int64_t(i) * c_row + int64_t(w) * n); });
    });
  }

  // As many rows at a time as registers allow.
  template <size_t W>
  static HWY_NOINLINE void multiply(int64_t rows, int64_t inner, Numbers<T> a, const T* b, int64_t b_row, T* c,
                                    int64_t c_row, bool add) {
    constexpr size_t most = many_registers ? (W == 4 ? 6 : W == 3 ? 8 : 12) : (W == 2 ? 6 : 12);
    const auto next = [&](auto count) HWY_ATTR {
      tile<count(), W>(inner, a, b, b_row, c, c_row, add);
      a.p += int64_t(count()) * a.row, c += int64_t(count()) * c_row;
    };
    for (; rows >= int64_t(most); rows -= int64_t(most)) next(std::integral_constant<size_t, most>());
    if constexpr (most > 8) {
      if (rows >= 8) next(std::integral_constant<size_t, 8>()), rows -= 8;
    }
    if (rows & 4) next(std::integral_constant<size_t, 4>());
    if (rows & 2) next(std::integral_constant<size_t, 2>());
    if (rows & 1) next(std::integral_constant<size_t, 1>());
  }
  static constexpr bool many_registers = HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86;

  // c[i] (+)= sum over j of a(i, j) b[j], j rising; b[j] and c[i] are rows of `width` vectors.
  static HWY_INLINE void multiply(int64_t rows, int64_t inner, Numbers<T> a, const T* b, int64_t b_row, T* c,
                                  int64_t c_row, int64_t width, bool add) {
    constexpr size_t most = many_registers ? 4 : 2;
    if constexpr (!many_registers)
      if (rows == 1)  // all sums there is room for: each waits for the one before
        for (; width >= 8; width -= 8, b += 8 * n, c += 8 * n) tile<1, 8>(inner, a, b, b_row, c, c_row, add);
    for (; width >= int64_t(most); width -= most, b += int64_t(most) * n, c += int64_t(most) * n)
      multiply<most>(rows, inner, a, b, b_row, c, c_row, add);
    if constexpr (most > 2) {
      if (width == 3) multiply<3>(rows, inner, a, b, b_row, c, c_row, add);
      if (width == 2) multiply<2>(rows, inner, a, b, b_row, c, c_row, add);
    }
    if (width == 1) multiply<1>(rows, inner, a, b, b_row, c, c_row, add);
  }

#if HWY_TARGET == HWY_SCALAR
  static constexpr bool in_blocks = false;  // vectors consist of 128-bit blocks of four floats
#else
  static constexpr bool in_blocks = std::is_same_v<T, float>;

  // Within each 128-bit block: a 4 x 4 transposition.
  static HWY_INLINE void transpose_blocks(V& a, V& b, V& c, V& e) {
    const hn::RepartitionToWide<D> pairs;
    const auto ab0 = hn::BitCast(pairs, hn::InterleaveLower(d, a, b)),
               ce0 = hn::BitCast(pairs, hn::InterleaveLower(d, c, e));
    const auto ab1 = hn::BitCast(pairs, hn::InterleaveUpper(d, a, b)),
               ce1 = hn::BitCast(pairs, hn::InterleaveUpper(d, c, e));
    a = hn::BitCast(d, hn::InterleaveLower(pairs, ab0, ce0));
    b = hn::BitCast(d, hn::InterleaveUpper(pairs, ab0, ce0));
    c = hn::BitCast(d, hn::InterleaveLower(pairs, ab1, ce1));
    e = hn::BitCast(d, hn::InterleaveUpper(pairs, ab1, ce1));
  }
  // Four numbers from each of row(0), row(4), row(8), ...
  template <class Row>
  static HWY_INLINE V load_blocks(const Row& row) {
    const hn::CappedTag<T, 4> d4;
    const auto part = [&](int64_t k) HWY_ATTR { return hn::LoadU(d4, row(4 * k)); };
    if constexpr (n == 4) return part(0);
    const hn::CappedTag<T, 8> d8;
    if constexpr (n == 8) return hn::Combine(d8, part(1), part(0));
    if constexpr (n == 16) return hn::Combine(d, hn::Combine(d8, part(3), part(2)), hn::Combine(d8, part(1), part(0)));
  }
  // To row(0), row(4), ..., but for those from row(count) on.
  template <class Row>
  static HWY_INLINE void store_blocks(V v, int64_t count, const Row& row) {
    const hn::CappedTag<T, 4> d4;
    const auto part = [&](auto x, int64_t k) HWY_ATTR {
      if (4 * k < count) hn::StoreU(x, d4, row(4 * k));
    };
    if constexpr (n == 4) part(v, 0);
    const hn::CappedTag<T, 8> d8;
    const auto both = [&](auto x, int64_t k)
                          HWY_ATTR { part(hn::LowerHalf(d4, x), k), part(hn::UpperHalf(d4, x), k + 1); };
    if constexpr (n == 8) both(v, 0);
    if constexpr (n == 16) both(hn::LowerHalf(d8, v), 0), both(hn::UpperHalf(d8, v), 2);
  }
#endif

  // to[j * block + i] = from[i * stride + j] for i < count; what follows up to whole vectors is as the last.
  void lanes_from_rows(const T* from, int64_t stride, int64_t count, T* to) const {
    for (int64_t i = 0; i < count; i += n) {
      const T* rows[n];
      for (int64_t k = 0; k < n; ++k) rows[k] = from + std::min(i + k, count - 1) * stride;
      int64_t j = 0;
      if constexpr (in_blocks)
        for (; j + 4 <= head_dim; j += 4) {
          V v[4];
          unrolled<4>([&](auto k)
                          HWY_ATTR { v[k] = load_blocks([&](int64_t r) { return rows[int64_t(k) + r] + j; }); });
          transpose_blocks(v[0], v[1], v[2], v[3]);
          unrolled<4>([&](auto k) HWY_ATTR { hn::StoreU(v[k], d, to + (j + int64_t(k)) * block + i); });
        }
      for (; j < head_dim; ++j)
        for (int64_t k = 0; k < n; ++k) to[j * block + i + k] = rows[k][j];
    }
  }

  // to[i * stride + j] = factor(i) * from[j * block + i] for i < count; factor gives a vector of them.
  template <class F>
  HWY_INLINE void rows_from_lanes(const T* from, int64_t count, const F& factor, T* to, int64_t stride) const {
    for (int64_t i = 0; i < count; i += n) {
      const V f = factor(i);
      int64_t j = 0;
      if constexpr (in_blocks)
        for (; j + 4 <= head_dim; j += 4) {
          V v[4];
          unrolled<4>([&](auto k) HWY_ATTR { v[k] = hn::Mul(hn::LoadU(d, from + (j + int64_t(k)) * block + i), f); });
          transpose_blocks(v[0], v[1], v[2], v[3]);
          unrolled<4>([&](auto k) HWY_ATTR {
            const int64_t row = i + int64_t(k);
            store_blocks(v[k], count - row, [&](int64_t r) { return to + (row + r) * stride + j; });
          });
        }
      for (; j < head_dim; ++j) {
        T values[n];
        hn::StoreU(hn::Mul(hn::LoadU(d, from + j * block + i), f), d, values);
        for (int64_t k = 0; k < std::min(n, count - i); ++k) to[(i + k) * stride + j] = values[k];
      }
    }
  }

  // exp(x) for x not much above 0. Where it would not be a normal number it is 0: nothing next to the largest of a row,
  // 1.
  static HWY_INLINE V exp(V x) {
    const auto reduced = math::reduce(d, x);
    const V y = math::scale(d, math::exp_reduced(d, reduced), reduced.shifted);
    return hn::IfThenZeroElse(hn::Lt(x, hn::Set(d, -math::C<D>::exp_limit)), y);  // a NaN stays one
  }

  template <bool capped>
  HWY_INLINE V score(V dot) const {
    if constexpr (capped) return hn::Mul(cap, math::tanh(d, hn::Mul(dot, scale_in_cap)));
    else return hn::Mul(dot, scale);
  }

  // f with whether there is a soft cap, and whether a mask, as types.
  template <class F>
  HWY_INLINE void with_cap(const F& f) const {
    spec.soft_cap != 0 ? f(std::true_type()) : f(std::false_type());
  }
  template <class F>
  HWY_INLINE void with_cap_and_mask(bool masked, const F& f) const {
    with_cap([&](auto capped) HWY_ATTR { masked ? f(capped, std::true_type()) : f(capped, std::false_type()); });
  }

  // The ranges of keys of the queries at `position` and after it, one per lane.
  HWY_INLINE void ranges(int64_t position, KeyRange keys, int64_t count, T* first, T* last) const {
    const V begin = hn::Set(d, T(keys.first)), end = hn::Set(d, T(keys.last)), window = hn::Set(d, T(spec.window));
    for (int64_t i = 0; i < count; i += n) {
      const V p = hn::Iota(d, T(position + i)), next = hn::Add(p, hn::Set(d, T(1)));
      hn::StoreU(spec.window ? hn::Max(begin, hn::Sub(next, window)) : begin, d, first + i);
      hn::StoreU(spec.causal ? hn::Min(end, next) : spec.window ? hn::Min(end, hn::Add(p, window)) : end, d, last + i);
    }
  }
  static HWY_INLINE auto within(V key, V first, V last) { return hn::And(hn::Ge(key, first), hn::Lt(key, last)); }

  // ---- forward, queries along the lanes

  // The dots of `count` keys with n queries become exp(score - m), and m and the sum are brought up to date. Returns
  // what earlier sums are to be multiplied with.
  template <bool masked, bool capped>
  HWY_INLINE V softmax_lanes(T* dots, int64_t key, int64_t count, V first, V last, T* m, T* sum) const {
    const V before = hn::LoadU(d, m), none = hn::Neg(hn::Inf(d));
    V largest = before;
    for (int64_t k = 0; k < count; ++k) {
      V s = score<capped>(hn::LoadU(d, dots + k * block));
      if constexpr (masked) s = hn::IfThenElse(within(hn::Set(d, T(key + k)), first, last), s, none);
      largest = hn::Max(largest, s);
      hn::StoreU(s, d, dots + k * block);
    }
    const V factor = exp(hn::Sub(before, largest));
    V total = hn::Mul(hn::LoadU(d, sum), factor);
    for (int64_t k = 0; k < count; ++k) {
      const V s = hn::LoadU(d, dots + k * block);
      const V p = exp(hn::Sub(s, largest));
      total = hn::Add(total, p);
      hn::StoreU(p, d, dots + k * block);
    }
    hn::StoreU(largest, d, m);
    hn::StoreU(total, d, sum);
    return factor;
  }

  // Asks for rows that will be read soon: in other threads' caches, and each far from the next, they are slow to come.
  HWY_INLINE void prefetch(Rows rows, int64_t count) const {
    for (int64_t i = 0; i < count; ++i)
      for (int64_t j = 0; j < head_dim; j += 64 / int64_t(sizeof(T)))
        __builtin_prefetch(rows.p + i * rows.stride + j, 0, 2);
  }

  // Something of their lines: so the machine's own prefetching sees what is to come, as it does not where many
  // rows are read side by side.
  HWY_INLINE V read_in_order(Rows rows, int64_t count) const {
    V any = hn::Zero(d);
    for (int64_t i = 0; i < count; ++i)
      for (int64_t j = 0; j + n <= head_dim; j += 64 / int64_t(sizeof(T)))
        any = hn::Max(any, hn::LoadU(d, rows.p + i * rows.stride + j));
    return any;
  }

  HWY_INLINE void prefetch_keys(int64_t b, int64_t h, int64_t key, int64_t last) const {
    const int64_t keys = std::min(block_end(key), last) - key;
    prefetch(rows_at(call.k, spec.k, b, key, h / group), keys);
    prefetch(rows_at(call.v, spec.v, b, key, h / group), keys);
  }

  // Queries t .. t + count - 1 of one head.
  void forward_many(int64_t b, int64_t h, int64_t t, int64_t count) const {
    T *qt = by_dim(0), *out = by_dim(1), *p = square(0), *m = row(0), *sum = row(1), *first = row(2), *last = row(3);
    const int64_t width = vectors(count), position = call.start(b) + t;
    const KeyRange all = call.row(b), low = keys_of(spec, position, all),
                   high = keys_of(spec, position + count - 1, all);
    if (low.first < high.last) prefetch_keys(b, h, block_begin(low.first, all), high.last);
    lanes_from_rows(at(call.q, spec.q, b, t, h), spec.q.time, count, qt);
    if (t >= block) prefetch(rows_at(call.q, spec.q, b, t - block, h), block);  // which comes next
    ranges(position, all, width * n, first, last);
    for (int64_t i = 0; i < width * n; i += n) {
      hn::StoreU(hn::Set(d, lowest), d, m + i);
      hn::StoreU(hn::Zero(d), d, sum + i);
    }
    bool begun = false;
    for (int64_t key = block_begin(low.first, all); key < high.last; key = block_end(key), begun = true) {
      const int64_t keys = std::min(block_end(key), high.last) - key;
      const Rows k = rows_at(call.k, spec.k, b, key, h / group), v = rows_at(call.v, spec.v, b, key, h / group);
      if (block_end(key) < high.last) prefetch_keys(b, h, block_end(key), high.last);
      multiply(keys, head_dim, {k.p, k.stride, 1}, qt, block, p, block, width, false);
      with_cap_and_mask(key < high.first || key + keys > low.last, [&](auto capped, auto masked) HWY_ATTR {
        for (int64_t i = 0; i < width * n; i += n) {
          const V factor = softmax_lanes<masked(), capped()>(p + i, key, keys, hn::LoadU(d, first + i),
                                                             hn::LoadU(d, last + i), m + i, sum + i);
          if (begun && !hn::AllTrue(d, hn::Eq(factor, hn::Set(d, T(1)))))
            for (int64_t j = 0; j < head_dim; ++j) {
              T* o = out + j * block + i;
              hn::StoreU(hn::Mul(hn::LoadU(d, o), factor), d, o);
            }
        }
      });
      multiply(head_dim, keys, {v.p, 1, v.stride}, p, block, out, block, width, begun);
    }
    if (!begun)
      for (int64_t i = 0; i < head_dim * block; i += n) hn::StoreU(hn::Zero(d), d, out + i);
    rows_from_lanes(
        out, count, [&](int64_t i) HWY_ATTR { return inverse(hn::LoadU(d, sum + i)); }, at(call.out, spec.out, b, t, h),
        spec.out.time);
    store_lse(m, sum, count);
    std::copy_n(m, count, static_cast<T*>(call.lse) + row_at(b, t, h));
  }
  // 1 / sum, or 0 for an empty one.
  static HWY_INLINE V inverse(V sum) {
    const V one = hn::Set(d, T(1)), zero = hn::Zero(d);
    const auto empty = hn::Eq(sum, zero);
    return hn::IfThenElse(empty, zero, hn::Div(one, hn::IfThenElse(empty, one, sum)));
  }
  static HWY_INLINE void store_lse(T* m, const T* sum, int64_t count) {
    for (int64_t i = 0; i < count; i += n)
      hn::StoreU(hn::Add(hn::LoadU(d, m + i), math::log(d, hn::LoadU(d, sum + i))), d, m + i);
  }

  // ---- forward, keys along the lanes: all queries of the heads that share a head of keys

  void forward_few(int64_t b, int64_t kv_head) const {
    T *q = by_dim(0), *kt = by_dim(1), *values = by_dim(2), *out = by_dim(3), *p = square(0);
    T *m = row(0), *sum = row(1), *factor = row(2);
    const int64_t rows = spec.queries * group, position = call.start(b);
    const KeyRange all = call.row(b), low = keys_of(spec, position, all);
    const KeyRange high = keys_of(spec, position + spec.queries - 1, all);
    for (int64_t i = 0; i < rows; ++i)
      std::copy_n(at(call.q, spec.q, b, i / group, kv_head * group + i % group), head_dim, q + i * head_dim);
    std::fill_n(m, block, lowest);
    std::fill_n(sum, block, T(0));
    bool begun = false;
    for (int64_t key = block_begin(low.first, all); key < high.last; key = block_end(key), begun = true) {
      const int64_t keys = std::min(block_end(key), high.last) - key, width = vectors(keys);
      const T* v = at(call.v, spec.v, b, key, kv_head);
      hn::StoreU(read_in_order(rows_at(call.k, spec.k, b, key, kv_head), keys), d, row(3));
      lanes_from_rows(at(call.k, spec.k, b, key, kv_head), spec.k.time, keys, kt);
      multiply(rows, head_dim, {q, head_dim, 1}, kt, block, p, block, width, false);
      prefetch(rows_at(call.v, spec.v, b, key, kv_head), keys);
      if (block_end(key) >= high.last && kv_head + 1 < spec.kv_heads)  // most likely this thread's next
        prefetch_keys(b, (kv_head + 1) * group, block_begin(low.first, all), high.last);
      with_cap([&](auto capped) HWY_ATTR {
        for (int64_t i = 0; i < rows; ++i) {
          const KeyRange range = keys_of(spec, position + i / group, all);
          const V first = hn::Set(d, T(range.first)), last = hn::Set(d, T(range.last)), none = hn::Neg(hn::Inf(d));
          V largest = hn::Set(d, m[i]);
          for (int64_t k = 0; k < width * n; k += n) {
            V s = score<capped()>(hn::LoadU(d, p + i * block + k));
            s = hn::IfThenElse(within(hn::Iota(d, T(key + k)), first, last), s, none);
            largest = hn::Max(largest, s);
            hn::StoreU(s, d, p + i * block + k);
          }
          factor[i] = m[i];
          m[i] = hn::GetLane(hn::MaxOfLanes(d, largest));
        }
      });
      for (int64_t i = 0; i < rows; i += n)
        hn::StoreU(exp(hn::Sub(hn::LoadU(d, factor + i), hn::LoadU(d, m + i))), d, factor + i);
      for (int64_t i = 0; i < rows; ++i) {
        T* s = p + i * block;
        for (int64_t k = 0; k < width * n; k += n) {
          hn::StoreU(exp(hn::Sub(hn::LoadU(d, s + k), hn::Set(d, m[i]))), d, s + k);
        }
        T total = sum[i] * factor[i];
        for (int64_t k = 0; k < keys; ++k) total += s[k];
        sum[i] = total;
        if (begun && factor[i] != 1)
          for (int64_t j = 0; j < areas.dim; j += n) {
            T* o = out + i * areas.dim + j;
            hn::StoreU(hn::Mul(hn::LoadU(d, o), hn::Set(d, factor[i])), d, o);
          }
      }
      int64_t v_row = spec.v.time;
      if (head_dim % n) {  // whole vectors
        for (int64_t k = 0; k < keys; ++k) {
          std::copy_n(v + k * v_row, head_dim, values + k * areas.dim);
          std::fill_n(values + k * areas.dim + head_dim, areas.dim - head_dim, T(0));
        }
        v = values, v_row = areas.dim;
      }
      multiply(rows, keys, {p, block, 1}, v, v_row, out, areas.dim, vectors(head_dim), begun);
    }
    if (!begun) std::fill_n(out, rows * areas.dim, T(0));
    for (int64_t i = 0; i < rows; i += n) hn::StoreU(inverse(hn::LoadU(d, sum + i)), d, factor + i);
    store_lse(m, sum, rows);
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t t = i / group, h = kv_head * group + i % group;
      T* to = at(call.out, spec.out, b, t, h);
      for (int64_t j = 0; j < head_dim; ++j) to[j] = out[i * areas.dim + j] * factor[i];
      static_cast<T*>(call.lse)[row_at(b, t, h)] = m[i];
    }
  }

  void forward(int64_t item) const {
    if constexpr (in_blocks)
      if (call.brief) return with_heads(item, [&](const auto& heads, auto plain) { forward_heads<plain()>(heads); });
    if (call.few) return forward_few(item / spec.kv_heads, item % spec.kv_heads);
    const int64_t blocks = call.query_blocks(), head = item / blocks;  // the same head for long: its keys stay near
    const int64_t t = (blocks - 1 - item % blocks) * block;            // those with most keys first
    forward_many(head / spec.heads, head % spec.heads, t, std::min(block, spec.queries - t));
  }

  // ---- backward

  // delta of up to a block of queries, which are the lanes
  void delta(int64_t item) const {
    const int64_t blocks = call.query_blocks(), h = item / blocks % spec.heads, b = item / blocks / spec.heads;
    const int64_t t = item % blocks * block, count = std::min(block, spec.queries - t);
    T *out = by_dim(0), *dout = by_dim(1), *deltas = row(0);
    lanes_from_rows(at(call.out_read, spec.out, b, t, h), spec.out.time, count, out);
    lanes_from_rows(at(call.dout, spec.dout, b, t, h), spec.dout.time, count, dout);
    for (int64_t i = 0; i < count; i += n) hn::StoreU(delta(out + i, dout + i), d, deltas + i);
    std::copy_n(deltas, count, static_cast<T*>(call.delta) + row_at(b, t, h));
  }
  HWY_INLINE V delta(const T* out, const T* dout) const {
    V sum = hn::Zero(d);
    for (int64_t j = 0; j < head_dim * block; j += block)
      sum = hn::MulAdd(hn::LoadU(d, out + j), hn::LoadU(d, dout + j), sum);
    return sum;
  }

  // P and dS from a dot q . k and from dP.
  template <bool masked, bool capped, class M>
  HWY_INLINE V gradient(V dot, V dp, V lse, V delta_, const M& seen, V& p) const {
    V s, slope;
    if constexpr (capped) {
      const V y = math::tanh(d, hn::Mul(dot, scale_in_cap));
      s = hn::Mul(cap, y);
      slope = hn::NegMulAdd(y, y, hn::Set(d, T(1)));
    } else {
      s = hn::Mul(dot, scale);
    }
    p = exp(hn::Sub(s, lse));
    if constexpr (masked) p = hn::IfThenElseZero(seen, p);
    V ds = hn::Mul(p, hn::Sub(dp, delta_));
    if constexpr (masked) ds = hn::IfThenElseZero(seen, ds);
    if constexpr (capped) ds = hn::Mul(ds, slope);
    return ds;
  }

  // dk and dv of a block of keys, which are the lanes. With `joint`, also what these keys add to dq, unscaled.
  void backward_keys(int64_t b, int64_t kv_head, int64_t key) const {
    T *kt = by_dim(0), *vt = by_dim(1), *dkt = by_dim(2), *dvt = by_dim(3), *p = square(0), *ds = square(1);
    const KeyRange all = call.row(b);
    const int64_t start = call.start(b), behind = std::min(key + block, spec.keys);
    T *dk = at(call.dk, spec.dk, b, key, kv_head), *dv = at(call.dv, spec.dv, b, key, kv_head);
    for (; key < std::min(all.first, behind); ++key, dk += spec.dk.time, dv += spec.dv.time)
      std::fill_n(dk, head_dim, T(0)), std::fill_n(dv, head_dim, T(0));
    const int64_t keys = std::max<int64_t>(std::min(all.last, behind) - key, 0), width = vectors(keys);
    // The queries that see one of them.
    int64_t begin = 0, end = keys ? spec.queries : 0;
    if (spec.causal) begin = std::max(begin, key - start);
    else if (spec.window) begin = std::max(begin, key - spec.window + 1 - start);
    if (spec.window) end = std::min(end, key + keys - 1 + spec.window - start);
    bool begun = false;
    const Rows k = rows_at(call.k, spec.k, b, key, kv_head);
    if (begin < end) {
      lanes_from_rows(at(call.k, spec.k, b, key, kv_head), spec.k.time, keys, kt);
      lanes_from_rows(at(call.v, spec.v, b, key, kv_head), spec.v.time, keys, vt);
    }
    for (int64_t h = kv_head * group; h < (kv_head + 1) * group; ++h)
      for (int64_t t = begin; t < end; t += block, begun = true) {
        const int64_t count = std::min(block, end - t), position = start + t;
        const KeyRange low = keys_of(spec, position, all), high = keys_of(spec, position + count - 1, all);
        const Rows q = rows_at(call.q, spec.q, b, t, h), dout = rows_at(call.dout, spec.dout, b, t, h);
        const T* lse = static_cast<const T*>(call.lse) + row_at(b, t, h);
        const T* deltas = static_cast<const T*>(call.delta) + row_at(b, t, h);
        multiply(count, head_dim, {q.p, q.stride, 1}, kt, block, p, block, width, false);
        multiply(count, head_dim, {dout.p, dout.stride, 1}, vt, block, ds, block, width, false);
        with_cap_and_mask(key < high.first || key + keys > low.last, [&](auto capped, auto masked) HWY_ATTR {
          for (int64_t i = 0; i < count; ++i) {
            const KeyRange range = keys_of(spec, position + i, all);
            const V first = hn::Set(d, T(range.first)), last = hn::Set(d, T(range.last));
            const V row_lse = hn::Set(d, lse[i]), row_delta = hn::Set(d, deltas[i]);
            for (int64_t j = 0; j < width * n; j += n) {
              T *x = p + i * block + j, *y = ds + i * block + j;
              V weight;
              const auto seen = within(hn::Iota(d, T(key + j)), first, last);
              hn::StoreU(
                  gradient<masked(), capped()>(hn::LoadU(d, x), hn::LoadU(d, y), row_lse, row_delta, seen, weight), d,
                  y);
              hn::StoreU(weight, d, x);
            }
          }
        });
        multiply(head_dim, count, {dout.p, 1, dout.stride}, p, block, dvt, block, width, begun);
        multiply(head_dim, count, {q.p, 1, q.stride}, ds, block, dkt, block, width, begun);
        if (call.joint)
          multiply(count, keys, {ds, block, 1}, k.p, k.stride, at(call.dq, spec.dq, b, t, h), spec.dq.time,
                   head_dim / n, true);
      }
    const int64_t reached = begun ? keys : 0;
    rows_from_lanes(
        dkt, reached, [&](int64_t) HWY_ATTR { return scale; }, dk, spec.dk.time);
    rows_from_lanes(
        dvt, reached, [&](int64_t) HWY_ATTR { return hn::Set(d, T(1)); }, dv, spec.dv.time);
    for (int64_t i = reached; i < behind - key; ++i) {
      std::fill_n(dk + i * spec.dk.time, head_dim, T(0));
      std::fill_n(dv + i * spec.dv.time, head_dim, T(0));
    }
  }

  // dq of queries t .. t + count - 1, which are the lanes.
  void backward_queries(int64_t b, int64_t h, int64_t t, int64_t count) const {
    T *qt = by_dim(0), *dout = by_dim(1), *dq = by_dim(2), *p = square(0), *ds = square(1);
    T *first = row(0), *last = row(1), *lse = row(2), *deltas = row(3);
    const int64_t width = vectors(count), position = call.start(b) + t;
    const KeyRange all = call.row(b), low = keys_of(spec, position, all),
                   high = keys_of(spec, position + count - 1, all);
    lanes_from_rows(at(call.q, spec.q, b, t, h), spec.q.time, count, qt);
    lanes_from_rows(at(call.dout, spec.dout, b, t, h), spec.dout.time, count, dout);
    ranges(position, all, width * n, first, last);
    std::fill_n(lse, width * n, T(0));
    std::fill_n(deltas, width * n, T(0));
    std::copy_n(static_cast<const T*>(call.lse) + row_at(b, t, h), count, lse);
    std::copy_n(static_cast<const T*>(call.delta) + row_at(b, t, h), count, deltas);
    bool begun = false;
    for (int64_t key = block_begin(low.first, all); key < high.last; key = block_end(key), begun = true) {
      const int64_t keys = std::min(block_end(key), high.last) - key;
      const Rows k = rows_at(call.k, spec.k, b, key, h / group), v = rows_at(call.v, spec.v, b, key, h / group);
      multiply(keys, head_dim, {k.p, k.stride, 1}, qt, block, p, block, width, false);
      multiply(keys, head_dim, {v.p, v.stride, 1}, dout, block, ds, block, width, false);
      with_cap_and_mask(key < high.first || key + keys > low.last, [&](auto capped, auto masked) HWY_ATTR {
        for (int64_t i = 0; i < width * n; i += n) {
          const V from = hn::LoadU(d, first + i), to = hn::LoadU(d, last + i);
          const V lane_lse = hn::LoadU(d, lse + i), lane_delta = hn::LoadU(d, deltas + i);
          for (int64_t j = 0; j < keys; ++j) {
            T *x = p + j * block + i, *y = ds + j * block + i;
            V weight;
            const auto seen = within(hn::Set(d, T(key + j)), from, to);
            hn::StoreU(
                gradient<masked(), capped()>(hn::LoadU(d, x), hn::LoadU(d, y), lane_lse, lane_delta, seen, weight), d,
                y);
          }
        }
      });
      multiply(head_dim, keys, {k.p, 1, k.stride}, ds, block, dq, block, width, begun);
    }
    if (!begun)
      for (int64_t i = 0; i < head_dim * block; i += n) hn::StoreU(hn::Zero(d), d, dq + i);
    rows_from_lanes(
        dq, count, [&](int64_t) HWY_ATTR { return scale; }, at(call.dq, spec.dq, b, t, h), spec.dq.time);
  }

  // All gradients of the heads that share a head of keys, five products for each block of keys and queries instead of
  // seven. The additions to each number, and so its bits, are those of the two passes.
  void backward_jointly(int64_t b, int64_t kv_head) const {
    const auto each_dq = [&](const auto& f) {
      for (int64_t h = kv_head * group; h < (kv_head + 1) * group; ++h)
        for (int64_t t = 0; t < spec.queries; ++t) f(at(call.dq, spec.dq, b, t, h));
    };
    each_dq([&](T* dq) { std::fill_n(dq, head_dim, T(0)); });
    for (int64_t key = 0; key < spec.keys; key += block) backward_keys(b, kv_head, key);
    each_dq([&](T* dq) HWY_ATTR {
      for (int64_t j = 0; j < head_dim; j += n) hn::StoreU(hn::Mul(hn::LoadU(d, dq + j), scale), d, dq + j);
    });
  }

  // ---- many heads at once, one per lane: at most `brief` queries, keys and numbers each
  //
  // Nothing goes from lane to lane, there are no masks but for rows of different keys or starts, and keys that no
  // query sees cost nothing. Numbers come and go by fours. Those of n heads are four vectors, a quarter of the heads in
  // each, head i in block i % quarter: transpose_blocks makes of them a vector for each number.

#if HWY_TARGET != HWY_SCALAR
  static constexpr int64_t quarter = n / 4;

  struct Heads {
    int64_t count;                     // their last quarter is repeated to fill the lanes
    int64_t b[n], h[n];                // of head i
    KeyRange keys;                     // from the first to the last that any of them has
    int64_t earliest, latest;          // of starts
    bool alike;                        // their keys and starts are the same; if not:
    KeyRange rows[n];                  // of head i
    T firsts[n], lasts[n], starts[n];  // of the lanes
  };
  HWY_INLINE Heads heads_of(int64_t item) const {
    Heads x;
    const int64_t first = item * n;
    x.count = std::min(n, spec.batch * spec.heads - first);
    x.b[0] = first / spec.heads, x.h[0] = first % spec.heads;
    for (int64_t i = 1; i < n; ++i) {
      const int64_t before = i < x.count ? i - 1 : std::max(i - quarter, int64_t(0)),
                    next = x.h[before] + (i < x.count);
      const bool over = next == spec.heads;
      x.b[i] = x.b[before] + over, x.h[i] = over ? 0 : next;
    }
    x.keys = call.row(x.b[0]), x.earliest = x.latest = call.start(x.b[0]);
    x.alike = true;
    for (int64_t i = 0; i < n; ++i) {
      const KeyRange row = x.rows[i] = call.row(x.b[i]);
      const int64_t start = call.start(x.b[i]);
      x.firsts[lane(i)] = T(row.first), x.lasts[lane(i)] = T(row.last), x.starts[lane(i)] = T(start);
      x.alike = x.alike && row.first == x.keys.first && row.last == x.keys.last && start == x.earliest;
      x.keys = {std::min(x.keys.first, row.first), std::max(x.keys.last, row.last)};
      x.earliest = std::min(x.earliest, start), x.latest = std::max(x.latest, start);
      if (!call.lengths && !call.starts && !call.firsts) break;
    }
    return x;
  }
  static int64_t lane(int64_t head) { return head % quarter * 4 + head / quarter; }
  // The keys that query t of any of the heads sees.
  KeyRange range(const Heads& x, int64_t t) const {
    return {keys_of(spec, x.earliest + t, x.keys).first, keys_of(spec, x.latest + t, x.keys).last};
  }
  // Whether query t of each head sees a key.
  auto sees(const Heads& x, int64_t t, int64_t key) const {
    const V begin = x.alike ? hn::Set(d, T(x.keys.first)) : hn::LoadU(d, x.firsts);
    const V end = x.alike ? hn::Set(d, T(x.keys.last)) : hn::LoadU(d, x.lasts);
    const V start = x.alike ? hn::Set(d, T(x.earliest)) : hn::LoadU(d, x.starts);
    const V p = hn::Add(start, hn::Set(d, T(t))), next = hn::Add(p, hn::Set(d, T(1)));
    const V window = hn::Set(d, T(spec.window));
    return within(hn::Set(d, T(key)), spec.window ? hn::Max(begin, hn::Sub(next, window)) : begin,
                  spec.causal   ? hn::Min(end, next)
                  : spec.window ? hn::Min(end, hn::Add(p, window))
                                : end);
  }

  // Where the heads of a tensor begin; where those of a quarter are adjacent, only its first one.
  struct Places {
    T* p[n];
    int64_t time;
    bool adjacent;
  };
  HWY_INLINE Places places(const Heads& x, const void* tensor, const AttentionSpec::Strides& s, bool plain,
                           int64_t each = 1) const {
    Places y;
    y.time = s.time;
    y.adjacent = quarter == 1 || (plain && each == 1 && s.head == 4 && spec.heads % quarter == 0);
    for (int64_t i = 0; i < n; i += y.adjacent ? quarter : 1)
      y.p[i] = const_cast<T*>(at(tensor, s, x.b[i], 0, each == 1 ? x.h[i] : x.h[i] / each));
    return y;
  }

  // Numbers offset .. offset + 3 of each head.
  static HWY_INLINE void load(const Places& x, int64_t offset, V (&v)[4]) {
    unrolled<4>([&](auto i) HWY_ATTR {
      T* const* p = x.p + int64_t(i) * quarter;
      v[i] = x.adjacent ? hn::LoadU(d, *p + offset) : load_blocks([&](int64_t k) { return p[k / 4] + offset; });
    });
    transpose_blocks(v[0], v[1], v[2], v[3]);
  }
  // Of a key, which is not read but 0 where a head does not have it: none that is asked for if all are alike.
  template <bool plain>
  HWY_INLINE void load_key(const Heads& heads, const Places& x, int64_t key, int64_t j, V (&v)[4]) const {
    static constexpr T zeros[4]{};
    const int64_t offset = key * x.time + j;
    if (plain || heads.alike) return load(x, offset, v);
    unrolled<4>([&](auto i) HWY_ATTR {
      v[i] = load_blocks([&](int64_t k) {
        const int64_t head = int64_t(i) * quarter + k / 4;
        return key >= heads.rows[head].first && key < heads.rows[head].last ? x.p[head] + offset : zeros;
      });
    });
    transpose_blocks(v[0], v[1], v[2], v[3]);
  }
  static HWY_INLINE void store(const Heads& heads, const Places& x, int64_t offset, V (&v)[4]) {
    transpose_blocks(v[0], v[1], v[2], v[3]);
    unrolled<4>([&](auto i) HWY_ATTR {
      T* const* p = x.p + int64_t(i) * quarter;
      const int64_t left = heads.count - int64_t(i) * quarter;
      if (x.adjacent && left > 0) hn::StoreU(v[i], d, *p + offset);
      else store_blocks(v[i], 4 * left, [&](int64_t k) { return p[k / 4] + offset; });
    });
  }

  // sum += x[0] y[0] + ... + x[3] y[3], y being vectors in memory
  static HWY_INLINE V dot(const V (&x)[4], const T* y, V sum) {
    unrolled<4>([&](auto i) HWY_ATTR { sum = hn::MulAdd(x[i], hn::Load(d, y + int64_t(i) * n), sum); });
    return sum;
  }
  // sum[0 .. 3] += x y[0 .. 3]
  static HWY_INLINE void add(V x, const T* y, V (&sum)[4]) {
    unrolled<4>([&](auto i) HWY_ATTR { sum[i] = hn::MulAdd(x, hn::Load(d, y + int64_t(i) * n), sum[i]); });
  }
  static HWY_INLINE void keep(const V (&v)[4], T* to) {
    unrolled<4>([&](auto i) HWY_ATTR { hn::Store(v[i], d, to + int64_t(i) * n); });
  }
  static HWY_INLINE void fetch(const T* from, V (&v)[4]) {
    unrolled<4>([&](auto i) HWY_ATTR { v[i] = hn::Load(d, from + int64_t(i) * n); });
  }
  static HWY_INLINE void clear(V (&v)[4]) {
    unrolled<4>([&](auto i) HWY_ATTR { v[i] = hn::Zero(d); });
  }
  static HWY_INLINE void multiply(V (&v)[4], V factor) {
    unrolled<4>([&](auto i) HWY_ATTR { v[i] = hn::Mul(v[i], factor); });
  }

  // Plain: heads that are alike, and no soft cap. Of the numbers of a head the last four, often all there are, go along
  // with what is done to scores; those before them go by fours, as part of scores before it and of results after it.
  template <bool plain>
  HWY_NOINLINE HWY_FLATTEN void forward_heads(const Heads& heads) const {
    const int64_t queries = spec.queries, row = head_dim * n, tail = head_dim - 4;
    const Places q = places(heads, call.q, spec.q, plain), k = places(heads, call.k, spec.k, plain, group),
                 v = places(heads, call.v, spec.v, plain, group), out = places(heads, call.out, spec.out, plain);
    T *ks = scratch, *vs = ks + spec.keys * row + n, *p = vs + spec.keys * row + n, *lse = p + spec.keys * n;
    for (int64_t key = heads.keys.first; key < heads.keys.last; ++key)
      for (int64_t j = 0; j < head_dim; j += 4) {
        V x[4];
        load_key<plain>(heads, k, key, j, x), keep(x, ks + key * row + j * n);
        load_key<plain>(heads, v, key, j, x), keep(x, vs + key * row + j * n);
      }
    for (int64_t t = 0; t < queries; ++t) {
      const auto [first, last] = range(heads, t);
      V x[4], sum = hn::Zero(d), m = hn::Set(d, lowest);
      for (int64_t j = 0; j < tail; j += 4) {
        load(q, t * q.time + j, x);
        for (int64_t key = first; key < last; ++key) {
          const V before = j ? hn::Load(d, p + key * n) : hn::Zero(d);
          hn::Store(dot(x, ks + key * row + j * n, before), d, p + key * n);
        }
      }
      load(q, t * q.time + tail, x);
      for (int64_t key = first; key < last; ++key) {
        const V y = dot(x, ks + key * row + tail * n, tail ? hn::Load(d, p + key * n) : hn::Zero(d));
        V s;
        if constexpr (plain) s = score<false>(y);
        else
          s = hn::IfThenElse(sees(heads, t, key), spec.soft_cap != 0 ? score<true>(y) : score<false>(y),
                             hn::Neg(hn::Inf(d)));
        m = hn::Max(m, s);
        hn::Store(s, d, p + key * n);
      }
      clear(x);
      for (int64_t key = first; key < last; ++key) {
        const V y = exp(hn::Sub(hn::Load(d, p + key * n), m));
        sum = hn::Add(sum, y);
        add(y, vs + key * row + tail * n, x);
        hn::Store(y, d, p + key * n);
      }
      const V factor = inverse(sum);
      multiply(x, factor), store(heads, out, t * out.time + tail, x);
      for (int64_t j = 0; j < tail; j += 4) {
        clear(x);
        for (int64_t key = first; key < last; ++key) add(hn::Load(d, p + key * n), vs + key * row + j * n, x);
        multiply(x, factor), store(heads, out, t * out.time + j, x);
      }
      hn::Store(hn::Add(m, math::log(d, sum)), d, lse + t * n);
    }
    const Places to = places(heads, call.lse, lse_strides(), false);
    int64_t t = 0;
    for (; t < queries - 3; t += 4) {
      V x[4];
      fetch(lse + t * n, x), store(heads, to, t, x);
    }
    for (; t < queries; ++t)
      for (int64_t i = 0; i < heads.count; ++i) to.p[i][t] = lse[t * n + lane(i)];
  }
  AttentionSpec::Strides lse_strides() const { return {spec.heads * spec.queries, 1, spec.queries}; }

  template <bool plain>
  HWY_NOINLINE HWY_FLATTEN void backward_heads(const Heads& heads) const {
    const int64_t queries = spec.queries, row = head_dim * n, tail = head_dim - 4, area = queries * row + n;
    T *qs = scratch, *douts = qs + area, *dqs = douts + area, *p = dqs + area, *ds = p + queries * n;
    T *lse = ds + queries * n, *deltas = lse + queries * n, *kept = deltas + queries * n;
    const Places k = places(heads, call.k, spec.k, plain), v = places(heads, call.v, spec.v, plain);
    const Places dk = places(heads, call.dk, spec.dk, plain), dv = places(heads, call.dv, spec.dv, plain);
    KeyRange ranges_[brief];
    {
      const Places q = places(heads, call.q, spec.q, plain), out = places(heads, call.out_read, spec.out, plain);
      const Places dout = places(heads, call.dout, spec.dout, plain);
      for (int64_t t = 0; t < queries; ++t) {
        ranges_[t] = range(heads, t);
        V sum = hn::Zero(d);
        for (int64_t j = 0; j < head_dim; j += 4) {
          const int64_t place = t * row + j * n;
          V x[4];
          load(q, t * q.time + j, x), keep(x, qs + place);
          load(dout, t * dout.time + j, x), keep(x, douts + place);
          load(out, t * out.time + j, x), sum = dot(x, douts + place, sum);
          clear(x), keep(x, dqs + place);
        }
        hn::Store(sum, d, deltas + t * n);
      }
      const Places from = places(heads, call.lse, lse_strides(), false);
      int64_t t = 0;
      for (; t < queries - 3; t += 4) {
        V x[4];
        load(from, t, x), keep(x, lse + t * n);
      }
      for (; t < queries; ++t)
        for (int64_t i = 0; i < n; ++i) lse[t * n + lane(i)] = from.p[i][t];
    }
    int64_t begin = 0, end = 0;  // the queries that see the key
    for (int64_t key = 0; key < spec.keys; ++key) {
      while (begin < queries && ranges_[begin].last <= key) ++begin;
      while (end < queries && ranges_[end].first <= key) ++end;
      V key4[4], value4[4], dkey[4], dvalue[4];
      const int64_t to_dk = key * dk.time, to_dv = key * dv.time;
      if (begin >= end) {
        for (int64_t j = 0; j < head_dim; j += 4) {
          clear(dkey), store(heads, dk, to_dk + j, dkey);
          clear(dvalue), store(heads, dv, to_dv + j, dvalue);
        }
        continue;
      }
      for (int64_t j = 0; j < tail; j += 4) {
        load_key<plain>(heads, k, key, j, key4), keep(key4, kept + j * n);
        load_key<plain>(heads, v, key, j, value4);
        for (int64_t t = begin; t < end; ++t) {
          T *x = p + t * n, *y = ds + t * n;
          hn::Store(dot(key4, qs + t * row + j * n, j ? hn::Load(d, x) : hn::Zero(d)), d, x);
          hn::Store(dot(value4, douts + t * row + j * n, j ? hn::Load(d, y) : hn::Zero(d)), d, y);
        }
      }
      // What a query adds to dk and dv and gets for dq: four numbers of each.
      const auto spread = [&](V weight, V slope, int64_t place) HWY_ATTR {
        V dquery[4];
        fetch(dqs + place, dquery);
        add(weight, douts + place, dvalue);
        add(slope, qs + place, dkey);
        unrolled<4>([&](auto i) HWY_ATTR { dquery[i] = hn::MulAdd(slope, key4[i], dquery[i]); });
        keep(dquery, dqs + place);
      };
      const auto finish = [&](int64_t j) HWY_ATTR {
        multiply(dkey, scale);
        store(heads, dk, to_dk + j, dkey), store(heads, dv, to_dv + j, dvalue);
      };
      load_key<plain>(heads, k, key, tail, key4);
      load_key<plain>(heads, v, key, tail, value4);
      clear(dkey), clear(dvalue);
      for (int64_t t = begin; t < end; ++t) {
        const int64_t place = t * row + tail * n;
        const V x = dot(key4, qs + place, tail ? hn::Load(d, p + t * n) : hn::Zero(d));
        const V y = dot(value4, douts + place, tail ? hn::Load(d, ds + t * n) : hn::Zero(d));
        const V row_lse = hn::Load(d, lse + t * n), row_delta = hn::Load(d, deltas + t * n);
        V weight, slope;
        if constexpr (plain) {
          slope = gradient<false, false>(x, y, row_lse, row_delta, true, weight);
        } else {
          const auto seen = sees(heads, t, key);
          slope = spec.soft_cap != 0 ? gradient<true, true>(x, y, row_lse, row_delta, seen, weight)
                                     : gradient<true, false>(x, y, row_lse, row_delta, seen, weight);
        }
        spread(weight, slope, place);
        hn::Store(weight, d, p + t * n);
        hn::Store(slope, d, ds + t * n);
      }
      finish(tail);
      for (int64_t j = 0; j < tail; j += 4) {
        fetch(kept + j * n, key4), clear(dkey), clear(dvalue);
        for (int64_t t = begin; t < end; ++t) spread(hn::Load(d, p + t * n), hn::Load(d, ds + t * n), t * row + j * n);
        finish(j);
      }
    }
    const Places dq = places(heads, call.dq, spec.dq, plain);
    for (int64_t t = 0; t < queries; ++t)
      for (int64_t j = 0; j < head_dim; j += 4) {
        V x[4];
        fetch(dqs + t * row + j * n, x), multiply(x, scale), store(heads, dq, t * dq.time + j, x);
      }
  }

  // f with an item's heads, and whether they are plain as a type.
  template <class F>
  HWY_INLINE void with_heads(int64_t item, const F& f) const {
    const Heads heads = heads_of(item);
    if (heads.alike && spec.soft_cap == 0) f(heads, std::true_type());
    else f(heads, std::false_type());
  }
#endif

  // Unless at once: first all blocks of keys, then all of queries, head by head, those with most to do first.
  void backward(int64_t item) const {
    if constexpr (in_blocks)
      if (call.brief) return with_heads(item, [&](const auto& heads, auto plain) { backward_heads<plain()>(heads); });
    if (call.joint) return backward_jointly(item / spec.kv_heads, item % spec.kv_heads);
    const int64_t key_blocks = call.key_blocks(), key_items = spec.batch * spec.kv_heads * key_blocks;
    if (item < key_items) {
      const int64_t head = item / key_blocks;
      return backward_keys(head / spec.kv_heads, head % spec.kv_heads, item % key_blocks * block);
    }
    const int64_t blocks = call.query_blocks(), head = (item - key_items) / blocks;
    const int64_t t = (blocks - 1 - (item - key_items) % blocks) * block;
    backward_queries(head / spec.heads, head % spec.heads, t, std::min(block, spec.queries - t));
  }
};

template <class T>
Attention::Kernels kernels_of() {
  using Call = Attention::Call;
  constexpr int lanes = int(hn::MaxLanes(hn::ScalableTag<T>()));
  return {[](const Call& call, int64_t begin, int64_t end, std::byte* scratch) {
            const Worker<T> worker(call, scratch);
            for (int64_t i = begin; i < end; ++i) worker.forward(i);
          },
          [](const Call& call, int64_t begin, int64_t end, std::byte* scratch) {
            const Worker<T> worker(call, scratch);
            for (int64_t i = begin; i < end; ++i) worker.delta(i);
          },
          [](const Call& call, int64_t begin, int64_t end, std::byte* scratch) {
            const Worker<T> worker(call, scratch);
            for (int64_t i = begin; i < end; ++i) worker.backward(i);
          },
          lanes, Worker<T>::in_blocks};
}
Attention::Kernels attention_kernels(bool wide) { return wide ? kernels_of<double>() : kernels_of<float>(); }

}  // namespace HWY_NAMESPACE
}  // namespace dense
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace dense {

namespace {

Attention::Kernels kernels(Dtype type, Isa isa) {
  const bool wide = type == Dtype::f64;
#if HWY_TARGETS & HWY_AVX3
  if (isa == Isa::avx512) return N_AVX3::attention_kernels(wide);
#endif
#if HWY_TARGETS & HWY_AVX2
  if (isa == Isa::avx2) return N_AVX2::attention_kernels(wide);
#endif
  return HWY_NAMESPACE::attention_kernels(wide);
}

size_t delta_bytes(const AttentionSpec& spec) {
  const size_t bytes = size_t(spec.batch * spec.heads * spec.queries) * size_of(spec.type);
  return (bytes + 63) / 64 * 64;
}

}  // namespace

Attention::Attention(const AttentionSpec& spec, Isa isa, int threads) : spec_(spec), threads_(threads) {
  const auto check = [](bool good, const char* what, int64_t got) {
    if (!good) fail("attention: expected ", what, ", got ", got);
  };
  check(spec.batch >= 0, "a batch of 0 or more", spec.batch);
  check(spec.queries >= 0, "0 or more queries", spec.queries);
  check(spec.keys >= 0 && spec.keys < 1 << 24, "0 to 2 ** 24 - 1 keys", spec.keys);
  check(spec.kv_heads >= 1, "at least 1 head of keys", spec.kv_heads);
  check(spec.heads >= 1 && spec.heads % spec.kv_heads == 0, "a multiple of kv_heads as heads", spec.heads);
  check(spec.head_dim >= 1, "a head_dim of at least 1", spec.head_dim);
  check(spec.window >= 0, "a window of 0 or more", spec.window);
  check(threads >= 1, "at least 1 thread", threads);
  if (spec.type != Dtype::f32 && spec.type != Dtype::f64) fail("attention: expected f32 or f64, got ", name(spec.type));
  kernels_ = kernels(spec.type, isa);
  // An item of few heads costs as much as one of many: as much, as measured, as so many of them one by one.
  const int64_t worth = std::min<int64_t>(kernels_.lanes / 2, spec.keys * (spec.head_dim + spec.queries) / 32);
  brief_ = kernels_.in_blocks && spec.queries <= brief && spec.keys <= brief && spec.head_dim % 4 == 0 &&
           spec.head_dim <= brief && spec.batch * spec.heads >= worth;
  thread_bytes_ = (size_t(Areas(spec.head_dim).size()) * size_of(spec.type) + 63) / 64 * 64;
}

size_t Attention::scratch_bytes() const { return delta_bytes(spec_) + size_t(threads_) * thread_bytes_; }

// Of `items` of equal cost, in ns or so, as many make a task as are worth the handing out.
void Attention::run(Run kernel, const Call& call, int64_t items, int64_t cost, std::byte* scratch,
                    Threads& threads) const {
  const int64_t worth = 5000, most = std::max(items, int64_t(1));
  const int64_t each =
      items * cost < 2 * worth ? most : std::clamp(worth / std::max(cost, int64_t(1)), int64_t(1), most);
  std::byte* const own = scratch + delta_bytes(spec_);
  threads.run(int((items + each - 1) / each), [&](int task, int thread) {
    kernel(call, task * each, std::min((task + 1) * each, items), own + size_t(thread) * thread_bytes_);
  });
}

void Attention::forward(const void* q, const void* k, const void* v, const int32_t* lengths, const int32_t* starts,
                        const int32_t* firsts, void* out, void* lse, std::byte* scratch, Threads& threads) const {
  const AttentionSpec& s = spec_;
  Call call{s,   lengths, starts,  firsts,  q,       k,       v,  nullptr, nullptr,
            out, lse,     nullptr, nullptr, nullptr, nullptr, {}, {},      {}};
  call.brief = brief_;
  call.few = !brief_ && s.queries <= 4 && s.queries * call.group() <= block;
  const int64_t items = brief_     ? (s.batch * s.heads + kernels_.lanes - 1) / kernels_.lanes
                        : call.few ? s.batch * s.kv_heads
                                   : s.batch * s.heads * call.query_blocks();
  if (!call.few) {
    const int64_t lanes = std::min(block, s.queries);
    return run(kernels_.forward, call, items, 50 + lanes * s.keys * (s.head_dim + 8) / (brief_ ? 4 : 32), scratch,
               threads);
  }
  int64_t keys = 0;  // of the longest row: a cache may hold far fewer than it has room for. Each is read from memory.
  for (int64_t b = 0; b < s.batch; ++b) {
    const auto [first, last] = keys_of(s, call.start(b) + s.queries - 1, call.row(b));
    keys = std::max(keys, last - first);
  }
  const int64_t lanes = s.queries * call.group();
  run(kernels_.forward, call, items, 50 + keys * (s.head_dim + 8) * (lanes + 16) / 32, scratch, threads);
}

void Attention::backward(const void* q, const void* k, const void* v, const void* out, const void* lse,
                         const void* dout, const int32_t* lengths, const int32_t* starts, const int32_t* firsts,
                         void* dq, void* dk, void* dv, std::byte* scratch, Threads& threads) const {
  const AttentionSpec& s = spec_;
  Call call{s,       lengths, starts, firsts, q,  k,  v, dout, out, nullptr, const_cast<void*>(lse),
            scratch, dq,      dk,     dv,     {}, {}, {}};
  call.brief = brief_ && call.group() == 1;
  // Five products instead of seven if that leaves no more than two of seven threads idle in the end.
  const int64_t jobs = s.batch * s.kv_heads, rounds = (jobs + threads_ - 1) / threads_;
  call.joint = s.head_dim % kernels_.lanes == 0 && rounds * threads_ * 5 <= jobs * 7;
  if (!call.brief)
    run(kernels_.delta, call, s.batch * s.heads * call.query_blocks(), 20 + std::min(block, s.queries) * s.head_dim / 8,
        scratch, threads);
  const int64_t rows = call.brief || !call.joint ? std::min(block, s.queries) : s.queries * call.group();
  const int64_t items = call.brief   ? (s.batch * s.heads + kernels_.lanes - 1) / kernels_.lanes
                        : call.joint ? jobs
                                     : s.batch * (s.kv_heads * call.key_blocks() + s.heads * call.query_blocks());
  run(kernels_.backward, call, items, 100 + rows * s.keys * (s.head_dim + 8) / (call.brief ? 2 : 16), scratch, threads);
}

}  // namespace dense
#endif  // HWY_ONCE
