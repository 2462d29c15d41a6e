// Tensors on a graph: what a model computes, recorded once.
//
// A Tensor is a place on a Graph. Functions of Tensors check shapes and append nodes: what to compute from which earlier
// nodes. Nothing is computed and no element is stored while recording. grad (below) appends the gradient to the same
// graph, Plan (plan.h) turns nodes into kernels over one arena, and Tensor::value runs what one tensor needs, so that
// any line of a model can be looked at. Shapes broadcast as in NumPy.
//
//   Graph graph;
//   Tensor x = graph.input({2, 3}), w = graph.input({3, 4});
//   Tensor y = gelu(matmul(x, w));                              // (2, 4)
//   std::vector<Tensor> d = grad(sum(y), {x, w});               // (2, 3), (3, 4)
#pragma once

#include <array>
#include <cstring>
#include <deque>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <ostream>
#include <span>
#include <string>
#include <type_traits>
#include <variant>
#include <vector>

#include "dense/scalar/tape.h"
#include "dense/tensor/dtype.h"
#include "dense/tensor/einops.h"

namespace dense {

class Graph;
class Tensor;
class Threads;

// Arithmetic on the elements of a map's operands: one input of the tape for each of them. Beside the operations of the
// scalar tape it may use sums and maxima over a row, whose results are again the same in the whole row.
struct Formula {
  Tape tape;
  Var output;
};

// The primitives. `operands` of a node are said beside each.
enum class Kind : uint8_t {
  input,           // memory outside: given by the user, or a parameter
  counter,         // the number of each element, 0, 1, ...; never stored
  random,          // uniform in [0, 1), a function of (seed, key, number of the element); never stored. key (2) i32
  map,             // a formula of broadcast operands
  matmul,          // (batch..., M, K), (batch..., K, N)
  view,            // other strides over a node that is no view
  place,           // a tensor put together from others, each where a view would find it
  gather,          // rows of a table (V, C) by ids (..., )
  scatter,         // ids, rows (ids, C), base or none: base, or zeros, plus each row where its id says
  attention,       // q, k, v, [lengths, starts, firsts, keys and values of earlier tokens]
  attention_grad,  // q, k, v, out, lse, dout, [lengths, starts, firsts]
  top_k,           // rows (..., V)
  expert_matmul,   // rows (..., K), ids (..., ), of each expert (K, N)
  expert_grad,     // rows (..., K), ids (..., ), rows (..., N): K x N products, summed over the rows of each expert
  part,            // a further result of an operand
  assign,          // an input and its new values
};

// Element (i, j, ...) of a view is number offset + i * strides[0] + j * strides[1] + ... of its operand.
struct View {
  int64_t offset = 0;
  Shape strides;
  bool operator==(const View&) const = default;
};

// What a map leaves of its space: everything, one value for each row (a sum or maximum that the formula takes), or the
// sum over all rows for each column.
enum class Keep : uint8_t { all, rows, columns };

struct Map {
  std::shared_ptr<const Formula> formula;
  Shape space;  // that the operands are broadcast to
  Keep keep = Keep::all;
};

struct Place {
  std::vector<View> views;  // of the result, one for each operand
  bool covers = false;      // every element is in exactly one of them
};

struct AttentionOptions {
  float scale = 1, soft_cap = 0;  // 0: none
  bool causal = true;
  int64_t window = 0;  // 0: no limit
  bool has_lengths = false, has_starts = false, has_firsts = false, has_cache = false;
  bool operator==(const AttentionOptions&) const = default;
};

// Elements that live outside of any plan, such as weights and inputs.
struct Memory {
  std::byte* data = nullptr;
  std::shared_ptr<void> owner;
};

// Zeros, aligned to 64 bytes; large ones in large pages, where rows far apart are found sooner.
Memory zero_memory(size_t bytes);

struct TensorNode {
  Kind kind;
  Dtype dtype;
  Shape shape;
  std::vector<int32_t> operands;
  std::variant<std::monostate, View, Map, Place, AttentionOptions, Memory, uint64_t>
      detail;             // uint64_t: a seed; whether a product streams its weights; how many experts; which part
  std::string name = {};  // of an input; of a map what recorded it, to be shown
  int32_t region = -1;    // of a checkpoint: its values are computed again for the gradient
};

class Tensor {
 public:
  Tensor() = default;
  Tensor(Graph* graph, int32_t id) : graph_(graph), id_(id) {}
  explicit operator bool() const { return graph_; }
  Graph& graph() const { return *graph_; }
  int32_t id() const { return id_; }
  const TensorNode& node() const;
  const Shape& shape() const { return node().shape; }
  Dtype dtype() const { return node().dtype; }
  int rank() const { return int(shape().size()); }
  int64_t size(int axis) const;  // -1 is the last one. Throws Error for an axis that is none
  int64_t count() const;         // of elements

