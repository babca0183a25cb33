# SPDX-License-Identifier: MIT
# cython: language_level=3, boundscheck=False, wraparound=False, nonecheck=True, auto_pickle=False, freethreading_compatible=True
"""The tensors of a minibatch, what was done to them since, and which may be handed out again.

Each field is a tensor with a storage of its own, which owns the block that it lies in and gives it back when it
goes. That alone makes memory safe, whatever is done to tensors. What is here is for speed: torch gives the GIL away
whenever a tensor object is destroyed, so that beside a thread that runs Python without pause, whoever samples would
wait for it at nearly every minibatch. So tensors that nobody has any more are not destroyed but handed out again, if
they are, byte for byte, what they were when they were made (docs/design/minibatches.md).
"""

from cpython.object cimport PyObject, PyTypeObject
from cpython.ref cimport Py_INCREF
from cpython.tuple cimport PyTuple_GET_ITEM, PyTuple_GET_SIZE, PyTuple_New, PyTuple_SET_ITEM
from libc.stddef cimport size_t
from libc.stdint cimport uintptr_t


cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(PyObject *object)
    object PyObject_GenericGetDict(object owner, void *context)
    Py_ssize_t PyDict_GET_SIZE(object dictionary)
    PyObject *PyList_GET_ITEM(object items, Py_ssize_t i)  # borrowed


# Sizes and strides of more dimensions lie outside of the tensor's own bytes.
cdef size_t kMostDimensions = 5
# Looking at more minibatches that are held takes as long as making new tensors.
cdef Py_ssize_t kProbes = 16


cdef class FieldTensors:
    """The tensors (B, *shape) of a block's fields and their tickets, as they were when they were made.

    Args:
        tensors: Fresh tensors, of which nobody else has one.
        torch_abi: Addresses of torch's functions (fastreplay/support/torch_abi.py).
        offsets: Where tensors' parts lie.

    Raises:
        ValueError: A tensor is of another kind, of which it cannot be known what is done to it.

    Thread safety:
        As the GIL makes it; where there is none, offsets are not known.
    """

    def __cinit__(self):
        self._tensors = ()

    def __init__(self, tuple tensors not None, torch_abi not None, offsets not None):
        cdef TensorOffsets where
        cdef Py_ssize_t i
        if self._tensors:
            raise RuntimeError("FieldTensors: __init__ was called before, and addresses are kept; make another")
        self._get_data = <GetPointer><uintptr_t>torch_abi.get_data_ptr
        self._bump_version = <BumpVersion><uintptr_t>torch_abi.bump_version
        self._handle_offset = torch_abi.handle_offset
        where = TensorOffsets(torch_abi.handle_offset, offsets.storage, offsets.counter, offsets.shell_bytes,
                              offsets.compare_from)
        self._weak_references = offsets.weak_references
        self._snapshots.resize(<size_t>len(tensors))
        self._data.resize(<size_t>len(tensors))
        for i in range(len(tensors)):
            # Made now, a tensor's dictionary is no difference later.
            PyObject_GenericGetDict(tensors[i], NULL)
            if (tensors[i].dim() > kMostDimensions
                    or not self._snapshots[<size_t>i].take(<const void *>PyTuple_GET_ITEM(tensors, i), where)
                    or self._get_data(self._handle(tensors, i), &self._data[<size_t>i]) != 0):
                raise ValueError(f"tensors[{i}]: one of which not all is known")
        self._tensors = tensors

    cpdef bint is_pristine(self) except -1:
        """Tell whether nobody has one of the tensors or anything made of one, and none shows a trace of having been.

        Nothing here runs Python or destroys an object: what was found holds to the end.
        """
        cdef Py_ssize_t i
        if self.is_held():
            return False
        for i in range(PyTuple_GET_SIZE(self._tensors)):
            if not self._snapshots[<size_t>i].holds() or not self._is_bare(<PyObject *>PyTuple_GET_ITEM(self._tensors, i)):
                return False
        return True

    cpdef bint is_held(self):
        """Tell whether anybody refers to one of the tensor objects."""
        cdef Py_ssize_t i
        for i in range(PyTuple_GET_SIZE(self._tensors)):
            if Py_REFCNT(<PyObject *>PyTuple_GET_ITEM(self._tensors, i)) != 1:
                return True
        return False

    @property
    def ticket(self):
        """The last tensor."""
        if not self._tensors:
            raise RuntimeError("FieldTensors: __init__ was not called")
        return self._tensors[len(self._tensors) - 1]

    cpdef tuple hand_out(self):
        """Return all tensors but the last, in a tuple of its own."""
        cdef Py_ssize_t i, count = PyTuple_GET_SIZE(self._tensors) - 1
        if count < 0:
            raise RuntimeError("FieldTensors: __init__ was not called")
        cdef tuple handed = PyTuple_New(count)
        for i in range(count):
            tensor = <object>PyTuple_GET_ITEM(self._tensors, i)
            Py_INCREF(tensor)
            PyTuple_SET_ITEM(handed, i, tensor)
        return handed

    cpdef Py_ssize_t first_changed(self) except? -2:
        """Return the position of the first tensor that is no longer where and as it was made, -1 where all are.

        One that autograd derives from others is none either: what it would tell of them is of the old rows.
        """
        cdef Py_ssize_t i
        for i in range(PyTuple_GET_SIZE(self._tensors)):
            if not self._is_as_made(i):
                return i
        return -1

    cpdef int count_up_versions(self) except -1:
        """Let autograd know that the tensors' memory has changed; not of one that was swapped for another."""
        cdef Py_ssize_t i
        for i in range(PyTuple_GET_SIZE(self._tensors)):
            if self._handle(self._tensors, i)[0] == self._snapshots[<size_t>i].tensor():
                self._bump_version(self._handle(self._tensors, i))
        return 0

    # Whether it still is the tensor that it was, of the same form and no function of others, and its memory the same.
    cdef bint _is_as_made(self, Py_ssize_t i) except -1:
        cdef void *data = NULL
        return (self._handle(self._tensors, i)[0] == self._snapshots[<size_t>i].tensor() and self._snapshots[<size_t>i].has_form()
                and self._get_data(self._handle(self._tensors, i), &data) == 0 and data == self._data[<size_t>i]
                and (self._snapshots[<size_t>i].is_plain() or self._tensors[i].grad_fn is None))

    # Where the object holds its tensor: what torch's functions take.
    cdef void **_handle(self, tuple tensors, Py_ssize_t i) noexcept:
        return <void **>(<char *>PyTuple_GET_ITEM(tensors, i) + self._handle_offset)

    # Whether it has no attributes and no weak references, which do not show in its own bytes in every CPython.
    cdef bint _is_bare(self, PyObject *tensor) except -1:
        attributes = PyObject_GenericGetDict(<object>tensor, NULL)
        return (PyDict_GET_SIZE(attributes) == 0 and Py_REFCNT(<PyObject *>attributes) == 2
                and (<PyObject **>(<char *>tensor + self._weak_references))[0] == NULL)


