// The kernels of a plan: for each primitive what runs it, on which memory.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <map>

#include "dense/scalar/error.h"
#include "dense/tensor/attention.h"
#include "dense/tensor/elements.h"
#include "dense/tensor/fused.h"
#include "dense/tensor/matmul.h"
#include "dense/tensor/matvec.h"
#include "dense/tensor/plan_parts.h"
#include "dense/tensor/quantised.h"
#include "dense/tensor/threads.h"

namespace dense {

static constexpr int32_t none = Layout::none;

void Plan::Parts::plan_group(const MapGroup& group) {
  auto tape = std::make_shared<Tape>();
  FusedSpec spec;
  spec.space = group.space;
  spec.wide = group.wide;
  const double columns = group.space.empty() ? 1 : double(group.space.back());
  std::map<int32_t, Var> values, inputs;  // of maps computed here, of what is read
  std::vector<Layout> from, to;
  std::vector<Dtype> from_type, to_type;
  Kernel step;
  step.position = position[size_t(group.roots[0])];

  const auto read = [&](int32_t id) {
    const auto known = inputs.find(id);
    if (known != inputs.end()) return known->second;
    const TensorNode& x = node(id);
    const TensorNode& source = node(base(id));
    FusedSpec::Operand operand;
    Layout where;
    Shape strides;
    if (source.kind == Kind::counter || source.kind == Kind::random) {
      operand.kind = source.kind;
      strides = x.kind == Kind::view ? std::get<View>(x.detail).strides : row_major(x.shape);
      operand.view.offset = x.kind == Kind::view ? std::get<View>(x.detail).offset : 0;
      if (source.kind == Kind::random) {
        operand.seed = std::get<uint64_t>(source.detail);
        where = layout_of(source.operands[0]);
      }
    } else {
      where = layout_of(id);
      strides = where.view.strides;
    }
    operand.dtype = source.dtype;
    operand.row = is_per_row(x.shape, group.space);
    operand.view.strides.assign(group.space.size(), 0);
    for (size_t i = 0; i < x.shape.size(); ++i)
      if (x.shape[i] != 1) operand.view.strides[group.space.size() - x.shape.size() + i] = strides[i];
    spec.operands.push_back(operand);
    from.push_back(where);
    from_type.push_back(source.kind == Kind::random ? Dtype::i32 : source.dtype);
    if (where.buffer != none) step.reads.push_back(where.buffer);
    step.bytes += source.kind == Kind::counter ? 0 : double(count_of(x.shape)) * double(size_of(source.dtype));
    return inputs[id] = tape->input();
  };
  const auto compute = [&](int32_t id) {
    std::set<int32_t> maps{id};  // and those that it computes itself: they come before it
    for (std::vector<int32_t> open{id}; !open.empty();) {
      const TensorNode& y = node(open.back());
      open.pop_back();
      for (int32_t x : y.operands)
        if (inlined_into(x, std::get<Map>(y.detail)) && maps.insert(x).second) open.push_back(x);
    }
    for (int32_t y : maps) {
      if (values.contains(y)) continue;
      std::vector<Var> x;
      for (int32_t operand : node(y).operands) {
        const auto known = values.find(operand);
        const bool here = known != values.end() && std::get<Map>(node(operand).detail).keep != Keep::columns;
        x.push_back(here ? known->second : read(operand));
      }
      values[y] = transcribe(*std::get<Map>(node(y).detail).formula, columns, *tape, x);
    }
    return values.at(id);
  };
  for (int32_t id : group.roots) {
    const Map& map = std::get<Map>(node(id).detail);
    const Layout& where = layout[size_t(id)];
    FusedSpec::Output output{compute(id), map.keep, node(id).dtype, {0, where.view.strides}};
    spec.outputs.push_back(output);
    to.push_back(where);
    to_type.push_back(node(id).dtype);
    step.writes.push_back(where.buffer);
    step.bytes += double(count_of(node(id).shape)) * double(size_of(node(id).dtype));
  }
  for (size_t i = 0; i < from.size(); ++i)
    for (size_t o = 0; o < to.size(); ++o) {
      bool same =
          spec.outputs[o].keep == Keep::all && from[i].view.offset == to[o].view.offset && from_type[i] == to_type[o];
      for (size_t axis = 0; axis < group.space.size(); ++axis)
        same = same &&
               (group.space[axis] == 1 || spec.operands[i].view.strides[axis] == spec.outputs[o].view.strides[axis]);
      if (same) step.in_place.push_back({from[i].buffer, to[o].buffer});
      else if (from[i].buffer == to[o].buffer && buffers[size_t(to[o].buffer)].outside)
        fail("plan: expected new values of an input to be read in its own order");
    }
  const auto kernel = std::make_shared<Fused>(*tape, std::move(spec), isa, graph.threads().count());
  step.kind = "map";
  step.what = text("map ", to_string(group.space), ", ", kernel->operations(), " operations, ", from.size(), " in, ",
                   to.size(), " out");
  step.scratch = kernel->scratch_bytes();
  step.prepare = [this, kernel, from, to, from_type, to_type] {
    std::vector<const std::byte*> in;
    std::vector<std::byte*> out;
    for (size_t i = 0; i < from.size(); ++i) in.push_back(from[i].buffer == none ? nullptr : at(from[i], from_type[i]));
    for (size_t i = 0; i < to.size(); ++i) out.push_back(at(to[i], to_type[i]));
    return KernelRun([kernel, in, out](std::byte* memory, Threads& threads) { kernel->run(in, out, memory, threads); });
  };
  steps.push_back(std::move(step));
}

// Copies elements, of different layouts or types.
void Plan::Parts::plan_copy(int32_t when, const Layout& from, const Layout& to, const Shape& shape, Dtype from_type,
                            Dtype to_type, const char* kind) {
  Tape tape;
  FusedSpec spec;
  spec.space = shape;
  spec.wide = from_type == Dtype::f64 || (from_type == Dtype::i32 && to_type == Dtype::i32);
  const Var x = tape.input();
  spec.operands.push_back({Kind::input, from_type, {0, from.view.strides}, false, 0});
  spec.outputs.push_back({x, Keep::all, to_type, {0, to.view.strides}});
  const auto kernel = std::make_shared<Fused>(tape, std::move(spec), isa, graph.threads().count());
  Kernel step;
  step.position = when;
  step.kind = kind;
  step.what = text(kind, " ", to_string(shape));
  step.reads = {from.buffer};
  step.writes = {to.buffer};
  step.bytes = double(count_of(shape)) * double(size_of(from_type) + size_of(to_type));
  step.scratch = kernel->scratch_bytes();
  step.prepare = [this, kernel, from, to, from_type, to_type] {
    const std::byte* in = at(from, from_type);
    std::byte* out = at(to, to_type);
    return KernelRun([kernel, in, out](std::byte* memory, Threads& threads) {
      kernel->run(std::span(&in, 1), std::span(&out, 1), memory, threads);
    });
  };
  steps.push_back(std::move(step));
}

namespace {

// The strides of a matrix, of which one is to be 1: that of an axis of one element may be anything.
void matrix_strides(const Layout& l, int64_t rows, int64_t columns, int64_t& row, int64_t& column) {
  const size_t rank = l.view.strides.size();
  row = l.view.strides[rank - 2], column = l.view.strides[rank - 1];
  if (columns == 1 && row != 1) column = 1;
  else if (rows == 1 && column != 1) row = 1;
}

}  // namespace

void Plan::Parts::plan_matmul(int32_t id) {
  const TensorNode& x = node(id);
  const int32_t with_bias = bias_of[size_t(id)], result = with_bias == none ? id : with_bias;
  const Layout a = layout_of(x.operands[0]), b = layout_of(x.operands[1]), c = layout[size_t(result)];
  const Shape& shape_a = node(x.operands[0]).shape;
  const size_t rank = x.shape.size();
  Layout bias;
  MatmulSpec spec;
  spec.m = x.shape[rank - 2];
  spec.n = x.shape[rank - 1];
  spec.k = shape_a.back();
  spec.type = node(x.operands[0]).dtype;
  spec.c_type = x.dtype;
  const Dtype b_type = node(x.operands[1]).dtype;
  spec.b_bf16 = spec.type == Dtype::f32 && b_type == Dtype::bf16;
  matrix_strides(a, spec.m, spec.k, spec.a_row, spec.a_col);
  matrix_strides(b, spec.k, spec.n, spec.b_row, spec.b_col);
  spec.c_row = x.shape[rank - 1];
  if (with_bias == none) spec.c_row = spec.m == 1 ? spec.n : c.view.strides[rank - 2];
  for (size_t i = 0; i + 2 < rank; ++i)
    spec.batch.push_back({x.shape[i], a.view.strides[i], b.view.strides[i], c.view.strides[i]});
  if (with_bias != none) {
    spec.bias = true;
    const auto& operands = node(with_bias).operands;
    bias = layout_of(base(operands[0]) == id ? operands[1] : operands[0]);
  }
  const uint64_t* const streams = std::get_if<uint64_t>(&x.detail);
  if (streams && *streams) return plan_matvec(id, result, a, b, c, bias, spec, b_type);
  const auto kernel = std::make_shared<Matmul>(spec, isa, graph.threads().count());
  Kernel step;
  step.position = position[size_t(result)];
  step.kind = "matmul";
  step.what = text("matmul ", to_string(shape_a), " ", to_string(node(x.operands[1]).shape),
                   with_bias == none ? "" : " + bias", ", ", kernel->path());
  step.reads = {a.buffer, b.buffer};
  if (bias.buffer != none) step.reads.push_back(bias.buffer);
  step.writes = {c.buffer};
  step.flops = 2.0 * double(count_of(x.shape)) * double(spec.k);
  step.bytes = double(count_of(shape_a)) * double(size_of(spec.type)) +
               double(count_of(node(x.operands[1]).shape)) * double(size_of(b_type)) +
               double(count_of(x.shape)) * double(size_of(x.dtype));
  step.scratch = kernel->scratch_bytes();
  step.prepare = [this, kernel, a, b, c, bias, type = spec.type, b_type, c_type = x.dtype] {
    const std::byte *pa = at(a, type), *pb = at(b, b_type), *pbias = bias.buffer == none ? nullptr : at(bias, c_type);
    std::byte* pc = at(c, c_type);
    return KernelRun([=](std::byte* memory, Threads& threads) { kernel->run(pa, pb, pc, pbias, memory, threads); });
  };
  steps.push_back(std::move(step));
}

namespace {

// A product with weights of this type that are read from memory as they lie there.
MatvecSpec matvec_spec(const MatmulSpec& s, Dtype type) {
  const bool by_row =
      is_quantised(type) || (s.b_row == 1 && s.n > 1);  // the view that matmul has is the other way round
  return {.m = s.m,
          .n = s.n,
          .k = s.k,
          .weights = type,
          .by_row = by_row,
          .row_stride = by_row ? s.b_col : s.b_row,
          .bias = s.bias};
}

double weight_bytes(Dtype type, int64_t n, int64_t k) {
  return is_quantised(type) ? double(quantised_bytes(type, n, k)) : double(n) * double(k) * double(size_of(type));
}

}  // namespace

void Plan::Parts::plan_matvec(int32_t id, int32_t result, const Layout& a, const Layout& b, const Layout& c,
                              const Layout& bias, const MatmulSpec& spec, Dtype type) {
  const auto kernel = std::make_shared<Matvec>(matvec_spec(spec, type), isa, graph.threads().count());
  Kernel step;
  step.position = position[size_t(result)];
  step.kind = "matvec";
  step.what =
      text("matvec ", to_string(node(node(id).operands[0]).shape), " ", to_string(node(node(id).operands[1]).shape),
           spec.bias ? " + bias" : "", ", ", name(type), ", ", kernel->path());
  step.reads = {a.buffer, b.buffer};
  if (bias.buffer != none) step.reads.push_back(bias.buffer);
  step.writes = {c.buffer};
  step.flops = 2.0 * double(spec.m) * double(spec.n) * double(spec.k);
  step.bytes = weight_bytes(type, spec.n, spec.k);
  step.scratch = kernel->scratch_bytes();
  step.prepare = [=, this, a_row = spec.a_row, c_row = spec.c_row] {
    const auto floats = [&](const Layout& x) { return reinterpret_cast<float*>(at(x, Dtype::f32)); };
    const float *pa = floats(a), *pbias = bias.buffer == none ? nullptr : floats(bias);
    const std::byte* pb = at(b, type);
    float* pc = floats(c);
    return KernelRun(
        [=](std::byte* memory, Threads& threads) { kernel->run(pa, a_row, pb, pc, c_row, pbias, memory, threads); });
  };
  steps.push_back(std::move(step));
}

namespace {

AttentionSpec::Strides head_strides(const Layout& x) {
  return {x.view.strides[0], x.view.strides[1], x.view.strides[2]};
}

double attention_flops(const AttentionSpec& s) {
  double pairs = double(s.queries) * double(s.keys);
  if (s.causal && s.queries == s.keys) pairs /= 2;
  return 4 * pairs * double(s.batch * s.heads * s.head_dim);
}

AttentionSpec attention_spec(const Shape& q, const Shape& k, Dtype type, const AttentionOptions& options) {
  AttentionSpec spec{};
  spec.batch = q[0], spec.queries = q[1], spec.heads = q[2], spec.head_dim = q[3];
  spec.keys = k[1], spec.kv_heads = k[2];
  spec.scale = options.scale, spec.soft_cap = options.soft_cap, spec.causal = options.causal,
  spec.window = options.window;
  spec.type = type;
  return spec;
}

// Keys or values of new tokens (B, T, H_kv, D) to their places in a cache (B, H_kv, S, D).
void remember(const AttentionSpec& spec, int64_t time, const float* from, const AttentionSpec::Strides& strides,
              const int32_t* starts, float* cache) {
  for (int64_t b = 0; b < spec.batch; ++b)
    for (int64_t t = 0; t < time && starts[b] + t < spec.keys; ++t)
      for (int64_t h = 0; h < spec.kv_heads; ++h)
        std::copy_n(from + b * strides.batch + t * strides.time + h * strides.head, spec.head_dim,
                    cache + b * spec.k.batch + (starts[b] + t) * spec.k.time + h * spec.k.head);
}

}  // namespace

void Plan::Parts::plan_attention(int32_t id) {
  const TensorNode& x = node(id);
  const auto& options = std::get<AttentionOptions>(x.detail);
  const Layout q = layout_of(x.operands[0]), k = layout_of(x.operands[1]), v = layout_of(x.operands[2]);
  const Layout out = layout[size_t(id)], lse = layout[size_t(id) + 1];
  Shape keys = node(x.operands[1]).shape;
  AttentionSpec spec{};
  Layout cache[2];
  if (options.has_cache) {
    for (size_t i = 0; i < 2; ++i) cache[i] = layout_of(x.operands[x.operands.size() - 2 + i]);
    keys[1] = node(x.operands.back()).shape[2];
    spec = attention_spec(x.shape, keys, x.dtype, options);
    const Shape& strides = cache[0].view.strides;
    spec.k = spec.v = {strides[0], strides[2], strides[1]};
  } else {
    spec = attention_spec(x.shape, keys, x.dtype, options);
    spec.k = head_strides(k), spec.v = head_strides(v);
  }
  spec.q = head_strides(q), spec.out = head_strides(out);
  spec.dq = spec.q, spec.dk = spec.k, spec.dv = spec.v, spec.dout = spec.out;
  size_t next = 3;
  const Layout lengths = options.has_lengths ? layout_of(x.operands[next++]) : Layout();
  const Layout starts = options.has_starts ? layout_of(x.operands[next++]) : Layout();
  const Layout firsts = options.has_firsts ? layout_of(x.operands[next++]) : Layout();
  const auto kernel = std::make_shared<Attention>(spec, isa, graph.threads().count());
  Kernel step;
  step.position = position[size_t(id)];
  step.kind = "attention";
  step.what = text("attention ", to_string(x.shape), " ", to_string(keys));
  step.reads = {q.buffer, k.buffer, v.buffer};
  for (const Layout& l : {lengths, starts, firsts, cache[0], cache[1]})
    if (l.buffer != none) step.reads.push_back(l.buffer);
  step.writes = {out.buffer, lse.buffer};
  step.flops = attention_flops(spec);
  step.scratch = kernel->scratch_bytes();
  step.prepare = [=, this, keys_of = cache[0], values_of = cache[1], time = x.shape[1], type = x.dtype] {
    const auto ints = [&](const Layout& l) {
      return l.buffer == none ? nullptr : reinterpret_cast<const int32_t*>(at(l, Dtype::i32));
    };
    const void *pq = at(q, type), *pk = at(k, type), *pv = at(v, type);
    void *pout = at(out, type), *plse = at(lse, type);
    const int32_t *plengths = ints(lengths), *pstarts = ints(starts), *pfirsts = ints(firsts);
    if (keys_of.buffer == none)
      return KernelRun([=](std::byte* memory, Threads& threads) {
        kernel->forward(pq, pk, pv, plengths, pstarts, pfirsts, pout, plse, memory, threads);
      });
    float *const pkeys = reinterpret_cast<float*>(at(keys_of, type)), *const pvalues =
                                                                          reinterpret_cast<float*>(at(values_of, type));
    return KernelRun([=, from_k = head_strides(k), from_v = head_strides(v)](std::byte* memory, Threads& threads) {
      remember(spec, time, static_cast<const float*>(pk), from_k, pstarts, pkeys);
      remember(spec, time, static_cast<const float*>(pv), from_v, pstarts, pvalues);
      kernel->forward(pq, pkeys, pvalues, plengths, pstarts, pfirsts, pout, plse, memory, threads);
    });
  };
  steps.push_back(std::move(step));
}

void Plan::Parts::plan_attention_grad(int32_t id) {
  const TensorNode& x = node(id);
  const auto& options = std::get<AttentionOptions>(x.detail);
  std::vector<Layout> in;
  for (int32_t operand : x.operands) in.push_back(layout_of(operand));
  const Layout dq = layout[size_t(id)], dk = layout[size_t(id) + 1], dv = layout[size_t(id) + 2];
  AttentionSpec spec = attention_spec(x.shape, node(x.operands[1]).shape, x.dtype, options);
  spec.q = head_strides(in[0]), spec.k = head_strides(in[1]), spec.v = head_strides(in[2]),
  spec.out = head_strides(in[3]);
  spec.dout = head_strides(in[5]), spec.dq = head_strides(dq), spec.dk = head_strides(dk), spec.dv = head_strides(dv);
  size_t next = 6;
  const Layout lengths = options.has_lengths ? in[next++] : Layout();
  const Layout starts = options.has_starts ? in[next++] : Layout();
  const Layout firsts = options.has_firsts ? in[next++] : Layout();
  const auto kernel = std::make_shared<Attention>(spec, isa, graph.threads().count());
  Kernel step;
  step.position = position[size_t(id)];
  step.kind = "attention grad";
  step.what = text("attention grad ", to_string(x.shape), " ", to_string(node(x.operands[1]).shape));
  for (const Layout& l : in) step.reads.push_back(l.buffer);
  step.writes = {dq.buffer, dk.buffer, dv.buffer};
  step.flops = 2.5 * attention_flops(spec);
  step.scratch = kernel->scratch_bytes();
  step.prepare = [this, kernel, in, dq, dk, dv, lengths, starts, firsts, type = x.dtype] {
    const auto ints = [&](const Layout& l) {
      return l.buffer == none ? nullptr : reinterpret_cast<const int32_t*>(at(l, Dtype::i32));
    };
    std::array<const void*, 6> p;
    for (size_t i = 0; i < 6; ++i) p[i] = at(in[i], type);
    void *pdq = at(dq, type), *pdk = at(dk, type), *pdv = at(dv, type);
    const int32_t *plengths = ints(lengths), *pstarts = ints(starts), *pfirsts = ints(firsts);
    return KernelRun([=](std::byte* memory, Threads& threads) {
      kernel->backward(p[0], p[1], p[2], p[3], p[4], p[5], plengths, pstarts, pfirsts, pdq, pdk, pdv, memory, threads);
    });
  };
  steps.push_back(std::move(step));
}

void Plan::Parts::plan_gather(int32_t id) {
  const TensorNode& x = node(id);
  const Layout table = layout_of(x.operands[0]), ids = layout_of(x.operands[1]), out = layout[size_t(id)];
  const TensorNode& t = node(x.operands[0]);
  const int64_t rows = t.shape[0], columns = t.shape[1], count = count_of(node(x.operands[1]).shape);
  const Dtype from = t.dtype, to = x.dtype;
  const auto f32 = elements_f32(isa);
  Kernel step;
  step.position = position[size_t(id)];
  step.kind = "gather";
  step.what = text("gather ", to_string(x.shape), " of ", to_string(t.shape));
  step.reads = {table.buffer, ids.buffer};
  step.writes = {out.buffer};
  step.bytes = double(count * columns) * double(size_of(from) + size_of(to));
  const auto name_of = [](const TensorNode& i) { return i.kind == Kind::input ? i.name : std::string(); };
  const std::string name = name_of(node(base(x.operands[1]))), table_name = name_of(node(base(x.operands[0])));
  step.prepare = [=, this] {
    const std::byte* source = at(table, from);
    std::byte* result = at(out, to);
    const auto* which = reinterpret_cast<const int32_t*>(at(ids, Dtype::i32));
    return KernelRun([=](std::byte*, Threads&) {
      for (int64_t i = 0; i < count; ++i) {
        if (which[i] < 0 || which[i] >= rows)
          fail(name.empty() ? "gather" : name, ": expected ids of 0 to ", rows - 1, ", the rows of ",
               table_name.empty() ? "the table" : table_name, ", got ", which[i], " at ", i);
        const std::byte* row = source + which[i] * columns * int64_t(size_of(from));
        std::byte* const place = result + i * columns * int64_t(size_of(to));
        if (is_quantised(from)) dequantise_row(source, from, which[i], columns, reinterpret_cast<float*>(place));
        else if (from == to) std::memcpy(place, row, size_t(columns) * size_of(to));
        else f32.load(row, from, 1, columns, reinterpret_cast<float*>(place));
      }
    });
  };
  steps.push_back(std::move(step));
}

void Plan::Parts::plan_scatter(int32_t id) {
  const TensorNode& x = node(id);
  const Layout ids = layout_of(x.operands[0]), rows = layout_of(x.operands[1]), out = layout[size_t(id)];
  const bool has_base = x.operands.size() > 2;
  const Layout start = has_base ? layout_of(x.operands[2]) : Layout();
  const int64_t columns = x.shape[1], count = count_of(node(x.operands[0]).shape), table_rows = x.shape[0];
  const Dtype type = x.dtype;
  const auto bytes = size_t(count_of(x.shape)) * size_of(type);
  const auto f32 = elements_f32(isa);
  const auto f64 = elements_f64(isa);
  Kernel step;
  step.position = position[size_t(id)];
  step.kind = "scatter";
  step.what = text("scatter ", to_string(node(x.operands[1]).shape), " to ", to_string(x.shape));
  step.reads = {ids.buffer, rows.buffer};
  if (has_base) {
    step.reads.push_back(start.buffer);
    step.in_place.push_back({start.buffer, out.buffer});
  }
  step.writes = {out.buffer};
  step.bytes = double(count * columns) * 3 * double(size_of(type));
  step.prepare = [=, this] {
    const std::byte* from = at(rows, type);
    const std::byte* base_data = has_base ? at(start, type) : nullptr;
    std::byte* const result = at(out, type);
    const auto* which = reinterpret_cast<const int32_t*>(at(ids, Dtype::i32));
    return KernelRun([=](std::byte*, Threads&) {
      if (!base_data) std::memset(result, 0, bytes);
      else if (base_data != result) std::memcpy(result, base_data, bytes);
      for (int64_t i = 0; i < count; ++i) {
        if (which[i] < 0 || which[i] >= table_rows)
          fail("scatter: expected ids of 0 to ", table_rows - 1, ", got ", which[i]);
        if (type == Dtype::f64)
          f64.add_rows(reinterpret_cast<const double*>(from) + i * columns, 1, columns,
                       reinterpret_cast<double*>(result) + which[i] * columns);
        else
          f32.add_rows(reinterpret_cast<const float*>(from) + i * columns, 1, columns,
                       reinterpret_cast<float*>(result) + which[i] * columns);
      }
    });
  };
  steps.push_back(std::move(step));
}

void Plan::Parts::plan_place(int32_t id) {
  const TensorNode& x = node(id);
  const Place& place = std::get<Place>(x.detail);
  const Layout to = layout[size_t(id)];
  if (!place.covers) {
    Kernel step;
    step.position = position[size_t(id)];
    step.kind = "zero";
    step.what = text("zero ", to_string(x.shape));
    step.writes = {to.buffer};
    const size_t bytes = size_t(count_of(x.shape)) * size_of(x.dtype);
    step.bytes = double(bytes);
    step.prepare = [this, to, bytes, type = x.dtype] {
      std::byte* const p = at(to, type);
      return KernelRun([p, bytes](std::byte*, Threads&) { std::memset(p, 0, bytes); });
    };
    steps.push_back(std::move(step));
  }
  for (size_t k = 0; k < x.operands.size(); ++k) {
    const Layout from = layout_of(x.operands[k]);
    if (from.buffer == to.buffer) continue;  // already there
    plan_copy(position[size_t(id)], from, {to.buffer, {to.view.offset + place.views[k].offset, place.views[k].strides}},
              node(x.operands[k]).shape, node(x.operands[k]).dtype, x.dtype, "copy");
  }
}

namespace {

// Insertion into the k best so far: k is small.
template <class T>
void find_largest(const T* x, int64_t columns, int64_t k, int32_t* to) {
  const auto larger = [&](int64_t i, int32_t j) { return x[i] > x[j] || (std::isnan(x[i]) && !std::isnan(x[j])); };
  for (int64_t i = 0, found = 0; i < columns; ++i) {
    if (found == k && !larger(i, to[k - 1])) continue;
    if (found < k) ++found;
    int64_t at = found - 1;
    for (; at > 0 && larger(i, to[at - 1]); --at) to[at] = to[at - 1];
    to[at] = int32_t(i);
  }
}

}  // namespace

void Plan::Parts::plan_top_k(int32_t id) {
  const TensorNode& x = node(id);
  const Layout from = layout_of(x.operands[0]), to = layout[size_t(id)];
  const Dtype type = node(x.operands[0]).dtype;
  const int64_t columns = node(x.operands[0]).shape.back(), k = x.shape.back(), rows = count_of(x.shape) / k;
  Kernel step;
  step.position = position[size_t(id)];
  step.kind = "top_k";
  step.what = text("top_k ", to_string(node(x.operands[0]).shape), " ", k);
  step.reads = {from.buffer};
  step.writes = {to.buffer};
  step.bytes = double(rows * columns) * double(size_of(type));
  step.prepare = [=, this] {
    const std::byte* source = at(from, type);
    auto* const result = reinterpret_cast<int32_t*>(at(to, Dtype::i32));
    return KernelRun([=](std::byte*, Threads&) {
      for (int64_t i = 0; i < rows; ++i) {
        if (type == Dtype::f64)
          find_largest(reinterpret_cast<const double*>(source) + i * columns, columns, k, result + i * k);
        else find_largest(reinterpret_cast<const float*>(source) + i * columns, columns, k, result + i * k);
      }
    });
  };
  steps.push_back(std::move(step));
}

// ---- experts: the rows of each lie anywhere; they are put side by side for as long as their product takes

namespace {

size_t whole_lines(int64_t elements, Dtype type) { return (size_t(elements) * size_of(type) + 63) / 64 * 64; }

// Rows in memory, each in one piece, and which expert each is for.
struct ExpertRows {
  const std::byte* data;
  const int32_t* ids;
  Shape shape, strides;  // of all but the last axis, in bytes
  size_t bytes;          // of a row