  // The last two axes swapped; a view.
  Tensor t() const;
  // Runs what this tensor needs and returns its elements in order.
  std::vector<float> value() const;
  // The memory of an input, to be filled or read. Throws Error unless T is its type.
  template <class T>
  std::span<T> data() const;
  template <class T>
  void set(std::span<const T> values) const;
  template <class T>
  void set(std::initializer_list<T> values) const {
    set(std::span<const T>(values.begin(), values.size()));
  }

 private:
  std::span<std::byte> bytes(size_t element, bool floating) const;
  Graph* graph_ = nullptr;
  int32_t id_ = -1;
};

std::string to_string(const Shape& shape);                               // (2, 3)
std::ostream& operator<<(std::ostream& out, Tensor x);                   // shape, type and the first values
int64_t count_of(const Shape& shape);                                    // of elements
Shape row_major(const Shape& shape);                                     // strides
Shape broadcast(const Shape& a, const Shape& b, const char* operation);  // throws Error where they do not fit

class Graph {
 public:
  // `threads`: how many its plans may use, 0 for as many as the machine has; or those of other graphs.
  explicit Graph(int threads = 0);
  explicit Graph(std::shared_ptr<Threads> threads) : threads_(std::move(threads)) {}
  ~Graph();
  Graph(const Graph&) = delete;  // Tensors point to their graph
  Graph& operator=(const Graph&) = delete;

  // Elements to be given: zeros until they are.
  Tensor input(Shape shape, Dtype dtype = Dtype::f32, std::string name = {});
  // An input whose memory belongs to somebody else.
  Tensor external(Shape shape, Dtype dtype, Memory memory, std::string name);
  // The same, once for each name: a parameter used twice is one tensor.
  Tensor parameter(const std::string& name, const Shape& shape, Dtype dtype, const Memory& memory);
  const std::map<std::string, Tensor>& parameters() const { return parameters_; }
  // Element (i, j, ...) is its number in row-major order. f32 counts to 2^24.
  Tensor counter(Shape shape, Dtype dtype = Dtype::f32);
  // Uniform in [0, 1): a function of the seed, the key (two i32 given at run time) and the number of the element.
  Tensor random(Shape shape, uint64_t seed, Tensor key);

  Tensor append(TensorNode node);
  const TensorNode& node(int32_t id) const { return nodes_[size_t(id)]; }
  int32_t nodes() const { return int32_t(nodes_.size()); }
  Threads& threads();

  // The type that matmul computes in, for operands in f32: bf16 rounds them first and keeps sums in f32.
  Dtype matmul_type = Dtype::f32;
  // For checks: what is recorded from now on computes in f64, gradients included, whatever its operands are stored in.
  bool wide = false;
  // For few rows: matmuls recorded from now on read weights as they lie in memory, in one stream (see matvec.h).
  bool streams_weights = false;
  int32_t region = -1, regions = 0;  // see Checkpoint

