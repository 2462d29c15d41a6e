// dense.Var in Python: a place on a tape, and the Tape object that it keeps alive.
//
// Recording is what a Python program does most, so this one type is made of CPython's own slots: an operator costs a
// tenth of a microsecond, four times less than on a class of pybind11. The rest of the module is pybind11's.
#pragma once

#include <pybind11/pybind11.h>

#include <initializer_list>
#include <vector>

#include "dense/scalar/tape.h"

namespace dense::python {

namespace py = pybind11;

// Makes the type and puts it into the module. `error` is dense.Error, which operators raise for Vars of two tapes.
void add_var(py::module_& module, py::handle error);

bool is_var(py::handle x);

// A Var of the tape, or a float for a Var that is a number.
py::object to_python(Var v, py::handle tape);

// Vars and numbers as given from Python, and the Tape object of one of these Vars, which it keeps alive: an iterable may
// hold the last reference.
struct Operands {
  std::vector<Var> vars;
  py::object tape;
};

// One operand each, or all those of an iterable. Throw TypeError for what is neither a Var nor a number: "who: expected
// a Var or a number, got str".
Operands operands(const char* who, std::initializer_list<py::handle> x);
Operands row(const char* who, py::handle x);

}  // namespace dense::python
