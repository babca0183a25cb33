// SPDX-License-Identifier: MIT
// Objects of the core within Python's, for calls that come at every minibatch: pybind11 looks each argument's type up
// in a table, and takes longer for that than a short call does for the rest.
#pragma once

#include <pybind11/pybind11.h>

namespace fastreplay {

// Null where it is no instance of this very class, or nobody initialized it.
template <class Bound>
Bound* instance_in(PyObject* object) {
  static auto* const type = reinterpret_cast<PyTypeObject*>(pybind11::type::of<Bound>().ptr());
  if (Py_TYPE(object) != type) return nullptr;
  auto* instance = reinterpret_cast<pybind11::detail::instance*>(object);
  return instance->simple_layout ? static_cast<Bound*>(instance->simple_value_holder[0]) : nullptr;
}

}  // namespace fastreplay
