#include "dense/tensor/tensor.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <cmath>
#include <numeric>
#include <optional>
#include <utility>

#include "dense/scalar/error.h"
#include "dense/tensor/formula.h"
#include "dense/tensor/plan.h"
#include "dense/tensor/threads.h"

namespace dense {

std::string to_string(const Shape& shape) {
  std::string result = "(";
  for (size_t i = 0; i < shape.size(); ++i) result += (i ? ", " : "") + std::to_string(shape[i]);
  return result + ")";
}

int64_t count_of(const Shape& shape) {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

Shape row_major(const Shape& shape) {
  Shape strides(shape.size());
  int64_t step = 1;
  for (size_t i = shape.size(); i-- > 0; step *= shape[i]) strides[i] = step;
  return strides;
}

Shape broadcast(const Shape& a, const Shape& b, const char* operation) {
  Shape result = a.size() < b.size() ? b : a;
  const Shape& other = a.size() < b.size() ? a : b;
  for (size_t i = 1; i <= other.size(); ++i) {
    int64_t& size = result[result.size() - i];
    const int64_t got = other[other.size() - i];
    if (size != got && size != 1 && got != 1)
      fail(operation, ": ", to_string(a), " and ", to_string(b), ": expected sizes that are equal or 1, from the last");
    if (size == 1) size = got;
  }
  return result;
}

namespace {

void check_shape(const char* operation, const Shape& shape) {
  int64_t bytes = 8;
  for (int64_t size : shape) {
    if (size < 1) fail(operation, ": expected sizes of 1 or more, got ", to_string(shape));
    if (__builtin_mul_overflow(bytes, size, &bytes))
      fail(operation, ": expected fewer elements, got ", to_string(shape));
  }
}

int checked_axis(const char* operation, const Shape& shape, int axis) {
  const int rank = int(shape.size());
  if (axis < -rank || axis >= rank) fail(operation, ": ", to_string(shape), ": expected an axis it has, got ", axis);
  return axis < 0 ? axis + rank : axis;
}

Graph& common_graph(const char* operation, std::span<const Tensor> operands) {
  for (Tensor x : operands)
    if (!x || &x.graph() != &operands[0].graph())
      fail(operation, ": expected tensors of one graph", x ? "" : ", got one without");
  return operands[0].graph();
}

// The view that a node is of another, or of itself.
std::pair<int32_t, View> base_view(Tensor x) {
  if (x.node().kind == Kind::view) return {x.node().operands[0], std::get<View>(x.node().detail)};
  return {x.id(), {0, row_major(x.shape())}};
}

// Counters and random numbers, which only maps can read: nobody has them in memory.
bool is_never_stored(Tensor x) {
  const Kind kind = x.graph().node(base_view(x).first).kind;
  return kind == Kind::counter || kind == Kind::random;
}
Tensor stored(Tensor x) { return is_never_stored(x) ? cast(x, x.dtype()) : x; }

Tensor view(Tensor x, Shape shape, View view) {
  const auto [base, current] = base_view(x);
  if (view == current && shape == x.shape()) return x;
  return x.graph().append({Kind::view, x.dtype(), std::move(shape), {base}, std::move(view)});
}

// The strides under which elements laid out by `strides` have the other shape; none where there are no such.
std::optional<Shape> reshaped(const Shape& shape, const Shape& strides, const Shape& to) {
  Shape sizes, steps;  // without axes of size 1
  for (size_t i = 0; i < shape.size(); ++i)
    if (shape[i] != 1) sizes.push_back(shape[i]), steps.push_back(strides[i]);
  Shape result(to.size(), 0);
  size_t from = 0, next = 0;
  while (next < to.size()) {
    if (to[next] == 1) {
      ++next;
      continue;
    }
    // the fewest axes on both sides that hold equally many elements
    size_t from_end = from + 1, next_end = next + 1;
    int64_t have = sizes[from], want = to[next];
    while (have != want) {
      if (have < want) have *= sizes[from_end++];
      else want *= to[next_end++];
    }
    for (size_t i = from; i + 1 < from_end; ++i)
      if (steps[i] != steps[i + 1] * sizes[i + 1]) return {};
    int64_t step = steps[from_end - 1];
    for (size_t i = next_end; i-- > next;) {
      result[i] = to[i] == 1 ? 0 : step;
      step *= to[i];
    }
    from = from_end;
    next = next_end;
  }
  return result;
}

}  // namespace

// ---- Tensor and Graph

const TensorNode& Tensor::node() const { return graph_->node(id_); }
int64_t Tensor::size(int axis) const { return shape()[size_t(checked_axis("size", shape(), axis))]; }
int64_t Tensor::count() const { return count_of(shape()); }

Tensor Tensor::t() const {
  if (rank() < 2) fail("t: ", to_string(shape()), ": expected two axes or more");
  std::vector<int> order(size_t(rank()), 0);
  std::iota(order.begin(), order.end(), 0);
  std::swap(order[order.size() - 1], order[order.size() - 2]);
  return permute(*this, order);
}

std::vector<float> Tensor::value() const {
  const Tensor result = dtype() == Dtype::f32 ? *this : cast(*this, Dtype::f32);
  Plan plan(std::span(&result, 1));
  plan.run();
  const auto values = plan.get<float>(result);
  return {values.begin(), values.end()};
}

std::span<std::byte> Tensor::bytes(size_t element, bool floating) const {
  if (node().kind != Kind::input) fail("data: expected an input");
  if (size_of(dtype()) != element || floating != (dtype() == Dtype::f32 || dtype() == Dtype::f64))
    fail("data: ", node().name, ": expected the type of its elements, ", name(dtype()));
  return {std::get<Memory>(node().detail).data, size_t(count()) * element};
}

void expect_count(const Tensor& x, size_t got) {
  if (got != size_t(x.count()))
    fail("set: ", x.node().name, ": expected ", x.count(), " values for ", to_string(x.shape()), ", got ", got);
}

std::ostream& operator<<(std::ostream& out, Tensor x) {
  const std::vector<float> values = x.value();
  out << name(x.dtype()) << to_string(x.shape()) << " [";
  const size_t shown = std::min<size_t>(values.size(), 8);
  for (size_t i = 0; i < shown; ++i) out << (i ? ", " : "") << values[i];
  return out << (shown < values.size() ? ", ...]" : "]");
}

Graph::Graph(int threads) : threads_(make_threads(threads)) {}
Graph::~Graph() = default;
Threads& Graph::threads() { return *threads_; }

Tensor Graph::append(TensorNode node) {
  if (node.region < 0 && node.kind != Kind::input) node.region = region;
  nodes_.push_back(std::move(node));
  return {this, int32_t(nodes_.size() - 1)};
}

Memory zero_memory(size_t bytes) {
  constexpr size_t page = 2 << 20;
  const size_t alignment = bytes < page ? 64 : page, size = (bytes + alignment - 1) / alignment * alignment;
  const std::shared_ptr<void> owner(std::aligned_alloc(alignment, std::max(size, alignment)),
                                    [](void* p) { std::free(p); });
  if (!owner) throw std::bad_alloc();
#if defined(__linux__)
  if (size >= page) madvise(owner.get(), size, MADV_HUGEPAGE);
#endif
  std::memset(owner.get(), 0, size);
  return {static_cast<std::byte*>(owner.get()), owner};
}

Tensor Graph::input(Shape shape, Dtype dtype, std::string name) {
  check_shape("input", shape);
  const Memory memory = zero_memory(size_t(count_of(shape)) * size_of(dtype));
  return external(std::move(shape), dtype, memory, std::move(name));
}

Tensor Graph::external(Shape shape, Dtype dtype, Memory memory, std::string name) {
  check_shape("input", shape);
  return append({Kind::input, dtype, std::move(shape), {}, std::move(memory), std::move(name)});
}

Tensor Graph::parameter(const std::string& name, const Shape& shape, Dtype dtype, const Memory& memory) {
  const auto known = parameters_.find(name);
  if (known != parameters_.end()) return known->second;
  return parameters_[name] = external(shape, dtype, memory, name);
}

Tensor Graph::counter(Shape shape, Dtype dtype) {
  check_shape("counter", shape);
  return append({Kind::counter, dtype, std::move(shape), {}, {}});
}

Tensor Graph::random(Shape shape, uint64_t seed, Tensor key) {
  check_shape("random", shape);
  if (key.dtype() != Dtype::i32 || key.shape() != Shape{2}) fail("random: expected a key of two i32");
  return append({Kind::random, Dtype::f32, std::move(shape), {contiguous(key).id()}, seed});
}

// ---- maps

namespace {

Dtype map_type(std::span<const Tensor> operands) {
  return std::ranges::any_of(operands, is_wide) ? Dtype::f64 : Dtype::f32;
}

}  // namespace

Tensor map_of(std::span<const Tensor> operands, std::shared_ptr<const Formula> formula, Shape space, Keep keep,
              Dtype dtype, std::string operation) {
  Shape shape = space;
  if (keep == Keep::rows) shape.back() = 1;
  if (keep == Keep::columns) std::fill(shape.begin(), shape.end() - 1, 1);
  std::vector<int32_t> ids;
  for (Tensor x : operands) {
    if (is_quantised(x.dtype()))
      fail(x.node().name, " ", to_string(x.shape()), ": expected ", name(x.dtype()), " in matmul and gather alone");
    ids.push_back(x.id());
  }
  return operands[0].graph().append({Kind::map, dtype, std::move(shape), std::move(ids),
                                     Map{std::move(formula), std::move(space), keep}, std::move(operation)});
}

Tensor map(const char* operation, std::span<const Tensor> operands,
           const std::function<Var(Row, std::span<const Var>)>& formula, Keep keep) {
  common_graph(operation, operands);
  Shape space;
  for (Tensor x : operands) space = broadcast(space, x.shape(), operation);
  if (space.empty() && keep != Keep::all) space = {1};
  const double columns = space.empty() ? 1 : double(space.back());
  Formula given;
  auto recorded = std::make_shared<Formula>();
  std::vector<Var> vars, inputs;
  for (Tensor x : operands) {
    const bool across = is_per_row(x.shape(), space);
    const Var v = given.tape.input();
    vars.push_back(across ? record(Op::across, {v}) : v);
    inputs.push_back(recorded->tape.input());
  }
  given.output = formula(Row{columns}, vars);
  recorded->output = transcribe(given, columns, recorded->tape, inputs);
  if (keep == Keep::rows && recorded->output.tape() && columns > 1) {
    const Node& node = recorded->tape.nodes()[size_t(recorded->output.id())];
    if (node.op != Op::across) fail(operation, ": expected a sum or maximum over a row");
    recorded->output = {&recorded->tape, recorded->tape.operands(node)[0]};
  }
  return map_of(operands, std::move(recorded), std::move(space), keep, map_type(operands), operation);
}

Tensor record(Op op, std::span<const Tensor> operands) {
  return map(rule(op).name, operands, [&](Row, std::span<const Var> x) { return record(op, x); });
}

Tensor record(Op op, Operand a, Operand b) {
  if (!a.is_number && !b.is_number) return record(op, std::array{a.tensor, b.tensor});
  const Tensor x = a.is_number ? b.tensor : a.tensor;
  return map(rule(op).name, {x}, [&](Row, std::span<const Var> v) {
    return a.is_number ? record(op, {a.number, v[0]}) : record(op, {v[0], b.number});
  });
}

Tensor where(Tensor condition, Operand a, Operand b) {
  std::vector<Tensor> operands{condition};
  if (!a.is_number) operands.push_back(a.tensor);
  if (!b.is_number) operands.push_back(b.tensor);
  return map("where", operands, [&](Row, std::span<const Var> x) {
    return where(x[0], a.is_number ? Var(a.number) : x[1], b.is_number ? Var(b.number) : x.back());
  });
}

Tensor cast(Tensor x, Dtype dtype) {
  if (x.dtype() == dtype && x.node().kind == Kind::map) return x;
  auto formula = std::make_shared<Formula>();
  formula->output = formula->tape.input();
  return map_of(std::span(&x, 1), std::move(formula), x.shape(), Keep::all, dtype, "cast");
}

// ---- reductions

namespace {

// Over the last axis, which becomes 1.
Tensor reduce_row(Tensor x, Reduction reduction) {
  using X = std::span<const Var>;
  switch (reduction) {
    case Reduction::sum:
      return map(
          "sum", {x}, [](Row row, X v) { return row.sum(v[0]); }, Keep::rows);
    case Reduction::mean:
      return map(
          "mean", {x}, [](Row row, X v) { return row.mean(v[0]); }, Keep::rows);
    case Reduction::max:
      return map(
          "max", {x},
          [](Row row, X v) {
            // The value is that of m, which counts as a constant; the gradient is that of the elements equal to it.
            const Var m = row.max(v[0]), is = equal(v[0], m);
            return m + row.sum(where(is * (abs(m) < INFINITY), v[0] - m, 0)) / row.sum(is);
          },
          Keep::rows);
    case Reduction::min: return -reduce_row(-x, Reduction::max);
    case Reduction::prod: {
      int64_t n = x.size(-1);
      while (n > 1) {
        const int64_t half = n / 2;
        const Tensor y = slice(x, -1, 0, half) * slice(x, -1, half, 2 * half);
        x = n % 2 ? concat(std::array{y, slice(x, -1, n - 1, n)}, -1) : y;
        n = half + n % 2;
      }
      return x;
    }
  }
  fail("reduce: expected a reduction");
}

// Over the first axis of two, which becomes 1.
Tensor sum_of_rows(Tensor x) {
  return map(
      "sum", {x}, [](Row, std::span<const Var> v) { return v[0]; }, Keep::columns);
}

}  // namespace

Tensor reduce(Tensor x, Reduction reduction, std::vector<int> axes) {
  const int rank = x.rank();
  for (int& axis : axes) axis = checked_axis("reduce", x.shape(), axis);
  std::ranges::sort(axes);
  if (std::ranges::adjacent_find(axes) != axes.end()) fail("reduce: expected each axis once");
  if (axes.empty())
    for (int axis = 0; axis < rank; ++axis) axes.push_back(axis);
  std::vector<int> order;
  Shape left, reduced;
  for (int axis = 0; axis < rank; ++axis) {
    if (std::ranges::binary_search(axes, axis)) continue;
    order.push_back(axis);
    left.push_back(x.size(axis));
  }
  for (int axis : axes) reduced.push_back(x.size(axis));
  const int64_t rows = count_of(left), columns = count_of(reduced);
  const bool sums = reduction == Reduction::sum || reduction == Reduction::mean;
  const bool leading = !axes.empty() && axes.back() == int(axes.size()) - 1;
  if (sums && leading && (!left.empty() || columns > 4096)) {
    int64_t width = rows;  // without a row that is left, one as wide as the cache likes it
    if (left.empty())
      for (width = 4096; columns % width; --width) {
      }
    Tensor total = sum_of_rows(reshape(x, {rows * columns / width, width}));
    if (left.empty()) total = reduce_row(total, Reduction::sum);
    if (reduction == Reduction::mean) total = total / double(columns);
    return reshape(total, left);
  }
  order.insert(order.end(), axes.begin(), axes.end());
  return reshape(reduce_row(reshape(permute(x, order), {rows, columns}), reduction), left);
}

// ---- views

bool is_row_major(const Shape& shape, const Shape& strides) {
  int64_t step = 1;
  for (size_t i = shape.size(); i-- > 0; step *= shape[i])
    if (shape[i] != 1 && strides[i] != step) return false;
  return true;
}

Tensor contiguous(Tensor x) {
  return is_row_major(x.shape(), base_view(x).second.strides) ? stored(x) : cast(x, x.dtype());
}

Tensor reshape(Tensor x, Shape shape) {
  const Shape asked = shape;
  int64_t known = 1;
  int64_t* unknown = nullptr;
  for (int64_t& size : shape) {
    if (size == -1 && !unknown) unknown = &size;
    else if (size < 1) fail("reshape: expected sizes of 1 or more and one -1 at most, got ", to_string(asked));
    else if (__builtin_mul_overflow(known, size, &known)) known = x.count() + 1;  // too many in any case
  }
  if (unknown) *unknown = x.count() / known;
  if (known * (unknown ? *unknown : 1) != x.count())
    fail("reshape: ", to_string(x.shape()), " to ", to_string(asked), ": expected the same number of elements");
  if (shape == x.shape()) return x;
  const auto [base, current] = base_view(x);
  if (auto strides = reshaped(x.shape(), current.strides, shape))
    return view(x, std::move(shape), {current.offset, std::move(*strides)});
  const Tensor copy = cast(x, x.dtype());
  const Shape strides = row_major(shape);
  return view(copy, std::move(shape), {0, strides});
}

Tensor permute(Tensor x, const std::vector<int>& order) {
  std::vector<int> sorted = order;
  std::ranges::sort(sorted);
  bool whole = sorted.size() == size_t(x.rank());
  for (size_t i = 0; i < sorted.size() && whole; ++i) whole = sorted[i] == int(i);
  if (!whole) fail("permute: ", to_string(x.shape()), ": expected each of its axes once");
  const auto [base, current] = base_view(x);
  Shape shape, strides;
  for (int axis : order) shape.push_back(x.size(axis)), strides.push_back(current.strides[size_t(axis)]);
  return view(x, std::move(shape), {current.offset, std::move(strides)});
}

Tensor expand(Tensor x, Shape shape) {
  check_shape("expand", shape);
  const auto [base, current] = base_view(x);
  const size_t rank = shape.size(), first = rank - size_t(x.rank());
  if (rank < size_t(x.rank()))
    fail("expand: ", to_string(x.shape()), " to ", to_string(shape), ": expected no fewer axes");
  Shape strides(rank, 0);
  for (size_t i = first; i < rank; ++i) {
    const int64_t size = x.shape()[i - first];
    if (size != 1 && size != shape[i])
      fail("expand: ", to_string(x.shape()), " to ", to_string(shape), ": expected sizes that are equal or were 1");
    if (size == shape[i]) strides[i] = current.strides[i - first];
  }
  return view(x, std::move(shape), {current.offset, std::move(strides)});
}

Tensor slice(Tensor x, int axis, int64_t begin, int64_t end) {
  const auto i = size_t(checked_axis("slice", x.shape(), axis));
  const int64_t size = x.shape()[i];
  if (begin < 0 || begin >= end || end > size)
    fail("slice: ", to_string(x.shape()), ", axis ", axis, ": expected a range within 0 and ", size, ", got ", begin,
         " to ", end);
  const auto [base, current] = base_view(x);
  Shape shape = x.shape();
  shape[i] = end - begin;
  return view(x, std::move(shape), {current.offset + begin * current.strides[i], current.strides});
}

std::vector<Tensor> split(Tensor x, int parts, int axis) {
  const int i = checked_axis("split", x.shape(), axis);
  const int64_t size = x.size(i);
  if (parts < 1 || size % parts)
    fail("split: ", to_string(x.shape()), ", axis ", axis, ": expected a size that ", parts, " parts divide");
  std::vector<Tensor> result;
  for (int64_t begin = 0; begin < size; begin += size / parts) {
    Tensor part = slice(x, i, begin, begin + size / parts);
    Shape shape = part.shape();
    if (shape[size_t(i)] == 1) shape.erase(shape.begin() + i), part = reshape(part, shape);
    result.push_back(part);
  }
  return result;
}

Tensor concat(std::span<const Tensor> parts, int axis) {
  if (parts.empty()) fail("concat: expected one part or more");
  common_graph("concat", parts);
  const auto i = size_t(checked_axis("concat", parts[0].shape(), axis));
  Shape shape = parts[0].shape();
  shape[i] = 0;
  for (Tensor x : parts) {
    Shape rest = x.shape();
    if (rest.size() == shape.size()) shape[i] += rest[i], rest[i] = shape[i];
    if (rest != shape || x.dtype() != parts[0].dtype())
      fail("concat: ", to_string(parts[0].shape()), " and ", to_string(x.shape()), ", axis ", axis,
           ": expected the same other sizes and type");
  }
  Place place{{}, true};
  const Shape strides = row_major(shape);
  std::vector<int32_t> ids;
  int64_t offset = 0;
  for (Tensor x : parts) {
    place.views.push_back({offset, strides});
    offset += x.shape()[i] * strides[i];
    ids.push_back(stored(x).id());
  }
  return parts[0].graph().append({Kind::place, parts[0].dtype(), std::move(shape), std::move(ids), std::move(place)});
}

Tensor apply(Tensor x, const einops::Transform& t) {
  x = reshape(x, t.split);
  if (!t.reduced.empty()) x = reduce(x, t.reduction, t.reduced);
  x = permute(x, t.order);
  if (t.expanded != t.unsqueezed) x = expand(reshape(x, t.unsqueezed), t.expanded);
  return reshape(x, t.merged);
}

// ---- the other primitives

namespace {

// x in this type, each row in one piece.
Tensor in_rows(Tensor x, Dtype type) {
  const bool whole = base_view(x).second.strides.back() == 1 || x.size(-1) == 1;
  return x.dtype() != type || !whole ? cast(x, type) : stored(x);
}

// A matrix in this type, each row or each column in one piece.
Tensor in_rows_or_columns(Tensor x, Dtype type) {
  const Shape& strides = base_view(x).second.strides;
  const int64_t row = strides[strides.size() - 2], column = strides.back(), rows = x.size(-2), columns = x.size(-1);
  const bool whole = column == 1 || columns == 1 || row == 1 || rows == 1;
  const bool repeated = (row == 0 && rows > 1) || (column == 0 && columns > 1);
  return !whole || repeated ? cast(x, type) : stored(x);
}

bool is_weight(Tensor b) { return b.rank() == 2 && b.graph().node(base_view(b).first).kind == Kind::input; }

// What a product that is computed in this type multiplies by: weights of fewer bits are read as they are.
Tensor multiplier(Tensor b, Dtype type) {
  const Graph& graph = b.graph();
  const bool weight = is_weight(b) && type == Dtype::f32;
  if (!is_quantised(b.dtype())) {
    const bool as_stored = b.dtype() == Dtype::bf16 || (graph.streams_weights && b.dtype() == Dtype::f16);
    return b.dtype() == type || (weight && as_stored) ? b : cast(b, type);
  }
  const auto [base, view] = base_view(b);
  const Shape& whole = graph.node(base).shape;
  const bool is_whole = b.shape() == whole || b.shape() == Shape(whole.rbegin(), whole.rend());
  if (!weight || !is_whole || view.offset != 0)
    fail("matmul: ", graph.node(base).name, " ", to_string(b.shape()), ": expected all of ", name(b.dtype()),
         " weights ", to_string(whole), ", and operands in f32");
  return b;
}

// Whether it is read from memory as it lies there (matvec.h).
bool is_streamed(Tensor b, Dtype type) {
  return is_quantised(b.dtype()) || (is_weight(b) && type == Dtype::f32 && b.graph().streams_weights);
}

Dtype product_type(Tensor a, Tensor b) { return is_wide(a) || is_wide(b) ? Dtype::f64 : a.graph().matmul_type; }

}  // namespace

Tensor matmul(Tensor a, Tensor b) {
  Graph& graph = common_graph("matmul", std::array{a, b});
  if (a.rank() < 2 || b.rank() < 2 || a.size(-1) != b.size(-2))
    fail("matmul: ", to_string(a.shape()), " and ", to_string(b.shape()),
         ": expected (..., M, K) and (..., K, N) with the same K");
  const Dtype type = product_type(a, b);
  if (a.dtype() != type) a = cast(a, type);
  b = multiplier(b, type);
  const bool streams = is_streamed(b, type);
  Shape shape = a.shape();
  if (b.rank() == 2) a = reshape(a, {-1, a.size(-1)});  // all rows at once
  a = streams ? in_rows(a, type) : in_rows_or_columns(a, type);
  b = in_rows_or_columns(b, type);
  const Dtype result = type == Dtype::f64 ? Dtype::f64 : Dtype::f32;
  const int64_t m = a.size(-2), k = a.size(-1), n = b.size(-1);
  if (b.rank() == 2) {
    shape.back() = n;
    return reshape(graph.append({Kind::matmul, result, {m, n}, {a.id(), b.id()}, uint64_t{streams}}), shape);
  }
  const Shape batch_a(a.shape().begin(), a.shape().end() - 2), batch_b(b.shape().begin(), b.shape().end() - 2);
  shape = broadcast(batch_a, batch_b, "matmul");
  Shape shape_a = shape, shape_b = shape;
  shape_a.insert(shape_a.end(), {m, k});
  shape_b.insert(shape_b.end(), {k, n});
  shape.insert(shape.end(), {m, n});
  a = expand(a, shape_a);
  b = expand(b, shape_b);
  return graph.append({Kind::matmul, result, std::move(shape), {a.id(), b.id()}, {}});
}

Tensor gather(Tensor table, Tensor ids, int64_t still) {
  Graph& graph = common_graph("gather", std::array{table, ids});
  if (table.rank() != 2 || ids.dtype() != Dtype::i32)
    fail("gather: ", to_string(table.shape()), " and ", to_string(ids.shape()),
         ": expected a table (V, C) and i32 ids");
  Shape shape = ids.shape();
  shape.push_back(table.size(1));
  const Dtype type = table.dtype() == Dtype::f64 ? Dtype::f64 : Dtype::f32;
  TensorNode node{Kind::gather, type, std::move(shape), {contiguous(table).id(), contiguous(ids).id()}, {}};
  if (still >= 0) node.detail = uint64_t(still);
  return graph.append(std::move(node));
}

Tensor only_rows(Tensor x, Tensor ids) {
  Graph& graph = x.graph();
  const int64_t rows = x.count() / x.size(-1), n = ids.count();
  const auto in_rows = [&](const Shape& s) { return s.size() > 1 && count_of(s) == rows * s.back(); };
  const auto of_some = [&](Shape s) {  // the shape for those rows
    std::fill(s.begin(), s.end() - 1, 1);
    s.front() = n;
    return s;
  };
  // Whether a row of a node is a function of the same row of its operand k, rather than of all of it.
  const auto by_row = [&](const TensorNode& y, size_t k) {
    const Shape& s = graph.node(y.operands[k]).shape;
    return y.kind == Kind::map ? in_rows(s) && s.size() == y.shape.size() : k == 0;
  };
  const auto can_be_some = [&](const TensorNode& y) {
    if (!in_rows(y.shape)) return false;
    if (y.kind == Kind::matmul) return y.shape.size() == 2;
    if (y.kind == Kind::view) {
      const auto& [offset, strides] = std::get<View>(y.detail);
      const Shape& base = graph.node(y.operands[0]).shape;
      return offset == 0 && is_row_major(y.shape, strides) && in_rows(base) && base.back() == y.shape.back();
    }
    if (y.kind != Kind::map || std::get<Map>(y.detail).keep == Keep::columns) return false;
    for (size_t k = 0; k < y.operands.size(); ++k) {
      const Tensor operand(&graph, y.operands[k]);
      const bool same_for_all = operand.rank() == 0 || operand.count() == operand.size(-1);
      if (by_row(y, k) ? is_never_stored(operand) : !same_for_all) return false;
    }
    return true;
  };
  std::vector<char> some(size_t(graph.nodes()), 0), all = some;  // what is needed of a node, by x and by others
  some[size_t(x.id())] = 1;
  for (int32_t id = graph.nodes(); id-- > 0;) {
    const TensorNode& y = graph.node(id);
    if (y.kind == Kind::assign || (some[size_t(id)] && !can_be_some(y))) all[size_t(id)] = 1;
    if (!some[size_t(id)] && !all[size_t(id)]) continue;
    const bool only_some = some[size_t(id)] && !all[size_t(id)];
    for (size_t k = 0; k < y.operands.size(); ++k) (only_some && by_row(y, k) ? some : all)[size_t(y.operands[k])] = 1;
  }
  std::vector<Tensor> result(size_t(x.id()) + 1);
  for (int32_t id = 0; id <= x.id(); ++id) {
    if (!some[size_t(id)]) continue;
    TensorNode y = graph.node(id);
    const Shape shape = of_some(y.shape);
    if (all[size_t(id)]) {
      const Tensor y_rows = gather(reshape(Tensor(&graph, id), {rows, -1}), ids);
      result[size_t(id)] = reshape(y_rows.dtype() == y.dtype ? y_rows : cast(y_rows, y.dtype), shape);
    } else if (y.kind == Kind::view) {
      result[size_t(id)] = reshape(result[size_t(y.operands[0])], shape);
    } else {
      for (size_t k = 0; k < y.operands.size(); ++k)
        if (by_row(y, k)) y.operands[k] = result[size_t(y.operands[k])].id();
      y.shape = shape;
      if (Map* const map = std::get_if<Map>(&y.detail)) map->space = of_some(map->space);
      result[size_t(id)] = graph.append(std::move(y));
    }
  }
  return reshape(result.back(), {n, -1});
}

Tensor attention(Tensor q, Tensor k, Tensor v, AttentionOptions options, Tensor lengths, Tensor starts, KeyValues cache,
                 Tensor firsts) {
  Graph& graph = common_graph("attention", std::array{q, k, v});
  const Shape& a = q.shape();
  if (a.size() != 4 || k.rank() != 4 || k.shape() != v.shape() || k.size(0) != a[0] || k.size(3) != a[3] ||
      a[2] % k.size(2))
    fail("attention: ", to_string(a), ", ", to_string(k.shape()), " and ", to_string(v.shape()),
         ": expected q (B, T, H, D), k and v (B, S, H_kv, D), H_kv dividing H");
  std::vector<int32_t> operands{q.id(), k.id(), v.id()};
  for (Tensor x : {lengths, starts, firsts}) {
    if (!x) continue;
    if (x.dtype() != Dtype::i32 || x.shape() != Shape{a[0]})
      fail("attention: lengths, starts or firsts ", to_string(x.shape()), ": expected i32 (", a[0], ")");
    operands.push_back(contiguous(x).id());
  }
  options.has_lengths = bool(lengths);
  options.has_starts = bool(starts);
  options.has_firsts = bool(firsts);
  const Dtype type = is_wide(q) ? Dtype::f64 : Dtype::f32;
  for (size_t i = 0; i < 3; ++i)  // rows of heads are read as they lie
    operands[i] = in_rows({&graph, operands[i]}, type).id();
  options.has_cache = bool(cache.keys);
  if (cache.keys) {
    for (Tensor x : {cache.keys, cache.values}) {
      const bool fits = x.rank() == 4 && x.size(0) == a[0] && x.size(1) == k.size(2) && x.size(3) == a[3];
      if (!fits || x.node().kind != Kind::input || x.dtype() != Dtype::f32)
        fail("attention: cache ", to_string(x.shape()), ": expected an input (", a[0], ", ", k.size(2), ", S, ", a[3],
             ") in f32");
      operands.push_back(x.id());
    }
    if (cache.keys.shape() != cache.values.shape() || !starts || type != Dtype::f32)
      fail("attention: expected a cache of equal shapes, starts, and f32");
  }
  const Tensor out = graph.append({Kind::attention, type, a, operands, options});
  graph.append({Kind::part, type, {a[0], a[2], a[1]}, {out.id()}, uint64_t{1}});  // lse
  return out;
}

Tensor top_k(Tensor x, int64_t k) {
  if (x.rank() < 1 || k < 1 || k > x.size(-1))
    fail("top_k: ", to_string(x.shape()), ": expected as many in a row as are wanted, 1 or more, got ", k);
  if (x.dtype() != Dtype::f64 && x.dtype() != Dtype::f32) x = cast(x, Dtype::f32);
  Shape shape = x.shape();
  shape.back() = k;
  return x.graph().append({Kind::top_k, Dtype::i32, std::move(shape), {contiguous(x).id()}, {}});
}

Tensor expert_matmul(Tensor x, Tensor ids, std::span<const Tensor> weights) {
  if (weights.empty()) fail("expert_matmul: expected one expert or more");
  std::vector<Tensor> all{x, ids};
  all.insert(all.end(), weights.begin(), weights.end());
  Graph& graph = common_graph("expert_matmul", all);
  Shape shape = x.shape();
  if (!shape.empty()) shape.pop_back();
  if (x.rank() < 1 || ids.dtype() != Dtype::i32 || ids.shape() != shape)
    fail("expert_matmul: ", to_string(x.shape()), " and ", to_string(ids.shape()),
         ": expected rows (..., K) and for each an i32 id");
  const Dtype type = product_type(x, weights[0]);
  std::vector<int32_t> operands{in_rows(x, type).id(), contiguous(ids).id()};
  bool streams = false;
  for (Tensor w : weights) {
    if (w.rank() != 2 || w.size(0) != x.size(-1) || w.shape() != weights[0].shape())
      fail("expert_matmul: ", to_string(x.shape()), " and ", to_string(w.shape()),
           ": expected weights (K, N), of all experts the same");
    const Tensor b = multiplier(w, type);
    streams = is_streamed(b, type);
    operands.push_back(in_rows_or_columns(b, type).id());
    const Tensor first{&graph, operands[2]}, last{&graph, operands.back()};
    if (last.dtype() != first.dtype() || base_view(last).second.strides != base_view(first).second.strides)
      fail("expert_matmul: ", name(first.dtype()), " and ", name(last.dtype()),
           ": expected weights of one type and layout");
  }
  shape.push_back(weights[0].size(1));
  const Dtype result = type == Dtype::f64 ? Dtype::f64 : Dtype::f32;
  return graph.append({Kind::expert_matmul, result, std::move(shape), std::move(operands), uint64_t{streams}});
}

Tensor assign(Tensor x, Tensor values) {
  if (x.node().kind != Kind::input) fail("assign: expected an input");
  if (x.shape() != values.shape())
    fail("assign: ", x.node().name, ": expected ", to_string(x.shape()), ", got ", to_string(values.shape()));
  if (values.dtype() != x.dtype() || values.node().kind != Kind::map) values = cast(values, x.dtype());
  return x.graph().append({Kind::assign, x.dtype(), x.shape(), {x.id(), values.id()}, {}});
}

}  // namespace dense