  ExpertRows(const std::byte* from, const int32_t* which, const Shape& of, const Layout& layout, Dtype type)
      : data(from), ids(which), shape(of.begin(), of.end() - 1), bytes(size_t(of.back()) * size_of(type)) {
    for (size_t i = 0; i < shape.size(); ++i) strides.push_back(layout.view.strides[i] * int64_t(size_of(type)));
  }
  const std::byte* row(int64_t i) const {
    const std::byte* p = data;
    for (size_t axis = shape.size(); axis-- > 0; i /= shape[axis]) p += i % shape[axis] * strides[axis];
    return p;
  }
  void check(int64_t experts, const std::string& name) const {
    for (int64_t i = 0; i < count_of(shape); ++i)
      if (ids[i] < 0 || ids[i] >= experts)
        fail(name.empty() ? "expert_matmul" : name, ": expected ids of 0 to ", experts - 1, ", got ", ids[i], " at ",
             i);
  }
  // Those of one expert, side by side; how many there are.
  int64_t collect(int32_t expert, std::byte* to) const {
    int64_t found = 0;
    for (int64_t i = 0; i < count_of(shape); ++i)
      if (ids[i] == expert) std::memcpy(to + size_t(found++) * bytes, row(i), bytes);
    return found;
  }
};

}  // namespace

void Plan::Parts::plan_expert_matmul(int32_t id) {
  const TensorNode& x = node(id);
  const Layout a = layout_of(x.operands[0]), ids = layout_of(x.operands[1]), c = layout[size_t(id)];
  std::vector<Layout> experts;
  for (size_t i = 2; i < x.operands.size(); ++i) experts.push_back(layout_of(x.operands[i]));
  const Shape& shape = node(x.operands[0]).shape;
  const int64_t rows = count_of(node(x.operands[1]).shape), count = int64_t(experts.size());
  const Dtype b_type = node(x.operands[2]).dtype;
  MatmulSpec spec;
  spec.m = (rows + count - 1) / count;  // as many as an expert has on average
  spec.n = x.shape.back();
  spec.k = shape.back();
  spec.type = node(x.operands[0]).dtype;
  spec.b_bf16 = spec.type == Dtype::f32 && b_type == Dtype::bf16;
  spec.c_type = x.dtype;
  spec.a_row = spec.k;
  matrix_strides(experts[0], spec.k, spec.n, spec.b_row, spec.b_col);
  spec.c_row = spec.n;
  std::shared_ptr<const Matmul> matmul;
  std::shared_ptr<const Matvec> matvec;
  if (std::get<uint64_t>(x.detail)) {
    MatvecSpec most = matvec_spec(spec, b_type);
    most.m = rows;
    matvec = std::make_shared<Matvec>(most, isa, graph.threads().count());
  } else {
    matmul = std::make_shared<Matmul>(spec, isa, graph.threads().count());
  }
  Kernel step;
  step.position = position[size_t(id)];
  step.kind = matvec ? "expert matvec" : "expert matmul";
  step.what = text(step.kind, " ", to_string(shape), " ", to_string(node(x.operands[2]).shape), " of ", count, ", ",
                   name(b_type), ", ", matvec ? matvec->path() : matmul->path());
  step.reads = {a.buffer, ids.buffer};
  for (const Layout& b : experts)
    if (std::ranges::find(step.reads, b.buffer) == step.reads.end()) step.reads.push_back(b.buffer);
  step.writes = {c.buffer};
  step.flops = 2.0 * double(rows) * double(spec.n) * double(spec.k);
  step.bytes = weight_bytes(b_type, spec.n, spec.k) * double(std::min(rows, count));
  const size_t a_bytes = whole_lines(rows * spec.k, spec.type), c_bytes = whole_lines(rows * spec.n, x.dtype);
  step.scratch = a_bytes + c_bytes + (matvec ? matvec->scratch_bytes() : matmul->scratch_bytes());
  const std::string ids_name = node(base(x.operands[1])).name;
  step.prepare = [=, this, c_type = x.dtype] {
    const ExpertRows from(at(a, spec.type), reinterpret_cast<const int32_t*>(at(ids, Dtype::i32)), shape, a, spec.type);
    std::vector<const std::byte*> weights;
    for (const Layout& b : experts) weights.push_back(at(b, b_type));
    std::byte* const to = at(c, c_type);
    return KernelRun([=, bytes = size_t(spec.n) * size_of(c_type)](std::byte* memory, Threads& threads) {
      from.check(count, ids_name);
      std::byte *const side_by_side = memory, *const product = memory + a_bytes, *const rest = product + c_bytes;
      for (int32_t e = 0; e < int32_t(count); ++e) {
        const int64_t m = from.collect(e, side_by_side);
        if (m == 0) continue;
        if (matmul) matmul->run(side_by_side, weights[size_t(e)], product, nullptr, rest, threads, m, spec.k);
        else
          matvec->run(reinterpret_cast<const float*>(side_by_side), spec.k, weights[size_t(e)],
                      reinterpret_cast<float*>(product), spec.n, nullptr, rest, threads, m);
        const std::byte* row = product;
        for (int64_t i = 0; i < rows; ++i)
          if (from.ids[i] == e) std::memcpy(to + size_t(i) * bytes, row, bytes), row += bytes;
      }
    });
  };
  steps.push_back(std::move(step));
}

void Plan::Parts::plan_expert_grad(int32_t id) {
  const TensorNode& x = node(id);
  const Layout a = layout_of(x.operands[0]), ids = layout_of(x.operands[1]), b = layout_of(x.operands[2]);
  const int64_t count = int64_t(std::get<uint64_t>(x.detail)), rows = count_of(node(x.operands[1]).shape);
  const std::vector<Layout> results(layout.begin() + id, layout.begin() + id + count);
  const Shape &shape_a = node(x.operands[0]).shape, &shape_b = node(x.operands[2]).shape;
  MatmulSpec spec;
  spec.m = shape_a.back();
  spec.n = shape_b.back();
  spec.k = rows;  // at most
  spec.type = node(x.operands[0]).dtype;
  spec.c_type = x.dtype;
  spec.a_row = 1, spec.a_col = spec.m;
  spec.b_row = spec.c_row = spec.n;
  const auto kernel = std::make_shared<Matmul>(spec, isa, graph.threads().count());
  Kernel step;
  step.position = position[size_t(id)];
  step.kind = "expert grad";
  step.what = text("expert grad ", to_string(shape_a), " ", to_string(shape_b), " of ", count, ", ", kernel->path());
  step.reads = {a.buffer, ids.buffer, b.buffer};
  for (const Layout& c : results) step.writes.push_back(c.buffer);
  step.flops = 2.0 * double(rows) * double(spec.n) * double(spec.m);
  step.bytes = double(count) * double(spec.m * spec.n) * double(size_of(x.dtype));
  const size_t a_bytes = whole_lines(rows * spec.m, spec.type), b_bytes = whole_lines(rows * spec.n, spec.type);
  step.scratch = a_bytes + b_bytes + kernel->scratch_bytes();
  step.prepare = [=, this, c_type = x.dtype] {
    const auto* const which = reinterpret_cast<const int32_t*>(at(ids, Dtype::i32));
    const ExpertRows from_a(at(a, spec.type), which, shape_a, a, spec.type),
        from_b(at(b, spec.type), which, shape_b, b, spec.type);
    std::vector<std::byte*> to;
    for (const Layout& c : results) to.push_back(at(c, c_type));
    return KernelRun([=](std::byte* memory, Threads& threads) {
      std::byte *const rows_a = memory, *const rows_b = memory + a_bytes, *const rest = rows_b + b_bytes;
      for (int32_t e = 0; e < int32_t(count); ++e) {
        const int64_t k = from_a.collect(e, rows_a);
        from_b.collect(e, rows_b);
        kernel->run(rows_a, rows_b, to[size_t(e)], nullptr, rest, threads, spec.m, k);  // zeros where there are none
      }
    });
  };
  steps.push_back(std::move(step));
}

void Plan::Parts::plan_assign(int32_t id) {
  const Layout to = layout[size_t(node(id).operands[0])], from = layout_of(node(id).operands[1]);
  if (from.buffer == to.buffer) return;
  plan_copy(graph.nodes(), from, to, node(id).shape, node(node(id).operands[1]).dtype, node(id).dtype, "assign");
}

}  // namespace dense
