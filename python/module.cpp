// The Python module dense: record on a Tape, compile, run on NumPy arrays. Vars are in var.h, models in model.h.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dense/scalar/error.h"
#include "dense/scalar/program.h"
#include "dense/scalar/rules.h"
#include "python/model.h"
#include "python/tokenizer.h"
#include "python/var.h"

namespace dense::python {

namespace {

using namespace pybind11::literals;
using Object = const py::object&;  // whatever Python gives
using Shape = std::vector<py::ssize_t>;

// Functions of Vars and numbers, in Python under their names in the table of rules.
struct Function {
  Op op;
  const char* doc;
};
constexpr Function functions[] = {
    {Op::exp, "e ** x"},
    {Op::log, "The natural logarithm of x."},
    {Op::log1p, "log(1 + x)"},
    {Op::expm1, "exp(x) - 1"},
    {Op::sqrt, "The square root of x."},
    {Op::rsqrt, "1 / sqrt(x)"},
    {Op::tanh, "The hyperbolic tangent of x."},
    {Op::sigmoid, "1 / (1 + exp(-x))"},
    {Op::softplus, "log(1 + exp(x))"},
    {Op::erf, "The error function of x."},
    {Op::sin, "The sine of x."},
    {Op::cos, "The cosine of x."},
    {Op::abs, "x or -x, whichever is not negative."},
    {Op::relu, "x if x > 0, else 0."},
    {Op::pow, "a ** b"},
    {Op::min, "The smaller of a and b; of equals a, as is the derivative."},
    {Op::max, "The larger of a and b; of equals a, as is the derivative."},
    {Op::equal, "1 if a equals b, else 0. a == b records the same."},
};

py::object call(Op op, std::initializer_list<py::handle> x) {
  const Operands in = operands(rule(op).name, x);
  return to_python(record(op, in.vars), in.tape);
}

py::list to_list(const std::vector<Var>& vars, py::handle tape) {
  py::list list(vars.size());
  for (size_t i = 0; i < vars.size(); ++i) list[i] = to_python(vars[i], tape);
  return list;
}

py::object where(Object condition, Object a, Object b) { return call(Op::where, {condition, a, b}); }

py::object sum(Object x) {
  const Operands in = row("sum", x);
  return to_python(dense::sum(in.vars), in.tape);
}

py::object dot(Object a, Object b) {
  const Operands x = row("dot", a), y = row("dot", b);
  return to_python(dense::dot(x.vars, y.vars), x.tape ? x.tape : y.tape);
}

py::object at(Object x, Object index) {
  const Operands in = row("at", x), i = operands("at", {index});
  return to_python(dense::at(in.vars, i.vars[0]), in.tape ? in.tape : i.tape);
}

py::object softmax(Object x) {
  const Operands in = row("softmax", x);
  return to_list(dense::softmax(in.vars), in.tape);
}

py::object logsumexp(Object x) {
  const Operands in = row("logsumexp", x);
  return to_python(dense::logsumexp(in.vars), in.tape);
}

void add_functions(py::module_& m) {
  for (const auto& [op, doc] : functions) {
    const Op f = op;
    const auto unary = [f](Object x) { return call(f, {x}); };
    const auto binary = [f](Object a, Object b) { return call(f, {a, b}); };
    if (rule(f).arity == 1) m.def(rule(f).name, unary, "x"_a, doc);
    else m.def(rule(f).name, binary, "a"_a, "b"_a, doc);
  }
  m.def("where", where, "condition"_a, "a"_a, "b"_a,
        "a where condition is not 0, else b. The other one's derivative is multiplied by 0, which a derivative of\n"
        "infinity survives: write where(x > 0, log(where(x > 0, x, 1)), 0).");
  m.def("sum", sum, "x"_a, "0 + x[0] + x[1] + ..., as one operation.");
  m.def("dot", dot, "a"_a, "b"_a,
        "0 + a[0] * b[0] + a[1] * b[1] + ..., as one operation. Raises Error for rows of different lengths.");
  m.def("at", at, "x"_a, "index"_a,
        "x[index] for an index computed or given at run time. Running raises Error where it is none of\n"
        "0, 1, ..., len(x) - 1.");
  m.def("softmax", softmax, "x"_a, "The list of exp(x[i]) divided by their sum. Raises Error for an empty x.");
  m.def("logsumexp", logsumexp, "x"_a,
        "log(exp(x[0]) + exp(x[1]) + ...) without overflow. Raises Error for an empty x.");
}

Precision precision_named(Object name) {
  for (int i = 0; i < 3; ++i)
    if (py::isinstance<py::str>(name) && name.equal(py::str(precision_names[i]))) return Precision(i);
  const std::string error = "compile: precision: expected 'exact', 'f64' or 'f32', got " + std::string(py::repr(name));
  if (!py::isinstance<py::str>(name)) throw py::type_error(error);
  fail(error);
}

// One Var counts as a row of one.
std::vector<Var> row_or_var(const char* who, Object x) { return (is_var(x) ? operands(who, {x}) : row(who, x)).vars; }

Program compile(const Tape& tape, Object outputs, Object wrt, Object precision) {
  const auto y = row_or_var("compile: outputs", outputs), x = row_or_var("compile: wrt", wrt);
  return tape.compile(y, x, precision_named(precision));
}

py::list gradient(Tape& tape, Object y, Object xs) {
  const Operands of = operands("gradient", {y}), to = row("gradient", xs);
  return to_list(tape.gradient(of.vars[0], to.vars), py::cast(&tape));
}

std::string repr_tape(const Tape& tape) {
  return "<dense.Tape: " + std::to_string(tape.nodes().size()) + " places, " + std::to_string(tape.inputs()) +
         " inputs, " + std::to_string(tape.shared_values().size()) + " shared>";
}

constexpr char gradient_doc[] = R"(
Records dy/dx for each x of the list xs, which may be any Vars of this tape, and returns their list. They are Vars like
any other: the gradient of one is a second derivative. Raises Error for a Var of another tape.)";

constexpr char compile_doc[] = R"(
A Program for the values of `outputs`, one Var or a list, and their derivatives with respect to `wrt`, one or more
inputs of either kind. What is recorded later does not change it, and it may outlive the tape.

precision: 'exact' gives the numbers of the same arithmetic in Python, to the last bit; 'f64' and 'f32' are faster:
float64 or float32, vector functions, sums in an order of the compiler's.

Raises Error without outputs, for a Var of another tape and for a wrt that is not an input.)";

