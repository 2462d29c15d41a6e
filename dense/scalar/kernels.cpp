#include "dense/scalar/kernels.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string_view>

#include "dense/scalar/error.h"
#include "dense/scalar/rules.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "dense/scalar/kernels.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

#include "dense/scalar/exact.h"

HWY_BEFORE_NAMESPACE();
namespace dense {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::ScalableTag<double>;
using Vec = hn::Vec<D>;
using Mask = hn::Mask<D>;
constexpr D d;

HWY_INLINE int lanes_of_vector() { return int(hn::Lanes(d)); }

// Stores the lanes of v that are among the first n.
HWY_INLINE void store(Vec v, double* p, int n) {
  if (n >= lanes_of_vector()) hn::StoreU(v, d, p);
  else hn::BlendedStore(v, hn::FirstN(d, size_t(n)), d, p);
}

// An operand of the i-th operation of an instruction, as a row of values or one value for the whole row.
struct Row {
  const double* p;
  bool adjacent;
  HWY_INLINE Vec load(int at) const { return adjacent ? hn::LoadU(d, p + at) : hn::Set(d, *p); }
};

struct Machine {
  const Code& code;
  double* memory;
  int width;
};

// Where rows of one instruction lie: over its operations when width is 1, else over the lanes of operation i.
struct Frame {
  const Machine& m;
  int i, length;
  HWY_INLINE Row row(int32_t place) const {
    if (m.width == 1) return {m.memory + (place >> 1), bool(place & 1)};
    const int32_t slot = (place >> 1) + (place & 1 ? i : 0);
    return {m.memory + int64_t(slot) * m.width, slot < m.code.first_shared || slot >= m.code.first_result};
  }
  HWY_INLINE double* out(const Instruction& ins) const { return m.memory + (int64_t(ins.out) + i) * m.width; }
};

template <class F>
HWY_INLINE void each_row(const Instruction& ins, const Machine& m, const F& f) {
  if (m.width == 1) return f(Frame{m, 0, ins.count});
  for (int i = 0; i < ins.count; ++i) f(Frame{m, i, m.width});
}

template <int Arity, class F>
HWY_INLINE void pointwise(const Instruction& ins, const int32_t* args, const Machine& m, const F& f) {
  each_row(ins, m, [&](const Frame& frame) HWY_ATTR {
    double* out = frame.out(ins);
    const Row a = frame.row(args[0]), b = Arity > 1 ? frame.row(args[1]) : a, c = Arity > 2 ? frame.row(args[2]) : a;
    for (int at = 0; at < frame.length; at += lanes_of_vector()) {
      Vec y;
      if constexpr (Arity == 1) y = f(a.load(at));
      if constexpr (Arity == 2) y = f(a.load(at), b.load(at));
      if constexpr (Arity == 3) y = f(a.load(at), b.load(at), c.load(at));
      store(y, out + at, frame.length - at);
    }
  });
}

// Operations without a vector form: the table's own function.
void by_table(const Instruction& ins, const int32_t* args, const Machine& m) {
  const auto value = rule(ins.op).value;
  each_row(ins, m, [&](const Frame& frame) {
    double* out = frame.out(ins);
    Row rows[3];
    for (int k = 0; k < ins.terms; ++k) rows[k] = frame.row(args[k]);
    for (int at = 0; at < frame.length; ++at) {
      double x[3];
      for (int k = 0; k < ins.terms; ++k) x[k] = rows[k].p[rows[k].adjacent ? at : 0];
      out[at] = value(x, ins.terms);
    }
  });
}

// Accumulates all terms into V vectors of results side by side: each result adds its terms in order.
template <int V, class F>
HWY_INLINE void accumulate(Vec start, double* out, int length, const F& term, int terms) {
  Vec total[V];
  for (int v = 0; v < V; ++v) total[v] = start;
  for (int k = 0; k < terms; ++k) term(k, total, std::integral_constant<int, V>());
  const int n = lanes_of_vector();
  for (int v = 0; v < V - 1; ++v) hn::StoreU(total[v], d, out + v * n);
  store(total[V - 1], out + (V - 1) * n, length - (V - 1) * n);
}

// Splits a row of results into blocks of at most four vectors. term(at) is the function that adds the k-th terms.
template <class F>
HWY_INLINE void reduce(Vec start, double* out, int length, int terms, const F& term) {
  const int n = lanes_of_vector();
  for (int at = 0; at < length; at += 4 * n) {
    const int left = length - at;
    const auto here = term(at);
    if (left > 3 * n) accumulate<4>(start, out + at, left, here, terms);
    else if (left > 2 * n) accumulate<3>(start, out + at, left, here, terms);
    else if (left > n) accumulate<2>(start, out + at, left, here, terms);
    else accumulate<1>(start, out + at, left, here, terms);
  }
}

// The dots of P instructions of one shape, as V vectors of results each. Every accumulator waits for its last addition;
// P * V of them keep the machine busy meanwhile.
template <int P, int V>
HWY_INLINE void dot_rows(const Instruction* ins, const int32_t* args, double* memory, int at) {
  const int n = lanes_of_vector();
  Vec total[P][V];
  for (int p = 0; p < P; ++p)
    for (int v = 0; v < V; ++v) total[p][v] = hn::Zero(d);
  for (int k = 0; k < ins->terms; k += 2)
    for (int p = 0; p < P; ++p) {
      const int32_t* places = args + ins[p].args + k;
      const double* row = memory + (places[0] >> 1) + at;
      const Vec same = hn::Set(d, memory[places[1] >> 1]);
      for (int v = 0; v < V; ++v) total[p][v] = hn::Add(total[p][v], hn::Mul(hn::LoadU(d, row + v * n), same));
    }
  for (int p = 0; p < P; ++p) {
    double* out = memory + ins[p].out + at;
    for (int v = 0; v < V - 1; ++v) hn::StoreU(total[p][v], d, out + v * n);
    store(total[p][V - 1], out + (V - 1) * n, ins->count - at - (V - 1) * n);
  }
}

template <int P>
HWY_NOINLINE void dot_rows(const Instruction* ins, const int32_t* args, double* memory) {
  const int n = lanes_of_vector();
  int at = 0;
  for (; ins->count - at > 4 * n; at += 4 * n) dot_rows<P, 4>(ins, args, memory, at);
  switch ((ins->count - at + n - 1) / n) {
    case 4: return dot_rows<P, 4>(ins, args, memory, at);
    case 3: return dot_rows<P, 3>(ins, args, memory, at);
    case 2: return dot_rows<P, 2>(ins, args, memory, at);
    default: return dot_rows<P, 1>(ins, args, memory, at);
  }
}

HWY_NOINLINE void dot(const Instruction& ins, const int32_t* args, const Machine& m) {
  each_row(ins, m, [&](const Frame& frame) HWY_ATTR {
    const int n = lanes_of_vector();
    reduce(hn::Zero(d), frame.out(ins), frame.length, ins.terms / 2, [&](int at) HWY_ATTR {
      return [&frame, args, at, n](int k, Vec* total, auto vectors) HWY_ATTR {
        const Row a = frame.row(args[2 * k]), b = frame.row(args[2 * k + 1]);
        if (a.adjacent && b.adjacent) {
          for (int v = 0; v < vectors; ++v)
            total[v] = hn::Add(total[v], hn::Mul(hn::LoadU(d, a.p + at + v * n), hn::LoadU(d, b.p + at + v * n)));
        } else {
          const Vec same = hn::Set(d, a.adjacent ? *b.p : *a.p);
          const Row other = a.adjacent ? a : b;
          for (int v = 0; v < vectors; ++v) total[v] = hn::Add(total[v], hn::Mul(other.load(at + v * n), same));
        }
      };
    });
  });
}

template <class F>
HWY_INLINE void fold(const Instruction& ins, const int32_t* args, const Machine& m, Vec start, const F& f) {
  each_row(ins, m, [&](const Frame& frame) HWY_ATTR {
    const int n = lanes_of_vector();
    reduce(start, frame.out(ins), frame.length, ins.terms, [&](int at) HWY_ATTR {
      return [&frame, &f, args, at, n](int k, Vec* total, auto vectors) HWY_ATTR {
        const Row x = frame.row(args[k]);
        for (int v = 0; v < vectors; ++v) total[v] = f(total[v], x.load(at + v * n));
      };
    });
  });
}

void at(const Instruction& ins, const int32_t* args, const Machine& m) {
  each_row(ins, m, [&](const Frame& frame) {
    double* out = frame.out(ins);
    const Row index = frame.row(args[0]);
    for (int l = 0; l < frame.length; ++l) {
      const size_t i = checked_index(index.p[index.adjacent ? l : 0], size_t(ins.terms - 1));
      const Row x = frame.row(args[1 + i]);
      out[l] = x.p[x.adjacent ? l : 0];
    }
  });
}

void gather(const Instruction& ins, const int32_t* args, const Machine& m) {
  double* to = m.memory + int64_t(ins.out) * m.width;
  if (m.width == 1) {
    const hn::RebindToSigned<D> places;
    const hn::Rebind<int32_t, D> narrow;
    int i = 0;
    for (; i + lanes_of_vector() <= ins.count; i += lanes_of_vector())
      hn::StoreU(hn::GatherIndex(d, m.memory, hn::PromoteTo(places, hn::LoadU(narrow, args + i))), d, to + i);
    for (; i < ins.count; ++i) to[i] = m.memory[args[i]];
  } else
    for (int i = 0; i < ins.count; ++i, to += m.width) std::copy_n(m.memory + int64_t(args[i]) * m.width, m.width, to);
}

#if HWY_NATIVE_FMA
// a / b for many a: two Newton steps from a / b ~ a * (1 / b) end at the correctly rounded quotient, as b's reciprocal is
// correctly rounded (Markstein 1990) and nothing comes near underflow or overflow; a zero keeps its sign.
HWY_INLINE Vec quotient(Vec a, Vec b, Vec reciprocal_of_b) {
  Vec y = hn::Mul(a, reciprocal_of_b);
  const Vec zero_or_y = y;
  y = hn::MulAdd(hn::NegMulAdd(y, b, a), reciprocal_of_b, y);
  y = hn::MulAdd(hn::NegMulAdd(y, b, a), reciprocal_of_b, y);
  const Vec size = hn::Abs(a);
  const Mask zero = hn::Eq(a, hn::Zero(d));
  const Mask usual = hn::And(hn::Ge(size, hn::Set(d, 0x1p-800)), hn::Le(size, hn::Set(d, 0x1p800)));
  if (!hn::AllTrue(d, hn::Or(usual, zero))) return hn::Div(a, b);
  return hn::IfThenElse(zero, zero_or_y, y);
}
#endif

void div(const Instruction& ins, const int32_t* args, const Machine& m) {
  each_row(ins, m, [&](const Frame& frame) HWY_ATTR {
    double* out = frame.out(ins);
    const Row a = frame.row(args[0]), b = frame.row(args[1]);
    int at = 0;
#if HWY_NATIVE_FMA
    const double size = std::abs(*b.p);
    if (!b.adjacent && size > 0x1p-100 && size < 0x1p100)
      for (const Vec same = hn::Set(d, *b.p), inverse = hn::Set(d, 1 / *b.p); at < frame.length;
           at += lanes_of_vector())
        store(quotient(a.load(at), same, inverse), out + at, frame.length - at);
#endif
    for (; at < frame.length; at += lanes_of_vector())
      store(hn::Div(a.load(at), b.load(at)), out + at, frame.length - at);
  });
}

HWY_INLINE Vec one_if(Mask m) { return hn::IfThenElseZero(m, hn::Set(d, 1)); }

void execute(const Code& code, double* memory, int width) {
  const Machine m{code, memory, width};
  for (const Instruction *next = code.instructions.data(), *end = next + code.instructions.size(); next != end;
       ++next) {
    const Instruction& ins = *next;
    const int32_t* args = code.args.data() + ins.args;
    const auto map1 = [&](const auto& f) HWY_ATTR { pointwise<1>(ins, args, m, f); };
    const auto map2 = [&](const auto& f) HWY_ATTR { pointwise<2>(ins, args, m, f); };
    // clang-format off
    switch (ins.op) {
      case Op::add: map2([](Vec a, Vec b) HWY_ATTR { return hn::Add(a, b); }); break;
      case Op::sub: map2([](Vec a, Vec b) HWY_ATTR { return hn::Sub(a, b); }); break;
      case Op::mul: map2([](Vec a, Vec b) HWY_ATTR { return hn::Mul(a, b); }); break;
      case Op::div: div(ins, args, m); break;
      case Op::neg: map1([](Vec a) HWY_ATTR { return hn::Neg(a); }); break;
      case Op::sqrt: map1([](Vec a) HWY_ATTR { return hn::Sqrt(a); }); break;
      case Op::abs: map1([](Vec a) HWY_ATTR { return hn::Abs(a); }); break;
      case Op::relu: map1([](Vec a) HWY_ATTR { return hn::IfThenElseZero(hn::Gt(a, hn::Zero(d)), a); }); break;
      case Op::min: map2([](Vec a, Vec b) HWY_ATTR { return hn::IfThenElse(hn::Lt(b, a), b, a); }); break;
      case Op::max: map2([](Vec a, Vec b) HWY_ATTR { return hn::IfThenElse(hn::Gt(b, a), b, a); }); break;
      case Op::less: map2([](Vec a, Vec b) HWY_ATTR { return one_if(hn::Lt(a, b)); }); break;
      case Op::less_equal: map2([](Vec a, Vec b) HWY_ATTR { return one_if(hn::Le(a, b)); }); break;
      case Op::equal: map2([](Vec a, Vec b) HWY_ATTR { return one_if(hn::Eq(a, b)); }); break;
      case Op::where:
        pointwise<3>(ins, args, m, [](Vec c, Vec a, Vec b) HWY_ATTR {
          return hn::IfThenElse(hn::Eq(c, hn::Zero(d)), b, a);
        });
        break;
      case Op::sum: fold(ins, args, m, hn::Zero(d), [](Vec t, Vec x) HWY_ATTR { return hn::Add(t, x); }); break;
      case Op::peak:
        fold(ins, args, m, hn::Set(d, -HUGE_VAL), [](Vec t, Vec x) HWY_ATTR { return hn::IfThenElse(hn::Lt(t, x), x, t); });
        break;
      case Op::dot:
        if (width > 1 || !ins.rows)
          dot(ins, args, m);
        else if (!ins.with_next)
          dot_rows<1>(next, code.args.data(), memory);
        else
          dot_rows<2>(next++, code.args.data(), memory);
        break;
      case Op::at: at(ins, args, m); break;
      case Op::gather: gather(ins, args, m); break;
      case Op::square: map1([](Vec a) HWY_ATTR { return square(d, a); }); break;
      case Op::root: map1([](Vec a) HWY_ATTR { return root(d, a); }); break;
      case Op::exp: map1([](Vec a) HWY_ATTR { return exp(d, a); }); break;
      case Op::reciprocal_square: map1([](Vec a) HWY_ATTR { return reciprocal_square(d, a); }); break;
      case Op::reciprocal: map1([](Vec a) HWY_ATTR { return reciprocal(d, a); }); break;
      default: by_table(ins, args, m);
    }
    // clang-format on
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace dense
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace dense {

Exp2Table::Exp2Table() {
  for (int j = 0; j < 128; ++j) {
    const long double exact = std::exp2(j / 128.0L);
    high_low[2 * j] = double(exact);
    high_low[2 * j + 1] = double(exact - high_low[2 * j]);
  }
}
const Exp2Table exp2_table;

Isa best_isa() {
  struct Choice {
    Isa isa;
    const char* name;
    int64_t target;
  };
  constexpr Choice choices[] = {{Isa::avx512, "avx512", HWY_AVX3},  // best first
                                {Isa::avx2, "avx2", HWY_AVX2},
                                {Isa::portable, "portable", HWY_STATIC_TARGET}};  // every machine of this kind runs it
  static const int64_t supported = hwy::SupportedTargets() & HWY_TARGETS;         // asking takes a while
  const char* asked = std::getenv("DENSE_ISA");
  const bool any = !asked || !*asked;
  for (const Choice& choice : choices) {
    const bool runs = supported & choice.target;
    if (any ? runs : std::string_view(asked) == choice.name) {
      if (!runs) fail("DENSE_ISA: this machine cannot run ", asked);
      return choice.isa;
    }
  }
  fail("DENSE_ISA: expected avx512, avx2 or portable, got ", any ? "" : asked);
}

const char* name(Isa isa) { return isa == Isa::avx512 ? "AVX-512" : isa == Isa::avx2 ? "AVX2" : "portable code"; }

Execute execute_for(Isa isa) {
#if HWY_TARGETS & HWY_AVX3
  if (isa == Isa::avx512) return N_AVX3::execute;
#endif
#if HWY_TARGETS & HWY_AVX2
  if (isa == Isa::avx2) return N_AVX2::execute;
#endif
  return isa == Isa::portable ? HWY_NAMESPACE::execute : nullptr;
}

}  // namespace dense
#endif  // HWY_ONCE
