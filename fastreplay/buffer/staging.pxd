# SPDX-License-Identifier: MIT
"""Values made rows, where that takes nothing of Python's: as they lie in arrays, or converted into memory of the call.

Inlined where it is used; there is no module of this name. Must not know which field a value is for, nor what an
insert is.
"""

from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject, PyTypeObject
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.string cimport memcpy

cimport numpy as cnp

from fastreplay.buffer.arguments cimport PyBool_Check, PyFloat_Check, PyLong_CheckExact
from fastreplay.buffer.rows cimport (
    BFloat16, Field, OwnMemory, PyArray_CheckExact, PyArray_ISCARRAY_RO, Rows, cast_natively, descr_of, is_bfloat16,
    is_cast_natively, is_own, kMaxFields, make_rows, narrow, same_dims)


cdef extern from "Python.h":
    double PyFloat_AS_DOUBLE(PyObject *value)
    long long PyLong_AsLongLongAndOverflow(object value, int *overflow) except? -1
    PyObject *Py_True
    PyTypeObject *Py_TYPE(PyObject *value)


cdef extern from "numpy/arrayobject.h":
    void PyArray_ScalarAsCtype(object scalar, void *out)


cdef enum:
    kScratchBytes = 8192  # 512 long doubles


# For the scalars and small arrays that one call converts, so that they need no Python object.
cdef struct Scratch:
    size_t used
    long double bytes[512]


# NULL where there is no more.
cdef inline void *take(Scratch *scratch, size_t num_bytes) noexcept nogil:
    cdef size_t start = (scratch.used + 15) & ~(<size_t>15)
    if start + num_bytes > kScratchBytes:
        return NULL
    scratch.used = start + num_bytes
    return <char *>scratch.bytes + start


# For what one call converts of a batch; no Python objects, so that no garbage is collected on their account.
cdef struct Copies:
    Py_ssize_t count
    void *memory[kMaxFields]


cdef inline void *hold(Copies *copies, size_t num_bytes) except NULL:
    cdef void *memory = PyMem_Malloc(num_bytes)
    if memory == NULL:
        raise MemoryError()
    copies.memory[copies.count] = memory
    copies.count += 1
    return memory


cdef inline void release(Copies *copies) noexcept:
    while copies.count > 0:
        copies.count -= 1
        PyMem_Free(copies.memory[copies.count])


# Stages one row: from the value's own memory where it fits as it is, from scratch where a small conversion is
# needed. False where it takes the general way.
cdef inline bint stage_row(const Field *field, const OwnMemory *own, PyObject *value, Rows *rows,
                           Scratch *scratch) except -1:
    cdef void *converted
    if PyArray_CheckExact(value):
        if lies_ready(field, own, <cnp.PyArrayObject *>value):
            rows[0] = make_rows(cnp.PyArray_DATA(<cnp.ndarray>value), 0)
            return True
        return stage_array(field, own, <cnp.PyArrayObject *>value, rows, scratch)
    if field.ndim == 0:
        converted = take(scratch, field.row_bytes)
        if converted != NULL and stage_scalar(field, value, converted):
            rows[0] = make_rows(converted, 0)
            return True
    return False


# Whether an array is a row as it lies: the usual case of stage_array(), in fewer steps.
cdef inline bint lies_ready(const Field *field, const OwnMemory *own, cnp.PyArrayObject *array) noexcept:
    return (descr_of(array) == field.descr and cnp.PyArray_NDIM(<cnp.ndarray>array) == field.ndim
            and (cnp.PyArray_FLAGS(<cnp.ndarray>array) & cnp.NPY_ARRAY_CARRAY_RO) == cnp.NPY_ARRAY_CARRAY_RO
            and same_dims(cnp.PyArray_DIMS(<cnp.ndarray>array), field.dims, field.ndim)
            and not is_own(own, cnp.PyArray_DATA(<cnp.ndarray>array), field.row_bytes))