void add_tape(py::module_& m) {
  // Final, since a subclass with a Var among its attributes would be a circle that Python's collector cannot see.
  py::class_<Tape>(m, "Tape", py::is_final(), "Arithmetic recorded once, to be compiled and run any number of times.")
      .def(py::init<>())
      .def(
          "input", [](Tape& tape) { return to_python(tape.input(), py::cast(&tape)); },
          "A new input with a value of its own in every lane.")
      .def(
          "shared", [](Tape& tape, double value) { return to_python(tape.shared(value), py::cast(&tape)); },
          "value"_a = 0.0,
          "A new input whose value all lanes share; `value` is used by runs that give no other. Its gradient is\n"
          "summed over lanes.")
      .def("gradient", gradient, "y"_a, "xs"_a, gradient_doc)
      .def("compile", compile, "outputs"_a, "wrt"_a = py::tuple(), "precision"_a = "f64", compile_doc)
      .def("__repr__", repr_tape);
}

template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast | py::detail::npy_api::NPY_ARRAY_ALIGNED_>;

// x as an array of T in C order: x itself where it is one, else a converted copy.
template <class T>
Array<T> numbers(const std::string& what, Object x) {
  const py::array array(x);
  if (std::string_view("biuf").find(array.dtype().kind()) == std::string_view::npos)
    throw py::type_error(what + ": expected an array of numbers, got dtype " + std::string(py::str(array.dtype())));
  return Array<T>(array);
}

Shape shape(const py::array& array) { return {array.shape(), array.shape() + array.ndim()}; }