cdef class NativeBlock:
    """One minibatch's memory on the host, and the tensors that were made of it: base of HostBlock.

    Args:
        native: The memory.
        layout: Where its parts lie.

    Attributes:
        tensors: The only ones that are ever made; None before.
    """

    def __init__(self, native, layout):
        if self.native is not None:
            raise RuntimeError(f"{type(self).__name__}: __init__ was called before; make another")
        self.native = native
        self.layout = layout


cdef class Generations:
    """Blocks of one size whose tensors are handed out, by turns, until nobody has them.

    Args:
        most: Blocks kept at most.
        memory: Where that of new blocks comes from.
        layout: Theirs.

    Thread safety:
        As the GIL makes it; where there is none, nothing is kept.
    """

    def __cinit__(self):
        self._blocks = []

    def __init__(self, Py_ssize_t most, memory=None, layout=None):
        self._most = most
        self.memory = memory
        self.layout = layout

    def take(self):
        """Return a block that nobody else has and whose tensors are as they were made; None where there is none."""
        return self.taken()

    # Of what is looked at, nothing leaves the list but what is of no use: who takes a block has it from then on.
    cdef NativeBlock taken(self):
        cdef PyObject *block
        cdef Py_ssize_t i
        for i in range(min(len(self._blocks), kProbes)):
            if not self._blocks:  # what goes runs finalizers, and lets threads in, that may take and drop the rest
                return None
            if self._next >= len(self._blocks):
                self._next = 0
            block = PyList_GET_ITEM(self._blocks, self._next)
            if Py_REFCNT(block) == 1 and not (<FieldTensors?>(<NativeBlock>block).tensors).is_held():
                if self._is_free(<NativeBlock>block):
                    self._next += 1
                    return <NativeBlock>block
                # Something was done to its tensors: it goes, and its memory, once the last owner lets it.
                self._drop(self._next)
            else:
                self._next += 1
        return None

    # Adds a block, if it is not there; the oldest goes where there are too many, to wherever its tensors' owners let it.
    cdef int keep(self, NativeBlock block) except -1:
        if block.is_kept or type(block.tensors) is not FieldTensors:  # others cannot be told to be as they were made
            return 0
        block.is_kept = True
        self._blocks.append(block)
        while len(self._blocks) > self._most:
            self._drop(0)
        return 0

    cdef int _drop(self, Py_ssize_t i) except -1:
        cdef NativeBlock block = self._blocks.pop(i)
        block.is_kept = False
        return 0

    # Whether its memory is its tensors' alone, and they are pristine.
    cdef bint _is_free(self, NativeBlock block) except -1:
        return Py_REFCNT(<PyObject *>block.native) == 1 and (<FieldTensors>block.tensors).is_pristine()
