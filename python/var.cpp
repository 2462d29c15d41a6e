#include "python/var.h"

#include <new>
#include <sstream>
#include <string>
#include <type_traits>

#include "dense/scalar/error.h"
#include "dense/scalar/rules.h"

namespace dense::python {

namespace {

struct Object {
  PyObject_HEAD Var var;
  PyObject* tape;
};

PyTypeObject* type = nullptr;
PyObject* error_type = nullptr;

const Object& object(PyObject* x) { return *reinterpret_cast<Object*>(x); }

// A number is a float, an int or what converts itself to one, like NumPy's scalars; arrays are none.
bool is_number(PyObject* x) {
  if (PyFloat_Check(x) || PyLong_Check(x)) return true;
  const PyNumberMethods* as = Py_TYPE(x)->tp_as_number;
  return as && (as->nb_float || as->nb_index) && !PySequence_Check(x);
}

// False for what is neither Var nor number.
bool read(PyObject* x, Var& var, py::handle& tape) {
  if (is_var(x)) {
    var = object(x).var, tape = object(x).tape;
    return true;
  }
  if (!is_number(x)) return false;
  const double number = PyFloat_AsDouble(x);
  if (number == -1 && PyErr_Occurred()) throw py::error_already_set();
  var = number;
  return true;
}

void add(Operands& to, const char* who, PyObject* x) {
  py::handle tape;
  if (!read(x, to.vars.emplace_back(), tape))
    throw py::type_error(std::string(who) + ": expected a Var or a number, got " + Py_TYPE(x)->tp_name);
  if (tape) to.tape = py::reinterpret_borrow<py::object>(tape);
}

// What a slot returns, with exceptions as Python has them.
template <class F>
PyObject* checked(F&& f) {
  try {
    return f();
  } catch (const Error& e) {
    PyErr_SetString(error_type, e.what());
  } catch (py::error_already_set& e) {
    e.restore();
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  }
  return nullptr;
}

template <Op op>
PyObject* unary(PyObject* x) {
  return checked([&] { return to_python(record(op, {object(x).var}), object(x).tape).release().ptr(); });
}

PyObject* record_two(Op op, PyObject* a, PyObject* b) {
  return checked([&]() -> PyObject* {
    Var x, y;
    py::handle tape;
    if (!read(a, x, tape) || !read(b, y, tape)) Py_RETURN_NOTIMPLEMENTED;
    return to_python(record(op, {x, y}), tape).release().ptr();
  });
}

template <Op op>
PyObject* binary(PyObject* a, PyObject* b) {
  return record_two(op, a, b);
}

PyObject* power(PyObject* a, PyObject* b, PyObject* modulus) {
  if (modulus != Py_None) Py_RETURN_NOTIMPLEMENTED;
  return record_two(Op::pow, a, b);
}

PyObject* positive(PyObject* x) { return Py_NewRef(x); }

PyObject* compare(PyObject* a, PyObject* b, int how) {
  switch (how) {
    case Py_LT: return record_two(Op::less, a, b);
    case Py_LE: return record_two(Op::less_equal, a, b);
    case Py_GT: return record_two(Op::less, b, a);
    case Py_GE: return record_two(Op::less_equal, b, a);
    default: break;
  }
  PyObject* same = record_two(Op::equal, a, b);
  if (how == Py_EQ || !same || same == Py_NotImplemented) return same;
  PyObject* one = PyLong_FromLong(1);
  PyObject* different = one ? record_two(Op::sub, one, same) : nullptr;
  Py_XDECREF(one);
  Py_DECREF(same);
  return different;
}

int truth(PyObject*) {
  PyErr_SetString(PyExc_TypeError,
                  "bool(Var): a Var has no value while it is recorded, so Python cannot branch on it: write "
                  "dense.where(condition, a, b) for `a if condition else b`, dense.min or dense.max for min or max");
  return -1;
}

// "Var 7 = mul(Var 5, 0.5)"
std::string text(const Tape& tape, int32_t place) {
  const Node& node = tape.nodes()[place];
  std::ostringstream out;
  const auto name = [&](int32_t x) -> std::string {
    const Node& operand = tape.nodes()[x];
    if (operand.op == Op::constant) return py::str(py::float_(tape.constant_value(operand)));
    return "Var " + std::to_string(x);
  };
  out << "Var " << place << " = " << rule(node.op).name;
  if (node.op == Op::constant) out << ' ' << name(place);
  else if (node.op == Op::input || node.op == Op::shared) out << ' ' << node.index;
  else {
    constexpr size_t shown = 8;
    const auto places = tape.operands(node);
    out << '(';
    for (size_t i = 0; i < places.size() && i < shown; ++i) out << (i ? ", " : "") << name(places[i]);
    out << (places.size() > shown ? ", ...)" : ")");
  }
  if (node.op == Op::softmax) out << '[' << node.index << ']';
  return out.str();
}

PyObject* repr(PyObject* x) {
  const Var var = object(x).var;
  return checked([&] { return py::str(text(*var.tape(), var.id())).release().ptr(); });
}

void destroy(PyObject* x) {
  Py_DECREF(object(x).tape);
  PyObject_Free(x);
  Py_DECREF(type);  // which PyObject_New counts
}

const char doc[] =
    "A place on a Tape: an input or the result of an operation. + - * / ** abs() and the comparisons record more;\n"
    "numbers may stand on either side. A comparison, == included, is a Var of value 1 or 0, for dense.where. As a key\n"
    "of a dict or set, a Var is itself, whatever its value.";

}  // namespace

bool is_var(py::handle x) { return Py_TYPE(x.ptr()) == type; }

py::object to_python(Var v, py::handle tape) {
  if (!v.tape()) return py::float_(v.number());
  Object* x = PyObject_New(Object, type);
  if (!x) throw py::error_already_set();
  x->var = v;
  x->tape = tape.inc_ref().ptr();
  return py::reinterpret_steal<py::object>(reinterpret_cast<PyObject*>(x));
}

Operands operands(const char* who, std::initializer_list<py::handle> x) {
  Operands result;
  for (py::handle one : x) add(result, who, one.ptr());
  return result;
}

Operands row(const char* who, py::handle x) {
  if (!Py_TYPE(x.ptr())->tp_iter && !PySequence_Check(x.ptr()))
    throw py::type_error(std::string(who) + ": expected a list of Vars and numbers, got " + Py_TYPE(x.ptr())->tp_name);
  const auto list = py::reinterpret_steal<py::object>(PySequence_Fast(x.ptr(), who));
  if (!list) throw py::error_already_set();
  Operands result;
  result.vars.reserve(size_t(PySequence_Fast_GET_SIZE(list.ptr())));
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(list.ptr()); ++i) {
    const auto one = py::reinterpret_borrow<py::object>(PySequence_Fast_GET_ITEM(list.ptr(), i));
    add(result, who, one.ptr());
  }
  return result;
}

