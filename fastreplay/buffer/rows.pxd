# SPDX-License-Identifier: MIT
"""A field's rows, as the ways into a ring see them: dtype, shape, where they lie, how they become float32.

Inlined where it is used; there is no module of this name. Must not know what the rows are for.
"""

from cpython.object cimport PyObject, PyTypeObject
from libc.math cimport isinf
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t

cimport numpy as cnp


cdef extern from "numpy/arrayobject.h":
    const void *descr_of "PyArray_DESCR"(cnp.PyArrayObject *array)
    bint PyArray_CheckExact(PyObject *value)
    bint PyArray_ISCARRAY_RO(cnp.PyArrayObject *array)


cdef extern from "bounds.hpp" namespace "fastreplay" nogil:
    cppclass Records:
        pass
    enum:
        kMaxFields
    const char *records_begin(Records &records)
    const char *records_end(Records &records)


cdef extern from "ring/ring.hpp" namespace "fastreplay" nogil:
    struct Rows:
        pass


cdef extern from "halves.hpp" namespace "fastreplay" nogil:
    cppclass BFloat16:
        pass
    void narrow(float value, BFloat16 &result)


# Rows are of std::byte, of which Cython knows nothing.
cdef extern from *:
    """
    static inline fastreplay::Rows make_rows(const void *data, std::size_t stride_bytes) noexcept {
      return {static_cast<const std::byte *>(data), stride_bytes};
    }
    static inline const void *row_at(const fastreplay::Rows &rows, std::size_t row) noexcept {
      return rows.data + row * rows.stride_bytes;
    }
    """
    Rows make_rows(const void *data, size_t stride_bytes) nogil
    const void *row_at(const Rows &rows, size_t row) nogil


cdef enum:
    kMaxDimensions = 32


cdef struct Field:
    int type_num
    int ndim  # of one row
    cnp.npy_intp dims[kMaxDimensions]
    size_t num_items
    size_t row_bytes
    PyTypeObject *scalar_type  # the NumPy scalar type of the dtype
    const void *descr  # NumPy's own dtype, which mostly tells by its identity, and always lives


# Of the dtypes that are not NumPy's own, which is all that a number tells, bfloat16 alone is a field's. Others of
# ml_dtypes say that they are floats.
cdef inline bint is_bfloat16(int type_num) noexcept nogil:
    return cnp.PyTypeNum_ISUSERDEF(type_num)


cdef inline bint is_number(cnp.dtype dtype) except -1:
    if is_bfloat16(dtype.type_num):
        return dtype.itemsize == 2 and (<object>dtype).name == "bfloat16"
    return dtype.kind in b"biufc"


# Copies what a field's description says, its `shape` and `dtype`; refuses what the ring's own field does not hold.
cdef inline int describe(Field *field, object description, size_t row_bytes) except -1:
    cdef tuple shape = tuple(description.shape)
    cdef cnp.dtype dtype = description.dtype
    cdef cnp.dtype numpys = cnp.PyArray_DescrFromType(dtype.type_num)
    cdef cnp.npy_intp length
    if len(shape) > kMaxDimensions or not is_number(dtype):
        raise ValueError(f"schema: expected a number of at most {kMaxDimensions} dimensions, got {description!r}")
    field.type_num = dtype.type_num
    field.scalar_type = <PyTypeObject *>dtype.typeobj
    field.descr = <PyObject *>numpys
    field.ndim = 0
    field.num_items = 1
    for length in shape:
        if length <= 0 or <size_t>length > row_bytes // field.num_items:
            raise ValueError(f"schema: expected a field of {row_bytes} bytes, got {description!r}")
        field.dims[field.ndim] = length
        field.num_items *= <size_t>length
        field.ndim += 1
    field.row_bytes = field.num_items * <size_t>dtype.itemsize
    if field.row_bytes != row_bytes:
        raise ValueError(f"schema: expected a field of {row_bytes} bytes, got {description!r}")
    return 0


cdef inline bint same_dims(const cnp.npy_intp *given, const cnp.npy_intp *expected, int ndim) noexcept nogil:
    cdef int axis
    for axis in range(ndim):
        if given[axis] != expected[axis]:
            return False
    return True


# Whether an array lies as rows of the field, with so many axes before them.
cdef inline bint holds_rows(const Field *field, cnp.ndarray array, int axes_before):
    return (PyArray_CheckExact(<PyObject *>array) and PyArray_ISCARRAY_RO(<cnp.PyArrayObject *>array)
            and cnp.PyArray_EquivTypenums(cnp.PyArray_TYPE(array), field.type_num)
            and cnp.PyArray_NDIM(array) == field.ndim + axes_before
            and same_dims(cnp.PyArray_DIMS(array) + axes_before, field.dims, field.ndim))


# The table's or ring's own records: input that lies there might be overwritten before it was read.
cdef struct OwnMemory:
    const char *begin
    const char *end


cdef inline OwnMemory own_memory(Records &records) noexcept:
    return OwnMemory(records_begin(records), records_end(records))


cdef inline bint is_own(const OwnMemory *own, const void *data, size_t num_bytes) noexcept nogil:
    return <const char *>data < own.end and <const char *>data + num_bytes > own.begin


# The casts that loops meet at every step: float64 observations and bool flags in float32 fields.
cdef inline bint is_cast_to_float(int given, int expected) noexcept nogil:
    return expected == cnp.NPY_FLOAT and (given == cnp.NPY_DOUBLE or given == cnp.NPY_BOOL)


# Casts as NumPy does: rounding to nearest, out of range becomes infinite; true is 1.
cdef inline void cast_to_float(int given, const void *values, float *out, size_t count) noexcept nogil:
    cdef size_t i
    if given == cnp.NPY_DOUBLE:
        for i in range(count):
            out[i] = <float>(<const double *>values)[i]
    else:
        for i in range(count):
            out[i] = <float>(<const uint8_t *>values)[i]


cdef inline bint is_cast_to_bfloat16(int given, int expected) noexcept nogil:
    return is_bfloat16(expected) and (given == cnp.NPY_DOUBLE or given == cnp.NPY_FLOAT)


# Rounds as torch does, a double to float32 first.
cdef inline void cast_to_bfloat16(int given, const void *values, BFloat16 *out, size_t count) noexcept nogil:
    cdef size_t i
    if given == cnp.NPY_DOUBLE:
        for i in range(count):
            narrow(<float>(<const double *>values)[i], out[i])
    else:
        for i in range(count):
            narrow((<const float *>values)[i], out[i])


cdef inline bint is_cast_natively(int given, int expected) noexcept nogil:
    return is_cast_to_float(given, expected) or is_cast_to_bfloat16(given, expected)


cdef inline void cast_natively(int given, int expected, const void *values, void *out, size_t count) noexcept nogil:
    if is_bfloat16(expected):
        cast_to_bfloat16(given, values, <BFloat16 *>out, count)
    else:
        cast_to_float(given, values, <float *>out, count)


# Whether a finite number became infinite in a cast to float32, of which NumPy warns.
cdef inline bint has_overflowed(const double *values, const float *cast, size_t count) noexcept nogil:
    cdef size_t i
    cdef size_t num_overflowed = 0
    for i in range(count):
        num_overflowed += isinf(cast[i]) != isinf(values[i])
    return num_overflowed != 0