std::string text(const Shape& shape) {  // as Python writes it
  std::string text;
  for (py::ssize_t size : shape) text += (text.empty() ? "" : ", ") + std::to_string(size);
  return "(" + text + (shape.size() == 1 ? ",)" : ")");
}

template <class T>
std::span<T> span(Array<T>& array) {
  return {array.mutable_data(), size_t(array.size())};
}

// A run of a program: the arrays that it reads, and the batch, in which the caller says where to write.
template <class T>
struct Run {
  const Program& program;
  const std::string name;
  const Array<T> X;
  const bool one_lane = X.ndim() == 1;  // then no array has an axis for lanes
  Array<T> shared, seeds;
  Program::BatchOf<T> batch;

  Run(const Program& p, const char* method, Object x, Object w, int threads)
      : program(p), name(method), X(numbers<T>(name + ": X", x)) {
    const py::ssize_t lanes = X.ndim() == 2 ? X.shape(0) : 1;
    if (lanes > std::numeric_limits<int>::max()) fail(name, ": X: expected fewer than 2^31 lanes, got ", lanes);
    batch.lanes = int(lanes), batch.threads = threads, batch.by_lane = true;
    if (const Shape want = per_lane({p.inputs()}); shape(X) != want)
      fail(name, ": X: expected shape (lanes, ", p.inputs(), ") or (", p.inputs(), ",), got ", text(shape(X)));
    batch.inputs = {X.data(), size_t(X.size())};
    if (!w.is_none()) batch.shared = read(shared, "shared", w, {p.shared()});
  }

  void weigh(Object weights) { batch.seeds = read(seeds, "seeds", weights, per_lane({program.outputs()})); }

  Shape per_lane(Shape sizes) const {
    if (!one_lane) sizes.insert(sizes.begin(), batch.lanes);
    return sizes;
  }

  void start() const {
    const py::gil_scoped_release release;
    program.run(batch);
  }

 private:
  std::span<const T> read(Array<T>& to, const char* what, Object x, const Shape& want) const {
    to = numbers<T>(name + ": " + what, x);
    if (shape(to) != want) fail(name, ": ", what, ": expected shape ", text(want), ", got ", text(shape(to)));
    return {to.data(), size_t(to.size())};
  }
};

// values, grads, shared_grads
template <class T>
py::tuple run(const Program& p, Object X, Object shared, Object seeds, int threads) {
  Run<T> run(p, "run", X, shared, threads);
  if (!seeds.is_none()) run.weigh(seeds);
  Array<T> values(run.per_lane({p.outputs()}));
  run.batch.values = span(values);
  if (p.seeds() && seeds.is_none()) {
    run.start();
    return py::make_tuple(values, py::none(), py::none());
  }
  Array<T> grads(run.per_lane({p.wrt()})), shared_grads(Shape{p.shared_wrt()});
  run.batch.grads = span(grads);
  run.batch.shared_grads = span(shared_grads);
  run.start();
  return py::make_tuple(values, grads, shared_grads);
}

template <class T>
py::object jacobian(const Program& p, Object X, Object shared, int threads) {
  Run<T> run(p, "jacobian", X, shared, threads);
  Array<T> result(run.per_lane({p.outputs(), p.wrt() + p.shared_wrt()}));
  run.batch.jacobian = span(result);
  run.start();
  return result;
}

constexpr char run_doc[] = R"(
Runs forward and, where it was compiled with wrt, backward. Returns a Result, a named tuple of
  values        (lanes, outputs)
  grads         (lanes, per-lane wrt)
  shared_grads  (shared wrt,): summed over lanes
The gradients are those of the output or, of several outputs, of their sum weighted by seeds; without seeds both are
None.

X        (lanes, inputs), inputs in order of creation; or (inputs,) for one lane: then no array has an axis for lanes
shared   (shared inputs,), in order of creation; None: their values at recording
seeds    (lanes, outputs)
threads  at most so many; 0: as many as the machine has, where there is work for them

Arrays of the program's type, float32 for 'f32' and else float64, are read where they are if they are in C order; any
other numbers are converted first. Other threads of Python run meanwhile. Raises Error for another shape and TypeError
for what are not numbers.)";

