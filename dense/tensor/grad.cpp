// The reverse sweep over a graph of tensors: what each primitive passes to its operands is made of primitives, and for
// maps of the reverse sweep over their formula.
#include <algorithm>
#include <map>
#include <numeric>

#include "dense/scalar/error.h"
#include "dense/tensor/formula.h"

namespace dense {

namespace {

// What is known so far about the gradient of one node: its terms.
struct Terms {
  std::vector<Tensor> whole;
  std::vector<std::pair<Tensor, View>> parts;   // of what views see
  std::vector<std::pair<Tensor, Tensor>> rows;  // ids and what is added to their rows
  bool empty() const { return whole.empty() && parts.empty() && rows.empty(); }
};

Tensor zeros(Graph& graph, const Shape& shape, Dtype dtype) {
  auto formula = std::make_shared<Formula>();
  formula->output = 0;
  formula->tape.input();
  const Tensor any = graph.counter({1});
  return map_of(std::span(&any, 1), std::move(formula), shape, Keep::all, dtype);
}

// d, the gradient of what operands were broadcast to, summed over the axes along which `shape` was repeated.
Tensor sum_to(Tensor d, const Shape& shape) {
  std::vector<int> axes;
  const int more = d.rank() - int(shape.size());
  for (int i = 0; i < d.rank(); ++i)
    if (d.size(i) > 1 && (i < more || shape[size_t(i - more)] == 1)) axes.push_back(i);
  return reshape(axes.empty() ? d : sum(d, axes), shape);
}

// Whether views of one tensor see each of its elements once: parts along an axis, or every n-th of n.
bool cover(std::vector<std::pair<Shape, View>> views, int64_t count) {
  std::ranges::sort(views, {}, [](const auto& v) { return v.second.offset; });
  Shape shape = views[0].first;
  View first = views[0].second;
  if (first.offset != 0) return false;
  if (views.size() > 1) {
    const auto same_strides = [&](const auto& v) { return v.second.strides == first.strides; };
    if (!std::ranges::all_of(views, same_strides)) return false;
    const int64_t step = views[1].second.offset;
    bool regular = true;
    for (size_t i = 0; i < views.size(); ++i)
      regular = regular && views[i].first == shape && views[i].second.offset == int64_t(i) * step;
    int joined = -1;  // the axis along which they follow each other
    for (int axis = 0; axis < int(shape.size()) && joined < 0; ++axis) {
      int64_t offset = 0;
      bool follows = true;
      for (const auto& [s, v] : views) {
        Shape rest = s;
        rest[size_t(axis)] = shape[size_t(axis)];
        follows = follows && rest == shape && v.offset == offset;
        offset += s[size_t(axis)] * first.strides[size_t(axis)];
      }
      if (follows) joined = axis;
    }
    if (joined >= 0) {
      shape[size_t(joined)] = 0;
      for (const auto& [s, v] : views) shape[size_t(joined)] += s[size_t(joined)];
    } else if (regular && step > 0) {
      shape.push_back(int64_t(views.size()));
      first.strides.push_back(step);
    } else {
      return false;
    }
  }
  // now one view: its strides in order must be those of elements side by side
  std::vector<size_t> order(shape.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::sort(order, {}, [&](size_t i) { return first.strides[i]; });
  int64_t next = 1;
  for (size_t i : order) {
    if (shape[i] == 1) continue;
    if (first.strides[i] != next) return false;
    next *= shape[i];
  }
  return next == count;
}

bool is_transposed(Tensor x) {
  if (x.node().kind != Kind::view) return false;
  const Shape& strides = std::get<View>(x.node().detail).strides;
  return strides[strides.size() - 2] == 1 && strides.back() != 1 && x.size(-1) > 1 && x.size(-2) > 1;
}

Tensor add_up(std::vector<Tensor> terms) {
  Tensor total = terms[0];
  for (size_t i = 1; i < terms.size(); ++i) total = total + terms[i];
  return total;
}

class Sweep {
 public:
  Sweep(Tensor y, std::span<const Tensor> xs) : graph_(y.graph()), end_(graph_.nodes()), terms_(size_t(end_)) {
    needs_.assign(size_t(end_), 0);
    for (Tensor x : xs) needs_[size_t(x.id())] = 1;
    for (int32_t id = 0; id < end_; ++id)
      for (int32_t x : graph_.node(id).operands)
        if (needs_[size_t(x)] && differentiable(graph_.node(id).kind)) needs_[size_t(id)] = 1;
  }

  std::vector<Tensor> operator()(Tensor y, std::span<const Tensor> xs) {
    std::vector<Tensor> found(terms_.size());
    terms_[size_t(y.id())].whole.push_back(zeros(graph_, y.shape(), y.dtype()) + 1);
    for (int32_t id = y.id(); id >= 0; --id) {
      if (!needs_[size_t(id)] || terms_[size_t(id)].empty()) continue;
      const Tensor d = total(id);
      found[size_t(id)] = d;
      terms_[size_t(id)] = {};
      pass(id, d);
    }
    std::vector<Tensor> result;
    for (Tensor x : xs) {
      const Dtype type = is_wide(x) ? Dtype::f64 : Dtype::f32;
      result.push_back(found[size_t(x.id())] ? found[size_t(x.id())] : zeros(graph_, x.shape(), type));
    }
    return result;
  }

 private:
  static bool differentiable(Kind kind) {
    return kind != Kind::assign && kind != Kind::part && kind != Kind::random && kind != Kind::top_k;
  }

  Tensor at(int32_t id) { return {&graph_, id}; }
  // An operand's value: of a checkpoint's inner nodes the one computed again.
  Tensor value(int32_t id) {
    const int32_t region = graph_.node(id).region;
    if (region < 0) return at(id);
    if (!again_.contains(region)) compute_again(region);
    return again_[region][id];
  }

  void compute_again(int32_t region) {
    auto& copies = again_[region];
    for (int32_t id = 0; id < end_; ++id) {
      TensorNode node = graph_.node(id);
      if (node.region != region) continue;
      node.region = -1;
      for (int32_t& x : node.operands)
        if (copies.contains(x)) x = copies[x].id();
      copies[id] = graph_.append(std::move(node));
    }
  }

  Tensor total(int32_t id) {
    Terms& terms = terms_[size_t(id)];
    const Tensor x = at(id);
    if (!terms.parts.empty()) {
      // what equal views see is added first
      std::vector<std::pair<Tensor, View>> parts;
      for (const auto& part : terms.parts) {
        const auto same = std::ranges::find_if(
            parts, [&](const auto& p) { return p.second == part.second && p.first.shape() == part.first.shape(); });
        if (same == parts.end()) parts.push_back(part);
        else same->first = same->first + part.first;
      }
      std::vector<std::pair<Shape, View>> seen;
      for (const auto& [d, view] : parts) seen.push_back({d.shape(), view});
      if (cover(seen, x.count())) {
        terms.whole.push_back(place(x, parts, true));
      } else {
        for (const auto& part : parts) terms.whole.push_back(place(x, std::span(&part, 1), false));
      }
    }
    if (terms.rows.empty()) return add_up(terms.whole);
    Tensor sum = terms.whole.empty() ? Tensor() : add_up(terms.whole);
    for (const auto& [ids, rows] : terms.rows) {
      std::vector<int32_t> operands{ids.id(), contiguous(reshape(rows, {-1, x.size(1)})).id()};
      if (sum) operands.push_back(contiguous(sum).id());
      sum = graph_.append({Kind::scatter, rows.dtype(), x.shape(), operands, {}});
    }
    return sum;
  }

  Tensor place(Tensor like, std::span<const std::pair<Tensor, View>> parts, bool covers) {
    if (covers && parts.size() == 1) {
      const Tensor d = parts[0].first;
      const View& view = parts[0].second;
      if (is_row_major(d.shape(), view.strides)) return reshape(d, like.shape());
      // the inverse of a permutation: d seen in the order of x
      std::vector<int> order;
      for (int i = 0; i < d.rank(); ++i)
        if (d.size(i) > 1) order.push_back(i);
      std::ranges::sort(order, std::greater(), [&](int i) { return view.strides[size_t(i)]; });
      Shape shape;
      for (int i = 0; i < d.rank(); ++i)
        if (d.size(i) == 1) order.push_back(i);
      return reshape(permute(d, order), like.shape());
    }
    Place result{{}, covers};
    std::vector<int32_t> ids;
    for (const auto& [d, view] : parts) {
      result.views.push_back(view);
      ids.push_back(d.id());
    }
    return graph_.append({Kind::place, parts[0].first.dtype(), like.shape(), ids, std::move(result)});
  }

  // A gradient is f32 but for tensors in f64.
  void add(int32_t operand, Tensor d) {
    const Dtype type = is_wide(at(operand)) ? Dtype::f64 : Dtype::f32;
    terms_[size_t(operand)].whole.push_back(d.dtype() == type ? d : cast(d, type));
  }
  bool needs(int32_t operand) const { return needs_[size_t(operand)]; }

  void pass(int32_t id, Tensor d) {
    const TensorNode node = graph_.node(id);
    const auto& x = node.operands;
    switch (node.kind) {
      case Kind::map:
        for (size_t k = 0; k < x.size(); ++k)
          if (needs(x[k])) add(x[k], through_map(node, k, d));
        return;
      case Kind::matmul: {  // y = a b: da = dy b^T, db = a^T dy
        // and the transposed of these where the operand is transposed, so that its base gets its own order
        const Tensor a = value(x[0]), b = value(x[1]);
        expect_not_quantised(b);
        if (needs(x[0])) add(x[0], is_transposed(a) ? matmul(b, d.t()).t() : matmul(d, b.t()));
        if (needs(x[1])) add(x[1], is_transposed(b) ? matmul(d.t(), a).t() : matmul(a.t(), d));
        return;
      }
      case Kind::view: return through_view(node, d);
      case Kind::place: {
        const auto& views = std::get<Place>(node.detail).views;
        for (size_t k = 0; k < x.size(); ++k)
          if (needs(x[k])) add(x[k], view_of(d, graph_.node(x[k]).shape, views[k]));
        return;
      }
      case Kind::gather:
        if (const auto* still = std::get_if<uint64_t>(&node.detail); still && needs(x[0])) {
          Shape each = at(x[1]).shape();
          each.push_back(1);
          const Tensor moves = where(equal(reshape(at(x[1]), each), double(*still)), 0, d);
          terms_[size_t(x[0])].rows.push_back({at(x[1]), moves});
        } else if (needs(x[0])) {
          terms_[size_t(x[0])].rows.push_back({at(x[1]), d});
        }
        return;
      case Kind::scatter:
        if (needs(x[1])) add(x[1], reshape(gather(d, at(x[0])), graph_.node(x[1]).shape));
        if (x.size() > 2 && needs(x[2])) add(x[2], d);
        return;
      case Kind::attention: {
        if (std::get<AttentionOptions>(node.detail).has_cache) fail("grad: expected attention without a cache");
        const Tensor out = value(id), lse(&graph_, out.id() + 1);
        std::vector<int32_t> operands{value(x[0]).id(), value(x[1]).id(), value(x[2]).id(), out.id(), lse.id(), d.id()};
        operands.insert(operands.end(), x.begin() + 3, x.end());
        if (d.node().kind == Kind::view) operands[5] = contiguous(d).id();
        const Tensor dq = graph_.append({Kind::attention_grad, d.dtype(), at(x[0]).shape(), operands, node.detail});
        const Shape shape = at(x[1]).shape();
        const Tensor dk = graph_.append({Kind::part, d.dtype(), shape, {dq.id()}, uint64_t{1}});
        const Tensor dv = graph_.append({Kind::part, d.dtype(), shape, {dq.id()}, uint64_t{2}});
        const std::array all{dq, dk, dv};
        for (size_t k = 0; k < 3; ++k)
          if (needs(x[k])) add(x[k], all[k]);
        return;
      }
      case Kind::expert_matmul: {  // as of matmul, of each expert
        const Tensor a = value(x[0]), ids = at(x[1]);
        std::vector<Tensor> transposed;
        bool any = false;
        for (size_t k = 2; k < x.size(); ++k) transposed.push_back(value(x[k]).t()), any = any || needs(x[k]);
        expect_not_quantised(transposed[0]);
        d = d.dtype() == a.dtype() ? contiguous(d) : cast(d, a.dtype());
        if (needs(x[0])) add(x[0], expert_matmul(d, ids, transposed));
        if (!any) return;
        const bool is_t = is_transposed(value(x[2]));  // then its base gets its own order
        const Dtype type = a.dtype() == Dtype::f64 ? Dtype::f64 : Dtype::f32;
        const Shape shape = is_t ? transposed[0].shape() : at(x[2]).shape();
        const std::vector<int32_t> operands{is_t ? d.id() : a.id(), ids.id(), is_t ? a.id() : d.id()};
        std::vector<Tensor> all{graph_.append({Kind::expert_grad, type, shape, operands, uint64_t{transposed.size()}})};
        for (uint64_t part = 1; part < transposed.size(); ++part)
          all.push_back(graph_.append({Kind::part, type, shape, {all[0].id()}, part}));
        for (size_t k = 2; k < x.size(); ++k)
          if (needs(x[k])) add(x[k], is_t ? all[k - 2].t() : all[k - 2]);
        return;
      }
      default: fail("grad: expected primitives with a gradient: those of attention and expert_matmul have none");
      case Kind::input:
      case Kind::counter:
      case Kind::random: return;
    }
  }

  static void expect_not_quantised(Tensor b) {  // they lie as one product needs them, not as its transposed one would
    if (is_quantised(b.dtype())) fail("grad: expected weights that are not quantised, got ", name(b.dtype()));
  }

  // Of formula y of x: the map of d(y * dy)/dx[k].
  Tensor through_map(const TensorNode& node, size_t k, Tensor d) {
    const Map& map = std::get<Map>(node.detail);
    const double columns = map.space.empty() ? 1 : double(map.space.back());
    Formula recorded;
    std::vector<Tensor> operands;
    std::vector<Var> x;
    for (int32_t id : node.operands) {
      operands.push_back(value(id));
      x.push_back(recorded.tape.input());
    }
    operands.push_back(d);
    const Var dy = recorded.tape.input();
    const Var y = transcribe(*map.formula, columns, recorded.tape, x);
    recorded.output = recorded.tape.gradient(y * dy, std::span(&x[k], 1))[0];

    const auto formula = std::make_shared<Formula>();
    const Shape& shape = graph_.node(node.operands[k]).shape;
    const bool one = columns > 1 && count_of(shape) == 1 && !is_per_row(shape, map.space);  // for the whole space
    if (one) recorded.output = Row{columns}.sum(recorded.output);
    std::vector<Var> inputs(operands.size());
    // What the derivative does not read is no operand of it; a constant has one all the same, of which nothing is read.
    const std::vector<char> reads = inputs_read(recorded);
    std::vector<Tensor> read;
    for (size_t i = 0; i < operands.size(); ++i) {
      if (!reads[i] && !(read.empty() && i + 1 == operands.size())) continue;
      inputs[i] = formula->tape.input();
      read.push_back(operands[i]);
    }
    formula->output = transcribe(recorded, columns, formula->tape, inputs);
    if (one && formula->output.tape()) {
      const Node& last = formula->tape.nodes()[size_t(formula->output.id())];
      if (last.op == Op::across) formula->output = {&formula->tape, formula->tape.operands(last)[0]};
    }

    // A missing axis was broadcast forward; now it is summed.
    const bool row = one || is_per_row(shape, map.space);
    bool column = !row && count_of(map.space) > int64_t(columns);
    for (size_t i = 0; i + 1 < shape.size(); ++i) column = column && shape[i] == 1;
    const Keep keep = row ? Keep::rows : column ? Keep::columns : Keep::all;
    const Dtype type = is_wide(at(node.operands[k])) || is_wide(d) ? Dtype::f64 : Dtype::f32;
    // dy itself, where the derivative is 1
    if (keep == Keep::all && read.size() == 1 && reads.back() && d.shape() == map.space && d.dtype() == type &&
        formula->output.tape() && formula->output.id() == inputs.back().id())
      return sum_to(d, shape);
    return sum_to(map_of(read, formula, map.space, keep, type), shape);
  }

  void through_view(const TensorNode& node, Tensor d) {
    const int32_t base = node.operands[0];
    if (!needs(base)) return;
    View view = std::get<View>(node.detail);
    std::vector<int> repeated;
    Shape shape = node.shape;
    for (int i = 0; i < int(shape.size()); ++i)
      if (view.strides[size_t(i)] == 0 && shape[size_t(i)] > 1) repeated.push_back(i), shape[size_t(i)] = 1;
    if (!repeated.empty()) d = reshape(sum(d, repeated), shape);
    terms_[size_t(base)].parts.push_back({d, view});
  }

  // The elements of a tensor laid out in order that a view sees.
  Tensor view_of(Tensor x, const Shape& shape, const View& view) {
    x = contiguous(x);
    int32_t base = x.id();
    View result = view;
    if (x.node().kind == Kind::view)
      base = x.node().operands[0], result.offset += std::get<View>(x.node().detail).offset;
    return graph_.append({Kind::view, x.dtype(), shape, {base}, result});
  }

  Graph& graph_;
  int32_t end_;
  std::vector<char> needs_;
  std::vector<Terms> terms_;
  std::map<int32_t, std::map<int32_t, Tensor>> again_;  // checkpoint -> its nodes -> the same computed once more
};

}  // namespace

std::vector<Tensor> grad(Tensor y, std::span<const Tensor> xs) {
  if (y.count() != 1) fail("grad: expected a tensor of one element, got ", to_string(y.shape()));
  for (Tensor x : xs)
    if (!x || &x.graph() != &y.graph()) fail("grad: expected tensors of one graph");
  return Sweep(y, xs)(y, xs);
}

}  // namespace dense
