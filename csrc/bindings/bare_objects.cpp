// SPDX-License-Identifier: MIT
// Objects that nobody constructed, refused: the core's functions would read memory that was never written.
#include <pybind11/pybind11.h>

#include <string>

#include "module.hpp"

namespace py = pybind11;

namespace fastreplay {

namespace {

// Pickles and copies: Python's own way of older protocols ends the process here.
void refuse_pickles(const py::handle& type) {
  const auto refuse = [](const py::handle& self, const py::args&) -> py::object {
    throw py::type_error{"cannot pickle " + py::cast<std::string>(py::type::handle_of(self).attr("__name__"))};
  };
  for (const char* method : {"__reduce__", "__reduce_ex__"}) {
    py::setattr(type, method, py::cpp_function{refuse, py::name(method), py::is_method(type)});
  }
}

// `__new__`, whose objects pybind11 takes for whole. It goes into the class's dictionary alone: calls of the class use
// its slot, which stays.
void refuse_new(PyTypeObject* type) {
  const auto refuse = [type](const py::args& args, const py::kwargs&) -> py::object {
    if (args.empty() || args[0].ptr() == reinterpret_cast<PyObject*>(type) || PyType_Check(args[0].ptr()) == 0) {
      throw py::type_error{"expected a call of the class, which initializes what it makes"};
    }
    auto* derived = reinterpret_cast<PyTypeObject*>(args[0].ptr());  // a class made in Python, which calls this
    if (PyType_IsSubtype(derived, type) == 0) throw py::type_error{"expected a class that is derived from this one"};
    return py::reinterpret_steal<py::object>(type->tp_new(derived, py::tuple{}.ptr(), nullptr));
  };
  if (PyDict_SetItemString(type->tp_dict, "__new__", py::staticmethod{py::cpp_function{refuse}}.ptr()) != 0) {
    throw py::error_already_set{};
  }
  PyType_Modified(type);
}

}  // namespace

void refuse_bare_objects(const py::module_& m) {
  for (const auto& [name, value] : m.attr("__dict__").cast<py::dict>()) {
    if (PyType_Check(value.ptr()) == 0) continue;
    refuse_pickles(value);
    refuse_new(reinterpret_cast<PyTypeObject*>(value.ptr()));
  }
}

}  // namespace fastreplay