void add_var(py::module_& module, py::handle error) {
  const auto slot = [](int id, auto* f) {
    if constexpr (std::is_function_v<std::remove_pointer_t<decltype(f)>>)
      return PyType_Slot{id, reinterpret_cast<void*>(f)};
    else return PyType_Slot{id, const_cast<char*>(f)};
  };
  PyType_Slot slots[] = {
      slot(Py_tp_doc, doc),
      slot(Py_tp_dealloc, destroy),
      slot(Py_tp_repr, repr),
      slot(Py_tp_hash, PyBaseObject_Type.tp_hash),
      slot(Py_tp_richcompare, compare),
      slot(Py_nb_bool, truth),
      slot(Py_nb_add, binary<Op::add>),
      slot(Py_nb_subtract, binary<Op::sub>),
      slot(Py_nb_multiply, binary<Op::mul>),
      slot(Py_nb_true_divide, binary<Op::div>),
      slot(Py_nb_power, power),
      slot(Py_nb_negative, unary<Op::neg>),
      slot(Py_nb_positive, positive),
      slot(Py_nb_absolute, unary<Op::abs>),
      {0, nullptr},
  };
  PyType_Spec spec = {"dense.Var", sizeof(Object), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};
  const auto made = py::reinterpret_steal<py::object>(PyType_FromSpec(&spec));
  if (!made) throw py::error_already_set();
  made.attr("__array_ufunc__") = py::none();  // so that NumPy's scalars leave `scalar * var` to the Var
  module.attr("Var") = made;
  type = reinterpret_cast<PyTypeObject*>(made.inc_ref().ptr());
  error_type = error.inc_ref().ptr();
}

}  // namespace dense::python
