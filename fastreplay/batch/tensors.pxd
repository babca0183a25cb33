# SPDX-License-Identifier: MIT
"""The tensors of a minibatch and the blocks that they are made of, for modules beside theirs."""

from cpython.object cimport PyObject
from libc.stddef cimport size_t
from libcpp cimport bool as cbool
from libcpp.vector cimport vector


cdef extern from "pristine.hpp" namespace "fastreplay" nogil:
    struct TensorOffsets:
        size_t tensor
        size_t storage
        size_t counter
        size_t shell_bytes
        size_t compare_from
    cppclass Snapshot:
        cbool take(const void *shell, const TensorOffsets &offsets)
        cbool holds()
        cbool has_form()
        cbool is_plain()
        const void *tensor()


ctypedef int (*GetPointer)(void *tensor, void **found)
ctypedef void (*BumpVersion)(void *tensor) except +


cdef class FieldTensors:
    cdef tuple _tensors
    cdef vector[Snapshot] _snapshots
    cdef vector[void *] _data  # where they lay
    cdef size_t _handle_offset
    cdef GetPointer _get_data
    cdef BumpVersion _bump_version
    cdef Py_ssize_t _weak_references  # offset in the object

    cpdef bint is_pristine(self) except -1
    cpdef bint is_held(self)
    cpdef tuple hand_out(self)
    cpdef Py_ssize_t first_changed(self) except? -2
    cpdef int count_up_versions(self) except -1

    cdef bint _is_as_made(self, Py_ssize_t i) except -1
    cdef void **_handle(self, tuple tensors, Py_ssize_t i) noexcept
    cdef bint _is_bare(self, PyObject *tensor) except -1


cdef class NativeBlock:
    cdef readonly object native, layout
    cdef public object tensors
    cdef bint is_kept  # by its generations


cdef class Generations:
    cdef readonly object memory, layout
    cdef list _blocks
    cdef Py_ssize_t _next  # to be looked at
    cdef Py_ssize_t _most

    cdef NativeBlock taken(self)
    cdef int keep(self, NativeBlock block) except -1
    cdef int _drop(self, Py_ssize_t i) except -1
    cdef bint _is_free(self, NativeBlock block) except -1
