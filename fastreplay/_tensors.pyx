# SPDX-License-Identifier: MIT
# cython: language_level=3, boundscheck=False, wraparound=False
"""Tensor objects that are handed out again once nobody has them any more.

A fresh tensor costs 0.4 us to make and to destroy, and torch gives the GIL away when it destroys one:
beside a thread that runs Python without pause, whoever samples would wait for it at nearly every minibatch.
So a block's tensors are kept, and reused if nobody else refers to them and nobody has left a trace on
them. One that was changed (its shape, its class, an attribute, gradients, hooks) or that something refers
to weakly is replaced by a fresh one.
"""

from cpython.object cimport PyObject
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE
from libc.stddef cimport size_t
from libc.stdint cimport int32_t, int64_t, uintptr_t
from libcpp.vector cimport vector

from weakref import getweakrefcount


cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(PyObject *object)


ctypedef int (*GetPointer)(void *tensor, void **found)
ctypedef int (*GetNumber)(void *tensor, int64_t *found)
ctypedef int (*GetCode)(void *tensor, int32_t *found)


cdef struct Form:
    void *data
    int32_t dtype
    vector[int64_t] sizes
    vector[int64_t] strides


cdef class Tensors:
    """The tensors of one block, (B, *shape) each.

    Args:
        templates: Tensors that are never handed out, in whose likeness others are made.
        torch_abi: Addresses of torch's functions (fastreplay/_torch_abi.py).
        form_abi: Addresses of more functions.
    """

    cdef tuple _templates
    cdef tuple _given
    cdef object _class
    cdef vector[Form] _forms
    cdef size_t _handle_offset
    cdef GetPointer _get_data, _get_sizes, _get_strides
    cdef GetNumber _get_dim
    cdef GetCode _get_dtype

    def __init__(self, tuple templates not None, torch_abi, form_abi):
        self._get_data = <GetPointer><uintptr_t>torch_abi.get_data_ptr
        self._get_dim = <GetNumber><uintptr_t>form_abi.get_dim
        self._get_sizes = <GetPointer><uintptr_t>form_abi.get_sizes
        self._get_strides = <GetPointer><uintptr_t>form_abi.get_strides
        self._get_dtype = <GetCode><uintptr_t>form_abi.get_dtype
        self._handle_offset = torch_abi.handle_offset
        self._templates = templates
        self._class = type(templates[0])
        cdef Form form
        for template in templates:
            form.data = <void *><uintptr_t>template.data_ptr()
            form.sizes = template.shape
            form.strides = template.stride()
            if self._get_dtype(self._handle(<PyObject *>template), &form.dtype) != 0:
                raise ValueError(f"a template whose dtype torch does not tell: {template.dtype}")
            self._forms.push_back(form)
        self._given = tuple([template.data for template in templates])

    def are_free(self):
        """Tell whether nobody else has one of the tensors, and their memory is where it was."""
        cdef Py_ssize_t i
        cdef void *data = NULL
        if Py_REFCNT(<PyObject *>self._given) != 1:
            return False
        for i in range(PyTuple_GET_SIZE(self._given)):
            if Py_REFCNT(<PyObject *>PyTuple_GET_ITEM(self._given, i)) != 1:
                return False
            if self._get_data(self._handle(<PyObject *>PyTuple_GET_ITEM(self._templates, i)), &data) != 0:
                return False
            if data != self._forms[i].data:
                return False
        return True

    def hand_out(self):
        """Return the tensors, those of the last time as far as they are as they were. Only while they are free."""
        cdef Py_ssize_t i
        for i in range(PyTuple_GET_SIZE(self._given)):
            if not self._is_untouched(i):
                self._given = tuple([
                    self._given[i] if self._is_untouched(i) else template.data
                    for i, template in enumerate(self._templates)
                ])
                break
        return self._given

    cdef void *_handle(self, PyObject *tensor) noexcept:
        return <char *>tensor + self._handle_offset

    cdef bint _is_untouched(self, Py_ssize_t i) except -1:
        tensor = <object>PyTuple_GET_ITEM(self._given, i)
        if type(tensor) is not self._class or not self._has_form(<PyObject *>tensor, self._forms[i]):
            return False
        return (
            not tensor.requires_grad
            and tensor.grad is None
            and tensor._backward_hooks is None
            and tensor._post_accumulate_grad_hooks is None
            and not tensor.__dict__
            and getweakrefcount(tensor) == 0
        )

    cdef bint _has_form(self, PyObject *tensor, const Form &form) noexcept:
        cdef void *handle = self._handle(tensor)
        cdef void *data = NULL
        cdef void *sizes = NULL
        cdef void *strides = NULL
        cdef int64_t dim = 0
        cdef int32_t dtype = 0
        if self._get_data(handle, &data) != 0 or data != form.data:
            return False
        if self._get_dtype(handle, &dtype) != 0 or dtype != form.dtype:
            return False
        if self._get_dim(handle, &dim) != 0 or dim != <int64_t>form.sizes.size():
            return False
        if self._get_sizes(handle, &sizes) != 0 or self._get_strides(handle, &strides) != 0:
            return False
        cdef int64_t axis
        for axis in range(dim):
            if (<int64_t *>sizes)[axis] != form.sizes[axis] or (<int64_t *>strides)[axis] != form.strides[axis]:
                return False
        return True