cdef inline bint stage_array(const Field *field, const OwnMemory *own, cnp.PyArrayObject *array, Rows *rows,
                             Scratch *scratch) noexcept:
    cdef int given = cnp.PyArray_TYPE(<cnp.ndarray>array)
    cdef void *data = cnp.PyArray_DATA(<cnp.ndarray>array)
    cdef void *converted
    if not (cnp.PyArray_NDIM(<cnp.ndarray>array) == field.ndim and PyArray_ISCARRAY_RO(array)
            and same_dims(cnp.PyArray_DIMS(<cnp.ndarray>array), field.dims, field.ndim)):
        return False
    if given == field.type_num and not is_own(own, data, field.row_bytes):
        rows[0] = make_rows(data, 0)
        return True
    if given != field.type_num and not is_cast_natively(given, field.type_num):
        return False
    converted = take(scratch, field.row_bytes)
    if converted == NULL:
        return False
    if given == field.type_num:
        memcpy(converted, data, field.row_bytes)
    else:
        cast_natively(given, field.type_num, data, converted, field.num_items)
    rows[0] = make_rows(converted, 0)
    return True


# Converts the usual scalars; False where the value needs the general way.
cdef inline bint stage_scalar(const Field *field, PyObject *value, void *out) except -1:
    cdef long long integer
    cdef int overflow = 0
    if PyBool_Check(value):
        return stage_flag(field.type_num, value == Py_True, out)
    if Py_TYPE(value) == field.scalar_type and not is_bfloat16(field.type_num):  # whose value NumPy does not find
        PyArray_ScalarAsCtype(<object>value, out)
        return True
    if PyFloat_Check(value):
        return stage_float(field.type_num, PyFloat_AS_DOUBLE(value), out)
    if PyLong_CheckExact(value):
        integer = PyLong_AsLongLongAndOverflow(<object>value, &overflow)
        return overflow == 0 and stage_integer(field.type_num, integer, out)
    return False


cdef inline bint stage_flag(int type_num, bint value, void *out) noexcept nogil:
    if type_num == cnp.NPY_BOOL:
        (<uint8_t *>out)[0] = value
        return True
    if type_num == cnp.NPY_FLOAT:
        (<float *>out)[0] = value
        return True
    return False


cdef inline bint stage_float(int type_num, double value, void *out) noexcept nogil:
    if type_num == cnp.NPY_FLOAT:
        (<float *>out)[0] = <float>value
        return True
    if type_num == cnp.NPY_DOUBLE:
        (<double *>out)[0] = value
        return True
    if is_bfloat16(type_num):
        narrow(<float>value, (<BFloat16 *>out)[0])
        return True
    return False


cdef inline bint stage_integer(int type_num, long long value, void *out) noexcept nogil:
    if type_num == cnp.NPY_INT64:
        (<int64_t *>out)[0] = value
        return True
    if type_num == cnp.NPY_FLOAT:
        (<float *>out)[0] = <float>value
        return True
    if type_num == cnp.NPY_INT32 and -2147483648 <= value <= 2147483647:
        (<int32_t *>out)[0] = <int32_t>value
        return True
    if type_num == cnp.NPY_UINT8 and 0 <= value <= 255:
        (<uint8_t *>out)[0] = <uint8_t>value
        return True
    return False


# Whether stage_rows() takes a value.
cdef inline bint takes_rows(const Field *field, PyObject *value) noexcept:
    return (PyArray_CheckExact(value) and cnp.PyArray_NDIM(<cnp.ndarray>value) == field.ndim + 1
            and PyArray_ISCARRAY_RO(<cnp.PyArrayObject *>value)
            and same_dims(cnp.PyArray_DIMS(<cnp.ndarray>value) + 1, field.dims, field.ndim)
            and (cnp.PyArray_TYPE(<cnp.ndarray>value) == field.type_num
                 or is_cast_natively(cnp.PyArray_TYPE(<cnp.ndarray>value), field.type_num)))


# Stages the rows of a batch that takes_rows() accepts, as stage_row() does.
cdef inline int stage_rows(const Field *field, const OwnMemory *own, PyObject *value, Rows *rows,
                           Copies *copies) except -1:
    cdef cnp.ndarray array = <cnp.ndarray>value
    cdef void *data = cnp.PyArray_DATA(array)
    cdef size_t num_rows = <size_t>cnp.PyArray_DIMS(array)[0]
    cdef size_t num_bytes = num_rows * field.row_bytes
    if cnp.PyArray_TYPE(array) != field.type_num:
        data = hold(copies, num_bytes)
        cast_natively(
            cnp.PyArray_TYPE(array), field.type_num, cnp.PyArray_DATA(array), data, num_rows * field.num_items)
    elif is_own(own, data, num_bytes):
        data = hold(copies, num_bytes)
        memcpy(data, cnp.PyArray_DATA(array), num_bytes)
    rows[0] = make_rows(data, field.row_bytes)
    return 0