constexpr char jacobian_doc[] = R"(
The derivative of every output by every wrt in every lane: (lanes, outputs, wrt), wrt of both kinds in the order given
to compile. Arguments as in run.)";

std::string repr_program(const Program& p) {
  return "<dense.Program: " + std::to_string(p.inputs()) + " inputs, " + std::to_string(p.shared()) + " shared, " +
         std::to_string(p.outputs()) + " outputs, " + precision_names[int(p.precision())] + ">";
}

void add_program(py::module_& m) {
  const py::object namedtuple = py::module_::import("collections").attr("namedtuple");
  const py::object Result = namedtuple("Result", "values grads shared_grads", "module"_a = "dense");
  Result.attr("__doc__") =
      "What Program.run returns: values (lanes, outputs), grads (lanes, per-lane wrt), shared_grads (shared wrt,).";
  m.attr("Result") = Result;

  const auto run_any = [Result](const Program& p, Object X, Object shared, Object seeds, int threads) {
    return Result(*(p.precision() == Precision::f32 ? run<float> : run<double>)(p, X, shared, seeds, threads));
  };
  const auto jacobian_any = [](const Program& p, Object X, Object shared, int threads) {
    return (p.precision() == Precision::f32 ? jacobian<float> : jacobian<double>)(p, X, shared, threads);
  };
  const auto precision = [](const Program& p) { return precision_names[int(p.precision())]; };

  py::class_<Program>(m, "Program", "What a Tape holds, compiled. Threads may run it at the same time.")
      .def("run", run_any, "X"_a = py::tuple(), "shared"_a = py::none(), "seeds"_a = py::none(), "threads"_a = 0,
           run_doc)
      .def("jacobian", jacobian_any, "X"_a = py::tuple(), "shared"_a = py::none(), "threads"_a = 0, jacobian_doc)
      .def("listing", &Program::listing, "The operations, one a line.")
      .def("dot", &Program::graphviz, "The operations as a graph in the DOT language, for Graphviz.")
      .def("__str__", &Program::summary)
      .def("__repr__", repr_program)
      .def_property_readonly("inputs", &Program::inputs, "how many inputs a lane has")
      .def_property_readonly("shared", &Program::shared, "how many shared inputs there are")
      .def_property_readonly("outputs", &Program::outputs, "how many outputs a lane has")
      .def_property_readonly("precision", precision, "'exact', 'f64' or 'f32'")
      .def_property_readonly("operations", &Program::operations, "of a run, forward and backward")
      .def_property_readonly("instructions", &Program::instructions, "one for many operations of one kind")
      .def_property_readonly("bytes", &Program::bytes, "of memory for a run with one lane");
}

constexpr char module_doc[] = R"(Scalar arithmetic recorded once, differentiated, and replayed on NumPy arrays.

    t = dense.Tape()
    x, w = t.input(), t.shared(3)              # x differs from lane to lane, w does not
    y = dense.log(1 + dense.exp(w * x))
    p = t.compile(y, wrt=[x, w])
    r = p.run([[-1], [0], [2]])                # three lanes
    r.values, r.grads, r.shared_grads          # (3, 1), (3, 1), (1,)

Functions of numbers alone return floats.

Language models, on arrays of tokens: see Model.

    m = dense.load("gpt2/")                    # a folder as Hugging Face has it; or dense.init("gpt2", n_layer=2)
    m.logits(ids), m.loss(ids, labels=ids)     # ids (B, T)
    m.step(ids, labels=ids, lr=1e-4))";

}  // namespace

}  // namespace dense::python

PYBIND11_MODULE(dense, m) {
  using namespace dense::python;
  m.doc() = module_doc;
  auto error = py::register_exception<dense::Error>(m, "Error", PyExc_ValueError);
  error.attr("__doc__") = "Bad input or a wrong call: where, what was expected and what was found.";
  add_var(m, error);
  add_functions(m);
  add_tape(m);
  add_program(m);
  add_model(m);
  add_tokenizer(m);
}
