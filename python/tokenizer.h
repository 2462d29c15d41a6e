// dense.Tokenizer in Python: text to ids and back.
#pragma once

#include <pybind11/pybind11.h>

namespace dense::python {

namespace py = pybind11;

void add_tokenizer(py::module_& module);

}  // namespace dense::python
