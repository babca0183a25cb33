# SPDX-License-Identifier: MIT
"""The arrays and infos of one step of a vector environment, made rows: as they lie, or converted into scratch.

Inlined where it is used; there is no module of this name. Must not know where in a ring the step goes.
"""

from cpython.dict cimport PyDict_CheckExact
from cpython.list cimport PyList_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from cpython.object cimport PyObject
from libc.stddef cimport size_t
from libc.string cimport memcpy

from cython cimport boundscheck

cimport numpy as cnp

from fastreplay.adapters.step_calls cimport CoreTable
from fastreplay.buffer.rows cimport (
    Field, OwnMemory, PyArray_CheckExact, PyArray_ISCARRAY_RO, Rows, cast_to_float, describe, has_overflowed,
    is_cast_to_float, is_own, make_rows, same_dims)


cdef extern from "owned.hpp" namespace "fastreplay":
    object get_item(object dict, object key, object missing)


cdef enum:
    kScratchAlignment = 16


cdef struct StepField:
    Field field
    bint is_reshaped       # any shape of num_envs * num_items will do
    size_t scratch_offset  # where its converted rows go


# Describes the fields of a core's steps, with room in scratch for each; to be freed by the caller.
cdef inline StepField *describe_steps(CoreTable *core, tuple fields, size_t num_envs, size_t *scratch_bytes) except NULL:
    cdef Py_ssize_t i
    cdef StepField *described
    cdef size_t num_bytes
    if <size_t>len(fields) != core.num_fields():
        raise ValueError(f"expected {core.num_fields()} fields, got {len(fields)}")
    described = <StepField *>PyMem_Malloc(len(fields) * sizeof(StepField))
    if described == NULL:
        raise MemoryError()
    scratch_bytes[0] = 0
    try:
        for i in range(len(fields)):
            describe(&described[i].field, fields[i], core.row_bytes(i))
            described[i].is_reshaped = fields[i].is_reshaped
            described[i].scratch_offset = scratch_bytes[0]
            num_bytes = num_envs * described[i].field.row_bytes
            scratch_bytes[0] += (num_bytes + kScratchAlignment - 1) // kScratchAlignment * kScratchAlignment
    except BaseException:
        PyMem_Free(described)
        raise
    return described


# Takes an array's rows from its own memory where they fit as they are, from scratch where they are converted, or lie
# in the ring. False where it takes the general way.
cdef inline bint stage(const StepField *step, const OwnMemory *own, PyObject *value, size_t num_envs, char *scratch,
                       Rows *rows) noexcept:
    cdef cnp.PyArrayObject *array = <cnp.PyArrayObject *>value
    cdef char *data
    cdef int given
    if (not PyArray_CheckExact(value) or not PyArray_ISCARRAY_RO(array)
            or not fits(step, <cnp.ndarray>array, num_envs)):
        return False
    scratch += step.scratch_offset
    given = cnp.PyArray_TYPE(<cnp.ndarray>array)
    data = <char *>cnp.PyArray_DATA(<cnp.ndarray>array)
    rows[0] = make_rows(data, step.field.row_bytes)
    if given == step.field.type_num and not is_own(own, data, num_envs * step.field.row_bytes):
        return True
    rows[0] = make_rows(scratch, step.field.row_bytes)
    if given == step.field.type_num:
        memcpy(scratch, data, num_envs * step.field.row_bytes)
        return True
    if not is_cast_to_float(given, step.field.type_num):
        return False
    cast_to_float(given, data, <float *>scratch, num_envs * step.field.num_items)
    return (given != cnp.NPY_DOUBLE
            or not has_overflowed(<double *>data, <float *>scratch, num_envs * step.field.num_items))


# (num_envs, *shape); for a single environment *shape alone, too, which NumPy broadcasts to it.
cdef inline bint fits(const StepField *step, cnp.ndarray array, size_t num_envs) noexcept:
    cdef int ndim = cnp.PyArray_NDIM(array)
    cdef const cnp.npy_intp *dims = cnp.PyArray_DIMS(array)
    if step.is_reshaped:
        return <size_t>cnp.PyArray_SIZE(array) == num_envs * step.field.num_items
    if ndim == step.field.ndim + 1:
        return <size_t>dims[0] == num_envs and same_dims(dims + 1, step.field.dims, step.field.ndim)
    return ndim == step.field.ndim and num_envs == 1 and same_dims(dims, step.field.dims, ndim)


# Reads the timeouts that a list of num_envs dicts tells under a key; False where it is no such list.
@boundscheck(True)  # another thread may shorten the list meanwhile
cdef inline bint read_timeouts(list infos, object key, size_t num_envs, float *timeouts) except -1:
    cdef size_t env
    for env in range(num_envs):
        if <size_t>PyList_GET_SIZE(infos) != num_envs:
            return False
        info = infos[<Py_ssize_t>env]
        if not PyDict_CheckExact(info):
            return False
        is_timeout = get_item(info, key, False)
        if is_timeout is not True and is_timeout is not False:
            return False
        timeouts[env] = is_timeout is True
    return <size_t>PyList_GET_SIZE(infos) == num_envs
