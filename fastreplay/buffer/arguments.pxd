# SPDX-License-Identifier: MIT
"""The arguments of an insert, positional and by name, put into the order of the schema.

Inlined where it is used; there is no module of this name. Must not know what the values are.
"""

from cpython.object cimport PyObject, PyTypeObject

cimport numpy as cnp

from fastreplay.buffer.rows cimport PyArray_CheckExact, kMaxFields


cdef extern from "Python.h":
    ctypedef void *PyCFunction
    ctypedef struct PyMethodDef:
        const char *ml_name
        PyCFunction ml_meth
        int ml_flags
        const char *ml_doc
    int METH_FASTCALL
    int METH_KEYWORDS
    object PyDescr_NewMethod(PyTypeObject *cls, PyMethodDef *method)
    bint PyBool_Check(PyObject *value)
    bint PyFloat_Check(PyObject *value)
    bint PyLong_CheckExact(PyObject *value)
    PyObject *PyDict_GetItemWithError(PyObject *mapping, PyObject *key) except? NULL  # borrowed
    PyObject *PyTuple_GET_ITEM(PyObject *values, Py_ssize_t index)
    Py_ssize_t PyTuple_GET_SIZE(PyObject *values)


cdef enum:
    kNearPlaces = 8  # beyond these a dictionary is faster


# The names of a schema's fields. Keeps nothing from one call to the next: threads that insert share no memory but
# the ring.
cdef struct FieldNames:
    PyObject *in_order  # a tuple of interned strings, as those that calls are compiled with: mostly, identity tells
    PyObject *places    # a dict, by name
    Py_ssize_t count
    bint is_nested      # whether a positional argument may be for several fields


# Whether the arguments of a call are in schema order as they lie, and sure to be one for each field.
cdef inline bint are_in_order(const FieldNames *fields, Py_ssize_t num_positional, PyObject *names) noexcept:
    cdef Py_ssize_t i
    cdef Py_ssize_t num_named = 0 if names == NULL else PyTuple_GET_SIZE(names)
    if num_positional + num_named != fields.count or (num_positional > 0 and (fields.is_nested or fields.count == 1)):
        return False
    for i in range(num_named):
        if PyTuple_GET_ITEM(names, i) != PyTuple_GET_ITEM(fields.in_order, num_positional + i):
            return False
    return True


# Puts the arguments of a call into schema order; False where they need a closer look.
cdef inline bint bind(const FieldNames *fields, PyObject *const *args, Py_ssize_t num_positional, PyObject *names,
                      PyObject **values) except -1:
    cdef Py_ssize_t i
    cdef Py_ssize_t place = num_positional
    cdef Py_ssize_t num_named = 0 if names == NULL else PyTuple_GET_SIZE(names)
    if fields.is_nested or (num_positional == 1 and num_named == 0):  # a mapping of all of one?
        for i in range(num_positional):
            if not is_one_field(args[i]):
                return False
    if num_positional + num_named != fields.count:
        return False
    for i in range(fields.count):
        values[i] = args[i] if i < num_positional else NULL
    for i in range(num_named):
        place = place_of(fields, PyTuple_GET_ITEM(names, i), place)
        if place < 0 or values[place] != NULL:  # no field, or given before
            return False
        values[place] = args[num_positional + i]
        place += 1
    return True


# The field of this name, -1 where there is none. Looks from `start` on, and then at the first ones: names that are
# not in order often lie near where they would.
cdef inline Py_ssize_t place_of(const FieldNames *fields, PyObject *name, Py_ssize_t start) except -2:
    cdef Py_ssize_t i
    cdef Py_ssize_t place = start
    cdef PyObject *found
    for i in range(kNearPlaces):
        if place >= fields.count:
            place = 0
        if PyTuple_GET_ITEM(fields.in_order, place) == name:
            return place
        place += 1
    found = PyDict_GetItemWithError(fields.places, name)
    return -1 if found == NULL else <Py_ssize_t><object>found


# The arguments of a call but for some that are given by name; returns the names of the rest.
cdef inline tuple without(tuple left_out, PyObject *const *args, Py_ssize_t num_positional, PyObject *names,
                          PyObject **rest):
    cdef tuple given = <tuple>names
    cdef Py_ssize_t i, count = num_positional
    cdef list kept = []
    if num_positional + len(given) - len(left_out) > kMaxFields:
        raise TypeError(f"expected at most {kMaxFields} fields, got {num_positional + len(given) - len(left_out)}")
    for i in range(num_positional):
        rest[i] = args[i]
    for i in range(len(given)):
        if given[i] not in left_out:
            rest[count] = args[num_positional + i]
            kept.append(given[i])
            count += 1
    return tuple(kept)


# The names before a lane, where it is an int that fits, the last of the arguments, and all before are the fields; None
# elsewhere.
cdef inline tuple before_lane(const FieldNames *fields, size_t num_lanes, PyObject *const *args,
                              Py_ssize_t num_positional, PyObject *names):
    cdef PyObject *values[kMaxFields]
    cdef Py_ssize_t last = PyTuple_GET_SIZE(names) - 1
    cdef tuple rest
    if last < 0 or <object>PyTuple_GET_ITEM(names, last) != "lane":
        return None
    if not (PyLong_CheckExact(args[num_positional + last]) and 0 <= <object>args[num_positional + last] < num_lanes):
        return None
    rest = (<tuple>names)[:last]
    return rest if bind(fields, args, num_positional, <PyObject *>rest, values) else None


# The arguments of a call that are given by name.
cdef inline dict named(PyObject *const *args, Py_ssize_t num_positional, PyObject *names):
    cdef tuple given = () if names == NULL else <tuple>names
    cdef Py_ssize_t i
    cdef dict found = {}
    for i in range(len(given)):
        found[given[i]] = <object>args[num_positional + i]
    return found


cdef inline object argument(str name, PyObject *const *args, Py_ssize_t num_positional, PyObject *names):
    return <object>args[num_positional + (<tuple>names).index(name)]


# Whether a positional argument is for one field, and sure to be no dict, tuple or list of several.
cdef inline bint is_one_field(PyObject *value) except -1:
    return (PyArray_CheckExact(value) or PyFloat_Check(value) or PyBool_Check(value) or PyLong_CheckExact(value)
            or cnp.PyArray_IsAnyScalar(<object>value))