 private:
  std::deque<TensorNode> nodes_;  // references stay valid
  std::map<std::string, Tensor> parameters_;
  std::shared_ptr<Threads> threads_;
};

// ---- maps

// A row of a map's space, for formulas: its length, and reductions over it.
struct Row {
  double columns;
  Var sum(Var x) const { return x.tape() ? record(Op::across, {record(Op::row_sum, {x})}) : x.number() * columns; }
  Var mean(Var x) const { return sum(x) / columns; }
  Var max(Var x) const { return record(Op::across, {record(Op::row_max, {x})}); }  // counts as a constant
};

// y = formula(operands), element by element; the operands are broadcast to a common shape, whose last axis is the row.
// Computed in f64 where an operand is, else in f32. Throws Error where shapes do not fit.
Tensor map(const char* operation, std::span<const Tensor> operands,
           const std::function<Var(Row, std::span<const Var>)>& formula, Keep keep = Keep::all);
inline Tensor map(const char* operation, std::initializer_list<Tensor> operands,
                  const std::function<Var(Row, std::span<const Var>)>& formula, Keep keep = Keep::all) {
  return map(operation, std::span(operands.begin(), operands.size()), formula, keep);
}

Tensor record(Op op, std::span<const Tensor> operands);
Tensor cast(Tensor x, Dtype dtype);

// An operand: a tensor or a number.
struct Operand {
  Tensor tensor;
  double number = 0;
  bool is_number;
  Operand(Tensor t) : tensor(t), is_number(false) {}
  Operand(double n) : number(n), is_number(true) {}
};
Tensor record(Op op, Operand a, Operand b);

// clang-format off
inline Tensor operator+(Tensor a, Operand b) { return record(Op::add, a, b); }
inline Tensor operator-(Tensor a, Operand b) { return record(Op::sub, a, b); }
inline Tensor operator*(Tensor a, Operand b) { return record(Op::mul, a, b); }
inline Tensor operator/(Tensor a, Operand b) { return record(Op::div, a, b); }
inline Tensor operator+(double a, Tensor b) { return record(Op::add, a, b); }
inline Tensor operator-(double a, Tensor b) { return record(Op::sub, a, b); }
inline Tensor operator*(double a, Tensor b) { return record(Op::mul, a, b); }
inline Tensor operator/(double a, Tensor b) { return record(Op::div, a, b); }
inline Tensor operator-(Tensor a) { return record(Op::neg, std::span(&a, 1)); }
inline Tensor pow(Tensor a, Operand b) { return record(Op::pow, a, b); }
inline Tensor max(Tensor a, Operand b) { return record(Op::max, a, b); }
inline Tensor min(Tensor a, Operand b) { return record(Op::min, a, b); }
inline Tensor less(Tensor a, Operand b) { return record(Op::less, a, b); }    // 1 or 0, without a derivative
inline Tensor equal(Tensor a, Operand b) { return record(Op::equal, a, b); }
inline Tensor exp(Tensor a) { return record(Op::exp, std::span(&a, 1)); }
inline Tensor log(Tensor a) { return record(Op::log, std::span(&a, 1)); }
inline Tensor sqrt(Tensor a) { return record(Op::sqrt, std::span(&a, 1)); }
inline Tensor rsqrt(Tensor a) { return record(Op::rsqrt, std::span(&a, 1)); }
inline Tensor tanh(Tensor a) { return record(Op::tanh, std::span(&a, 1)); }
inline Tensor sigmoid(Tensor a) { return record(Op::sigmoid, std::span(&a, 1)); }
inline Tensor softplus(Tensor a) { return record(Op::softplus, std::span(&a, 1)); }
inline Tensor erf(Tensor a) { return record(Op::erf, std::span(&a, 1)); }
inline Tensor sin(Tensor a) { return record(Op::sin, std::span(&a, 1)); }
inline Tensor cos(Tensor a) { return record(Op::cos, std::span(&a, 1)); }
inline Tensor abs(Tensor a) { return record(Op::abs, std::span(&a, 1)); }
inline Tensor relu(Tensor a) { return record(Op::relu, std::span(&a, 1)); }
// clang-format on
Tensor where(Tensor condition, Operand a, Operand b);  // a where condition is not 0, else b

// ---- reductions

// Over the axes given (all of them when none is), which disappear. The gradient of max and min is shared by equals.
Tensor reduce(Tensor x, Reduction reduction, std::vector<int> axes = {});
inline Tensor sum(Tensor x, std::vector<int> axes = {}) { return reduce(x, Reduction::sum, std::move(axes)); }
inline Tensor mean(Tensor x, std::vector<int> axes = {}) { return reduce(x, Reduction::mean, std::move(axes)); }

// ---- views: no element is copied until a kernel needs it side by side

Tensor reshape(Tensor x, Shape shape);  // one size may be -1
Tensor permute(Tensor x, const std::vector<int>& order);
Tensor expand(Tensor x, Shape shape);  // axes of size 1, and new ones in front, repeated
Tensor slice(Tensor x, int axis, int64_t begin, int64_t end);
// Parts of equal size along an axis, which disappears when they are of size 1.
std::vector<Tensor> split(Tensor x, int parts, int axis = 0);
// C++ arrays for structured bindings: auto [q, k, v] = split<3>(qkv).
template <size_t n>
std::array<Tensor, n> split(Tensor x, int axis = 0) {
  std::array<Tensor, n> parts;
  const auto all = split(x, int(n), axis);
  for (size_t i = 0; i < n; ++i) parts[i] = all[i];
  return parts;
}
Tensor concat(std::span<const Tensor> parts, int axis);

// ---- the other primitives

// (..., M, K) (..., K, N) -> (..., M, N), sums over K in f32 (f64 for f64).
Tensor matmul(Tensor a, Tensor b);
// Row ids[i] of table (V, C), for each i: (ids..., C). Of a row `still` the gradient is 0, as PyTorch has it of padding.
// Running throws Error for an id that is no row.
Tensor gather(Tensor table, Tensor ids, int64_t still = -1);
// gather(reshape(x, {-1, C}), ids) for x (..., C), to the same bits: of products and maps that nothing but x needs so
// far, only these rows are computed.
Tensor only_rows(Tensor x, Tensor ids);
// Scaled dot product attention: q (B, T, H, D), k and v (B, S, H_kv, D) -> (B, T, H, D), where H_kv divides H. lengths
// (B) i32: only so many keys of a row are seen, from the one that firsts (B) i32 says on; starts (B) i32: the position of
// a row's first query. With a cache, inputs, k and v of the token at position p are first written to its place p, if it
// has one, and q sees those of all earlier positions, too; there is no gradient.
struct KeyValues {
  Tensor keys = {}, values = {};  // (B, H_kv, S, D)
};
Tensor attention(Tensor q, Tensor k, Tensor v, AttentionOptions options, Tensor lengths = {}, Tensor starts = {},
                 KeyValues cache = {}, Tensor firsts = {});
// Of each row of x (..., V) the numbers of its k largest elements, the largest first, of equals the one in front, i32
// (..., k). NaN counts as largest. It has no gradient.
Tensor top_k(Tensor x, int64_t k);
// x (..., K), ids (...) i32 -> (..., N): each row times the weights (K, N) of the expert that its id names, to the bits
// of matmul. The weights are of one shape, type and layout; only those that ids name are read. Running throws Error for
// an id that is no expert.
Tensor expert_matmul(Tensor x, Tensor ids, std::span<const Tensor> weights);
// Gives the input x new values, at the end of a run. value() never does.
Tensor assign(Tensor x, Tensor values);

// d(y)/dx for each x, recorded on the same graph; zeros where y does not depend on x. y has one element.
std::vector<Tensor> grad(Tensor y, std::span<const Tensor> xs);
inline std::vector<Tensor> grad(Tensor y, std::initializer_list<Tensor> xs) {
  return grad(y, std::span(xs.begin(), xs.size()));
}

// While it lives, what is recorded is not kept for the gradient but computed once more: memory for time, the same
// gradients. One inside another is part of it.                                     Chen et al. 2016, arXiv:1604.06174
class Checkpoint {
 public:
  explicit Checkpoint(Graph& graph, bool on = true) : graph_(graph), outer_(graph.region) {
    if (on && outer_ < 0) graph.region = graph.regions++;
  }
  ~Checkpoint() { graph_.region = outer_; }
  Checkpoint(const Checkpoint&) = delete;
  Checkpoint& operator=(const Checkpoint&) = delete;

 private:
  Graph& graph_;
  int32_t outer_;
};

// ---- einops.h: rearrange<"b t (h d) -> b h t d", "h">(x, n_head), reduce<...>, repeat<...>

inline const Shape& shape_of(Tensor x) { return x.shape(); }
Tensor apply(Tensor x, const einops::Transform& transform);

// ---- inlines

template <class T>
std::span<T> Tensor::data() const {
  const auto all = bytes(sizeof(T), std::is_floating_point_v<T>);
  return {reinterpret_cast<T*>(all.data()), all.size() / sizeof(T)};
}

template <class T>
void Tensor::set(std::span<const T> values) const {
  const std::span<T> to = data<T>();
  extern void expect_count(const Tensor&, size_t);
  expect_count(*this, values.size());
  std::copy(values.begin(), values.end(), to.begin());
}

}  // namespace dense
