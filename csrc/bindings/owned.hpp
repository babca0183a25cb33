// SPDX-License-Identifier: MIT
// An own reference to a dictionary's value, which another thread may replace at any moment where there is no GIL. For
// Cython, whose modules include Python's header before this one.
#pragma once

namespace fastreplay {

// The value of a key, or `missing`; null with an error set where the key cannot be compared.
inline PyObject* get_item(PyObject* dict, PyObject* key, PyObject* missing) {
#if PY_VERSION_HEX >= 0x030D0000
  PyObject* value = nullptr;
  if (PyDict_GetItemRef(dict, key, &value) < 0) return nullptr;
  return value != nullptr ? value : Py_NewRef(missing);
#else
  PyObject* value = PyDict_GetItemWithError(dict, key);
  if (value == nullptr && PyErr_Occurred() != nullptr) return nullptr;
  return Py_NewRef(value != nullptr ? value : missing);
#endif
}

}  // namespace fastreplay
