// dense.Model in Python: a language model on NumPy arrays, with dense.load and dense.init that make one.
#pragma once

#include <pybind11/pybind11.h>

namespace dense::python {

namespace py = pybind11;

void add_model(py::module_& module);

}  // namespace dense::python
